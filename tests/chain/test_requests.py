from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from minerua.chain.graph import Graph
from minerua.chain.requests import (
    as_json,
    as_text,
    check_place,
    check_timeout,
    check_trace,
    read_inputs,
    requested_outputs,
    with_settings,
    write_trace,
)
from minerua.chain.writing.chain import SkillChain
from minerua.errors import ChainError, ConfigError, StorageError
from minerua.values import TensorSpec


def chain_with(**inputs: Any) -> Graph:
    return Graph("ask", inputs, (), (), {})


@pytest.mark.parametrize(
    ("port", "text", "value"),
    [
        (str, "a=cat", "a=cat"),
        (int, "7", 7),
        (float, "2.5", 2.5),
        (bool, "True", True),
        (bool, "no", False),
        (list, "[1, 2]", [1, 2]),
        (dict, '{"a": 1}', {"a": 1}),
        (object, '{"a": 1}', {"a": 1}),
        (object, "a cat", "a cat"),
        (object, "NaN,", "NaN,"),
    ],
)
def test_texts_become_what_the_port_wants(port: type, text: str, value: Any) -> None:
    found = read_inputs(chain_with(x=port), [f"x={text}"])
    assert found == {"x": value}
    assert type(found["x"]) is type(value)


def test_arrays_and_bytes_come_from_files_or_json(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((2, 3), np.float32))
    (tmp_path / "b.bin").write_bytes(b"xyz")
    ports = {
        "a": TensorSpec("a", ("batch", 3), "float32"),
        "b": bytes,
        "c": TensorSpec("c", (2,), "int64"),
        "d": np.ndarray,
    }
    texts = [f"a={tmp_path / 'a.npy'}", f"b={tmp_path / 'b.bin'}", "c=[4, 5]", "d=[[1.5]]"]
    found = read_inputs(chain_with(**ports, p=Path), [*texts, f"p={tmp_path}"])
    assert (found["a"].shape, found["a"].dtype) == ((2, 3), np.float32)
    assert (found["c"].tolist(), found["c"].dtype) == ([4, 5], np.int64)
    assert (found["b"], found["d"].shape, found["p"]) == (b"xyz", (1, 1), tmp_path)


def test_everything_that_is_wrong_with_inputs_is_told_at_once(tmp_path: Path) -> None:
    np.save(tmp_path / "wide.npy", np.ones((2, 3)))
    (tmp_path / "evil.npy").write_bytes(b"\x80\x04N.")
    graph = chain_with(
        size=int,
        loud=bool,
        image=Path,
        array=TensorSpec("a", ("n",), "float32"),
        evil=TensorSpec("a", ("n",), "float32"),
        text=str,
    )
    texts = ["size=big", "loud=perhaps", "image=/nowhere/cat.png", f"array={tmp_path / 'wide.npy'}"]
    texts += [f"evil={tmp_path / 'evil.npy'}", "sice=3", "=3", "nothing", "size=4"]
    with pytest.raises(ConfigError, match="the inputs of the chain 'ask' are not in order") as caught:
        read_inputs(graph, texts)
    faults = "\n".join(caught.value.faults)
    assert "--input size: 'big' cannot be read as integer: write a whole number, such as 3" in faults
    assert "--input loud: 'perhaps' cannot be read as flag: write true or false" in faults
    assert "--input image: '/nowhere/cat.png' cannot be read as path: there is no such file" in faults
    assert "'array', an input of the chain 'ask', must be float32[n], found float64[2, 3]" in faults
    assert "evil.npy' cannot be read as float32[n]: the file is no .npy file; numpy.save writes one" in faults
    assert "--input sice: no input of the chain is named 'sice'; did you mean 'size'?" in faults
    assert "--input '=3' has no name and value; write --input image=cat.png" in faults
    assert "--input 'nothing' has no name and value" in faults
    assert "--input size is given twice; leave one out" in faults
    assert "'text', an input of the chain 'ask', is missing; text is wanted there" in faults
    assert len(caught.value.faults) == 10


NUMBERS = "an array is a .npy file, or lists of numbers of equal length, such as [[1, 2.5], [3, 4]]"
VECTOR = TensorSpec("x", ("n",), "float32")


@pytest.mark.parametrize(
    ("port", "text", "reason"),
    [
        (int, "1.5", "write a whole number, such as 3"),
        (int, "", "write a whole number, such as 3"),
        (int, "9" * 5000, "write a whole number, such as 3"),
        (float, "heavy", "write a number, such as 0.5"),
        (bool, "", "write true or false"),
        (Path, "", "there is no such file"),
        (Path, "x" * 5000, "File name too long"),
        (bytes, "/nowhere", "No such file or directory"),
        (bytes, "/", "Is a directory"),
        (list, "[1", "it is no JSON: Expecting ',' delimiter"),
        (dict, "", "it is no JSON: Expecting value"),
        (list, "[" * 100_000, "maximum recursion depth exceeded"),
        (VECTOR, "cat.png", NUMBERS),
        (VECTOR, "", NUMBERS),
        (VECTOR, "{}", NUMBERS),
        (VECTOR, "[[1, 2], [3]]", NUMBERS),
        (VECTOR, '["a"]', NUMBERS),
        (np.ndarray, "null", NUMBERS),
        (np.ndarray, "[[1, 2], [3]]", NUMBERS),
        (TensorSpec("x", ("n",), "int8"), "[300]", "300 out of bounds for int8"),
        (VECTOR, "/nowhere.npy", "No such file or directory"),
    ],
)
def test_a_text_that_is_not_what_the_port_wants_is_told_with_what_it_wants(port: Any, text: str, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_inputs(chain_with(x=port), [f"x={text}"])
    (fault,) = caught.value.faults
    assert fault.startswith("--input x: ")
    assert "cannot be read as" in fault
    assert reason in fault
    assert len(fault) < 400


def npy(header: bytes) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is no .npy file; numpy.save writes one"),
        (b"PK\x03\x04 no archive", "the file is no .npy file"),
        (b"\x93NUMPY\x09\x00", "the .npy file is damaged: "),
        (npy(b"{'descr': [[[((("), "the .npy file is damaged: "),
        (npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (9,)}\n"), "the .npy file is damaged: "),
        (npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (%d,)}\n" % 10**14), "the .npy file is damaged: "),
        (
            npy(b"{'descr': '|O', 'fortran_order': False, 'shape': (1,)}\n"),
            "the .npy file holds Python objects; save num",
        ),
    ],
)
def test_a_file_that_holds_no_array_is_told(content: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "x.npy").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_inputs(chain_with(x=VECTOR), [f"x={tmp_path / 'x.npy'}"])
    assert reason in str(caught.value)


def test_nothing_at_all_is_a_value_of_the_wrong_type() -> None:
    with pytest.raises(ConfigError, match="'x', an input of the chain 'ask', must be list, found"):
        read_inputs(chain_with(x=list), ["x=null"])


def test_optional_inputs_may_be_left_out() -> None:
    assert read_inputs(Graph("ask", {"x": int}, ("x",), (), {}), []) == {}


def test_only_outputs_that_exist_are_requested() -> None:
    graph = Graph("ask", {}, (), (), {"label": (), "score": ()})
    assert requested_outputs(graph, None) is None
    assert requested_outputs(graph, ["score"]) == ("score",)
    with pytest.raises(ChainError, match="chain 'ask' cannot give what was requested"):
        requested_outputs(graph, ["lable"])


def test_settings_and_constants_of_steps_are_replaced() -> None:
    chain = SkillChain("c")
    chain.add_stage("net", name="see", settings={"model": "a.onnx", "size": 3}, constants={"k": 1})
    (task,) = with_settings(chain, ["see.model=b.onnx", "see.k=2", "see.flags=[1]"]).tasks
    assert task.settings == {"model": "b.onnx", "size": 3, "flags": [1]}
    assert task.constants == {"k": 2}


def test_everything_that_is_wrong_with_settings_is_told_at_once() -> None:
    chain = SkillChain("c")
    chain.add_stage("net", name="see")
    with pytest.raises(ConfigError, match="the settings of the chain 'c' are not in order") as caught:
        with_settings(chain, ["sea.model=b.onnx", "model=3", "see.model"])
    assert caught.value.faults == (
        "--set sea.model: no step is named 'sea'; did you mean 'see'? Known: see",
        "--set model: write the step and the setting, such as see.model",
        "--set 'see.model' has no name and value; write --set see.model=vision.onnx",
    )


def test_outputs_are_json_that_any_program_reads() -> None:
    value = {"a": np.ones((1, 2), np.float32), "b": np.int64(3), "c": (math.inf, None, True), "d": Path("x"), 1: "e"}
    assert json.loads(json.dumps(as_json(value), allow_nan=False)) == {
        "a": {"dtype": "float32", "shape": [1, 2], "values": [[1.0, 1.0]]},
        "b": 3,
        "c": ["inf", None, True],
        "d": "x",
        "1": "e",
    }


def test_outputs_are_short_for_people() -> None:
    assert as_text(np.arange(9, dtype=np.int64)) == "int64[9]: 0 1 2 3 4 5 …"
    assert as_text(np.array([[0.123456, 2.0]])) == "float64[1, 2]: 0.1235 2"
    assert as_text("cat") == "cat"


def test_a_trace_is_a_file_for_a_viewer_or_a_clear_error(tmp_path: Path) -> None:
    trace: Any = SimpleNamespace(chrome=lambda: {"traceEvents": []})
    write_trace(trace, tmp_path / "trace.json")
    assert json.loads((tmp_path / "trace.json").read_text()) == {"traceEvents": []}
    with pytest.raises(StorageError, match=r"cannot write the trace .*; choose another file"):
        write_trace(trace, tmp_path / "gone" / "trace.json")


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf"), 1e10])
def test_a_time_limit_that_cannot_pass_is_refused(seconds: float) -> None:
    with pytest.raises(ConfigError, match=r"--timeout is .*; expected seconds above 0 and up to 1e\+09; leave it out"):
        check_timeout(seconds)
    check_timeout(None)
    check_timeout(1e9)


def test_a_place_is_tried_before_the_work_and_left_as_it_was(tmp_path: Path) -> None:
    old, empty, other = (tmp_path / name for name in ("old.json", "empty.json", "chain.yaml"))
    old.write_text(json.dumps({"traceEvents": []}))
    empty.touch()
    other.write_text("minerua: 1")
    for path in (old, empty, tmp_path / "new.json"):
        check_trace(path)
    with pytest.raises(ConfigError, match="this file is there and is no trace; choose another, or delete it"):
        check_trace(other)
    for path in (tmp_path, tmp_path / "gone" / "x.json", other / "x.json", tmp_path / ("x" * 300)):
        with pytest.raises(StorageError, match=r"cannot write the trace .*; choose another file"):
            check_trace(path)
    with pytest.raises(StorageError, match=r"cannot write the profile .*: Is a directory; choose"):
        check_place(tmp_path, "profile")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chain.yaml", "empty.json", "old.json"]
    assert (other.read_text(), empty.read_text()) == ("minerua: 1", "")
