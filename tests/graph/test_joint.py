"""The graph of a sum of two precisions: which of the two it is, or their union, and where their values stand."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparseggm import Chain, Cycle, Diagonal, ExtendedGrid, Graph, Grid, Star, Topology, union
from sparseggm.gaussian.covariance import trace_positions
from sparseggm.graph.graphs import product_graph
from sparseggm.graph.joint import Gather, joint_graph
from tests.numerics import Array
from tests.strategies import seeds
from tests.topologies import topologies, topologies_of


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Topology, Topology]:
    first = draw(topologies(3))
    return first, draw(st.one_of(topologies_of(first.n), st.just(first)))


def values_on(topology: Topology, matrix: Array) -> Array:
    """Packed values of a dense matrix in the caller's numbering, wherever the topology has an entry."""
    pattern = topology.precision_pattern
    return np.asarray(matrix[topology.order[pattern.rows], topology.order[pattern.cols]])


def gathered(values: Array, gather: Gather) -> Array:
    return values if gather is None else np.append(values, 0.0)[gather]


@pytest.mark.property
@given(pair=pairs(), seed=seeds)
def test_values_stand_where_the_same_nodes_meet_on_a_graph_with_the_edges_of_both(pair, seed: int) -> None:
    first, second = pair
    graph, *gathers = joint_graph(first, second)
    assert set(map(tuple, graph.edges)) == set(map(tuple, first.edges)) | set(map(tuple, second.edges))
    matrix = np.random.default_rng(seed).standard_normal((first.n, first.n))
    matrix = matrix + matrix.T
    for topology, gather in zip(pair, gathers, strict=True):
        present = np.eye(first.n, dtype=bool)
        present[tuple(topology.edges.T)] = present[tuple(topology.edges.T[::-1])] = True
        expected = values_on(graph, np.where(present, matrix, 0.0))
        np.testing.assert_array_equal(gathered(values_on(topology, matrix), gather), expected)


BACKWARDS = Chain(6, order=range(6)[::-1])


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (Chain(6), Chain(6), Chain(6)),
        (BACKWARDS, Chain(6), BACKWARDS),
        (Chain(6), BACKWARDS, Chain(6)),
        (Diagonal(6), BACKWARDS, BACKWARDS),
        (Cycle(6), Diagonal(6), Cycle(6)),
        (Grid(2, 3), ExtendedGrid(2, 3), ExtendedGrid(2, 3)),
        (ExtendedGrid(2, 3), Grid(2, 3), ExtendedGrid(2, 3)),
        (Chain(6), Star(6), union(Chain(6), Star(6))),
        (Chain(6), Grid(2, 3), union(Chain(6), Grid(2, 3))),
    ],
)
def test_a_graph_that_has_all_edges_keeps_its_order(first: Topology, second: Topology, expected: Topology) -> None:
    assert joint_graph(first, second)[0] == expected


def test_a_graph_is_found_once_and_forgotten_with_its_parts() -> None:
    n = 37  # of no other test
    for others in (lambda: Star(n), lambda: Diagonal(n), lambda: Graph(n, [(36, 0)])):
        first, second = Chain(n), others()
        found, known = joint_graph(first, second), joint_graph(first, second)
        assert all(one is other for one, other in zip(found, known, strict=True))
        of_first, gone = first.kept["joint"], weakref.ref(first)
        assert set(of_first) == {second}
        del second, found, known
        gc.collect()
        assert not of_first
        del first
        gc.collect()
        assert gone() is None


STAR = Star(12)


@pytest.mark.parametrize(
    "find",
    [
        product_graph,
        lambda grid: joint_graph(grid, STAR)[0],
        lambda grid: trace_positions(grid, grid.factor_pattern, STAR)[1],
    ],
    ids=["product", "joint", "trace"],
)
def test_what_was_found_outlives_an_equal_topology(find: Callable[[Topology], object]) -> None:
    first, second = Grid(3, 4), Grid(3, 4)
    find(first)
    found = find(second)
    del first
    gc.collect()
    assert find(second) is found
