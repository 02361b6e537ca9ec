"""Options and fixtures that all benchmarks share."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds `--smoke`: tiny sizes, so that every change can run every benchmark."""
    parser.addoption("--smoke", action="store_true", help="run a tiny size of every benchmark")


@pytest.fixture(scope="session")
def smoke(request: pytest.FixtureRequest) -> bool:
    """Whether only a tiny size is wanted."""
    return bool(request.config.getoption("--smoke"))
