import errno
import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minerua.errors import JournalError, StorageError
from minerua.evolution import Journal, decode_outcome, encode_outcome, read_journal
from minerua.evolution import journal as module
from minerua.values import Failure, Scores, TaskScore

RUN = {"event": "run", "format": 1}


@given(
    st.dictionaries(
        st.text(min_size=1),
        st.lists(st.sampled_from([0.0, 1.0]) | st.floats(0, 1), min_size=1).map(lambda o: TaskScore(tuple(o))),
        min_size=1,
    )
)
def test_outcomes_survive_the_journal(tasks):
    event = json.loads(json.dumps(encode_outcome(Scores(tasks))))
    assert decode_outcome(event) == Scores(tasks)


def test_failures_survive_the_journal():
    assert decode_outcome(encode_outcome(Failure("digits: NaN"))) == Failure("digits: NaN")


def test_outcomes_of_zero_and_one_cost_one_bit_per_item():
    event = encode_outcome(Scores({"a": TaskScore((1.0,) * 800)}))
    assert len(event["scores"]["a"]["bits"]) == 136


def test_written_events_are_read_back_in_order(tmp_path):
    with Journal(tmp_path / "j", fresh=True) as journal:
        for i in range(3):
            journal.write(RUN | {"i": i, "text": "ü\n"})
    assert [event["i"] for event in read_journal(tmp_path / "j")] == [0, 1, 2]


def test_every_line_is_with_the_system_when_write_returns(tmp_path):
    journal = Journal(tmp_path / "j", fresh=True)
    journal.write(RUN)
    assert read_journal(tmp_path / "j") == [RUN]
    journal.close()
    journal.close()


@pytest.mark.parametrize("tail", [b'{"ev', b'{"event":"tell"}', b"\xff\xfe", b" "])
def test_a_torn_last_line_does_not_count_and_is_cut_off_on_resume(tmp_path, tail):
    path = tmp_path / "j"
    path.write_bytes(json.dumps(RUN).encode() + b"\n" + tail)
    assert read_journal(path) == [RUN]
    with Journal(path, fresh=False) as journal:
        assert journal.events == [RUN]
        journal.write({"event": "tell"})
    assert read_journal(path) == [RUN, {"event": "tell"}]


def test_a_resumed_run_may_find_no_journal_or_an_empty_one(tmp_path):
    (tmp_path / "empty").touch()
    for name in ("empty", "none"):
        with Journal(tmp_path / name, fresh=False) as journal:
            assert journal.events == []


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{broken}", "Expecting property name"),
        (b"[]", "an event with a name was expected"),
        (b'{"no":"event"}', "an event with a name was expected"),
        (b"\xff", "can't decode byte 0xff"),
        (b"[" * 100_000, "recursion"),
    ],
)
def test_damage_before_the_last_line_is_an_error_with_the_line_s_number(tmp_path, line, reason):
    path = tmp_path / "j"
    path.write_bytes(json.dumps(RUN).encode() + b"\n" + line + b"\n" + json.dumps(RUN).encode() + b"\n")
    with pytest.raises(JournalError, match=f"line 2 is damaged: .*{reason}") as caught:
        read_journal(path)
    assert str(caught.value).endswith("; restore the file from a copy")


def test_a_journal_of_another_format_is_refused(tmp_path):
    (tmp_path / "j").write_text('{"event":"run","format":2}\n')
    with pytest.raises(JournalError, match=r"format 1: its first .*'run', format 2; read it with the version"):
        read_journal(tmp_path / "j")


def test_a_missing_journal_cannot_be_read(tmp_path):
    with pytest.raises(JournalError, match=r"cannot read .*No such file"):
        read_journal(tmp_path / "j")


def test_a_fresh_run_refuses_a_journal_that_exists(tmp_path):
    Journal(tmp_path / "j", fresh=True).close()
    with pytest.raises(JournalError, match="exists already: continue that run with --resume"):
        Journal(tmp_path / "j", fresh=True)


def test_a_second_process_is_kept_out(tmp_path):
    with (
        Journal(tmp_path / "j", fresh=True),
        pytest.raises(JournalError, match="in use by another process"),
    ):
        Journal(tmp_path / "j", fresh=False)


def test_a_folder_that_cannot_be_written_is_a_storage_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"cannot write .*Not a directory"):
        Journal(tmp_path / "file" / "j", fresh=True)


def test_a_full_disk_leaves_complete_lines_and_the_run_resumes(tmp_path, monkeypatch):
    path = tmp_path / "j"
    journal = Journal(path, fresh=True)
    journal.write(RUN)
    real = os.write

    def full(file, line):
        real(file, line[:5])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module.os, "write", full)
    with pytest.raises(StorageError, match=r"No space left on device; free some space .* --resume"):
        journal.write({"event": "tell"})
    monkeypatch.undo()
    journal.close()
    with Journal(path, fresh=False) as again:
        assert again.events == [RUN]
        again.write({"event": "tell"})
    assert len(read_journal(path)) == 2


def test_numbers_that_json_cannot_hold_are_refused(tmp_path):
    with Journal(tmp_path / "j", fresh=True) as journal, pytest.raises(ValueError, match="Out of range float"):
        journal.write({"event": "x", "value": float("nan")})
