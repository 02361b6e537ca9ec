"""Fixtures shared by the tests of the subspace: a base, and experts of every kind and number."""

import pytest

from minerua.weights import Subspace, open_checkpoint, open_expert

from ..worlds import base_tensors, tuned_tensors, write_lora, write_model

KINDS = ("full", "lora", "mixed")
COUNTS = (2, 3, 4, 5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("subspace")


@pytest.fixture(scope="module")
def base(folder):
    return open_checkpoint(write_model(folder / "base", base_tensors()))


@pytest.fixture(scope="module")
def vectors(folder, base):
    """Returns the task vectors of `count` experts of a kind."""

    def open_one(kind, k):
        path = folder / f"{kind}-{k}"
        if not path.exists() and kind == "full":
            write_model(path, tuned_tensors(base_tensors(), seed=k))
        elif not path.exists():
            write_lora(path, {"body.weight": 1, "head.weight": 1 + k % 2}, seed=10 * k)
        return open_expert(f"expert-{k}", path, base).task_vector

    def make(kind, count):
        kinds = [("lora" if k % 2 else "full") if kind == "mixed" else kind for k in range(count)]
        return {f"expert-{k}": open_one(kinds[k], k) for k in range(count)}

    return make


@pytest.fixture(params=[(kind, count) for kind in KINDS for count in COUNTS], ids=lambda p: f"{p[0]}-{p[1]}")
def world(request, base, vectors):
    """A subspace and its founders' task vectors, for every kind and number of experts."""
    founders = vectors(*request.param)
    return Subspace(base, founders), founders
