"""`minerua chain` as its users meet it: a process of its own, its exit code, its two outputs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minerua import cli

PLUGIN = """
    from minerua import Skill, TensorSpec, hookimpl

    def see(image):
        return {"embedding": image.mean(axis=1)}

    def read(text):
        if text == "boom":
            raise ValueError("no word for that")
        if text == "sleep":
            import time
            time.sleep(60)
        return {"length": len(text)}

    def fuse(embedding, length):
        return {"score": embedding * length, "note": f"{length} letters"}

    @hookimpl
    def minerua_skills():
        image = TensorSpec("image", ("batch", 4), "float32")
        vector = TensorSpec("embedding", ("batch",), "float32")
        return [
            Skill("see", see, {"image": image}, {"embedding": vector}, pure=True),
            Skill("read", read, {"text": str}, {"length": int}, pure=True),
            Skill("fuse", fuse, {"embedding": vector, "length": int}, {"score": vector, "note": str}, pure=True),
        ]
"""

CHAIN = """\
minerua: 1
name: look
inputs:
  image: float32[batch, 4]
  text: text
steps:
- parallel:
  - step: see
    skill: see
  - step: read
    skill: read
- step: fuse
  skill: fuse
"""


@pytest.fixture
def minerua(run_python: Any, site_packages: Any) -> Any:
    """Runs `minerua` with arguments and the skills of the plugin."""
    site_packages.install("acme-skills", acme_skills=PLUGIN)

    def run(*arguments: str) -> Any:
        return run_python("-m", "minerua", *arguments, path=site_packages.folder)

    return run


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    """A chain's file, and an image beside it."""
    np.save(tmp_path / "image.npy", np.arange(8, dtype=np.float32).reshape(2, 4))
    path = tmp_path / "look.yaml"
    path.write_text(CHAIN)
    return path


def given(chain: Path, text: str = "a cat") -> list[str]:
    return ["--input", f"image={chain.with_name('image.npy')}", "--input", f"text={text}"]


def test_a_chain_is_run_on_a_file_and_a_text(minerua: Any, chain: Path) -> None:
    done = minerua("chain", "run", str(chain), *given(chain))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "score: float32[2]: 7.5 27.5\nnote: 5 letters\n"


def test_the_outputs_are_json_for_programs(minerua: Any, chain: Path) -> None:
    done = minerua("chain", "run", str(chain), *given(chain), "--output", "score", "--json")
    assert json.loads(done.stdout) == {
        "outputs": {"score": {"dtype": "float32", "shape": [2], "values": [7.5, 27.5]}},
        "absent": [],
    }


def test_a_trace_is_written_and_what_was_measured_is_kept(minerua: Any, chain: Path) -> None:
    trace = chain.with_name("trace.json")
    done = minerua("chain", "run", str(chain), *given(chain), "--tune", "--trace", str(trace))
    assert (done.returncode, done.stderr) == (0, "")
    assert any(event.get("name") == "see" for event in json.loads(trace.read_text())["traceEvents"])
    assert chain.with_name("look.profile.json").is_file()
    explained = minerua("chain", "explain", str(chain))
    assert "a run takes " in explained.stdout
    assert "not measured" not in explained.stdout


def test_everything_that_is_wrong_with_the_inputs_is_one_message(minerua: Any, chain: Path) -> None:
    done = minerua("chain", "run", str(chain), "--input", "image=nowhere.npy", "--input", "txt=a")
    assert (done.returncode, done.stdout) == (2, "")
    first, *faults = done.stderr.splitlines()
    assert first == "minerua: the inputs of the chain 'look' are not in order"
    assert len(faults) == 3
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--output", "scor"], "did you mean 'score'"),
        (["--set", "sea.k=1"], "did you mean 'see'"),
        (["--set", "see.k=1"], "skill 'see' takes no settings"),
        (["--trace", "/nowhere/at/all.json"], "cannot write the trace /nowhere/at/all.json"),
    ],
)
def test_other_mistakes_are_one_message_too(minerua: Any, chain: Path, options: list[str], message: str) -> None:
    done = minerua("chain", "run", str(chain), *given(chain), *options)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_step_that_fails_is_another_exit_code(minerua: Any, chain: Path) -> None:
    done = minerua("chain", "run", str(chain), *given(chain, "boom"))
    assert (done.returncode, done.stdout) == (1, "")
    assert "step 'read'" in done.stderr
    assert "no word for that" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_that_takes_too_long_is_stopped(minerua: Any, chain: Path) -> None:
    done = minerua("chain", "run", str(chain), *given(chain, "sleep"), "--timeout", "0.5")
    assert done.returncode == 1
    assert "took longer" in done.stderr


def test_a_chain_is_explained_as_text_drawing_and_json(minerua: Any, chain: Path) -> None:
    text = minerua("chain", "explain", str(chain))
    assert (text.returncode, text.stderr) == (0, "")
    assert text.stdout.startswith("chain look: 3 steps as written\n")
    assert minerua("chain", "explain", str(chain), "--mermaid").stdout.startswith("flowchart LR\n")
    document = json.loads(minerua("chain", "explain", str(chain), *given(chain), "--json").stdout)
    assert [step["name"] for step in document["before"]["steps"]] == ["see", "read", "fuse"]


def test_a_profile_that_is_not_used_is_told(minerua: Any, chain: Path) -> None:
    chain.with_name("look.profile.json").write_text("{")
    done = minerua("chain", "explain", str(chain))
    assert done.returncode == 0
    assert done.stderr.startswith("note: the profile ")


def test_a_chain_is_checked_without_being_run(minerua: Any, chain: Path) -> None:
    done = minerua("chain", "check", str(chain))
    assert (done.returncode, done.stdout) == (0, "no fault: chain 'look' with 3 steps\n")
    chain.write_text(CHAIN.replace("skill: read", "skill: raed").replace("skill: see", "skill: sea"))
    done = minerua("chain", "check", str(chain))
    assert done.returncode == 2
    assert "did you mean 'read'" in done.stderr
    assert "did you mean 'see'" in done.stderr
    missing = minerua("chain", "check", str(chain.with_name("gone.yaml")))
    assert (missing.returncode, "Traceback" in missing.stderr) == (2, False)


def test_running_a_chain_imports_no_torch(run_python: Any, site_packages: Any, chain: Path) -> None:
    site_packages.install("acme-skills", acme_skills=PLUGIN)
    script = (
        "import sys; from minerua.cli import app\n"
        "try: app(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "print([name for name in ('torch', 'onnxruntime') if name in sys.modules])"
    )
    done = run_python("-c", script, "chain", "run", str(chain), *given(chain), path=site_packages.folder)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


# ── what strangers get wrong ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def refused(
    site_packages: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], chain: Path
) -> Callable[..., str]:
    """Runs `minerua chain` in the chain's folder; returns its one message, once nothing else was said or written."""
    site_packages.install("acme-skills", acme_skills=PLUGIN)
    monkeypatch.chdir(chain.parent)
    monkeypatch.setattr(cli, "_start_swiftly", lambda: None)  # it is for a process of its own
    monkeypatch.setattr(cli.gc, "freeze", lambda: None)

    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["minerua", "chain", *arguments])
        before = contents(chain.parent)
        with pytest.raises(SystemExit) as left:
            cli.main()
        said = capsys.readouterr()
        assert (left.value.code, said.out) == (2, "")
        assert contents(chain.parent) == before
        return said.err

    return run


def contents(folder: Path) -> dict[Path, bytes | None]:
    found = (path for path in folder.rglob("*") if "site-packages" not in path.parts)
    return {path: path.read_bytes() if path.is_file() else None for path in found}


COMMANDS = ("run", "explain", "check")
STEP = "- step: fuse\n  skill: fuse"
FILES = {
    "empty": ("", "look.yaml must hold a mapping with the keys of a chain, found nothing"),
    "a text": ("hello", "look.yaml must hold a mapping with the keys of a chain, found 'hello'"),
    "tabs": ("steps:\n\t- skill: see", "'\\t' that cannot start any token in \"look.yaml\", line 2, column 1"),
    "binary": (bytes(range(256)), "look.yaml is no UTF-8 text: byte 128 is 0x80"),
    "UTF-16": (CHAIN.encode("utf-16"), "look.yaml is no UTF-8 text: byte 0 is 0xff"),
    "open bracket": ("minerua: [1", "look.yaml is no valid YAML: while parsing a flow sequence"),
    "alias": ("a: &x 1\nb: *x", 'aliases are refused: write the value out in "look.yaml", line 2'),
    "tag": ("a: !!python/object:os.system 1", 'is refused: values are plain in "look.yaml", line 1'),
    "two documents": (CHAIN + "---\n" + CHAIN, "expected a single document"),
    "other format": (CHAIN.replace("minerua: 1", "minerua: 2"), "line 1, minerua: Input should be 1, found 2"),
    "unknown key": (CHAIN.replace("name:", "nam:"), "line 2, nam: unknown key; did you mean 'name'?"),
    "key twice": (CHAIN + "name: more\n", "line 14: the key 'name' stands here twice"),
    "no steps": ("minerua: 1\nname: x\nsteps:", "line 3, steps: must be a list, found None"),
    "a number": (CHAIN.replace("name: look", "name: 3"), "line 2, name: must be a text; put it into quotes, found 3"),
    "unknown type": (CHAIN.replace("text: text", "text: txt"), "line 5, inputs.text.type: no port type is named 'txt'"),
    "unknown dtype": (CHAIN.replace("float32", "floot32"), "'floot32' in 'floot32[batch, 4]' is no dtype of numpy"),
    "unknown skill": (CHAIN.replace("skill: fuse", "skill: fus"), "step 'fuse': no skill is named 'fus'; did you mean"),
    "name twice": (CHAIN.replace("step: read", "step: see"), "step 'see': two steps have this name; rename one"),
    "shape": (CHAIN.replace(", 4]", ", 5]"), "image is float32[batch, 5], and see.image wants float32[batch, 4]"),
    "dtype": (CHAIN.replace("float32", "int64"), "image is int64[batch, 4], and see.image wants float32[batch, 4]"),
    "missing input": (CHAIN.replace("  text: text\n", ""), "step 'read', input 'text' is not connected: no earlier"),
    "circle": (
        CHAIN.replace("skill: see", "skill: fuse\n    inputs: {embedding: see.score, length: read.length}"),
        "the steps need each other in a circle: see -> see",
    ),
    "unknown output": (CHAIN + "outputs: {a: fuse.scor}", "no output of step 'fuse' is named 'scor'; did you mean"),
    "connection": (CHAIN + "connections: [fuse]", "line 14, connections.0: must be an output and an input, such as"),
    "settings": (CHAIN.replace(STEP, STEP + "\n  settings: {a: 1}"), "skill 'fuse' takes no settings, found a"),
    "time limit": (CHAIN.replace(STEP, STEP + "\n  timeout_seconds: 1.0e+99"), "timeout_seconds is 1e+99; expected"),
    "retry": (CHAIN.replace(STEP, STEP + "\n  retry: 0"), "step 'fuse': retry.attempts is 0; expected a count from 1"),
    "policy": (CHAIN.replace(STEP, STEP + "\n  missing: {length: zero}"), "no policy is named 'zero'; did you mean"),
    "constant": (CHAIN.replace(STEP, STEP + "\n  constants: {length: x}"), "'length', a constant of step 'fuse', must"),
}


@pytest.mark.parametrize("case", FILES)
def test_a_file_that_is_no_chain_is_one_message_with_its_place(case: str, refused: Any, chain: Path) -> None:
    text, message = FILES[case]
    chain.write_bytes(text if isinstance(text, bytes) else text.encode())
    said = {refused(command, "look.yaml") for command in COMMANDS}
    assert len(said) == 1
    (one,) = said
    assert one.startswith("minerua: ")
    assert message in one


@pytest.mark.parametrize("command", COMMANDS)
def test_a_path_that_is_no_file_is_named(command: str, refused: Any, chain: Path) -> None:
    chain.with_name("folder").mkdir()
    assert refused(command, "gone.yaml") == "minerua: cannot read gone.yaml: No such file or directory\n"
    assert refused(command, "folder") == "minerua: cannot read folder: Is a directory\n"
    assert refused(command, "look.yaml/x") == "minerua: cannot read look.yaml/x: Not a directory\n"
    assert "File name too long" in refused(command, "x" * 300)
    assert "No such option: --colour" in refused(command, "look.yaml", "--colour")
    assert "unexpected extra argument" in refused(command, "look.yaml", "more")
    assert "Missing argument 'CHAIN.yaml'" in refused(command)


INPUTS = {
    "image": ("image=gone.npy", "'gone.npy' cannot be read as float32[batch, 4]: No such file or directory"),
    "a picture": ("image=look.yaml", "an array is a .npy file, or lists of numbers of equal length, such as [[1, 2.5]"),
    "a folder": ("image=.", "an array is a .npy file"),
    "no numbers": ("image={}", "an array is a .npy file"),
    "rows of two lengths": ("image=[[1, 2, 3, 4], [1]]", "an array is a .npy file"),
    "cut": ("image=cut.npy", "--input image: 'cut.npy' cannot be read as float32[batch, 4]: the .npy file is damaged"),
    "no array": ("image=text.npy", "the file is no .npy file; numpy.save writes one"),
    "other shape": ("image=[[1, 2, 3]]", "must be float32[batch, 4], found float32[1, 3]: axis 1 has 3 instead of 4"),
    "other dtype": ("image=whole.npy", "must be float32[batch, 4], found int64[2, 4]"),
    "unknown": ("imag=image.npy", "--input imag: no input of the chain is named 'imag'; did you mean 'image'?"),
    "no value": ("image", "--input 'image' has no name and value; write --input image=cat.png"),
    "no name": ("=image.npy", "--input '=image.npy' has no name and value"),
    "twice": ("text=two", "--input text is given twice; leave one out"),
    "of a step": ("see.image=image.npy", "--input see.image: no input of the chain is named 'see.image'"),
}


@pytest.mark.parametrize("case", INPUTS)
def test_an_input_that_is_wrong_is_one_message_that_names_it(case: str, refused: Any, chain: Path) -> None:
    np.save(chain.with_name("whole.npy"), np.zeros((2, 4), np.int64))
    chain.with_name("cut.npy").write_bytes(chain.with_name("image.npy").read_bytes()[:-6])
    chain.with_name("text.npy").write_text("no array")
    text, message = INPUTS[case]
    for command in ("run", "explain"):
        said = refused(command, "look.yaml", "--input", "text=a cat", "--input", text)
        assert said.startswith("minerua: the inputs of the chain 'look' are not in order\n  - ")
        assert message in said


OPTIONS = {
    "--timeout soon": "Invalid value for '--timeout': 'soon'",
    "--timeout -1": "Invalid value for '--timeout': -1.0",
    "--timeout 0": "--timeout is 0; expected seconds above 0 and up to 1e+09; leave it out to wait for ever",
    "--timeout nan": "--timeout is nan; expected seconds above 0",
    "--timeout inf": "--timeout is inf; expected seconds above 0",
    "--output scor": "no output is named 'scor'; did you mean 'score'",
    "--set see": "--set 'see' has no name and value; write --set see.model=vision.onnx",
    "--set see=1": "--set see: write the step and the setting, such as see.model",
    "--set sea.k=1": "--set sea.k: no step is named 'sea'; did you mean 'see'",
    "--set see.k=1": "step 'see': skill 'see' takes no settings, found k",
    "--trace folder": "cannot write the trace folder: Is a directory; choose another file",
    "--trace gone/trace.json": "cannot write the trace gone/trace.json: No such file or directory; choose another file",
    "--trace look.yaml": "--trace look.yaml: this file is there and is no trace; choose another, or delete it",
    "--trace image.npy": "--trace image.npy: this file is there and is no trace",
    "--tune": "cannot write the profile look.profile.json: Is a directory; choose another file",
}


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_that_is_wrong_is_told_before_anything_runs(option: str, refused: Any, chain: Path) -> None:
    chain.with_name("folder").mkdir()
    chain.with_name("look.profile.json").mkdir()
    said = refused("run", "look.yaml", *given(chain, "boom"), *option.split())
    assert OPTIONS[option] in said
    assert "no word for that" not in said  # a step that ran would have failed


def test_two_forms_of_one_plan_are_refused(refused: Any) -> None:
    assert refused("explain", "look.yaml", "--json", "--mermaid") == (
        "minerua: --json and --mermaid are two forms of the same; leave one out\n"
    )


def test_tuning_asks_for_the_inputs_that_it_measures_with(refused: Any) -> None:
    assert "'text', an input of the chain 'look', is missing; text is wanted" in refused(
        "explain", "look.yaml", "--tune"
    )


def test_an_older_trace_is_written_over_and_the_outputs_come_first(minerua: Any, chain: Path) -> None:
    trace = chain.with_name("trace.json")
    trace.write_text('{"traceEvents": []}')
    assert minerua("chain", "run", str(chain), *given(chain), "--trace", str(trace)).returncode == 0
    assert json.loads(trace.read_text())["traceEvents"]
    if Path("/dev/full").exists():
        done = minerua("chain", "run", str(chain), *given(chain), "--trace", "/dev/full")
        assert (done.returncode, done.stdout) == (2, "score: float32[2]: 7.5 27.5\nnote: 5 letters\n")
        assert "cannot write the trace /dev/full: No space left on device" in done.stderr
