"""What a run writes down for later: tables that any program reads, and TensorBoard's events.

The tables hold no clock, so that a run which was killed and went on leaves the bytes of one that was not. Every row is
with the system before the next step begins: `kill -9` loses none that a checkpoint counts on. TensorBoard stamps its
events with the time; they are for looking at, not for comparing.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any, Final

from minerua.errors import LearningError, StorageError
from minerua.learning.reports import EvaluationReport, Learned, Observer, StartReport, StepReport
from minerua.weights import write_bytes

STEPS: Final = "steps.csv"
EVALUATIONS: Final = "evaluations.csv"
TENSORBOARD: Final = "tensorboard"
"""What logs are called in a run's folder."""

STEP_COLUMNS: Final = ("step", "epoch", "examples", "loss", "rate", "gradient_norm", "skipped")
"""The columns of `steps.csv`; `skipped` says why, and is empty where the weights changed."""

EVALUATION_COLUMNS: Final = ("step", "epoch", "split", "examples", "rate", "best", "training_loss")
"""The first columns of `evaluations.csv`; the metrics follow, one each."""

EVERY: Final = 10
"""Every how many steps a loss is read and logged."""


def is_logged(report: StepReport, every: int) -> bool:
    """Returns whether a step is written down: the first, every so many, and each that the guard did not let through.

    Example:
        >>> step = StepReport(step=7, epoch=0, examples=32, loss=0.5, rate=0.1)
        >>> is_logged(step, 10), is_logged(step, 7)
        (False, True)
    """
    return report.step % every == 0 or report.step == 1 or report.skipped


# ── tables ───────────────────────────────────────────────────────────────────────────────────────────────────────────


class CsvLog(Observer):
    """Writes `steps.csv` and `evaluations.csv` into the run's folder.

    Numbers are written so that they are read back exactly. When a run goes on, what is beyond its step is cut off
    first. One observer serves several runs, one after the other.

    Args:
        every: Every how many steps a row is written; the loss of the others is never read.

    Raises:
        LearningError: If `every` is less than 1.

    Example:
        >>> CsvLog(every=50).every
        50
    """

    def __init__(self, *, every: int = EVERY) -> None:
        self.every = _checked(every)
        self._steps: _Table | None = None
        self._evaluations: _Table | None = None
        self._metrics: tuple[str, ...] = ()

    def started(self, report: StartReport) -> None:
        """Opens the tables as they were after the run's step.

        Raises:
            LearningError: If `steps.csv` is no such table.
            StorageError: If a table cannot be written.
        """
        self._close()
        self._metrics = tuple(report.history[0].metrics) if report.history else ()
        head = _line(STEP_COLUMNS)
        self._steps = _Table(report.out / STEPS, _kept(report.out / STEPS, head, report.step))
        rows = [self._head(), *map(self._row, report.history)] if report.history else []
        self._evaluations = _Table(report.out / EVALUATIONS, b"".join(rows))

    def step_finished(self, report: StepReport) -> None:
        """Writes a row, if it is time.

        Raises:
            StorageError: If it cannot be written.
        """
        if self._steps is not None and is_logged(report, self.every):
            norm = "" if report.gradient_norm is None else float(report.gradient_norm)
            row = (report.step, report.epoch, report.examples, float(report.loss), report.rate, norm, report.why)
            self._steps.add(_line(row))

    def evaluated(self, report: EvaluationReport) -> None:
        """Writes a row.

        Raises:
            StorageError: If it cannot be written.
        """
        if self._evaluations is not None:
            is_first = not self._metrics
            self._metrics = self._metrics or tuple(report.metrics)
            self._evaluations.add((self._head() if is_first else b"") + self._row(report))

    def saved(self, path: Path) -> None:
        """Brings the tables to the disk, so that they survive what the checkpoint survives.

        Raises:
            StorageError: If the disk refuses.
        """
        for table in self._tables():
            table.sync()

    def finished(self, learned: Learned) -> None:
        """Closes the tables."""
        self._close()

    def stopped(self, error: BaseException) -> None:
        """Closes the tables."""
        self._close()

    def _tables(self) -> list[_Table]:
        return [table for table in (self._steps, self._evaluations) if table is not None]

    def _close(self) -> None:
        for table in self._tables():
            table.close()
        self._steps = self._evaluations = None

    def _head(self) -> bytes:
        return _line([*EVALUATION_COLUMNS, *self._metrics])

    def _row(self, report: EvaluationReport) -> bytes:
        place = (report.step, report.epoch, report.split, report.examples, report.rate, int(report.is_best))
        return _line([*place, report.training_loss, *(report.metrics.get(name, "") for name in self._metrics)])


class _Table:
    """A file of rows that is written anew from what is kept, and then appended to."""

    def __init__(self, path: Path, kept: bytes) -> None:
        self.path = path
        write_bytes(path, kept)
        try:
            self._stream: IO[bytes] = path.open("ab")
        except OSError as error:
            raise self._refused(error) from error

    def add(self, rows: bytes) -> None:
        """Hands rows to the system, which keeps them whatever becomes of this process."""
        try:
            self._stream.write(rows)
            self._stream.flush()
        except OSError as error:
            raise self._refused(error) from error

    def sync(self) -> None:
        """Waits until the disk has them."""
        try:
            os.fsync(self._stream.fileno())
        except OSError as error:
            raise self._refused(error) from error

    def close(self) -> None:
        """Closes the file; every row was handed over before."""
        try:
            self._stream.close()
        except OSError as error:
            raise self._refused(error) from error

    def _refused(self, error: OSError) -> StorageError:
        return StorageError(
            f"the log {self.path} cannot be written: {error.strerror or error}; make room on that disk, then "
            "--resume goes on from the last checkpoint"
        )


def _checked(every: int) -> int:
    if every < 1:
        raise LearningError(f"a log was asked for every {every} steps; give a whole number from 1 on")
    return every


def _line(values: Iterable[object]) -> bytes:
    """A row of a table; a text with a line break would be two."""
    text = io.StringIO()
    flat = [" ".join(value.split()) if isinstance(value, str) else value for value in values]
    csv.writer(text, lineterminator="\n").writerow(flat)
    return text.getvalue().encode()


def _kept(path: Path, head: bytes, step: int) -> bytes:
    """Returns what a table holds up to a step, its head included; a torn end is not kept."""
    if step == 0 or not path.exists():
        return head
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except OSError as error:
        raise StorageError(
            f"the log {path} cannot be read: {error.strerror or error}; move it away to begin one"
        ) from error
    if not lines or not lines[0].endswith(b"\n"):
        return head
    if lines[0] != head:
        found, wanted = lines[0].decode(errors="replace").strip(), head.decode().strip()
        raise LearningError(f"{path} begins with {found!r} where {wanted!r} was expected; move it away to begin a log")
    return b"".join([head, *_rows_up_to(lines[1:], step)])


def _rows_up_to(lines: Sequence[bytes], step: int) -> Iterable[bytes]:
    for line in lines:
        number = line.split(b",", 1)[0]
        if not line.endswith(b"\n") or not number.isdigit() or int(number) > step:
            return
        yield line


# ── TensorBoard ──────────────────────────────────────────────────────────────────────────────────────────────────────


class TensorBoardLog(Observer):
    """Writes events for TensorBoard into the folder `tensorboard` of the run.

    When a run goes on, TensorBoard is told to forget what is beyond its step.

    Args:
        every: Every how many steps the loss is read and logged.

    Raises:
        LearningError: If tensorboard is not installed, or `every` is less than 1.
    """

    def __init__(self, *, every: int = EVERY) -> None:
        self.every = _checked(every)
        self._writer_class = _writer_class()
        self._writer: Any = None

    def started(self, report: StartReport) -> None:
        """Begins a file of events.

        Raises:
            StorageError: If it cannot be written.
        """
        self._close()
        purged = report.step + 1 if report.step else None
        try:
            self._writer = self._writer_class(log_dir=str(report.out / TENSORBOARD), purge_step=purged)
        except OSError as error:
            raise StorageError(
                f"events for TensorBoard cannot be written to {report.out / TENSORBOARD}: {error.strerror or error}"
            ) from error

    def step_finished(self, report: StepReport) -> None:
        """Logs loss, rate and the gradient's norm, if it is time."""
        if self._writer is None or not is_logged(report, self.every):
            return
        self._writer.add_scalar("train/loss", float(report.loss), report.step)
        self._writer.add_scalar("train/rate", report.rate, report.step)
        if report.gradient_norm is not None:
            self._writer.add_scalar("train/gradient norm", float(report.gradient_norm), report.step)
        if report.skipped:
            self._writer.add_text("train/skipped", report.why, report.step)

    def evaluated(self, report: EvaluationReport) -> None:
        """Logs the metrics of a split."""
        if self._writer is not None:
            for name, value in report.metrics.items():
                tag = f"{report.split}/{name}" if report.split != "train" else f"train/mean {name}"
                self._writer.add_scalar(tag, value, report.step)

    def saved(self, path: Path) -> None:
        """Hands the events to the system."""
        if self._writer is not None:
            self._writer.flush()

    def finished(self, learned: Learned) -> None:
        """Logs what the final model reached on the test split, and closes the file."""
        if self._writer is not None:
            for name, value in learned.test_metrics.items():
                self._writer.add_scalar(f"test/{name}", value, learned.step)
        self._close()

    def stopped(self, error: BaseException) -> None:
        """Closes the file."""
        self._close()

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _writer_class() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise LearningError(
            f"TensorBoard logs were asked for, and tensorboard cannot be imported ({error}); install it with "
            "`pip install tensorboard`, or do without: steps.csv and evaluations.csv are written anyway"
        ) from error
    return SummaryWriter
