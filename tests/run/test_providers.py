import pytest

from minerua.config import ModelConfig, TaskConfig
from minerua.errors import BrokenPlugin, ConfigError, UnknownName
from minerua.run import prepare
from minerua.run.providers import evaluator_of, model_of
from minerua.values import EvaluatorSpec, ModelSpec, RunContext

from ..worlds import Toys, build, evaluator, make_world, registry_of


def _family(configure):
    return EvaluatorSpec("family", configure=configure)


def _made(settings, context):
    if settings.get("task") not in (0, 1, 2):
        raise ConfigError("these settings make no task", [f"task: {settings.get('task')!r}", "more: missing"])
    return evaluator(settings["task"])


def _registry(*, configure=_made, model=None):
    models = [] if model is None else [ModelSpec("kind", configure=model)]
    return registry_of(Toys(evaluators=[_family(configure)], models=models))


def _task(**content):
    return TaskConfig.model_validate({"evaluator": "family", **content})


def test_a_family_makes_a_task_of_settings_under_the_task_s_name(tmp_path):
    context = RunContext(tmp_path, workers=3)
    seen = []

    def configure(settings, given):
        seen.append(given)
        return _made(settings, given)

    spec = evaluator_of(_registry(configure=configure), _task(name="mine", settings={"task": 1}), context)
    assert (spec.name, spec.configure) == ("mine", None)
    assert list(spec.items()) == list(evaluator(1).items())
    assert seen == [context]


def test_a_whole_run_file_may_configure_its_model_and_its_tasks(tmp_path):
    seen = []

    def model(settings, context):
        seen.append((settings, context))
        return ModelSpec("kind", build, version=str(settings["depth"]))

    registry = _registry(model=model)
    tasks = [{"name": f"t{k}", "evaluator": "family", "settings": {"task": k}} for k in range(3)]
    world = make_world(tmp_path)
    world.rewrite(model={"name": "kind", "settings": {"depth": 2}}, tasks=tasks, evolution={"merges": ["mean"]})
    prepared = prepare(world.run, registry, workers=5)
    assert [task.name for task in prepared.tasks] == ["t0", "t1", "t2"]
    assert (prepared.model.name, prepared.model.version) == ("kind", "2")
    assert seen == [({"depth": 2}, RunContext(tmp_path, tmp_path / "base", 5))]


def test_every_fault_of_every_task_is_told_at_once(tmp_path):
    world = make_world(tmp_path)
    tasks = [
        {"evaluator": "family", "settings": {"task": 9}},
        {"name": "x", "evaluator": "toy-0", "settings": {"a": 1}},
    ]
    world.rewrite(tasks=tasks, model={"name": "toy-network", "settings": {"depth": 2}})
    with pytest.raises(ConfigError) as caught:
        prepare(world.run, _registry())
    told = "\n".join(caught.value.faults)
    assert "evaluator 'family': these settings make no task: task: 9" in told
    assert "evaluator 'family': these settings make no task: more: missing" in told
    assert "task 'x' takes no settings, found a; leave them out" in told
    assert "model 'toy-network' takes no settings, found depth; leave them out" in told


def test_an_unknown_name_is_told_with_the_nearest(tmp_path):
    with pytest.raises(UnknownName, match="toy-network"):
        model_of(_registry(), ModelConfig(name="toy-networc"), RunContext(tmp_path))


def _raises(settings, context):
    raise ZeroDivisionError("by zero")


@pytest.mark.parametrize(
    ("configure", "message"),
    [
        (_raises, "evaluator 'family' cannot be configured: ZeroDivisionError: by zero"),
        (
            lambda settings, context: "text",
            "evaluator 'family': configure must return an EvaluatorSpec that needs no se",
        ),
        (lambda settings, context: _family(_made), "configure must return an EvaluatorSpec that needs no settings"),
    ],
)
def test_a_broken_family_is_named(tmp_path, configure, message):
    with pytest.raises(BrokenPlugin) as caught:
        evaluator_of(_registry(configure=configure), _task(), RunContext(tmp_path))
    assert message in str(caught.value)


def test_a_family_that_nobody_configured_says_so():
    family = _family(_made)
    for use in (family.items, lambda: family.evaluate(None, [], 0), lambda: ModelSpec("kind").build({})):
        with pytest.raises(ConfigError, match="this is a family that must be configured first"):
            use()
