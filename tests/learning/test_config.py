"""The training file: every fault at once, with its place."""

from __future__ import annotations

import re
import types
import typing
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import pytest
import yaml

from minerua.errors import ConfigError
from minerua.learning.config import FREE, TrainingConfig
from minerua.learning.data_config import DataConfig

LEAST = {"model": "mlp", "loss": "cross-entropy"}


def faults(**changes: Any) -> list[str]:
    with pytest.raises(ConfigError, match=r"the training file cannot be used") as caught:
        TrainingConfig.read({**LEAST, **changes})
    return list(caught.value.faults)


def test_names_alone_are_enough() -> None:
    config = TrainingConfig.read(LEAST)
    assert (config.model.name, config.loss.name, config.optimizer.name) == ("mlp", "cross-entropy", "adamw")


def test_every_fault_is_told_with_its_place() -> None:
    found = faults(epochs=0, optimizer={"rat": 1}, device={"precision": "float8"}, epoch=3, batch_size=True)
    assert len(found) == 5
    assert "optimizer.rat: unknown key; did you mean 'rate'?" in found
    assert "epoch: unknown key; did you mean 'epochs'?" in found
    assert any(fault.startswith("epochs: Input should be greater than or equal to 1, found 0") for fault in found)
    assert any(fault.startswith("batch_size: must be a number, found True") for fault in found)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"schedule": {"warmup_steps": 1, "warmup_fraction": 0.1}}, "give warmup_steps or warmup_fraction, not both"),
        (
            {"stopping": {"metric": "accuracy"}},
            "stopping.metric 'accuracy' is not measured; it is one of loss",
        ),
        (
            {"batch_size": 10, "accumulate": 3},
            "batch_size 10 cannot be cut into accumulate = 3 equal parts",
        ),
        ({"experts": {"../x": {}}}, "'../x' cannot be a folder's name: use letters, digits"),
    ],
)
def test_what_does_not_go_together_is_refused(changes: dict[str, Any], expected: str) -> None:
    assert any(expected in fault for fault in faults(**changes))


def test_an_expert_is_the_file_with_changes_and_checked_with_it() -> None:
    config = TrainingConfig.read({**LEAST, "experts": {"a": {"seed": 3}, "b": {"model": {"settings": {"width": 8}}}}})
    assert config.of_expert("a").seed == 3
    assert config.of_expert("b").model.name == "mlp"
    assert config.of_expert("b").experts == {}
    assert faults(experts={"b": {"epoch": 1}}) == ["experts.b.epoch: unknown key; did you mean 'epochs'?"]


def test_a_configuration_can_be_changed_in_python() -> None:
    config = TrainingConfig.read(LEAST).changed(epochs=2, optimizer={"name": "sgd", "settings": {"momentum": 0.9}})
    assert config.changed(optimizer={"rate": 0.5}).optimizer.settings == {"momentum": 0.9}
    with pytest.raises(ConfigError, match=r"the changed configuration cannot be used"):
        config.changed(epochs=-1)


def test_what_binds_a_run_leaves_out_what_no_weight_depends_on() -> None:
    config = TrainingConfig.read(LEAST)
    free = config.changed(keep=7, save_every_steps=3, device={"workers": 4}, logs=[])
    assert free.binding() == config.binding()
    assert free.digest == config.digest
    assert config.changed(seed=1).digest != config.digest
    assert config.changed(epochs=20).digest == config.digest  # a constant rate knows no end
    cosine = config.changed(schedule="cosine")
    assert cosine.changed(epochs=20).digest != cosine.digest
    assert set(FREE) & set(config.binding()) == set()


def test_the_order_of_patterns_binds_a_run() -> None:
    one, other = {"q": 2, r"layers\.0": 4}, {r"layers\.0": 4, "q": 2}
    adapter = {"targets": ["q"], "rank_pattern": one}
    config = TrainingConfig.read({**LEAST, "adapter": adapter})
    assert config.changed(seed=0).digest == config.digest
    assert TrainingConfig.read({**LEAST, "adapter": {**adapter, "rank_pattern": other}}).digest != config.digest
    assert faults(adapter={**adapter, "rank_pattern": {"q": 0}}) == [
        "adapter.rank_pattern.q: Input should be greater than or equal to 1, found 0"
    ]


def test_accuracy_is_better_when_it_is_larger() -> None:
    config = TrainingConfig.read({**LEAST, "metrics": ["accuracy"], "stopping": {"metric": "accuracy"}})
    assert (config.mode, TrainingConfig.read(LEAST).mode) == ("max", "min")


# ── the document ─────────────────────────────────────────────────────────────────────────────────────────────────────

README = (Path(__file__).parents[2] / "minerua" / "learning" / "README.md").read_text("utf-8")


def documented() -> dict[str, tuple[str, str]]:
    rows = re.findall(r"^\| `([a-z_.]+)` \| (.+?) \| (.+?) \| .+ \|$", README, re.MULTILINE)
    return {key: (kind, default) for key, kind, default in rows}


def fields(model: Any = TrainingConfig, place: str = "") -> dict[str, Any]:
    """Key → field, those of the section `data` last, where the document has them."""
    found: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        inner = [
            one
            for one in (field.annotation, *getattr(field.annotation, "__args__", ()))
            if hasattr(one, "model_fields")
        ]
        if name == "data" or not inner:
            found[f"{place}{name}"] = field
        else:
            found |= fields(inner[0], f"{place}{name}.")
    return found | (fields(DataConfig, "data.") if model is TrainingConfig else {})


WORDS = {int: "whole", float: "number", str: "text", bool: "`true`", Path: "path", tuple: "list", dict: "mapping"}


def kind_of(annotation: Any) -> str:
    """The first word of a type, as the document has it."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return f"`{inner[0]}`"
    if origin in (Annotated, types.UnionType, typing.Union):
        return kind_of(inner[0])
    return WORDS[origin or annotation]


def test_every_key_is_documented_and_no_other() -> None:
    assert list(documented()) == list(fields())


@pytest.mark.parametrize("key", [key for key in fields() if key != "data"])
def test_the_documented_type_is_the_type(key: str) -> None:
    assert documented()[key][0].split()[0].rstrip(",") == kind_of(fields()[key].annotation)


@pytest.mark.parametrize("key", fields())
def test_the_documented_default_is_the_default(key: str) -> None:
    field, (_, said) = fields()[key], documented()[key]
    if field.is_required():
        assert said == "required"
    elif key == "data":
        assert said == "none"
    else:
        default = field.get_default(call_default_factory=True)
        written = said.strip("`")
        found = None if said == "none" else written if isinstance(default, str) else yaml.safe_load(written)
        assert pydantic.TypeAdapter(field.annotation).validate_python(found) == default
