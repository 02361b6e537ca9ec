"""When a skill that a plugin provides is valid."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from minerua import Skill, hookimpl
from minerua.registry import Registry


def plugin_with(*skills: Skill) -> SimpleNamespace:
    def implementation() -> list[Skill]:
        return list(skills)

    return SimpleNamespace(minerua_skills=hookimpl(specname="minerua_skills")(implementation))


INVALID = [
    (Skill("s"), "skill 's' has none of them; exactly one of call, load and configure is needed"),
    (Skill("s", print, load=print), "skill 's' has call and load; exactly one of call, load and"),
    (Skill("s", 3), "call of 's' is an int, not callable"),  # type: ignore[arg-type]
    (Skill("s", print, join=3), "join of 's' is an int, not callable"),  # type: ignore[arg-type]
    (Skill("s", print, inputs=["a"]), "inputs of 's' is a list, not a mapping from names to types"),  # type: ignore[arg-type]
    (Skill("s", print, inputs={"a b": str}), "inputs['a b'] of 's': the name must be a Python ident"),
    (Skill("s", print, optional=["a"]), "optional of 's' is a list, not a tuple of names of inputs"),  # type: ignore[arg-type]
    (
        Skill("s", print, inputs={"text": str}, optional=("txt",)),
        "optional of 's': no input is named 'txt'; did you mean 'text'? Known: text",
    ),
    (Skill("s", print, resources=["cpu"]), "resources of 's' is a list, not a mapping from names to counts"),  # type: ignore[arg-type]
    (
        Skill("s", print, resources={"cpu": 1, "host_bytes": -1}),
        "resources of 's': 'host_bytes' is -1; expected a name, and a whole number from 0",
    ),
    (Skill("s", print, resources={"cpu": 0.5}), "'cpu' is 0.5; expected a name, and a whole"),  # type: ignore[dict-item]
    (Skill("s", print, pure=1), "pure of 's' is 1; expected True or False"),  # type: ignore[arg-type]
    (
        Skill("s", print, setups=()),
        "setups of 's' are (); expected a tuple of Setup with at least one",
    ),
    (Skill("s", print, setups=(1,)), "setups of 's' are (1,); expected a tuple of Setup"),  # type: ignore[arg-type]
    (
        Skill("s", print, loaded_bytes=True),
        "loaded_bytes of 's' is True; expected a whole number from 0, or None",
    ),
]


@pytest.mark.parametrize(("skill", "reason"), INVALID)
def test_a_skill_that_is_not_valid_quarantines_its_plugin(skill: Skill, reason: str) -> None:
    (outcome,) = Registry.of(plugin_with(skill)).plugins
    assert outcome.status == "quarantined"
    assert reason in str(outcome.reason)


def test_a_skill_may_be_loaded_or_made_from_settings_and_need_not_have_ports_then() -> None:
    loaded = Skill("loaded", load=print, inputs={"a": str}, optional=("a",), resources={"cpu": 0}, loaded_bytes=0)
    plugin = plugin_with(loaded, Skill("configured", configure=print, join=print))
    assert Registry.of(plugin).problems == ()
