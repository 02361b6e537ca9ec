import contextlib
import math
import os
import signal
import threading
import time

import numpy as np
import pytest

from minerua.errors import EvolutionError
from minerua.evaluation import Evaluation, Task
from minerua.evaluation import runner as room
from minerua.values import EvaluatorSpec, Failure, Scores, TaskScore

SEARCH, SELECT, TEST = ("a", "b", "c"), ("d", "e"), ("f",)
NAMED = {id: i / 10 for i, id in enumerate((*SEARCH, *SELECT, *TEST))}


class Counting:
    """An evaluator that notes what it was asked; `answer` may replace its outcomes."""

    def __init__(self, name="task", answer=None, version="1"):
        self.asked = []
        self._answer = answer
        self.spec = EvaluatorSpec(name, lambda: list(NAMED), self._evaluate, version=version)

    def _evaluate(self, model, ids, seed):
        self.asked.append((model, list(ids), seed))
        return [NAMED[id] for id in ids] if self._answer is None else self._answer(ids)

    @property
    def items(self):
        return [ids for _, ids, _ in self.asked]


def _evaluation(*evaluators, ids=None, **settings):
    parts = {"search": SEARCH, "select": SELECT, "test": TEST} if ids is None else ids
    return Evaluation([Task(evaluator.spec, parts) for evaluator in evaluators], **settings)


def _failing(answer, **settings):
    """The failure of a model whose evaluator answers so."""
    outcome = _evaluation(Counting(answer=answer), **settings).score("x", object)
    assert isinstance(outcome, Failure)
    return outcome.reason


# ── scores ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_outcomes_come_in_the_order_of_the_items_and_tasks_in_the_run_s():
    scores = _evaluation(Counting("zebra"), Counting("ant")).score("x", object)
    assert list(scores.tasks) == ["zebra", "ant"]
    assert scores.tasks["zebra"].outcomes == pytest.approx((0.0, 0.1, 0.2))
    assert scores.tasks["ant"] == scores.tasks["zebra"]
    assert scores.means == pytest.approx((0.1, 0.1))
    assert scores.mean == pytest.approx(0.1)


@pytest.mark.parametrize(("split", "ids"), [("search", SEARCH), ("select", SELECT), ("test", TEST)])
def test_only_the_items_of_the_split_are_evaluated(split, ids):
    counting = Counting()
    scores = _evaluation(counting).score("x", object, split=split)
    assert counting.items == [list(ids)]
    assert scores.tasks["task"].count == len(ids)


def test_evaluators_get_the_model_and_the_run_s_seed():
    counting = Counting()
    _evaluation(counting, seed=17).score("x", lambda: "the model")
    assert counting.asked == [("the model", list(SEARCH), 17)]


@pytest.mark.parametrize(
    "answer",
    [
        lambda ids: [True, False, 1],
        lambda ids: np.array([1, 0, 1], np.int8),
        lambda ids: np.array([True, False, True]),
        lambda ids: np.float16([1, 0, 1]),
        lambda ids: (1, 0, 1.0),
    ],
)
def test_outcomes_may_be_any_kind_of_numbers(answer):
    scores = _evaluation(Counting(answer=answer)).score("x", object)
    assert scores.tasks["task"].outcomes[0] == 1.0
    assert all(type(outcome) is float for outcome in scores.tasks["task"].outcomes)


# ── the cache ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _forbidden():
    raise AssertionError("the model was built")


def test_a_model_whose_outcomes_are_known_is_not_even_built():
    counting = Counting()
    evaluation = _evaluation(counting)
    first = evaluation.score("x", object)
    assert evaluation.score("x", _forbidden) == first
    assert len(counting.asked) == 1


def test_another_model_is_evaluated_anew():
    counting = Counting()
    evaluation = _evaluation(counting)
    evaluation.score("x", lambda: "x")
    evaluation.score("y", lambda: "y")
    assert [model for model, _, _ in counting.asked] == ["x", "y"]


def test_one_model_is_built_once_for_all_tasks():
    built = []
    _evaluation(Counting("a"), Counting("b"), Counting("c")).score("x", lambda: built.append(1) or "model")
    assert built == [1]


def test_only_items_without_a_known_outcome_are_evaluated():
    counting = Counting()
    overlapping = {"search": ("a", "b", "c"), "select": ("d", "b", "e"), "test": ("f",)}
    evaluation = _evaluation(counting, ids=overlapping)
    evaluation.score("x", object)
    scores = evaluation.score("x", object, split="select")
    assert counting.items == [["a", "b", "c"], ["d", "e"]]
    assert scores.tasks["task"].outcomes == pytest.approx((0.3, 0.1, 0.4))


def test_remembered_scores_stand_for_an_evaluation():
    counting = Counting()
    evaluation = _evaluation(counting)
    known = Scores({"task": TaskScore((0.5, 0.25, 1.0))})
    evaluation.remember("x", known)
    assert evaluation.score("x", _forbidden) == known
    evaluation.remember("x", Scores({"task": TaskScore((0.0, 1.0))}), split="select")
    assert evaluation.score("x", _forbidden, split="select").means == (0.5,)
    assert counting.asked == []


def test_known_outcomes_that_do_not_fit_the_items_are_refused():
    evaluation = _evaluation(Counting())
    with pytest.raises(EvolutionError, match="known outcomes of x do not fit the items of the search split") as caught:
        evaluation.remember("x", Scores({"task": TaskScore((1.0,))}))
    assert caught.value.faults == ("task: 1 outcomes for 3 items",)


def test_the_models_that_were_longest_unused_are_forgotten_first(monkeypatch):
    monkeypatch.setattr(room, "REMEMBERED_BYTES", 2 * 8 * len(NAMED))  # two models of six items
    counting = Counting()
    evaluation = _evaluation(counting)
    for digest in ("x", "y", "x", "z", "x", "y"):
        evaluation.score(digest, lambda digest=digest: digest)
    assert [model for model, _, _ in counting.asked] == ["x", "y", "z", "y"]


# ── failures are values ──────────────────────────────────────────────────────────────────────────────────────────────


def _raise(error):
    raise error


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("shapes differ\nand more"), "task: RuntimeError: shapes differ"),
        (KeyError("w"), "task: KeyError: 'w'"),
        (MemoryError(), "task: MemoryError: no message"),
        (SystemExit(3), "task: SystemExit: 3"),
        (RecursionError("too deep"), "task: RecursionError: too deep"),
    ],
)
@pytest.mark.parametrize("where", ["build", "evaluate"])
def test_whatever_is_raised_is_a_failure_of_the_model(error, reason, where):
    evaluation = _evaluation(Counting(answer=(lambda ids: _raise(error)) if where == "evaluate" else None))
    build = (lambda: _raise(error)) if where == "build" else object
    assert evaluation.score("x", build) == Failure(reason)


def test_the_user_can_still_interrupt():
    with pytest.raises(KeyboardInterrupt):
        _evaluation(Counting(answer=lambda ids: _raise(KeyboardInterrupt()))).score("x", object)


class Stubborn:
    def __array__(self, *arguments, **settings):
        raise RuntimeError("call detach first\nplease")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ([0.5, math.nan, 0.5], "task: 1 outcomes lie outside [0, 1], the first nan for item 'b'"),
        ([0.5, 1.5, -1], "task: 2 outcomes lie outside [0, 1], the first 1.5 for item 'b'"),
        ([0, 0, math.inf], "task: 1 outcomes lie outside [0, 1], the first inf for item 'c'"),
        ([0.5, 0.5], "task: 3 outcomes were expected, one per item, found shape (2,)"),
        ([], "task: 3 outcomes were expected, one per item, found shape (0,)"),
        (0.5, "task: 3 outcomes were expected, one per item, found shape ()"),
        (np.zeros((3, 1)), "task: 3 outcomes were expected, one per item, found shape (3, 1)"),
        (["good", "bad", "good"], "task: outcomes must be numbers: could not convert string to float: 'good'"),
        ([0, [1, 2], 0], "task: outcomes must be numbers: setting an array element with a sequence."),
        ({"a": 1}, "task: outcomes must be numbers: "),
        (Stubborn(), "task: outcomes must be numbers: call detach first"),
        (None, "task: 3 outcomes were expected, one per item, found shape ()"),
    ],
)
def test_an_answer_that_is_no_list_of_outcomes_is_a_failure(answer, reason):
    assert _failing(lambda ids: answer).startswith(reason)


def test_the_first_failing_task_is_named_and_later_ones_are_not_asked():
    broken, later = Counting("broken", lambda ids: [2, 2, 2]), Counting("later")
    outcome = _evaluation(Counting("sound"), broken, later).score("x", object)
    assert outcome.reason.startswith("broken: ")
    assert later.asked == []


def test_failures_are_not_remembered_and_what_was_known_before_is():
    answers = iter([[2, 2, 2], [1, 1, 1]])
    sound, flaky = Counting("sound"), Counting("flaky", lambda ids: next(answers))
    evaluation = _evaluation(sound, flaky)
    assert isinstance(evaluation.score("x", object), Failure)
    assert evaluation.score("x", object).tasks["flaky"].mean == 1.0
    assert (len(sound.asked), len(flaky.asked)) == (1, 2)


# ── the time limit ───────────────────────────────────────────────────────────────────────────────────────────────────


def _sleep(ids):
    time.sleep(5)


def _swallow(ids):
    for _ in range(100):
        with contextlib.suppress(Exception):  # as careless evaluators do
            time.sleep(0.05)


def _swallow_everything(ids):
    with contextlib.suppress(BaseException):  # as the most careless do
        time.sleep(5)
    return [1, 1, 1]


@pytest.mark.parametrize("answer", [_sleep, _swallow, _swallow_everything])
def test_an_evaluator_that_takes_too_long_is_a_failure(answer):
    begin = time.monotonic()
    assert _failing(answer, time_limit_seconds=0.1) == "task: no answer within time_limit_seconds, 0.1 s"
    assert time.monotonic() - begin < 3


def test_a_model_that_takes_too_long_to_build_is_a_failure():
    outcome = _evaluation(Counting(), time_limit_seconds=0.1).score("x", lambda: time.sleep(5))
    assert outcome == Failure("task: no answer within time_limit_seconds, 0.1 s")


def test_every_task_has_the_whole_time():
    def slowly(ids):
        time.sleep(0.15)
        return [1, 1, 1]

    slow = [Counting(name, slowly) for name in "abc"]
    assert isinstance(_evaluation(*slow, time_limit_seconds=0.4).score("x", object), Scores)


def test_in_another_thread_the_limit_holds_once_the_evaluator_returns():
    def late(ids):
        time.sleep(0.2)
        return [1, 1, 1]

    outcomes = []
    evaluation = _evaluation(Counting(answer=late), time_limit_seconds=0.1)
    thread = threading.Thread(target=lambda: outcomes.append(evaluation.score("x", object)))
    thread.start()
    thread.join()
    assert outcomes == [Failure("task: no answer within time_limit_seconds, 0.1 s")]


def test_in_another_thread_an_evaluator_in_time_is_scored():
    outcomes = []
    thread = threading.Thread(target=lambda: outcomes.append(_evaluation(Counting()).score("x", object)))
    thread.start()
    thread.join()
    assert isinstance(outcomes[0], Scores)


@pytest.mark.parametrize("answer", [None, _sleep, lambda ids: _raise(ValueError("x"))])
def test_the_alarm_and_its_handler_are_as_they_were(answer):
    rung = []
    previous = signal.signal(signal.SIGALRM, lambda *_: rung.append(1))
    try:
        mine = signal.getsignal(signal.SIGALRM)
        _evaluation(Counting(answer=answer), time_limit_seconds=0.1).score("x", object)
        assert signal.getsignal(signal.SIGALRM) is mine
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
        os.kill(os.getpid(), signal.SIGALRM)
        assert rung == [1]
    finally:
        signal.signal(signal.SIGALRM, previous)


@pytest.mark.parametrize("limit", [1e9, 1e20, 1e300])
def test_a_limit_longer_than_any_timer_is_no_limit(limit):
    assert isinstance(_evaluation(Counting(), time_limit_seconds=limit).score("x", object), Scores)
