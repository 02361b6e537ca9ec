import numpy as np
import pytest

from minerua.learning.data_config import LabelsConfig
from minerua.learning.rows import RowError
from minerua.learning.sources import labels as module
from minerua.learning.sources.labels import Labels, in_order, label_text, remapped, to_floats


def test_labels_are_numbered_as_they_occur_and_renumbered_in_order():
    labels = Labels(LabelsConfig())
    codes = np.array([labels.check(label) for label in ["b", "a", "b", "c"]])
    classes = in_order(labels.names)
    assert classes == ("a", "b", "c")
    assert remapped(codes, labels.names, classes).tolist() == [1, 0, 1, 2]


def test_whole_numbers_are_sorted_as_numbers():
    assert in_order(["10", "-1", "9"]) == ("-1", "9", "10")
    assert in_order(["10", "9", "x"]) == ("10", "9", "x")


@pytest.mark.parametrize(
    ("raw", "text"), [(1, "1"), (1.0, "1"), (np.int64(1), "1"), ("1", "1"), (True, "true"), (np.float32(2), "2")]
)
def test_one_class_has_one_text_however_it_is_stored(raw, text):
    assert label_text(raw) == text


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (None, "missing label"),
        (" ", "missing label"),
        (float("nan"), "missing label"),
        (1.5, "no class: float 1.5 does not name a class; set labels.kind"),
        ([1], "no class: list [1] does not name a class"),
        (2**70, "no class: int"),
    ],
)
def test_what_names_no_class_is_refused(raw, said):
    with pytest.raises(RowError) as caught:
        label_text(raw)
    assert str(caught.value).startswith(said)


def test_a_label_outside_the_declared_classes_is_refused():
    labels = Labels(LabelsConfig(classes=2))
    assert labels.check("1") == 1
    with pytest.raises(RowError, match="unknown class: 2 is none of the 2 declared classes"):
        labels.check(2)


def test_more_labels_than_classes_can_be_are_refused(monkeypatch):
    monkeypatch.setattr(module, "MOST_FOUND", 2)
    labels = Labels(LabelsConfig())
    labels.check("a"), labels.check("b")
    with pytest.raises(RowError, match=r"too many classes: c is label number 3; is labels.kind right"):
        labels.check("c")


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ("", "missing label"),
        ("abc", "not a number: target abc"),
        ("1_000", "not a number: target 1_000"),
        ("nan", "not finite: target nan"),
        (1e300, "not finite: target 1e+300"),
        (5, "out of range: target 5 is not in [0, 4]"),
        (["1"], "not a number: target ['1']"),
    ],
)
def test_a_number_that_is_none_or_out_of_range_is_refused(raw, said):
    with pytest.raises(RowError) as caught:
        Labels(LabelsConfig(kind="number", fewest=0, most=4)).check(raw)
    assert str(caught.value) == said


def test_targets_of_another_shape_are_refused():
    labels = Labels(LabelsConfig(kind="number"))
    labels.check([1, 2])
    with pytest.raises(RowError, match=r"target's shape: \[3\], the first row's is \[2\]"):
        labels.check([1, 2, 3])


def test_texts_must_be_texts():
    labels = Labels(LabelsConfig(kind="text"))
    assert labels.target("a") == "a"
    with pytest.raises(RowError, match="not a text: target int 1"):
        labels.check(1)


@pytest.mark.parametrize("raw", ["x", [[1], [1, 2]], {"a": 1}, [None], object(), 10**400])
def test_what_is_no_number_is_refused(raw):
    with pytest.raises(RowError, match="not a number: column x"):
        to_floats(raw, "column x")


def test_what_is_declared_says_what_targets_are():
    assert Labels(LabelsConfig(classes=3), "number").kind == "class"
    assert Labels(LabelsConfig(most=3), "class").kind == "number"
    assert Labels(LabelsConfig(kind="text"), "class").kind == "text"
