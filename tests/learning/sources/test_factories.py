import pytest

from minerua.errors import BrokenPlugin, ConfigError, UnknownName
from minerua.learning.sources.factories import call_of, dataset_of, named_skill
from minerua.registry import Registry
from minerua.values import Skill

ROWS = [(0.0, 0), (1.0, 1)]


def test_a_skill_is_called_once_with_its_settings(tmp_path):
    calls = []

    def make(count):
        calls.append(count)
        return {"dataset": ROWS[:count]}

    assert dataset_of(Skill("rows", call=make), {"count": 1}, tmp_path) == ROWS[:1]
    assert calls == [1]


def test_a_skill_may_be_configured_and_loaded_first(tmp_path):
    def configure(settings, context):
        return Skill("rows", load=lambda setup: lambda: {"dataset": (settings["count"], context.folder)})

    assert dataset_of(Skill("rows", configure=configure), {"count": 3}, tmp_path) == (3, tmp_path)


def test_an_unknown_skill_is_told_the_nearest():
    skills = {"digit-rows": Skill("digit-rows", call=dict)}
    with pytest.raises(ConfigError, match="no skill is named 'digit-row'; did you mean 'digit-rows'"):
        named_skill(skills, "digit-row")


def test_a_registry_says_itself_who_might_have_a_skill():
    with pytest.raises(ConfigError, match="no skill is named 'rows'") as caught:
        named_skill(Registry.of().skills, "rows")
    assert isinstance(caught.value.__cause__, UnknownName)


@pytest.mark.parametrize(
    ("skill", "error", "said"),
    [
        (Skill("rows"), BrokenPlugin, "skill 'rows' has nothing to call: neither call, load nor configure gave it"),
        (Skill("rows", call=lambda: 7), BrokenPlugin, "skill 'rows' returned int; data needs a mapping with the key"),
        (
            Skill("rows", call=lambda: {"a": 1, "b": 2}),
            BrokenPlugin,
            "skill 'rows' returned a mapping of a, b; data needs",
        ),
        (Skill("rows", call=lambda x: x), ConfigError, "skill 'rows' could not make a dataset of {}: TypeError"),
    ],
)
def test_a_skill_that_makes_no_dataset_is_named(tmp_path, skill, error, said):
    with pytest.raises(error) as caught:
        dataset_of(skill, {}, tmp_path)
    assert said in str(caught.value)


def test_a_mistake_that_a_skill_names_itself_is_passed_on(tmp_path):
    def make():
        raise ConfigError("no such year")

    with pytest.raises(ConfigError, match=r"^no such year$"):
        dataset_of(Skill("rows", call=make), {}, tmp_path)


async def _awaited():
    return {}


def _yielding():
    yield {}


@pytest.mark.parametrize("call", [_awaited, _yielding])
def test_what_only_a_chain_can_call_is_refused(tmp_path, call):
    with pytest.raises(ConfigError, match="skill 'rows' is a coroutine or a generator; data needs a plain function"):
        call_of(Skill("rows", call=call), {}, tmp_path)
