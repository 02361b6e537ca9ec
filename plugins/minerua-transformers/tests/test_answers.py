"""Answers: the same as transformers' own, one at a time or many, alone or beside other children."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from minerua_transformers import answers
from minerua_transformers.caching import make_room
from minerua_transformers.generation import Row
from minerua_transformers.loading import quiet
from minerua_transformers.sampling import draws, next_tokens
from minerua_transformers.settings import Settings
from small_language_models import (
    ENDS,
    KINDS,
    WORDS,
    prompts,
    random_changes,
    random_model,
    save_model,
    spec_of,
    tensors_of,
)

from minerua.errors import CheckpointError
from minerua.values import Change
from minerua.weights import open_checkpoint


def oracle(folder, prompt, *, length=12):
    """Returns transformers' own greedy answer."""
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    with quiet():
        model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        given = {"max_new_tokens": length, "do_sample": False, "pad_token_id": 0}
        out = model.generate(ids, attention_mask=torch.ones_like(ids), **given)
    return tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_answers_are_those_of_transformers_for_single_prompts(folders, kind):
    asked = prompts(6)
    model = spec_of(folders[kind], batch_size=4).build(tensors_of(folders[kind]))
    assert model(asked) == [oracle(folders[kind], prompt) for prompt in asked]


@pytest.mark.parametrize("dense", [False, True], ids=["bases", "dense"])
@pytest.mark.parametrize("kind", KINDS)
def test_children_answer_the_same_one_at_a_time_and_eight_and_thirty_two_at_once(folders, kind, dense, monkeypatch):
    tensors, asked = tensors_of(folders[kind]), prompts(3)
    children = spec_of(folders[kind], max_new_tokens=6).open(tensors)
    changes = random_changes(tensors, 32, dense=dense)
    single = [children([change])[0](asked) for change in changes]
    assert len({tuple(answers) for answers in single}) > 16  # children differ, or the test says nothing
    for count in (8, 32):
        together = children(changes[:count])
        assert together[0].desk.resident.is_joint
        assert together[0].together(together, [asked] * count) == single[:count]


@pytest.mark.parametrize("dense", [False, True], ids=["bases", "dense"])
@pytest.mark.parametrize("kind", KINDS)
def test_large_matrices_go_through_their_cores_with_the_same_losses(folders, kind, dense, monkeypatch):
    monkeypatch.setattr("minerua_transformers.ways.SMALL_BYTES", 0)
    tensors, texts = tensors_of(folders[kind]), prompts(4, seed=3)
    children = spec_of(folders[kind]).open(tensors)
    changes = random_changes(tensors, 5, dense=dense)
    single = [children([change])[0].losses(texts) for change in changes]
    together = children(changes)
    np.testing.assert_allclose(together[0].together_losses(together, [texts] * 5), single, rtol=2e-5)
    assert np.ptp(single, axis=0).min() > 1e-3


def test_a_child_may_be_asked_other_things_than_the_next_and_may_change_less(folders):
    tensors = tensors_of(folders["llama"])
    changes = random_changes(tensors, 3)
    changes[1] = {"model.norm.weight": changes[1]["model.norm.weight"]}
    changes[2] = {}
    asked = [prompts(5, seed=1), [], prompts(2, seed=2)]
    children = spec_of(folders["llama"]).open(tensors)
    single = [children([change])[0](said) for change, said in zip(changes, asked, strict=True)]
    together = children(changes)
    assert together[0].together(together, asked) == single
    assert children([]) == []


def test_in_place_a_child_has_exactly_the_bytes_of_materialising(folders, tmp_path):
    from minerua.weights import Subspace, materialise, open_expert, write_checkpoint
    from minerua.weights.materialise import changes_of

    base = open_checkpoint(folders["qwen2"])
    numbers = np.random.default_rng(0)
    tuned = {n: base.tensor(n) + 0.01 * numbers.standard_normal(base.specs[n].shape).astype("f4") for n in base.specs}
    write_checkpoint(tmp_path / "expert.safetensors", tuned)
    expert = open_expert("expert", tmp_path / "expert.safetensors", base)
    subspace = Subspace(base, {"expert": expert.task_vector})
    genome = subspace.combine([subspace.founders["expert"]], np.array([[0.7]]))
    wanted = materialise(subspace, genome).tensors
    (child,) = spec_of(folders["qwen2"]).open(tensors_of(folders["qwen2"]))([changes_of(subspace, genome)])
    found = {name: p.numpy() for name, p in child.desk.resident.loaded.places.items()}
    assert found.keys() == wanted.keys()
    assert all(np.array_equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_base_is_borrowed_and_comes_back_after_a_child(tmp_path, dtype):
    folder = save_model(random_model(KINDS["llama"]()), tmp_path / "m", dtype=dtype)
    tensors = tensors_of(folder)
    children = spec_of(folder).open(tensors)
    changes = random_changes(tensors, 2)
    (model,) = children([{}])
    places = model.desk.resident.loaded.places
    assert {name: p.data_ptr() for name, p in places.items()} == {n: a.ctypes.data for n, a in tensors.items()}
    before = model(prompts(3))
    children(changes[:1])
    assert all(places[name].data_ptr() != array.ctypes.data for name, array in tensors.items())
    children(changes)  # beside the base
    assert {name: p.data_ptr() for name, p in places.items()} == {n: a.ctypes.data for n, a in tensors.items()}
    assert children([{}])[0](prompts(3)) == before


def test_a_bfloat16_child_in_place_is_rounded_once(tmp_path):
    folder = save_model(random_model(KINDS["llama"]()), tmp_path / "m", dtype=torch.bfloat16)
    tensors = tensors_of(folder)
    (change,) = random_changes(tensors, 1)
    (child,) = spec_of(folder).open(tensors)([change])
    name = "model.layers.0.mlp.up_proj.weight"
    one = change[name]
    wanted = (tensors[name].astype("f4") + one.left @ one.core @ one.right.T).astype(tensors[name].dtype)
    found = child.desk.resident.loaded.places[name].view(torch.int16).numpy()
    assert np.array_equal(found, wanted.view(np.int16))
    assert child.desk.resident.loaded.module.dtype == torch.bfloat16


def test_a_model_whose_layers_are_joined_is_computed_child_by_child(tmp_path):
    torch.manual_seed(0)
    config = transformers.MixtralConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
        num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=64, **ENDS
    )  # fmt: skip
    folder = save_model(random_model(config), tmp_path / "m")
    tensors = tensors_of(folder)
    names = [name for name in tensors if "self_attn" in name or name.endswith("gate.weight")]
    changes = random_changes({name: tensors[name] for name in names}, 3)
    children = spec_of(folder, max_new_tokens=5).open(tensors)
    single = [children([change])[0](prompts(3)) for change in changes]
    with pytest.warns(UserWarning, match="cannot be computed for several children at a time"):
        together = children(changes)
    assert not together[0].desk.resident.is_joint
    assert together[0].together(together, [prompts(3)] * 3) == single
    expert = next(name for name in tensors if "experts.0" in name)
    with pytest.raises(CheckpointError, match=r"joins these tensors with others(.|\n)*experts\.0"):
        children([{expert: Change(np.zeros(tensors[expert].shape, "f4"))}])


def test_a_layer_that_is_never_called_lets_children_be_computed_one_by_one(folders, monkeypatch):
    tensors = tensors_of(folders["llama"])
    changes = random_changes({"lm_head.weight": tensors["lm_head.weight"]}, 2)
    children = spec_of(folders["llama"]).open(tensors)
    single = [children([change])[0](prompts(3)) for change in changes]
    together = children(changes)
    module = together[0].desk.resident.loaded.module
    kind = type(module)

    def forward(self, input_ids, attention_mask=None, position_ids=None, past_key_values=None, use_cache=None):
        out = self.model(input_ids, attention_mask, position_ids, past_key_values, use_cache=use_cache)
        logits = out.last_hidden_state @ self.lm_head.weight.T  # reads the weight without calling the layer
        return transformers.modeling_outputs.CausalLMOutputWithPast(logits=logits, past_key_values=out.past_key_values)

    monkeypatch.setattr(kind, "forward", forward)
    with pytest.warns(UserWarning, match="a changed layer is never called by this model"):
        assert together[0].together(together, [prompts(3)] * 2) == single


def test_small_children_whose_prompts_fill_batches_are_asked_one_after_another(folders, monkeypatch):
    tensors = tensors_of(folders["llama"])
    changes = random_changes(tensors, 4)
    children = spec_of(folders["llama"], batch_size=8).open(tensors)
    asked = {count: prompts(count, seed=count, longest=20) for count in (4, 7)}
    single = {count: [children([change])[0](asked[count]) for change in changes] for count in asked}
    together = children(changes)
    resident = together[0].desk.resident
    alone = []

    def noted(number):
        alone.append(number)
        return child(number)

    child = resident.child
    monkeypatch.setattr(resident, "child", noted)

    def ask(count):
        alone.clear()
        assert together[0].together(together, [asked[count]] * 4) == single[count]
        return list(alone)

    assert ask(4) == []  # two batches in the place of four
    assert ask(7) == [0, 1, 2, 3]  # four and four
    monkeypatch.setattr("minerua_transformers.ways.SMALL_BYTES", 0)  # large ones share the base's products
    together = children(changes)
    assert ask(7) == []


def test_models_of_different_bases_are_asked_together_too(folders):
    one, other = (spec_of(folders[kind]).build(tensors_of(folders[kind])) for kind in ("llama", "gpt2"))
    assert one.together([one, other], [prompts(2), prompts(3)]) == [one(prompts(2)), other(prompts(3))]
    with pytest.raises(ValueError, match="there are 2 models and 1 lists of questions"):
        one.together([one, other], [prompts(2)])


def test_children_of_an_earlier_generation_are_refused(folders):
    children = spec_of(folders["llama"]).open(tensors_of(folders["llama"]))
    (old,) = children([{}])
    children([{}])
    with pytest.raises(RuntimeError, match="one of an earlier generation"):
        old(["w1"])


# ── the cache ────────────────────────────────────────────────────────────────────────────────────────────────────────


def random_steps(seed=0):
    """Yields keys and values of a prompt of five tokens and then of single ones, two rows and three heads."""
    generator = torch.Generator().manual_seed(seed)
    for length in [5, *[1] * 60]:
        yield [torch.randn(2, 3, length, 4, generator=generator) for _ in range(2)]


def test_a_cache_grows_in_place_and_holds_what_transformers_would():
    mine, theirs = transformers.DynamicCache(), transformers.DynamicCache()
    seen = []
    for number, (keys, values) in enumerate(random_steps()):
        if number == 20:  # a row leaves
            for cache in (mine, theirs):
                cache.batch_select_indices(torch.tensor([1]))
        rows = slice(None) if number < 20 else slice(1)
        found = mine.update(keys[rows], values[rows], 0)
        wanted = theirs.update(keys[rows], values[rows], 0)
        assert all(torch.equal(*pair) for pair in zip(found, wanted, strict=True))
        make_room(mine)
        seen.append(mine.layers[0].keys)
    assert mine.get_seq_length() == theirs.get_seq_length() == 65
    # without room, with room, after the row had left, after room had run out
    assert len({keys.data_ptr() for keys in seen}) == 4


def test_a_cache_that_keeps_a_window_stays_what_it_is(tmp_path):
    config = transformers.MistralConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        sliding_window=4, max_position_embeddings=64, **ENDS
    )  # fmt: skip
    folder = save_model(random_model(config), tmp_path / "m")
    model = spec_of(folder).build(tensors_of(folder))
    assert model(prompts(3)) == [oracle(folder, prompt) for prompt in prompts(3)]
    cache = model.desk.resident.loaded.module(torch.tensor([[1, 2]]), use_cache=True).past_key_values
    layers = list(cache.layers)
    make_room(cache)
    assert cache.layers == layers
    make_room(None)


# ── when answers end ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_prompt_that_leaves_no_room_is_answered_by_none_and_others_by_what_fits(folders):
    model = spec_of(folders["gpt2"], max_new_tokens=100).build(tensors_of(folders["gpt2"]))
    long, short = " ".join(["w1"] * 64), " ".join(["w1"] * 62)
    answers = model([long, short, "w2 w3"])
    assert answers[0] is None
    assert len(answers[1].split()) <= 2
    assert answers[2] == oracle(folders["gpt2"], "w2 w3", length=62)
    assert spec_of(folders["gpt2"], context=3).build(tensors_of(folders["gpt2"]))(["w1 w2 w3", "w1"])[0] is None


def test_a_stop_text_ends_an_answer_and_is_no_part_of_it(folders):
    tensors = tensors_of(folders["llama"])
    whole = spec_of(folders["llama"]).build(tensors)(prompts(4))
    stop = whole[0].split()[3]
    cut = spec_of(folders["llama"], stop=[stop]).build(tensors)(prompts(4))
    assert cut == [answer.partition(stop)[0] for answer in whole]
    assert cut[0] != whole[0]


def test_an_empty_prompt_begins_with_the_token_for_a_beginning(folders):
    model = spec_of(folders["llama"]).build(tensors_of(folders["llama"]))
    assert model([""]) == [oracle(folders["llama"], "<s>")]


# ── drawing ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_draws_do_not_depend_on_the_batch_but_on_the_seed(folders):
    tensors, asked = tensors_of(folders["llama"]), prompts(6)
    model = spec_of(folders["llama"], temperature=1.0, batch_size=4).build(tensors)
    answers = model(asked)
    assert model(asked[3:]) == answers[3:]
    assert spec_of(folders["llama"], temperature=1.0, seed=1).build(tensors)(asked) != answers
    twice = model([asked[0], asked[0]])
    assert twice[0] == answers[0] != twice[1]


def test_tokens_are_drawn_as_often_as_they_are_likely_within_top_k_and_top_p():
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]])).repeat(4000, 1)
    numbers = torch.from_numpy(np.random.default_rng(0).random(4000, np.float32))

    def shares(**settings):
        drawn = next_tokens(logits, Settings(temperature=1.0, **settings), numbers)
        return np.bincount(drawn, minlength=4) / 4000

    np.testing.assert_allclose(shares(), [0.5, 0.3, 0.15, 0.05], atol=0.03)
    np.testing.assert_allclose(shares(top_k=2), [0.625, 0.375, 0, 0], atol=0.03)
    np.testing.assert_allclose(shares(top_p=0.75), [0.625, 0.375, 0, 0], atol=0.03)
    np.testing.assert_allclose(shares(top_p=1e-6), [1, 0, 0, 0])
    assert next_tokens(torch.zeros(1, 5), Settings(), None).tolist() == [0]  # of equal ones the first


def test_equal_rows_have_draws_of_their_own():
    first, second, other = draws([[1, 2], [1, 2], [3]], 0, 4)
    assert not np.array_equal(first, second)
    assert np.array_equal(draws([[3]], 0, 4)[0], other)
    assert Row(0, [1], 2).numbers.size == 0


# ── probabilities ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_log_likelihoods_and_losses_are_those_of_the_module(folders):
    folder = folders["llama"]
    model = spec_of(folder, batch_size=2).build(tensors_of(folder))
    module = model.desk.resident.loaded.module
    ids = [WORDS.index(word) for word in ["w1", "w2", "w3", "w4"]]
    with torch.no_grad():
        logs = module(torch.tensor([ids])).logits.log_softmax(-1)[0]
        begun = module(torch.tensor([[0, *ids]])).logits.log_softmax(-1)[0]
    wanted = float(logs[1, ids[2]] + logs[2, ids[3]])
    found = model.log_likelihoods([("w1 w2", " w3 w4"), ("w1 w2 ", "w3 w4"), ("w1", ""), ("w1 " * 64, "w2")])
    assert found[0] == pytest.approx((wanted, False), abs=1e-4)
    assert found[1] == found[0]
    assert found[2:] == [None, None]
    loss = -float(sum(begun[k, token] for k, token in enumerate(ids))) / 4
    assert model.losses(["w1 w2 w3 w4", ""]) == [pytest.approx(loss, abs=1e-4), None]


def test_what_greedy_generation_says_is_found_greedy(folders):
    model = spec_of(folders["qwen2"], max_new_tokens=4).build(tensors_of(folders["qwen2"]))
    (answer,) = model(["w5 w6"])
    (found,) = model.log_likelihoods([("w5 w6", f" {answer}")])
    assert found[1]
    assert found[0] < 0


def test_children_have_their_own_log_likelihoods_together(folders):
    tensors = tensors_of(folders["gpt2"])
    changes = random_changes(tensors, 3)
    pairs = [("w1 w2", " w3"), ("", "w4 w5")]
    children = spec_of(folders["gpt2"]).open(tensors)
    single = [children([change])[0].log_likelihoods(pairs) for change in changes]
    together = children(changes)
    found = together[0].together_log_likelihoods(together, [pairs] * 3)
    for mine, theirs in zip(found, single, strict=True):
        assert [one[1] for one in mine] == [one[1] for one in theirs]
        np.testing.assert_allclose([one[0] for one in mine], [one[0] for one in theirs], rtol=1e-5)
    assert len({row[0][0] for row in found}) == 3


def test_threads_are_as_asked_while_it_answers_and_as_before_afterwards(folders, monkeypatch):
    seen = []

    def noted(*arguments):
        seen.append(torch.get_num_threads())
        return generate(*arguments)

    generate = answers.generate
    monkeypatch.setattr(answers, "generate", noted)
    spec = spec_of(folders["llama"], threads=2)
    assert spec.build(tensors_of(folders["llama"]))(["w1 w2"]) == [oracle(folders["llama"], "w1 w2")]
    assert (seen, torch.get_num_threads()) == ([2], 1)
