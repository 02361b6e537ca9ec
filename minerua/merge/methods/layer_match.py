"""Layer matching: a merge that makes every layer of one model answer as each expert's layer does, without labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from minerua.merge.methods.means import mean
from minerua.values import MergeInputs

if TYPE_CHECKING:
    import numpy as np

RIDGE = 1e-4
"""How strongly each solution is drawn to the experts' mean, as a share of the inputs' mean square. Found by trial:
anything from 1e-5 to 1e-3 does as well."""


def match_layers(inputs: MergeInputs, weights: Sequence[float]) -> dict[str, np.ndarray]:
    """Returns the task vector of a model whose layers, one after another, are fitted to the experts' own outputs.

    In forward order, for each linear layer: H_i are the inputs that reach it in the model merged so far, on expert i's
    unlabelled inputs, and Y_i = X_i W_iᵀ + b_i what expert i itself answers there on the same. The merged layer is

        [W b] = argmin Σ_i (w_i ÷ n_i) ‖[H_i 1] [W b]ᵀ − Y_i‖² + λ ‖[W b] − Σ_i w_i [W_i b_i]‖²

    with weights that sum to one and λ = `RIDGE` × the mean square of the inputs. So a layer makes up for what the
    layers before it have changed, where RegMean fits every layer alone. A layer's bias is the tensor of the same name
    with `.bias` for `.weight`, fitted if any expert has changed it; tensors that no layer's inputs are known for take
    the weighted mean of their task vectors.

    Args:
        inputs: Base, experts and a way to run a model.
        weights: K positive numbers.

    Returns:
        Tensor name → merged task vector, float32, for every tensor in which an expert differs from the base.

    Source: ordinary least squares, layer by layer. RegMean (arXiv 2212.09849) has H_i = X_i and no bias; RegMean++
        (arXiv
    2508.03121) has H_i as here, but Y_i = H_i W_iᵀ.
    """
    import numpy as np

    shares = [weight / sum(weights) for weight in weights]
    base = {name: np.asarray(tensor, dtype=np.float32) for name, tensor in inputs.base.items()}
    changed = [
        name for name, tensor in base.items() if any(not np.array_equal(e[name], tensor) for e in inputs.experts)
    ]
    merged = {
        name: base[name] + mean([np.float32(expert[name]) - base[name] for expert in inputs.experts], shares)
        for name in changed
    }
    model = {**inputs.base, **merged}
    own = [inputs.activations(expert, k) for k, expert in enumerate(inputs.experts)]
    for name in (name for name in own[0] if name in merged and base[name].ndim == 2):
        reaching = [inputs.activations(model, k)[name] for k in range(len(own))]
        bias = _bias_of(name, merged)
        fitted = _fit(name, bias, reaching, own, inputs.experts, shares)
        merged |= fitted
        model |= fitted
    return {name: np.asarray(tensor - base[name]) for name, tensor in merged.items()}  # numpy makes 0-d a number


def _bias_of(name: str, changed: Mapping[str, np.ndarray]) -> str | None:
    """Returns the layer's bias if any expert has changed it; one that all share, as adapters do, needs no fitting."""
    bias = name.removesuffix(".weight") + ".bias"
    fits = name.endswith(".weight") and bias in changed and changed[bias].shape == changed[name].shape[:1]
    return bias if fits else None


def _fit(
    name: str,
    bias: str | None,
    reaching: Sequence[np.ndarray],
    own: Sequence[Mapping[str, np.ndarray]],
    experts: Sequence[Mapping[str, np.ndarray]],
    shares: Sequence[float],
) -> dict[str, np.ndarray]:
    """Solves one layer's least squares in float64; returns its weight and, if it has one, its bias."""
    import numpy as np

    thetas = [_joined(expert[name], None if bias is None else expert[bias]) for expert in experts]  # each (m, n + 1)
    prior = sum((share * theta for share, theta in zip(shares, thetas, strict=True)), start=np.zeros(()))
    gram, pulled = np.zeros((prior.shape[1],) * 2), np.zeros(prior.shape)
    for share, theta, merged, seen in zip(shares, thetas, reaching, own, strict=True):
        rows, answers = _with_ones(merged, bias), _with_ones(seen[name], bias) @ theta.T  # (r, n + 1), (r, m)
        gram += share / len(rows) * (rows.T @ rows)
        pulled += share / len(rows) * (answers.T @ rows)
    width = experts[0][name].shape[1]
    ridge = RIDGE * float(np.trace(gram[:width, :width])) / width or 1.0  # no input at all: the prior is the answer
    solved = np.linalg.solve(gram + ridge * np.eye(len(gram)), (pulled + ridge * prior).T).T.astype(np.float32)
    layer = {name: np.ascontiguousarray(solved[:, :width])}
    return layer if bias is None else layer | {bias: np.ascontiguousarray(solved[:, width])}


def _joined(weight: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    import numpy as np

    columns = [weight] if bias is None else [weight, bias[:, None]]
    return np.concatenate([np.asarray(column, dtype=np.float64) for column in columns], axis=1)


def _with_ones(rows: np.ndarray, bias: str | None) -> np.ndarray:
    import numpy as np

    rows = rows.astype(np.float64)
    return rows if bias is None else np.concatenate([rows, np.ones((len(rows), 1))], axis=1)
