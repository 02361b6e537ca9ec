import json

import pytest
import yaml

from minerua.config import EvolutionConfig, ModelConfig, RunConfig, SplitsConfig, TaskConfig, read_yaml, validate
from minerua.errors import ConfigError
from minerua.values import SPLITS

SMALLEST = {"minerua": 1, "base": "b", "experts": {"x": "x", "y": "y"}, "model": "m", "tasks": ["s", "t"]}


def _faults(**changes):
    """The faults of the smallest run file with some keys changed; `...` removes one."""
    content = {key: value for key, value in {**SMALLEST, **changes}.items() if value is not ...}
    config, faults = validate(content)
    assert (config is None) == bool(faults)
    return faults


def _read(tmp_path, text):
    path = tmp_path / "run.yml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_yaml(path)


# ── what is right ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_smallest_run_file_is_filled_up_with_defaults():
    config, faults = validate(SMALLEST)
    assert faults == []
    assert (config.seed, config.evolution.variant, config.splits.fractions["search"]) == (0, "minerua", 0.4)
    assert tuple(config.splits.fractions) == SPLITS
    assert (config.model.name, config.model.settings) == ("m", {})
    assert config.task_names == ("s", "t")


def test_models_and_tasks_may_have_settings_and_are_written_back_as_they_were():
    model = {"name": "m", "settings": {"top": 3}}
    tasks = [
        {"name": "first", "evaluator": "code", "settings": {"path": "a"}},
        {"evaluator": "code", "settings": {"path": "b"}},
        {"name": "alone"},
        "plain",
    ]
    config, faults = validate({**SMALLEST, "model": model, "tasks": tasks})
    assert faults == []
    assert config.task_names == ("first", "code", "alone", "plain")
    assert [task.evaluator for task in config.tasks] == ["code", "code", "alone", "plain"]
    assert config.plain()["model"] == model
    assert config.plain()["tasks"] == [tasks[0], {"name": "code", **tasks[1]}, "alone", "plain"]


def test_a_configuration_survives_json_and_validation():
    config, _ = validate({**SMALLEST, "seed": 7, "evolution": {"bins": 4, "upper_bounds": [1, 0.5]}})
    again, faults = validate(json.loads(json.dumps(config.plain())))
    assert faults == []
    assert again == config
    assert again.plain() == config.plain()


@pytest.mark.parametrize("section", [RunConfig, EvolutionConfig, SplitsConfig, ModelConfig, TaskConfig])
def test_every_key_is_described_in_its_section_s_docstring(section):
    for key in section.model_fields:
        assert f"\n        {key}: " in section.__doc__


@pytest.mark.parametrize(
    ("changes", "place", "value"),
    [
        ({"seed": "5"}, lambda c: c.seed, 5),
        ({"evolution": {"mutation_strength": "3e-4"}}, lambda c: c.evolution.mutation_strength, 3e-4),
        ({"splits": {"search": "4e-1"}}, lambda c: c.splits.search, 0.4),
        ({"time_limit_seconds": 5}, lambda c: c.time_limit_seconds, 5.0),
        ({"evolution": {"bins": 4.0}}, lambda c: c.evolution.bins, 4),
    ],
)
def test_numbers_that_yaml_takes_for_texts_are_numbers(changes, place, value):
    config, faults = validate({**SMALLEST, **changes})
    assert faults == []
    assert place(config) == value


def test_yaml_itself_takes_3e_4_for_a_text():
    assert yaml.safe_load("3e-4") == "3e-4"


# ── what is wrong ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"sead": 1}, "sead: unknown key; did you mean 'seed'?"),
        ({"expert": {}}, "expert: unknown key; did you mean 'experts'?"),
        ({"evolution": {"bin": 3}}, "evolution.bin: unknown key; did you mean 'bins'?"),
        (
            {"evolution": {"mutation_strenght": 1}},
            "evolution.mutation_strenght: unknown key; did you mean 'mutation_str",
        ),
        ({"splits": {"tset": 0.4}}, "splits.tset: unknown key; did you mean 'test'?"),
        ({"splits": {"xyz": 0.4}}, "splits.xyz: unknown key; known keys: search, select, test"),
        ({"minerua": ...}, "minerua: missing; this key is required"),
        ({"base": ...}, "base: missing; this key is required"),
        ({"experts": ...}, "experts: missing; this key is required"),
        ({"model": ...}, "model: missing; this key is required"),
        ({"tasks": ...}, "tasks: missing; this key is required"),
    ],
)
def test_wrong_and_missing_keys_are_told_with_their_place_and_the_nearest_one(changes, fault):
    (found,) = _faults(**changes)
    assert found.startswith(fault)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"minerua": 2}, "minerua: Input should be 1, found 2"),
        ({"minerua": "one"}, "minerua: Input should be 1, found 'one'"),
        ({"minerua": True}, "minerua: must be a number, found True"),
        ({"seed": -1}, "seed: Input should be greater than or equal to 0, found -1"),
        ({"seed": 2**63}, "seed: Input should be less than 9223372036854775808, found 9223372036854775808"),
        ({"seed": 1.5}, "seed: Input should be a valid integer, got a number with a fractional part, found 1.5"),
        ({"seed": True}, "seed: must be a number, found True"),
        ({"seed": None}, "seed: Input should be a valid integer, found None"),
        ({"seed": "zero"}, "seed: Input should be a valid integer, unable to parse string as an integer, found 'zero'"),
        ({"base": 3}, "base: Input is not a valid path for <class 'pathlib.Path'>, found 3"),
        ({"experts": ["x", "y"]}, "experts: Input should be a valid dictionary, found ['x', 'y']"),
        ({"experts": {"x": "x"}}, "experts: Dictionary should have at least 2 items after validation, not 1"),
        ({"experts": {"x": "x", "y": 3}}, "experts.y: Input is not a valid path for <class 'pathlib.Path'>, found 3"),
        ({"model": ["m"]}, "model: must be a name, or a mapping with name and settings, found ['m']"),
        ({"model": {"settings": {}}}, "model.name: missing; this key is required"),
        ({"model": {"name": "m", "setings": {}}}, "model.setings: unknown key; did you mean 'settings'?"),
        (
            {"tasks": ["s", 7]},
            "tasks.1: must be an evaluator's name, or a mapping with evaluator, settings and name, fo",
        ),
        (
            {"tasks": ["s", {"name": "t", "path": "x"}]},
            "tasks.1.path: unknown key; known keys: name, evaluator, settin",
        ),
        ({"tasks": ["s", {"name": "s", "evaluator": "t"}]}, "tasks: a task is named twice, found ['s', {'name': 's',"),
        ({"tasks": "s"}, "tasks: Input should be a valid tuple, found 's'"),
        ({"tasks": ["s"]}, "tasks: Tuple should have at least 2 items after validation, not 1, found ['s']"),
        ({"tasks": ["s", "s"]}, "tasks: a task is named twice, found ['s', 's']"),
        ({"evolution": None}, "evolution: Input should be a valid dictionary or instance of EvolutionConfig, found No"),
        ({"evolution": {"variant": "papers"}}, "evolution.variant: Input should be 'minerua', 'paper' or 'repo', fou"),
        ({"evolution": {"evaluations": 0}}, "evolution.evaluations: Input should be greater than or equal to 1, fou"),
        ({"evolution": {"batch": 0}}, "evolution.batch: Input should be greater than or equal to 1, found 0"),
        ({"evolution": {"bins": 1001}}, "evolution.bins: Input should be less than or equal to 1000, found 1001"),
        ({"evolution": {"mutation": "svd"}}, "evolution.mutation: Input should be 'literal', "),
        ({"evolution": {"mutation_strength": -1}}, "evolution.mutation_strength: Input should be greater than or eq"),
        (
            {"evolution": {"mutation_top": -1}},
            "evolution.mutation_top: Input should be greater than or equal to 0, fou",
        ),
        ({"evolution": {"mutation_top": True}}, "evolution.mutation_top: must be a number, found True"),
        (
            {"evolution": {"mutation": "gaussian", "mutation_top": 4}},
            "evolution: mutation_top is about singular values, which the mutation 'gaussian' does not touch; leave one "
            "of the two out",
        ),
        ({"evolution": {"precision": "half"}}, "evolution.precision: Input should be 'float32' or 'float64', found 'h"),
        ({"evolution": {"sampling": "best"}}, "evolution.sampling: Input should be 'elite', "),
        ({"evolution": {"merges": "mean"}}, "evolution.merges: Input should be a valid tuple, found 'mean'"),
        ({"evolution": {"lower_bounds": [0, "x"]}}, "evolution.lower_bounds.1: Input should be a valid number, "),
        ({"evolution": {"upper_bounds": [True]}}, "evolution.upper_bounds.0: must be a number, found True"),
        ({"splits": [0.4, 0.2, 0.4]}, "splits: Input should be a valid dictionary or instance of SplitsConfig, fou"),
        ({"time_limit_seconds": 0}, "time_limit_seconds: Input should be greater than 0, found 0"),
        ({"time_limit_seconds": float("inf")}, "time_limit_seconds: Input should be a finite number, found inf"),
        ({"time_limit_seconds": float("nan")}, "time_limit_seconds: Input should be a finite number, found nan"),
        ({"time_limit_seconds": False}, "time_limit_seconds: must be a number, found False"),
    ],
)
def test_wrong_values_are_told_with_their_place_and_what_was_found(changes, fault):
    (found,) = _faults(**changes)
    assert found.startswith(fault)


@pytest.mark.parametrize("sums", [(0.5, 0.2, 0.4), (0.4, 0.2, 0.3), (0.4, 0.2, 0.4 + 1e-6)])
def test_splits_must_sum_to_one(sums):
    (fault,) = _faults(splits=dict(zip(SPLITS, sums, strict=True)))
    assert fault == f"splits: search, select and test must sum to 1, found {sum(sums):g}"


@pytest.mark.parametrize("sums", [(0.1, 0.2, 0.7), (1 / 3, 1 / 3, 1 / 3), (0.98, 0.01, 0.01)])
def test_splits_may_sum_to_one_but_for_rounding(sums):
    assert _faults(splits=dict(zip(SPLITS, sums, strict=True))) == []


@pytest.mark.parametrize("share", [0, 1, -0.1, 1.5])
def test_a_split_s_share_lies_between_zero_and_one(share):
    (fault,) = _faults(splits={"search": share, "select": 0.2, "test": 0.4})
    assert fault.startswith("splits.search: Input should be ")


def test_keys_must_be_texts():
    assert validate({**SMALLEST, 7: 1})[1] == ["7: Keys should be strings, found 7"]
    assert validate({**SMALLEST, "experts": {"x": "x", 2: "y"}})[1] == [
        "experts.2.[key]: Input should be a valid string, found 2"
    ]


def test_all_faults_are_told_at_once():
    faults = _faults(
        minerua=3,
        seed=-1,
        base=...,
        experts={"x": "x"},
        tasks=["s", "s"],
        evolution={"bins": 0, "mutatoin": "literal"},
        splits={"search": 0.9},
        sead=1,
    )
    assert [fault.partition(":")[0] for fault in faults] == [
        "minerua",
        "seed",
        "base",
        "experts",
        "tasks",
        "evolution.bins",
        "evolution.mutatoin",
        "splits",
        "sead",
    ]


def test_a_huge_wrong_value_is_shown_shortened():
    (fault,) = _faults(model=["m" * 1_000_000])
    assert len(fault) < 200
    assert fault.endswith("...")


# ── the file ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_mapping_is_read_as_it_stands(tmp_path):
    text = "minerua: 1\nexperts: {x: a, y: ä}  # a comment\ntasks:\n- s\n- t\nnothing:\n"
    expected = {"minerua": 1, "experts": {"x": "a", "y": "ä"}, "tasks": ["s", "t"], "nothing": None}
    assert _read(tmp_path, text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\nseed: 2", "the key 'seed' stands here twice in .*, line 2, column 1"),
        ("evolution:\n  bins: 1\n  batch: 2\n  bins: 3", "the key 'bins' stands here twice in .*, line 4, column 3"),
        ("a: [{b: 1, b: 2}]", "the key 'b' stands here twice"),
        ("? [a, b]\n: 1", "a key must be a plain word in .*, line 1"),
        ("? {a: b}\n: 1", "a key must be a plain word in .*, line 1"),
        ("a: [1, 2", "expected ',' or ']'"),
        ("\ta: 1", "cannot start any token"),
        ("a: 1\n---\nb: 1", "expected a single document"),
        ("a: \x01", "special characters are not allowed"),
        (b"a: \xff", "'utf-8' codec can't decode byte 0xff"),
        ("a: 2001-13-45", "month must be in 1..12"),
        ("a: " + "9" * 5000, "Exceeds the limit"),
        ("a: " + "[" * 600, "recursion"),
    ],
)
def test_what_is_no_yaml_is_refused_with_its_place(tmp_path, text, message):
    with pytest.raises(ConfigError, match=rf"run\.yml is no valid YAML: .*{message}"):
        _read(tmp_path, text)


@pytest.mark.parametrize(
    "text",
    [
        "a: !!python/object/apply:os.system [echo]",
        "a: !!python/name:os.system",
        "a: !secret b",
        "a: !!bool foo",
        "a: !!timestamp foo",
        "a: !!binary AAAA",
        "!!set {a, b}",
        "a: [!!int x]",
    ],
)
def test_tags_are_refused(tmp_path, text):
    with pytest.raises(ConfigError, match=r"the tag '.*' is refused in .*, line 1"):
        _read(tmp_path, text)


@pytest.mark.parametrize("text", ["a: &x 1\nb: *x", "a: &a [*a]", "a: &x {b: 1}\nc: {d: *x}"])
def test_aliases_are_refused(tmp_path, text):
    with pytest.raises(ConfigError, match=r"aliases are refused: write the value out in .*line"):
        _read(tmp_path, text)


def test_a_few_lines_cannot_fill_the_memory(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    with pytest.raises(ConfigError, match="aliases are refused"):
        _read(tmp_path, "\n".join([*lines, "base: *a11"]))


@pytest.mark.parametrize(
    ("text", "kind"), [("", "NoneType"), ("- a", "list"), ("word", "str"), ("3", "int"), ("# nothing", "NoneType")]
)
def test_a_file_must_hold_a_mapping(tmp_path, text, kind):
    with pytest.raises(ConfigError, match=rf"run\.yml must hold a mapping of keys, found {kind}"):
        _read(tmp_path, text)


def test_a_file_that_cannot_be_read_says_why(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read .*gone\.yml: No such file or directory"):
        read_yaml(tmp_path / "gone.yml")
    with pytest.raises(ConfigError, match=r"cannot read .*: Is a directory"):
        read_yaml(tmp_path)
