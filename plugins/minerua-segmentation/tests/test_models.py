"""The model kinds `unet` and `sam`: what is learned is what is scored, and what flows through is what is multiplied."""

from __future__ import annotations

from pathlib import Path

import minerua_segmentation as plugin
import numpy as np
import pytest
import torch
from minerua_segmentation.network import layers_of

from minerua.errors import CheckpointError, ConfigError
from minerua.values import RunContext

FAMILIES = {spec.name: spec for spec in plugin.minerua_models()}
IMAGES = np.random.default_rng(0).integers(0, 255, (3, 14, 10, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def sam(tmp_path_factory):
    """A folder with a tiny SAM of random weights."""
    transformers = pytest.importorskip("transformers")
    size = {"hidden_size": 16, "image_size": 32, "patch_size": 8}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 2, "mlp_dim": 32}
    seen = {**size, **heads, "output_channels": 16, "window_size": 2, "global_attn_indexes": [1], "num_pos_feats": 8}
    torch.manual_seed(0)
    config = transformers.SamConfig(
        vision_config=seen,
        prompt_encoder_config={**size, "mask_input_channels": 4},
        mask_decoder_config={**heads, "hidden_size": 16, "iou_head_hidden_dim": 16},
    )
    folder = tmp_path_factory.mktemp("sam")
    transformers.SamModel(config).save_pretrained(folder)
    return folder


def settings_of(kind, request):
    return {"width": 4, "depth": 2} if kind == "unet" else {"path": str(request.getfixturevalue("sam"))}


def made(kind, settings):
    torch.manual_seed(1)
    spec = FAMILIES[kind].configure(settings, RunContext(Path()))
    module = FAMILIES[kind].module(**settings)
    return spec, module, {name: tensor.numpy().copy() for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("kind", ["unet", "sam"])
def test_what_was_learned_answers_as_its_module_whatever_the_batch(kind, request):
    settings = settings_of(kind, request)
    spec, module, tensors = made(kind, settings)
    with torch.no_grad():
        logits = module.eval()(torch.tensor(IMAGES).float() / 255)
    model = spec.build(tensors)
    assert logits.shape == IMAGES.shape[:3]
    np.testing.assert_allclose(model(IMAGES), logits.sigmoid().numpy(), atol=1e-5)
    np.testing.assert_allclose(model(IMAGES), model((IMAGES / 255).astype(np.float32)), atol=1e-5)
    alone = np.concatenate([model(IMAGES[k : k + 1]) for k in range(3)])
    np.testing.assert_allclose(model(IMAGES), alone, atol=1e-5)


@pytest.mark.parametrize("kind", ["unet", "sam"])
def test_activations_are_the_inputs_of_every_matrix(kind, request):
    spec, _, tensors = made(kind, settings_of(kind, request))
    model = spec.build(tensors)
    seen = spec.activations(model, IMAGES)
    again = spec.activations(model, IMAGES)
    assert len(seen) > 5
    for name, rows in seen.items():
        assert rows.dtype == np.float32
        assert rows.shape[1] == tensors[name].shape[1]
        assert np.array_equal(rows, again[name])


def test_patches_of_a_unet_give_what_its_convolutions_give():
    spec, _, tensors = made("unet", {"width": 4, "depth": 2})
    model = spec.build(tensors)
    seen = spec.activations(model, IMAGES)
    assert list(seen) == [f"layers.{name}.weight" for name in layers_of(4, 2)]
    rows = seen["layers.out.weight"]
    logits = rows @ tensors["layers.out.weight"].T + tensors["layers.out.bias"]
    every = model.run(IMAGES).reshape(-1).numpy()
    assert len(rows) == every.size
    np.testing.assert_allclose(logits[:, 0], every, atol=1e-4)
    x = torch.tensor((IMAGES / 255 - 0.5) * 4).float().permute(0, 3, 1, 2)
    wanted = torch.nn.functional.unfold(x, 3, padding=1).transpose(1, 2).reshape(-1, 27)
    np.testing.assert_allclose(seen["layers.down0a.weight"], wanted.numpy(), atol=1e-5)


def test_all_weights_of_a_unet_are_matrices_and_their_biases():
    module = FAMILIES["unet"].module(width=4, depth=3)
    assert {tensor.ndim for tensor in module.state_dict().values()} == {1, 2}
    loss = module(torch.rand(2, 16, 16, 3)).square().mean()
    loss.backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


def test_only_the_decoder_of_sam_is_learned_unless_all_is_asked_for(sam):
    module = FAMILIES["sam"].module(path=str(sam))
    module(torch.rand(1, 16, 16, 3)).sum().backward()
    learned = {name for name, parameter in module.named_parameters() if parameter.grad is not None}
    assert learned
    assert all(name.startswith("mask_decoder.") for name in learned)
    everything = FAMILIES["sam"].module(path=str(sam), learned="all")
    assert all(parameter.requires_grad for parameter in everything.parameters())


def test_a_name_of_tied_weights_may_be_missing_from_a_sam(sam):
    spec, _, tensors = made("sam", {"path": str(sam)})
    whole = spec.build(tensors)(IMAGES)
    del tensors["prompt_encoder.shared_embedding.positional_embedding"]
    assert np.array_equal(spec.build(tensors)(IMAGES), whole)


def test_the_folder_of_the_base_has_the_configuration_of_a_sam_without_a_path(sam):
    for base in (sam, sam / "model.safetensors"):
        assert FAMILIES["sam"].configure({}, RunContext(Path(), base)).name == "sam"


@pytest.mark.parametrize(
    ("kind", "settings", "text"),
    [
        ("unet", {"widht": 8}, "no setting is named 'widht'; did you mean 'width'"),
        ("unet", {"depth": 0}, "depth is 0; expected a whole number from 1 on"),
        ("sam", {}, "path is missing; expected a folder with SAM's config.json"),
        ("sam", {"path": "gone"}, "gone has no config.json; name a folder that transformers' save_pretrained"),
        ("sam", {"path": "x", "learned": "some"}, "learned is 'some'; expected one of mask-decoder, all"),
    ],
)
def test_settings_that_are_wrong_are_refused(kind, settings, text):
    with pytest.raises(ConfigError) as caught:
        FAMILIES[kind].configure(settings, RunContext(Path()))
    assert text in str(caught.value)
    assert f"the settings of the model '{kind}' cannot be used" in str(caught.value) or "gone" in text


def test_the_names_of_what_takes_settings_are_told():
    with pytest.raises(ConfigError) as caught:
        FAMILIES["unet"].configure({"widht": 8}, RunContext(Path()))
    assert "the settings of the model 'unet' cannot be used" in str(caught.value)


def test_the_configuration_of_another_model_is_refused(tmp_path):
    transformers = pytest.importorskip("transformers")
    transformers.ViTConfig().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="has the configuration of 'vit'; the model 'sam' takes 'sam'"):
        FAMILIES["sam"].module(path=str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="has no SAM that transformers can read"):
        FAMILIES["sam"].module(path=str(tmp_path))


def test_without_transformers_it_is_said_what_to_install(sam, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"needs transformers: pip install 'minerua-segmentation\[sam\]'"):
        FAMILIES["sam"].module(path=str(sam))


@pytest.mark.parametrize("kind", ["unet", "sam"])
def test_weights_of_another_shape_are_refused_with_their_names(kind, request):
    spec, _, tensors = made(kind, settings_of(kind, request))
    name = next(iter(tensors))
    tensors[name] = np.zeros((2, 2), np.float32)
    with pytest.raises(CheckpointError) as caught:
        spec.build(tensors)
    if kind == "unet":
        assert "these are not the weights of a U-Net of width" in str(caught.value)
        assert ": found (2, 2), wanted (" in caught.value.faults[0]
    else:
        assert "these are not the weights of the SAM that" in str(caught.value)
    assert [fault.partition(":")[0] for fault in caught.value.faults] == [name]
    assert "found (2, 2), wanted (" in caught.value.faults[0]
