"""Fixtures shared by all tests: installed plugins made of real files, and the command line in a process of its own."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


class SitePackages:
    """A folder like `site-packages`, on `sys.path`, into which tests install distributions with plugins."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def install(self, distribution: str, *, version: str = "1.0", **modules: str) -> None:
        """Writes modules (name → source) and a `dist-info` whose entry points have the modules' names."""
        entries = "\n".join(f"{name.replace('_', '-')} = {name}" for name in modules)
        self.write_metadata(distribution, f"[minerua]\n{entries}\n", version=version)
        for name, source in modules.items():
            (self.folder / f"{name}.py").write_text(dedent(source), encoding="utf-8")
        importlib.invalidate_caches()

    def write_metadata(self, distribution: str, entry_points: str, *, version: str = "1.0") -> Path:
        """Writes only the `dist-info` folder, with the given text of `entry_points.txt`; returns the folder."""
        info = self.folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(entry_points)
        importlib.invalidate_caches()
        return info


@pytest.fixture
def site_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SitePackages]:
    """An empty `SitePackages`; modules imported from it are forgotten after the test."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    before = set(sys.modules)
    yield SitePackages(folder)
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(folder)):
            del sys.modules[name]


def run_python(*arguments: str, path: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs this Python with the given arguments, on this source tree and the given folder; returns code and output."""
    folders = [str(folder) for folder in (path, REPOSITORY) if folder]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(folders), **environment}
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(name="run_python")
def _run_python() -> object:
    return run_python


def hold_to_budget(measure: Callable[[], float], budget_seconds: float) -> None:
    """Fails unless the best of up to 15 measurements keeps the budget; a machine with too much to do cannot judge."""
    times: list[float] = []
    while len(times) < 15:
        times.append(measure())
        if times[-1] < budget_seconds:
            return
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load > cores:
        pytest.skip(f"{min(times):.3f} s at best, but {load:.1f} processes wanted the {cores} cores: too busy to judge")
    pytest.fail(f"took {min(times):.3f} s at best of {len(times)}; the budget is {budget_seconds} s")


@pytest.fixture(name="hold_to_budget")
def _hold_to_budget() -> object:
    return hold_to_budget
