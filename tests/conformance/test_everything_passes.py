"""Every plugin of this repository, and everything that minerua itself provides, passes the exam."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path

import pytest

from minerua.conformance import Sample, cases
from minerua.registry import Registry

REPOSITORY = Path(__file__).resolve().parent.parent.parent
BUILT_IN = ("minerua-learning", "minerua-merge", "minerua-skills")
"""minerua's own entry points."""

SPECTRUM = "it evens out the singular values on purpose, so that a matrix comes back with other ones"
COUNTED = "it divides by the number of experts where the matrix is not one, whatever their weights"
EXEMPT = {
    "iso-c/one-expert": SPECTRUM,
    "iso-c/equal-experts": SPECTRUM,
    "iso-c/zero-weight": COUNTED,
    "iso-cts/one-expert": SPECTRUM,
    "iso-cts/equal-experts": SPECTRUM,
    "iso-cts/zero-weight": COUNTED,
    "subspace-boosting/one-expert": SPECTRUM,
    "subspace-boosting/equal-experts": SPECTRUM,
    "tsv-m/equal-experts": "it gives every expert its share of the rank, so that equal ones are cut",
    "tsv-m/zero-weight": "an expert of weight 0 still has its share of the rank",
}
"""The laws that merge methods of minerua's own are not meant to keep."""

SAMPLES = {
    "sgd": Sample(settings={"momentum": 0.9}),  # without a momentum the valley of Rosenbrock is too long for it
    "muon": Sample(settings={"lr": 0.2, "weight_decay": 0.0}),  # found at once: each of its steps takes long
}


def distributions() -> list[str]:
    """Returns the distributions of `plugins/` that are installed here."""
    folders = sorted(path.parent.name for path in REPOSITORY.glob("plugins/*/pyproject.toml"))
    names = {re.sub(r"[-_.]+", "-", one.metadata["Name"] or "").lower() for one in importlib.metadata.distributions()}
    return [name for name in folders if name in names and _has_plugin(name)]


def _has_plugin(distribution: str) -> bool:
    return any(entry.group == "minerua" for entry in importlib.metadata.distribution(distribution).entry_points)


OWN = cases("minerua", exempt=EXEMPT, samples=SAMPLES)
STRANGERS = [case for name in distributions() for case in cases(name)]


@pytest.mark.slow
@pytest.mark.parametrize("case", [*OWN, *STRANGERS], ids=str)
def test_it_keeps_the_law(case):
    verdict = case.sit()
    assert not verdict.problems, "\n".join(map(str, verdict.problems))


def test_everything_that_minerua_provides_is_examined():
    registry = Registry.load()
    provided = {(p.name, hook, name) for p in registry.plugins for hook, names in p.provides.items() for name in names}
    examined = {(case.kind, case.name) for case in OWN}
    for plugin, hook, name in provided:
        if plugin in BUILT_IN:
            kind = hook.removeprefix("minerua_").replace("_", " ").removesuffix("s").replace("losse", "loss")
            assert (kind, name) in examined


@pytest.mark.parametrize("law", EXEMPT)
def test_an_exemption_is_still_needed(law):
    (case,) = cases("minerua-merge", only=f"*/{law}")
    assert case.sit().status == "failed"
