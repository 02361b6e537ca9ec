import pickle

from minerua.learning.rows import LISTED, BadRow, BadRows, DataReport, RowError, seen


def test_every_bad_row_is_counted_and_the_first_hundred_are_listed():
    bad = BadRows()
    for line in range(150):
        bad.add(f"a.csv:{line}", RowError("not CSV" if line % 2 else "missing label"))
    assert bad.reasons == {"missing label": 75, "not CSV": 75}
    assert (bad.count, len(bad.listed)) == (150, LISTED)


def test_what_several_files_have_is_counted_together():
    bad = BadRows()
    bad.add("a:1", RowError("not CSV"))
    bad.merge({"not CSV": 120, "not JSON": 1}, [BadRow(f"b:{k}", "not CSV") for k in range(120)])
    assert bad.reasons == {"not CSV": 121, "not JSON": 1}
    assert len(bad.listed) == LISTED


def test_a_row_s_fault_comes_back_from_a_worker_as_it_was():
    error = pickle.loads(pickle.dumps(RowError("not JSON", "line 1")))
    assert (str(error), error.reason, error.detail) == ("not JSON: line 1", "not JSON", "line 1")


def test_a_report_says_what_became_of_every_row():
    report = DataReport(
        rows=10,
        bad=1,
        reasons={"not CSV": 1},
        listed=(BadRow("a.csv:3", "not CSV", "a quote"),),
        blank_lines=2,
        duplicates=3,
        overlaps={"test": 4, "validation": 0},
        splits={"train": 9},
        classes=("a", "b"),
        checked=False,
    )
    assert report.lines() == [
        "10 rows: 9 used, 1 bad (1 not CSV)",
        "splits: train 9",
        "2 classes: a, b",
        "2 blank lines",
        "3 duplicates, each in the split of the row that it repeats",
        "4 rows of test also stand in train",
        "the rows were not looked at before they are used",
        "a.csv:3: not CSV: a quote",
    ]
    assert report.notes == tuple(report.lines())
    assert report.plain()["listed"] == [{"place": "a.csv:3", "reason": "not CSV", "detail": "a quote"}]


def test_what_a_file_holds_is_shown_short_and_without_control_characters():
    assert len(seen("x" * 10_000_000)) == 60
    assert seen("\x1b[31m\ud800") == "\\x1b[31m\\ud800"
    deep = []
    for _ in range(100_000):
        deep = [deep]
    assert seen(deep) == "a deeply nested list"
    while deep:  # or freeing it would recurse as deeply
        deep = deep.pop()
