"""LoRA adapters in PEFT's layout, read as pairs of factors of base tensors.

Read are plain LoRA adapters of linear layers. Everything that adds more to the base than a product of two factors
(DoRA, trained biases, whole saved modules, embeddings, initialisations that change the base) is refused: leaving it
out would give another model than the one that was trained.

Source: PEFT 0.21, `peft/tuners/lora` (scaling: `LoraLayer.update_layer`; patterns: `peft.utils.other.get_pattern_key`).
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, final

import numpy as np

from minerua.errors import CheckpointError
from minerua.values import TensorSpec
from minerua.weights.checkpoint import find_non_finite, open_checkpoint
from minerua.weights.header import capped, parse_object, shown

CONFIG_NAME = "adapter_config.json"
FACTORS_NAME = "adapter_model.safetensors"
BASE_KEY = "minerua.base"
"""Metadata key under which weights that minerua learned or wrote name the digest of their base."""

_KEY = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<side>[AB])(?:\.[^.]+)?\.weight", re.DOTALL)
_DTYPES = ("float32", "float16", "bfloat16")
_MAX_FAULTS = 100

_REFUSED: Mapping[str, str] = MappingProxyType(
    {
        "use_dora": "DoRA also rescales each output by a trained magnitude",
        "lora_bias": "the adapter's own biases were trained",
        "modules_to_save": "whole modules were trained beside the factors",
        "trainable_token_indices": "single embeddings were trained beside the factors",
        "layer_replication": "layers of the base are repeated",
        "target_parameters": "factors of bare parameters have another layout",
        "alora_invocation_tokens": "the adapter is active for a part of the tokens only",
        "use_qalora": "the inputs are pooled before they reach the factors",
        "use_bdlora": "the factors are block-diagonal",
        "arrow_config": "a router chooses between several adapters",
        "kasa_config": "singular values of the base are changed",
        "monteclora_config": "the factors are random variables",
    }
)
"""Settings that make an adapter more than left @ right, and why; each is off when absent, null, false or empty."""

_BASE_CHANGING = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Beginnings of `init_lora_weights` after which PEFT changes the base's own weights when it loads the adapter."""

_FOREIGN_KEYS: Mapping[str, str] = MappingProxyType(
    {
        "lora_embedding_": "factors of an embedding are not supported",
        "lora_magnitude_vector": "DoRA's magnitudes are not supported",
        "modules_to_save": "whole saved modules are not supported",
    }
)


class Weights(Protocol):
    """What an adapter is fitted to: anything that knows its tensors' shapes, such as a `Checkpoint`."""

    @property
    def path(self) -> Path:
        """Where it comes from, for messages."""

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        """Tensor name → its spec."""


class Factors(NamedTuple):
    """A low-rank difference of one base tensor: `left @ right` is what is added to it.

    Args:
        left: Shape (m, r), float32, the adapter's scaling folded in.
        right: Shape (r, n), float32.

    Example:
        >>> left, right = Factors(np.ones((4, 1), np.float32), np.ones((1, 3), np.float32))
        >>> (left @ right).shape
        (4, 3)
    """

    left: np.ndarray
    right: np.ndarray


@final
@dataclass(frozen=True, eq=False)
class Adapter:
    """A LoRA adapter, fitted to its base and immutable; made by `open_adapter`.

    Args:
        path: The folder that was opened.
        config: What its `adapter_config.json` says; read-only at the top level.
        factors: Base tensor name → its factors, sorted by name; read-only.
    """

    path: Path
    config: Mapping[str, Any]
    factors: Mapping[str, Factors]

    @cached_property
    def digest(self) -> str:
        """32 hexadecimal digits that name what the adapter adds: BLAKE2b of the names, shapes and bytes of the factors.

        Independent of how the keys are written and of the dtype on disk, as far as the float32 values are the same.
        """
        digest = hashlib.blake2b(digest_size=16)
        for name, (left, right) in self.factors.items():
            digest.update(json.dumps([name, left.shape, right.shape]).encode() + b"\n")
            digest.update(left.tobytes() + right.tobytes())
        return digest.hexdigest()


class _Pair(NamedTuple):
    """The two tensors of one module as they lie on disk."""

    module: str
    down: np.ndarray  # lora_A, (r, n)
    up: np.ndarray  # lora_B, (m, r)


def is_adapter(path: str | Path) -> bool:
    """Whether a path is a folder with an adapter's configuration; says nothing about its soundness.

    Args:
        path: Any path; a missing one is no adapter.

    Example:
        >>> is_adapter("nowhere")
        False
    """
    return (Path(path) / CONFIG_NAME).is_file()


def open_adapter(folder: str | Path, base: Weights | None) -> Adapter:
    r"""Opens a LoRA adapter in PEFT's layout and fits it to its base.

    A module's rank is `r`, its alpha `lora_alpha`, unless a key of `rank_pattern` or `alpha_pattern` matches its
    path: the first key, in the file's order, for which the regular expression `(.*\.)?(key)$` matches the whole path
    (a path, its end after a dot, or a pattern). The scaling is alpha / r, with `use_rslora` alpha / √r. Factors are
    transposed where the base stores a weight as (inputs, outputs), as GPT-2's Conv1D does: where `fan_in_fan_out`
    says so and the shapes allow it, and where only this way the shapes fit, because PEFT too decides by the kind of
    the layer. Where one module's shapes contradict `fan_in_fan_out`, an adapter mixes both kinds, and its square
    weights are refused: nothing on disk says which kind they are. `base_model_name_or_path` is not used.

    Args:
        folder: Holds `adapter_config.json` and `adapter_model.safetensors`, whose keys are `<module
            path>.lora_A.weight` (r × n) and `.lora_B.weight` (m × r) in float32, float16 or bfloat16, with or without
            `base_model.model.` before and an adapter's name (`.default`) after `lora_A`.
        base: The weights that the adapter changes; hold `<module path>.weight` for each module. `None`: whatever base
            it is, it stores all weights as `fan_in_fan_out` says.

    Returns:
        The adapter; its factors are read into memory.

    Raises:
        CheckpointError: the adapter is malformed, is more than plain LoRA, does not fit the base, or holds NaN or
            infinity; lists all faults (the first 100).

    Example:
        >>> import tempfile
        >>> from minerua.weights.writer import write_adapter, write_checkpoint
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_checkpoint(f"{folder}/base.safetensors", {"q.weight": np.zeros((4, 3), np.float32)})
        ...     pair = Factors(np.ones((4, 1), np.float32), np.ones((1, 3), np.float32))
        ...     write_adapter(f"{folder}/coder", {"q.weight": pair}, rank=1)
        ...     list(open_adapter(f"{folder}/coder", open_checkpoint(f"{folder}/base.safetensors")).factors)
        ['q.weight']
    """
    folder = Path(folder)
    config, faults = _read_config(folder)
    pairs, more = _read_pairs(folder)
    faults += more
    factors: dict[str, Factors] = {}
    is_mixed = any(_ways(pair, config, base) == [not config.get("fan_in_fan_out")] for pair in pairs)
    for pair in pairs:
        fitted, more = _fitted(pair, config, base, is_mixed=is_mixed)
        faults += more
        if fitted is not None:
            factors[f"{pair.module}.weight"] = fitted
    if faults:
        raise CheckpointError(f"{folder} cannot be used as a LoRA adapter", capped(faults, limit=_MAX_FAULTS))
    ordered = {name: factors[name] for name in sorted(factors)}
    return Adapter(folder, MappingProxyType(config), MappingProxyType(ordered))


def module_of(name: str) -> str:
    """Returns the path of the module that a weight belongs to.

    Example:
        >>> module_of("model.layers.0.mlp.up_proj.weight")
        'model.layers.0.mlp.up_proj'
    """
    return name.removesuffix(".weight")


# ── the configuration ────────────────────────────────────────────────────────────────────────────────────────────────


def _read_config(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Returns the configuration, with its numbers and patterns made usable, and its faults."""
    try:
        text = (folder / CONFIG_NAME).read_bytes()
    except OSError as error:
        return {}, [f"{CONFIG_NAME}: {error.strerror or error}"]
    config, faults = parse_object(text, what="the file")
    if not faults:
        faults = [*_kind_faults(config), *_setting_faults(config)]
    return config, [f"{CONFIG_NAME}: {fault}" for fault in faults]


def _kind_faults(config: Mapping[str, Any]) -> Iterator[str]:
    """Yields why the adapter is not plain LoRA."""
    if config.get("peft_type") != "LORA":
        yield f"peft_type is {shown(config.get('peft_type'))}; only 'LORA' adapters can be merged"
    if config.get("bias", "none") != "none":
        yield f"bias is {shown(config['bias'])}: biases of the base were trained; only 'none' can be merged"
    for key, reason in _REFUSED.items():
        if config.get(key):
            yield f"{key} is {shown(config[key])}: {reason}; merge it into its base with PEFT and use the whole model"
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_BASE_CHANGING):
        remedy = "save it again with path_initial_model_for_weight_conversion, which makes it plain LoRA"
        yield f"init_lora_weights is {shown(start)}: PEFT changes the base when it loads this adapter; {remedy}"


def _setting_faults(config: Mapping[str, Any]) -> Iterator[str]:
    """Yields what is wrong with the settings that the arithmetic needs."""
    if not _is_rank(config.get("r")):
        yield f"r is {shown(config.get('r'))}, not an integer of at least 1"
    if not _is_alpha(config.get("lora_alpha")):
        yield f"lora_alpha is {shown(config.get('lora_alpha'))}, not a finite number"
    for key in ("use_rslora", "fan_in_fan_out"):
        if not isinstance(config.get(key, False), bool | None):
            yield f"{key} is {shown(config[key])}, neither true nor false"
    for key, is_valid, meaning in (("rank_pattern", _is_rank, "rank"), ("alpha_pattern", _is_alpha, "alpha")):
        patterns = config.get(key) or {}
        if not isinstance(patterns, dict):
            yield f"{key} is {shown(patterns)}, not an object"
            continue
        yield from (
            f"{key}: {shown(value)} for {shown(pattern)} is not a usable {meaning}"
            for pattern, value in patterns.items()
            if not is_valid(value)
        )
        yield from (
            f"{key}: {shown(pattern)} is not a regular expression" for pattern in patterns if not _is_regex(pattern)
        )


def _is_rank(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_alpha(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_regex(pattern: str) -> bool:
    try:
        _pattern(pattern)
    except (re.error, RecursionError, OverflowError):
        return False
    return True


def _pattern(key: str) -> re.Pattern[str]:
    return re.compile(rf"(.*\.)?({key})$")


def _matched(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """Returns the value of the first pattern that matches a module path, by PEFT's rule, or the default."""
    for pattern, value in (patterns or {}).items():
        if _pattern(pattern).match(module):
            return value
    return default


# ── the factors ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _read_pairs(folder: Path) -> tuple[list[_Pair], list[str]]:
    """Returns the complete pairs by module, and what is wrong with the file of factors."""
    if not (folder / FACTORS_NAME).exists() and (folder / "adapter_model.bin").exists():
        return [], [f"{FACTORS_NAME}: missing; convert adapter_model.bin with safetensors.torch.save_file"]
    try:
        tensors = open_checkpoint(folder / FACTORS_NAME)
    except CheckpointError as error:
        return [], list(error.faults)
    faults = [] if tensors.specs else [f"{FACTORS_NAME}: holds no tensors"]
    faults += find_non_finite(tensors)
    sides: dict[str, dict[str, str]] = {}
    for name, spec in tensors.specs.items():
        key = _KEY.fullmatch(name)
        if key is None:
            faults.append(f"tensor {shown(name)}: {_foreign(name)}")
        elif spec.dtype not in _DTYPES:
            faults.append(f"tensor {shown(name)}: dtype {spec.dtype} is not one of {', '.join(_DTYPES)}")
        elif key["side"] in sides.setdefault(key["module"], {}):
            faults.append(f"tensor {shown(name)}: a second lora_{key['side']} for module {shown(key['module'])}")
        else:
            sides[key["module"]][key["side"]] = name
    faults += [
        f"module {shown(module)} has lora_{next(iter(side))} without lora_{'B' if 'A' in side else 'A'}"
        for module, side in sides.items()
        if len(side) == 1
    ]
    complete = {module: side for module, side in sides.items() if len(side) == 2}
    return [_Pair(m, tensors.tensor(side["A"]), tensors.tensor(side["B"])) for m, side in complete.items()], faults


def _foreign(name: str) -> str:
    for part, reason in _FOREIGN_KEYS.items():
        if part in name:
            return reason
    return "not a factor of a linear layer: expected <module path>.lora_A.weight or .lora_B.weight"


def _fitted(
    pair: _Pair, config: Mapping[str, Any], base: Weights | None, *, is_mixed: bool
) -> tuple[Factors | None, list[str]]:
    """Returns a module's factors with the scaling folded in, or what keeps them from fitting the base."""
    name, down, up = f"{pair.module}.weight", pair.down, pair.up
    place = f"module {shown(pair.module)}"
    shapes = f"lora_A is {list(down.shape)}, lora_B is {list(up.shape)}"
    if down.ndim != 2 or up.ndim != 2 or down.shape[0] != up.shape[1]:
        return None, [f"{place}: {shapes}; expected (r, n) and (m, r)"]
    if base is not None and name not in base.specs:
        return None, [f"{place}: the base {base.path} has no tensor {shown(name)}{_near(name, base)}"]
    ways = _ways(pair, config, base)
    if base is not None and not ways:
        return None, [f"{place}: {shapes}; their product does not fit the base's {list(base.specs[name].shape)}"]
    if is_mixed and len(ways) > 1:
        reason = "square, and other modules contradict fan_in_fan_out: nothing says whether it is stored transposed"
        return None, [f"{place}: {reason}; merge it into its base with PEFT and use the whole model"]
    rank = _usable(config, "rank_pattern", "r", pair.module, _is_rank)
    alpha = _usable(config, "alpha_pattern", "lora_alpha", pair.module, _is_alpha)
    if rank is None or alpha is None:
        return None, []  # the configuration's own fault says it
    if rank != down.shape[0]:
        return None, [f"{place}: {shapes}, of rank {down.shape[0]}; the configuration says {rank}"]
    scaling = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
    return _scaled(pair, scaling, transposed=ways[0])


def _usable(config: Mapping[str, Any], patterns: str, default: str, module: str, is_valid: Any) -> Any:
    """Returns a module's rank or alpha, or None where the configuration is at fault."""
    table = config.get(patterns) or {}
    if not isinstance(table, dict) or not all(map(_is_regex, table)):
        return None
    value = _matched(table, module, config.get(default))
    return value if is_valid(value) else None


def _near(name: str, base: Weights) -> str:
    """Says which tensor may be meant: models are saved with or without the name of their trunk."""
    tail = name.partition(".")[2]
    for other in base.specs:
        if other == tail or other.endswith(f".{name}"):
            return f"; it has {shown(other)}: open the base under the names that the adapter was trained with"
    return ""


def _ways(pair: _Pair, config: Mapping[str, Any], base: Weights | None) -> list[bool]:
    """Returns whether the base stores the weight as (inputs, outputs): what fits, the configured answer first."""
    if base is None:
        return [bool(config.get("fan_in_fan_out"))]
    spec = base.specs.get(f"{pair.module}.weight")
    if spec is None or pair.up.ndim != 2 or pair.down.ndim != 2:
        return []
    straight = (pair.up.shape[0], pair.down.shape[1])
    said = bool(config.get("fan_in_fan_out"))
    return [way for way in (said, not said) if spec.shape == (straight[::-1] if way else straight)]


def _scaled(pair: _Pair, scaling: float, *, transposed: bool) -> tuple[Factors | None, list[str]]:
    up, down = pair.up.astype(np.float32), pair.down.astype(np.float32)
    left, right = (down.T, up.T) if transposed else (up, down)  # (m, r), (r, n) of the tensor as stored
    with np.errstate(over="ignore", invalid="ignore"):
        factors = Factors(np.ascontiguousarray(left * np.float32(scaling)), np.ascontiguousarray(right))
    if not np.isfinite(factors.left).all() and np.isfinite(left).all():
        return None, [f"module {shown(pair.module)}: its factors overflow float32 when scaled by {scaling:g}"]
    for array in factors:
        array.flags.writeable = False
    return factors, []
