"""What do plugins cost? Expected: `plugins list` with 30 of them under 0.5 s, one call of a hook under 5 µs.

The list is a whole process; beside it the bare interpreter, and one that finds and imports the same 30 plugins with
`importlib.metadata` alone, without guards, checks or attribution: the floor for anybody who lists plugins. A hook is
called as minerua does it, specs checked; beside it pluggy's call of the same function, and the function itself.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pluggy
import pytest

from minerua import LossSpec, hookimpl, hookspecs
from minerua.registry import KINDS
from minerua.registry.asking import call

MODULE = """
from minerua import LossSpec, OptimizerSpec, hookimpl

@hookimpl
def minerua_losses():
    return [LossSpec("loss-{n}", print)]

@hookimpl
def minerua_optimizers():
    return [OptimizerSpec("optimizer-{n}", print)]
"""
FLOOR = """
from importlib.metadata import entry_points
loaded = [entry.load() for entry in entry_points(group="minerua") if entry.name.startswith("speed-")]
print(len([spec for module in loaded for spec in module.minerua_losses()]))
"""
LIST_SECONDS = 0.5
CALL_SECONDS = 5e-6
LOSSES = next(kind for kind in KINDS if kind.hook == "minerua_losses")
PROCESSES = {
    "minerua plugins list": ["-m", "minerua", "plugins", "list", "--json"],
    "importlib.metadata": ["-c", FLOOR],
    "python (floor)": ["-c", "pass"],
}


def installed(folder: Path, count: int) -> dict[str, str]:
    """Installs plugins as distributions of their own; returns the environment that finds them."""
    for n in range(count):
        information = folder / f"speed_{n}-1.0.dist-info"
        information.mkdir()
        (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: speed-{n}\nVersion: 1.0\n")
        (information / "entry_points.txt").write_text(f"[minerua]\nspeed-{n} = speed_{n}\n")
        (folder / f"speed_{n}.py").write_text(MODULE.format(n=n))
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "MINERUA_PLUGINS_ALLOWED": ",".join(f"speed-{n}" for n in range(count))}


def answered(output: str) -> int:
    """How many of the installed losses are in what a process printed."""
    if not output.startswith("{"):
        return int(output or 0)
    plugins = json.loads(output)["plugins"]
    return sum("minerua_losses" in plugin["provides"] for plugin in plugins if plugin["name"].startswith("speed-"))


@pytest.mark.parametrize("process", PROCESSES)
def test_thirty_plugins_are_listed_at_once(benchmark, smoke, tmp_path, process):
    count = 3 if smoke else 30
    environment = installed(tmp_path, count)
    command = [sys.executable, *PROCESSES[process]]

    def run() -> str:
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    assert answered(run()) == (0 if process == "python (floor)" else count)
    benchmark.pedantic(run, rounds=2 if smoke else 15)
    if process == "minerua plugins list" and not smoke:
        assert benchmark.stats.stats.min < LIST_SECONDS


def losses():
    """A hook with one spec, as most plugins have."""
    return [LossSpec("absolute-error", print)]


@pytest.mark.parametrize("how", ["minerua", "pluggy", "function (floor)"])
def test_a_hook_is_called_in_microseconds(benchmark, smoke, how):
    manager = pluggy.PluginManager("minerua")
    manager.add_hookspecs(hookspecs)
    manager.register(SimpleNamespace(minerua_losses=hookimpl(specname="minerua_losses")(losses)))
    calls = {
        "minerua": lambda: call(manager, LOSSES)[0],
        "pluggy": manager.hook.minerua_losses,
        "function (floor)": losses,
    }
    flat = calls[how]()[0] if how == "pluggy" else calls[how]()
    assert [spec.name for spec in flat] == ["absolute-error"]
    benchmark.pedantic(calls[how], rounds=5 if smoke else 200, iterations=100)
    if how == "minerua" and not smoke:
        assert benchmark.stats.stats.min < CALL_SECONDS
