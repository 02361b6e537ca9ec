"""Recipes as mergekit's users write them."""

GRADIENT_SLERP = """
slices:
  - sources:
      - model: psmathur/orca_mini_v3_13b
        layer_range: [0, 40]
      - model: garage-bAInd/Platypus2-13B
        layer_range: [0, 40]
merge_method: slerp
base_model: psmathur/orca_mini_v3_13b
parameters:
  t:
    - filter: self_attn
      value: [0, 0.5, 0.3, 0.7, 1]
    - filter: mlp
      value: [1, 0.5, 0.7, 0.3, 0]
    - value: 0.5 # fallback for rest of tensors
dtype: float16
"""

TIES = """
models:
  - model: psmathur/orca_mini_v3_13b
    parameters:
      density: [1, 0.7, 0.1] # density gradient
      weight: 1.0
  - model: garage-bAInd/Platypus2-13B
    parameters:
      density: 0.5
      weight: [0, 0.3, 0.7, 1] # weight gradient
  - model: WizardLM/WizardMath-13B-V1.0
    parameters:
      density: 0.33
      weight:
        - filter: mlp
          value: 0.5
        - value: 0
merge_method: ties
base_model: TheBloke/Llama-2-13B-fp16
parameters:
  normalize: true
  int8_mask: true
dtype: float16
"""

STACKED = """
parameters: &silent {scale: [{filter: o_proj, value: 0.0}, {value: 1.0}]}
slices:
  - sources: [{model: Sao10K/Euryale-1.3-L2-70B, layer_range: [0, 16]}]
  - sources: [{model: Xwin-LM/Xwin-LM-70B-V0.1, layer_range: [8, 24]}]
  - sources: [{model: Sao10K/Euryale-1.3-L2-70B, layer_range: [17, 32], parameters: *silent}]
merge_method: passthrough
dtype: float16
"""

STAGES = """
name: first
merge_method: linear
models: [{model: a}, {model: b}]
---
# the last stage
merge_method: slerp
base_model: first
models: [{model: first}, {model: c@v1+first}]
parameters: {t: 0.5}
"""
