import doctest
import time

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from minerua.errors import ConfigError
from minerua.merge.recipes import documents
from minerua.merge.recipes.documents import MAX_CHARACTERS, MAX_DEPTH, MAX_NODES, read_documents


def _content(text):
    (document,) = read_documents(text, where="r.yml")
    return document.content


def _refused(text):
    with pytest.raises(ConfigError) as caught:
        read_documents(text, where="r.yml")
    return str(caught.value)


def _laughs(levels, width=10):
    """A text whose aliases, written out, hold width^levels values."""
    lines = ["l0: &l0 ha"]
    lines += [f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * width)}]" for i in range(1, levels)]
    return "\n".join(lines)


def test_examples_run():
    assert doctest.testmod(documents).failed == 0


VALUES = """
a: 1
b: [1.5, -2e+3, 0x1F, 1_000, 010, .5]
c: {d: yes, e: 'yes', f: null, g: ~, h: , i: off}
j: "text: with # signs"
k: |
  two
  lines
l: 1e-4
m: [[], {}, '']
n: &anchor {x: 1, y: [2, *z]}
"""


def test_values_are_those_of_safe_yaml():
    text = VALUES.replace(", *z", "")
    assert _content(text) == yaml.safe_load(text)


def test_a_date_stays_a_text():
    assert _content("revision: 2026-11-22") == {"revision": "2026-11-22"}


def test_aliases_stand_for_their_anchors_and_merge_keys_bring_in_what_is_not_there():
    text = "a: &a {x: 1, y: 2}\nb: &b {y: 3, z: 4}\nc: {<<: [*a, *b], x: 0}\nd: [*a, *a]"
    assert _content(text) == yaml.safe_load(text)
    assert _content(text)["c"] == {"x": 0, "y": 2, "z": 4}


def test_documents_keep_their_own_lines_comments_included():
    first, second = read_documents("# one\r\na: 1\n---\n# two\nb: 2\n---\n", where="r.yml")
    assert (first.text, second.text) == ("# one\r\na: 1\n", "# two\nb: 2\n")
    assert (first.content, second.content) == ({"a": 1}, {"b": 2})


def test_an_anchor_holds_for_its_own_document_only():
    assert "the alias 'x' has no anchor before it" in _refused("a: &x 1\n---\nb: *x")


def test_empty_texts_hold_no_documents():
    assert read_documents("", where="r.yml") == read_documents("---\n---\n# nothing\n", where="r.yml") == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2", "r.yml, line 2, column 1: the key 'a' is given a second time"),
        ("a: !!python/object:os.system {}", "python/object:os.system' is not taken in a recipe"),
        ("a: !own 1", "the tag '!own' is not taken in a recipe"),
        ("a: ! 1", "the tag '!' is not taken in a recipe"),
        ("a: &x [*x]", "the alias 'x' stands inside its own value"),
        ("a: &x {b: *x}", "the alias 'x' stands inside its own value"),
        ("? [a]\n: 1", "a key must be a plain word"),
        ("1: a", "the key '1' is read as a number; put it in quotes"),
        ("yes: a", "the key 'yes' is read as a truth value; put it in quotes"),
        ("~: a", "the key '~' is read as nothing; put it in quotes"),
        ("<<: 3", "the key '<<' merges mappings, and found a number"),
        ("<<: [{a: 1}, b]", "the key '<<' merges mappings, and found a text"),
        ("a: [1", "r.yml is not YAML: while parsing a flow sequence"),
        ("a: \x00", "r.yml is not YAML: "),
        ("a: \ud800", "r.yml is not YAML: "),
        ("[" * 100 + "]" * 100, f"values are nested more than {MAX_DEPTH} levels deep"),
        ("a: " + "[" * 100_000, f"values are nested more than {MAX_DEPTH} levels deep"),
        ("[" + "1," * (MAX_NODES + 1) + "]", f"more than {MAX_NODES} values, aliases written out"),
        ("#" * (MAX_CHARACTERS + 1), f"{MAX_CHARACTERS + 1} characters, and a recipe may have {MAX_CHARACTERS}"),
    ],
)
def test_what_is_refused_is_said_with_its_place(text, message):
    assert message in _refused(text)


@pytest.mark.parametrize("loader", ["compiled", "plain"])
def test_a_few_lines_that_stand_for_billions_are_refused_at_once(loader, monkeypatch):
    monkeypatch.setattr(yaml, "__with_libyaml__", loader == "compiled" and yaml.__with_libyaml__)
    start = time.process_time()
    assert "values, aliases written out" in _refused(_laughs(12))
    deep = "a0: &a0 [1]\n" + "\n".join(f"a{i}: &a{i} [[[[*a{i - 1}]]]]" for i in range(1, 200))
    assert "with aliases written out, values are deeper" in _refused(deep)
    assert time.process_time() - start < 1


def test_merge_keys_do_not_hide_how_much_they_bring_in():
    lines = ["l0: &l0 {a: [1, 2, 3], b: [1, 2, 3]}"]
    lines += [f"l{i}: &l{i} {{a: {{<<: *l{i - 1}}}, b: {{<<: *l{i - 1}}}}}" for i in range(1, 14)]
    assert "values, aliases written out" in _refused("\n".join(lines))


def test_numbers_of_absurd_length_stay_texts():
    digits = "9" * 500_000
    assert _content(f"a: {digits}") == {"a": digits}


def test_words_that_only_look_like_numbers_stay_texts():
    assert _content("a: [0x, 0b_, 08, 1e400]") == {"a": ["0x", "0b_", "08", "1e400"]}


YAML_WORDS = st.sampled_from(
    [
        *"[]{}:,-&*!?|>'\"%@#\n\t ~<",
        "a: ",
        "&a",
        "*a ",
        "<<: ",
        "- ",
        "\n  ",
        "---\n",
        "!!str ",
        "1e-4",
        "null",
        "...\n",
    ]
)


@given(
    st.one_of(st.text(), st.lists(YAML_WORDS, max_size=60).map("".join), st.binary().map(lambda b: b.decode("latin-1")))
)
def test_any_text_is_read_or_refused(text):
    try:
        found = read_documents(text, where="r.yml")
    except ConfigError:
        return
    for document in found:
        assert document.content is not None
        assert document.text in text


@given(st.lists(YAML_WORDS, max_size=40).map("".join))
def test_what_is_read_is_what_safe_yaml_reads(text):
    try:
        found = read_documents(text, where="r.yml")
    except ConfigError:
        return
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the one that reads recipes; the two differ in slips
    assert [document.content for document in found] == [one for one in yaml.load_all(text, loader) if one is not None]
