import json

from hypothesis import given
from hypothesis import strategies as st

from minerua.report.markup import Markup, element, embedded_json, join


@given(st.text())
def test_text_and_attributes_never_become_markup(text):
    inner = element("p", text, title=text).removeprefix("<p").removesuffix("</p>")
    assert "<" not in inner
    assert inner.count('"') == 2


def test_markup_is_not_escaped_again():
    assert element("p", element("b", "&"), Markup("<i></i>")) == "<p><b>&amp;</b><i></i></p>"


def test_attributes_that_are_none_or_false_are_left_out_and_true_has_no_value():
    assert element("a", hidden=True, id=None, class_=False, data_c=3) == '<a hidden data-c="3"></a>'


def test_none_is_no_content():
    assert join("a", None, "<") == "a&lt;"


@given(st.recursive(st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_embedded_json_cannot_end_its_script_and_says_what_it_was_given(value):
    text = embedded_json(value)
    assert not set("<>&") & set(text)
    assert text.isascii()
    assert json.loads(text) == value
