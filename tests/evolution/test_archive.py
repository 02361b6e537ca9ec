import numpy as np
import pytest
from ribs.archives import GridArchive

from minerua.errors import EvolutionError
from minerua.evolution import AddStatus, Archive, Bounds

UNIT = Bounds((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def test_a_score_on_an_edge_belongs_to_the_bin_below_it():
    archive = Archive(0, UNIT, bins=4)
    edges = np.linspace(0, 1, 5)
    for j in range(4):
        assert archive.cell_of((0.5, edges[j + 1], np.nextafter(edges[j], 2))) == (j, j)


def test_scores_at_or_below_the_minimum_fall_into_the_first_bin_and_above_the_maximum_into_the_last():
    archive = Archive(2, Bounds((0.2, 0.2, 0.2), (0.8, 0.8, 0.8)), bins=15)
    assert archive.cell_of((0.2, 0.0, 0.5)) == (0, 0)
    assert archive.cell_of((0.8, 1.0, 0.5)) == (14, 14)


@pytest.mark.parametrize("tasks", [2, 3, 4, 5])
def test_every_dimension_is_clamped_by_its_own_size(tasks):
    archive = Archive(0, Bounds((0.0,) * tasks, (0.5,) * tasks), bins=7)
    assert archive.cell_of((1.0,) * tasks) == (6,) * (tasks - 1)
    assert archive.cells == 7 ** (tasks - 1)


def test_the_cell_key_holds_all_other_tasks_in_order():
    archive = Archive(1, UNIT, bins=10)
    assert archive.others == (0, 2)
    assert archive.cell_of((0.15, 0.99, 0.85)) == (1, 8)


def test_an_empty_cell_is_filled_and_an_occupied_one_only_by_a_strictly_better_child():
    archive = Archive(0, UNIT, bins=2)
    assert archive.add(0, "a", (0.5, 0.9, 0.9)) == (AddStatus.NEW, None)
    assert archive.add(1, "b", (0.5, 0.8, 0.8))[0] is AddStatus.NOT_ADDED, "a tie: the older one stays"
    status, displaced = archive.add(2, "c", (0.6, 0.8, 0.8))
    assert status is AddStatus.IMPROVE_EXISTING
    assert displaced is not None
    assert displaced.digest == "a"
    assert [elite.digest for elite in archive.elites] == ["c"]


def test_of_equal_best_elites_the_most_recent_wins():
    archive = Archive(0, UNIT, bins=2)
    archive.add(0, "old", (0.7, 0.9, 0.1))
    archive.add(5, "new", (0.7, 0.1, 0.9))
    archive.add(3, "middle", (0.7, 0.1, 0.1))
    assert archive.best().digest == "new"


def test_bounds_are_85_percent_of_the_weakest_and_115_percent_of_the_strongest_expert():
    bounds = Bounds.of_experts([(0.6, 0.2), (0.9, 0.4), (0.7, 0.1)])
    assert bounds.lower == pytest.approx((0.85 * 0.6, 0.85 * 0.1))
    assert bounds.upper == pytest.approx((1.15 * 0.9, 1.15 * 0.4))


def test_a_task_no_expert_solves_gets_the_whole_range():
    assert Bounds.of_experts([(0.0, 0.5), (0.0, 0.5)]).upper[0] == 1.0


@pytest.mark.parametrize("offset", [0.0, -1.5])
@pytest.mark.parametrize(("tasks", "bins"), [(2, 15), (3, 15), (3, 4), (4, 6), (5, 4)])
def test_archive_agrees_with_pyribs_on_the_same_random_stream(tasks, bins, offset):
    generator = np.random.default_rng(tasks * 100 + bins)
    bounds = Bounds(tuple(generator.uniform(0, 0.3, tasks)), tuple(generator.uniform(0.6, 0.9, tasks)))
    for quality in range(tasks):
        ours = Archive(quality, bounds, bins=bins)
        ranges = [(bounds.lower[k], bounds.upper[k]) for k in ours.others]
        theirs = GridArchive(solution_dim=1, dims=[bins] * (tasks - 1), ranges=ranges, qd_score_offset=offset)
        for id, means in enumerate(generator.uniform(0, 1, (400, tasks))):
            status, _ = ours.add(id, str(id), tuple(means))
            added = theirs.add_single(np.array([id]), means[quality], means[list(ours.others)])
            assert int(status) == int(added["status"])
        stats = ours.stats(offset=offset)
        for field in ("num_elites", "coverage", "qd_score", "norm_qd_score", "obj_max", "obj_mean"):
            assert getattr(stats, field) == pytest.approx(float(getattr(theirs.stats, field))), field
        data = theirs.data(["solution", "index"], return_type="dict")
        cells = [tuple(int(i) for i in cell) for cell in theirs.int_to_grid_index(data["index"])]
        places = dict(zip((int(s[0]) for s in data["solution"]), cells, strict=True))
        assert {elite.id: elite.cell for elite in ours.elites} == places


def test_an_empty_archive_has_statistics_but_no_best_elite():
    archive = Archive(0, UNIT)
    assert archive.stats().obj_max is None
    assert archive.stats().coverage == 0.0
    with pytest.raises(EvolutionError, match="the archive of task 0 is empty: it has no best elite"):
        archive.best()


def test_impossible_archives_and_bounds_are_refused_with_their_numbers():
    with pytest.raises(EvolutionError, match="1 tasks, quality 0, 15 bins"):
        Archive(0, Bounds((0.0,), (1.0,)))
    with pytest.raises(EvolutionError, match="3 tasks, quality 3, 15 bins"):
        Archive(3, UNIT)
    with pytest.raises(EvolutionError, match="0 bins"):
        Archive(0, UNIT, bins=0)
    with pytest.raises(
        EvolutionError, match=r"every upper bound must be above its lower bound\n  - task 1: lower 0.5, upper 0.5"
    ):
        Bounds((0.0, 0.5), (1.0, 0.5))
    with pytest.raises(EvolutionError, match="bounds need one pair per task, found 2 lower, 1 upper"):
        Bounds((0.0, 0.5), (1.0,))
