"""`minerua chain` as its users meet it: a process of its own, its exit code, its two outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

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
