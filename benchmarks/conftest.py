"""Options and fixtures that all benchmarks share."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds `--smoke`: tiny sizes, so that every change can run every benchmark; and `--keep`, for those of hours."""
    parser.addoption("--smoke", action="store_true", help="run a tiny size of every benchmark")
    parser.addoption("--keep", type=Path, help="folder: write down what each seed gave there, take over what is there")


@pytest.fixture(scope="session")
def smoke(request: pytest.FixtureRequest) -> bool:
    """Whether only a tiny size is wanted."""
    return bool(request.config.getoption("--smoke"))


@pytest.fixture(scope="session")
def keep(request: pytest.FixtureRequest, smoke: bool) -> Path | None:
    """The folder where what each seed gave is kept; `None`: nowhere."""
    folder: Path | None = request.config.getoption("--keep")
    return None if smoke else folder
