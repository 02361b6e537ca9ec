"""Skills of functions and torch modules."""

from __future__ import annotations

import asyncio
import inspect
import math
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NewType, TypedDict

import ml_dtypes
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from minerua import Skill, TensorSpec
from minerua.chain.writing.functions import skill, to_numpy, torch_skill
from minerua.errors import ChainError
from minerua.values import Setup

ROWS = TensorSpec("rows", ("batch", 3), "float32")
Rows = Annotated[np.ndarray, ROWS]
Name = NewType("Name", str)


class Both(TypedDict):
    label: int
    rows: Rows


def label_rows(rows: Rows, top: int = 5, *, name: str | None = None) -> Both:
    return {"label": top, "rows": rows}


# ── functions ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_ports_come_from_annotations() -> None:
    made = skill(label_rows)
    assert made.name == "label-rows"
    assert made.inputs == {"rows": ROWS, "top": int, "name": str}
    assert made.outputs == {"label": int, "rows": ROWS}
    assert made.optional == ("top", "name")
    assert made.call is label_rows


def test_annotations_that_are_no_single_class_are_what_their_values_are() -> None:
    @skill
    def many(
        a: list[int],
        b: int | str,
        c: Any,
        d: Literal["x", "y"],
        e: Name,
        f: NDArray[np.float32],
        g: np.ndarray,
        h: Annotated[int, "seconds"],
        i: dict[str, int] | None,
        j: Literal[1, "x"],
    ) -> tuple[int, ...]:
        return ()

    kinds = [list, object, object, str, str, np.ndarray, np.ndarray, int, dict, object]
    assert list(many.inputs.values()) == kinds
    assert many.outputs == {"result": tuple}


def test_a_value_without_a_name_is_called_result_or_as_is_said() -> None:
    def add(x: int) -> int:
        return x + 1

    assert skill(add).call(x=1) == {"result": 2}  # type: ignore[misc]
    renamed = skill(outputs="sum")(add)
    assert (renamed.call(x=1), renamed.outputs) == ({"sum": 2}, {"sum": int})  # type: ignore[misc]

    @skill
    def log(x: int) -> None:
        return None

    assert log.outputs == {"result": type(None)}


def test_ports_that_are_given_replace_annotations() -> None:
    @skill(name="own", inputs={"x": int}, outputs={"y": int}, optional=["x"], version="7", resources={"cpu": 1})
    def untyped(x=1):  # type: ignore[no-untyped-def]
        return {"y": x}

    assert untyped == Skill(
        "own", untyped.call, {"x": int}, {"y": int}, version="7", optional=("x",), resources={"cpu": 1}
    )
    assert untyped.call is not None
    assert untyped.call(x=3) == {"y": 3}


def test_coroutines_and_generators_stay_what_they_are() -> None:
    @skill
    async def later(x: int) -> int:
        return x

    @skill
    def parts(x: int) -> Iterator[int]:
        yield from range(x)

    @skill
    async def stream(x: int) -> AsyncIterator[int]:
        for number in range(x):
            yield number

    async def collect() -> list[Any]:
        return [part async for part in stream.call(x=2)]  # type: ignore[misc]

    assert inspect.iscoroutinefunction(later.call)
    assert asyncio.run(later.call(x=2)) == {"result": 2}
    assert inspect.isgeneratorfunction(parts.call)
    assert list(parts.call(x=2)) == [{"result": 0}, {"result": 1}]
    assert inspect.isasyncgenfunction(stream.call)
    assert asyncio.run(collect()) == [{"result": 0}, {"result": 1}]
    assert later.outputs == parts.outputs == stream.outputs == {"result": int}


def test_everything_that_keeps_a_function_from_being_a_skill_is_told_at_once() -> None:
    def bad(x, /, y, *rest: int):  # type: ignore[no-untyped-def]
        return x

    with pytest.raises(ChainError, match="the function 'bad' cannot become a skill") as caught:
        skill(bad)
    assert caught.value.faults == (
        "parameter 'x' cannot be an input, because inputs are passed by keyword, one by one",
        "parameter 'y' has no annotation; write a type such as y: str",
        "parameter 'rest' cannot be an input, because inputs are passed by keyword, one by one",
        "its return value has no annotation; write -> str, or a TypedDict for several outputs",
    )


def test_annotations_that_name_nothing_are_told() -> None:
    def bad(x: Nowhere) -> int:  # type: ignore[name-defined]  # noqa: F821
        return 1

    with pytest.raises(ChainError, match="its annotations cannot be read: name 'Nowhere' is not defined; give inputs"):
        skill(bad)


def test_the_version_follows_the_code_and_nothing_else() -> None:
    def make(body: str, more: str = "") -> str:
        space: dict[str, Any] = {}
        exec(f"{more}def f(x: int, y: float = 1.0) -> bool:\n    {body}\n", space)
        return skill(space["f"]).version

    first = make("return x in {'a', 'b', 'c'} and [y for y in (1, 2)]")
    assert first == make("return x in {'a', 'b', 'c'} and [y for y in (1, 2)]", "# moved\n\n")
    assert first != make("return x in {'a', 'b', 'd'} and [y for y in (1, 2)]")
    assert first != make("return x in {'a', 'b', 'c'} and [y for y in (1, 3)]")
    assert make("return abs(x)") != make("return hex(x)")
    assert skill(inputs={"x": float}, outputs={"y": float})(math.sqrt).version == "1"


def test_the_version_is_the_same_in_every_process() -> None:
    source = "from minerua.chain import skill\n@skill\ndef f(x: str = 'd') -> bool: return x in {'a','b','c'}\n"
    runs = [
        subprocess.run(
            [sys.executable, "-c", f"exec({source + 'print(f.version)'!r})"],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[3])},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert runs[0] == runs[1]


# ── torch ────────────────────────────────────────────────────────────────────────────────────────────────────────────


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 2)
        self.dropout = torch.nn.Dropout(0.5)
        self.register_buffer("count", torch.zeros(4, dtype=torch.int64))
        self.seen: list[torch.Tensor | None] = []

    def forward(self, rows: torch.Tensor, mask: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        self.seen = [rows, mask]
        return self.dropout(self.layer(rows)), rows.sum()


def loaded(module: torch.nn.Module, *outputs: str, setup: Setup = Setup(), **more: Any) -> Any:  # noqa: B008
    made = torch_skill(
        module, name="m", inputs={"rows": ROWS, "mask": ROWS}, outputs=dict.fromkeys(outputs, ROWS), **more
    )
    assert made.load is not None
    return made.load(setup)


def test_a_module_takes_and_gives_arrays_in_evaluation_and_inference_mode() -> None:
    model = Model().train()
    weight, bias = np.array([[2, -1, 3], [0, 5, -4]], np.float32), np.array([7, -6], np.float32)
    model.layer.load_state_dict({"weight": torch.from_numpy(weight), "bias": torch.from_numpy(bias)})
    rows = np.arange(6, dtype=np.float32).reshape(2, 3)
    result = loaded(model, "scores", "total")(rows=rows)
    np.testing.assert_array_equal(result["scores"], rows @ weight.T + bias)  # whole numbers: nothing is rounded
    assert result["total"] == 15
    assert isinstance(result["total"], np.ndarray)
    assert model.seen[1] is None
    assert not model.training


def test_arrays_share_their_memory_with_the_module_even_if_they_are_read_only() -> None:
    model = Model()
    rows = np.zeros((4, 6), np.float32)[::2, ::2]
    rows.flags.writeable = False
    result = loaded(model, "scores", "total")(rows=rows)
    assert model.seen[0] is not None
    assert model.seen[0].data_ptr() == rows.ctypes.data
    assert np.shares_memory(loaded(torch.nn.Identity(), "same")(rows=rows)["same"], rows) is True
    assert result["scores"].shape == (2, 2)


@pytest.mark.parametrize(
    "rows",
    [
        np.arange(6, dtype=np.float32).reshape(2, 3)[::-1],
        np.arange(6, dtype=">f4").reshape(2, 3),
        np.arange(6).reshape(2, 3).astype(ml_dtypes.bfloat16),
        np.full((), 3.0),
    ],
    ids=["backwards", "foreign", "bfloat16", "scalar"],
)
def test_arrays_of_every_kind_come_through(rows: np.ndarray) -> None:
    same = loaded(torch.nn.Identity(), "same")(rows=rows)["same"]
    np.testing.assert_array_equal(same, rows)
    assert same.dtype == rows.dtype.newbyteorder("=")


def test_a_setup_gives_threads_for_the_call_alone() -> None:
    class Threads(torch.nn.Module):
        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            return torch.tensor(torch.get_num_threads())

    before = torch.get_num_threads()
    rows = np.zeros((1, 3), np.float32)
    assert loaded(Threads(), "n", setup=Setup(threads=before + 1))(rows=rows)["n"] == before + 1
    assert torch.get_num_threads() == before
    assert loaded(Threads(), "n")(rows=rows)["n"] == before


def test_a_module_may_name_its_outputs_and_must_give_all_of_them() -> None:
    class Named(torch.nn.Module):
        def forward(self, rows: torch.Tensor) -> dict[str, Any]:
            return {"a": rows, "b": "text"}

    rows = np.zeros((1, 3), np.float32)
    assert loaded(Named(), "a", "b")(rows=rows)["b"] == "text"
    with pytest.raises(ChainError, match=r"the module returned 2 values \(.*\) for the outputs scores"):
        loaded(Model(), "scores")(rows=rows)


def test_what_a_plan_needs_to_know_is_in_the_skill() -> None:
    made = torch_skill(Model(), name="m", inputs={"rows": ROWS}, outputs={"s": ROWS}, version="3", batchable=True)
    assert (made.loaded_bytes, made.version, made.batchable, made.pure) == (4 * 8 + 8 * 4, "3", True, True)
    assert made.setups[:2] == (Setup(), Setup(threads=1))
    chosen = torch_skill(Model(), name="m", inputs={}, outputs={}, setups=[Setup(threads=3)])
    assert chosen.setups == (Setup(threads=3),)


def test_on_another_device_a_copy_is_used() -> None:
    model = Model()
    made = torch_skill(model, name="m", inputs={"rows": ROWS}, outputs={"s": ROWS})
    assert made.load is not None
    made.load(Setup(device="meta"))  # a device that every machine has
    assert model.layer.weight.device.type == "cpu"


def test_what_is_no_tensor_stays_as_it_is() -> None:
    assert to_numpy("text") == "text"
    assert to_numpy(torch.ones(2, requires_grad=True)).tolist() == [1, 1]
