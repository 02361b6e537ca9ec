"""The example world: what it makes, how well its models tell numbers, and the command line on its files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from minerua_onnx import drawing, minerua_skills
from minerua_onnx.world import Size, chain_of, make_world, system

from minerua.chain.plan import ExecutionPlan
from minerua.chain.running.executor import ChainExecutor
from minerua.errors import ChainError

FAMILIES = {skill.name: skill for skill in minerua_skills()}
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    pytest.importorskip("onnxscript", reason="learning the world needs the extra `world`")
    folder = tmp_path_factory.mktemp("world")
    make_world(folder, size=Size(learned=4_000, tested=1_000, passes=4, samples=60))
    return folder


def test_both_senses_together_tell_more_than_each_alone(world):
    found = json.loads((world / "accuracies.json").read_text())
    assert found["both"] > 0.7
    assert found["both"] > found["image only"] + 0.05
    assert found["both"] > found["text only"] + 0.2
    assert min(found.values()) > 0.3  # ten numbers: guessing tells one in ten


def test_the_chain_with_files_and_texts_is_as_good_as_its_models(world):
    pairs = [
        ({"image": world / sample["image"], "text": sample["text"]}, sample["label"])
        for sample in json.loads((world / "samples.json").read_text())
    ]
    with system().open(FAMILIES, folder=world) as opened:
        found = opened.accuracy(pairs, output="label")
    table = json.loads((world / "accuracies.json").read_text())
    assert found["image", "text"] > max(found["image",], found["text",])
    for names, title in ((("image", "text"), "both"), (("image",), "image only"), (("text",), "text only")):
        assert found[names] == pytest.approx(table[title], abs=0.2)  # sixty samples


def test_the_file_of_the_chain_is_the_system(world):
    assert chain_of(world) == system().chain
    assert system().chain.check(FAMILIES) != ()  # here are none of its files
    assert chain_of(world).check(FAMILIES) == ()


def test_one_sense_fewer_changes_the_confidence_and_none_at_all_is_refused(world):
    sample = json.loads((world / "samples.json").read_text())[0]
    with ChainExecutor(ExecutionPlan.plain(chain_of(world).graph(FAMILIES))) as executor:
        given = {"image": world / sample["image"], "text": sample["text"]}
        choices = [given, {"image": given["image"]}, {"text": given["text"]}, {}]
        confidences = [executor.run(choice)["confidence"] for choice in choices]
    assert len(set(confidences)) == 4
    with system().open(FAMILIES, folder=world) as opened, pytest.raises(ChainError, match="nothing was given; give at"):
        opened.predict()


RUN = """
import sys
from minerua.cli import main
try:
    main()
finally:
    print(sorted({"torch", "onnxscript", "sklearn"} & set(sys.modules)), file=sys.stderr)
"""


def test_the_command_line_runs_it_on_an_image_file_and_a_text_without_torch(world):
    sample = json.loads((world / "samples.json").read_text())[0]
    inputs = ["--input", f"image={world / sample['image']}", "--input", f"text={sample['text']}"]
    command = [sys.executable, "-c", RUN, "chain", "run", str(world / "chain.yaml")]
    for given in (inputs, inputs[:2], inputs[2:]):
        done = subprocess.run([*command, *given], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[0].removeprefix("label: ") in drawing.NAMES
        assert done.stderr.splitlines()[-1] == "[]"


def test_an_image_that_is_none_is_one_clear_message(world):
    command = [sys.executable, "-m", "minerua", "chain", "run", str(world / "chain.yaml")]
    bad = [*command, "--input", f"image={world / 'vision.onnx'}"]
    done = subprocess.run(bad, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "is not an image that can be read" in done.stderr
    assert "Traceback" not in done.stderr


def test_making_the_world_without_torch_says_what_to_install(tmp_path):
    code = "import sys; sys.modules['onnxscript'] = None; from minerua_onnx.__main__ import main; sys.exit(main(['w']))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, list(tmp_path.iterdir())) == (2, [])
    assert "making the world needs onnxscript; pip install 'minerua-onnx[world]'" in done.stderr


def test_a_network_that_torch_does_not_export_is_named(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch", reason="learning the world needs the extra `world`")
    from minerua_onnx.networks import export_one

    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: None)
    with pytest.raises(RuntimeError, match=r"torch returned no program for vision\.onnx"):
        export_one(torch.nn.Identity(), tmp_path / "vision.onnx", {"x": torch.zeros(2)}, "y", None)


# ── what is drawn and said ───────────────────────────────────────────────────────────────────────────────────────────


def test_the_same_seed_draws_and_says_the_same():
    one, again, other = drawing.examples(20, 5), drawing.examples(20, 5), drawing.examples(20, 6)
    np.testing.assert_array_equal(one.images, again.images)
    assert one.sentences == again.sentences
    assert one.images.tobytes() != other.images.tobytes()


def test_what_may_be_said_of_a_number_is_what_the_table_of_sentences_has():
    assert list(drawing.PROPERTIES) == [
        "an even number",
        "an odd number",
        "a number below five",
        "a number above four",
        "a multiple of three",
        "a prime number",
        "a square number",
    ]
    assert drawing.OPENINGS == ("this is", "here you see", "it shows", "behold")


def test_what_is_said_is_true_and_in_the_vocabulary():
    shown = drawing.examples(200, 1)
    for sentence, number in zip(shown.sentences, shown.numbers, strict=True):
        said = [text for text in drawing.PROPERTIES if text in sentence]
        assert said
        assert all(number in drawing.PROPERTIES[text] for text in said)
    assert drawing.vocabulary()["<unknown>"] not in shown.tokens


def test_the_skill_for_words_gives_the_tokens_that_were_learned_from(tmp_path):
    from minerua.values import SkillContext

    shown = drawing.examples(50, 2)
    Path(tmp_path / "v.json").write_text(json.dumps(drawing.vocabulary()))
    settings = {"vocabulary": "v.json", "length": drawing.LENGTH}
    skill = FAMILIES["word-tokens"].configure(settings, SkillContext(tmp_path))
    found = np.concatenate([skill.call(text=sentence)["tokens"] for sentence in shown.sentences])
    np.testing.assert_array_equal(found, shown.tokens)
