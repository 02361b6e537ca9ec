from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minerua.chain.planning.measuring import loaded, measure_machine, measure_steps, record_calls, time_call
from minerua.chain.planning.profile import MachineCosts, Profile, StepCost, machine, signature, size_bytes
from minerua.errors import StorageError
from minerua.values import Setup, Skill

from ..naive import add, graph_of, open_naively, wired

SKILL = add()


def filled(path: Path) -> Profile:
    profile = Profile(path)
    profile.costs = MachineCosts(1e-5, 2e-6, 3e9, measured=True)
    profile.record(SKILL, Setup(), "a:int", StepCost(1.5, 10, 20, 0.5))
    profile.record(SKILL, Setup(threads=1), "a:int", StepCost(2.5))
    profile.record_plan("chain", "x:int", "joined, default, serial", 4.5)
    profile.record_inputs("chain", "x:int", {"a": "a:int"})
    profile.save()
    return profile


# ── the file ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_profile_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "chain.profile.json"
    written = filled(path)
    read = Profile(path)
    assert read.notes == ()
    assert read.costs == written.costs
    assert read.find(SKILL, Setup(), "a:int") == StepCost(1.5, 10, 20, 0.5)
    assert read.find(SKILL, Setup(threads=1)) == StepCost(2.5)
    assert read.find(SKILL, Setup(threads=2)) is None
    assert read.plans("chain", "x:int") == {"joined, default, serial": 4.5}
    assert read.step_inputs("chain") == {"a": "a:int"}
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_of_other_inputs_the_latest_measurement_counts() -> None:
    profile = Profile()
    for number, inputs in enumerate(("a:int", "a:str[4]", "a:int")):
        profile.record(SKILL, Setup(), inputs, StepCost(number))
        profile.record_plan("chain", inputs, "plan", number)
    assert profile.find(SKILL, Setup(), "a:float") == StepCost(2)
    assert profile.plans("chain", "a:float") == {"plan": 2}
    profile.forget_plans("chain", "a:int")
    assert profile.plans("chain", "a:float") == {"plan": 1}
    assert profile.plans("other") == {}


def test_measurements_of_other_versions_are_not_used_and_named() -> None:
    profile = Profile()
    profile.record(add("1"), Setup(), "a:int", StepCost(1.0))
    newer = Skill("add1", lambda a: {"y": a}, {"a": int}, {"y": int}, version="2")
    graph = graph_of(wired("s", newer, {"a": "x"}), outputs={"y": "s.y"})
    assert profile.find(newer, Setup()) is None
    assert profile.stale(graph) == ("skill 'add1' was measured in version 1 and is 2 now: these costs are not used",)
    profile.record(newer, Setup(), "a:int", StepCost(1.0))
    assert profile.stale(graph) == ()


@pytest.mark.parametrize(
    ("content", "note"),
    [
        (b"{", "cannot be read and is not used: "),
        (b"\xff\xfe", "cannot be read and is not used: "),
        (b"[]", "is no profile of format 1 and is not used"),
        (b'{"minerua_profile": 99}', "is no profile of format 1 and is not used"),
        (b'{"minerua_profile": 1}', "was measured on another machine (which it does not name) and is not used here"),
    ],
)
def test_a_profile_that_cannot_be_used_is_not_used_and_says_why(tmp_path: Path, content: bytes, note: str) -> None:
    path = tmp_path / "chain.profile.json"
    path.write_bytes(content)
    profile = Profile(path)
    assert note in profile.notes[0]
    assert str(path) in profile.notes[0]
    assert profile.find(SKILL, Setup()) is None
    filled(path)
    assert Profile(path).notes == ()


@pytest.mark.parametrize("part", ["costs", "steps", "plans", "inputs"])
@pytest.mark.parametrize("damage", [None, 3, [3], [{"seconds": "x"}]])
def test_a_damaged_profile_is_not_used_at_all(tmp_path: Path, part: str, damage: Any) -> None:
    path = tmp_path / "chain.profile.json"
    filled(path)
    document = json.loads(path.read_bytes())
    document[part] = damage
    path.write_text(json.dumps(document))
    profile = Profile(path)
    assert f"the profile {path} is damaged and not used: " in profile.notes[0]
    assert (profile.find(SKILL, Setup()), profile.plans("chain"), profile.costs) == (None, {}, MachineCosts())


def test_a_profile_of_another_machine_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "chain.profile.json"
    filled(path)
    document = json.loads(path.read_bytes())
    document["machine"] = {"processors": 96, "processor": "Fast One"}
    path.write_text(json.dumps(document))
    assert "was measured on another machine (96 × Fast One) and is not used here" in Profile(path).notes[0]


def test_a_profile_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    profile = Profile(tmp_path / "gone" / "chain.profile.json")
    with pytest.raises(StorageError, match=r"cannot write the profile .*; choose another folder"):
        profile.save()
    Profile().save()


def test_what_is_under_way_never_shows(tmp_path: Path) -> None:
    path = tmp_path / "chain.profile.json"
    filled(path)
    profile = Profile(path)
    profile.record(SKILL, Setup(), object(), StepCost(1.0))  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        profile.save()
    assert Profile(path).find(SKILL, Setup(), "a:int") == StepCost(1.5, 10, 20, 0.5)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_the_machine_is_known_by_its_processors() -> None:
    assert machine()["processors"] >= 1
    assert machine()["processor"]


# ── signatures ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_signature_tells_types_and_sizes_up_to_powers_of_two() -> None:
    values = {"text": "a cat", "image": np.zeros((5, 64), np.float32), "n": 3, "empty": b"", "rows": [1, 2, 3]}
    assert signature(values) == "empty:bytes[0] image:float32[8,64] n:int rows:list[4] text:str[8]"
    assert signature({"image": np.zeros((8, 33), np.float32)}) == "image:float32[8,64]"


def test_sizes_are_counted_in_bytes() -> None:
    assert (
        size_bytes({"a": np.zeros(4, np.float32), "b": "abc", "c": [b"12", np.zeros(1)], "d": object()}) == 16 + 3 + 10
    )


# ── measuring ────────────────────────────────────────────────────────────────────────────────────────────────────────


def doubling(kind: str) -> Skill:
    """A skill that doubles, of each kind that can be called."""

    async def coroutine(a: int) -> dict[str, int]:
        return {"y": 2 * a}

    def generator(a: int) -> Iterator[dict[str, int]]:
        yield {"y": 0}
        yield {"y": 2 * a}

    async def stream(a: int) -> AsyncIterator[dict[str, int]]:
        yield {"y": 0}
        yield {"y": 2 * a}

    calls: dict[str, Any] = {
        "coroutine": coroutine,
        "generator": generator,
        "stream": stream,
        "plain": lambda a: {"y": 2 * a},
    }
    return Skill(kind, calls[kind], {"a": int}, {"y": int}, pure=True)


@pytest.mark.parametrize("kind", ["plain", "coroutine", "generator", "stream"])
def test_every_kind_of_skill_can_be_timed(kind: str) -> None:
    assert 0 < time_call(doubling(kind).call, {"a": 1}, 5) < 0.1  # type: ignore[arg-type]


def test_what_steps_are_given_is_seen_while_the_chain_runs() -> None:
    model = Skill("net", load=lambda _: lambda a: {"y": a + 1}, inputs={"a": int}, outputs={"y": int}, pure=True)
    graph = graph_of(
        wired("first", model, {"a": "x"}), wired("then", SKILL, {"a": "first.y"}, when=["x"]), outputs={"y": "then.y"}
    )
    ran, skipped = record_calls(graph, [{"x": 1}, {"x": 0}], open_naively)
    assert ran["then"].inputs == {"a": 2}
    assert ran["first"].outputs == {"y": 2}
    assert list(skipped) == ["first"]


def test_every_setup_of_a_pure_step_is_measured() -> None:
    setups = (Setup(), Setup(threads=1))
    skill = Skill(
        "net", load=lambda _: lambda a: {"y": a}, inputs={"a": object}, outputs={"y": object}, pure=True, setups=setups
    )
    profile = Profile()
    graph = graph_of(wired("s", skill, {"a": "x"}), outputs={"y": "s.y"})
    array = np.zeros((3, 4), np.float32)
    measure_steps(graph, [{"x": array}], profile, open_plan=open_naively)
    for setup in setups:
        cost = profile.find(skill, setup, "a:float32[4,4]")
        assert cost is not None
        assert (cost.input_bytes, cost.output_bytes) == (48, 48)
        assert 0 < cost.seconds < 0.1


def test_a_step_with_effects_is_called_once_per_example() -> None:
    ran: list[int] = []
    skill = Skill("log", lambda a: ran.append(a) or {"y": a}, {"a": int}, {"y": int})
    graph = graph_of(wired("s", skill, {"a": "x"}), outputs={"y": "s.y"})
    profile = Profile()
    measure_steps(graph, [{"x": 1}, {"x": 2}], profile, open_plan=open_naively)
    assert ran == [1, 2]
    assert profile.find(skill, Setup()) is not None


def test_how_well_threads_share_a_step_is_measured() -> None:
    lock = threading.Lock()

    def exclusive(a: int) -> dict[str, int]:
        with lock:
            threading.Event().wait(1e-2)
        return {"y": a}

    def free(a: int) -> dict[str, int]:
        threading.Event().wait(1e-2)
        return {"y": a}

    def overlap(call: Any) -> float:
        skill = Skill(call.__name__, call, {"a": int}, {"y": int}, pure=True)
        profile = Profile()
        graph = graph_of(wired("s", skill, {"a": "x"}), outputs={"y": "s.y"})
        measure_steps(graph, [{"x": 1}], profile, open_plan=open_naively)
        cost = profile.find(skill, Setup())
        assert cost is not None
        assert cost.overlap is not None
        return cost.overlap

    def tries(call: Any) -> Iterator[float]:
        """A busy machine may disturb some of them."""
        return (overlap(call) for _ in range(10))

    assert any(found < 0.3 for found in tries(exclusive))
    assert any(found > 0.6 for found in tries(free))


def test_a_family_of_skills_cannot_be_measured_before_it_is_configured() -> None:
    with pytest.raises(TypeError, match="skill 'family' must be configured before it can be measured"):
        loaded(Skill("family", configure=lambda *_: SKILL), Setup())


def test_the_machine_is_measured() -> None:
    costs = measure_machine()
    assert costs.measured
    assert 1e-6 < costs.hand_over_seconds < 0.1
    assert costs.look_up_seconds(1 << 20) > costs.look_up_seconds(0) > 0
