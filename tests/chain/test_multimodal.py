"""Systems of several modalities: branches, what happens where one is missing, predictions and accuracies."""

from __future__ import annotations

import numpy as np
import pytest

from minerua.chain.multimodal import Modality, MultiModalSystem, OpenSystem
from minerua.chain.plan import ExecutionPlan
from minerua.chain.running.executor import ChainExecutor
from minerua.chain.writing.chain import SkillChain, SkillTask
from minerua.errors import ChainError
from minerua.values import Skill, TensorSpec

ROW = TensorSpec("row", (1, 2), "float32")


def encoder(name, sense):
    """Doubles a row."""
    return Skill(name, lambda **given: {"features": 2 * given[sense]}, {sense: ROW}, {"features": ROW}, pure=True)


SKILLS = {
    "see": encoder("see", "image"),
    "hear": encoder("hear", "sound"),
    "half": Skill("half", lambda features: {"features": features / 2}, {"features": ROW}, {"features": ROW}),
    "fuse": Skill(
        "fuse",
        lambda vision, audio: {"total": float(vision.sum() + 10 * audio.sum())},
        {"vision": ROW, "audio": ROW},
        {"total": float},
    ),
    "judge": Skill("judge", lambda total: {"large": total > 5}, {"total": float}, {"large": bool}),
}


def system(*, missing="zeros", **fusion):
    image = Modality(ROW, (SkillTask("see"), SkillTask("half", "rest", {"features": "see.features"})))
    sound = Modality(ROW, (SkillTask("hear"),))
    fuse = SkillTask("fuse", inputs={"vision": "rest.features", "audio": "hear.features"}, **fusion)
    outputs = {"total": "fuse.total", "large": "judge.large"}
    return MultiModalSystem(
        "senses",
        {"image": image, "sound": sound},
        (fuse, SkillTask("judge", inputs={"total": "fuse.total"})),
        outputs=outputs,
        missing=missing,
    )


def row(*numbers):
    return np.array([numbers], np.float32)


def test_all_modalities_reach_the_fusion_through_their_branches():
    with system().open(SKILLS) as opened:
        found = opened.predict(image=row(1, 2), sound=row(1, 0))
    assert found == {"total": 3.0 + 10 * 2.0, "large": True}


@pytest.mark.parametrize(
    ("given", "total"), [({"image": row(1, 2)}, 3.0), ({"sound": row(0, 1)}, 20.0), ({"image": row(0, 0)}, 0.0)]
)
def test_a_missing_modality_is_zeros_and_its_branch_does_not_run(given, total):
    with system().open(SKILLS) as opened:
        assert opened.predict(**given) == {"total": total, "large": total > 5}
        result = opened.executor.run(given)
    ran = {span.step for span in result.trace.spans if span.outcome == "ok"}
    assert total == result["total"]
    assert not ran & ({"hear"} if "image" in given else {"see", "rest"})


def test_with_the_policy_skip_nothing_comes_out_where_a_modality_is_missing():
    with system(missing="skip").open(SKILLS) as opened:
        assert opened.predict(image=row(1, 2)) == {}
        assert opened.predict(image=row(1, 2), sound=row(0, 0)) == {"total": 3.0, "large": False}


def test_what_the_fusion_says_itself_is_left_as_it_is():
    chain = system(missing="fail", defaults={"vision": row(7, 7)}).chain
    (fuse,) = (task for task in chain.tasks if task.title == "fuse")
    assert (dict(fuse.missing), list(fuse.defaults)) == ({"audio": "fail"}, ["vision"])


def test_branches_of_different_lengths_stand_stage_beside_stage():
    stages = [[task.title for task in stage] for stage in system().chain.stages]
    assert stages == [["see", "hear"], ["rest"], ["fuse"], ["judge"]]


def test_the_chain_can_be_written_and_read():
    chain = system().chain
    assert SkillChain.parse(chain.dump()) == chain
    assert chain.optional == ("image", "sound")


def test_accuracy_is_told_for_every_choice_of_modalities():
    examples = [({"image": row(a, 0), "sound": row(b, 0)}, a + 20 * b > 5) for a in (0, 3, 6, 9) for b in (0, 1)]
    with system().open(SKILLS) as opened:
        found = opened.accuracy(examples, output="large")
    assert found == {("image", "sound"): 1.0, ("image",): 0.75, ("sound",): 0.75}


def test_a_system_can_be_opened_around_an_executor_of_its_chain():
    built = system()
    with OpenSystem(("image", "sound"), ChainExecutor(ExecutionPlan.plain(built.chain.graph(SKILLS)))) as opened:
        assert opened.predict(sound=row(1, 1))["total"] == 40.0


# ── what cannot be ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "nothing was given; give at least one of image, sound"),
        ({"smell": 1}, "no modality is named 'smell'. Known: image, sound"),
        ({"image": row(1, 2), "sund": 1}, "no modality is named 'sund'; did you mean 'sound'"),
    ],
)
def test_what_is_no_modality_cannot_be_predicted_from(given, message):
    with system().open(SKILLS) as opened, pytest.raises(ChainError, match="'senses' cannot predict") as caught:
        opened.predict(**given)
    assert message in str(caught.value)


def test_an_accuracy_of_nothing_is_refused():
    with system().open(SKILLS) as opened, pytest.raises(ChainError, match="needs at least one example, found none"):
        opened.accuracy([], output="large")


def test_a_system_without_its_parts_tells_all_that_is_missing():
    with pytest.raises(ChainError, match="the system 'bare' cannot be built") as caught:
        MultiModalSystem("bare", {}, ())
    assert caught.value.faults == (
        "there is no modality; give at least one",
        "there is no fusion; give at least one step",
    )
    with pytest.raises(ChainError) as caught:
        MultiModalSystem(
            "loose", {"image": Modality(ROW, ()), "sound": Modality(ROW, (SkillTask("hear"),))}, (SkillTask("fuse"),)
        )
    assert caught.value.faults == (
        "modality 'image' has no steps",
        "the fusion 'fuse' takes nothing from a branch; name its inputs, such as {'vision': 'hear.features'}",
    )


def test_faults_of_the_chain_are_told_when_it_is_opened():
    with pytest.raises(ChainError, match="no skill is named 'judge'"):
        system().open({name: skill for name, skill in SKILLS.items() if name != "judge"})
