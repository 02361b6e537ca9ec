"""Random language models in folders, for all tests here."""

from __future__ import annotations

import pytest
import torch
from small_language_models import KINDS, random_model, save_model


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """On models this small a second thread costs more than it computes, most of all where cores are shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Kind → folder of a random model."""
    home = tmp_path_factory.mktemp("models")
    return {kind: save_model(random_model(make()), home / kind) for kind, make in KINDS.items()}
