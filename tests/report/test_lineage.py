import pytest

from minerua.report import summarise
from minerua.report.lineage import ROW, layers, lineage_of
from minerua.report.replay import Child, Replay


def child(id: int, *parents: int) -> Child:
    return Child(
        id=id,
        digest=str(id),
        origin="child" if parents else "seed",
        name=None if parents else f"seed {id}",
        expert=not parents,
        task="add" if parents else None,
        parents=tuple(map(str, parents)),
        means=(0.5, 0.5),
        failure=None,
        shares={},
    )


def family(*children: Child) -> dict[str, Child]:
    return {one.digest: one for one in children}


def test_ancestors_come_nearest_first_and_each_once():
    everyone = family(child(0), child(1), child(2, 0, 1), child(3, 2, 2), child(4, 3, 0))
    lineage = lineage_of("4", everyone)
    assert [one.id for one in lineage.children] == [4, 3, 0, 2, 1]
    assert (lineage.total, lineage.generations, lineage.hidden) == (4, 3, 0)


def test_relatives_who_are_no_ancestors_are_left_out():
    everyone = family(child(0), child(1), child(2, 0, 0), child(3, 0, 1))
    assert [one.id for one in lineage_of("2", everyone).children] == [2, 0]


def test_cap_keeps_the_nearest_and_every_seed():
    everyone = family(child(0), child(1), *(child(k, k - 1, k - 2) for k in range(2, 40)))
    lineage = lineage_of("39", everyone, cap=10)
    assert [one.id for one in lineage.children] == [39, 38, 37, 36, 35, 34, 33, 32, 31, 1, 0]
    assert lineage.total == 39
    assert lineage.hidden == 29


def test_lineage_of_a_thousand_generations_needs_no_deep_stack():
    everyone = family(child(0), *(child(k, k - 1, k - 1) for k in range(1, 3000)))
    assert lineage_of("2999", everyone).generations == 2999


@pytest.mark.parametrize("seed", range(6))
def test_picture_has_everyone_once_parents_below_children_and_no_wide_row(toy_run, seed):
    replay = Replay(toy_run(children=150, seed=seed).events)
    lineage = lineage_of(replay.children[-1].digest, replay.by_digest)
    rows = layers(lineage)
    height = {one.digest: y for y, row in enumerate(rows) for one in row}
    assert sorted(height) == sorted(one.digest for one in lineage.children)
    assert all(0 < len(row) <= ROW for row in rows)
    assert rows[0] == [lineage.children[0]]
    assert all(height[p] > height[one.digest] for one in lineage.children for p in one.parents if p in height)


def test_lineage_of_the_best_ends_at_seeds(toy_run):
    lineage = summarise(toy_run().events).lineage
    known = {one.digest for one in lineage.children}
    assert all(one.origin == "seed" or set(one.parents) <= known for one in lineage.children)
