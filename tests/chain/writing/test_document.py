"""Chains in YAML: what is written is read as an equal chain, and what no one should read does no harm."""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minerua import Skill, TensorSpec
from minerua.chain.graph import Retry
from minerua.chain.writing.chain import SkillChain, SkillTask
from minerua.chain.writing.ports import WORDS
from minerua.errors import ChainError

TEXT = """\
minerua: 1
name: look-and-read
inputs:
  image: float32[batch, 64]
  text: {type: text, optional: true}
steps:
- parallel:
  - {step: see, skill: vision}
  - step: read
    skill: language
    settings: {size: 3}
    missing: {text: skip}
- skill: fusion
  inputs: {vision: see.embedding, language: [read.words, see.embedding]}
  constants: {top: 5}
  when: not see.is_cat
  missing: {language: zeros, title: {default: none}}
  timeout_seconds: 2
  retry: 3
- {step: say, skill: speech, retry: {attempts: 2, delay_seconds: 3e-1}, isolated: true}
connections:
- fusion.label -> say.label
outputs:
  label: fusion.label
"""


def expected() -> SkillChain:
    chain = SkillChain(
        "look-and-read",
        inputs={"image": TensorSpec("image", ("batch", 64), "float32"), "text": str},
        optional=["text"],
        outputs={"label": "fusion.label"},
    )
    chain.add_parallel_stage(
        SkillTask("vision", "see"), SkillTask("language", "read", settings={"size": 3}, missing={"text": "skip"})
    )
    chain.add_stage(
        "fusion",
        inputs={"vision": "see.embedding", "language": ["read.words", "see.embedding"]},
        constants={"top": 5},
        when="not see.is_cat",
        missing={"language": "zeros"},
        defaults={"title": "none"},
        timeout_seconds=2,
        retry=Retry(3),
    )
    chain.add_stage("speech", name="say", retry=Retry(2, 0.3), isolated=True)
    return chain.connect("fusion.label", "say.label")


def refused(text: str) -> ChainError:
    with pytest.raises(ChainError) as caught:
        SkillChain.parse(text, where="chain.yaml")
    return caught.value


# ── read ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_file_means_what_python_would_say() -> None:
    assert SkillChain.parse(TEXT) == expected()
    assert SkillChain.parse(expected().dump()) == expected()


def test_a_file_s_folder_is_where_its_paths_begin(tmp_path: Path) -> None:
    (tmp_path / "chain.yaml").write_text(TEXT, encoding="utf-8")
    chain = SkillChain.load(tmp_path / "chain.yaml")
    assert chain.folder == tmp_path
    assert chain == expected()


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(ChainError, match=r"cannot read .*nowhere.yaml: No such file"):
        SkillChain.load(tmp_path / "nowhere.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9\n")
    with pytest.raises(ChainError, match=r"latin.yaml is no UTF-8 text: byte 9 is 0xe9"):
        SkillChain.load(tmp_path / "latin.yaml")
    (tmp_path / "huge.yaml").write_bytes(b"# " + b"x" * (1 << 22))
    with pytest.raises(ChainError, match=r"huge.yaml has more than 262144 characters, which no chain needs"):
        SkillChain.load(tmp_path / "huge.yaml")


def test_words_that_yaml_takes_for_something_else_stay_names() -> None:
    text = "minerua: 1\nname: c\ninputs: {on: text, no: flag, 5: text, null: text}\nsteps: []\n"
    assert list(SkillChain.parse(text).inputs) == ["on", "no", "5", "null"]


def test_dates_stay_texts() -> None:
    text = "minerua: 1\nname: c\nsteps: [{skill: a, constants: {day: 2026-11-22, tiny: 1e-3, more: 1.5e-3}}]\n"
    assert SkillChain.parse(text).tasks[0].constants == {"day": "2026-11-22", "tiny": "1e-3", "more": 0.0015}


def test_all_faults_are_told_at_once_with_their_lines() -> None:
    error = refused(
        """\
minerua: 2
nam: x
inputs:
  image: "floot32[1]"
  text: {type: txt, optinal: true}
steps:
- skil: x
  timeout_seconds: yes
  missing: {a: 5}
  inputs: {a: 5}
  retry: {attempt: 3}
- parallel: []
- parallel:
  - {skill: a,
     wen: x}
- 7
- {skill: a, skill: b}
- {parallel: [{skill: a}], extra: 1}
connections: [5]
"""
    )
    assert error.message == "chain.yaml holds no chain that can be read"
    assert error.faults == (
        "line 1, minerua: Input should be 1, found 2",
        "line 1, name: missing; this key is required",
        "line 2, nam: unknown key; did you mean 'name'?",
        "line 4, inputs.image.type: 'floot32' in 'floot32[1]' is no dtype of numpy; write float32, int64, "
        "bool and so on",
        "line 5, inputs.text.type: no port type is named 'txt'; did you mean 'text'? Known: array, bytes, "
        "flag, integer, list, mapping, number, object, path, text, and arrays such as float32[batch, 64]",
        "line 5, inputs.text.optinal: unknown key; did you mean 'optional'?",
        "line 7, steps.0.skill: missing; this key is required",
        "line 7, steps.0.skil: unknown key; did you mean 'skill'?",
        "line 8, steps.0.timeout_seconds: must be a number, found True",
        "line 9, steps.0.missing.a: must be skip, omit, zeros, fail or {default: VALUE}, found 5",
        "line 10, steps.0.inputs.a: must be a reference such as image or see.embedding, or a list; put "
        "values into constants, found 5",
        "line 11, steps.0.retry.attempt: unknown key; did you mean 'attempts'?",
        "line 12, steps.1.parallel: must hold at least one step, found []",
        "line 15, steps.2.parallel.0.wen: unknown key; did you mean 'when'?",
        "line 16, steps.3: must be a mapping with the keys skill, step, inputs, constants, settings, when, "
        "missing, timeout_seconds, retry, isolated, found 7",
        "line 17: the key 'skill' stands here twice",
        "line 18, steps.5.extra: unknown key; known keys: parallel",
        "line 19, connections.0: must be an output and an input, such as see.embedding -> fuse.vision, found 5",
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "a: &x [1]\nb: *x",
            'chain.yaml is no valid YAML: aliases are refused: write the value out in "chain.yaml", line 2',
        ),
        ("!!python/object/apply:os.system ['touch x']", "python/object/apply:os.system' is refused: values are plain"),
        ("a: !!binary aGk=", "the tag 'tag:yaml.org,2002:binary' is refused"),
        ("[" * 5000, "values are nested more than 40 deep"),
        ("- " * 5000 + "x", "values are nested more than 40 deep"),
        ("- a\n" * 30_000, "there are more than 20000 values"),
        ("a: " + "x" * (1 << 18), "chain.yaml has more than 262144 characters, which no chain needs"),
        ("minerua: " + "9" * 5000, "chain.yaml is no valid YAML: Exceeds the limit"),
        ("a: 0x_", "chain.yaml is no valid YAML: invalid literal for int()"),
        ("a: \x00", "unacceptable character #x0000"),
        ("? [a]\n: b", "a key must be a plain word"),
        ("a: b: c", "mapping values are not allowed here"),
        ("a: 1\n---\nb: 2", "expected a single document"),
        ("", "chain.yaml must hold a mapping with the keys of a chain, found nothing"),
        ("steps:\n\t- skill: x", "found character '\\t' that cannot start any token in \"chain.yaml\", line 2"),
        ("steps:\n\t- skill: x", "^; indent with spaces"),
        ("minerua: 1\nname: 3\nsteps: [{skill: x}]", "line 2, name: must be a text; put it into quotes, found 3"),
        ("minerua: 1\nname: c\nsteps:", "line 3, steps: must be a list, found None"),
        ("minerua: 1\nname: c\nsteps: [{skill: x, settings: 3}]", "steps.0.settings: must be a mapping, found 3"),
        ("minerua: 1\nname: c\nsteps: [{skill: x, isolated: 3}]", "steps.0.isolated: must be true or false, found 3"),
        ("minerua: 1\nname: c\nsteps: [{skill: x, retry: 1.5}]", "retry: must be a mapping with the keys attempts"),
        (
            "minerua: 1\nname: c\nsteps: [{skill: x, retry: {attempts: 1.5}}]",
            "attempts: must be a whole number, found 1",
        ),
        (
            "minerua: 1\nname: c\nsteps: [{skill: x, retry: {attempts: x}}]",
            "attempts: must be a whole number, found 'x'",
        ),
        ("minerua: 1\nname: c\nsteps: [{skill: x, timeout_seconds: x}]", "seconds: must be a number, found 'x'"),
        ("[1]", "chain.yaml must hold a mapping with the keys of a chain, found [1]"),
    ],
    ids=range(25),
)
def test_text_that_is_no_chain_is_refused_soon(text: str, message: str, tmp_path: Path) -> None:
    started = time.process_time()
    assert message in str(refused(text))
    assert time.process_time() - started < 10


@settings(deadline=None)
@given(st.text(st.sampled_from("ab:-[]{}&*!|>'\"\n #?,%@`\t~1.") | st.characters(codec="utf-8"), max_size=60))
def test_any_text_gives_a_chain_or_an_error_of_ours(text: str) -> None:
    with contextlib.suppress(ChainError):
        SkillChain.parse(text)


# ── written ──────────────────────────────────────────────────────────────────────────────────────────────────────────

names = st.sampled_from(["a", "b_2", "on", "null", "länge", "x1"])
references = st.one_of(names, st.tuples(names, names).map(".".join))
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**20), 10**20),
    st.floats(allow_nan=False),
    st.text(max_size=12),
    st.sampled_from(
        ["yes", "2026-11-22", "1e3", "1:30", "0o7", "~", "<<", "=", " ", "- a", "a: b", "#", "\n", "!!x", "&a"]
    ),
)
values = st.recursive(
    scalars, lambda c: st.lists(c, max_size=3) | st.dictionaries(st.text(max_size=5), c, max_size=3), max_leaves=6
)
seconds = st.floats(0, 1e6).map(lambda value: round(value, 6))
retries = st.builds(Retry, st.integers(1, 9), seconds, seconds, seconds)


def mappings(what: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(names, what, max_size=2)


@st.composite
def tasks(draw: st.DrawFn) -> SkillTask:
    missing = draw(mappings(st.sampled_from(["skip", "omit", "zeros", "fail"])))
    defaults = draw(mappings(values))
    return SkillTask(
        draw(st.sampled_from(["vision", "read-text", "no"])),
        draw(st.none() | names),
        inputs=draw(mappings(references | st.lists(references, max_size=3))),
        constants=draw(mappings(values)),
        settings=draw(mappings(values)),
        when=draw(st.lists(references.map(lambda text: f"not {text}") | references, max_size=2)),
        missing={port: policy for port, policy in missing.items() if port not in defaults},
        defaults=defaults,
        timeout_seconds=draw(st.none() | seconds),
        retry=draw(st.just(Retry()) | retries),
        isolated=draw(st.booleans()),
    )


@st.composite
def chains(draw: st.DrawFn) -> SkillChain:
    tensors = st.builds(
        TensorSpec, st.just("x"), st.lists(st.integers(0, 9) | st.just("n"), max_size=3).map(tuple), st.just("int8")
    )
    inputs = draw(mappings(tensors | st.sampled_from(list(WORDS.values()))))
    optional = [name for name in inputs if draw(st.booleans())]
    outputs = draw(st.none() | mappings(references | st.lists(references, max_size=2)))
    chain = SkillChain(draw(st.text(max_size=9)), inputs=inputs, optional=optional, outputs=outputs)
    for stage in draw(st.lists(st.lists(tasks(), min_size=1, max_size=2), max_size=3)):
        chain.add_parallel_stage(*stage)
    for source, target in draw(st.lists(st.tuples(references, references), max_size=2)):
        chain.connect(source, target)
    return chain


@settings(deadline=None, max_examples=40)
@given(chains())
def test_what_is_written_is_read_as_an_equal_chain_and_written_alike(chain: SkillChain) -> None:
    text = chain.dump()
    again = SkillChain.parse(text)
    assert again == chain
    assert again.dump() == text


@pytest.mark.parametrize("text", ["\x85", "a\u2028b", "\n\u2029 ", "\ufeff", "\t\r\n", "'\x85 \n\"\\", "é" * 200])
def test_every_kind_of_line_break_comes_back(text: str) -> None:
    chain = SkillChain(text)
    chain.add_stage("s", constants={"x": [text, {text: text}]})
    assert SkillChain.parse(chain.dump()) == chain


def test_a_chain_without_steps_or_outputs_is_written_as_such() -> None:
    assert SkillChain("c", outputs={}).dump() == "minerua: 1\nname: c\nsteps: []\noutputs: {}\n"
    assert SkillChain("c").dump() == "minerua: 1\nname: c\nsteps: []\n"


def test_what_yaml_cannot_hold_is_told_all_at_once() -> None:
    chain = SkillChain("c", inputs={"x": complex, "y": TensorSpec("y", ("a-b",), "int8"), "z": str})
    chain.add_stage(Skill("own", print), constants={"a": (1, 2), "b": {1: 2}, "c": "\ud800"}, settings={"d": object})
    with pytest.raises(ChainError, match="the chain 'c' cannot be written as YAML") as caught:
        chain.dump()
    assert caught.value.faults == (
        "step 'own': skill 'own' was given as an object; provide it through a plugin and name it here",
        "input 'x' of the chain: complex has no word in files; object takes everything",
        "input 'y' of the chain: int8[a-b] has no word in files; object takes everything",
        "step 'own', settings.d: <class 'object'> is nothing that YAML holds; use texts, numbers, lists",
        "step 'own', constants.a: (1, 2) is nothing that YAML holds; use texts, numbers, lists",
        "step 'own', constants.b.1: 1 is nothing that YAML holds; use texts, numbers, lists",
        "step 'own', constants.c: '\\ud800' is nothing that YAML holds; use texts, numbers, lists",
    )


def test_names_that_are_no_texts_and_values_without_end_are_told() -> None:
    endless: list[object] = []
    endless.append(endless)
    chain = SkillChain(5)  # type: ignore[arg-type]
    chain.add_stage("s", constants={"a": endless})
    with pytest.raises(ChainError) as caught:
        chain.dump()
    assert "'something too deep' is nothing that YAML holds" in str(caught.value)


def test_a_chain_that_would_be_read_as_another_is_not_written() -> None:
    chain = SkillChain("c")
    chain.add_stage("s", missing={"x": "skip"}, defaults={"x": 1})
    with pytest.raises(ChainError, match="cannot be written as YAML: it would be read as a different one"):
        chain.dump()
    nan = SkillChain("c")
    nan.add_stage("s", constants={"x": float("nan")})
    with pytest.raises(ChainError, match="it would be read as a different one"):
        nan.dump()


def test_reading_imports_nothing_whatever_the_skills_are_called() -> None:
    SkillChain.parse(TEXT)
    before = set(sys.modules)
    SkillChain.parse(
        "minerua: 1\nname: c\nsteps: [{skill: ftplib}, {skill: 'turtle:Turtle', settings: {module: nntplib}}]"
    )
    assert set(sys.modules) == before


def test_a_section_that_is_no_mapping_is_told_its_keys() -> None:
    error = refused("minerua: 1\nname: c\ninputs: {x: 5}\nsteps: [{skill: a, retry: x}]\n")
    assert error.faults == (
        "line 3, inputs.x: must be a mapping with the keys type, optional, found 5",
        "line 4, steps.0.retry: must be a mapping with the keys attempts, delay_seconds, factor, most_seconds, "
        "found 'x'",
    )
