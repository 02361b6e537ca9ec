"""Ready runs: recipes become files; what the training files ask for is learned, the run file is left to do."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from minerua.errors import ConfigError, LearningStopped, MineruaError, UnknownName, unknown
from minerua.registry import Registry
from minerua.run import JOURNAL, make_folder
from minerua.run.train import execute_training
from minerua.weights import write_bytes

__all__ = ["RECIPES", "RUN", "Need", "Recipe", "Training", "copy_recipe", "make_ready", "recipe_named", "write_demo"]

RUN = "run.yaml"
"""What the run file of a recipe is called in its folder."""


@dataclass(frozen=True)
class Need:
    """Something that a recipe needs, and the package of this repository that provides it.

    Args:
        kind: What it is, as registries call their catalogs.
        name: Its name.
        package: The folder below `plugins`.
    """

    kind: Literal["skills", "models", "evaluators", "losses"]
    name: str
    package: str


@dataclass(frozen=True)
class Training:
    """A training file of a recipe.

    Args:
        file: What it is called in the run's folder, without its end; what it leaves lies in a folder of that name.
        template: The recipe's file, without its end.
        what: What is learned, for the person who waits.
    """

    file: str
    template: str
    what: str


@dataclass(frozen=True)
class Recipe:
    """A ready run.

    Args:
        name: What it is called, and its run file's template without the end.
        title: What messages call it.
        summary: What it does, in a line.
        needs: What must be installed.
        trainings: The training files, in the order in which they are learned.
        evaluations: How many children are evaluated by default.
        experts: How many experts have seeds of their own.
        world: The skill that writes what is learned from into the folder, called with `folder` and `seed`; `None` where
            the data come with a package.
    """

    name: str
    title: str
    summary: str
    needs: tuple[Need, ...]
    trainings: tuple[Training, ...]
    evaluations: int
    experts: int = 3
    world: str | None = None


_ALL = (
    Recipe(
        name="digits",
        title="the demo",
        summary="handwritten digits, turned, inverted and mirrored: three small networks, half a minute",
        needs=(Need("skills", "digits-images", "minerua-digits"),),
        trainings=(
            Training("base", "digits-base", "a base"),
            Training("views", "digits-views", "three experts"),
        ),
        evaluations=1200,
    ),
    Recipe(
        name="agent-skills",
        title="the recipe agent-skills",
        summary="coding, SQL and the shell: three small language models, whose answers are executed; some minutes",
        needs=(
            Need("models", "causal-lm", "minerua-transformers"),
            Need("skills", "instruction-data", "minerua-transformers"),
            Need("skills", "agent-skills-world", "minerua-agent-tasks"),
            Need("evaluators", "coding", "minerua-agent-tasks"),
            Need("evaluators", "database", "minerua-agent-tasks"),
            Need("evaluators", "operating-system", "minerua-agent-tasks"),
        ),
        trainings=(
            Training("base", "agent-skills-base", "a base"),
            Training("experts", "agent-skills-experts", "three experts"),
        ),
        evaluations=200,
        world="agent-skills-world",
    ),
    Recipe(
        name="segmentation",
        title="the recipe segmentation",
        summary="camouflage, polyps, lesions and leaves: four small U-Nets that outline what they see; some minutes",
        needs=(
            Need("models", "unet", "minerua-segmentation"),
            Need("skills", "segmentation-images", "minerua-segmentation"),
            Need("skills", "segmentation-worlds", "minerua-segmentation"),
            Need("losses", "dice-cross-entropy", "minerua-segmentation"),
            Need("evaluators", "segmentation", "minerua-segmentation"),
        ),
        trainings=(
            Training("base", "segmentation-base", "a base"),
            Training("experts", "segmentation-experts", "four experts"),
        ),
        evaluations=100,
        experts=4,
        world="segmentation-worlds",
    ),
)

RECIPES: Mapping[str, Recipe] = {recipe.name: recipe for recipe in _ALL}
"""Name → recipe, in the order in which they are listed."""


def recipe_named(name: str) -> Recipe:
    """Returns a recipe.

    Raises:
        ConfigError: If there is none of this name, with the nearest ones.

    Example:
        >>> recipe_named("digits").evaluations
        1200
    """
    if name not in RECIPES:
        raise ConfigError(f"{unknown('recipe', name, list(RECIPES))}; a run file ends in .yaml")
    return RECIPES[name]


def write_demo(
    out: str | Path,
    *,
    registry: Registry,
    seed: int,
    evaluations: int,
    variant: str,
    say: Callable[[str], None] = lambda text: None,
) -> Path:
    """Learns the demo's base and experts and writes its run file: the recipe `digits`, see `make_ready`.

    Raises:
        MineruaError: As `make_ready`.
    """
    return make_ready(
        RECIPES["digits"], out, registry=registry, seed=seed, evaluations=evaluations, variant=variant, say=say
    )


def make_ready(
    recipe: Recipe,
    out: str | Path,
    *,
    registry: Registry,
    seed: int = 0,
    evaluations: int | None = None,
    variant: str = "minerua",
    say: Callable[[str], None] = lambda text: None,
) -> Path:
    """Learns a recipe's base and experts and writes its run file.

    The folder gets the training files, which `minerua train` reads, what they leave in folders of their names, and
    `run.yaml`, which `minerua evolve` reads.

    Args:
        recipe: Which.
        out: The folder; new, empty, or left by a call that was stopped before its run file was written, which goes on.
        registry: Must provide what the recipe needs, and minerua's own losses and optimizers.
        seed: Seed of everything random.
        evaluations: How many children to evaluate; by default what the recipe says.
        variant: `minerua`, `paper` or `repo`.
        say: Called with a line for the person who waits, before something takes long.

    Returns:
        The run file.

    Raises:
        ConfigError: If the folder already holds a run, or something that the recipe needs is missing.
        MineruaError: As `execute_training`: if the folder holds what was learned with another seed, for example.
    """
    folder = Path(out)
    _refuse_run(folder)
    _refuse_missing(recipe, registry)
    make_folder(folder)
    words = _words(recipe, folder, seed=seed, evaluations=evaluations, variant=variant)
    if recipe.world is not None:
        say("writing tasks and examples ...")
        _write_world(registry, recipe.world, folder, seed)
    for training in recipe.trainings:
        _fill(folder / f"{training.file}.yaml", training.template, **words)
    for training in recipe.trainings:
        say(f"learning {training.what} ...")
        _learn(folder / f"{training.file}.yaml", registry, recipe)
    return _fill(folder / RUN, recipe.name, **words)


def copy_recipe(recipe: Recipe, out: str | Path, *, seed: int = 0, evaluations: int | None = None) -> tuple[Path, ...]:
    """Writes a recipe's files and carries nothing out.

    Args:
        recipe: Which.
        out: The folder; none of the files may be there.
        seed: Seed of everything random.
        evaluations: How many children to evaluate; by default what the recipe says.

    Returns:
        The files, in the order in which they are to be carried out.

    Raises:
        ConfigError: If a file is there; nothing was written then.
        StorageError: If the folder cannot be written.
    """
    folder = Path(out)
    templates = {training.file: training.template for training in recipe.trainings} | {Path(RUN).stem: recipe.name}
    there = [name for name in templates if (folder / f"{name}.yaml").exists()]
    if there:
        raise ConfigError(
            f"{folder} already has {', '.join(f'{name}.yaml' for name in there)}, which would be lost: "
            "choose another --out"
        )
    make_folder(folder)
    words = _words(recipe, folder, seed=seed, evaluations=evaluations, variant="minerua")
    return tuple(_fill(folder / f"{name}.yaml", template, **words) for name, template in templates.items())


# ── what may not be ──────────────────────────────────────────────────────────────────────────────────────────────────


def _refuse_run(folder: Path) -> None:
    run_file = folder / RUN
    if run_file.exists() or (folder / JOURNAL).exists():
        raise ConfigError(
            f"{folder} already holds a run: "
            f"continue it with `minerua evolve {run_file} --resume`, or choose another --out"
        )


def _refuse_missing(recipe: Recipe, registry: Registry) -> None:
    faults: dict[str, str] = {}
    for need in recipe.needs:
        catalog: Mapping[str, object] = getattr(registry, need.kind)
        try:
            catalog[need.name]
        except UnknownName as error:
            faults[error.message] = need.package
    if faults:
        packages = list(dict.fromkeys(faults.values()))
        plural = "s" if len(packages) > 1 else ""
        raise ConfigError(
            f"{recipe.title} needs the package{plural} {' and '.join(packages)}: "
            f"pip install {' '.join(f'./plugins/{package}' for package in packages)}",
            list(faults),
        )


# ── the steps ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _words(recipe: Recipe, folder: Path, *, seed: int, evaluations: int | None, variant: str) -> dict[str, object]:
    """Returns what stands in a template's braces."""
    return {
        "seed": seed,
        "seeds": [(1000 * seed + k) % 2**63 for k in range(1, recipe.experts + 1)],
        "evaluations": recipe.evaluations if evaluations is None else evaluations,
        "variant": variant,
        "base": json.dumps(str(folder.resolve() / "base"), ensure_ascii=False),  # as YAML takes it, whatever is in it
    }


def _fill(path: Path, recipe: str, **words: object) -> Path:
    """Writes a recipe, its words in braces filled in."""
    template = resources.files("minerua.recipes").joinpath(f"{recipe}.yaml").read_text(encoding="utf-8")
    write_bytes(path, template.format(**words).encode())
    return path


def _write_world(registry: Registry, skill: str, folder: Path, seed: int) -> None:
    call: Callable[..., Any] | None = registry.skills[skill].call
    if call is None:
        raise ConfigError(f"the skill {skill!r} cannot be called with folder and seed; see `minerua plugins list`")
    try:
        call(folder=str(folder), seed=seed)
    except MineruaError:
        raise
    except Exception as error:
        raise ConfigError(f"the skill {skill!r} could not write into {folder}: {error}") from error


def _learn(path: Path, registry: Registry, recipe: Recipe) -> None:
    try:
        execute_training(path, registry=registry, resume=True)
    except LearningStopped as error:
        raise LearningStopped(
            f"{recipe.title} was stopped while it learned what {path} asks for; the same command goes on from there",
            signal=error.signal,
        ) from error
