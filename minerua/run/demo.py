"""The demo: learns a base and experts with a plugin's skill, writes a run file for them, and carries it out."""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources
from pathlib import Path

from minerua.errors import ConfigError, UnknownName
from minerua.registry import Registry
from minerua.run import JOURNAL, make_folder
from minerua.weights import write_bytes

SKILL = "digits-experts"


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

    Args:
        out: The folder; new, empty, or left by a demo that was stopped before its run file was written.
        registry: Must provide the skill `digits-experts`, as the package `minerua-digits` does.
        seed: Seed of everything random.
        evaluations: How many children to evaluate.
        variant: `minerua`, `paper` or `repo`.
        say: Called with a line for the person who waits, before something takes long.

    Returns:
        The run file.

    Raises:
        ConfigError: If the folder already holds a run, or the skill is missing.
        StorageError: If something cannot be written.
    """
    folder = Path(out)
    run_file = folder / "run.yaml"
    if run_file.exists() or (folder / JOURNAL).exists():
        raise ConfigError(
            f"{folder} already holds a run: "
            f"continue it with `minerua evolve {run_file} --resume`, or choose another --out"
        )
    try:
        skill = registry.skills[SKILL]
    except UnknownName as error:
        raise ConfigError(
            "the demo needs the package minerua-digits: pip install ./plugins/minerua-digits", [error.message]
        ) from error
    if skill.call is None:
        raise ConfigError(f"the demo needs a skill {SKILL!r} with a call, found one that must be loaded or configured")
    make_folder(folder)
    say("learning a base and three experts ...")
    learned = skill.call(out_dir=str(folder), seed=seed)
    experts = "\n".join(f"  {name}: {path}" for name, path in learned["experts"].items())
    template = resources.files("minerua.recipes").joinpath("digits.yaml").read_text(encoding="utf-8")
    text = template.format(seed=seed, base=learned["base"], experts=experts, variant=variant, evaluations=evaluations)
    write_bytes(run_file, text.encode())
    return run_file
