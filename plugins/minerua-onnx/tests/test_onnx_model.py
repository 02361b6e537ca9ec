"""The skill of a model: its ports, what is checked before it is loaded, how it is loaded, what it says of itself."""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from minerua_onnx.ports import identifiers, is_batchable
from minerua_onnx.sessions import SessionChoice, open_session, pool_threads, processors
from onnx import TensorProto, helper

from minerua import TensorSpec
from minerua.errors import ChainError, StepFailed
from minerua.values import Setup

ONE = Setup(threads=1)


def value(name, shape=("batch", 4), dtype=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, dtype, shape)


def identity(workshop, name, inputs, outputs, **more):
    nodes = [helper.make_node("Identity", [i.name], [o.name]) for i, o in zip(inputs, outputs, strict=True)]
    return workshop.write(name, nodes, inputs, outputs, **more)


# ── ports ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_ports_have_the_names_dtypes_and_extents_of_the_model(workshop):
    skill = workshop.linear()
    assert skill.inputs == {"x": TensorSpec("x", ("batch", 4), "float32")}
    assert skill.outputs == {name: TensorSpec(name, ("batch", 4), "float32") for name in ("y", "z")}


def test_names_become_identifiers_each_different():
    names = ["input.1", "input:1", "0", "class", "batch", ""]
    assert list(identifiers(names).values()) == ["input_1", "input_1_2", "_0", "_class", "batch", "_"]
    assert identifiers(["x_2", "x", "x:"])["x:"] == "x_"


def test_a_model_with_odd_names_is_called_by_its_ports(workshop, rows):
    identity(workshop, "odd", [value("input.1", ("n+1", None))], [value("1", ("n+1", None))])
    skill = workshop.skill("odd")
    assert skill.inputs == {"input_1": TensorSpec("input_1", ("n_1", "input_1_1"), "float32")}
    np.testing.assert_array_equal(skill.load(ONE)(input_1=rows)["_1"], rows)
    renamed = workshop.skill("odd", rename={"input.1": "image", "1": "same"})
    np.testing.assert_array_equal(renamed.load(ONE)(image=rows)["same"], rows)
    assert renamed.version != skill.version


def test_a_fixed_extent_replaces_its_name_everywhere(workshop):
    workshop.linear()
    skill = workshop.skill("linear", extents={"batch": 1})
    assert skill.inputs["x"].shape == skill.outputs["y"].shape == (1, 4)
    assert not skill.batchable


def test_an_output_of_unknown_rank_is_any_array(workshop):
    identity(workshop, "unranked", [value("x")], [value("y", None)])
    assert workshop.skill("unranked").outputs == {"y": np.ndarray}


@pytest.mark.parametrize(
    ("dtype", "name"),
    [(TensorProto.BOOL, "bool"), (TensorProto.FLOAT16, "float16"), (TensorProto.INT64, "int64"), (8, "object")],
)
def test_every_dtype_that_numpy_has_passes_through(workshop, dtype, name):
    identity(workshop, "same", [value("x", ("n",), dtype)], [value("y", ("n",), dtype)])
    skill = workshop.skill("same")
    given = np.array(["a", "b"], object) if name == "object" else np.array([0, 1]).astype(name)
    found = skill.load(ONE)(x=given)["y"]
    assert skill.inputs["x"].dtype == name
    assert found.dtype == given.dtype
    np.testing.assert_array_equal(found, given)


def test_an_input_with_a_value_in_the_model_is_no_port(workshop):
    w = helper.make_tensor("w", TensorProto.FLOAT, [4], [1, 2, 3, 4])
    workshop.write(
        "old", [helper.make_node("Add", ["x", "w"], ["y"])], [value("x"), value("w", (4,))], [value("y")], [w]
    )
    assert list(workshop.skill("old").inputs) == ["x"]


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        ([("b", 4), ("b", 2)], True),
        ([("b", 4), ("c", 2)], False),
        ([(1, 4), (1, 2)], False),
        ([("b", "b"), ("b",)], False),
        ([("b",), ()], False),
    ],
)
def test_rows_can_be_joined_only_where_every_port_has_them_first(shapes, expected):
    assert is_batchable([TensorSpec("x", shape, "float32") for shape in shapes]) is expected


# ── what it says of itself ───────────────────────────────────────────────────────────────────────────────────────────


def test_the_skill_describes_what_a_plan_needs_to_know(workshop):
    skill = workshop.linear()
    assert (skill.pure, skill.batchable, skill.thread_safe, skill.loaded_bytes) == (True, True, True, 64)
    assert skill.setups[:2] == (Setup(), Setup(threads=1))
    assert skill.setups[-1] == Setup(shared_threads=True)
    assert all(setup.threads in (None, 1, 2, processors()) for setup in skill.setups)
    assert not workshop.skill("linear", batchable=False).batchable
    pinned = workshop.skill("linear", threads=3)
    assert (pinned.setups, pinned.resources) == ((Setup(threads=3),), {"cpu": 3})


def test_the_version_follows_the_content_and_not_the_name(workshop):
    one = workshop.linear("one")
    (workshop.folder / "other.onnx").write_bytes((workshop.folder / "one.onnx").read_bytes())
    assert workshop.skill("other").version == one.version
    assert workshop.linear("one", seed=1).version != one.version
    assert workshop.skill("other", optimization="none").version != one.version


def test_a_skill_can_be_sent_to_another_process(workshop, rows):
    skill = workshop.linear()
    sent = pickle.loads(pickle.dumps(skill))
    np.testing.assert_array_equal(sent.load(ONE)(x=rows)["y"], skill.load(ONE)(x=rows)["y"])


# ── what is checked ──────────────────────────────────────────────────────────────────────────────────────────────────


def faults_of(workshop, name, **settings):
    with pytest.raises(ChainError) as caught:
        workshop.skill(name, **settings)
    return " ".join(str(caught.value).split())


def test_all_settings_that_are_wrong_are_told_at_once(workshop):
    text = faults_of(
        workshop, "gone", fil="x", rename=3, extents={"batch": 0}, threads=True, providers="CPU", optimization="best",
        batchable="yes", device=7,
    )  # fmt: skip
    assert "no setting is named 'fil'; did you mean 'file'" in text
    assert f"file is 'gone.onnx'; {workshop.folder / 'gone.onnx'} does not exist" in text
    assert "rename is 3; expected a mapping whose names are texts" in text
    assert "extents.batch is 0; expected a whole number from 1 to 2147483647" in text
    assert "threads is True; expected a whole number from 1 to 1024" in text
    assert "providers is 'CPU'; expected a list of texts" in text
    assert "optimization is 'best'; expected one of none, basic, extended, all" in text
    assert "batchable is 'yes'; expected true or false" in text
    assert "device is 7; expected a text" in text
    assert "the settings of the skill 'onnx-model' cannot be used" in text


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("", "file is ''; expected a file, absolute or relative to "),
        ("a\0b", "file is 'a\\x00b'; no path has a zero byte in it"),
        ("x" * 5000, "...; nothing can be there: "),
        (".", " is a folder; expected a file"),
        (None, "file is missing; expected a file"),
        (3, "file is 3; expected a file"),
    ],
)
def test_a_file_that_can_be_none_is_one_clear_fault(workshop, file, text):
    with pytest.raises(ChainError, match=re.escape(text)) as caught:
        workshop.skill("unused", file=file)
    assert len(caught.value.faults) == 1


def test_names_that_the_model_does_not_have_cannot_be_set(workshop):
    workshop.linear()
    text = faults_of(workshop, "linear", rename={"q": "r", "x": "not one", "y": "z"}, extents={"bach": 2})
    assert "no input or output of the model is named 'q'. Known: x, y, z" in text
    assert "rename: 'not one' is not a Python identifier" in text
    assert "rename: two inputs or outputs would be called 'z'" in text
    assert "no extent of the model is named 'bach'; did you mean 'batch'" in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"broken.onnx is empty; export it again"),
        (b"not a model at all, but a text", r"is not an ONNX model, or was cut off"),
        (b"\x08\x0a", r"it has no graph with an output"),
    ],
)
def test_a_file_that_is_no_model_is_refused(workshop, content, message):
    (workshop.folder / "broken.onnx").write_bytes(content)
    with pytest.raises(ChainError, match=message):
        workshop.skill("broken")


def test_a_model_that_was_cut_off_anywhere_is_refused(workshop):
    workshop.linear()
    content = (workshop.folder / "linear.onnx").read_bytes()
    for length in range(0, len(content), 7):
        (workshop.folder / "cut.onnx").write_bytes(content[:length])
        with pytest.raises(ChainError, match=r"cut\.onnx"):
            workshop.skill("cut")


def test_a_model_with_flipped_bytes_is_refused_or_fails_with_its_name(workshop, rows):
    workshop.linear()
    content = bytearray((workshop.folder / "linear.onnx").read_bytes())
    for place in range(0, len(content), 5):
        broken = bytearray(content)
        broken[place] ^= 0xFF
        (workshop.folder / "flipped.onnx").write_bytes(broken)
        try:
            skill = workshop.skill("flipped")
            skill.load(ONE)(**dict.fromkeys(skill.inputs, rows))
        except (ChainError, StepFailed) as error:
            assert "flipped.onnx" in str(error)  # noqa: PT017 - some flips only change a weight


def test_names_that_are_not_utf_8_are_told(workshop):
    workshop.linear()
    content = (workshop.folder / "linear.onnx").read_bytes().replace(b"batch", b"b\xfftch")
    (workshop.folder / "linear.onnx").write_bytes(content)
    assert "or one of its extents has a name that is not UTF-8; the file is damaged" in faults_of(workshop, "linear")


def test_a_file_over_two_gigabytes_is_refused_unread(workshop):
    with open(workshop.folder / "huge.onnx", "wb") as file:
        file.truncate(2**31)
    with pytest.raises(ChainError, match="more than the 2147483647 of one ONNX file"):
        workshop.skill("huge")


def test_ports_that_cannot_pass_and_versions_that_are_unknown_are_told_together(workshop):
    sequence = helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, None)
    half = value("h", ("n",), TensorProto.BFLOAT16)
    typeless = onnx.ValueInfoProto(name="n")
    ports = [sequence, half, typeless], [value("t"), value("u"), value("v")]
    identity(workshop, "strange", *ports, opset=9999, ir=99)
    text = faults_of(workshop, "strange")
    assert "input 'n' is a value of no type; only tensors can pass between skills" in text
    assert "input 's' is a sequence; only tensors can pass between skills" in text
    assert "input 'h' is a tensor of bfloat16, which numpy does not have; cast it inside the model" in text
    assert "its IR version is 99; onnx" in text
    assert "its opset is 9999; onnx" in text
    assert "knows those up to" in text
    assert "export it with one of those" in text


def test_what_the_checker_of_onnx_finds_is_told(workshop):
    workshop.write("loose", [helper.make_node("Relu", ["nobody"], ["y"])], [value("x")], [value("y")])
    assert "onnx's checker says: Nodes in a graph must be topologically sorted" in faults_of(workshop, "loose")


def external(workshop, **entries):
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, text in entries.items():
        tensor.external_data.add(key=key, value=text)
    workshop.write("apart", [helper.make_node("Add", ["x", "w"], ["y"])], [value("x")], [value("y")], [tensor])


def test_weights_in_a_file_beside_the_model_are_part_of_it(workshop, rows):
    (workshop.folder / "w.bin").write_bytes(np.arange(4, dtype=np.float32).tobytes())
    external(workshop, location="w.bin")
    skill = workshop.skill("apart")
    np.testing.assert_array_equal(skill.load(ONE)(x=rows)["y"], rows + np.arange(4, dtype=np.float32))
    (workshop.folder / "w.bin").write_bytes(np.ones(4, np.float32).tobytes())
    os.utime(workshop.folder / "w.bin", ns=(1, 1))
    assert workshop.skill("apart").version != skill.version
    with pytest.raises(ChainError, match="was changed since the chain was checked; check the chain again"):
        skill.load(ONE)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"location": "gone.bin"}, "which does not exist in"),
        ({"location": "../secret.bin"}, "outside the model's folder; only files below"),
        ({"location": "/etc/hostname"}, "outside the model's folder; only files below"),
        ({"location": "link.bin"}, "outside the model's folder; only files below"),
        ({}, "outside the model's folder; only files below"),
        ({"location": "short.bin"}, "up to byte 16; the file has 8, so it was cut off"),
        ({"location": "short.bin", "offset": "-8", "length": "8"}, "up to byte 0; the file has 8"),
        ({"location": "short.bin", "offset": "x"}, "which cannot be read: invalid literal"),
        ({"location": "a\0b"}, "which cannot be read: embedded null"),
    ],
)
def test_weights_that_lie_elsewhere_or_are_cut_off_are_refused(workshop, entries, message):
    (workshop.folder / "short.bin").write_bytes(b"12345678")
    (workshop.folder / "link.bin").symlink_to(__file__)
    external(workshop, **entries)
    assert message in faults_of(workshop, "apart")
    assert "the values of 'w' lie in" in faults_of(workshop, "apart")


# ── loading and running ──────────────────────────────────────────────────────────────────────────────────────────────


def reference(rows, seed=0):
    return np.maximum(rows @ np.random.default_rng(seed).standard_normal((4, 4), np.float32), 0)


@pytest.mark.parametrize("setup", [Setup(), Setup(threads=1), Setup(threads=2)])
@pytest.mark.parametrize("optimization", ["none", "all"])
def test_every_setup_gives_the_same_results(workshop, rows, setup, optimization):
    workshop.linear()
    found = workshop.skill("linear", optimization=optimization).load(setup)(x=rows)
    np.testing.assert_allclose(found["y"], reference(rows), atol=1e-5)
    np.testing.assert_allclose(found["z"], -reference(rows), atol=1e-5)


def test_arrays_that_are_read_only_or_not_contiguous_are_taken_and_left_alone(workshop, rows):
    call = workshop.linear().load(ONE)
    frozen = rows.copy()
    frozen.setflags(write=False)
    apart = np.zeros((5, 8), np.float32)[:, ::2]
    apart[:] = rows
    for given in (frozen, apart, np.asfortranarray(rows)):
        np.testing.assert_allclose(call(x=given)["y"], reference(rows), atol=1e-5)
    np.testing.assert_array_equal(frozen, rows)


@pytest.mark.parametrize("given", [{}, {"x": np.zeros((2, 3), np.float32)}, {"x": np.zeros((2, 4))}, {"x": None}])
def test_what_does_not_fit_fails_with_the_model_and_what_was_given(workshop, given):
    call = workshop.linear().load(ONE)
    with pytest.raises(StepFailed, match=r"linear\.onnx failed on (nothing|x \w+)"):
        call(**given)
    assert call(x=np.zeros((1, 4), np.float32))["y"].shape == (1, 4)


def test_what_only_onnxruntime_can_tell_is_one_line_with_the_file(workshop):
    nodes = [helper.make_node("Nothing", ["x"], ["y"], domain="strange.domain")]
    proto = workshop.write("strange", nodes, [value("x")], [value("y")])
    proto.opset_import.append(helper.make_opsetid("strange.domain", 1))
    onnx.save(proto, workshop.folder / "strange.onnx")
    with pytest.raises(ChainError, match=r"strange\.onnx: onnxruntime .* cannot load it: .*strange\.domain") as caught:
        workshop.skill("strange").load(ONE)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("setup", "choice", "message"),
    [
        (Setup(device="tpu"), SessionChoice(), "the device 'tpu' is not known; write cpu, cuda or cuda:0"),
        (Setup(device="cuda:x"), SessionChoice(), "the device 'cuda:x' is not known"),
        (Setup(), SessionChoice(("WarpProvider",)), "this onnxruntime has no WarpProvider; it has .*CPUExecution"),
        (Setup(threads=999, shared_threads=True), SessionChoice(), "a plan asks for 999 shared threads; the pool of"),
    ],
)
def test_what_this_machine_cannot_do_is_refused(workshop, setup, choice, message):
    workshop.linear()
    with pytest.raises(ChainError, match=message):
        open_session(str(workshop.folder / "linear.onnx"), setup, choice, "linear.onnx")


def test_a_device_that_does_not_start_is_told(workshop, monkeypatch):
    import onnxruntime

    class Fallen:
        def __init__(self, *_, **__):
            pass

        def get_providers(self):
            return ["CPUExecutionProvider"]

    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Fallen)
    with pytest.raises(ChainError, match="CUDAExecutionProvider could not be started; onnxruntime's own messages say"):
        open_session("model.onnx", Setup(device="cuda:0"), SessionChoice(), "the model")


def test_cuda_without_cuda_says_what_to_install(workshop):
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    workshop.linear()
    with pytest.raises(ChainError, match="onnxruntime-gpu in its place, or choose another device"):
        workshop.skill("linear", device="cuda:0").load(Setup(device="cuda:0"))


@pytest.mark.parametrize("text", ["0", "x", "-1", "99999999999999999999", "²"])
def test_a_size_of_the_shared_pool_that_is_none_is_refused(monkeypatch, text):
    monkeypatch.setenv("MINERUA_ONNX_THREADS", text)
    with pytest.raises(ChainError, match=r"MINERUA_ONNX_THREADS is .*; expected a count from 1 to 1024"):
        pool_threads()


# ── one pool or many, once per process ───────────────────────────────────────────────────────────────────────────────

CHOICES = """
import json, os, sys, warnings
import numpy as np
from minerua.errors import ChainError
from minerua.values import Setup, SkillContext
from minerua_onnx import minerua_skills
from pathlib import Path
skill = minerua_skills()[0].configure({"file": "linear.onnx"}, SkillContext(Path(sys.argv[1])))
x = np.ones((2, 4), np.float32)
found = []
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    for shared in json.loads(sys.argv[2]):
        found.append(skill.load(Setup(shared_threads=shared))(x=x)["y"].tolist())
if sys.argv[3] == "fork":
    child = os.fork()
    if not child:
        try:
            skill.load(Setup(shared_threads=True))
        except ChainError as error:
            sys.stdout.write(str(error))
            sys.stdout.flush()
        os._exit(0)
    os.waitpid(child, 0)
else:
    print(json.dumps([all(one == found[0] for one in found), [str(one.message) for one in said]]))
"""


def choices(workshop, order, then=""):
    workshop.linear()
    command = [sys.executable, "-c", CHOICES, str(workshop.folder), json.dumps(order), then]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("first", "here", "there"),
    [(True, "a pool for each", "one pool for all"), (False, "one pool for all", "a pool for each")],
)
def test_the_first_session_decides_and_a_later_wish_runs_with_one_warning(workshop, first, here, there):
    equal, said = json.loads(choices(workshop, [first, not first, not first, first]))
    assert equal
    assert len(said) == 1
    assert f"a plan asks for ONNX sessions with {here}, but this process began with {there}" in said[0]
    assert "it runs as it began, with the same results. Run such chains in processes of their own" in said[0]


def test_plans_of_one_mind_are_not_warned(workshop):
    assert json.loads(choices(workshop, [True, True])) == [True, []]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system copies no processes")
def test_the_copy_of_a_process_that_shares_threads_is_told_so_instead_of_waiting_for_ever(workshop):
    said = choices(workshop, [True], "fork")
    assert said.startswith("this process is a copy of one whose ONNX models share threads, which a copy does not have")
    assert "multiprocessing's 'spawn'" in said


def test_the_hook_loads_nothing_heavy():
    heavy = "{'onnx', 'onnxruntime', 'numpy', 'PIL', 'torch'} & set(sys.modules)"
    code = f"import sys, minerua_onnx; minerua_onnx.minerua_skills(); print({heavy})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "set()\n"


def test_the_skills_are_valid_specs():
    import minerua_onnx

    from minerua.registry import Registry

    registry = Registry.of(minerua_onnx)
    assert not registry.problems
    assert sorted(registry.skills) == ["image-file", "label", "onnx-model", "word-tokens"]


def test_every_file_of_the_package_is_in_the_readme():
    home = Path(__file__).resolve().parent.parent
    readme = (home / "README.md").read_text("utf-8")
    assert [
        path.name for path in (home / "minerua_onnx").glob("*.py") if f"`minerua_onnx/{path.name}`" not in readme
    ] == []
