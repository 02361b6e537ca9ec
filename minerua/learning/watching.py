"""What a person sees of a run: a bar while it goes on, a table when it is over."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TextIO

from minerua.learning.reports import EvaluationReport, Learned, Observer, StartReport, StepReport

if TYPE_CHECKING:
    from rich.console import Console

PAUSE_SECONDS: Final = 0.1
"""How long a bar stays as it is, at least."""

LARGEST_SHARE: Final = 0.01
"""The share of a run's time that may go into drawing: on a slow terminal the bar moves less often."""

_WINDOW = 50  # drawings over which the throughput is measured


class Notes(Observer):
    """Prints what there is to say before a run, such as a damaged checkpoint that was passed over.

    Args:
        stream: Where; by default stderr as it is at that moment.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream

    def started(self, report: StartReport) -> None:
        """Prints one line per note, with the expert's name where there are several."""
        whose = f" ({report.name})" if report.name else ""
        for note in report.notes:
            print(f"note{whose}: {note}", file=self._stream or sys.stderr)


class ProgressBar(Observer):
    """Shows epoch, steps, loss, rate, examples per second and the time left.

    Without a terminal it does nothing. There is no thread behind it, which workers that are forked would miss: it is
    drawn between steps. A loss is only read when it is shown.

    Args:
        console: Where it is drawn; by default stderr, if that is a terminal when a run starts.
        clock: Tells seconds.
    """

    def __init__(self, console: Console | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._clock = console, clock
        self._bar: Any = None
        self._task: Any = None
        self._start: StartReport | None = None
        self._next = 0.0
        self._examples = 0
        self._seen: deque[tuple[float, int]] = deque(maxlen=_WINDOW)
        self._measured = ""

    def started(self, report: StartReport) -> None:
        """Draws the bar."""
        self._close()
        console = self._console or _terminal()
        if console is None:
            return
        self._start, self._examples, self._measured = report, 0, ""
        self._bar = _bar(console)
        fields = {"name": report.name or "learning", "epoch": _epoch(report.epoch, report), "shown": "", "speed": ""}
        self._task = self._bar.add_task("", total=report.steps, completed=report.step, **fields)
        self._bar.start()
        self._rest(self._clock())

    def step_finished(self, report: StepReport) -> None:
        """Counts the step; draws, if it is time."""
        if self._bar is None:
            return
        self._examples += report.examples
        if report.skipped:
            self._bar.console.print(f"step {report.step:,} was left out: {report.why}", markup=False, highlight=False)
        now = self._clock()
        if now >= self._next:
            self._draw(report, now)

    def evaluated(self, report: EvaluationReport) -> None:
        """Shows the loss of the split from now on."""
        self._measured = f" ({report.split} {report.loss:.4g})"

    def finished(self, learned: Learned) -> None:
        """Draws the end."""
        if self._bar is not None:
            self._bar.update(self._task, completed=learned.step)
        self._close()

    def stopped(self, error: BaseException) -> None:
        """Leaves the bar as it is."""
        self._close()

    def _draw(self, report: StepReport, now: float) -> None:
        self._seen.append((now, self._examples))
        self._bar.update(
            self._task,
            completed=report.step,
            epoch=_epoch(report.epoch, self._start),
            shown=f"loss {float(report.loss):.4g}{self._measured}, rate {report.rate:.3g}",
            speed=self._speed(),
        )
        self._bar.refresh()
        self._rest(now)

    def _rest(self, before: float) -> None:
        now = self._clock()
        self._next = now + max(PAUSE_SECONDS, (now - before) / LARGEST_SHARE)

    def _speed(self) -> str:
        (first, before), (last, after) = self._seen[0], self._seen[-1]
        return f"{(after - before) / (last - first):,.0f}/s" if last > first else ""

    def _close(self) -> None:
        bar, self._bar = self._bar, None
        if bar is not None:
            bar.stop()
        self._seen.clear()


def _terminal() -> Console | None:
    if not sys.stderr.isatty():
        return None
    from rich.console import Console

    return Console(stderr=True)


def _bar(console: Console) -> Any:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.fields[name]}", markup=False),
        TextColumn("{task.fields[epoch]}", markup=False),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[shown]}", markup=False),
        TextColumn("{task.fields[speed]}", markup=False),
        TimeRemainingColumn(compact=True),
    )
    return Progress(*columns, console=console, auto_refresh=False, expand=True)


def _epoch(epoch: int, start: StartReport | None) -> str:
    return f"epoch {epoch + 1}/{start.epochs}" if start is not None and start.epochs > epoch else ""


# ── the table at the end ─────────────────────────────────────────────────────────────────────────────────────────────


def outcome_text(runs: Sequence[Learned]) -> str:
    """Returns what was learned as plain aligned text: metrics of every split, best, last and final, and where it lies.

    Args:
        runs: One or several.

    Example:
        >>> from pathlib import Path
        >>> at = EvaluationReport(1, 1, "validation", 0.5, {"loss": 0.5}, 0.7)
        >>> one = Learned("", Path("out"), Path("out/model.safetensors"), 1, 1, 1, {"loss": 0.5}, {}, (at,), "done")
        >>> print(outcome_text([one]), end="")
                         best, step 1  last, step 1
        train loss             0.7000        0.7000
        validation loss        0.5000        0.5000
        done after 1 step
          out/model.safetensors  the final model
    """
    return "\n".join(map(_outcome, runs))


def _outcome(run: Learned) -> str:
    parts = [f"{run.name}\n"] if run.name else []
    if run.history or run.test_metrics:
        parts.append(_aligned(*_columns(run)))
    parts.append(_ending(run))
    parts += _places(run)
    return "".join(parts)


def _ending(run: Learned) -> str:
    skipped = f"; the guard left out {_counted(run.skipped_steps)}" if run.skipped_steps else ""
    done = " (was finished already)" if run.already_done else ""
    return f"{run.stopped} after {_counted(run.step)}{skipped}{done}\n"


def _counted(steps: int) -> str:
    return f"{steps:,} step{'' if steps == 1 else 's'}"


def _columns(run: Learned) -> tuple[list[str], list[list[str]]]:
    """The head and the rows of a run's table."""
    best = next((one for one in run.history if one.step == run.best_step), None)
    shown = [one for one in (best, run.history[-1] if run.history else None) if one is not None]
    words = ("best", "last")[-len(shown) :] if shown else ()
    head = ["", *(f"{word}, step {one.step:,}" for word, one in zip(words, shown, strict=True))]
    rows = [[name, *(_number(column.get(name)) for column in map(_named, shown))] for name in _names(shown)]
    if run.test_metrics:
        head.append("final model")
        rows = [[*row, ""] for row in rows]
        rows += [[f"test {name}", *[""] * len(shown), _number(value)] for name, value in run.test_metrics.items()]
    return head, rows


def _named(report: EvaluationReport) -> Mapping[str, float]:
    """The training loss, and the split's metrics, by the names of their rows."""
    measured = {f"{report.split} {name}": value for name, value in report.metrics.items()}
    return {"train loss": report.training_loss, **measured}


def _names(shown: Iterable[EvaluationReport]) -> list[str]:
    return list(dict.fromkeys(name for one in shown for name in _named(one)))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}" if 1e-2 <= abs(value) < 1e5 or not value else f"{value:.4g}"


def _aligned(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])
        for line in (head, *rows)
    ]
    return "".join(f"{line.rstrip()}\n" for line in lines)


_WHERE: Final = (
    ("best.safetensors", "the best weights"),
    ("checkpoints", "where --resume goes on"),
    ("steps.csv", "loss and rate of the steps"),
    ("evaluations.csv", "metrics of the evaluations"),
    ("tensorboard", "events for TensorBoard"),
    ("report.html", "the learning curves"),
)
"""What may lie in a run's folder besides the final model, and what it is."""


def _places(run: Learned) -> list[str]:
    found = [(run.model, "the final model")]
    found += [(run.out / name, meaning) for name, meaning in _WHERE if (run.out / name).exists()]
    width = max(len(str(path)) for path, _ in found)
    return [f"  {str(path).ljust(width)}  {meaning}\n" for path, meaning in found]
