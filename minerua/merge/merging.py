"""The way in: from a recipe to a merged model on the disk, or in memory."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from minerua.errors import ConfigError, StorageError
from minerua.kernels import passes
from minerua.merge.adapters.stage import AdapterStage, merges_adapters, prepare_adapter_stage
from minerua.merge.engine import Progress, carry_out
from minerua.merge.layout.output import Shard, parse_size
from minerua.merge.models import Model, in_memory, open_model, promised_model
from minerua.merge.planning.plan import Job
from minerua.merge.preparation import (
    OpenActivations,
    card_text,
    look_through,
    method_of,
    open_reference,
    prepare_stage,
)
from minerua.merge.recipes.ingredients import Recipe
from minerua.merge.recipes.recipe import parse_recipes, read_recipes
from minerua.merge.recipes.stages import ordered
from minerua.merge.stage import Faults, Stage
from minerua.values import MergeMethodSpec
from minerua.weights import partial_folder
from minerua.weights.header import CODES, DTYPES, capped

Semantics = Literal["mergekit", "paper"]

_MAX_FAULTS = 100
_STAGES = ".stages"


@dataclass(frozen=True, eq=False)
class PreparedMerge:
    """A merge that can start: everything that it needs was looked at but the numbers themselves.

    Args:
        stages: Merges, each after those that it needs; the last is the result.
    """

    stages: tuple[Stage | AdapterStage, ...]

    @property
    def write_bytes(self) -> int:
        """How much is written, stages that are removed in the end included."""
        return sum(stage.write_bytes for stage in self.stages)

    def summary(self) -> dict[str, Any]:
        """Returns what will be done, in numbers and words, as JSON would hold it."""
        last = self.stages[-1]
        return {
            "method": last.method.name,
            "semantics": last.semantics,
            "seed": last.seed,
            "models": [reference.text for reference in last.recipe.references],
            "stages": len(self.stages),
            "tensors": len(last.jobs),
            "layers": ", ".join(f"{count} {family}" for family, count in last.layer_counts.items()) or "none",
            "files": last.file_names,
            "read_bytes": sum(stage.read_bytes for stage in self.stages),
            "write_bytes": self.write_bytes,
            "memory_bytes": max(stage.memory_bytes for stage in self.stages),
            "notes": list(dict.fromkeys(note for stage in self.stages for note in stage.notes)),
        }


def prepare_merge(
    recipe: str | Path,
    *,
    methods: Mapping[str, MergeMethodSpec] | None = None,
    shard_size: int | str = "5GB",
    seed: int = 0,
    semantics: Semantics | None = None,
    open_activations: OpenActivations | None = None,
) -> PreparedMerge:
    """Reads a recipe, opens its models by their headers, and plans the merge; writes nothing that stays.

    Args:
        recipe: A file in mergekit's YAML.
        methods: Merge methods by name. Default: minerua's own.
        shard_size: Largest file of weights: bytes, or a text such as `"5GB"`.
        seed: Seed of random masks; below 2^64.
        semantics: Whom to follow where mergekit and a method's paper differ. Default: what the recipe says, which is
            mergekit if it is silent.
        open_activations: For methods that look at activations: turns a model kind's name and tasks' names into the
            function that `MergeInputs` describes.

    Raises:
        ConfigError: Anything at all stands in the way; lists every fault of the recipe and of all models' headers.
        StorageError: A stage's tokenizer is needed by the next, and cannot be kept in the system's temporary folder.
    """
    path = Path(recipe)
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the recipe {path} cannot be read: {error}") from error
    recipes, wrong = read_recipes(text, where=str(path))
    faults = Faults([*wrong, *_seed_faults(seed)])
    shard_bytes = faults.attempt(lambda: parse_size(shard_size)) or 1
    asked = _Asked(own_methods() if methods is None else methods, shard_bytes, seed, semantics, open_activations)
    with ExitStack() as scratch:
        if wrong:
            stages = []
            for one in recipes:
                look_through(one, asked.methods, {str(other.name) for other in recipes}, faults)
        else:
            stages = _prepare_all(needed(ordered(recipes)), asked, faults, scratch)
    if faults:
        raise ConfigError(f"{path} cannot be merged", capped(faults, limit=_MAX_FAULTS))
    return PreparedMerge(tuple(stages))


def merge_models(
    prepared: PreparedMerge, out: str | Path, *, sync: bool = False, progress: Progress | None = None
) -> None:
    r"""Carries out a merge; the folder appears complete or not at all.

    Args:
        prepared: What is merged.
        out: The folder to make; its parent exists, and it does not, or is empty.
        sync: Whether to wait until the disk itself holds every byte, so that even a power cut leaves all or nothing.
        progress: Called after every tensor with the bytes written so far and in all.

    Raises:
        CheckpointError: The models hold numbers that are NaN or infinite; lists all of them.
        BrokenPlugin: The merge method failed.
        StorageError: The system refused to write: a full disk, missing rights, a folder that is not empty.

    Example:
        >>> import tempfile
        >>> from minerua.weights import open_checkpoint, write_checkpoint
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name, value in (("a", 1), ("b", 3)):
        ...     write_checkpoint(folder / f"{name}.safetensors", {"w": np.full(2, value, np.float32)})
        >>> inputs = [f"{{model: {folder}/{name}.safetensors, parameters: {{weight: 1}}}}" for name in "ab"]
        >>> _ = (folder / "recipe.yml").write_text(f"merge_method: linear\nmodels: [{', '.join(inputs)}]")
        >>> merge_models(prepare_merge(folder / "recipe.yml"), folder / "merged")
        >>> open_checkpoint(folder / "merged").tensor("w").tolist()
        [2.0, 2.0]
    """
    out = Path(out)
    total = sum(job.nbytes for stage in prepared.stages for job in stage.jobs)
    done = 0

    def report(written: int, _: int) -> None:
        if progress is not None:
            progress(done + written, total)

    with partial_folder(out, needed_bytes=prepared.write_bytes, sync=sync) as folder:
        given: dict[str, Model] = {}
        for stage in prepared.stages:
            is_last = stage is prepared.stages[-1]
            place = folder if is_last else folder / _STAGES / str(stage.recipe.name)
            place.mkdir(parents=True, exist_ok=True)
            if isinstance(stage, AdapterStage):
                stage.write(place, out.name, progress=report)
            else:
                stage.models.update({ref: open_reference(ref, given) for ref in stage.models if ref.path in given})
                _write(stage, place, out.name, sync=sync and is_last, progress=report)
            done += sum(job.nbytes for job in stage.jobs)
            if not is_last and stage.recipe.name:
                given[stage.recipe.name] = open_model(stage.recipe.name, str(place))
        shutil.rmtree(folder / _STAGES, ignore_errors=True)


def merge_tensors(
    recipe: str,
    models: Mapping[str, Mapping[str, Any]],
    *,
    methods: Mapping[str, MergeMethodSpec] | None = None,
    seed: int = 0,
    semantics: Semantics | None = None,
) -> dict[str, np.ndarray]:
    """Merges state dicts in memory.

    Args:
        recipe: A recipe's text, in mergekit's YAML; one document.
        models: What the recipe calls a model → tensor name → numpy array or torch tensor on the CPU.
        methods: Merge methods by name. Default: minerua's own.
        seed: Seed of random masks; below 2^64.
        semantics: As in `prepare_merge`.

    Returns:
        Tensor name → merged array (bfloat16 as `ml_dtypes.bfloat16`).

    Raises:
        ConfigError: Something stands in the way; lists every fault.
        CheckpointError: The models hold numbers that are NaN or infinite.
        BrokenPlugin: The merge method failed.

    Example:
        >>> models = "models: [{model: a, parameters: {weight: 0.5}}]"
        >>> recipe = f"{{merge_method: task_arithmetic, base_model: base, {models}}}"
        >>> merge_tensors(recipe, {"base": {"w": np.zeros(2, np.float32)}, "a": {"w": np.ones(2, np.float32)}})
        {'w': array([0.5, 0.5], dtype=float32)}
    """
    recipes = parse_recipes(recipe, where="the recipe")
    faults = Faults(_seed_faults(seed))
    if len(recipes) > 1:
        faults.append(f"the recipe has {len(recipes)} documents; merge them one after another")
    given = {text: in_memory(text, tensors) for text, tensors in models.items()}
    asked = _Asked(own_methods() if methods is None else methods, 1 << 62, seed, semantics, None)
    stage = _prepare(recipes[0], asked, given, faults)
    if faults or not isinstance(stage, Stage):
        raise ConfigError("the recipe cannot be merged", capped(faults, limit=_MAX_FAULTS))
    merged = {job.name: np.empty(job.shape, DTYPES[CODES[job.dtype]]) for job in stage.jobs}
    carry_out(stage.work, lambda job: passes.Target(merged[job.name].dtype, merged[job.name]))
    return merged


class _Asked(NamedTuple):
    """What holds for all stages of a merge."""

    methods: Mapping[str, MergeMethodSpec]
    shard_bytes: int
    seed: int
    semantics: Semantics | None
    open_activations: OpenActivations | None


def _prepare(recipe: Recipe, asked: _Asked, given: Mapping[str, Model], faults: Faults) -> Stage | AdapterStage | None:
    semantics = asked.semantics or recipe.semantics
    if merges_adapters(recipe, given):
        return prepare_adapter_stage(
            recipe,
            methods=lambda: method_of(recipe, asked.methods),
            semantics=semantics,
            seed=asked.seed,
            faults=faults,
        )
    return prepare_stage(
        recipe,
        methods=asked.methods,
        given=given,
        shard_bytes=asked.shard_bytes,
        semantics=semantics,
        seed=asked.seed,
        open_activations=asked.open_activations,
        faults=faults,
    )


def _seed_faults(seed: int) -> list[str]:
    return [] if 0 <= seed < 1 << 64 else [f"seed {seed} is not a whole number from 0 to 2^64 - 1"]


def _prepare_all(
    recipes: Sequence[Recipe], asked: _Asked, faults: Faults, scratch: ExitStack
) -> list[Stage | AdapterStage]:
    stages: list[Stage | AdapterStage] = []
    given: dict[str, Model] = {}
    failed: set[str | None] = set()
    for one in recipes:
        if failed & {reference.path for reference in one.references}:
            failed.add(one.name)  # what it needs cannot be looked at
            continue
        found = Faults()
        stage = _prepare(one, asked, given, found)
        faults += [f"{one.name}: {fault}" if one.name else fault for fault in found]
        if stage is None:
            failed.add(one.name)
            continue
        stages.append(stage)
        if one.name and isinstance(stage, Stage):
            given[one.name] = _promised(stage, scratch)
        elif one is not recipes[-1]:
            faults.append(f"{one.name}: it merges adapters into one, which no other stage can use; merge it by itself")
            failed.add(one.name)
    return stages


def own_methods() -> dict[str, MergeMethodSpec]:
    """Returns minerua's own merge methods by name."""
    from minerua.merge.methods import minerua_merge_methods

    return {spec.name: spec for spec in minerua_merge_methods()}


def needed(recipes: Sequence[Recipe]) -> list[Recipe]:
    """Returns the recipes that the result needs, in order: that without a name, else the last of the text.

    Args:
        recipes: Each after those that it needs.
    """
    last = next((recipe for recipe in recipes if recipe.name is None), recipes[-1])
    wanted = {last.name}
    for recipe in reversed(recipes):
        if recipe.name in wanted:
            wanted |= {reference.path for reference in recipe.references}
    return [recipe for recipe in recipes if recipe.name in wanted and recipe is not last] + [last]


def _promised(stage: Stage, scratch: ExitStack) -> Model:
    """Returns a stage's result as later stages may plan with it, before it exists."""
    specs = {spec.name: spec for shard in stage.shards for spec, _ in shard.tensors}
    changes_tokenizer = stage.recipe.tokenizer is not None or stage.recipe.chat_template is not None
    folder = _kept_files(stage, scratch) if changes_tokenizer else _donor_folder(stage)
    return promised_model(str(stage.recipe.name), specs, stage.config, folder)


def _kept_files(stage: Stage, scratch: ExitStack) -> Path:
    """Writes what a stage will have beside its weights into a folder that lasts as long as `scratch`."""
    name = str(stage.recipe.name)
    try:
        folder = Path(scratch.enter_context(tempfile.TemporaryDirectory(prefix="minerua-"))) / name
        folder.mkdir()
        for path, content in stage.files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
    except OSError as error:
        raise StorageError(
            f"the tokenizer of stage {name} cannot be kept for the next one: {error}; set TMPDIR to another folder"
        ) from error
    return folder


def _donor_folder(stage: Stage) -> Path:
    base = stage.recipe.base
    return (stage.models[base] if base is not None else next(iter(stage.models.values()))).folder


# ── writing ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _write(stage: Stage, folder: Path, name: str, *, sync: bool, progress: Progress) -> None:
    with _opened(stage.shards, folder, sync=sync) as targets:
        carry_out(stage.work, targets, progress=progress)
    for path, content in {**stage.files, "README.md": card_text(stage.recipe, stage.method, name, stage.notes)}.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)  # the folder's rename is what makes it all appear


@contextmanager
def _opened(shards: Sequence[Shard], folder: Path, *, sync: bool) -> Iterator[Callable[[Job], passes.Target]]:
    """Makes all files of weights at their full size, and yields where every tensor goes."""
    places: dict[str, tuple[int, int, np.dtype]] = {}
    with ExitStack() as stack:
        files = []
        for shard in shards:
            file = os.open(folder / shard.file_name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            stack.callback(os.close, file)
            files.append(file)
            os.pwrite(file, shard.header, 0)
            os.ftruncate(file, shard.nbytes)
            for spec, offset in shard.tensors:
                places[spec.name] = (file, offset, DTYPES[CODES[spec.dtype]])

        def target(job: Job) -> passes.Target:
            file, offset, dtype = places[job.name]
            return passes.Target(dtype, file=file, offset=offset)

        yield target
        if sync:
            for file in files:
                os.fsync(file)
