"""How one plugin is asked: the contract may grow, and plugins written before still answer."""

from __future__ import annotations

from inspect import signature
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from minerua import LossSpec, hookimpl, hookspecs
from minerua.registry import Plugin, Registry, asking


@pytest.fixture
def later_contract(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A later minerua, whose hook `minerua_losses` offers an argument; returns what it offers."""
    later = ModuleType("later_hookspecs")
    vars(later).update({name: value for name, value in vars(hookspecs).items() if name.startswith("minerua_")})

    def minerua_losses(device: str) -> list[LossSpec]:
        return []

    later.minerua_losses = hookspecs.hookspec(minerua_losses)  # type: ignore[attr-defined]
    offered: dict[str, Any] = {"device": "cuda"}
    monkeypatch.setattr(asking, "hookspecs", later)
    monkeypatch.setattr(asking, "OFFERED", offered)
    return offered


def plugin(function: Any) -> SimpleNamespace:
    return SimpleNamespace(minerua_losses=hookimpl(specname="minerua_losses")(function))


def test_a_plugin_for_an_older_hook_with_fewer_arguments_still_works(later_contract: dict[str, Any]) -> None:
    older = plugin(lambda: [LossSpec("older", print)])
    newer = plugin(lambda device: [LossSpec(f"on-{device}", print)])
    registry = Registry.of(older, newer)
    assert registry.problems == ()
    assert list(registry.losses) == ["older", f"on-{later_contract['device']}"]


def test_a_plugin_that_asks_for_an_argument_that_does_not_exist_is_named() -> None:
    (problem,) = Registry.of(plugin(lambda device: [])).problems
    assert problem.startswith("plugin 'SimpleNamespace' (given): a hook has the wrong signature: ")
    assert "Argument(s) {'device'} are declared in the hookimpl but can not be found in the hookspec" in problem


def test_everything_that_hooks_may_ask_for_is_offered() -> None:
    hooks = [hook for name, hook in vars(hookspecs).items() if name.startswith("minerua_")]
    assert {name for hook in hooks for name in signature(hook).parameters} == set(asking.OFFERED)


def test_only_hooks_that_a_plugin_has_are_called() -> None:
    calls: list[Any] = []
    asking.ask(plugin(lambda: []), Plugin("x", "acme", "1.0"), calls.append)
    assert [call.what for call in calls] == ["minerua_losses", "minerua_losses"]
