"""The small world: what evaluators ask was never learned, every reference answer is right when it is executed."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
from minerua_agent_tasks import plugin
from minerua_agent_tasks.world import SKILLS, Sizes, write_world, writing
from minerua_agent_tasks.world.__main__ import main
from minerua_agent_tasks.world.drawing import Draw
from minerua_agent_tasks.world.tokens import END, UNKNOWN

from minerua.errors import ConfigError, StorageError
from minerua.registry import Registry
from minerua.values import RunContext

SMALL = Sizes(items=40, examples=150, sentences=60)
SETTINGS = {
    "coding": ("coding", {}),
    "database": ("database", {"prompt": "{prompt}"}),
    "shell": ("operating-system", {"prompt": "{prompt}", "turns": 2, "verify": False}),
}

SLIPS = {
    "coding": ((" > ", " >= "), (" + ", " - "), (" < ", " <= ")),
    "database": ((" > ", " >= "), (" < ", " <= "), (" AND ", " OR "), (" OR ", " AND ")),
}
"""Skill → what a model may get nearly right."""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    write_world(folder, seed=3, sizes=SMALL)
    return folder


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def solution(item):
    return item.get("canonical_solution") or item.get("example") or item.get("solution")


# ── what is in it ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_same_seed_writes_the_same_bytes_and_another_seed_writes_others(world, tmp_path):
    write_world(tmp_path / "same", seed=3, sizes=SMALL)
    write_world(tmp_path / "other", seed=4, sizes=SMALL)
    assert contents(tmp_path / "same") == contents(world)
    other = contents(tmp_path / "other")
    assert other.keys() == contents(world).keys()
    assert other[Path("items/coding.jsonl")] != contents(world)[Path("items/coding.jsonl")]


def test_there_is_as_much_of_everything_as_the_sizes_say(world):
    for skill in SKILLS:
        assert len(rows(world / "items" / f"{skill}.jsonl")) == 40
    counts = {skill: len(rows(world / "examples" / f"{skill}.jsonl")) for skill in SKILLS}
    assert counts == {"coding": 150, "database": 150, "shell": 300}  # a shell task has two turns
    assert len(rows(world / "examples" / "base.jsonl")) == sum(counts.values()) + 60
    assert len(rows(world / "general.jsonl")) == 6


def test_a_whole_world_has_350_items_and_at_least_2000_examples_of_each_skill():
    assert Sizes().items == 350
    assert Sizes().examples >= 2000


def test_ids_are_distinct_in_a_file_and_equal_prompts_have_equal_ids_in_every_world(world, tmp_path):
    write_world(tmp_path, seed=5, sizes=Sizes(items=120, examples=10, sentences=10))
    ids: dict[str, str] = {}
    for folder in (world, tmp_path):
        for skill in SKILLS:
            items = rows(folder / "items" / f"{skill}.jsonl")
            named = [item.get("task_id", item.get("id")) for item in items]
            assert len(set(named)) == len(named)
            for id, item in zip(named, items, strict=True):
                assert ids.setdefault(item["prompt"], id) == id
    assert len(set(ids.values())) == len(ids)


@pytest.mark.parametrize("skill", SKILLS)
def test_no_item_is_an_example_and_half_of_them_are_of_templates_that_no_example_has(world, skill):
    learned = [row["prompt"] for row in rows(world / "examples" / f"{skill}.jsonl")]
    asked = [item["prompt"] for item in rows(world / "items" / f"{skill}.jsonl")]
    assert not set(learned) & set(asked)
    combinations: dict[bool, set[tuple[str, str]]] = {True: set(), False: set()}
    chance = random.Random(1)
    for _ in range(4000):
        draw = Draw(chance)
        prompt = SKILLS[skill](draw).turns[0]
        combinations[draw.held_out].add((draw.template, " ".join(re.findall(r"\d+", prompt))))
    assert not combinations[True] & combinations[False]
    known = {template for template, _ in combinations[False]}
    strange = [template for template, _ in combinations[True] if template not in known]
    assert 0.4 < len(strange) / len(combinations[True]) < 0.8


def test_sentences_that_are_set_aside_are_not_learned(world):
    learned = {row["prompt"] + row["answer"] for row in rows(world / "examples" / "base.jsonl")}
    held = [row["text"] for row in rows(world / "general.jsonl")]
    assert all(text.startswith("The ") and text.endswith(".") for text in held)
    assert not learned & set(held)


# ── executed ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class Solver:
    """A model that knows what to say to each prompt, and repeats what its command has printed."""

    def __init__(self, known):
        self.known = known

    def __call__(self, conversations):
        return [self.answer(conversation) for conversation in conversations]

    def answer(self, conversation):
        if isinstance(conversation, str):
            return self.known[conversation]
        if len(conversation) == 1:
            return self.known[conversation[0]["content"]]
        printed = conversation[-1]["content"]
        return "done" if printed == "(no output)" else f"answer: {printed}"


def evaluator(world, skill):
    name, settings = SETTINGS[skill]
    registry = Registry.of(plugin)
    assert registry.problems == ()
    return registry.evaluators[name].configure({"path": f"items/{skill}.jsonl", **settings}, RunContext(world, None, 2))


def known(world, skill):
    """Returns prompt → reference answer; of the questions to a database from what drew them."""
    turns = [task.turns for task in writing.item_tasks(SKILLS[skill], writing.chance_of(3, skill, "items"), 40)]
    return {turn[0]: turn[1] for turn in turns}


@pytest.mark.skipif(sys.platform != "linux", reason="strong modes need Linux")
@pytest.mark.parametrize("skill", SKILLS)
def test_every_reference_answer_is_right_when_it_is_executed_and_another_s_is_wrong(world, skill):
    task = evaluator(world, skill)
    ids = list(task.items())
    right = known(world, skill)
    assert [*task.evaluate(Solver(right), ids, 0)] == [1.0] * 40
    shifted = dict(zip(right, [*list(right.values())[1:], *list(right.values())[:1]], strict=True))
    assert sum(task.evaluate(Solver(shifted), ids[:20], 0)) <= 3  # by chance some commands say the same


@pytest.mark.skipif(sys.platform != "linux", reason="strong modes need Linux")
def test_an_answer_that_is_wrong_by_one_sign_is_noticed(world):
    for skill, changes in SLIPS.items():
        task, right = evaluator(world, skill), known(world, skill)
        ids = dict(zip(right, task.items(), strict=True))
        outcomes = []
        for old, new in changes:
            wrong = {prompt: answer.replace(old, new, 1) for prompt, answer in right.items() if old in answer}
            outcomes += [*task.evaluate(Solver(wrong), [ids[prompt] for prompt in wrong], 0)]
        assert len(outcomes) >= 10
        assert sum(outcomes) <= 0.25 * len(outcomes)  # some slips change no answer, such as one in a highest value


def test_the_references_stand_in_the_items(world):
    for skill in SKILLS:
        references = known(world, skill)
        for item in rows(world / "items" / f"{skill}.jsonl"):
            assert solution(item) in (references[item["prompt"]], None)
    asked = [item for item in rows(world / "items" / "database.jsonl") if "answer" in item]
    assert asked
    assert all(solution(item) is None for item in asked)


# ── the tokenizer ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def tokenizer(world):
    transformers = pytest.importorskip("transformers")
    return transformers.PreTrainedTokenizerFast.from_pretrained(str(world / "base"))


def test_the_tokenizer_knows_every_word_and_gives_back_every_text_letter_by_letter(world, tokenizer):
    for row in rows(world / "examples" / "base.jsonl"):
        for text in row.values():
            ids = tokenizer(text)["input_ids"]
            assert tokenizer.unk_token_id not in ids, text
            assert tokenizer.decode(ids) == text
    for skill in SKILLS:
        for prompt, answer in known(world, skill).items():
            assert tokenizer.decode(tokenizer(prompt + answer)["input_ids"]) == prompt + answer
    assert len(tokenizer) < 400


def test_numbers_are_read_digit_by_digit_and_answers_end_with_one_token(tokenizer):
    assert tokenizer.tokenize("above 407") == [UNKNOWN, " ", "4", "0", "7"]
    assert tokenizer.convert_tokens_to_ids(END) == tokenizer.eos_token_id == 1
    assert tokenizer.pad_token_id == 0


def test_a_dialogue_is_read_as_the_examples_of_a_second_turn_have_it(world, tokenizer):
    second = next(row for row in rows(world / "examples" / "shell.jsonl") if END in row["prompt"])
    prompt, _, printed = second["prompt"].partition(END)
    command = next(
        row["answer"]
        for row in rows(world / "examples" / "shell.jsonl")
        if END not in row["prompt"] and prompt == row["prompt"] + row["answer"]
    )
    said = [prompt.removesuffix(command), command, printed]
    messages = [{"role": role, "content": text} for role, text in zip(("user", "assistant", "user"), said, strict=True)]
    assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == second["prompt"]


def test_the_model_has_the_size_that_is_said(world, tokenizer):
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.from_pretrained(str(world / "base"))
    assert config.vocab_size == len(tokenizer)
    model = transformers.AutoModelForCausalLM.from_config(config)
    assert 330_000 < model.num_parameters() < 420_000


# ── mistakes, and the doors ──────────────────────────────────────────────────────────────────────────────────────────


def test_sizes_and_seeds_that_cannot_be_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="a world of these sizes would have empty files") as caught:
        Sizes(items=3, examples=0)
    assert caught.value.faults == ("items is 3; it is at least 10", "examples is 0; it is at least 10")
    with pytest.raises(ConfigError, match="the seed of a world is -1; it is a whole number from 0"):
        write_world(tmp_path, seed=-1, sizes=SMALL)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"the world in .*file cannot be written: "):
        write_world(tmp_path / "file", seed=0, sizes=Sizes(10, 10, 10))


def test_the_command_writes_what_the_function_writes(tmp_path, capsys):
    sizes = ["--items", "12", "--examples", "11", "--sentences", "10"]
    assert main([str(tmp_path / "one"), "--seed", "2", *sizes]) == 0
    write_world(tmp_path / "two", seed=2, sizes=Sizes(12, 11, 10))
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert main([str(tmp_path / "three"), "--items", "2"]) == 2
    assert "items is 2; it is at least 10" in capsys.readouterr().err


def test_the_hooks_import_nothing_of_the_world_before_its_skill_is_called():
    code = "import sys, minerua_agent_tasks.plugin; print([m for m in sys.modules if 'tasks.world' in m])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_skill_of_the_recipe_writes_a_world(tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "Sizes", lambda: Sizes(10, 10, 10))
    skill = Registry.of(plugin).skills["agent-skills-world"]
    assert skill.call(folder=str(tmp_path), seed=1) == {"folder": str(tmp_path)}
    assert len(rows(tmp_path / "items" / "coding.jsonl")) == 10
