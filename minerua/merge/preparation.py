"""One recipe and its models, checked and laid out, before a byte of a tensor is read or anything is written."""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Literal

from minerua.errors import UnknownName, unknown
from minerua.merge.engine import Activations, merge_faults
from minerua.merge.layout.configuration import find_layer_key, merged_config
from minerua.merge.layout.output import (
    INDEX_FILE,
    RECIPE_FILE,
    index_file,
    lay_out,
    model_card,
    travelling_files,
)
from minerua.merge.models import Model, is_cached, locate, open_model
from minerua.merge.planning.layers import families, may_count_tokens
from minerua.merge.planning.plan import Job, Plan, plan
from minerua.merge.planning.tensors import FLOATS
from minerua.merge.recipes.ingredients import ModelRef, Recipe, TokenizerRecipe
from minerua.merge.recipes.settings import setting_faults
from minerua.merge.stage import Faults, Stage, job_inputs
from minerua.merge.tokenizers.tokenizer import TokenizerPlan, copy_tokenizer, plan_tokenizer
from minerua.values import MergeMethodSpec, TensorSpec

OpenActivations = Callable[[str, Sequence[str]], Activations]
"""Turns a model kind's name and tasks' names into the function that methods call."""


def prepare_stage(
    recipe: Recipe,
    *,
    methods: Mapping[str, MergeMethodSpec],
    given: Mapping[str, Model],
    shard_bytes: int,
    semantics: Literal["mergekit", "paper"],
    seed: int,
    open_activations: OpenActivations | None,
    faults: Faults,
) -> Stage | None:
    """Opens everything that a recipe names, and decides what is written where.

    Args:
        recipe: What is merged.
        methods: Merge methods by name.
        given: Models that are not on the disk, by the path that the recipe calls them: earlier stages.
        shard_bytes: Largest file of weights.
        semantics: Whom to follow where mergekit and the papers differ.
        seed: Of everything random.
        open_activations: For methods that look at activations.
        faults: Takes everything that stands in the way.

    Returns:
        The stage, or `None` if something stands in the way.
    """
    method = faults.attempt(lambda: method_of(recipe, methods))
    models = _open_models(recipe, given, faults)
    activations = _activations(recipe, method, open_activations, faults)
    if method is None or any(reference not in models for reference in recipe.references):
        faults += _further_faults(recipe, method, models, methods)
        return None
    merged = {reference: models[reference] for reference in recipe.references}
    donor = merged[recipe.base] if recipe.base is not None else next(iter(merged.values()))
    tokenizer = _tokenizer(recipe, recipe.tokenizer, models, merged, faults) if recipe.tokenizer else None
    heights = {reference: rows for reference, model in merged.items() if (rows := _embedding_rows(model))}
    tied = {reference: name for reference, model in merged.items() if (name := _tied_embedding(model))}
    planned = plan(
        recipe,
        method,
        {reference: model.specs for reference, model in merged.items()},
        tied=tied,
        vocabulary=heights,
        merged_vocabulary=None if tokenizer is None else tokenizer.vocabulary,
        known_parameters={parameter.name for spec in methods.values() for parameter in spec.parameters},
    )
    faults += planned.faults
    faults += [*merge_faults(method, planned.jobs), *_task_faults(recipe, method, planned.jobs)]
    if tokenizer is not None:
        for members in {tuple(holder for holder, _ in job_inputs(job)) for job in planned.jobs if job.vocabulary}:
            faults.attempt(functools.partial(tokenizer.row_maps, list(dict.fromkeys(members)), base=recipe.base))
    if faults:
        return None
    return _laid_out(
        recipe, method, merged, planned, tokenizer, donor, tied, shard_bytes, semantics, seed, activations, faults
    )


def look_through(
    recipe: Recipe, methods: Mapping[str, MergeMethodSpec], given: Collection[str], faults: Faults
) -> None:
    """Says what else is wrong with a recipe that cannot be carried out as it is written.

    Args:
        recipe: As far as it could be read.
        methods: Merge methods by name.
        given: Paths that are no models on the disk: earlier stages.
        faults: Takes what is wrong.
    """
    if recipe.method:
        faults.attempt(lambda: method_of(recipe, methods))
    for reference in recipe.references:
        if reference.path and reference.path not in given:
            faults.attempt(functools.partial(open_reference, reference, {}))


def _further_faults(
    recipe: Recipe,
    method: MergeMethodSpec | None,
    models: Mapping[ModelRef, Model],
    methods: Mapping[str, MergeMethodSpec],
) -> list[str]:
    """Returns what is wrong with settings and headers besides an unknown method and models that cannot be opened."""
    known = {parameter.name for spec in methods.values() for parameter in spec.parameters}
    stand_in = method or MergeMethodSpec(recipe.method or "unknown", print, parameters=(), base="optional")
    present = tuple(given for given in recipe.models if given.model in models)
    if method is None:  # whose parameters they are is not known
        known |= {name for given in recipe.models for name in given.parameters} | set(recipe.parameters)
    if len(present) < 1 or len(present) + (recipe.base in models) < 2:
        return setting_faults(recipe, stand_in, known=known)[0]
    reduced = replace(recipe, models=present, base=recipe.base if recipe.base in models else None)
    lenient = replace(stand_in, fewest=0, most=None, base="ignored" if reduced.base is None else stand_in.base)
    specs = {reference: models[reference].specs for reference in reduced.references}
    return list(plan(reduced, lenient, specs, known_parameters=known).faults)


# ── what a recipe names ──────────────────────────────────────────────────────────────────────────────────────────────


def method_of(recipe: Recipe, methods: Mapping[str, MergeMethodSpec]) -> MergeMethodSpec:
    """Returns the method that a recipe names.

    Args:
        recipe: What is merged.
        methods: Merge methods by name.

    Raises:
        UnknownName: Nobody provides it; says which are near.
    """
    try:
        return methods[recipe.method]
    except UnknownName:
        raise
    except KeyError:
        raise UnknownName(unknown("merge method", recipe.method, list(methods))) from None


def _open_models(recipe: Recipe, given: Mapping[str, Model], faults: Faults) -> dict[ModelRef, Model]:
    opened: dict[ModelRef, Model] = {}
    for reference in recipe.references:
        model = faults.attempt(functools.partial(open_reference, reference, given))
        if model is not None:
            opened[reference] = model
    return opened


def open_reference(reference: ModelRef, given: Mapping[str, Model]) -> Model:
    """Opens what a recipe names.

    Args:
        reference: As the recipe names it.
        given: Models that are not on the disk, by path.

    Raises:
        CheckpointError: It cannot be opened; lists all faults.
    """
    adapter = None if reference.lora is None else (reference.lora.path, reference.lora.revision)
    if reference.path in given:
        return given[reference.path].with_adapter(reference.text, adapter)
    return open_model(reference.text, reference.path, revision=reference.revision, adapter=adapter)


def _activations(
    recipe: Recipe, method: MergeMethodSpec | None, open_activations: OpenActivations | None, faults: Faults
) -> Activations | None:
    """Returns what methods with `uses` of `grams` and `model` look at."""
    asked = recipe.activations
    if method is None or method.uses not in ("grams", "model"):
        return None
    if asked is None or open_activations is None:
        faults.append(
            f"merge_method: {method.name} looks at activations; say how to get them: "
            "activations: {model: NAME, tasks: [NAME, one per expert]}"
        )
        return None
    return faults.attempt(lambda: open_activations(asked.model, asked.tasks))


def _task_faults(recipe: Recipe, method: MergeMethodSpec, jobs: Sequence[Job]) -> list[str]:
    if recipe.activations is None or method.uses not in ("grams", "model"):
        return []
    named = len(recipe.activations.tasks)
    counts = dict.fromkeys(len(job.experts) for job in jobs if job.kind == "merge")
    return [
        f"activations: {named} tasks are named for {count} experts; name one for each, in the order of the models"
        for count in counts
        if count != named
    ]


# ── vocabularies ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _tokenizer(
    recipe: Recipe,
    asked: TokenizerRecipe,
    models: Mapping[ModelRef, Model],
    merged: Mapping[ModelRef, Model],
    faults: Faults,
) -> TokenizerPlan | None:
    heights = {reference: rows for reference, model in merged.items() if (rows := _embedding_rows(model))}
    without = [model.text for reference, model in merged.items() if reference not in heights]
    faults += [f"{text} has no embedding that vocabularies could be aligned by" for text in without]
    folders = {reference: model.folder for reference, model in models.items()}
    for reference in asked.references:
        place = faults.attempt(functools.partial(locate, reference.text, reference.path, reference.revision))
        if reference not in folders and place is not None:
            folders[reference] = place if place.is_dir() else place.parent
    if without or any(reference not in folders for reference in asked.references):
        return None
    return faults.attempt(
        lambda: plan_tokenizer(asked, folders, base=recipe.base, heights=heights, chat_template=recipe.chat_template)
    )


def _embedding_rows(model: Model) -> int | None:
    """Returns how many rows a model's embedding has; `None` if it has none."""
    names = [name for name, spec in model.specs.items() if may_count_tokens(name) and len(spec.shape) == 2]
    inputs = [name for name in names if "lm_head" not in name.split(".") and model.specs[name].dtype in FLOATS]
    return int(model.specs[(inputs or names)[0]].shape[0]) if names else None


def _tied_embedding(model: Model) -> str | None:
    """Returns the tensor that stands in for a missing `lm_head.weight`, of a model that ties the two."""
    if model.config.get("tie_word_embeddings") is False or any(name.endswith("lm_head.weight") for name in model.specs):
        return None
    names = [
        name for name in model.specs if name.endswith(("embed_tokens.weight", "wte.weight", "word_embeddings.weight"))
    ]
    return names[0] if len(names) == 1 else None


# ── what is written ──────────────────────────────────────────────────────────────────────────────────────────────────


def _laid_out(
    recipe: Recipe,
    method: MergeMethodSpec,
    models: dict[ModelRef, Model],
    planned: Plan,
    tokenizer: TokenizerPlan | None,
    donor: Model,
    tied: Mapping[ModelRef, str],
    shard_bytes: int,
    semantics: Literal["mergekit", "paper"],
    seed: int,
    activations: Activations | None,
    faults: Faults,
) -> Stage | None:
    ordered = sorted(planned.jobs, key=lambda job: _place(job, models))
    in_order = Plan(tuple(ordered), planned.layer_counts, planned.layer_origins, (), planned.notes)
    specs = [TensorSpec(job.name, job.shape, job.dtype) for job in ordered]
    shards = faults.attempt(lambda: lay_out(specs, shard_bytes))
    notes = [*planned.notes]
    if recipe.rank is not None or recipe.space is not None:
        notes.append("rank and space have no effect: they are for merges of adapters, and these are whole models")
    config = faults.attempt(lambda: _config(recipe, donor, in_order, tokenizer, tied, notes))
    new_ids = None if tokenizer is None else tokenizer.new_ids
    travelling = faults.attempt(lambda: travelling_files(donor.folder, new_ids=new_ids))
    folders = [model.folder for model in models.values()]
    copied = (
        None
        if tokenizer is not None
        else faults.attempt(lambda: copy_tokenizer(folders, donor=donor.folder, chat_template=recipe.chat_template))
    )
    beside = tokenizer or copied
    if faults or shards is None or config is None or travelling is None or beside is None:
        return None
    notes += [*travelling.notes, *beside.notes]
    files = {**travelling.files, **beside.files, RECIPE_FILE: recipe.text.encode()}
    if config:
        files["config.json"] = json.dumps(config, indent=2).encode() + b"\n"
    index = index_file(shards)
    if index is not None:
        files[INDEX_FILE] = index
    return Stage(
        recipe, method, models, in_order, tokenizer, shards, MappingProxyType(config), files, semantics, seed,
        activations, tuple(notes),
    )  # fmt: skip


def _place(job: Job, models: Mapping[ModelRef, Model]) -> tuple[Any, ...]:
    """Orders jobs as their tensors lie in the first model, so that the disk is read from front to back."""
    model, name = job_inputs(job)[0]
    return (list(models).index(model), *models[model].place(name), job.name)


def _config(
    recipe: Recipe,
    donor: Model,
    planned: Plan,
    tokenizer: TokenizerPlan | None,
    tied: Mapping[ModelRef, str],
    notes: list[str],
) -> dict[str, Any]:
    if not donor.config:
        notes.append(f"{donor.text} has no config.json, so the merged model has none")
        return {}
    counts = families(donor.specs)
    layers: dict[str, list[int]] = {}
    for family, origins in planned.layer_origins.items():
        key = find_layer_key(donor.config, family=family, count=counts[family])
        if key is None:
            notes.append(
                f"config.json says nowhere that {donor.text} has {counts[family]} {family}; correct it by hand"
            )
            continue
        layers[key] = [min(layer, counts[family] - 1) for _, layer in origins]
    sizes: Counter[str] = Counter()
    for job in planned.jobs:
        sizes[job.dtype] += job.nbytes if job.kind == "merge" else 0
    merged = merged_config(
        donor.config,
        dtype=recipe.out_dtype or recipe.dtype or (sizes.most_common(1)[0][0] if sizes else None),
        layers=layers,
        vocabulary=None if tokenizer is None else tokenizer.vocabulary,
        new_ids=None if tokenizer is None else tokenizer.new_ids,
    )
    notes += merged.notes
    stand_ins = set(tied.items())
    if any(job.name.endswith("lm_head.weight") and stand_ins & set(job_inputs(job)) for job in planned.jobs):
        merged.content["tie_word_embeddings"] = False
    return merged.content


def card_text(recipe: Recipe, method: MergeMethodSpec, name: str, notes: Sequence[str]) -> bytes:
    """Returns the model card of a merge.

    Args:
        recipe: What was merged.
        method: How.
        name: The folder's name.
        notes: What the user should know.
    """
    text = model_card(
        name,
        method=method.name,
        models=[reference.text for reference in recipe.references],
        recipe=recipe.text,
        base=None if recipe.base is None else recipe.base.text,
        hub_names=[one.path for one in recipe.references if is_cached(one.path, one.revision)],
        notes=notes,
    )
    return text.encode()
