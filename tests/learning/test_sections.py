"""What sections share."""

from __future__ import annotations

from minerua.learning.sections import overlaid


def test_mappings_are_gone_through_and_everything_else_is_replaced() -> None:
    content = {"a": {"b": 1, "c": [1, 2]}, "d": "adam"}
    assert overlaid(content, {"a": {"c": [3]}, "e": 5}) == {"a": {"b": 1, "c": [3]}, "d": "adam", "e": 5}
    assert content == {"a": {"b": 1, "c": [1, 2]}, "d": "adam"}


def test_a_bare_name_is_a_section_with_that_name() -> None:
    assert overlaid({"d": "adam"}, {"d": {"rate": 1}}) == {"d": {"name": "adam", "rate": 1}}
    assert overlaid({"d": {"name": "adam", "rate": 1}}, {"d": "sgd"}) == {"d": "sgd"}
