import numpy as np
import pytest

from minerua.errors import ConfigError
from minerua.evolution import read_journal
from minerua.evolution.variants import VARIANTS
from minerua.run import execute, prepare
from minerua.values import SPLITS, EvaluatorSpec, MergeMethodSpec, ModelSpec

from ..worlds import COUNTER, Toys, base_tensors, build, make_world, registry_of, tuned_tensors, write_lora, write_model


@pytest.fixture
def world(tmp_path):
    return make_world(tmp_path)


def _faults(world, *, registry=None):
    with pytest.raises(ConfigError, match=r"run\.yml cannot be run") as caught:
        prepare(world.run, registry or world.registry)
    return caught.value.faults


def _snapshot(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# ── a run that can start ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("tasks", [2, 3, 4, 5])
@pytest.mark.parametrize("kind", ["full", "sharded", "lora", "mixed"])
def test_experts_of_every_kind_are_opened_in_the_run_file_s_order(tmp_path, kind, tasks):
    world = make_world(tmp_path, tasks=tasks, kind=kind)
    prepared = prepare(world.run, world.registry)
    assert [expert.name for expert in prepared.experts] == [f"expert-{k}" for k in range(tasks)]
    assert [task.name for task in prepared.tasks] == [f"toy-{k}" for k in range(tasks)]
    assert prepared.base.digest == world.base.digest
    assert prepared.model.name == "toy-network"
    assert all(set(task.ids) == set(SPLITS) and all(task.ids.values()) for task in prepared.tasks)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_weights_may_have_any_of_the_three_dtypes(tmp_path, dtype):
    world = make_world(tmp_path, dtype=dtype)
    assert prepare(world.run, world.registry).base.specs["body.weight"].dtype == dtype


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_a_variant_keeps_its_settings_but_for_those_that_the_run_file_gives(world, variant):
    world.rewrite(evolution={"variant": variant})
    assert prepare(world.run, world.registry).variant == VARIANTS[variant]
    world.rewrite(evolution={"variant": variant, "mutation_strength": 0.0, "crossover_per_tensor": False, "merges": []})
    changed = prepare(world.run, world.registry).variant
    assert (changed.mutation_strength, changed.crossover_per_tensor, changed.merges) == (0.0, False, ())
    assert changed.sampling == VARIANTS[variant].sampling


def test_active_tasks_are_tasks(world):
    world.rewrite(evolution={"active": ["toy-1", "toy-9"]})
    (fault,) = _faults(world)
    assert fault.startswith("evolution.active: no task is named 'toy-9'; did you mean")


def test_a_run_may_draw_its_parents_from_one_archive_alone(world, tmp_path):
    world.rewrite(evolution={"active": ["toy-2"], "evaluations": 3, "merges": ["mean"]})
    execute(world.run, registry=world.registry, out=tmp_path / "out")
    asked = [event for event in read_journal(tmp_path / "out/journal.jsonl") if event["event"] == "ask"]
    assert {child["task"] for event in asked for child in event["children"]} == {"toy-2"}


def test_merges_are_found_by_name(world):
    world.rewrite(evolution={"merges": ["regmean", "mean"]})
    assert [merge.name for merge in prepare(world.run, world.registry).merges] == ["regmean", "mean"]


def test_paths_start_at_the_run_file(world, monkeypatch):
    monkeypatch.chdir("/")
    assert prepare(world.run, world.registry).base.path == world.folder / "base"
    absolute = {name: str(world.folder / name) for name in world.content["experts"]}
    world.rewrite(base=str(world.folder / "base"), experts=absolute)
    assert prepare(world.run, world.registry).base.path == world.folder / "base"


def test_nothing_is_written(world):
    before = _snapshot(world.folder)
    prepare(world.run, world.registry)
    assert _snapshot(world.folder) == before
    world.rewrite(model="gone", base="gone")
    before = _snapshot(world.folder)
    _faults(world)
    assert _snapshot(world.folder) == before


def test_the_same_run_file_deals_the_same_items(world):
    one, two = (prepare(world.run, world.registry) for _ in range(2))
    assert [task.ids for task in one.tasks] == [task.ids for task in two.tasks]
    world.rewrite(seed=4)
    assert [task.ids for task in prepare(world.run, world.registry).tasks] != [task.ids for task in one.tasks]


# ── all faults at once ───────────────────────────────────────────────────────────────────────────────────────────────


def test_faults_of_run_file_plugins_weights_and_items_are_told_at_once(tmp_path):
    silent = EvaluatorSpec("silent", list, lambda model, ids, seed: [])
    world = make_world(tmp_path, toys=Toys(evaluators=[silent]))
    tuned = tuned_tensors(base_tensors(), seed=0)
    tuned["body.bias"][2] = np.inf
    tuned[COUNTER] = tuned[COUNTER] + 1
    write_model(tmp_path / "expert-0", tuned)
    (tmp_path / "expert-2" / "model.safetensors").write_bytes(b"short")
    world.rewrite(
        sead=1,
        model="toy-netwrok",
        tasks=["toy-0", "toy-7", "silent"],
        evolution={"bins": 0, "merges": ["regmaen"]},
    )
    faults = _faults(world)
    wanted = [
        "evolution.bins: Input should be greater than or equal to 1, found 0",
        "sead: unknown key; did you mean 'seed'?",
        "no model is named 'toy-netwrok'; did you mean 'toy-network'?",
        "no evaluator is named 'toy-7'",
        "no merge method is named 'regmaen'; did you mean 'regmean'?",
        "tensor 'body.bias': 1 of 8 numbers are NaN or infinite, first at [2]",
        "steps: int64 values differ from the base",
        "model.safetensors: too short: 5 bytes",
        "evaluator 'silent' has no items",
    ]
    for words in wanted:
        assert sum(words in fault for fault in faults) == 1, words
    assert len(faults) == len(wanted)


def test_faults_of_items_are_told_with_those_of_a_valid_run_file(tmp_path):
    few = EvaluatorSpec("few", lambda: ["one"], lambda model, ids, seed: [1.0])
    world = make_world(tmp_path, toys=Toys(evaluators=[few]), evolution={"variant": "paper"})
    world.rewrite(tasks=["toy-0", "few"], model="gone")
    one, two = _faults(world)
    assert one.startswith("no model is named 'gone'. Known: toy-network")
    assert two.startswith("the tasks' items cannot be split into search, select and test: evaluator 'few': its 1 items")


@pytest.mark.parametrize("key", ["base", "experts", "model", "tasks"])
def test_a_missing_key_is_told_once(world, key):
    world.rewrite(**{key: None})
    (fault,) = _faults(world)
    assert fault == f"{key}: missing; this key is required"


@pytest.mark.parametrize("wrong", [3, [1], {"a": 1}, ""])
@pytest.mark.parametrize("key", ["base", "experts", "model", "tasks", "evolution"])
def test_nonsense_in_the_run_file_is_told_without_a_crash(world, key, wrong):
    world.rewrite(**{key: wrong})
    assert all(isinstance(fault, str) for fault in _faults(world))


def test_a_run_file_that_is_no_mapping_is_told_alone(world):
    world.run.write_text("- a\n- b\n")
    with pytest.raises(ConfigError, match="must hold a mapping of keys, found list"):
        prepare(world.run, world.registry)


def test_a_base_with_nan_is_refused(world):
    tensors = base_tensors()
    tensors["body.weight"][1, 2] = np.nan
    write_model(world.folder / "base", tensors)
    faults = _faults(world)
    wanted = (
        "holds numbers that are not finite; restore it from a copy: "
        "tensor 'body.weight': 1 of 48 numbers are NaN or infinite"
    )
    assert any(wanted in fault for fault in faults)


def test_without_a_base_broken_experts_are_still_told_and_adapters_are_not_blamed(tmp_path):
    world = make_world(tmp_path, kind="mixed")
    (tmp_path / "expert-2" / "model.safetensors").write_bytes(b"short")
    world.rewrite(base="gone")
    base, broken = _faults(world)
    assert "gone: No such file or directory" in base
    assert "expert-2 cannot be opened as a checkpoint: model.safetensors: too short" in broken


def test_an_adapter_that_does_not_fit_the_base_is_told_with_the_others(world):
    folder = write_lora(world.folder / "adapter", {"body.weight": 1}, seed=0)
    tensors = base_tensors()
    tensors["body.weight"] = np.zeros((9, 9), np.float32)
    write_model(world.folder / "base", tensors)
    world.rewrite(experts={"tuned": "expert-0", "adapter": folder.name}, evolution={"variant": "paper"})
    tuned, adapter = _faults(world)
    assert "tuned has tensor 'body.weight' with shape [8, 6], the base [9, 9]" in tuned
    assert "adapter cannot be used as a LoRA adapter: module 'body'" in adapter


# ── settings that do not go together ─────────────────────────────────────────────────────────────────────────────────


def _blind(tmp_path, **settings):
    """A world with a model that tells no activations and an evaluator that gives no inputs."""
    blind = EvaluatorSpec("blind", lambda: [f"i{i}" for i in range(40)], lambda model, ids, seed: [1.0] * len(ids))
    toys = Toys(evaluators=[blind], models=[ModelSpec("opaque", build)])
    return make_world(tmp_path, toys=toys, **settings)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        (
            {"evolution": {"variant": "repo"}, "tasks": ["toy-0", "toy-1"]},
            "evolution.mutation: 'expert' needs one expert per task, in the same order; found 3 experts and 2 tasks",
        ),
        (
            {"evolution": {"variant": "paper", "lower_bounds": [0.1]}},
            "evolution.lower_bounds: one number per task is needed: found 1 for 3 tasks",
        ),
        (
            {"evolution": {"variant": "paper", "upper_bounds": [0.1, 0.2, 0.3, 0.4]}},
            "evolution.upper_bounds: one number per task is needed: found 4 for 3 tasks",
        ),
        (
            {"evolution": {"merges": ["mean", "regmean"]}, "model": "opaque"},
            "evolution.merges: regmean needs activations, which model 'opaque' cannot give; "
            "write `merges: [mean]` to go without",
        ),
        (
            {"evolution": {"merges": ["regmean"]}, "tasks": ["toy-0", "toy-1", "blind"]},
            "evolution.merges: regmean needs unlabelled inputs, which blind cannot give; "
            "write `merges: [mean]` to go without",
        ),
        (
            {"evolution": {"merges": ["regmean"]}, "tasks": ["toy-0", "toy-1"]},
            "evolution.merges: regmean needs one expert per task, in the same order; "
            "found 3 experts and 2 tasks; write `merges: [mean]` to go without",
        ),
        (
            {"evolution": {"merges": ["slerp"]}},
            "evolution.merges: slerp cannot seed a population, because a run file cannot set its t; "
            "merge with `minerua merge`, and name the result as an expert",
        ),
        (
            {"evolution": {"variant": "paper"}, "experts": {"mean": "expert-0", "base": "expert-1", "x": "expert-2"}},
            "experts: base, mean: the report has rows of this name already; choose another one",
        ),
        (
            {
                "evolution": {"merges": ["regmean"]},
                "experts": {"regmean": "expert-0", "b": "expert-1", "c": "expert-2"},
            },
            "experts: regmean: the report has rows of this name already; choose another one",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_told(tmp_path, changes, fault):
    world = _blind(tmp_path)
    world.rewrite(**changes)
    assert _faults(world) == (fault,)


def test_what_needs_no_inputs_runs_without_them(tmp_path):
    world = _blind(tmp_path)
    world.rewrite(evolution={"merges": ["mean"]}, model="opaque", tasks=["toy-0", "blind"])
    assert prepare(world.run, world.registry).model.name == "opaque"


def test_a_merge_method_of_a_plugin_is_found(tmp_path):
    half = MergeMethodSpec("half", lambda vectors, weights: vectors[0] / 2)
    world = make_world(tmp_path, evolution={"merges": ["half"]})
    assert prepare(world.run, registry_of(Toys(merges=[half]))).merges == (half,)
