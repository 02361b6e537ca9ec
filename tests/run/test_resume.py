"""`kill -9` at any moment, then `--resume`: every file has the bytes that an uninterrupted run would have written."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from minerua.errors import CheckpointError, StorageError
from minerua.run import execute
from minerua.weights import GenomeStore

from .conftest import World, make_world

RESULTS = ("journal.jsonl", "archives.json", "best.safetensors", "table.json", "report.html")
KILLS = 24


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in RESULTS}


def copy_of(world: World, folder: Path) -> World:
    shutil.copytree(world.folder, folder, ignore=shutil.ignore_patterns(*RESULTS))
    return World(folder, world.site_packages)


def run_killed_after(world: World, seconds: float) -> bool:
    """Starts or resumes the run, kills it after some time; tells whether it had ended by itself."""
    process = subprocess.Popen(
        world.command("evolve", str(world.run_file), "--resume"),
        env=world.environment(TOY_SLEEP="0.002"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        _, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.communicate()
        return False
    assert process.returncode == 0, errors
    return True


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 4])
def test_a_run_killed_at_random_moments_ends_with_the_bytes_of_an_uninterrupted_run(tmp_path, batch):
    whole = make_world(tmp_path / "whole", evaluations=60)
    whole.configure(evolution={"evaluations": 60, "batch": batch})
    began = time.monotonic()
    done = whole.minerua("evolve", str(whole.run_file), TOY_SLEEP="0.002")
    usual_seconds = time.monotonic() - began
    assert done.returncode == 0, done.stderr
    moments = random.Random(batch)
    kills, runs = 0, 0
    while kills < KILLS // 2:
        killed = copy_of(whole, tmp_path / f"killed-{runs}")
        runs += 1
        while not run_killed_after(killed, moments.uniform(0.2, 0.9) * usual_seconds):
            kills += 1
        assert contents(killed.folder) == contents(whole.folder)


def test_every_length_of_a_journal_resumes_to_the_same_bytes(world):
    """Stands in for a kill at each moment: the journal cut after any byte of some lines, the results missing or old."""
    registry = world.registry()
    execute(world.run_file, registry=registry)
    whole = contents(world.folder)
    journal = whole["journal.jsonl"]
    ends = [i + 1 for i, byte in enumerate(journal) if byte == ord("\n")]
    cuts = [0, 1, len(journal) - 1, len(journal)]
    cuts += [end + offset for end in ends[:8] + ends[20:26] + ends[-12:] for offset in (-1, 0, 17)]
    for cut in sorted({min(cut, len(journal)) for cut in cuts}):
        for name in RESULTS:
            (world.folder / name).unlink(missing_ok=True)
        (world.folder / "journal.jsonl").write_bytes(journal[:cut])
        (world.folder / ".best.safetensors.0123456789abcdef.partial").write_bytes(b"half")
        execute(world.run_file, registry=registry, resume=True)
        assert contents(world.folder) == whole, f"cut after {cut} of {len(journal)} bytes"
        assert not list(world.folder.glob("*.partial"))


# ── the same where genomes are too large for the memory ──────────────────────────────────────────────────────────────


ON_DISK = """
import sys
import minerua.run
sys.modules["minerua.run.evolve"].LARGEST_IN_MEMORY_BYTES = 0
sys.argv = ["minerua", "evolve", sys.argv[1], "--resume"]
from minerua.cli import main
main()
"""


@pytest.fixture
def on_disk(monkeypatch):
    """Every genome is too large for the memory."""
    monkeypatch.setattr(sys.modules["minerua.run.evolve"], "LARGEST_IN_MEMORY_BYTES", 0)


def genomes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "genomes").iterdir())}


def elites(folder: Path) -> set[str]:
    """The files that the children in the archives of a finished run need."""
    archives = json.loads((folder / "archives.json").read_text())
    events = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    seeds = {event["digest"] for event in events if event["event"] == "seed"}
    names = {elite["digest"] for archive in archives for elite in archive["elites"]}
    return {f"{name}.genome" for name in names - seeds}


@pytest.mark.parametrize("batch", [1, 4])
def test_a_run_with_genomes_on_the_disk_gives_the_bytes_of_one_in_memory(world, tmp_path, on_disk, monkeypatch, batch):
    world.configure(evolution={"evaluations": 40, "batch": batch})
    memory = copy_of(world, tmp_path / "memory")
    execute(world.run_file, registry=world.registry())
    assert genomes(world.folder).keys() == elites(world.folder)
    monkeypatch.undo()
    execute(memory.run_file, registry=world.registry())
    assert contents(memory.folder) == contents(world.folder)
    assert not (memory.folder / "genomes").exists()


def test_every_state_of_the_genomes_folder_resumes_to_the_same_bytes(world, on_disk):
    """The journal cut at some lines; of the genomes all, some or none there, and strays beside them."""
    world.configure(evolution={"evaluations": 40, "batch": 4})
    registry = world.registry()
    execute(world.run_file, registry=registry)
    whole, stored = contents(world.folder), genomes(world.folder)
    lines = whole["journal.jsonl"].splitlines(keepends=True)
    for turn, cut in enumerate([0, len(lines) // 3, 2 * len(lines) // 5, len(lines) // 2, len(lines)]):
        (world.folder / "journal.jsonl").write_bytes(b"".join(lines[:cut]) + b'{"torn')
        for place, name in enumerate(stored):
            if turn % 3 and place % turn == 0:
                (world.folder / "genomes" / name).unlink()
        (world.folder / "genomes" / f"{'0' * 32}.genome").write_bytes(b"a stray")
        (world.folder / "genomes" / f".{'1' * 32}.genome.0123456789abcdef.partial").write_bytes(b"half")
        execute(world.run_file, registry=registry, resume=True)
        assert contents(world.folder) == whole, f"cut after {cut} of {len(lines)} lines"
        assert genomes(world.folder) == stored, f"cut after {cut} of {len(lines)} lines"


def run_killed_at(world: World, events: int) -> int:
    """Starts or resumes a run with its genomes on the disk, kills it at so many events; returns how it ended."""
    process = subprocess.Popen(
        [sys.executable, "-c", ON_DISK, str(world.run_file)],
        env=world.environment(TOY_SLEEP="0.003"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    journal = world.folder / "journal.jsonl"
    while process.poll() is None and (not journal.exists() or journal.read_bytes().count(b"\n") < events):
        time.sleep(0.002)
    process.kill()
    return process.wait()


def test_a_run_killed_with_genomes_on_the_disk_ends_with_the_bytes_of_an_uninterrupted_run(world, tmp_path):
    killed = copy_of(world, tmp_path / "killed")
    assert run_killed_at(world, 10**9) == 0
    assert genomes(world.folder)
    assert [run_killed_at(killed, events) for events in (20, 40)] == [-signal.SIGKILL] * 2
    assert run_killed_at(killed, 10**9) == 0
    assert contents(killed.folder) == contents(world.folder)
    assert genomes(killed.folder) == genomes(world.folder)


def test_a_damaged_genome_stops_the_run_which_goes_on_when_it_is_gone(world, on_disk):
    registry = world.registry()
    execute(world.run_file, registry=registry)
    whole, stored = contents(world.folder), genomes(world.folder)
    lines = whole["journal.jsonl"].splitlines(keepends=True)
    (world.folder / "journal.jsonl").write_bytes(b"".join(lines[:-30]))
    for name in stored:
        (world.folder / "genomes" / name).write_bytes(stored[name][:-1] + b"x")
    with pytest.raises(CheckpointError, match=r"\.genome is damaged: its content has the name"):
        execute(world.run_file, registry=registry, resume=True)
    shutil.rmtree(world.folder / "genomes")
    execute(world.run_file, registry=registry, resume=True)
    assert (contents(world.folder), genomes(world.folder)) == (whole, stored)


def test_a_disk_that_is_full_when_a_genome_is_written_stops_the_run_which_resumes_to_the_same_bytes(
    world, tmp_path, on_disk, monkeypatch
):
    whole = copy_of(world, tmp_path / "whole")
    execute(whole.run_file, registry=world.registry())
    add, added = GenomeStore.add, []

    def full(store, genome):
        if len(added) == 7:
            raise StorageError("no space left")
        added.append(genome.digest)
        add(store, genome)

    monkeypatch.setattr(GenomeStore, "add", full)
    with pytest.raises(StorageError, match="no space left"):
        execute(world.run_file, registry=world.registry())
    monkeypatch.setattr(GenomeStore, "add", add)
    execute(world.run_file, registry=world.registry(), resume=True)
    assert (contents(world.folder), genomes(world.folder)) == (contents(whole.folder), genomes(whole.folder))


# ── what is no continuation ──────────────────────────────────────────────────────────────────────────────────────────


def test_a_finished_run_resumed_changes_nothing(world):
    assert world.minerua("evolve", str(world.run_file)).returncode == 0
    before = contents(world.folder)
    assert world.minerua("evolve", str(world.run_file), "--resume").returncode == 0
    assert contents(world.folder) == before


def test_two_runs_with_the_same_seed_are_equal_and_another_seed_differs(world, tmp_path):
    other, third = copy_of(world, tmp_path / "other"), copy_of(world, tmp_path / "third")
    third.configure(seed=4)
    for each in (world, other, third):
        assert each.minerua("evolve", str(each.run_file)).returncode == 0
    assert contents(world.folder) == contents(other.folder)
    assert contents(world.folder)["journal.jsonl"] != contents(third.folder)["journal.jsonl"]


def test_a_run_without_resume_refuses_a_folder_with_a_journal(world):
    assert world.minerua("evolve", str(world.run_file)).returncode == 0
    again = world.minerua("evolve", str(world.run_file))
    assert again.returncode == 2
    assert "exists already: continue that run with --resume" in again.stderr


def test_a_changed_run_file_is_refused_naming_what_changed(world):
    assert world.minerua("evolve", str(world.run_file)).returncode == 0
    before = contents(world.folder)
    world.configure(seed=4, evolution={"evaluations": 41})
    again = world.minerua("evolve", str(world.run_file), "--resume")
    assert again.returncode == 2
    assert "belongs to another run" in again.stderr
    assert "config.seed: the journal has 3, this run has 4" in again.stderr
    assert "config.evolution.evaluations: the journal has 40, this run has 41" in again.stderr
    assert contents(world.folder) == before


def test_a_child_that_fails_is_journalled_with_its_reason_and_the_run_goes_on(world):
    plugin = world.site_packages / "toy_plugin.py"
    text = plugin.read_text()
    line = "        inputs, labels = _problem(task)\n"
    assert line in text
    plugin.write_text(
        text.replace(
            line,
            line
            + "        if int(abs(model(inputs)).sum() * 1000) % 3 == 0:\n            raise ValueError('too hot')\n",
        )
    )
    done = world.minerua("evolve", str(world.run_file))
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in (world.folder / "journal.jsonl").read_text().splitlines()]
    failed = [event for event in events if event["event"] == "tell" and "failed" in event]
    assert failed
    assert all("ValueError: too hot" in event["failed"] for event in failed)
    assert sum(event["event"] == "tell" for event in events) == 40
    assert events[-1]["event"] == "end"
