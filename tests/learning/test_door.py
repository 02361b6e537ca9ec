"""The room's door: every name that it offers is there, and nothing is loaded before it is asked for."""

import pytest

from minerua import learning


@pytest.mark.parametrize("name", learning.__all__)
def test_every_name_at_the_door_leads_somewhere(name: str) -> None:
    found = getattr(learning, name)
    assert found.__name__ == name
    assert found.__module__.startswith("minerua.learning.")


def test_a_name_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(AttributeError, match=r"minerua\.learning has no 'ModelTrianer'; it has CheckpointManager, "):
        learning.ModelTrianer  # noqa: B018


def test_the_door_loads_nothing(run_python) -> None:
    script = "import sys, minerua.learning; print([one for one in sys.modules if one.startswith('minerua.learning.')])"
    assert run_python("-c", script).stdout == "[]\n"
