"""From arrays to a module of transformers: borrowed where the dtype allows, and every tensor's place known by name."""

from __future__ import annotations

import copy
import ctypes
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from minerua.errors import CheckpointError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class Loaded:
    """A language model in memory.

    Args:
        module: transformers' module, in evaluation mode, on its device.
        places: Tensor name → the parameter that it became; a tensor that became a part of another has none.
        tensors: What it was made of; borrowed, never written to.
        dtype: What it computes in.
    """

    module: Any
    places: Mapping[str, torch.nn.Parameter]
    tensors: Mapping[str, np.ndarray]
    dtype: torch.dtype


def load(config: Any, tensors: Mapping[str, np.ndarray], *, device: torch.device, dtype: str = "auto") -> Loaded:
    """Builds the module that a configuration describes around given arrays.

    On the CPU, and where the dtype is theirs, its parameters are the arrays themselves; nothing ever writes into them.
    An output layer whose tensor is there has weights of its own; one that is missing shares the embedding's, if the
    configuration says so.

    Args:
        config: transformers' configuration.
        tensors: Tensor name → array, read-only.
        device: Where the module goes.
        dtype: `auto`: what most bytes are stored in; else torch's name.

    Raises:
        CheckpointError: If the tensors are not those of such a model; names all.
    """
    import torch

    wanted = stored_dtype(tensors) if dtype == "auto" else getattr(torch, dtype)
    aliases = {name: borrowed(array) for name, array in tensors.items()}
    with quiet():
        try:
            module, found = class_of(config).from_pretrained(
                None,
                config=_untied(config, tensors),
                state_dict=dict(aliases),
                dtype=wanted,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported below, all of them
            )
        except (RuntimeError, ValueError, KeyError) as error:
            raise CheckpointError(
                f"the tensors do not fit a {config.model_type} of this configuration: {error}"
            ) from error
    _check(config, found)
    places = _places(module, aliases)
    module.requires_grad_(False)
    module.eval()
    if device.type != "cpu":
        module.to(device)
    return Loaded(module, places, tensors, wanted)


def class_of(config: Any) -> Any:
    """Returns transformers' class of causal language models with such a configuration."""
    import transformers

    found: Any = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    return found[0] if isinstance(found, tuple) else found


def borrowed(array: np.ndarray) -> torch.Tensor:
    """Returns an array's memory as a tensor; it must not be written to, and lives as long as the array.

    `torch.from_numpy` warns of arrays that are read-only and knows no bfloat16.
    """
    import torch

    array = np.ascontiguousarray(array) if array.ndim else array
    dtype = torch_dtype(array.dtype)
    if not array.nbytes:
        return torch.empty(array.shape, dtype=dtype)
    memory: Any = (ctypes.c_char * array.nbytes).from_address(array.ctypes.data)
    memory.owner = array  # torch keeps the memory object, and with it the array
    return torch.frombuffer(memory, dtype=dtype).view(array.shape)


def torch_dtype(dtype: np.dtype) -> torch.dtype:
    """Returns torch's dtype of the same name."""
    import torch

    return {"bool": torch.bool}.get(dtype.name) or getattr(torch, dtype.name)


def stored_dtype(tensors: Mapping[str, np.ndarray]) -> torch.dtype:
    """Returns the floating dtype that most bytes are stored in; float32 where there is none."""
    import torch

    sizes: Counter[torch.dtype] = Counter()
    for array in tensors.values():
        dtype = torch_dtype(array.dtype)
        if dtype.is_floating_point:
            sizes[dtype] += array.nbytes
    return sizes.most_common(1)[0][0] if sizes else torch.float32


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps transformers' progress bars and remarks on loading from the screen."""
    import transformers.utils.logging

    logging: Any = transformers.utils.logging

    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _untied(config: Any, tensors: Mapping[str, np.ndarray]) -> Any:
    """Returns a configuration of its own; with an output layer in the file, one that keeps it apart."""
    config = copy.deepcopy(config)
    if getattr(config, "tie_word_embeddings", False) and any(name.endswith("lm_head.weight") for name in tensors):
        config.tie_word_embeddings = False
    return config


def _check(config: Any, found: Mapping[str, Any]) -> None:
    faults = [f"{name}: the model needs it, and it is missing" for name in sorted(found["missing_keys"])]
    faults += [f"{name}: the model has no place for it" for name in sorted(found["unexpected_keys"])]
    faults += [
        f"{name}: its shape is {list(here)}, the model's {list(there)}"
        for name, here, there in sorted(found["mismatched_keys"])
    ]
    if faults:
        raise CheckpointError(f"these tensors are not those of a {config.model_type} of this configuration", faults)


def _places(module: Any, aliases: Mapping[str, torch.Tensor]) -> dict[str, torch.nn.Parameter]:
    """Returns which parameter each tensor became.

    By its memory, so that it does not matter how transformers renames; by its name where it was cast.
    """
    parameters = dict(module.named_parameters())
    by_memory = {(p.data_ptr(), p.shape): p for p in parameters.values() if p.numel()}
    prefix = f"{module.base_model_prefix}."
    places = {}
    for name, tensor in aliases.items():
        place = by_memory.get((tensor.data_ptr(), tensor.shape))
        for candidate in (name, prefix + name, name.removeprefix(prefix)):
            place = parameters.get(candidate) if place is None else place
        if place is not None and place.shape == tensor.shape:
            places[name] = place
    return places
