"""The evaluator, the skills, the worlds and the pictures: from an empty folder to a page."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import minerua_segmentation as plugin
import numpy as np
import pytest
import yaml
from minerua_segmentation import __main__ as command
from minerua_segmentation import drawing, overlays
from minerua_segmentation.collection import open_collection
from minerua_segmentation.evaluator import read_task
from minerua_segmentation.unet import unet_module
from minerua_segmentation.worlds import WORLDS, draw
from minerua_segmentation.writing import write_worlds
from PIL import Image
from safetensors.torch import save_file

from minerua import MineruaError
from minerua.errors import ConfigError, StorageError
from minerua.registry.specs import KINDS, spec_faults
from minerua.values import RunContext, SkillContext

(FAMILY,) = plugin.minerua_evaluators()
SKILLS = {skill.name: skill for skill in plugin.minerua_skills()}
SIZES = {"learned": 3, "items": 4, "size": 24}


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    """A folder with four small worlds."""
    folder = tmp_path_factory.mktemp("worlds")
    write_worlds(folder, seed=5, **SIZES)
    return folder


def task(folder, world="leaf", **settings):
    return FAMILY.configure({"path": f"items/{world}", "size": 24, **settings}, RunContext(folder))


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ── worlds ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("world", WORLDS)
def test_a_world_is_a_function_of_number_and_seed_and_its_masks_are_neither_empty_nor_full(world):
    image, _ = draw(world, 3, size=32, seed=1)
    assert np.array_equal(image, draw(world, 3, size=32, seed=1)[0])
    assert not np.array_equal(image, draw(world, 4, size=32, seed=1)[0])
    assert not np.array_equal(image, draw(world, 3, size=32, seed=2)[0])
    shares = [draw(world, k, size=32)[1].mean() for k in range(60)]
    assert 0.01 < min(shares) < max(shares) < 0.9


def test_no_image_is_learned_from_and_scored_on(worlds):
    for world in WORLDS:
        learned = {path.stem for path in (worlds / "learn" / world).rglob("*.*")}
        scored = {path.stem for path in (worlds / "items" / world).rglob("*.*")}
        assert learned.isdisjoint(scored)


def test_masks_come_back_from_their_files_as_they_were_drawn(worlds):
    for world in WORLDS:
        images, drawn = [], []
        found = open_collection(read_task({"path": f"items/{world}", "size": 24}, worlds)[0])
        for k in range(4):
            image, mask = draw(world, 3 + k, size=24, seed=5)
            images.append(image)
            drawn.append(mask)
        assert (found.masks != np.stack(drawn)).mean() < 0.005  # JPEG blurs the edges of some
        assert np.abs(found.images.astype(int) - np.stack(images)).mean() < 12


def test_the_skill_that_writes_worlds_says_how_many_it_wrote(tmp_path, monkeypatch):
    monkeypatch.setattr("minerua_segmentation.writing.PLACES", dict.fromkeys(WORLDS, ("a/{}.png", "b/{}.png")))
    monkeypatch.setattr(
        "minerua_segmentation.writing.draw", lambda *_, **__: (np.zeros((1, 1, 3), "u1"), np.ones((1, 1), bool))
    )
    pairs = SKILLS["segmentation-worlds"].call(folder=str(tmp_path), seed=2)["pairs"]
    assert pairs["learn/polyp"] == len(list((tmp_path / "learn/polyp/a").iterdir())) == 240


def test_the_same_call_completes_a_folder_and_another_one_is_refused(tmp_path, worlds):
    write_worlds(tmp_path, seed=5, **SIZES)
    assert files(tmp_path) == files(worlds)
    (tmp_path / "items" / "polyp" / "masks" / "polyp_0000004.jpg").unlink()
    write_worlds(tmp_path, seed=5, **SIZES)
    assert files(tmp_path) == files(worlds)
    with pytest.raises(ConfigError, match=r'holds the worlds of .*"seed": 5.*, asked for .*"seed": 6.*; name another'):
        write_worlds(tmp_path, seed=6, **SIZES)
    (tmp_path / "worlds.json").unlink()
    with pytest.raises(ConfigError, match="of its own, which would be mixed up; name another folder"):
        write_worlds(tmp_path, seed=5, **SIZES)


def test_the_command_writes_worlds_and_says_what_is_wrong(tmp_path, capsys):
    assert command.main([str(tmp_path / "w"), "--learned", "1", "--items", "1", "--size", "16"]) == 0
    assert "items/leaf: 1 images with masks" in capsys.readouterr().out
    assert command.main([str(tmp_path / "x"), "--learned", "0", "--size", "3"]) == 2
    said = capsys.readouterr().err
    assert "these worlds cannot be written" in said
    assert "learned is 0; it is a whole number from 1" in said
    assert "size is 3; it is a whole number from 16" in said
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"the worlds in .* cannot be written: "):
        write_worlds(tmp_path / "file")


# ── the evaluator ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_outcomes_are_the_metric_of_each_image_in_the_order_of_the_ids(worlds):
    spec = task(worlds, metric="mae")
    ids = list(spec.items())[::-1]
    half = spec.evaluate(lambda images: np.full(images.shape[:3], 0.5), ids, 0)
    assert half.tolist() == [0.5] * 4
    shades = spec.inputs(ids).mean((1, 2, 3)) / 255
    found = spec.evaluate(lambda images: images.mean(3) / 255, ids, 0)
    assert found.tolist() == [spec.evaluate(lambda images: images.mean(3) / 255, [id], 0)[0] for id in ids]
    assert len(set(shades)) == 4


def test_its_version_changes_with_metric_cut_and_pixels_and_not_with_the_place(tmp_path, worlds):
    write_worlds(tmp_path, seed=5, **SIZES)
    assert task(tmp_path).version == task(worlds).version
    others = [task(worlds, metric="iou"), task(worlds, cut=0.4), task(worlds, size=16), task(worlds, "polyp")]
    assert len({task(worlds).version, *(spec.version for spec in others)}) == 5


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (lambda images: images[..., 0], r"answered uint8 \[4, 24, 24\] to 4 images; one probability per pixel"),
        (lambda images: np.zeros(4), r"answered float64 \[4\] to 4 images; one probability per pixel is needed"),
        (lambda images: np.full((4, 24, 24), np.nan), "of 4 images 4 have answers that are no probabilities"),
        (lambda images: np.full((4, 24, 24), 1.1), "of 4 images 4 have answers that are no probabilities"),
    ],
)
def test_answers_that_are_no_probabilities_are_refused(worlds, answer, text):
    spec = task(worlds)
    with pytest.raises(MineruaError, match=text):
        spec.evaluate(answer, spec.items(), 0)


def test_settings_of_a_task_that_are_wrong_are_said_together(worlds):
    with pytest.raises(ConfigError) as caught:
        task(worlds, metric="dise", cut=3)
    assert "metric is 'dise'; expected one of dice, iou, s-measure, mae; did you mean 'dice'?" in str(caught.value)
    assert "cut is 3; expected a number from 0 to 1" in str(caught.value)


def test_the_skill_makes_rows_of_several_worlds(worlds):
    settings = {"path": [f"learn/{world}" for world in WORLDS], "most": 2, "size": 24}
    skill = SKILLS["segmentation-images"].configure(settings, SkillContext(worlds))
    rows = skill.call()["dataset"]
    assert len(rows) == 8
    assert rows.key(0) == "camouflage/camouflage_0000000"
    with pytest.raises(ConfigError, match="flips is 'on'; expected true or false"):
        SKILLS["segmentation-images"].configure({**settings, "flips": "on"}, SkillContext(worlds))


# ── what a report shows ──────────────────────────────────────────────────────────────────────────────────────────────


def test_each_image_is_shown_beside_its_outlines_under_its_dice(worlds):
    spec = task(worlds, metric="mae")
    ids = list(spec.items())[1:3]

    def model(images):
        return images[..., 1] / 255.0

    shown = spec.exhibit(model, ids)
    dice = task(worlds).evaluate(model, ids, 0)
    outcomes = spec.evaluate(model, ids, 0)
    assert [one.item for one in shown] == ids
    for k, one in enumerate(shown):
        assert one.title == f"Dice {dice[k]:.2f}, 1 − MAE {outcomes[k]:.2f}; white: there, orange: found"
        assert one.text is None
    assert task(worlds).exhibit(model, ids)[0].title == f"Dice {dice[0]:.2f}; white: there, orange: found"
    picture = pixels(shown[0].png)
    image = pixels(drawing.outlined(*[array[0] for array in ones(spec, ids)]))
    assert picture.shape == image.shape == (drawing.LINE_SIDE, 2 * drawing.LINE_SIDE + drawing.GAP, 3)
    assert np.array_equal(picture[:, : drawing.LINE_SIDE], image[:, : drawing.LINE_SIDE])


def ones(spec, ids):
    images = spec.inputs(ids)
    return images, np.ones(images.shape[:3], bool), np.ones(images.shape[:3], bool)


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)))


def test_what_is_there_is_outlined_outside_and_what_was_found_inside_so_that_both_are_seen():
    mask = np.zeros((24, 12), bool)
    mask[6:18, 3:9] = True
    picture = pixels(drawing.outlined(np.full((24, 12, 3), 90, np.uint8), mask, mask))
    plain, drawn = picture[:, :144], picture[:, 144 + drawing.GAP :]
    assert picture.shape[:2] == (288, 2 * 144 + drawing.GAP)
    assert (plain == 90).all()
    white, orange = ((drawn == colour).all(2) for colour in (drawing.WHITE, drawing.ORANGE))
    left, right = 36, 108  # the mask's borders, enlarged twelve times; away from its corners, which are rounded
    for across in (white, orange):
        assert (across[100:180] == across[100]).all()
    assert white[100].nonzero()[0].tolist() == [*range(left - 3, left), *range(right, right + 3)]
    assert orange[100].nonzero()[0].tolist() == [*range(left, left + 3), *range(right - 3, right)]
    assert (drawn[100:180, 60:80] == 90).all()  # what is far from both borders is left as it is


@pytest.mark.parametrize("shape", [(352, 352), (1024, 1024), (400, 30)])
def test_a_picture_of_noise_is_small_enough_for_a_report(shape):
    generator = np.random.default_rng(0)
    noise, mask = generator.integers(0, 256, (*shape, 3), np.uint8), generator.random(shape) < 0.5
    assert len(drawing.outlined(noise, mask, ~mask)) <= 512 << 10


def test_nothing_is_shown_of_answers_that_are_no_probabilities(worlds):
    with pytest.raises(MineruaError, match="of 1 images 1 have answers that are no probabilities"):
        task(worlds).exhibit(lambda images: np.full((1, 24, 24), 2.0), task(worlds).items()[:1])


# ── overlays ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def run(tmp_path, worlds):
    """A run file with what a finished run has beside it."""
    for name in ("base", "one", "best"):
        save_file(unet_module(width=4, depth=2).state_dict(), tmp_path / f"{name}.safetensors")
    said = {
        "base": "base.safetensors",
        "experts": {"one": "one.safetensors"},
        "model": {"name": "unet", "settings": {"width": 4, "depth": 2}},
        "tasks": [
            {
                "name": "<leaf>",
                "evaluator": "segmentation",
                "settings": {"path": str(worlds / "items/leaf"), "size": 24},
            }
        ],
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(said))
    return tmp_path


def test_overlays_are_pictures_and_a_page_that_asks_for_nothing(run, capsys):
    assert overlays.main([str(run), "--count", "2"]) == 0
    page = Path(capsys.readouterr().out.strip()).read_text("utf-8")
    assert page.count("data:image/png;base64,") == 1
    assert "&lt;leaf&gt;" in page
    assert "<leaf>" not in page
    assert "http://" not in page + page.replace("https://", "http://")
    assert (run / "overlays" / "<leaf>.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_that_cannot_be_drawn_says_all_that_is_missing(run, capsys):
    (run / "best.safetensors").unlink()
    said = yaml.safe_load((run / "run.yaml").read_text())
    (run / "run.yaml").write_text(yaml.safe_dump({**said, "model": "unett", "tasks": [*said["tasks"], "other"]}))
    assert overlays.main([str(run)]) == 2
    told = capsys.readouterr().err
    assert "is no finished run whose masks can be drawn" in told
    for text in (
        "task 'other' is none of the evaluator 'segmentation'",
        "model: no model kind is named 'unett'; did you mean 'unet'",
        "best: ",
        "best.safetensors is not there",
    ):
        assert text in told
    with pytest.raises(ConfigError, match="count is 0; at least one image of each task is drawn"):
        overlays.write_overlays(run, count=0)
    with pytest.raises(ConfigError, match="cannot be read as a run file"):
        overlays.write_overlays(run / "gone.yaml")
    (run / "run.yaml").write_text("{}")
    with pytest.raises(ConfigError, match="it has no tasks"):
        overlays.write_overlays(run)


def test_weights_that_cannot_be_read_and_a_folder_that_cannot_be_written_are_told(run):
    (run / "file").write_text("")
    with pytest.raises(StorageError, match="overlays cannot be written to"):
        overlays.write_overlays(run, run / "file" / "x")
    (run / "one.safetensors").write_bytes(b"nothing")
    with pytest.raises(ConfigError, match=r"one.safetensors cannot be read as safetensors"):
        overlays.write_overlays(run)


# ── the hooks ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_specs_are_valid_and_their_module_imports_nothing_heavy():
    for kind in KINDS:
        hook = getattr(plugin, kind.hook, list)
        assert [fault for spec in hook() for fault in spec_faults(kind, spec)] == []
    script = (
        "import sys, minerua_segmentation as m; m.minerua_models(); print({'torch', 'numpy', 'PIL'} & {*sys.modules})"
    )
    paths = ":".join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env={"PYTHONPATH": paths}
    )
    assert done.stdout == "set()\n"
