"""Recipes whose models are LoRA adapters of one base: they are merged into an adapter, in a space that they share."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from minerua.errors import CheckpointError
from minerua.kernels import passes
from minerua.merge.adapters.spaces import SharedSpace, core_space, full_space, knots_space, merge_adapters
from minerua.merge.engine import Progress, merge_faults, merge_one, number_of, prepare_method
from minerua.merge.layout.output import RECIPE_FILE
from minerua.merge.models import locate, open_model
from minerua.merge.planning.plan import Job, plan
from minerua.merge.preparation import card_text
from minerua.merge.recipes.ingredients import ModelRef, Recipe
from minerua.merge.stage import TILES_BYTES, Faults
from minerua.values import MergeMethodSpec, MergeTensors, TensorSpec
from minerua.weights import Adapter, Factors, is_adapter, open_adapter, write_adapter

SPACES: Mapping[str, Callable[..., SharedSpace]] = MappingProxyType(
    {"core": core_space, "knots": knots_space, "full": full_space}
)
"""What recipes call a space → how it is built."""

NOTHING = ModelRef("no change")
"""The base of task vectors: zero."""


@dataclass(frozen=True, eq=False)
class AdapterStage:
    """A merge of adapters that can start.

    Args:
        recipe: What it was asked for.
        method: How.
        adapters: Reference → adapter.
        jobs: One per weight matrix that an adapter changes.
        layer_counts: Family of layers → how many there are.
        semantics: Whom to follow where mergekit and the papers differ.
        seed: Of everything random.
        notes: What the user should know.
    """

    recipe: Recipe
    method: MergeMethodSpec
    adapters: Mapping[ModelRef, Adapter]
    jobs: tuple[Job, ...]
    layer_counts: Mapping[str, int]
    semantics: Literal["mergekit", "paper"]
    seed: int
    notes: tuple[str, ...]

    @property
    def space(self) -> str:
        """The space's name."""
        return self.recipe.space or "core"

    @property
    def file_names(self) -> list[str]:
        """What it writes, the model card left out."""
        return ["adapter_config.json", "adapter_model.safetensors", RECIPE_FILE]

    @property
    def read_bytes(self) -> int:
        """How much it reads."""
        return sum(_factor_bytes(adapter) for adapter in self.adapters.values())

    @property
    def write_bytes(self) -> int:
        """An upper bound of how much it writes: the ranks of all adapters together, or full ones."""
        full = sum(4 * min(job.shape) * sum(job.shape) for job in self.jobs)
        return (full if self.space == "full" else self.read_bytes) + (1 << 20)

    @property
    def memory_bytes(self) -> int:
        """An upper bound of what it holds."""
        full = max((4 * (len(job.experts) + 3) * int(np.prod(job.shape)) for job in self.jobs), default=0)
        return TILES_BYTES + 3 * self.read_bytes + (full if self.space == "full" else 0)

    def write(self, folder: Path, name: str, *, progress: Progress) -> None:
        """Merges the adapters and writes what comes out.

        Args:
            folder: Where to.
            name: The title of the model card.
            progress: Called after every matrix.

        Raises:
            CheckpointError: A merged matrix cannot be written as factors.
            BrokenPlugin: The merge method failed.
            StorageError: The system refused to write.
        """
        jobs = {job.name: job for job in self.jobs}
        prepared = self._prepare()
        total, done = sum(job.nbytes for job in self.jobs), 0

        def merge(tensor: str, arrays: tuple[np.ndarray, ...]) -> np.ndarray:
            nonlocal done
            merged = np.empty(arrays[0].shape, np.float32)
            tensors = replace(self._tensors(jobs[tensor], arrays), prepared=prepared)
            merge_one(self.method, tensors, passes.Target(merged.dtype, merged))
            done += jobs[tensor].nbytes
            progress(done, total)
            return merged

        members = list(self.adapters.values())
        factors = [member.factors for member in members]
        merged = merge_adapters(factors, merge, space=SPACES[self.space], rank=self.recipe.rank)
        rank = max(pair.right.shape[0] for pair in merged.factors.values())
        write_adapter(
            folder / "made",
            merged.factors,
            rank=rank,
            base_name=members[0].config.get("base_model_name_or_path"),
            fan_in_fan_out=bool(members[0].config.get("fan_in_fan_out")),
        )
        for path in (folder / "made").iterdir():
            path.rename(folder / path.name)
        shutil.rmtree(folder / "made")
        lost = f"rank {rank} leaves out {merged.lost_fraction:.2%} of the merged change's squared norm"
        notes = [*self.notes, *([lost] if merged.lost_fraction else [])]
        (folder / "README.md").write_bytes(card_text(self.recipe, self.method, name, notes))
        (folder / RECIPE_FILE).write_bytes(self.recipe.text.encode())

    def _prepare(self) -> Any:
        """Lets the method look at all matrices in their spaces first, where it wants to."""
        if self.method.prepare is None:
            return None
        build = SPACES[self.space]
        factors = [adapter.factors for adapter in self.adapters.values()]
        spaces = {job.name: build([one.get(job.name) for one in factors]) for job in self.jobs}
        tensors = [self._tensors(job, spaces[job.name].arrays) for job in self.jobs]
        return prepare_method(self.method, tensors)

    def _tensors(self, job: Job, arrays: tuple[np.ndarray, ...]) -> MergeTensors:
        own = dict(zip(self.adapters, arrays, strict=True))
        base = None if job.base is None else own.get(job.base[0], np.zeros(arrays[0].shape, np.float32))
        return MergeTensors(
            name=job.name,
            shape=arrays[0].shape,
            number=number_of(job.name),
            experts=tuple(passes.Source(own[reference]) for reference, _ in job.experts),
            base=None if base is None else passes.Source(base),
            parameters=job.parameters,
            semantics=self.semantics,
            seed=self.seed,
        )


def merges_adapters(recipe: Recipe, given: Collection[str] = ()) -> bool:
    """Whether a recipe's models are adapters rather than whole models.

    Args:
        recipe: What is merged.
        given: What recipes call models that are not looked for on the disk.
    """
    references = [one.model for one in recipe.all_inputs() if one.model.path not in given]
    return any(map(_is_adapter, references))


def prepare_adapter_stage(
    recipe: Recipe,
    *,
    methods: Callable[[], MergeMethodSpec],
    semantics: Literal["mergekit", "paper"],
    seed: int,
    faults: Faults,
) -> AdapterStage | None:
    """Opens the adapters that a recipe names, and plans their merge.

    Args:
        recipe: What is merged.
        methods: Looks up the recipe's method.
        semantics: Whom to follow where mergekit and the papers differ.
        seed: Of everything random.
        faults: Takes everything that stands in the way.

    Returns:
        The stage, or `None` if something stands in the way.
    """
    method = faults.attempt(methods)
    if method is not None and method.base != "ignored":  # mergekit's recipes may list the base among the models
        recipe = replace(recipe, models=tuple(given for given in recipe.models if given.model != recipe.base))
    references = list(dict.fromkeys(given.model for given in recipe.all_inputs()))
    is_among = recipe.base is not None and _is_adapter(recipe.base)
    if recipe.base is not None and is_among:
        references = list(dict.fromkeys([*references, recipe.base]))
    if not recipe.models:
        faults.append("adapters are merged as a whole: name them under models, not in slices or modules")
    whole = [reference.text for reference in references if not _is_adapter(reference)]
    faults += [f"{text} is no adapter, but others are: write those as {text}+ADAPTER" for text in whole]
    if method is not None and method.uses in ("grams", "model"):
        faults.append(f"merge_method: {method.name} looks at activations, which adapters alone do not have")
    if recipe.tokenizer is not None or recipe.chat_template is not None:
        faults.append("tokenizer and chat_template: adapters have no tokenizer; remove them")
    base = None if is_among else _open_base(recipe, faults)
    opened = {} if whole else _open_adapters(references, base, faults)
    if method is None or faults:
        return None
    shapes = {name: _shape(pair) for adapter in opened.values() for name, pair in adapter.factors.items()}
    specs = {name: TensorSpec(name, shape, "float32") for name, shape in sorted(shapes.items())}
    bare = recipe if is_among else replace(recipe, base=None if method.base == "ignored" else NOTHING)
    known = {parameter.name for parameter in method.parameters}
    planned = plan(bare, method, dict.fromkeys(bare.references, specs), known_parameters=known)
    faults += [*planned.faults, *merge_faults(method, planned.jobs)]
    notes = (*planned.notes, *(f"{recipe.out_dtype or recipe.dtype}: adapters are written in float32",) * _asks(recipe))
    if faults:
        return None
    return AdapterStage(
        recipe, method, MappingProxyType(opened), planned.jobs, planned.layer_counts, semantics, seed, notes
    )


def _asks(recipe: Recipe) -> int:
    return int((recipe.out_dtype or recipe.dtype or "float32") != "float32")


def _is_adapter(reference: ModelRef) -> bool:
    if reference.lora is not None:
        return False
    try:
        return is_adapter(locate(reference.text, reference.path, reference.revision))
    except CheckpointError:
        return False


def _open_base(recipe: Recipe, faults: Faults) -> Any:
    base = recipe.base
    if base is None:
        return None
    return faults.attempt(lambda: open_model(base.text, base.path, revision=base.revision))


def _open_adapters(references: list[ModelRef], base: Any, faults: Faults) -> dict[ModelRef, Adapter]:
    opened: dict[ModelRef, Adapter] = {}
    for reference in references:
        place = locate(reference.text, reference.path, reference.revision)  # where it was found to be an adapter
        adapter = faults.attempt(functools.partial(open_adapter, place, base))
        if adapter is not None:
            opened[reference] = adapter
    ways = {bool(adapter.config.get("fan_in_fan_out")) for adapter in opened.values()}
    if len(ways) > 1:
        faults.append("some adapters have fan_in_fan_out set and others not: they were not made for one base")
    shapes: dict[str, dict[tuple[int, int], str]] = {}
    for reference, adapter in opened.items():
        for name, pair in adapter.factors.items():
            shapes.setdefault(name, {}).setdefault(_shape(pair), reference.text)
    for name, found in shapes.items():
        if len(found) > 1:
            listed = ", ".join(f"{text} {list(shape)}" for shape, text in found.items())
            faults.append(f"the adapters change {name!r} in different shapes: {listed}")
    return opened


def _shape(pair: Factors) -> tuple[int, int]:
    return pair.left.shape[0], pair.right.shape[1]


def _factor_bytes(adapter: Adapter) -> int:
    return sum(left.nbytes + right.nbytes for left, right in adapter.factors.values())
