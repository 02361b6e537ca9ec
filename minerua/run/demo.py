"""The demo: recipes become training files and a run file; what the first ask for is learned, the last is left to do."""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources
from pathlib import Path

from minerua.errors import ConfigError, LearningStopped, UnknownName
from minerua.registry import Registry
from minerua.run import JOURNAL, make_folder
from minerua.run.train import execute_training
from minerua.weights import write_bytes

SKILL = "digits-images"

EXPERTS = 3


def write_demo(
    out: str | Path,
    *,
    registry: Registry,
    seed: int,
    evaluations: int,
    variant: str,
    say: Callable[[str], None] = lambda text: None,
) -> Path:
    """Learns the demo's base and experts and writes its run file.

    The folder gets `base.yaml` and `views.yaml`, which `minerua train` reads, what they leave in `base` and `views`,
    and `run.yaml`, which `minerua evolve` reads.

    Args:
        out: The folder; new, empty, or left by a demo that was stopped before its run file was written, which goes on.
        registry: Must provide the skill `digits-images` and the model `digits-mlp`, as the package `minerua-digits`
            does, and minerua's own losses and optimizers.
        seed: Seed of everything random.
        evaluations: How many children to evaluate.
        variant: `minerua`, `paper` or `repo`.
        say: Called with a line for the person who waits, before something takes long.

    Returns:
        The run file.

    Raises:
        ConfigError: If the folder already holds a run, or the skill is missing.
        MineruaError: As `execute_training`: if the folder holds what was learned with another seed, for example.
    """
    folder = Path(out)
    _refuse(folder, registry)
    make_folder(folder)
    _fill(folder / "base.yaml", "digits-base", seed=seed)
    _fill(folder / "views.yaml", "digits-views", seeds=[(1000 * seed + k) % 2**63 for k in range(1, EXPERTS + 1)])
    for name, what in (("base", "a base"), ("views", "three experts")):
        say(f"learning {what} ...")
        _learn(folder / f"{name}.yaml", registry)
    return _fill(folder / "run.yaml", "digits", seed=seed, variant=variant, evaluations=evaluations)


def _refuse(folder: Path, registry: Registry) -> None:
    run_file = folder / "run.yaml"
    if run_file.exists() or (folder / JOURNAL).exists():
        raise ConfigError(
            f"{folder} already holds a run: "
            f"continue it with `minerua evolve {run_file} --resume`, or choose another --out"
        )
    try:
        registry.skills[SKILL]
    except UnknownName as error:
        raise ConfigError(
            "the demo needs the package minerua-digits: pip install ./plugins/minerua-digits", [error.message]
        ) from error


def _fill(path: Path, recipe: str, **words: object) -> Path:
    """Writes a recipe, its words in braces filled in."""
    template = resources.files("minerua.recipes").joinpath(f"{recipe}.yaml").read_text(encoding="utf-8")
    write_bytes(path, template.format(**words).encode())
    return path


def _learn(path: Path, registry: Registry) -> None:
    try:
        execute_training(path, registry=registry, resume=True)
    except LearningStopped as error:
        raise LearningStopped(
            f"the demo was stopped while it learned what {path} asks for; the same command goes on from there",
            signal=error.signal,
        ) from error
