"""Models that count what happens to them, and residencies that the tests need not close, for the tests of this room."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from minerua.chain.keeping.residency import ModelResidency

from .model_world import World


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def make() -> Iterator[Callable[..., ModelResidency]]:
    """Makes residencies, and closes them after the test; nothing may be left then."""
    made: list[ModelResidency] = []

    def residency(budget_bytes: int | None = None, **settings: Any) -> ModelResidency:
        made.append(ModelResidency(budget_bytes, **settings))
        return made[-1]

    yield residency
    for one in made:
        one.close()
        assert (one.statistics().bytes, one.statistics().models) == (0, 0)
