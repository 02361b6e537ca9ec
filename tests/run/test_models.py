"""Children that are scored together: over one base, with the outcomes and the journal of one by one."""

import dataclasses
import json

import numpy as np
import pytest

from minerua.errors import JournalError
from minerua.run import execute
from minerua.values import EvaluatorSpec, ModelSpec

from ..worlds import Toys, build, evaluator, make_world, registry_of

MERGES = ["mean"]


class Resident:
    """A model kind that keeps the base and notes how many children it is asked for at a time."""

    def __init__(self, make=None):
        self.opened, self.asked, self._make = 0, [], make
        self.spec = ModelSpec("resident", open=self._open)

    def _open(self, base):
        self.opened += 1

        def children(changes):
            self.asked.append(len(changes))
            made = [build({name: self._tensor(base[name], each.get(name)) for name in base}) for each in changes]
            return self._make(made) if self._make else made

        return children

    @staticmethod
    def _tensor(base, change):
        if change is None:
            return base
        total = change.core if change.left is None else change.left @ change.core
        total = total if change.right is None else total @ change.right.T
        assert total.shape == base.shape
        return base + total


class Joint:
    """A task whose evaluator takes several models, and notes how many."""

    def __init__(self, task, answer=None):
        self.asked, self._answer = [], answer
        self._one = evaluator(task)
        self.spec = dataclasses.replace(self._one, evaluate_many=self._many)

    def _many(self, models, ids, seed):
        self.asked.append(len(models))
        found = [self._one.evaluate(model, part, seed) for model, part in zip(models, ids, strict=True)]
        return found if self._answer is None else self._answer(found)


def _run(folder, *, kind="lora", resident=None, tasks=None, batch=4, evaluations=10, **changes):
    folder.mkdir(exist_ok=True)
    resident = resident or Resident()
    specs = [task.spec for task in (tasks or [Joint(k) for k in range(3)])]
    world = make_world(folder, kind=kind)
    world.rewrite(
        model="resident",
        evolution={"merges": MERGES, "evaluations": evaluations, "batch": batch},
        splits={"search": 0.4, "select": 0.2, "test": 0.4},
        **changes,
    )
    return world, registry_of(Toys(evaluators=specs, models=[resident.spec]))


def _events(folder):
    return [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]


def _outcomes(folder):
    return [
        event.get("scores") or event.get("failed") for event in _events(folder) if event["event"] in ("seed", "tell")
    ]


@pytest.mark.parametrize("kind", ["lora", "full", "mixed"])
def test_children_over_one_base_score_as_children_that_are_built(tmp_path, kind):
    resident, joint = Resident(), [Joint(k) for k in range(3)]
    world, registry = _run(tmp_path / "together", kind=kind, resident=resident, tasks=joint)
    summary = execute(world.run, registry=registry)
    alone, registry = _run(tmp_path / "alone", kind=kind)
    alone.rewrite(
        **{
            **json.loads(json.dumps(world.content)),
            "model": "toy-network",
            "evolution": {"merges": MERGES, "evaluations": 10, "batch": 4},
        }
    )
    expected = execute(alone.run, registry=registry)
    assert resident.opened == 1
    assert set(joint[0].asked) <= {2, 3, 4}
    assert 4 in joint[0].asked
    for row, other in zip(summary.rows, expected.rows, strict=True):
        assert row.name == other.name
        assert [task.mean for task in row.tasks] == pytest.approx([task.mean for task in other.tasks], abs=1e-5)


def test_a_run_that_is_cut_anywhere_goes_on_with_the_same_rows_beside_each_child(tmp_path):
    world, registry = _run(tmp_path / "whole")
    execute(world.run, registry=registry)
    whole = (tmp_path / "whole/journal.jsonl").read_bytes()
    lines = whole.splitlines(keepends=True)
    told = [k for k, line in enumerate(lines) if b'"tell"' in line]
    for cut in (told[1], told[3], told[4], told[-1], len(lines) - 3):
        joint = [Joint(k) for k in range(3)]
        world, registry = _run(tmp_path / f"cut-{cut}", tasks=joint)
        (world.folder / "journal.jsonl").write_bytes(b"".join(lines[:cut]))
        execute(world.run, registry=registry, resume=True)
        assert (world.folder / "journal.jsonl").read_bytes() == whole
        if cut in told:
            place = told.index(cut)
            assert joint[0].asked[0] == min(4, 10 - place // 4 * 4)  # the whole batch, although some of it was known


def test_an_evaluator_that_fails_on_all_is_asked_for_each_and_says_so(tmp_path):
    def refuse(found):
        raise RuntimeError("too much at once")

    world, registry = _run(tmp_path / "one", tasks=[Joint(0, refuse), Joint(1), Joint(2)])
    with pytest.warns(
        RuntimeWarning, match="could not be scored together: RuntimeError: too much at once; each is sco"
    ):
        execute(world.run, registry=registry)
    other, registry = _run(tmp_path / "two")
    execute(other.run, registry=registry)
    assert _outcomes(world.folder) == _outcomes(other.folder)


def test_outcomes_that_are_none_are_told_and_the_model_is_scored_by_itself(tmp_path):
    world, registry = _run(
        tmp_path / "one", tasks=[Joint(0, lambda found: [np.full(3, 2.0), *found[1:]]), Joint(1), Joint(2)]
    )
    with pytest.warns(RuntimeWarning, match="toy-0: .* outcomes were expected, one per item, found shape"):
        execute(world.run, registry=registry)
    other, registry = _run(tmp_path / "two")
    execute(other.run, registry=registry)
    assert _outcomes(world.folder) == _outcomes(other.folder)


def test_models_that_are_too_few_are_a_fault_of_the_plugin(tmp_path):
    world, registry = _run(tmp_path / "one", resident=Resident(lambda made: made[:-1]))
    with (
        pytest.warns(RuntimeWarning, match="made 3 callables of 4 children"),
        pytest.raises(Exception, match="no expert"),
    ):
        execute(world.run, registry=registry)


def test_tasks_without_joint_scoring_are_scored_one_by_one(tmp_path):
    resident = Resident()
    world, _ = _run(tmp_path / "one", resident=resident)
    plain = registry_of(Toys(models=[resident.spec]))
    execute(world.run, registry=plain)
    assert set(resident.asked) == {1}


def test_a_time_limit_holds_for_models_together_too(tmp_path):
    import time

    def sleep(found):
        time.sleep(1.0)
        return found

    world, registry = _run(
        tmp_path / "one", tasks=[Joint(0, sleep), Joint(1), Joint(2)], time_limit_seconds=0.05, evaluations=4
    )
    with pytest.warns(RuntimeWarning, match="models gave no answer within . times time_limit_seconds"):
        execute(world.run, registry=registry)


def test_another_version_of_a_task_is_another_run(tmp_path):
    world, registry = _run(tmp_path / "one")
    execute(world.run, registry=registry)
    changed = [evaluator(k) for k in (1, 2)] + [dataclasses.replace(evaluator(0), version="2")]
    with pytest.raises(JournalError) as caught:
        execute(world.run, registry=registry_of(Toys(evaluators=changed, models=[Resident().spec])), resume=True)
    assert "versions.tasks.toy-0" in "\n".join(caught.value.faults)


def test_an_evaluator_spec_has_no_joint_form_unless_it_is_given():
    assert EvaluatorSpec("t", list, lambda model, ids, seed: []).evaluate_many is None
