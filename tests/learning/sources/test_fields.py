import numpy as np
import pytest

from minerua.learning.data_config import TableConfig
from minerua.learning.rows import RowError
from minerua.learning.sources.fields import Fields


def fields(dtype="float32", **columns):
    return Fields(TableConfig(path="a.csv", **columns), dtype)


def test_several_columns_become_one_vector():
    value = fields(inputs=["a", "b"], label="y").check(["1", "2.5", "cat"])
    assert (value.dtype, value.tolist()) == (np.float32, [1, 2.5])


def test_one_column_may_hold_lists():
    assert fields(inputs="a").check([[[1, 2], [3, 4]]]).shape == (2, 2)


def test_text_is_the_text_or_a_mapping_of_texts():
    assert fields(text="a").check(["x"]) == "x"
    assert fields(text=["a", "b"]).check(["x", "y"]) == {"a": "x", "b": "y"}


def test_label_and_key_are_found_behind_the_inputs():
    both = fields(inputs=["a", "b"], label="y", key="id")
    assert both.needed == ("a", "b", "y", "id")
    assert (both.label([1, 2, "cat", 7]), both.key([1, 2, "cat", 7])) == ("cat", "7")
    assert fields(inputs="a").key([1]) is None


def test_ids_keep_all_their_digits():
    assert fields("int64", inputs=["a", "b"]).check([str(2**60 + 1), 3]).tolist() == [2**60 + 1, 3]
    assert fields("float64", inputs="a").check([[0.1]])[0] == 0.1


@pytest.mark.parametrize(
    ("columns", "dtype", "values", "said"),
    [
        ({"inputs": ["a", "b"]}, "float32", ["1", ""], "missing input: column b"),
        ({"inputs": ["a", "b"]}, "float32", ["1", "x"], "not a number: column b x"),
        ({"inputs": ["a", "b"]}, "float32", [1, [2]], "not a number: column b holds a list beside other columns"),
        ({"inputs": ["a", "b"]}, "float32", ["1", "nan"], "not finite: 1 of 2 inputs"),
        ({"inputs": ["a", "b"]}, "float32", ["1", "1e99"], "not finite: 1 of 2 inputs"),
        ({"inputs": "a"}, "float32", [[[1], [2, 3]]], "not a number: column a [[1], [2, 3]]"),
        ({"inputs": "a"}, "float32", [None], "missing input: column a"),
        ({"inputs": "a"}, "int64", ["1.5"], "no whole number: column a 1.5"),
        ({"inputs": "a"}, "int64", [[1.5]], "no whole number: column a [1.5]"),
        ({"text": "a"}, "float32", [""], "missing input: column a"),
        ({"text": "a"}, "float32", [3], "not a text: column a holds int 3"),
    ],
)
def test_what_cannot_be_an_input_is_refused(columns, dtype, values, said):
    with pytest.raises(RowError) as caught:
        fields(dtype, **columns).check(values)
    assert str(caught.value) == said


def test_another_shape_than_the_first_row_s_is_refused():
    one = fields(inputs="a")
    one.check([[1, 2]])
    with pytest.raises(RowError, match=r"another shape: \[3\] where the first row has \[2\]"):
        one.check([[1, 2, 3]])


@pytest.mark.parametrize("key", [None, "", [1]])
def test_a_row_without_its_key_is_refused(key):
    with pytest.raises(RowError, match="missing key"):
        fields(inputs="a", key="id").key([1, key])
