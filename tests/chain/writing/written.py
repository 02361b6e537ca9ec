"""Skills and chains for tests of checking: nothing of them runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from minerua import Skill, TensorSpec
from minerua.chain.graph import PortType
from minerua.chain.writing.chain import SkillChain, SkillTask
from minerua.errors import ConfigError
from minerua.values import SkillContext

Made = Callable[[], SkillChain]


def array(*shape: int | str, dtype: str = "float32") -> TensorSpec:
    return TensorSpec("x", shape, dtype)


def nothing(**inputs: object) -> dict[str, object]:
    return {}


async def awaited(**inputs: object) -> dict[str, object]:
    return {}


def make(name: str, inputs: Mapping[str, PortType], outputs: Mapping[str, PortType], **more: Any) -> Skill:
    return Skill(name, more.pop("call", nothing), dict(inputs), dict(outputs), **more)


def configure(settings: Mapping[str, Any], context: SkillContext) -> Skill:
    if "size" not in settings:
        raise ConfigError("settings are incomplete", ["size: missing"])
    return make("sized", {"image": array("n", settings["size"])}, {"folder": Path}, version=str(context.folder))


SKILLS = {
    skill.name: skill
    for skill in (
        make("vision", {"image": array("batch", 64)}, {"embedding": array("batch", 16), "is_cat": bool}),
        make("language", {"text": str}, {"words": array("n", 16)}),
        make(
            "fusion",
            {"embedding": array("b", 16), "words": array("b", 16), "top": int},
            {"label": array("b", dtype="int64")},
            optional=("words",),
        ),
        make("tokens", {"text": str}, {"ids": array("length", dtype="int64")}),
        make("reader", {"ids": array("length", dtype="int32")}, {"answer": str}),
        make("narrow", {"ids": array("length", dtype="int64")}, {"ids": array("length", dtype="int32")}),
        make("pairs", {"one": array("n", "w"), "other": array("n", "w")}, {"sum": array("n", "w")}),
        make("wide", {"text": str}, {"grid": array("n", 32)}),
        make("same", {"x": array("a", "b")}, {"x": array("a", "b")}),
        make("number", {"x": float}, {"x": float}),
        make("open", {"path": Path}, {"text": str}),
        make("later", {"x": int}, {"x": int}, call=awaited),
        Skill("sized", configure=configure),
        Skill("odd", configure=lambda settings, context: settings),  # type: ignore[arg-type,return-value]
    )
}
IMAGE = {"image": array("batch", 64)}


def chain(*skills: Any, inputs: Mapping[str, PortType] = IMAGE, **more: Any) -> SkillChain:
    """A chain with a stage for each: a name, a task, or a tuple of such for a parallel stage."""
    made = SkillChain("look", inputs=inputs, **more)
    for skill in skills:
        made.add_parallel_stage(*(skill if isinstance(skill, tuple) else (skill,)))
    return made


def connected(*connections: tuple[str, str], **more: Any) -> SkillChain:
    made = chain(SkillTask("vision", "see"), SkillTask("number", "size", constants={"x": 1}, **more))
    for source, target in connections:
        made.connect(source, target)
    return made
