"""Which plugins are imported: the switches of the environment, alone and together."""

from __future__ import annotations

import importlib.metadata
import sys
from typing import Any

import pytest

from minerua.registry import ALLOWED_VARIABLE, DISABLED_VARIABLE, Registry

from ..conftest import SitePackages

EMPTY = "from minerua import hookimpl\n@hookimpl\ndef minerua_losses():\n    return []\n"


@pytest.fixture
def three(site_packages: SitePackages, monkeypatch: pytest.MonkeyPatch) -> SitePackages:
    """Plugins `one` and `two` of `Acme.Losses`, and `own` of minerua; no switch is set."""
    monkeypatch.delenv(ALLOWED_VARIABLE, raising=False)
    monkeypatch.delenv(DISABLED_VARIABLE, raising=False)
    site_packages.install("Acme.Losses", one=EMPTY, two=EMPTY)
    site_packages.install("minerua", own=EMPTY)
    return site_packages


def load(site_packages: SitePackages) -> Registry:
    return Registry.load(distributions=importlib.metadata.distributions(path=[str(site_packages.folder)]))


@pytest.mark.parametrize(
    ("allowed", "disabled", "used"),
    [
        ("", "", ["one", "own", "two"]),
        ("one", "", ["one", "own"]),
        (" two , one ", "", ["one", "own", "two"]),
        ("acme-losses", "", ["one", "own", "two"]),
        ("", "acme_losses", ["own"]),
        ("", "all", ["own"]),
        ("", "all,own", []),
        ("", "minerua", ["one", "two"]),
        ("one,two", "two", ["one", "own"]),
        ("one", "all", ["own"]),
    ],
)
def test_a_plugin_is_imported_if_it_is_allowed_and_not_disabled(
    allowed: str, disabled: str, used: list[str], three: SitePackages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ALLOWED_VARIABLE, allowed)
    monkeypatch.setenv(DISABLED_VARIABLE, disabled)
    registry = load(three)
    assert [plugin.name for plugin in registry.plugins] == ["one", "own", "two"]
    assert [plugin.name for plugin in registry.plugins if plugin.status == "ok"] == used
    assert [name for name in ("one", "own", "two") if name in sys.modules] == used
    assert (registry.problems, registry.notices) == ((), ())


def test_what_is_not_allowed_says_why(three: SitePackages, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ALLOWED_VARIABLE, "two")
    (one,) = [plugin for plugin in load(three).plugins if plugin.name == "one"]
    assert one.status == "disabled"
    assert one.reason == "the environment variable MINERUA_PLUGINS_ALLOWED is 'two' and does not name it"


@pytest.mark.parametrize("variable", [ALLOWED_VARIABLE, DISABLED_VARIABLE])
def test_a_switch_that_names_nobody_is_told_with_the_nearest_name(
    variable: str, three: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "tow,one")
    (notice,) = load(three).notices
    assert notice.startswith(
        f"the environment variable {variable} names a plugin in vain: no plugin is named 'tow'; did you mean 'two'"
    )


@pytest.mark.parametrize(
    ("value", "disabled"),
    [
        ("", []),
        ("one", ["one"]),
        (" one , two,", ["one", "two"]),
        ("all", ["one", "two"]),
        ("own,all", ["one", "own", "two"]),
    ],
)
def test_disabled_plugins_are_listed_but_not_imported(
    value: str, disabled: list[str], site_packages: SitePackages, monkeypatch: pytest.MonkeyPatch
) -> None:
    site_packages.install("first", one=EMPTY, two=EMPTY)
    site_packages.install("Minerua", own=EMPTY)
    monkeypatch.setenv(DISABLED_VARIABLE, value)
    registry = load(site_packages)
    assert [plugin.name for plugin in registry.plugins] == ["one", "own", "two"]
    assert [plugin.name for plugin in registry.plugins if plugin.status == "disabled"] == disabled
    assert [name for name in ("one", "own", "two") if name not in sys.modules] == disabled
    assert registry.problems == ()
