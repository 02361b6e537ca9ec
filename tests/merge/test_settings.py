import doctest
import math
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minerua.merge.recipes import settings as module
from minerua.merge.recipes.ingredients import Input, ModelRef, Recipe, Rule, Setting, Slice
from minerua.merge.recipes.settings import evaluate, resolve, setting_faults
from minerua.values import MergeMethodSpec, MergeParameter

NUMBER = MergeParameter("weight", per_model=True)
FLAG = MergeParameter("normalize", "flag", default=True)
TEXT = MergeParameter("mode", "text", default="plain")
DENSITY = MergeParameter("density", per_model=True, default=1.0, fewest=0.0, most=1.0)
METHOD = MergeMethodSpec("ties", print, parameters=(NUMBER, DENSITY, FLAG, TEXT))


def _setting(*rules, name="weight"):
    return Setting(tuple(rule if isinstance(rule, Rule) else Rule(rule) for rule in rules), f"parameters.{name}")


def _said(**values):
    return {name: _setting(value, name=name) for name, value in values.items()}


def _faults(known=(), **values):
    return setting_faults(
        Recipe("ties", models=(Input(ModelRef("a")),), parameters=_said(**values)), METHOD, known=known
    )


def test_examples_run():
    assert doctest.testmod(module).failed == 0


# ── one setting ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_a_single_number_holds_for_every_layer(t):
    assert evaluate(_setting(0.25), NUMBER, tensor="w", t=t) == 0.25


@pytest.mark.parametrize(("t", "value"), [(0.0, 0.0), (0.25, 0.5), (0.5, 1.0), (0.75, 0.75), (1.0, 0.5)])
def test_a_gradient_runs_over_the_layers_in_straight_lines(t, value):
    assert evaluate(_setting((0, 1, 0.5)), NUMBER, tensor="w", t=t) == value


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=6), st.floats(0, 1))
def test_a_gradient_stays_between_its_numbers(numbers, t):
    value = evaluate(_setting(tuple(numbers)), NUMBER, tensor="w", t=t)
    assert min(numbers) - 1e-9 <= value <= max(numbers) + 1e-9


def test_texts_and_flags_are_chosen_and_not_interpolated():
    values = [evaluate(_setting(("a", "b", "c")), TEXT, tensor="w", t=t) for t in (0.0, 0.49, 0.5, 0.99, 1.0)]
    assert values == ["a", "a", "b", "b", "c"]
    assert [evaluate(_setting((True, False)), FLAG, tensor="w", t=t) for t in (0.0, 0.5, 1.0)] == [True, True, False]


def test_numbers_that_yaml_takes_for_texts_are_numbers():
    assert evaluate(_setting("1e-4"), NUMBER, tensor="w", t=0) == 1e-4
    assert evaluate(_setting(("1e-4", "3e-4")), NUMBER, tensor="w", t=0.5) == pytest.approx(2e-4)


@pytest.mark.parametrize("value", [True, 1, 1.0, "true", "Yes", "on", "1"])
def test_flags_are_read_however_mergekit_takes_them(value):
    assert evaluate(_setting(value), FLAG, tensor="w", t=0) is True
    assert evaluate(_setting(False), FLAG, tensor="w", t=0) is False


def test_the_first_rule_that_fits_holds():
    setting = _setting(Rule(1, "mlp"), Rule(2, "up_proj"), Rule(3, "*"), Rule(4))
    found = [evaluate(setting, NUMBER, tensor=name, t=0) for name in ("mlp.up_proj", "x.up_proj", "norm")]
    assert found == [1, 2, 3]


def test_a_setting_is_silent_where_no_rule_fits_or_its_list_is_empty():
    assert evaluate(_setting(Rule(1, "mlp")), NUMBER, tensor="norm", t=0) is None
    assert evaluate(_setting(()), NUMBER, tensor="norm", t=0) is None
    assert evaluate(Setting(()), NUMBER, tensor="norm", t=0) is None
    assert evaluate(_setting(Rule((), "norm"), Rule(1)), NUMBER, tensor="norm", t=0) is None


# ── who overrides whom ───────────────────────────────────────────────────────────────────────────────────────────────


def test_the_first_place_that_speaks_overrides_the_others():
    places = [{"weight": _setting(Rule(1, "mlp"))}, {}, {"weight": _setting(2)}, {"weight": _setting(3)}]
    assert resolve(NUMBER, places, tensor="mlp.w", t=0) == 1
    assert resolve(NUMBER, places, tensor="norm", t=0) == 2


def test_where_all_are_silent_the_default_holds():
    assert resolve(DENSITY, [{}, {"weight": _setting(3)}], tensor="w", t=0) == 1.0
    assert resolve(NUMBER, [{}], tensor="w", t=0) is None


# ── faults ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"wieght": 1}, "parameters.wieght: no parameter of ties is named 'wieght'; did you mean 'weight'? Known: "),
        ({"weight": "much"}, "parameters.weight: must be a number, found 'much'"),
        ({"weight": True}, "parameters.weight: must be a number, found True"),
        ({"weight": "nan"}, "parameters.weight: must be a number, found 'nan'"),
        ({"weight": "9" * 1000}, "parameters.weight: must be a number, found '999"),
        ({"weight": (0, "x")}, "parameters.weight: must be a number, found 'x'"),
        ({"density": 1.5}, "parameters.density: must be at most 1, found 1.5"),
        ({"density": (0.5, -0.1)}, "parameters.density: must be at least 0, found -0.1"),
        ({"normalize": 2}, "parameters.normalize: must be either true or false, found 2"),
        ({"normalize": "perhaps"}, "parameters.normalize: must be either true or false, found 'perhaps'"),
        ({"mode": 3}, "parameters.mode: must be a text, in quotes if need be, found 3"),
    ],
)
def test_each_mistake_is_named_with_its_place(values, fault):
    faults, notes = _faults(**values)
    assert [found.startswith(fault) for found in faults] == [True]
    assert notes == []


def test_all_faults_are_reported_at_once():
    faults, _ = _faults(weight="x", density=2, normalise=True)
    assert len(faults) == 3


def test_parameters_of_other_methods_are_noted():
    assert _faults(known={"t"}, t=0.5) == ([], ["parameters.t has no effect: ties does not take it"])


def test_a_parameter_of_the_whole_merge_below_a_model_is_noted():
    flag = {"normalize": Setting((Rule(True),), "models[0].parameters.normalize")}
    recipe = Recipe("ties", models=(Input(ModelRef("a"), None, flag),))
    assert setting_faults(recipe, METHOD) == (
        [],
        ["models[0].parameters.normalize has no effect below one model: normalize holds for the whole merge"],
    )


def test_settings_are_checked_at_every_place():
    wrong = Setting((Rule("x", "never fits"),), "slices[0].parameters.weight")
    piece = Slice((Input(ModelRef("a"), (0, 1)),), None, {"weight": wrong})
    assert setting_faults(Recipe("ties", slices=(piece,)), METHOD)[0] == [
        "slices[0].parameters.weight: must be a number, found 'x'"
    ]


SCALARS = st.one_of(
    st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=8), st.sampled_from(["1e-4", "yes", "0"])
)
RULES = st.builds(
    Rule, SCALARS | st.lists(SCALARS, max_size=4).map(tuple), st.none() | st.sampled_from(["*", "mlp", ""])
)


@given(
    st.lists(RULES, max_size=4), st.sampled_from(METHOD.parameters), st.floats(0, 1), st.sampled_from(["mlp.w", "n"])
)
@settings(deadline=timedelta(seconds=1))
def test_what_has_no_fault_comes_to_a_value_of_its_kind(rules, parameter, t, tensor):
    setting = Setting(tuple(rules), "parameters")
    faults, _ = setting_faults(Recipe("ties", parameters={parameter.name: setting}), METHOD)
    if faults:
        return
    value = evaluate(setting, parameter, tensor=tensor, t=t)
    kinds = {"number": float, "flag": bool, "text": str}
    assert value is None or type(value) is kinds[parameter.kind]
    assert not isinstance(value, float) or math.isfinite(value)
