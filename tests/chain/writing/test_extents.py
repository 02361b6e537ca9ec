"""Extents along connections: what must be equal is, and a contradiction names the connections that make it."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from minerua.chain.writing.extents import Extent, Extents, shape_faults

A, B, C, D = (Extent(step, "n") for step in "abcd")
nodes = st.one_of(st.sampled_from([A, B, C, D]), st.integers(1, 3))


def test_a_count_reaches_everything_that_is_equal() -> None:
    extents = Extents()
    assert extents.equate(A, B, "a.x -> b.x") is None
    assert extents.equate(C, D, "c.x -> d.x") is None
    assert extents.equate(B, C, "b.y -> c.y") is None
    assert extents.count(A) is None
    assert extents.equate(7, D, "image -> d.z") is None
    assert [extents.count(extent) for extent in (A, B, C, D)] == [7, 7, 7, 7]


def test_a_contradiction_tells_the_shortest_way_to_what_fixed_the_count() -> None:
    extents = Extents()
    extents.equate(Extent(None, "batch"), 8, "the input 'image'")
    extents.equate(Extent(None, "batch"), A, "image -> a.x")
    extents.equate(A, B, "a.y -> b.x")
    assert extents.equate(B, 4, "text -> b.z") == (
        "'n' of step 'b' is 4 by text -> b.z, but 8 by a.y -> b.x, image -> a.x, the input 'image'"
    )
    extents.equate(C, 4, "text -> c.z")
    assert extents.equate(Extent(None, "batch"), C, "image -> c.x") == (
        "'batch' of the chain is 8 by the input 'image', but 'n' of step 'c' is 4 by text -> c.z"
    )


def test_two_counts_are_compared() -> None:
    assert Extents().equate(3, 3, "here") is None
    assert Extents().equate(3, 4, "here") == "3 is not 4"


def test_of_several_sources_only_agreeing_counts_bind_a_name() -> None:
    extents = Extents()
    several = [("a", (2, "n"), "a.x -> d.x"), ("b", (3, "n"), "b.x -> d.x")]
    assert shape_faults(extents, several, ("d", ("rows", "n"))) == []
    assert extents.count(Extent("d", "rows")) is None
    assert extents.equate(A, 5, "image -> a.y") is None
    assert extents.count(B) == 5
    assert shape_faults(extents, several, ("c", (2, "n"))) == ["axis 0 has 3, and 2 is wanted"]


@settings(deadline=None)
@given(st.lists(st.tuples(nodes, nodes), max_size=12))
def test_equations_are_refused_exactly_if_they_contradict_those_before(equations: list[tuple[object, object]]) -> None:
    extents, taken = Extents(), list[tuple[object, object]]()
    for one, other in equations:
        fault = extents.equate(one, other, "here")  # type: ignore[arg-type]
        contradicts = len({n for n in group(one, [*taken, (one, other)]) if isinstance(n, int)}) > 1
        assert (fault is not None) is contradicts
        if fault is None:
            taken.append((one, other))
    for extent in (A, B, C, D):
        counts = {node for node in group(extent, taken) if isinstance(node, int)}
        assert extents.count(extent) == (counts.pop() if counts else None)


def group(start: object, equations: list[tuple[object, object]]) -> set[object]:
    """Everything that is equal to a node, found by going over all equations until nothing is added; the slow truth.

    A count joins nothing: two extents are not equal because both are 3.
    """
    found = {start}
    while True:
        more = {
            b for pair in equations for a, b in (pair, pair[::-1]) if a in found and (a == start or a in (A, B, C, D))
        }
        if more <= found:
            return found
        found |= more
