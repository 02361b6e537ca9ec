import pickle

import numpy as np
import pytest
import torch

from minerua.errors import BrokenPlugin, ConfigError
from minerua.learning.data_config import TokenizerConfig
from minerua.learning.rows import RowError
from minerua.learning.sources.tokens import IGNORED, PadRows, Tokens
from minerua.values import Skill


def letters(text):
    return {"ids": [ord(letter) for letter in text]}


def tokens(folder, call=letters, **settings):
    skill = call if isinstance(call, Skill) else Skill("letters", call=call)
    return Tokens(TokenizerConfig(skill="letters", **settings), skill, folder)


def test_text_becomes_ids(tmp_path):
    ids = pickle.loads(pickle.dumps(tokens(tmp_path, most=2))).of("abc")
    assert (ids.dtype, ids.tolist()) == (np.int64, [97, 98])
    assert tokens(tmp_path).of({"q": "a", "c": "b"})["c"].tolist() == [98]


def test_a_tokenizer_is_loaded_once(tmp_path):
    loads = []

    def configure(settings, context):
        loads.append(settings)
        return Skill("letters", call=letters)

    made = tokens(tmp_path, Skill("letters", configure=configure), settings={"a": 1})
    made.of("x"), made.of("y")
    assert loads == [{"a": 1}]


@pytest.mark.parametrize(
    ("made", "error", "said"),
    [
        (7, BrokenPlugin, "skill 'letters' must return a mapping with 'ids', found 7"),
        ({"ids": ["a"]}, BrokenPlugin, "skill 'letters' must return a list of whole numbers, found ['a']"),
        ({"ids": []}, RowError, "no ids: the tokenizer makes nothing of abc"),
    ],
)
def test_what_is_no_list_of_ids_is_refused(tmp_path, made, error, said):
    with pytest.raises(error) as caught:
        tokens(tmp_path, lambda text: made).of("abc")
    assert str(caught.value) == said


def test_settings_need_a_skill_that_takes_them(tmp_path):
    with pytest.raises(ConfigError, match=r"tokenizer.settings: skill 'letters' takes none"):
        tokens(tmp_path, settings={"a": 1}).of("x")


def test_shorter_rows_are_filled_up_at_their_end():
    inputs, targets = PadRows(9, mask=False, targets=False)([(np.array([1, 2, 3]), 0), (np.array([4]), 1)])
    assert inputs.tolist() == [[1, 2, 3], [4, 9, 9]]
    assert torch.equal(targets, torch.tensor([0, 1]))


def test_a_mask_says_which_ids_are_the_rows_own():
    inputs, _ = PadRows(0, mask=True, targets=False)([({"q": np.array([1, 2])}, 0), ({"q": np.array([4])}, 1)])
    assert inputs["q"]["ids"].tolist() == [[1, 2], [4, 0]]
    assert inputs["q"]["mask"].tolist() == [[1, 1], [1, 0]]


def test_ids_that_are_targets_are_filled_up_with_what_the_loss_leaves_out():
    row = np.array([1])
    _, targets = PadRows(0, mask=False, targets=True)([(np.array([1, 2]), np.array([1, 2])), (row, row)])
    assert targets.tolist() == [[1, 2], [1, IGNORED]]
    assert torch.nn.functional.cross_entropy(torch.zeros(2, 3, 2), targets).item() == pytest.approx(np.log(3))
