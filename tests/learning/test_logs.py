"""Logs of a run: tables without a clock that are the same whether a run was killed or not, and TensorBoard's events."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from minerua.errors import LearningError, StorageError
from minerua.learning.logs import EVALUATIONS, STEPS, TENSORBOARD, CsvLog, TensorBoardLog, is_logged
from minerua.learning.reports import EvaluationReport, Learned, StartReport, StepReport
from minerua.report import read_training_log

from .worlds import Diary, pipeline


def start(out: Path, **more: object) -> StartReport:
    plain = StartReport(
        name="",
        out=out,
        step=0,
        steps=100,
        epoch=0,
        epochs=10,
        steps_per_epoch=10,
        examples=320,
        parameters=5,
        device="cpu",
        processes=1,
    )
    return replace(plain, **more)


def step(number: int, **more: object) -> StepReport:
    return StepReport(number, (number - 1) // 10, 32, 1 / number, 0.1)._replace(**more)


def evaluation(number: int, **more: object) -> EvaluationReport:
    metrics = {"loss": 1 / 3 + number, "accuracy": 0.1}
    return replace(
        EvaluationReport(number, number // 10, "validation", metrics["loss"], metrics, 0.7, 0.1, 24, True), **more
    )


def learned(out: Path, **more: object) -> Learned:
    return replace(Learned("", out, out / "model.safetensors", 100, 10, 40, {}, {}, (), "done"), **more)


@pytest.fixture
def csv_log() -> Iterator[Callable[..., CsvLog]]:
    """Makes logs that are closed when the test is over."""
    made: list[CsvLog] = []

    def make(every: int) -> CsvLog:
        made.append(CsvLog(every=every))
        return made[-1]

    yield make
    for log in made:
        log.stopped(KeyboardInterrupt())


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def logs(out: Path) -> tuple[bytes, bytes]:
    return (out / STEPS).read_bytes(), (out / EVALUATIONS).read_bytes()


def play(log: CsvLog, first: int, last: int) -> None:
    """Steps with an evaluation after every tenth, as a trainer tells them."""
    for number in range(first, last + 1):
        log.step_finished(step(number))
        if number % 10 == 0:
            log.evaluated(evaluation(number))


# ── tables ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_first_step_every_tenth_and_every_skipped_one_are_logged(tmp_path, csv_log):
    log = csv_log(10)
    log.started(start(tmp_path))
    for number in range(1, 31):
        log.step_finished(step(number, skipped=number == 17, why="the loss is nan" if number == 17 else ""))
    found = rows(tmp_path / STEPS)
    assert [row["step"] for row in found] == ["1", "10", "17", "20", "30"]
    assert [row["skipped"] for row in found] == ["", "", "the loss is nan", "", ""]


def test_a_loss_that_is_not_logged_is_never_read(tmp_path, csv_log):
    class Unread:
        def __float__(self) -> float:
            raise RuntimeError("the device had to be waited for")

    log = csv_log(10)
    log.started(start(tmp_path))
    log.step_finished(step(7, loss=Unread(), gradient_norm=Unread()))
    with pytest.raises(RuntimeError, match="waited for"):
        log.step_finished(step(10, loss=Unread()))
    log.stopped(RuntimeError())


def test_numbers_are_read_back_exactly(tmp_path, csv_log):
    log = csv_log(1)
    log.started(start(tmp_path))
    loss, norm = torch.tensor(1 / 3), torch.tensor(2 / 3, dtype=torch.float64)
    log.step_finished(step(1, loss=loss, gradient_norm=norm, rate=1e-7 / 3))
    log.evaluated(evaluation(1, training_loss=float("nan")))
    row, measured = rows(tmp_path / STEPS)[0], rows(tmp_path / EVALUATIONS)[0]
    assert (float(row["loss"]), float(row["gradient_norm"]), float(row["rate"])) == (loss.item(), norm.item(), 1e-7 / 3)
    assert float(measured["loss"]) == 1 / 3 + 1
    assert measured["training_loss"] == "nan"
    assert measured["best"] == "1"


def test_every_row_is_with_the_system_before_the_next_step(tmp_path, csv_log):
    log = csv_log(1)
    log.started(start(tmp_path))
    for number in range(1, 6):
        log.step_finished(step(number))
        assert len(rows(tmp_path / STEPS)) == number
    log.evaluated(evaluation(5))
    assert len(rows(tmp_path / EVALUATIONS)) == 1


@pytest.mark.parametrize("kept", [0, 1, 9, 10, 25, 30, 37])
def test_the_tables_of_a_run_that_went_on_are_those_of_one_that_was_not_interrupted(tmp_path, kept, csv_log):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        folder.mkdir()
    log = csv_log(4)
    log.started(start(whole))
    play(log, 1, 60)
    log.finished(learned(whole))

    killed = csv_log(4)
    killed.started(start(cut))
    play(killed, 1, 37)
    history = tuple(evaluation(number) for number in range(10, kept + 1, 10))
    again = csv_log(4)
    again.started(start(cut, step=kept, history=history))
    play(again, kept + 1, 60)
    again.saved(cut)
    again.finished(learned(cut))
    assert logs(cut) == logs(whole)


@pytest.mark.parametrize("torn", [b"12,1,32,0.0", b"\0\0\0\0\0\0", b"12,1,32,0.5,0.1,,"])
def test_a_torn_end_is_cut_off(tmp_path, torn, csv_log):
    log = csv_log(5)
    log.started(start(tmp_path))
    play(log, 1, 10)
    log.stopped(KeyboardInterrupt())
    before = (tmp_path / STEPS).read_bytes()
    with (tmp_path / STEPS).open("ab") as stream:
        stream.write(torn)
    log.started(start(tmp_path, step=14, history=(evaluation(10),)))
    assert (tmp_path / STEPS).read_bytes() == before
    log.stopped(KeyboardInterrupt())


def test_tables_that_were_removed_begin_anew_and_evaluations_are_all_there(tmp_path, csv_log):
    log = csv_log(5)
    log.started(start(tmp_path, step=20, history=(evaluation(10), evaluation(20))))
    play(log, 21, 30)
    assert [row["step"] for row in rows(tmp_path / STEPS)] == ["25", "30"]
    assert [row["step"] for row in rows(tmp_path / EVALUATIONS)] == ["10", "20", "30"]


def test_a_new_run_begins_new_tables(tmp_path, csv_log):
    (tmp_path / STEPS).write_text("anything\n1\n")
    log = csv_log(5)
    log.started(start(tmp_path))
    assert rows(tmp_path / STEPS) == []
    assert (tmp_path / EVALUATIONS).read_bytes() == b""


def test_one_log_serves_several_runs(tmp_path, csv_log):
    log = csv_log(5)
    for name, metrics in (("a", {"loss": 1.0}), ("b", {"loss": 1.0, "accuracy": 0.5})):
        (tmp_path / name).mkdir()
        log.started(start(tmp_path / name))
        play(log, 1, 5)
        log.evaluated(evaluation(5, metrics=metrics))
        log.finished(learned(tmp_path / name))
        assert rows(tmp_path / name / EVALUATIONS)[0].keys() >= metrics.keys()
    assert logs(tmp_path / "a")[0] == logs(tmp_path / "b")[0]
    assert "accuracy" not in rows(tmp_path / "a" / EVALUATIONS)[0]


def test_a_file_that_is_no_such_table_is_refused_and_left_alone(tmp_path):
    (tmp_path / STEPS).write_text("my,own,notes\n1,2,3\n")
    with pytest.raises(
        LearningError, match=r"begins with 'my,own,notes' where 'step,epoch.* was expected; move it away"
    ):
        CsvLog().started(start(tmp_path, step=5))
    assert (tmp_path / STEPS).read_text() == "my,own,notes\n1,2,3\n"


def test_a_table_that_cannot_be_read_or_written_says_so(tmp_path, monkeypatch, csv_log):
    (tmp_path / STEPS).mkdir()
    with pytest.raises(StorageError, match="cannot be read: Is a directory; move it away to begin one"):
        CsvLog().started(start(tmp_path, step=5))
    (tmp_path / STEPS).rmdir()
    log = csv_log(1)
    log.started(start(tmp_path))
    for table in log._tables():
        table.close()
        monkeypatch.setattr(table, "_stream", Full())
    for refused in (
        lambda: log.step_finished(step(1)),
        lambda: log.saved(tmp_path),
        lambda: log.evaluated(evaluation(1)),
    ):
        with pytest.raises(StorageError, match="cannot be written: No space left on device; make room on that disk"):
            refused()


class Full(io.BytesIO):
    """A file on a disk without space."""

    def flush(self) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fileno(self) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def close(self) -> None:
        """Nothing is left to be written."""


@pytest.mark.parametrize("log", [CsvLog, TensorBoardLog])
def test_a_log_for_no_step_is_refused(log):
    with pytest.raises(LearningError, match="asked for every 0 steps; give a whole number from 1 on"):
        log(every=0)


def test_a_step_is_logged_by_its_number_alone():
    assert [number for number in range(1, 12) if is_logged(step(number), 5)] == [1, 5, 10]


# ── with a trainer ───────────────────────────────────────────────────────────────────────────────────────────────────


class Stop(Diary):
    """Ends a run by an exception after one of its steps."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def step_finished(self, report: StepReport) -> None:
        if report.step == self.number:
            raise KeyboardInterrupt


CHANGES = {"save_every_steps": 3, "evaluate_every_steps": 4, "clip_norm": 0.5}


@pytest.mark.parametrize("number", [2, 8, 13])
def test_an_interrupted_training_leaves_the_same_tables(tmp_path, number):
    pipeline(CHANGES, observers=[CsvLog(every=2)]).run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        pipeline(CHANGES, observers=[CsvLog(every=2), Stop(number)]).run(tmp_path / "cut")
    pipeline(CHANGES, observers=[CsvLog(every=2)]).run(tmp_path / "cut", resume=True)
    assert logs(tmp_path / "cut") == logs(tmp_path / "whole")


def test_the_report_reads_what_a_training_wrote(tmp_path):
    diary = Diary()
    pipeline(CHANGES, observers=[CsvLog(every=2), diary]).run(tmp_path / "out")
    steps, evaluations = (table.decode() for table in logs(tmp_path / "out"))
    found = read_training_log(steps, evaluations)
    assert found.steps == tuple(
        (one.step, float(one.loss), one.rate, "") for one in diary.steps if one.step % 2 == 0 or one.step == 1
    )
    assert [dict(one)["accuracy"] for one in found.evaluations] == [
        one.metrics["accuracy"] for one in diary.evaluations
    ]
    kept = json.loads((tmp_path / "out" / "learned.json").read_text())
    assert found.best is not None
    assert found.best["step"] == kept["best_step"]


# ── TensorBoard ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_without_tensorboard_a_message_says_what_to_do(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(
        LearningError, match=r"TensorBoard logs were asked for, and tensorboard cannot be imported .*pip"
    ):
        TensorBoardLog()


def events(folder: Path) -> dict[str, dict[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder))
    found.Reload()
    return {tag: {one.step: one.value for one in found.Scalars(tag)} for tag in found.Tags()["scalars"]}


@pytest.mark.filterwarnings("ignore")  # of tensorboard's own imports
def test_tensorboard_shows_steps_evaluations_and_the_test_of_a_run_that_went_on(tmp_path):
    log = TensorBoardLog(every=10)
    log.started(start(tmp_path))
    for number in range(1, 31):
        log.step_finished(step(number, gradient_norm=2.0, skipped=number == 5, why="nan" * (number == 5)))
    log.evaluated(evaluation(30))
    log.stopped(KeyboardInterrupt())
    log.started(start(tmp_path, step=20))
    for number in range(21, 41):
        log.step_finished(step(number, loss=9.0))
    log.evaluated(evaluation(40))
    log.evaluated(evaluation(40, split="train", metrics={"loss": 0.5}))
    log.saved(tmp_path)
    log.finished(learned(tmp_path, test_metrics={"accuracy": 0.75}))
    found = events(tmp_path / TENSORBOARD)
    assert list(found["train/loss"]) == [1, 5, 10, 20, 30, 40]
    assert found["train/loss"][30] == 9.0
    assert found["train/rate"][10] == pytest.approx(0.1)
    assert found["train/gradient norm"] == {1: 2.0, 5: 2.0, 10: 2.0, 20: 2.0}
    assert found["validation/accuracy"] == {40: pytest.approx(0.1)}
    assert found["train/mean loss"] == {40: 0.5}
    assert found["test/accuracy"] == {100: 0.75}


@pytest.mark.filterwarnings("ignore")  # of tensorboard's own imports
def test_events_that_cannot_be_written_are_an_error_of_the_disk(tmp_path):
    (tmp_path / TENSORBOARD).write_text("a file")
    with pytest.raises(StorageError, match="events for TensorBoard cannot be written to"):
        TensorBoardLog().started(start(tmp_path))
