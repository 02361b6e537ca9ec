"""What a person sees of a run: the bar, the notes, the table at the end."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from minerua.learning.reports import EvaluationReport
from minerua.learning.watching import LARGEST_SHARE, PAUSE_SECONDS, Notes, ProgressBar, outcome_text

from .test_logs import evaluation, learned, start, step
from .worlds import pipeline


class Clock:
    """Tells the time that it is set to; each look takes a little."""

    def __init__(self, look_seconds: float = 0.0) -> None:
        self.now, self.look_seconds = 0.0, look_seconds

    def __call__(self) -> float:
        self.now += self.look_seconds
        return self.now


class Reads:
    """A loss that counts how often it is read."""

    def __init__(self) -> None:
        self.count = 0

    def __float__(self) -> float:
        self.count += 1
        return 0.125


def screen(width: int = 140) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)


def shown(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_bar_shows_epoch_steps_loss_rate_throughput_and_time_left(tmp_path):
    console, clock = screen(), Clock()
    bar = ProgressBar(console, clock=clock)
    bar.started(start(tmp_path, name="digits"))
    for number in range(1, 51):
        clock.now += 0.2
        bar.step_finished(step(number, loss=0.125))
    bar.evaluated(evaluation(50, loss=0.25))
    clock.now += 0.2
    bar.step_finished(step(51, loss=0.5, rate=0.003))
    bar.finished(learned(tmp_path, step=51))
    text = shown(console)
    for part in ("digits", "epoch 1/10", "epoch 6/10", "50/100", "loss 0.125, rate 0.1", "160/s"):
        assert part in text
    assert "loss 0.5 (validation 0.25), rate 0.003" in text


def test_the_bar_fits_a_narrow_terminal(tmp_path):
    console, clock = screen(60), Clock()
    bar = ProgressBar(console, clock=clock)
    bar.started(start(tmp_path))
    clock.now += 1
    bar.step_finished(step(1))
    bar.stopped(KeyboardInterrupt())
    assert "1/100" in shown(console)


def test_a_loss_is_read_only_when_it_is_shown_and_that_is_ten_times_a_second_at_most(tmp_path):
    loss, clock = Reads(), Clock()
    bar = ProgressBar(screen(), clock=clock)
    bar.started(start(tmp_path, steps=10_000))
    for number in range(1, 10_001):
        clock.now += 0.001
        bar.step_finished(step(number, loss=loss))
    bar.finished(learned(tmp_path))
    assert 90 <= loss.count <= 10_000 * 0.001 / PAUSE_SECONDS


def test_a_terminal_that_draws_slowly_is_drawn_to_less_often(tmp_path):
    loss, clock = Reads(), Clock(look_seconds=0.05)  # so each drawing seems to take that long
    bar = ProgressBar(screen(), clock=clock)
    bar.started(start(tmp_path))
    for number in range(1, 101):
        bar.step_finished(step(number, loss=loss))
    bar.finished(learned(tmp_path))
    assert loss.count <= 1 + 100 * 0.05 * LARGEST_SHARE / 0.05


def test_without_a_terminal_nothing_is_drawn_and_no_loss_is_read(tmp_path, capsys):
    loss, clock = Reads(), Clock()
    bar = ProgressBar(clock=clock)
    bar.started(start(tmp_path))
    clock.now += 100
    bar.step_finished(step(1, loss=loss, skipped=True, why="the loss is nan"))
    bar.evaluated(evaluation(1))
    bar.finished(learned(tmp_path))
    assert loss.count == 0
    assert capsys.readouterr() == ("", "")


def test_a_skipped_step_is_said_above_the_bar(tmp_path):
    console = screen()
    bar = ProgressBar(console)
    bar.started(start(tmp_path))
    bar.step_finished(step(1200, skipped=True, why="the loss is nan [red]"))
    bar.stopped(KeyboardInterrupt())
    assert "step 1,200 was left out: the loss is nan [red]" in shown(console)


def test_one_bar_serves_several_runs_and_a_run_that_goes_on(tmp_path):
    console, clock = screen(), Clock()
    bar = ProgressBar(console, clock=clock)
    for name, first in (("a", 0), ("[b]", 40)):
        bar.started(start(tmp_path, name=name, step=first, epoch=first // 10))
        clock.now += 1
        bar.step_finished(step(first + 1))
        bar.finished(learned(tmp_path))
    for part in ("a epoch 1/10", "[b] epoch 5/10", "41/100", "100/100"):
        assert part in shown(console)


def test_a_training_draws_its_bar(tmp_path):
    console = screen()
    done = pipeline(observers=[ProgressBar(console)]).run(tmp_path / "out")
    assert f"{done.step}/{done.step}" in shown(console)


def test_notes_are_printed_with_or_without_a_terminal(tmp_path, capsys):
    Notes().started(start(tmp_path, notes=("checkpoint step-1 is damaged", "another torch")))
    assert capsys.readouterr().err == "note: checkpoint step-1 is damaged\nnote: another torch\n"


# ── the table at the end ─────────────────────────────────────────────────────────────────────────────────────────────


def history() -> tuple[EvaluationReport, ...]:
    return tuple(
        evaluation(k, loss=k / 100, metrics={"loss": k / 100, "accuracy": 1 - k / 100}, training_loss=0.5)
        for k in (40, 100)
    )


def test_the_table_has_best_last_and_final_of_every_split(tmp_path):
    run = learned(tmp_path, name="digits", history=history(), test_metrics={"loss": 0.4321, "accuracy": 1e-5})
    lines = outcome_text([run]).splitlines()
    assert lines[0] == "digits"
    assert [line.split() for line in lines[1:7]] == [
        ["best,", "step", "40", "last,", "step", "100", "final", "model"],
        ["train", "loss", "0.5000", "0.5000"],
        ["validation", "loss", "0.4000", "1.0000"],
        ["validation", "accuracy", "0.6000", "0.0000"],
        ["test", "loss", "0.4321"],
        ["test", "accuracy", "1e-05"],
    ]
    assert len({len(line) for line in lines[5:7]}) == 1
    assert lines[7] == "done after 100 steps"


def test_the_table_names_what_lies_in_the_folder(tmp_path):
    for name in ("best.safetensors", "steps.csv", "evaluations.csv", "checkpoints"):
        (tmp_path / name).touch()
    text = outcome_text([learned(tmp_path, skipped_steps=1, already_done=True)])
    assert "done after 100 steps; the guard left out 1 step (was finished already)\n" in text
    assert [line.split(maxsplit=1) for line in text.splitlines()[1:]] == [
        [str(tmp_path / "model.safetensors"), "the final model"],
        [str(tmp_path / "best.safetensors"), "the best weights"],
        [str(tmp_path / "checkpoints"), "where --resume goes on"],
        [str(tmp_path / "steps.csv"), "loss and rate of the steps"],
        [str(tmp_path / "evaluations.csv"), "metrics of the evaluations"],
    ]


def test_several_runs_have_a_table_each(tmp_path):
    runs = [learned(tmp_path, name=name, history=history()[:1]) for name in ("a", "b")]
    text = outcome_text(runs)
    assert [text.count(f"{name}\n  ") for name in "ab"] == [1, 1]


@pytest.mark.parametrize("metrics", [{}, {"loss": float("nan")}])
def test_a_run_that_measured_little_has_a_table_too(tmp_path, metrics):
    only = replace(history()[1], metrics=metrics, training_loss=float("nan"))
    run = learned(Path("out"), history=(only,), best_step=7)
    assert "last, step 100" in outcome_text([run])
    assert "nan" in outcome_text([run])
