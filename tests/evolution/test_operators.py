import doctest

import numpy as np
import pytest

from minerua.evolution import READINGS, aggregation_weights, crossover_coefficients, multipliers, operators
from minerua.evolution.operators import SMALLEST_SUM


@pytest.mark.parametrize("deviation", [0.0, 0.01, 0.03, 0.5, 2.0])
def test_crossover_weights_sum_to_one(deviation):
    rows = crossover_coefficients(np.random.default_rng(0), rows=500, deviation=deviation)
    assert rows.sum(axis=1) == pytest.approx(np.ones(500))


@pytest.mark.parametrize(("deviation", "share_deviation"), [(0.03, 0.0106), (0.01, 0.0035)])
def test_share_of_the_first_parent_is_a_half_give_or_take_what_the_paper_and_the_code_imply(deviation, share_deviation):
    share = crossover_coefficients(np.random.default_rng(1), rows=20_000, deviation=deviation)[:, 0]
    assert share.mean() == pytest.approx(0.5, abs=0.001)
    assert share.std() == pytest.approx(share_deviation, rel=0.05)


def test_with_the_paper_s_deviation_nearly_all_shares_lie_between_0_467_and_0_533():
    share = crossover_coefficients(np.random.default_rng(2), rows=20_000, deviation=0.03)[:, 0]
    assert ((share > 0.467) & (share < 0.533)).mean() == pytest.approx(0.998, abs=0.002)


def test_a_wide_crossover_leaves_the_segment_between_its_parents_in_4_5_percent_of_draws():
    share = crossover_coefficients(np.random.default_rng(3), rows=50_000, deviation=0.5)[:, 0]
    assert ((share < 0) | (share > 1)).mean() == pytest.approx(0.045, abs=0.005)


def test_draws_that_nearly_cancel_are_drawn_again():
    class Cancelling:
        def __init__(self):
            self.calls = 0

        def normal(self, mean, deviation, size):
            self.calls += 1
            return np.tile([0.5, -0.5 + SMALLEST_SUM / 2], (size[0], 1)) if self.calls == 1 else np.ones(size)

    assert crossover_coefficients(Cancelling(), rows=3).tolist() == [[0.5, 0.5]] * 3


def uniforms(count):
    return np.random.default_rng(0).random(count)


@pytest.mark.parametrize(
    ("reading", "low", "high"),
    [("literal", 0.0, 0.3), ("additive", 1.0, 1.3), ("two-sided", 0.7, 1.3), ("expert", 0.0, 0.3)],
)
def test_multipliers_of_each_reading_fill_their_range(reading, low, high):
    draws = READINGS[reading](uniforms(10_000), 0.3)
    assert low <= draws.min() < low + 0.01
    assert high - 0.01 < draws.max() <= high
    assert draws.mean() == pytest.approx((low + high) / 2, abs=0.01)


def test_literal_reading_shrinks_the_spectrum_to_15_percent_on_average():
    assert READINGS["literal"](uniforms(100_000), 0.3).mean() == pytest.approx(0.15, abs=0.002)


@pytest.mark.parametrize("reading", ["additive", "two-sided"])
def test_multipliers_of_strength_zero_are_one(reading):
    assert (READINGS[reading](uniforms(5), 0.0) == 1.0).all()


@pytest.mark.parametrize("reading", sorted(READINGS))
@pytest.mark.parametrize("top", [0, 1, 3, 6])
def test_below_the_top_all_singular_values_share_one_multiplier(reading, top):
    settings = {"reading": READINGS[reading], "strength": 0.5}
    drawn = multipliers(uniforms, 7, top=top, **settings)
    own = multipliers(uniforms, 7, **settings)
    assert drawn.shape == own.shape == (7,)
    assert drawn[: top + 1].tolist() == own[: top + 1].tolist()
    assert len(set(drawn[:top])) == top
    assert set(drawn[top:]) == {drawn[-1]}


@pytest.mark.parametrize("top", [7, 8, 1000, None])
def test_a_top_that_takes_in_every_singular_value_changes_nothing(top):
    asked = []

    def counted(count):
        asked.append(count)
        return uniforms(count)

    drawn = multipliers(counted, 7, reading=READINGS["literal"], strength=1.0, top=top)
    assert drawn.tolist() == uniforms(7).tolist()
    assert asked == [7]


def test_examples_of_the_docstrings_hold():
    assert doctest.testmod(operators).failed == 0


def test_aggregation_weights_sum_to_one_and_equal_scores_give_the_plain_mean():
    assert aggregation_weights([0.1, 0.9, 0.4, 0.4]).sum() == pytest.approx(1.0)
    assert aggregation_weights([0.3] * 5) == pytest.approx(np.full(5, 0.2))


def test_aggregation_weights_of_the_paper_s_final_elites():
    assert aggregation_weights([0.73, 0.51, 0.46]).round(2).tolist() == [0.39, 0.31, 0.30]
