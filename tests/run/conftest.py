"""A whole run in a folder: a plugin installed from files, base, experts and a run file; numpy only."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml

from minerua.merge import methods
from minerua.registry import Registry
from minerua.weights import write_checkpoint

from ..conftest import REPOSITORY, SitePackages

PLUGIN = """
    import os
    import time
    from minerua import EvaluatorSpec, ModelSpec, hookimpl

    ITEMS = 60

    def _problem(task):
        import numpy as np
        generator = np.random.Generator(np.random.Philox(task))
        truth = generator.standard_normal((4, 6))
        inputs = np.random.Generator(np.random.Philox(99)).standard_normal((ITEMS, 6)).astype(np.float32)
        return inputs, (inputs @ truth.T).argmax(axis=1)

    def _indices(ids):
        return [int(id) for id in ids]

    def _evaluator(task):
        def evaluate(model, ids, seed):
            time.sleep(float(os.environ.get("TOY_SLEEP", "0")))
            inputs, labels = _problem(task)
            return (model(inputs[_indices(ids)]).argmax(axis=1) == labels[_indices(ids)]).astype(float)
        def inputs(ids):
            return _problem(task)[0][_indices(ids)]
        return EvaluatorSpec(f"toy-{task}", lambda: [str(i) for i in range(ITEMS)], evaluate, inputs)

    @hookimpl
    def minerua_evaluators():
        return [_evaluator(task) for task in range(5)]

    @hookimpl
    def minerua_models():
        def build(tensors):
            return lambda x: x @ tensors["layer.weight"].astype("float32").T + tensors["layer.bias"].astype("float32")
        return [ModelSpec("toy-linear", build, lambda model, inputs: {"layer.weight": inputs})]
"""


def truth(task: int) -> np.ndarray:
    """The plugin's true weights of a task."""
    return np.random.Generator(np.random.Philox(task)).standard_normal((4, 6)).astype(np.float32)


@dataclass
class World:
    """A folder that a run can start in.

    Args:
        folder: Holds `run.yaml`, `base.safetensors` and `experts/`.
        site_packages: Where the plugin is installed.
    """

    folder: Path
    site_packages: Path

    @property
    def run_file(self) -> Path:
        """The run file."""
        return self.folder / "run.yaml"

    def configure(self, **changes: object) -> None:
        """Changes keys of the run file; `None` removes one."""
        content = yaml.safe_load(self.run_file.read_text()) | changes
        self.run_file.write_text(yaml.safe_dump({k: v for k, v in content.items() if v is not None}))

    def registry(self) -> Registry:
        """The plugin and minerua's own merge methods, in this process."""
        sys.path.insert(0, str(self.site_packages))
        try:
            plugin = importlib.import_module("toy_plugin")
        finally:
            sys.path.pop(0)
            sys.modules.pop("toy_plugin", None)
        return Registry.of(plugin, methods)

    def command(self, *arguments: str) -> list[str]:
        """The command line in a process of its own."""
        return [sys.executable, "-m", "minerua", *arguments]

    def environment(self, **variables: str) -> dict[str, str]:
        """The variables of such a process."""
        path = os.pathsep.join([str(self.site_packages), str(REPOSITORY)])
        return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **variables}

    def minerua(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Runs the command line to its end."""
        return subprocess.run(
            self.command(*arguments),
            env=self.environment(**variables),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )


def make_world(folder: Path, *, tasks: int = 3, evaluations: int = 40) -> World:
    """Writes a world of K tasks, one expert each."""
    site_packages = SitePackages(folder / "site-packages")
    site_packages.folder.mkdir(parents=True)
    site_packages.install("toy", toy_plugin=PLUGIN)
    run = folder / "run"
    (run / "experts").mkdir(parents=True)
    generator = np.random.default_rng(0)
    shared = np.mean([truth(task) for task in range(tasks)], axis=0)
    bias = np.zeros(4, np.float32)
    write_checkpoint(run / "base.safetensors", {"layer.weight": shared, "layer.bias": bias})
    for task in range(tasks):
        weights = shared + 0.7 * (truth(task) - shared)
        noise = generator.standard_normal(4).astype(np.float32) * 0.05
        write_checkpoint(run / f"experts/{task}.safetensors", {"layer.weight": weights, "layer.bias": bias + noise})
    content = {
        "minerua": 1,
        "seed": 3,
        "base": "base.safetensors",
        "experts": {f"e{task}": f"experts/{task}.safetensors" for task in range(tasks)},
        "model": "toy-linear",
        "tasks": [f"toy-{task}" for task in range(tasks)],
        "evolution": {"evaluations": evaluations},
    }
    world = World(run, site_packages.folder)
    world.run_file.write_text(yaml.safe_dump(content))
    return world


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A world of three tasks."""
    return make_world(tmp_path)
