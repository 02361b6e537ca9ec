"""What strangers get wrong at the doors: a chain with a model on the command line, and the making of the world."""

from __future__ import annotations

import errno
import sys

import pytest
from minerua_onnx import __main__ as making

from minerua import cli

CHAIN = """\
minerua: 1
name: one
inputs: {x: "float32[batch, 4]"}
steps:
- step: see
  skill: onnx-model
  settings: {file: linear.onnx}
"""


@pytest.fixture
def refused(workshop, monkeypatch, capsys):
    """Runs `minerua chain` in the workshop's folder; returns its one message, once nothing else was said or written."""
    workshop.linear()
    monkeypatch.chdir(workshop.folder)
    monkeypatch.setattr(cli, "_start_swiftly", lambda: None)  # it is for a process of its own
    monkeypatch.setattr(cli.gc, "freeze", lambda: None)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["minerua", "chain", *arguments])
        before = contents(workshop.folder)
        with pytest.raises(SystemExit) as left:
            cli.main()
        said = capsys.readouterr()
        assert (left.value.code, said.out) == (2, "")
        assert contents(workshop.folder) == before
        return said.err

    return run


def contents(folder):
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def in_all_commands(refused, *options):
    """Returns what `run`, `explain` and `check` say, which must be one and the same."""
    given = {"run": ["--input", "x=[[1, 2, 3, 4]]"], "explain": ["--input", "x=[[1, 2, 3, 4]]"], "check": []}
    (said,) = {refused(command, "one.yaml", *inputs, *options) for command, inputs in given.items()}
    return said


MODELS = {
    "empty": (lambda good: b"", "linear.onnx is empty; export it again, with large weights in a file beside it"),
    "a text": (lambda good: b"hello", "linear.onnx is not an ONNX model, or was cut off"),
    "a chain": (lambda good: CHAIN.encode(), "linear.onnx is not an ONNX model, or was cut off"),
    "half": (lambda good: good[: len(good) // 2], "linear.onnx is not an ONNX model, or was cut off"),
    "all but one byte": (lambda good: good[:-1], "linear.onnx is not an ONNX model, or was cut off"),
    "noise": (lambda good: bytes(255 - byte for byte in good), "linear.onnx is not an ONNX model, or was cut off"),
    "no graph": (lambda good: good[:2], "it has no graph with an output: it is not an ONNX model"),
}


@pytest.mark.parametrize("case", MODELS)
def test_a_damaged_model_is_one_message_that_names_step_and_file(refused, workshop, case):
    damage, message = MODELS[case]
    path = workshop.folder / "linear.onnx"
    path.write_bytes(damage(path.read_bytes()))
    (workshop.folder / "one.yaml").write_text(CHAIN)
    said = in_all_commands(refused)
    assert said.startswith("minerua: the chain 'one' cannot be run as it is written\n  - step 'see': ")
    assert message in said


def test_every_flipped_byte_is_a_message_or_a_model(refused, workshop, monkeypatch, capsys):
    path = workshop.folder / "linear.onnx"
    good = path.read_bytes()
    (workshop.folder / "one.yaml").write_text(CHAIN)
    monkeypatch.setattr(sys, "argv", ["minerua", "chain", "check", "one.yaml"])
    codes = set()
    for place in range(0, len(good), 5):
        path.write_bytes(good[:place] + bytes([good[place] ^ 0xFF]) + good[place + 1 :])
        code = 0
        try:
            cli.main()
        except SystemExit as left:
            code = left.code
        said = capsys.readouterr()
        assert (said.err == "") is (code == 0)
        codes.add(code)
    assert codes <= {0, 2}
    assert 2 in codes


SETTINGS = {
    "{}": "file is missing",
    "{file: gone.onnx}": "gone.onnx does not exist",
    "{file: .}": "is a folder",
    "{file: 3}": "file is 3; expected a file",
    "{file: linear.onnx, fil: x}": "no setting is named 'fil'; did you mean 'file'",
    "{file: linear.onnx, device: tpu}": "the device 'tpu' is not known; write cpu, cuda or cuda:0",
    "{file: linear.onnx, device: 'cuda:x'}": "the device 'cuda:x' is not known",
    "{file: linear.onnx, providers: [WarpProvider]}": "this onnxruntime has no WarpProvider; it has ",
    "{file: linear.onnx, threads: 0}": "threads is 0; expected a whole number from 1 to 1024",
    "{file: linear.onnx, optimization: most}": "optimization is 'most'; expected one of none, basic",
    "{file: linear.onnx, batchable: 3}": "batchable is 3; expected true or false",
    "{file: linear.onnx, rename: {q: y}}": "no input or output of the model is named 'q'",
    "{file: linear.onnx, extents: {bach: 3}}": "no extent of the model is named 'bach'; did you mean 'batch'",
    "linear.onnx": "line 7, steps.0.settings: must be a mapping, found 'linear.onnx'",
}


@pytest.mark.parametrize("settings", SETTINGS)
def test_settings_that_cannot_be_used_are_one_message_in_every_command(refused, workshop, settings):
    (workshop.folder / "one.yaml").write_text(CHAIN.replace("{file: linear.onnx}", settings))
    assert SETTINGS[settings] in in_all_commands(refused)


def test_a_setting_of_the_command_line_is_checked_like_one_of_the_file(refused, workshop):
    (workshop.folder / "one.yaml").write_text(CHAIN)
    assert "gone.onnx does not exist" in in_all_commands(refused, "--set", "see.file=gone.onnx")


# ── the world ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def not_made(tmp_path, monkeypatch, capsys):
    """Starts the making of a world; returns its one message, once nothing else was said or written."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "chain.yaml").write_text("mine")

    def make(*arguments):
        before = contents(tmp_path)
        try:
            code = making.main(list(arguments))
        except SystemExit as left:  # argparse
            code = left.code
        said = capsys.readouterr()
        assert (code, said.out) == (2, "")
        assert contents(tmp_path) == before
        return said.err

    return make


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "the following arguments are required: folder"),
        (("w", "more"), "unrecognized arguments: more"),
        (("w", "--colour"), "unrecognized arguments: --colour"),
        (("w", "--seed"), "argument --seed: expected one argument"),
        *(
            (("w", "--seed", seed), "is no seed; expected a whole number from 0 to 2147483647")
            for seed in ("-1", "one", "1.5", "", "²", "2147483648", "9" * 5000)
        ),
        (("file",), "minerua_onnx: cannot make a world in file: Not a directory; choose another one"),
        (("file/below",), "minerua_onnx: cannot make a world in file/below: Not a directory; choose"),
        (("full",), "minerua_onnx: the folder full is not empty; choose a new or an empty one for the world"),
        (("full/chain.yaml",), "cannot make a world in full/chain.yaml: Not a directory"),
        ((".",), "minerua_onnx: the folder . is not empty"),
        (("",), "minerua_onnx: the folder . is not empty"),
        (("x" * 300,), "File name too long; choose another one"),
        (("/dev/null",), "cannot make a world in /dev/null: Not a directory"),
        (("/dev/null/w",), "cannot make a world in /dev/null/w: Not a directory"),
    ],
)
def test_a_world_that_cannot_be_made_is_one_message_before_anything_is_learned(not_made, arguments, message):
    pytest.importorskip("onnxscript", reason="learning the world needs the extra `world`")
    assert message in not_made(*arguments)


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_learned(not_made, tmp_path, monkeypatch):
    (tmp_path / "locked").mkdir()

    def refuse(**_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(making.tempfile, "TemporaryFile", refuse)
    said = not_made("locked")
    assert said == "minerua_onnx: cannot make a world in locked: Permission denied; choose another one\n"


def test_the_help_says_what_is_made_and_where(capsys):
    with pytest.raises(SystemExit) as left:
        making.main(["--help"])
    said = capsys.readouterr().out
    assert left.value.code == 0
    assert "Makes a folder with a chain that runs." in said
    assert "where; new or empty" in said
    assert "of everything random; default 0" in said
