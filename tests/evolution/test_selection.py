import numpy as np
import pytest

from minerua.errors import EvolutionError
from minerua.evolution import SAMPLERS, Archive, Bounds, elite_probabilities, elite_probabilities_of_repository
from minerua.evolution.selection import sample_parents


def filled(means):
    archive = Archive(0, Bounds((0.0,) * len(means[0]), (1.0,) * len(means[0])), bins=50)
    for id, row in enumerate(means):
        archive.add(id, str(id), row)
    return archive


@pytest.mark.parametrize("tasks", [2, 3, 4, 5])
def test_paper_factors_lie_between_alpha_low_and_alpha_high(tasks):
    means = np.vstack([np.zeros(tasks), np.ones(tasks), np.random.default_rng(0).uniform(0, 1, (20, tasks))])
    probabilities = elite_probabilities(means)
    assert probabilities.sum() == pytest.approx(1.0)
    assert probabilities.max() / probabilities.min() == pytest.approx(1.6**tasks)


def test_best_to_worst_ratio_for_three_tasks_is_4_1_in_the_paper_and_17_6_in_the_repository():
    means = np.array([[0.1, 0.1, 0.1], [0.9, 0.9, 0.9]])
    paper = elite_probabilities(means)
    repository = elite_probabilities_of_repository(means[:, 0], np.array([[0, 0], [14, 14]]))
    assert paper[1] / paper[0] == pytest.approx(4.096)
    assert repository[1] / repository[0] == pytest.approx(17.576)


def test_paper_formula_is_the_product_over_all_tasks():
    means = np.array([[0.2, 0.5], [0.6, 0.3], [0.4, 0.4]])
    gamma = [(0.5 + 0.0 * 0.3) * (0.5 + 1.0 * 0.3), 0.8 * 0.5, 0.65 * 0.65]
    assert elite_probabilities(means) == pytest.approx(np.array(gamma) / sum(gamma))


def test_repository_factors_lie_between_0_5_and_1_3_and_use_bin_indices():
    quality, bins = np.array([0.2, 0.3, 0.6]), np.array([[3], [3], [9]])
    gamma = np.array([0.5 * 0.5, (0.5 + 0.8 * 0.25) * 0.5, 1.3 * 1.3])
    assert elite_probabilities_of_repository(quality, bins) == pytest.approx(gamma / gamma.sum())


def test_a_task_on_which_all_elites_are_equal_favours_nobody():
    means = np.array([[0.2, 0.7], [0.6, 0.7]])
    assert elite_probabilities(means)[1] / elite_probabilities(means)[0] == pytest.approx(1.6)
    flat = elite_probabilities_of_repository(means[:, 0], np.array([[4], [4]]))
    assert flat[1] / flat[0] == pytest.approx(2.6)
    assert elite_probabilities(np.full((3, 2), 0.5)) == pytest.approx(np.full(3, 1 / 3))


@pytest.mark.parametrize("name", SAMPLERS)
def test_parents_are_distinct_and_drawn_with_the_sampler_s_probabilities(name):
    archive = filled([(0.1, 0.1), (0.5, 0.5), (0.9, 0.9)])
    generator = np.random.default_rng(0)
    draws = [sample_parents(archive, SAMPLERS[name], generator) for _ in range(4000)]
    assert all(a != b for a, b in draws)
    assert all(int(a) > int(b) for a, b in draws), "the better parent comes first"
    p = SAMPLERS[name](archive)
    pairs = [p[i] * p[j] / (1 - p[i]) + p[j] * p[i] / (1 - p[j]) for i, j in ((1, 0), (2, 0), (2, 1))]
    found = [np.mean([pair == (str(i), str(j)) for pair in draws]) for i, j in ((1, 0), (2, 0), (2, 1))]
    assert found == pytest.approx(pairs, abs=0.03)


def test_uniform_sampling_gives_every_elite_the_same_chance():
    assert SAMPLERS["uniform"](filled([(0.1, 0.2), (0.9, 0.8)])).tolist() == [0.5, 0.5]


def test_a_single_elite_is_both_parents_and_an_empty_archive_has_none():
    assert sample_parents(filled([(0.5, 0.5)]), SAMPLERS["elite"], np.random.default_rng(0)) == ("0", "0")
    with pytest.raises(EvolutionError, match="task 0 is empty: nobody in it can be a parent"):
        sample_parents(Archive(0, Bounds((0, 0), (1, 1))), SAMPLERS["elite"], np.random.default_rng(0))
