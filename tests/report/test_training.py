"""Training runs as pages: logs in, curves, tables and words out."""

import math
import re

import pytest

from minerua.errors import LearningError
from minerua.report import read_training_log, render_training
from minerua.report.curves import BOTTOM, HEIGHT, TOP
from minerua.report.learning_curves import POINTS, Curve, curve_figure
from minerua.report.training import training_figures

from .test_page import HOSTILE, Page

STEPS = "step,epoch,examples,loss,rate,gradient_norm,skipped\n"
EVALUATIONS = "step,epoch,split,examples,rate,best,training_loss,loss,accuracy\n"


def steps(count: int = 50, *, every: int = 10) -> str:
    rows = (f"{k},0,32,{2.0 / (1 + k / 100)},0.001,,\n" for k in range(every, every * count + 1, every))
    return STEPS + "".join(rows)


def evaluations(*, best: int = 2, count: int = 4) -> str:
    rows = (
        f"{100 * k},{k},validation,24,0.001,{int(k <= best)},{1 / k},{1.5 / k},{0.5 + 0.1 * min(k, best)}\n"
        for k in range(1, count + 1)
    )
    return EVALUATIONS + "".join(rows)


def learned(**more: object) -> dict:
    return {"step": 500, "stopped": "all epochs are done", "test_metrics": {"loss": 0.4321, "accuracy": 0.875}, **more}


def test_a_finished_run_shows_curves_scores_and_what_the_final_model_reached():
    page = Page(render_training("digits", read_training_log(steps(), evaluations()), learned()))
    assert page.open == []
    assert [text for place, text in page.texts if place == "h2"] == ["Learning curves", "Scores"]
    assert [text for place, text in page.texts if place == "h3"] == ["Loss", "Accuracy", "Learning rate"]
    text = page.text()
    assert "500 steps, 4 evaluations; it ended because all epochs are done." in text
    assert "The best evaluation was after 200 steps." in text
    assert "0.875" in text
    assert "0.4321" in text
    assert "not finished" not in text


def test_a_run_that_goes_on_has_a_page_that_says_so():
    page = Page(render_training("digits", read_training_log(steps(3))))
    assert "The run is not finished." in page.text()
    assert "30 steps, 0 evaluations." in page.text()
    assert len(page.named("svg")) == 2


def test_a_run_without_a_logged_step_has_a_page_without_pictures():
    for text in ("", STEPS, STEPS + "10,0,32,0.5"):
        log = read_training_log(text)
        assert log.steps == ()
        assert training_figures(log) == ()
        assert Page(render_training("new", log)).open == []


def test_the_same_logs_give_the_same_bytes_and_nothing_leaves_the_page():
    page = render_training("a", read_training_log(steps(), evaluations()), learned())
    assert page == render_training("a", read_training_log(steps(), evaluations()), learned())
    assert "http://" not in page
    assert "https://" not in page


def test_what_stands_in_a_log_cannot_become_markup():
    text = steps(3) + f'40,0,32,nan,0.1,,"{HOSTILE.replace(chr(34), chr(34) * 2)}"\n'
    page = render_training(HOSTILE, read_training_log(text, evaluations().replace("validation", "<b>x</b>")))
    assert "<script" not in page
    assert "<img" not in page
    assert "<b>x" not in page


def test_skipped_steps_are_listed_and_left_out_of_the_curve():
    log = read_training_log(steps(3) + "40,0,32,nan,0.1,,the loss is nan\n")
    assert log.skipped == ((40, "the loss is nan"),)
    text = Page(render_training("a", log)).text()
    assert "The guard left out 1 step." in text
    assert "the loss is nan" in text
    assert "NaN" not in "".join(re.findall(r' d="[^"]+"', str(training_figures(log)[0])))


def test_the_best_evaluation_is_the_last_that_was_better_than_all_before():
    log = read_training_log(steps(), evaluations(best=3))
    assert log.best is not None
    assert log.best["step"] == 300
    assert log.metrics == ("loss", "accuracy")


def test_without_a_validation_split_the_training_loss_has_one_curve():
    log = read_training_log(steps(), evaluations().replace("validation", "train"))
    assert "B train" not in str(training_figures(log)[0])


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        (("a,b\n1,2\n", ""), "steps.csv cannot be read: its first line lacks the columns step, loss, rate, skipped"),
        ((steps() + "1,2\n", ""), "steps.csv, line 52, has 2 values for 7 columns"),
        ((STEPS + "ten,0,32,0.5,0.1,,\n", ""), "steps.csv, line 2: step is 'ten', which is no number"),
        ((steps(), EVALUATIONS + "1,1,validation,24,x,1,1,1,1\n"), "evaluations.csv, line 2: rate is 'x'"),
    ],
)
def test_a_log_that_cannot_be_read_is_refused_by_table_and_line(tables, message):
    with pytest.raises(LearningError) as error:
        read_training_log(*tables)
    assert str(error.value).startswith(message)


# ── pictures ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def coordinates(picture: str) -> list[float]:
    return [float(number) for path in re.findall(r' d="([^"]+)"', picture) for number in re.findall(r"[\d.]+", path)]


@pytest.mark.parametrize(
    "values",
    [[0.0], [0.0, 0.0], [1.0, 2.0, 3.0], [-1.0, -2.0], [-3.0, 5.0], [1e-9, 1e9], [1e-3], [5e5, -1e-3]],
    ids=str,
)
def test_every_curve_stays_inside_its_picture(values):
    picture = curve_figure("a", [Curve("one", tuple(enumerate(values, 1)), spread=True)])
    assert picture is not None
    numbers = coordinates(picture)
    assert all(math.isfinite(number) and -1 <= number <= 520 for number in numbers)
    assert len(re.findall(r'class="rule"', picture)) >= 2


def test_a_curve_without_a_number_has_no_picture():
    assert curve_figure("a", [Curve("one", ((1, math.nan), (2, math.inf)))]) is None
    assert curve_figure("a", [Curve("one", ())]) is None


def test_a_long_curve_becomes_a_bounded_picture_whose_points_are_means():
    curve = Curve("one", tuple((k, float(k % 2)) for k in range(1, 100_001)), spread=True)
    picture = curve_figure("a", [curve])
    assert picture is not None
    assert len(picture) < 60 * POINTS
    line = re.search(r'd="M([^"]+)" class="line"', picture)
    assert line is not None
    heights = [float(point.split()[1]) for point in line[1].split("L")]
    assert len(heights) == POINTS
    middle = TOP + (HEIGHT - TOP - BOTTOM) / 2
    assert all(abs(height - middle) < 1 for height in heights)


def test_the_best_is_marked_on_the_curve_that_chose_it():
    curves = [Curve("training", ((1, 1.0), (2, 0.5))), Curve("validation", ((1, 1.5), (2, 0.7)))]
    picture = str(curve_figure("Loss", curves, best=2))
    assert picture.count("best: 0.7 after 2 steps") == 1
    assert "best: 0.5" not in picture
    assert "best:" not in str(curve_figure("Loss", curves, best=7))


def test_values_over_many_powers_of_ten_get_a_logarithmic_axis():
    wide, narrow = (Curve("a", ((1, 1.0), (2, low))) for low in (0.001, 0.5))
    assert "logarithmic" in str(curve_figure("a", [wide]))
    assert "logarithmic" not in str(curve_figure("a", [narrow]))
    assert "logarithmic" not in str(curve_figure("a", [wide], is_linear=True))
