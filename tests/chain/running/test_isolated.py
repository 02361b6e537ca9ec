"""What travels to a worker process and back: arrays, references to skills, errors."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from minerua.chain.running import isolated
from minerua.chain.running.isolated import SkillReference
from minerua.chain.running.workers import WorkerProcesses, reference_to
from minerua.errors import ChainError, StepFailed
from minerua.values import Setup, Skill

FOLDER = str(Path(__file__).parent)


@pytest.fixture(scope="module", autouse=True)
def _path_to_skills() -> Iterator[None]:
    """Lets `worker_skills` be imported by its name, here and in the processes."""
    sys.path.insert(0, FOLDER)
    yield
    sys.path.remove(FOLDER)
    sys.modules.pop("worker_skills", None)


@pytest.fixture(scope="module")
def warm() -> Iterator[WorkerProcesses]:
    """Workers for tests that leave them as they found them."""
    with WorkerProcesses() as workers:
        yield workers


# ── what goes in comes out ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "array",
    [
        np.arange(5),
        np.zeros((0, 3)),
        np.array(1.5),
        np.random.default_rng(0).random((300, 400)),
        np.asfortranarray(np.random.default_rng(0).random((300, 400))),
        np.random.default_rng(0).random((600, 400))[::2, ::3],
        np.arange(100_000).astype(ml_dtypes.bfloat16),
        np.array(["ab", "c"]),
        np.ones(isolated.SHARED_BYTES, np.uint8),
        np.ones(isolated.SHARED_BYTES - 1, np.uint8),
    ],
    ids=lambda array: f"{array.dtype}-{array.shape}",
)
def test_arrays_come_back_bit_by_bit(array: np.ndarray, warm: WorkerProcesses) -> None:
    found = warm.run("worker_skills:echo", {"a": array, "b": [1, {"c": array}]})
    for one in (found["a"], found["b"][1]["c"]):
        assert (one.dtype, one.shape, one.tobytes()) == (array.dtype, array.shape, array.tobytes())


def test_large_arrays_are_read_only_views_of_shared_memory_at_both_ends(warm: WorkerProcesses) -> None:
    array = np.ones(100_000)
    assert warm.run("worker_skills:look", {"x": array})["writeable"] is False
    found = warm.run("worker_skills:double", {"x": array})["y"]
    assert not found.flags.writeable
    assert not found.flags.owndata
    del array
    assert found.sum() == 200_000


def test_several_large_arrays_and_a_large_text_travel_in_one_frame(warm: WorkerProcesses) -> None:
    arrays = [np.full(20_000 + n, n, np.float64) for n in range(5)]
    text = "x" * 3_000_000
    found = warm.run("worker_skills:echo", {"arrays": arrays, "text": text})
    assert found["text"] == text
    assert all(np.array_equal(one, other) for one, other in zip(found["arrays"], arrays, strict=True))


@pytest.mark.parametrize("how", ["steps", "later_steps"])
def test_the_last_partial_output_is_the_result_and_the_others_are_told(how: str, warm: WorkerProcesses) -> None:
    partials: list[Any] = []
    found = warm.run(f"worker_skills:{how}", {"count": 3}, on_partial=partials.append)
    assert (found, partials) == ({"n": 2}, [{"n": 0}, {"n": 1}])
    assert warm.run(f"worker_skills:{how}", {"count": 2}) == {"n": 1}


def test_coroutines_are_awaited(warm: WorkerProcesses) -> None:
    assert warm.run("worker_skills:later", {"x": 4}) == {"y": 4}


def test_what_is_printed_is_no_answer_and_nothing_can_be_read(warm: WorkerProcesses, capfd: Any) -> None:
    with WorkerProcesses() as workers:
        assert workers.run("worker_skills:talk", {}) == {"heard": ""}
        assert workers.run("worker_skills:echo", {"x": 1}) == {"x": 1}
    assert capfd.readouterr().out == ""


def test_a_warm_call_costs_less_than_a_millisecond(warm: WorkerProcesses, hold_to_budget: Any) -> None:
    inputs = {"x": np.ones((1, 64), np.float32)}

    def measure() -> float:
        start = time.perf_counter()
        for _ in range(20):
            warm.run("worker_skills:double", inputs)
        return (time.perf_counter() - start) / 20

    hold_to_budget(measure, 1e-3)


# ── which skill ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_function_a_skill_and_what_a_function_returns_can_be_meant(warm: WorkerProcesses) -> None:
    import worker_skills

    references = [
        (worker_skills.double, {"y": 8}),
        ("worker_skills:wrapped", {"y": 5}),
        (SkillReference("worker_skills:double"), {"y": 8}),
        (functools.partial(worker_skills.double, 4), {"y": 8}),
        (SkillReference("functools:partial", (worker_skills.double, 4)), {"y": 8}),
    ]
    for reference, result in references:
        inputs = {} if isinstance(reference, functools.partial) or reference is references[-1][0] else {"x": 4}
        assert warm.run(reference, inputs) == result


def test_references_are_made_of_skills() -> None:
    import worker_skills as w

    setup = Setup(threads=3)
    assert reference_to(Skill("d", call=w.double), setup) == SkillReference("worker_skills:double", None, setup)
    assert reference_to(w.wrapped, setup) == SkillReference("worker_skills:wrapped", None, setup)
    assert reference_to(w.by_setup, setup) == SkillReference("worker_skills:count_loads", (setup,), setup)
    partial = functools.partial(w.double, 1)
    assert reference_to(Skill("p", call=partial), setup) == SkillReference(partial, None, setup)
    for skill in (Skill("l", call=lambda x: x), Skill("m", load=lambda setup: dict)):
        with pytest.raises(ChainError, match=r"cannot find .* by name; define it at the top level of a module"):
            reference_to(skill, setup)


def test_a_model_is_loaded_once_in_a_process_and_told_its_setup(warm: WorkerProcesses) -> None:
    import worker_skills as w

    reference = reference_to(w.by_setup, Setup(threads=3))
    found = [warm.run(reference, {}) for _ in range(2)]
    assert found[0] == found[1]
    assert found[0]["threads"] == 3


def test_a_function_of_the_script_itself_is_found(tmp_path: Path, run_python: Any) -> None:
    script = """
        from minerua.chain.running.workers import WorkerProcesses

        class Odd(Exception):
            pass

        class Number(int):
            pass

        def triple(x):
            if x < 0:
                raise Odd("negative")
            return {"y": 3 * x}

        if __name__ == "__main__":
            with WorkerProcesses() as workers:
                print(workers.run(triple, {"x": Number(2)}))
                try:
                    workers.run(triple, {"x": -1})
                except Odd as error:
                    print(repr(error))
    """
    (tmp_path / "script.py").write_text(dedent(script))
    done = run_python(str(tmp_path / "script.py"))
    assert (done.stdout, done.stderr) == ("{'y': 6}\nOdd('negative')\n", "")


@pytest.mark.parametrize(
    ("reference", "kind", "message"),
    [
        ("worker_skills:nothing", LookupError, "the module worker_skills has no 'nothing'; write 'module:attribute'"),
        ("no_such_module:f", ModuleNotFoundError, "No module named 'no_such_module'"),
        ("worker_skills:number", TypeError, "worker_skills:number is int, not a function and no skill that can be"),
    ],
)
def test_what_cannot_be_found_or_called_is_said(
    reference: str, kind: type[Exception], message: str, warm: WorkerProcesses
) -> None:
    with pytest.raises(kind, match=message):
        warm.run(reference, {})
    with pytest.raises(kind, match=message):
        SkillReference(reference).resolve()


# ── errors ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_error_arrives_as_itself_with_the_traceback_of_the_other_process(warm: WorkerProcesses) -> None:
    import worker_skills

    with pytest.raises(worker_skills.PlainError, match="a plain one") as caught:
        warm.run("worker_skills:fail", {"kind": "plain"})
    assert 'raise PlainError("a plain one")' in str(caught.value.__cause__)
    assert warm.run("worker_skills:echo", {"x": 1}) == {"x": 1}


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("odd", "OddError: odd 7: no hint"),
        ("local", "fail.<locals>.Local: made in a function"),
        ("exit", "SystemExit: 3"),
    ],
)
def test_an_error_that_cannot_be_made_here_becomes_a_runtime_error_with_its_text(
    kind: str, message: str, warm: WorkerProcesses
) -> None:
    with pytest.raises(RuntimeError) as caught:
        warm.run("worker_skills:fail", {"kind": kind})
    assert str(caught.value) == message
    assert "Traceback" in str(caught.value.__cause__)


def test_an_error_without_text_is_an_error_all_the_same(warm: WorkerProcesses) -> None:
    import worker_skills

    with pytest.raises(worker_skills.Unsayable) as caught:
        warm.run("worker_skills:fail", {"kind": "unsayable"})
    assert "Unsayable" in str(caught.value.__cause__)
    failed = isolated._described(worker_skills.Unsayable(), isolated._MemoryLimit())
    assert failed.text == "it has no text, because saying it raised OSError"


def test_inputs_and_outputs_that_have_no_pickle_are_said(warm: WorkerProcesses) -> None:
    with pytest.raises(StepFailed, match=r"'see' cannot be sent to another process: .*its inputs are x: function; let"):
        warm.run("worker_skills:echo", {"x": lambda: 1}, skill="see")
    with pytest.raises(Exception, match=r"pickle|lambda"):
        warm.run("worker_skills:unsendable", {})
    assert warm.run("worker_skills:echo", {"x": 1}) == {"x": 1}
