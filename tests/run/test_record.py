import pytest

from minerua.errors import JournalError
from minerua.evolution import Journal, read_journal
from minerua.run.record import Record
from minerua.values import Failure, Scores, TaskScore

RUN = {"event": "run", "format": 1, "config": {"seed": 1, "evolution": {"bins": 4}}}
TELL = {"event": "tell", "id": 3, "digest": "d3"}
SCORES = Scores({"one": TaskScore((1.0, 0.0)), "two": TaskScore((0.25, 1 / 3))})


@pytest.fixture
def path(tmp_path):
    return tmp_path / "journal.jsonl"


def _write(path, *steps):
    with Journal(path, fresh=True) as journal:
        record = Record(journal)
        return [step(record) for step in steps]


def _replay(path, *steps):
    with Journal(path, fresh=False) as journal:
        record = Record(journal)
        return [step(record) for step in steps]


def _confirm(event):
    return lambda record: record.confirm(event)


def _outcome(event, outcome, added=lambda outcome: {}):
    return lambda record: record.outcome(event, lambda: outcome, added)


def _unwanted():
    raise AssertionError("evaluated although the journal knows the outcome")


def _known(event, added=lambda outcome: {}):
    return lambda record: record.outcome(event, _unwanted, added)


def _refusal(path, *steps):
    with pytest.raises(
        JournalError, match=r"journal\.jsonl belongs to another run: what this run .*; undo what was changed"
    ):
        _replay(path, *steps)
    with pytest.raises(JournalError) as caught:
        _replay(path, *steps)
    return caught.value.faults


# ── a fresh run and its replay ───────────────────────────────────────────────────────────────────────────────────────


def test_a_fresh_record_writes_what_is_confirmed(path):
    _write(path, _confirm(RUN), _confirm({"event": "bounds", "lower": (0.1, 0.2)}))
    assert read_journal(path) == [RUN, {"event": "bounds", "lower": [0.1, 0.2]}]


@pytest.mark.parametrize("outcome", [SCORES, Failure("task: no answer within 3 s")])
def test_an_outcome_is_replayed_and_not_evaluated_again(path, outcome):
    assert _write(path, _confirm(RUN), _outcome(TELL, outcome)) == [None, outcome]
    before = path.read_bytes()
    assert _replay(path, _confirm(RUN), _known(TELL)) == [None, outcome]
    assert path.read_bytes() == before


def test_what_follows_from_an_outcome_is_written_with_it_and_checked_in_the_replay(path):
    def count(outcome):
        return {"added": [len(outcome.tasks), 0]}

    _write(path, _confirm(RUN), _outcome(TELL, SCORES, count))
    assert read_journal(path)[1]["added"] == [2, 0]
    _replay(path, _confirm(RUN), _known(TELL, count))
    (fault,) = _refusal(path, _confirm(RUN), _known(TELL, lambda outcome: {"added": [2, 1]}))
    assert fault == "added: the journal has [2, 0], this run has [2, 1]"


def test_after_the_last_known_event_a_resumed_run_goes_on_writing(path):
    _write(path, _confirm(RUN))
    later = {**TELL, "id": 4, "digest": "d4"}
    _replay(path, _confirm(RUN), _outcome(TELL, SCORES), _outcome(later, SCORES))
    assert [event.get("id") for event in read_journal(path)] == [None, 3, 4]
    _replay(path, _confirm(RUN), _known(TELL), _known(later))


def test_a_resumed_run_ends_with_the_bytes_of_an_uninterrupted_one(path, tmp_path):
    steps = [_confirm(RUN), *(_outcome({**TELL, "id": i}, SCORES) for i in range(4)), _confirm({"event": "end"})]
    whole = tmp_path / "whole.jsonl"
    _write(whole, *steps)
    for known in range(len(steps) + 1):
        path.write_bytes(b"".join(whole.read_bytes().splitlines(keepends=True)[:known]))
        _replay(path, *steps)
        assert path.read_bytes() == whole.read_bytes()


def test_a_record_tells_whether_it_replays_and_what_comes_next(path):
    def look(record):
        return record.replaying, record.next_digest()

    assert _write(path, look, _confirm(RUN), _outcome(TELL, SCORES), look)[0] == (False, "")
    looks = _replay(path, look, _confirm(RUN), look, _known(TELL), look)
    assert [seen for seen in looks if isinstance(seen, tuple)] == [(True, ""), (True, "d3"), (False, "")]


# ── another run's journal ────────────────────────────────────────────────────────────────────────────────────────────


def test_every_difference_is_listed_with_its_place_and_both_values(path):
    _write(path, _confirm(RUN))
    now = {"event": "run", "format": 1, "config": {"seed": 2, "evolution": {"bins": 9, "batch": 1}}, "base": "ü"}
    assert _refusal(path, _confirm(now)) == (
        "config.seed: the journal has 1, this run has 2",
        "config.evolution.bins: the journal has 4, this run has 9",
        "config.evolution.batch: the journal has null, this run has 1",
        'base: the journal has null, this run has "ü"',
    )


def test_what_this_run_lacks_is_a_difference_too(path):
    _write(path, _confirm({**RUN, "extra": [1]}))
    assert _refusal(path, _confirm(RUN)) == ("extra: the journal has [1], this run has null",)


def test_long_values_are_shortened_and_many_differences_cut(path):
    _write(path, _confirm({**RUN, "items": {f"k{i}": "x" * 500 for i in range(50)}}))
    faults = _refusal(path, _confirm({**RUN, "items": {}}))
    assert len(faults) == 20
    assert all(len(fault) < 300 and "...," in fault for fault in faults)


def test_another_kind_of_event_is_a_difference(path):
    _write(path, _confirm(RUN), _confirm({"event": "ask", "children": []}))
    assert _refusal(path, _confirm(RUN), _outcome(TELL, SCORES)) == (
        'event: the journal has "ask", this run has "tell"',
        "id: the journal has null, this run has 3",
        'digest: the journal has null, this run has "d3"',
    )


def test_an_outcome_of_another_child_is_refused_before_anything_follows_from_it(path):
    _write(path, _confirm(RUN), _outcome(TELL, SCORES))
    asked = []
    other = {**TELL, "digest": "d9"}
    faults = _refusal(path, _confirm(RUN), _known(other, lambda outcome: asked.append(outcome) or {}))
    assert faults == ('digest: the journal has "d3", this run has "d9"',)
    assert asked == []


def test_nothing_is_written_to_another_run_s_journal(path):
    _write(path, _confirm(RUN), _outcome(TELL, SCORES))
    before = path.read_bytes()
    _refusal(path, _confirm({**RUN, "format": 2}))
    assert path.read_bytes() == before


def test_tuples_and_lists_are_the_same_to_a_journal(path):
    _write(path, _confirm({**RUN, "pair": (1, 2)}))
    _replay(path, _confirm({**RUN, "pair": (1, 2)}), _confirm({"event": "end"}))
