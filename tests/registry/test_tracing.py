"""The trace of everything that plugins are asked, for people and for observers."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from minerua import LossSpec, hookimpl
from minerua.errors import StorageError
from minerua.registry import TRACE_VARIABLE, Call, Registry

from ..conftest import SitePackages

TWO_HOOKS = """
    from minerua import LossSpec, OptimizerSpec, hookimpl

    @hookimpl
    def minerua_losses():
        return [LossSpec("a", print), LossSpec("b", print)]

    @hookimpl
    def minerua_optimizers():
        raise ValueError("no licence")
"""


def load(site_packages: SitePackages, **arguments: object) -> Registry:
    found = importlib.metadata.distributions(path=[str(site_packages.folder)])
    return Registry.load(distributions=found, **arguments)  # type: ignore[arg-type]


@pytest.fixture
def installed(site_packages: SitePackages, monkeypatch: pytest.MonkeyPatch) -> SitePackages:
    monkeypatch.delenv(TRACE_VARIABLE, raising=False)
    site_packages.install("acme-losses", version="2.5", acme_losses=TWO_HOOKS)
    return site_packages


def test_an_observer_is_told_of_every_call_before_and_after(installed: SitePackages) -> None:
    calls: list[Call] = []
    load(installed, observe=calls.append)
    assert [(call.what, call.seconds is None, call.returned) for call in calls] == [
        ("import", True, 0),
        ("import", False, 0),
        ("minerua_optimizers", True, 0),
        ("minerua_optimizers", False, 0),
    ]
    assert [call.error for call in calls[:3]] == [None] * 3
    assert re.fullmatch(r"ValueError: no licence \(.*acme_losses\.py:10\)", str(calls[3].error))
    assert {str(call.plugin) for call in calls} == {"plugin 'acme-losses' (acme-losses 2.5)"}
    assert all(call.seconds is None or 0 <= call.seconds < 60 for call in calls)


@pytest.mark.parametrize("value", ["", "0"])
def test_nothing_is_written_unless_it_is_asked_for(
    value: str, installed: SitePackages, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(TRACE_VARIABLE, value)
    load(installed)
    assert capfd.readouterr() == ("", "")


def test_the_trace_goes_to_stderr_a_line_per_event(
    installed: SitePackages, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(TRACE_VARIABLE, "1")
    load(installed)
    output, errors = capfd.readouterr()
    assert (output, len(errors.splitlines())) == ("", 4)
    assert all(line.startswith("minerua: ") for line in errors.splitlines())


def test_the_lines_of_a_trace_have_plugin_hook_time_and_outcome(
    installed: SitePackages, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    trace = tmp_path / "trace.txt"
    trace.write_text("earlier\n")
    monkeypatch.setenv(TRACE_VARIABLE, str(trace))
    installed.install("quiet-one", quiet=TWO_HOOKS.replace("raise ValueError", "return []  #"))
    load(installed)
    lines = [re.sub(r"\d+\.\d{3} ms", "T", line).split("  ") for line in trace.read_text().splitlines()]
    acme, quiet = "plugin 'acme-losses' (acme-losses 2.5)", "plugin 'quiet' (quiet-one 1.0)"
    told = [[part.strip() for part in line if part] for line in lines]
    assert told[0] == ["earlier"]
    assert told[1] == ["minerua:", acme, "import", "begins"]
    assert told[2] == ["minerua:", "T", acme, "import", "done"]
    assert told[4][:4] == ["minerua:", "T", acme, "minerua_optimizers"]
    assert told[4][4].startswith("ValueError: no licence (")
    assert ["minerua:", "T", quiet, "minerua_losses", "2 specs"] in told
    assert ["minerua:", "T", quiet, "minerua_optimizers", "0 specs"] in told


def test_a_trace_that_cannot_be_written_is_a_clear_mistake(
    installed: SitePackages, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(TRACE_VARIABLE, str(tmp_path / "nowhere" / "trace.txt"))
    with pytest.raises(
        StorageError,
        match=r"names .*trace\.txt', which cannot be written: No such.*; name another file, or 1 for stderr",
    ):
        load(installed)


def test_given_objects_are_traced_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(TRACE_VARIABLE, str(tmp_path / "trace.txt"))
    Registry.of(SimpleNamespace(minerua_losses=hookimpl(specname="minerua_losses")(lambda: [LossSpec("a", print)])))
    assert "plugin 'SimpleNamespace' (given)  minerua_losses  1 spec\n" in (tmp_path / "trace.txt").read_text()
