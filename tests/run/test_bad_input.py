"""A wrong input at every door of `minerua evolve`: one message, exit code 2, nothing written, no traceback."""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from minerua.weights import write_checkpoint

from .conftest import World, make_world

WEIGHT = np.zeros((4, 6), np.float32)
BIAS = np.zeros(4, np.float32)


def refused(world: World, *arguments: str, **variables: str) -> str:
    """Runs `evolve`, expects a refusal that leaves no trace, and returns the message."""
    before = sorted(world.folder.rglob("*"))
    done = world.minerua("evolve", str(world.run_file), *arguments, **variables)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert sorted(world.folder.rglob("*")) == before
    return done.stderr


def test_a_missing_run_file(world):
    world.run_file.unlink()
    assert "cannot read" in refused(world)


def test_a_missing_expert(world):
    (world.folder / "experts/1.safetensors").unlink()
    message = refused(world)
    assert "experts/1.safetensors" in message
    assert "no such file" in message.lower()


def test_an_expert_of_other_shapes(world):
    write_checkpoint(
        world.folder / "experts/1.safetensors", {"layer.weight": np.zeros((4, 7), np.float32), "layer.bias": BIAS}
    )
    message = refused(world)
    assert "'e1'" in message
    assert "layer.weight" in message
    assert "[4, 7]" in message
    assert "[4, 6]" in message


def test_an_expert_of_another_base(world):
    write_checkpoint(world.folder / "experts/0.safetensors", {"encoder.weight": WEIGHT, "layer.bias": BIAS})
    message = refused(world)
    assert "encoder.weight" in message
    assert "layer.weight" in message


@pytest.mark.parametrize("who", ["base.safetensors", "experts/2.safetensors"])
def test_nan_in_a_checkpoint(world, who):
    broken = WEIGHT.copy()
    broken[1, 2] = np.nan
    write_checkpoint(world.folder / who, {"layer.weight": broken, "layer.bias": BIAS})
    message = refused(world)
    assert who in message
    assert "layer.weight" in message
    assert "1 " in message


def test_a_truncated_safetensors_file(world):
    path = world.folder / "experts/1.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    message = refused(world)
    assert "experts/1.safetensors" in message
    assert "10 bytes" in message


def test_an_unknown_evaluator_and_model_name_the_nearest(world):
    world.configure(tasks=["toy-0", "toy-11"], model="toy-liner")
    message = refused(world)
    assert "no evaluator is named 'toy-11'; did you mean" in message
    assert "no model is named 'toy-liner'; did you mean 'toy-linear'?" in message


def test_an_unknown_merge_method(world):
    world.configure(evolution={"merges": ["regmeen"]})
    assert "no merge method is named 'regmeen'; did you mean 'regmean'?" in refused(world)


def test_a_broken_plugin_that_might_have_provided_the_name(world):
    (world.site_packages / "toy_plugin.py").write_text("raise RuntimeError('no luck')")
    message = refused(world)
    assert "no luck" in message
    assert "toy" in message


def test_wrong_and_misspelt_keys(world):
    world.configure(evolutoin={}, seed="x", evolution={"evaluation": 5, "variant": "papr", "bins": 0})
    message = refused(world)
    assert "evolutoin: unknown key; did you mean 'evolution'?" in message
    assert "evolution.evaluation: unknown key; did you mean 'evaluations'?" in message
    assert "seed: " in message
    assert "evolution.variant: " in message
    assert "evolution.bins: " in message


def test_everything_wrong_at_once_is_one_message(world):
    (world.folder / "experts/1.safetensors").unlink()
    write_checkpoint(world.folder / "experts/2.safetensors", {"layer.weight": WEIGHT[:2], "layer.bias": BIAS})
    world.configure(speed=3, model="toy", tasks=["toy-0", "toi-1"])
    message = refused(world)
    for part in (
        "speed: unknown key",
        "no model is named 'toy'",
        "no evaluator is named 'toi-1'",
        "experts/1",
        "[2, 6]",
    ):
        assert part in message


def test_settings_that_do_not_go_together(world):
    world.configure(
        tasks=["toy-0", "toy-1"], evolution={"mutation": "expert", "lower_bounds": [0.1], "upper_bounds": [1, 1, 1]}
    )
    message = refused(world)
    assert "'expert' needs one expert per task" in message
    assert "found 3 experts and 2 tasks" in message
    assert "evolution.lower_bounds: one number per task is needed" in message
    assert "evolution.upper_bounds: one number per task is needed" in message
    assert "needs one expert per task, in the same order" in message


def test_bounds_the_wrong_way_round(world):
    world.configure(evolution={"lower_bounds": [0.5] * 3, "upper_bounds": [0.5] * 3})
    assert "above its lower bound" in refused(world)


def test_items_too_few_for_three_splits(world):
    plugin = world.site_packages / "toy_plugin.py"
    plugin.write_text(plugin.read_text().replace("for i in range(ITEMS)]", "for i in range(1)]"))
    message = refused(world)
    assert "its 1 items leave" in message


def test_an_output_folder_that_cannot_be_made(world):
    (world.folder / "file").touch()
    message = refused(world, "--out", str(world.folder / "file" / "out"))
    assert "cannot create the folder" in message
    assert "Not a directory" in message


def test_no_expert_can_be_scored(world):
    plugin = world.site_packages / "toy_plugin.py"
    plugin.write_text(
        plugin.read_text().replace("        inputs, labels = _problem(task)\n", "        raise OSError('no data')\n")
    )
    done = world.minerua("evolve", str(world.run_file))
    assert done.returncode == 2
    assert "no expert could be scored" in done.stderr
    assert "e0: toy-0: OSError: no data" in done.stderr


def test_a_full_disk_stops_the_run_with_a_clear_error_and_it_resumes_with_nothing_lost(world, tmp_path):
    whole = make_world(tmp_path / "whole")
    assert whole.minerua("evolve", str(whole.run_file)).returncode == 0
    journal = (whole.folder / "journal.jsonl").read_bytes()

    def no_room() -> None:  # every file may grow to this size and no further, as on a disk that fills up
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(journal) // 2, len(journal) // 2))

    full = subprocess.run(
        [
            sys.executable,
            "-c",
            "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); import minerua.cli as c; c.main()",
            "evolve",
            str(world.run_file),
        ],
        env=world.environment(),
        preexec_fn=no_room,
        capture_output=True,
        text=True,
        check=False,
    )
    assert full.returncode == 2
    assert "Traceback" not in full.stderr
    assert f"cannot write {world.folder / 'journal.jsonl'}: {os.strerror(errno.EFBIG)}" in full.stderr
    assert "--resume" in full.stderr
    kept = (world.folder / "journal.jsonl").read_bytes()
    assert kept
    assert journal.startswith(kept)
    assert world.minerua("evolve", str(world.run_file), "--resume").returncode == 0
    for name in ("journal.jsonl", "archives.json", "best.safetensors", "table.json", "report.html"):
        assert (world.folder / name).read_bytes() == (whole.folder / name).read_bytes()


def test_a_disk_too_full_for_the_results_loses_nothing(world):
    done = world.minerua("evolve", str(world.run_file))
    assert done.returncode == 0
    report = (world.folder / "report.html").read_bytes()
    (world.folder / "report.html").unlink()
    (world.folder / "report.html").mkdir()  # cannot be replaced by a file
    (world.folder / "report.html" / "x").touch()
    again = world.minerua("evolve", str(world.run_file), "--resume")
    assert again.returncode == 2
    assert "report.html" in again.stderr
    assert "Traceback" not in again.stderr
    (world.folder / "report.html" / "x").unlink()
    (world.folder / "report.html").rmdir()
    assert world.minerua("evolve", str(world.run_file), "--resume").returncode == 0
    assert (world.folder / "report.html").read_bytes() == report


def test_a_damaged_journal_is_refused_with_its_line(world):
    assert world.minerua("evolve", str(world.run_file)).returncode == 0
    path = world.folder / "journal.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[5] = b"x" + lines[5][1:]
    path.write_bytes(b"".join(lines))
    assert "line 6 is damaged" in refused(world, "--resume")


def test_report_of_an_unfinished_and_of_no_run(world, tmp_path):
    assert world.minerua("evolve", str(world.run_file)).returncode == 0
    path = world.folder / "journal.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:40]))
    (world.folder / "report.html").unlink()
    done = world.minerua("report", str(world.folder), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)
    assert (world.folder / "report.html").exists()
    missing = world.minerua("report", str(Path(tmp_path / "nowhere")))
    assert missing.returncode == 2
    assert "cannot read" in missing.stderr


def test_usage_mistakes_exit_with_2(world):
    for arguments in (
        ["evolve"],
        ["evolv"],
        ["evolve", "a", "b"],
        ["demo", "--variant", "x"],
        ["demo", "--evaluations", "0"],
    ):
        done = world.minerua(*arguments)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr


def test_demo_without_its_plugin_says_what_to_install(world, tmp_path):
    done = world.minerua("demo", "--out", str(tmp_path / "demo"), MINERUA_PLUGINS_DISABLED="digits")
    assert done.returncode == 2
    assert "pip install ./plugins/minerua-digits" in done.stderr
    assert not (tmp_path / "demo").exists()


def test_demo_refuses_a_folder_that_holds_a_run(world):
    done = world.minerua("demo", "--out", str(world.folder))
    assert done.returncode == 2
    assert "already holds a run" in done.stderr
