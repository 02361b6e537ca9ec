"""Before the run: what is measured of the experts, what is said of them, and where it is written."""

import json
import os
import pty
import shutil
import subprocess

import numpy as np
import pytest

from minerua.errors import JournalError
from minerua.evolution import read_journal
from minerua.report import Pair, preflight_text
from minerua.run import execute, prepare
from minerua.run.preflight import TABLE_4, affordable, concerns, preflight
from minerua.run.seeds import found
from minerua.weights import (
    Core,
    Subspace,
    TaskVector,
    cosines,
    norms,
    open_checkpoint,
    spectral_similarity,
    write_checkpoint,
)

from ..worlds import make_world


def experts_of(folder, deltas):
    """A subspace of one matrix `w`, and the genomes of its founders by name."""
    shape = next(iter(deltas.values())).shape
    write_checkpoint(folder / "base.safetensors", {"w": np.zeros(shape, np.float32)})
    founders = {name: TaskVector(name, {"w": np.asarray(delta, np.float32)}) for name, delta in deltas.items()}
    subspace = Subspace(open_checkpoint(folder / "base.safetensors"), founders)
    return subspace, subspace.founders


def random_matrix(seed, sigma=(4.0, 3.0, 2.0, 1.0)):
    generator = np.random.default_rng(seed)
    left, right = (np.linalg.qr(generator.normal(size=(4, 4)))[0] for _ in range(2))
    return left @ np.diag(sigma) @ right


def pair(a, b, similarity, *, cosine=0.1, norm_ratio=1.0):
    return Pair((a, b), similarity, cosine, norm_ratio)


# ── numbers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["full", "lora", "mixed"])
def test_the_numbers_are_those_of_the_experts_and_of_no_merge(tmp_path, kind):
    world = make_world(tmp_path, kind=kind)
    subspace, founders = found(prepare(world.run, world.registry))
    experts = {founder.name: founder.genome for founder in founders if founder.expert}
    assert len(experts) == 3 < len(founders)
    checked = preflight(subspace, experts)
    names, genomes = list(experts), list(experts.values())
    lengths, angles = norms(subspace, genomes), cosines(subspace, genomes)
    assert list(checked.norms) == names
    assert list(checked.norms.values()) == pytest.approx(lengths, rel=1e-5)
    assert [p.experts for p in checked.pairs] == [(names[i], names[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    for p in checked.pairs:
        i, j = map(names.index, p.experts)
        similarity = spectral_similarity(subspace, genomes[i], genomes[j])
        assert p.similarity == (None if similarity is None else pytest.approx(similarity, abs=1e-6))
        assert p.cosine == pytest.approx(angles[i, j], abs=1e-6)
        assert p.norm_ratio == pytest.approx(max(lengths[[i, j]]) / min(lengths[[i, j]]), rel=1e-5)
        assert p.norm_ratio >= 1
    cores = sum(isinstance(segment, Core) for segment in subspace.segments)
    assert (checked.matrices, checked.matrices_in_all) == (cores, cores)


def test_an_expert_equal_to_the_base_has_neither_similarity_nor_ratio_and_is_named(tmp_path):
    subspace, experts = experts_of(tmp_path, {"a": random_matrix(1), "b": random_matrix(2), "copy": np.zeros((4, 4))})
    checked = preflight(subspace, experts)
    assert [(p.similarity, p.cosine, p.norm_ratio) for p in checked.pairs if "copy" in p.experts] == [
        (None, 0, None)
    ] * 2
    assert checked.concerns == (
        "“copy” is equal to the base and has nothing to merge; is its path that of the fine-tune?",
    )
    json.dumps(checked.fields(), allow_nan=False)


def test_an_expert_given_twice_is_named(tmp_path):
    one, two = random_matrix(1), random_matrix(2)
    subspace, experts = experts_of(tmp_path, {"a": one, "b": two, "again": 1.5 * one})
    assert preflight(subspace, experts).concerns == (
        "“a” and “again” are nearly one expert (cosine 1.0000, norm ratio 1.50): one of them is enough.",
    )


def test_an_expert_with_another_spectrum_is_named_and_the_others_are_not(tmp_path):
    flat = (2.0, 2.0, 2.0, 2.0)
    deltas = {"a": random_matrix(1), "b": random_matrix(2), "odd": random_matrix(3, flat)}
    (sentence,) = preflight(*experts_of(tmp_path, deltas)).concerns
    assert sentence.startswith("“odd” will hardly merge, if CycleQD's pairs are a guide: its highest s, with “")
    assert (
        "is 0.91; the paper's pair at 0.93 kept 62 % of its experts' scores, those from 0.97 on 92 % and more."
        in sentence
    )


def test_experts_of_rank_one_have_no_similarity_and_nothing_is_said_of_it(tmp_path):
    column = np.outer([1.0, 2, 3, 4], [1.0, 0, 0, 0])
    subspace, experts = experts_of(tmp_path, {"a": column, "b": random_matrix(2)})
    checked = preflight(subspace, experts)
    assert checked.pairs[0].similarity is None
    assert checked.concerns == ()
    assert preflight_text(checked).splitlines()[1].split() == ["a", "–", "b", "–", "−0.09", "1.00"]


def test_the_budget_chooses_matrices_by_name_and_the_text_says_how_many(tmp_path):
    world = make_world(tmp_path)
    subspace, founders = found(prepare(world.run, world.registry))
    experts = {founder.name: founder.genome for founder in founders if founder.expert}
    cores = [segment for segment in subspace.segments if isinstance(segment, Core)]
    assert sorted(affordable(cores, 1e9)) == sorted(core.name for core in cores)
    order = affordable(cores, 1e9)
    for count in (1, 2):
        spent = [core.shape for name in order[:count] for core in cores if core.name == name]
        cost = sum(min(shape) ** 2 * (max(shape) + 5 * min(shape)) for shape in spent)
        assert affordable(list(reversed(cores)), cost) == order[:count]
    assert affordable(cores, 0) == order[:1]
    assert affordable([], 0) == []
    checked = preflight(subspace, experts, budget=0)
    assert (checked.matrices, checked.matrices_in_all) == (1, 3)
    assert "over 1 matrix of 3; a hint, no proof." in preflight_text(checked)


# ── sentences ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_paper_s_own_pairs_name_the_leaves_and_no_other():
    """Table 4 of CycleQD: camouflage, polyps, skin lesions, leaves."""
    table = {"CAM-POL": 0.98, "CAM-SKL": 0.97, "CAM-LEA": 0.88, "POL-SKL": 0.99, "POL-LEA": 0.93, "SKL-LEA": 0.95}
    pairs = [pair(*names.split("-"), s) for names, s in table.items()]
    said = list(concerns(dict.fromkeys(("CAM", "POL", "SKL", "LEA"), 1.0), pairs))
    assert said == [
        "“LEA” will hardly merge, if CycleQD's pairs are a guide: its highest s, with “SKL”, is 0.95; the paper's "
        "pair at 0.95 kept 83 % of its experts' scores, those from 0.97 on 92 % and more."
    ]


def test_the_table_has_the_correlation_that_the_paper_gives():
    similarity, kept = zip(*TABLE_4, strict=True)
    assert np.corrcoef(similarity, kept)[0, 1] == pytest.approx(0.83, abs=0.01)


@pytest.mark.parametrize(
    ("similarity", "evidence"),
    [(0.955, "0.95 kept 83 %"), (0.94, "0.93 kept 62 %"), (0.9, "0.88 kept 70 %"), (0.3, "0.88 kept 70 %")],
)
def test_two_strangers_are_named_in_one_sentence_with_the_paper_s_nearest_pair(similarity, evidence):
    (said,) = concerns({"a": 1.0, "b": 1.0}, [pair("a", "b", similarity)])
    assert said.startswith(
        "“a” and “b” will hardly merge, if CycleQD's pairs are a guide: their s is "
        f"{similarity:.2f}; the paper's pair at {evidence}"
    )


@pytest.mark.parametrize("similarity", [0.96, 0.97, 1.0, None])
def test_of_experts_that_are_alike_nothing_is_said(similarity):
    assert list(concerns({"a": 1.0, "b": 4.9}, [pair("a", "b", similarity, cosine=0.999, norm_ratio=4.9)])) == []


def test_an_expert_that_outweighs_the_others_is_named_once():
    names = {"a": 6.0, "b": 1.0}
    assert list(concerns(names, [])) == [
        "“a” changes the base 6.0 times as much as the others: a merge with equal weights is mostly “a”."
    ]
    (base,) = concerns({"a": 6.0, "b": 0.0}, [])
    assert base.startswith("“b” is equal to the base and has nothing to merge")
    three = {"a": 1.0, "b": 1.2, "small": 0.1}
    assert list(concerns(three, [])) == [
        "“small” changes the base 11.0 times less than the others: a merge with equal weights drowns it."
    ]
    assert list(concerns({"a": 10.0, "b": 10.0, "c": 2.1}, [])) == []


# ── in a run ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_run_announces_once_before_its_first_seed_and_journals_what_it_announced(tmp_path):
    world = make_world(tmp_path, evolution={"evaluations": 2, "bins": 4})
    journal, told = tmp_path / "journal.jsonl", []
    summary = execute(
        world.run, registry=world.registry, announce=lambda found: told.append((found, len(read_journal(journal))))
    )
    ((checked, lines),) = told
    events = read_journal(journal)
    assert [event["event"] for event in events[:4]] == ["run", "items", "preflight", "seed"]
    assert lines == 3  # the journal has it before anybody hears of it
    assert events[2] == {"event": "preflight", **json.loads(json.dumps(checked.fields()))}
    assert summary.preflight == checked
    assert json.loads((tmp_path / "table.json").read_text())["preflight"] == checked.fields()
    assert "Before the run" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("lines", [2, 3])
def test_a_resumed_run_has_it_once_and_announces_only_what_the_journal_did_not_have(tmp_path, lines):
    world = make_world(tmp_path, evolution={"evaluations": 2, "bins": 4})
    execute(world.run, registry=world.registry)
    journal = tmp_path / "journal.jsonl"
    whole = journal.read_bytes()
    journal.write_bytes(b"".join(whole.splitlines(keepends=True)[:lines]))
    told = []
    execute(world.run, registry=world.registry, resume=True, announce=told.append)
    assert journal.read_bytes() == whole
    assert whole.count(b'"event":"preflight"') == 1
    assert len(told) == (1 if lines < 3 else 0)


def test_a_journal_with_other_experts_before_its_run_is_refused(tmp_path):
    world = make_world(tmp_path, evolution={"evaluations": 2, "bins": 4})
    execute(world.run, registry=world.registry)
    journal = tmp_path / "journal.jsonl"
    journal.write_text(journal.read_text().replace('"matrices":3', '"matrices":2'))
    with pytest.raises(JournalError, match="belongs to another run") as caught:
        execute(world.run, registry=world.registry, resume=True)
    assert caught.value.faults == ("matrices: the journal has 2, this run has 3",)


# ── on the command line ──────────────────────────────────────────────────────────────────────────────────────────────


def test_the_command_prints_one_short_table_on_stderr_before_a_run(world):
    world.configure(evolution={"evaluations": 2})
    done = world.minerua("evolve", str(world.run_file))
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert lines[0].split() == ["before", "the", "run", "s", "cosine", "norm", "ratio"]
    assert [line.split("  ")[0] for line in lines[1:4]] == ["e0 – e1", "e0 – e2", "e1 – e2"]
    assert lines[4] == "s: how alike two experts' singular values are, over 1 matrix; a hint, no proof."
    assert "before the run" not in done.stdout


def test_with_json_the_table_stands_in_the_json_alone(world):
    world.configure(evolution={"evaluations": 2})
    done = world.minerua("evolve", str(world.run_file), "--json")
    assert (done.returncode, done.stderr) == (0, "")
    before = json.loads(done.stdout)["preflight"]
    assert [p["experts"] for p in before["pairs"]] == [["e0", "e1"], ["e0", "e2"], ["e1", "e2"]]
    assert set(before) == {"matrices", "matrices_in_all", "norms", "pairs", "concerns"}


@pytest.mark.skipif(shutil.which("stty") is None, reason="needs a terminal, which only POSIX systems can play")
def test_in_a_terminal_the_table_stands_whole_above_the_progress_bar(world):
    world.configure(evolution={"evaluations": 2})
    ours, theirs = pty.openpty()
    try:
        done = subprocess.run(
            world.command("evolve", str(world.run_file)),
            env=world.environment(TERM="xterm", COLUMNS="120"),
            stdout=subprocess.DEVNULL,
            stderr=theirs,
            timeout=120,
            check=False,
        )
        os.close(theirs)
        shown = _everything(ours).decode()
    finally:
        os.close(ours)
    assert done.returncode == 0, shown
    lines = [line.strip() for line in shown.splitlines()]
    assert any(line.endswith("s  cosine  norm ratio") for line in lines)
    assert any(line.startswith("e1 – e2  ") for line in lines)
    assert "evolving" in shown


def _everything(terminal):
    """Reads what a terminal was sent, after the other side has been closed."""
    parts = []
    while True:
        try:
            part = os.read(terminal, 1 << 16)
        except OSError:  # Linux: nothing more will come
            part = b""
        if not part:
            return b"".join(parts)
        parts.append(part)
