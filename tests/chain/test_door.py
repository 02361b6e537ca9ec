"""The room's door: every name that it offers is there, and nothing is loaded before it is asked for."""

import pytest

from minerua import chain


@pytest.mark.parametrize("name", chain.__all__)
def test_every_name_at_the_door_leads_somewhere(name: str) -> None:
    assert getattr(chain, name) is not None


def test_a_name_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(AttributeError, match=r"minerua\.chain has no 'SkillChian'; it has CancelToken, "):
        chain.SkillChian  # noqa: B018


def test_the_door_loads_nothing(run_python) -> None:
    script = "import sys, minerua.chain; print([name for name in sys.modules if name.startswith('minerua.chain.')])"
    assert run_python("-c", script).stdout == "[]\n"
