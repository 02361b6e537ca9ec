"""What the chosen model does: asked of each task once, kept beside the report, and never the end of a run."""

import dataclasses
import json
import shutil
import struct
import time
import zlib

import pytest

from minerua.cli.evolving import report
from minerua.errors import JournalError
from minerua.evolution import read_journal
from minerua.report import render
from minerua.run import execute, exhibits, kept_exhibits
from minerua.values import Exhibit, ModelSpec

from .. import worlds
from ..worlds import Toys, evaluator, inputs, make_world, registry_of

PLUGIN = "plugin 'Toys' (given)"
HOSTILE = "</pre><script>alert(1)</script>"


def png(width=2, height=3, padding=0):
    """A black picture, with bytes of its own that mean nothing."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(height * (width + 1)))
    parts = [(b"IHDR", head), (b"teXt", b"x\0" + bytes(padding)), (b"IDAT", pixels), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, content) for kind, content in parts)


class Showing:
    """Tasks of which some show something; notes what they are asked."""

    def __init__(self, **shows):
        self.asked = []
        specs = [dataclasses.replace(evaluator(k), exhibit=self._noting(shows.get(f"toy_{k}"))) for k in range(3)]
        self.registry = registry_of(Toys(evaluators=specs))

    def _noting(self, show):
        def exhibit(model, ids):
            self.asked.append(list(ids))
            return show(model, ids)

        return show and exhibit


def answers(model, ids):
    rows = model(inputs(ids))[:, 0]
    return [Exhibit(id, f"answer {k}", f"{rows[k]:.4f}", png(padding=k)) for k, id in enumerate(ids)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run whose tasks show nothing."""
    folder = tmp_path_factory.mktemp("exhibits")
    world = make_world(folder, evolution={"variant": "paper", "evaluations": 6}, time_limit_seconds=1.5)
    execute(world.run, registry=world.registry)
    return folder


@pytest.fixture
def folder(finished, tmp_path):
    """A copy of it; whoever resumes it does what comes after the last score."""
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def resume(folder, **shows):
    showing = Showing(**shows)
    execute(folder / "run.yml", registry=showing.registry, resume=True)
    return showing


def page(folder):
    return (folder / "report.html").read_text("utf-8")


def task_of(folder, name="toy-0"):
    return next(task for task in kept_exhibits(folder).tasks if task.task == name)


# ── what is asked and kept ───────────────────────────────────────────────────────────────────────────────────────────


def test_the_first_six_test_items_of_each_task_that_shows_something_are_in_the_report(folder):
    before = page(folder)
    assert "What the chosen model does" not in before
    assert not (folder / "exhibits.json").exists()
    showing = resume(folder, toy_0=answers, toy_2=answers)
    items = next(event for event in read_journal(folder / "journal.jsonl") if event["event"] == "items")["items"]
    assert showing.asked == [items["toy-0"]["test"][:6], items["toy-2"]["test"][:6]]
    kept = kept_exhibits(folder)
    assert [task.task for task in kept.tasks] == ["toy-0", "toy-2"]
    assert [one.item for one in task_of(folder).exhibits] == showing.asked[0]
    assert page(folder).count("data:image/png;base64,") == 12
    assert all(f">answer {k}<" in page(folder) for k in range(6))
    assert f"<small>{PLUGIN.replace(chr(39), '&#x27;')}</small>" in page(folder)


def test_a_fresh_run_shows_what_a_resumed_one_shows_to_the_byte(folder, tmp_path):
    resume(folder, toy_1=answers)
    (tmp_path / "fresh").mkdir()
    world = make_world(tmp_path / "fresh", evolution={"variant": "paper", "evaluations": 6}, time_limit_seconds=1.5)
    execute(world.run, registry=Showing(toy_1=answers).registry)
    for name in ("exhibits.json", "report.html", "journal.jsonl"):
        assert (tmp_path / "fresh" / name).read_bytes() == (folder / name).read_bytes()


def test_what_is_kept_is_not_asked_for_again_and_a_report_is_made_of_files_alone(folder, monkeypatch, capsys):
    resume(folder, toy_0=answers)
    whole = {name: (folder / name).read_bytes() for name in ("exhibits.json", "report.html")}
    (folder / "report.html").unlink()
    monkeypatch.setattr(worlds, "build", raises)  # whoever builds a model now is told
    assert resume(folder, toy_0=answers).asked == []
    assert {name: (folder / name).read_bytes() for name in whole} == whole
    (folder / "report.html").unlink()
    report(folder, as_json=True)  # the command
    assert json.loads(capsys.readouterr().out)["tasks"] == ["toy-0", "toy-1", "toy-2"]
    assert {name: (folder / name).read_bytes() for name in whole} == whole


def test_what_is_missing_damaged_of_another_model_or_of_other_plugins_is_asked_for_again(folder):
    resume(folder, toy_0=answers)
    whole = (folder / "exhibits.json").read_bytes()
    kept = json.loads(whole)
    task = {**kept["tasks"][0], "plugin": "plugin 'Toys' (given 0.9)"}
    for other in ({**kept, "best": "0" * 32}, {**kept, "tasks": [task]}, {**kept, "format": 2}, [], None):
        (folder / "exhibits.json").write_text("{" if other is None else json.dumps(other))
        assert len(resume(folder, toy_0=answers).asked) == 1
        assert (folder / "exhibits.json").read_bytes() == whole


def test_exhibits_of_another_model_are_no_part_of_a_report(folder):
    resume(folder, toy_0=answers)
    other = dataclasses.replace(kept_exhibits(folder), best="0" * 32)
    events = read_journal(folder / "journal.jsonl")
    assert "What the chosen model does" not in render(events, other)
    assert "What the chosen model does" not in render(events[:-1], kept_exhibits(folder))


def test_a_file_that_cannot_be_read_is_named_with_what_to_do(folder):
    (folder / "exhibits.json").write_text('{"format": 1, "best": 3, "tasks": []}')
    with pytest.raises(JournalError, match=r"exhibits.json cannot be read: .*3 stands where a text belongs") as caught:
        kept_exhibits(folder)
    assert str(caught.value).endswith("; delete it and resume the run, which then writes it anew")
    assert kept_exhibits(folder / "nowhere") is None


def test_a_model_over_a_shared_base_is_shown_in_place(tmp_path):
    made = []

    def opened(base):
        def children(changes):
            made.append(len(changes))
            rows = [{n: base[n] if n not in one else _added(base[n], one[n]) for n in base} for one in changes]
            return [worlds.build(tensors) for tensors in rows]

        return children

    specs = [dataclasses.replace(evaluator(k), exhibit=answers) for k in range(3)]
    toys = Toys(evaluators=specs, models=[ModelSpec("resident", open=opened)])
    evolution = {"variant": "paper", "evaluations": 6}
    built = make_world(tmp_path, toys=toys, evolution=evolution, model="resident")
    execute(built.run, registry=built.registry)
    assert made[-1] == 1
    assert [len(task.exhibits) for task in kept_exhibits(tmp_path).tasks] == [6, 6, 6]
    made.clear()
    execute(built.run, registry=built.registry, resume=True)
    assert made == []


def _added(base, change):
    total = change.core if change.left is None else change.left @ change.core
    return base + (total if change.right is None else total @ change.right.T)


# ── what goes wrong ──────────────────────────────────────────────────────────────────────────────────────────────────


def ends(*_):
    raise SystemExit(3)


def hangs(*_):
    while True:
        time.sleep(0.01)


def raises(*_):
    raise KeyError("no such key")


@pytest.mark.parametrize(
    ("show", "reason"),
    [
        (raises, "KeyError: 'no such key'"),
        (ends, "SystemExit: 3"),
        (hangs, "no end within time_limit_seconds, 1.5 s"),
        (lambda m, ids: None, "what it returned cannot be shown: exhibit returned a NoneType; return a list"),
        (lambda m, ids: [3], "exhibit returned an int among its things; each is an Exhibit"),
        (lambda m, ids: [Exhibit("other", text="x")], "exhibit shows item 'other', which it was not asked for"),
        (lambda m, ids: [Exhibit(ids[0], text="x")] * 2, "more than once; one Exhibit is enough"),
        (lambda m, ids: [Exhibit(ids[0], png=b"\xff\xd8\xff\xe0")], "the bytes of a PNG file are needed"),
        (lambda m, ids: [Exhibit(ids[0], HOSTILE, png=HOSTILE)], "expected bytes"),
    ],
)
def test_a_task_that_cannot_show_anything_is_told_with_its_plugin_and_the_run_goes_on(folder, show, reason):
    with pytest.warns(RuntimeWarning, match=r"task 'toy-0': plugin 'Toys' \(given\) could not show what the chosen"):
        resume(folder, toy_0=show, toy_1=answers)
    (note,) = task_of(folder).notes
    assert note.startswith(f"{PLUGIN} could not show what the chosen model does: ")
    assert reason in note
    assert len(task_of(folder, "toy-1").exhibits) == 6
    assert "could not show what the chosen model does" in page(folder)
    assert "<script>alert" not in page(folder)
    assert len(resume(folder, toy_0=answers, toy_1=answers).asked) == 2  # what failed is tried again
    assert not task_of(folder).failed


def test_a_model_that_cannot_be_made_again_is_told_with_its_plugin(folder, monkeypatch):
    def broken(tensors):
        raise MemoryError("there is no room")

    monkeypatch.setattr(worlds, "build", broken)
    with pytest.warns(RuntimeWarning, match="could not make a callable of the chosen model: MemoryError: there is no"):
        showing = resume(folder, toy_0=answers)
    assert showing.asked == []
    assert f"{PLUGIN} could not make a callable" in task_of(folder).notes[0]


def test_hostile_texts_stand_in_the_report_as_they_are_and_half_letters_do_not_stop_it(folder):
    def show(model, ids):
        return [Exhibit(ids[0], HOSTILE, f"{HOSTILE}\ud800")]

    resume(folder, toy_0=show)
    assert task_of(folder).exhibits[0].text == f"{HOSTILE}?"
    assert "<script>alert" not in page(folder)
    assert page(folder).count("&lt;/pre&gt;&lt;script&gt;alert(1)&lt;/script&gt;") >= 2


# ── bounds ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_pictures_that_are_too_large_are_left_out_with_a_sentence_and_their_texts_stay(folder):
    def show(model, ids):
        huge = png()[:16] + struct.pack(">II", 60_000, 60_000) + png()[24:]
        return [
            Exhibit(ids[0], png=png(padding=exhibits.MOST_PNG_BYTES)),
            Exhibit(ids[1], text="a", png=huge),
            Exhibit(ids[2], png=png(0, 5)),
            Exhibit(ids[3], png=png()),
        ]

    (ids,) = resume(folder, toy_0=show).asked
    shown = task_of(folder)
    assert [(one.item, one.png is None) for one in shown.exhibits] == [(ids[1], True), (ids[3], False)]
    first, second, third = shown.notes
    assert first == f"The picture of item {ids[0]} is left out: it has 512.1 KiB, and 512 KiB are the most."
    assert second.endswith("is left out: it is 60000 × 60000 pixels large, and 4,194,304 pixels are the most.")
    assert third.endswith("is left out: it is 0 × 5 pixels large, and 4,194,304 pixels are the most.")
    assert first in page(folder)


def test_a_report_has_a_bound_in_all_and_says_what_is_beyond_it(folder, monkeypatch):
    monkeypatch.setattr(exhibits, "MOST_BYTES", 4 * len(png(padding=1000)) + 100)

    def show(model, ids):
        return [Exhibit(id, png=png(padding=1000)) for id in ids]

    asked = resume(folder, toy_0=lambda m, ids: show(m, ids[:3]), toy_1=show).asked
    assert len(task_of(folder).exhibits) == 3
    assert task_of(folder).notes == ()
    assert [one.item for one in task_of(folder, "toy-1").exhibits] == asked[1][:1]
    notes = task_of(folder, "toy-1").notes
    assert [note.split()[1] for note in notes] == asked[1][1:]
    assert notes[0].endswith("is left out: a report shows 4.324 KiB at most.")


def test_long_texts_and_titles_are_cut_and_items_without_an_exhibit_are_passed_over(folder):
    def show(model, ids):
        return [Exhibit(ids[4], "t" * 300, "x" * 40_000), Exhibit(ids[1], text="")]

    (ids,) = resume(folder, toy_0=show).asked
    empty, long = task_of(folder).exhibits
    assert (empty.item, long.item) == (ids[1], ids[4])
    assert long.text.endswith(f"x … {40_000 - exhibits.MOST_LETTERS:,} more letters")
    assert long.title.endswith("t … 100 more letters")
