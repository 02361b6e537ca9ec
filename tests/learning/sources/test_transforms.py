import numpy as np
import pytest
import torch

from minerua.learning.data_config import TransformsConfig
from minerua.learning.sources.transforms import Transform, shifted


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def transform(*, scale=1.0, **settings):
    return Transform(TransformsConfig(**settings), scale=scale)


def test_numbers_become_float32_and_the_row_stays_as_it_is():
    row = np.arange(4, dtype=np.uint8)
    seen = transform().apply(row)
    assert seen.dtype == np.float32
    assert not np.shares_memory(seen, row)
    assert seen.flags.writeable


def test_scaling_comes_before_normalising():
    row = np.full((2, 1, 1), 255, np.uint8)
    seen = transform(scale=1 / 255, mean=[0.5, 0.25], std=[0.5, 0.25]).apply(row)
    assert seen.ravel().tolist() == pytest.approx([1, 3])


def test_ids_keep_their_digits():
    assert transform(dtype="int64").apply(np.array([2**60 + 1])).tolist() == [2**60 + 1]


def test_one_mean_is_for_all_columns_and_several_are_one_each():
    assert transform(mean=1).apply(np.array([1, 3])).tolist() == [0, 2]
    assert transform(mean=[1, 3]).apply(np.array([1, 3])).tolist() == [0, 0]


AUGMENT = {"flip": 0.5, "shift": 2, "noise": 0.1}


def test_augmentation_is_a_function_of_the_generator_s_state():
    row, one = np.random.default_rng(0).random((3, 8, 8)), transform(augment=AUGMENT)
    seen = [one.apply(row, generator(seed)).tobytes() for seed in range(20)]
    assert seen == [one.apply(row, generator(seed)).tobytes() for seed in range(20)]
    assert len(set(seen)) == 20


def test_nothing_is_drawn_without_a_generator():
    row = np.random.default_rng(0).random((3, 8, 8)).astype(np.float32)
    assert (transform(augment=AUGMENT).apply(row) == row).all()


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    transform(augment=AUGMENT).apply(np.ones((1, 4, 4)), generator())
    assert torch.equal(torch.get_rng_state(), before)


def test_a_certain_flip_mirrors_the_last_axis():
    row = np.arange(4.0).reshape(2, 2)
    assert transform(augment={"flip": 1}).apply(row, generator()).tolist() == [[1, 0], [3, 2]]


@pytest.mark.parametrize("down", [-2, -1, 0, 1, 2])
@pytest.mark.parametrize("right", [-2, 0, 1])
def test_a_shift_moves_every_element_by_the_same_step(down, right):
    row = np.arange(1, 21).reshape(1, 4, 5)
    moved = shifted(row, down, right)
    for y in range(4):
        for x in range(5):
            inside = 0 <= y - down < 4 and 0 <= x - right < 5
            assert moved[0, y, x] == (row[0, y - down, x - right] if inside else 0)


def test_noise_has_its_deviation():
    noise = transform(augment={"noise": 0.5}).apply(np.zeros(20_000), generator())
    assert noise.std() == pytest.approx(0.5, rel=0.05)
    assert noise.dtype == np.float32


@pytest.mark.parametrize(
    ("settings", "shape", "said"),
    [
        ({"mean": [1, 2]}, (3, 8, 8), "transforms.mean has 2 numbers, the rows' first axis has 3"),
        ({"std": [1, 2]}, (), "transforms.std has 2 numbers, the rows' first axis has none"),
        ({"augment": {"shift": 1}}, (8,), "flip needs rows of 1 axis and shift of 2, found shape [8]"),
        ({"augment": {"shift": 8}}, (8, 8), "transforms.augment.shift moves rows of shape [8, 8] out of sight"),
    ],
)
def test_what_does_not_fit_the_rows_is_named(settings, shape, said):
    (fault,) = transform(**settings).faults(shape)
    assert said in fault


def test_what_fits_has_no_faults():
    assert transform(mean=[1, 2, 3], std=2, augment=AUGMENT).faults((3, 8, 8)) == []
