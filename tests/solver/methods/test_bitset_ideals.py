"""Ideals as bits in arrays, against sets that are closed by definition."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from skyfx.solver import Assumptions, Cluster, Graph
from skyfx.solver.methods.exact.level_dp import LevelTables
from skyfx.solver.methods.ideals.bitset_ideals import BitIdeals
from skyfx.solver.methods.ideals.bitset_kernel import covers, has, lowest, within
from skyfx.solver.methods.ideals.device_states import States
from skyfx.solver.methods.ideals.order_ideals import Ideals, bits, floating, members_of, neighbours
from skyfx.solver.methods.limits import Limits
from skyfx.solver.problem.problem import Problem
from tests.support.planning_instances import assumptions, clusters, graphs

MANY = 10_000


def closed_sets(problem: Problem) -> set[int]:
    """All sets of units that hold what their members read, without the floating units."""
    outside = frozenset(floating(problem))
    _, reads = neighbours(problem, outside)
    inside = [i for i in range(problem.num_units) if i not in outside]
    sets = (
        sum(1 << i for i in chosen)
        for size in range(len(inside) + 1)
        for chosen in itertools.combinations(inside, size)
    )
    return {one for one in sets if all(not reads[i] & ~one for i in bits(one))}


def as_integers(lattice: BitIdeals, rows: np.ndarray) -> list[int]:
    """The sets in rows of words, counted by the problem's units."""
    sets = (bits(int.from_bytes(row.tobytes(), "little")) for row in rows)
    return [sum(1 << lattice.units[x] for x in members) for members in sets]


@given(st.integers(1, 2**64 - 1), st.integers(0, 2**64 - 1), st.integers(0, 63))
def test_sets_of_words_are_sets(small: int, large: int, unit: int) -> None:
    rows = np.array([[small], [large], [small | large]], dtype=np.uint64)
    assert lowest(rows[0, 0]) == next(bits(small))
    assert has(rows[0], unit) == bool(small >> unit & 1)
    assert within(rows[0], rows[1]) == (small & ~large == 0)
    assert within(rows[0], rows[2])


@given(graphs(), clusters(), assumptions())
def test_both_list_the_same_ideals_covers_and_crossings(
    g: Graph, c: Cluster, a: Assumptions
) -> None:
    problem = Problem(g, c, a)
    lattice, ideals = BitIdeals(problem), Ideals.of(problem, MANY)
    levels = lattice.levels(MANY, Limits())
    assert ideals is not None
    assert levels is not None
    members = [as_integers(lattice, rows) for rows, _ in levels]
    listed = [sum(1 << i for i in members_of(row)) for row in ideals.members]
    assert [one for level in members for one in level] == listed
    assert set(listed) == closed_sets(problem)
    assert len(set(listed)) == len(listed)
    index = {member: i for i, member in enumerate(listed)}
    found = set()
    for size, (rows, ready) in enumerate(levels[:-1]):
        first, target, unit = covers(rows, ready, levels[size + 1][0])
        for x, member in enumerate(members[size]):
            for k in range(first[x], first[x + 1]):
                larger = members[size + 1][target[k]]
                assert larger == member | 1 << lattice.units[unit[k]]
                found.add((index[member], index[larger]))
    pairs = zip(range(len(ideals)), ideals.covers.first, ideals.covers.first[1:], strict=False)
    assert found == {(i, int(j)) for i, b, e in pairs for j in ideals.covers.target[b:e]}
    if a.communication == "relay":
        tables = LevelTables(problem, States(problem), Limits(), lattice, levels)
        for depth, level in enumerate(members):
            here = [index[member] for member in level]
            for column, expected in zip(
                tables.by_size[depth].crossing, ideals.crossing, strict=True
            ):
                np.testing.assert_allclose(column, expected[here], rtol=1e-12)


@given(graphs(), clusters(), assumptions(), st.integers(1, 20))
def test_too_many_ideals_are_not_listed(g: Graph, c: Cluster, a: Assumptions, at_most: int) -> None:
    problem = Problem(g, c, a)
    all_of_them = Ideals.of(problem, MANY)
    assert all_of_them is not None
    listed = BitIdeals(problem).levels(at_most, Limits())
    assert (listed is None) == (len(all_of_them) > at_most)
    assert (Ideals.of(problem, at_most) is None) == (len(all_of_them) > at_most)
