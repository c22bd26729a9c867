"""Nested dissection: what parts a graph, what that is worth against other orders, and what it must leave alone."""

from __future__ import annotations

import itertools
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reference.topology
from benchmarks.orders import triangulated
from sparseggm import Band, Graph, Grid, Star, Torus, Tree, set_num_threads, threads
from sparseggm.graph import dissection, orders
from sparseggm.graph.dissection import Adjacency, graph_dissection, lattice_dissection, separate
from sparseggm.kernels import separators, symbolic
from sparseggm.kernels.separators import ABOVE, BELOW, SEPARATOR
from tests.topologies import edges_of, graphs

FIXED = [
    Grid(9, 11),
    Torus(7, 8),
    Grid(4, 4, 5),
    Graph(60, [(i, j) for i in range(60) for j in range(i) if i * j % 9 == 5]),
]


def nnz(n: int, edges: np.ndarray, order: np.ndarray | list[int]) -> int:
    """Entries of L."""
    return Graph(n, edges, order).factor_pattern.nnz


def sides_of(graph: Graph | Grid | Torus) -> np.ndarray:
    return separate(Adjacency.from_edges(graph.n, graph.edges))


# ---------------------------------------------------------------------- separators


@given(graph=graphs(40))
def test_no_edge_joins_the_two_sides_by_definition(graph: Graph) -> None:
    sides = sides_of(graph)
    ends = sides[graph.edges]
    assert not (ends.min(axis=1, initial=SEPARATOR) + 10 * ends.max(axis=1, initial=0) == BELOW + 10 * ABOVE).any()
    assert set(sides.tolist()) <= {BELOW, ABOVE, SEPARATOR}


@given(graph=graphs(20), other=graphs(20))
def test_components_are_parted_without_a_separator(graph: Graph, other: Graph) -> None:
    both = Graph(graph.n + other.n, np.concatenate([graph.edges, other.edges + graph.n]))
    sides = sides_of(both)
    ends = sides[both.edges]
    assert set(sides.tolist()) == {BELOW, ABOVE}
    assert (ends[:, 0] == ends[:, 1]).all()


@given(graph=graphs(8), data=st.data())
def test_a_vertex_cut_is_a_smallest_one_by_definition(graph: Graph, data: st.DataObject) -> None:
    flags = st.lists(st.booleans(), min_size=graph.n, max_size=graph.n)
    from_source, to_sink = np.array(data.draw(flags)), np.array(data.draw(flags))
    sides = np.empty(graph.n, np.int8)
    adjacency = Adjacency.from_edges(graph.n, graph.edges)
    size = separators.vertex_cut(*adjacency, from_source, to_sink, sides)
    source, sink = (set(np.flatnonzero(flag).tolist()) for flag in (from_source, to_sink))
    assert size == (sides == SEPARATOR).sum() == reference.topology.smallest_cut(graph.n, edges_of(graph), source, sink)
    assert (sides[from_source] != ABOVE).all()
    assert (sides[to_sink] != BELOW).all()
    ends = np.sort(sides[graph.edges], axis=1)
    assert not ((ends[:, 0] == BELOW) & (ends[:, 1] == ABOVE)).any()


def test_of_the_smallest_cuts_the_more_even_one_is_taken_by_definition() -> None:
    """A path of nine: every node is a smallest cut, of which only those at the ends are compared."""
    from_source, to_sink, sides = np.arange(9) == 3, np.arange(9) == 8, np.empty(9, np.int8)
    path = Adjacency.from_edges(9, np.stack([np.arange(1, 9), np.arange(8)], axis=1))
    assert separators.vertex_cut(*path, from_source, to_sink, sides) == 1
    assert np.flatnonzero(sides == SEPARATOR).tolist() == [3]  # three below (not seen from the sink), five above


@pytest.mark.parametrize(("side", "most"), [((16, 16), 16), ((8, 8, 8), 48)])
def test_a_grid_is_parted_by_a_diagonal(side: tuple[int, ...], most: int) -> None:
    sides = sides_of(Graph(math.prod(side), Grid(*side).edges))
    assert (sides == SEPARATOR).sum() <= most
    assert min((sides == BELOW).sum(), (sides == ABOVE).sum()) >= sides.size // 3


# ---------------------------------------------------------------------- orders by definition


@pytest.mark.parametrize(
    "shape", [(1,), (2,), (7,), (3, 4), (4, 3), (8, 8), (5, 13), (3, 3, 3), (2, 5, 3), (3, 2, 2, 3), (2, 2, 3, 2, 2)]
)
def test_levels_of_a_lattice_are_those_of_the_definition(shape: tuple[int, ...]) -> None:
    assert lattice_dissection(shape).tolist() == reference.topology.lattice_dissection(shape)


@given(graph=graphs(16), outside=st.integers(0, 15))
def test_minimum_degree_of_some_nodes_is_that_of_the_definition(graph: Graph, outside: int) -> None:
    count = max(1, graph.n - outside)
    order = symbolic.minimum_degree(*Adjacency.from_edges(graph.n, graph.edges), count)
    assert order.tolist() == reference.topology.minimum_degree(graph.n, edges_of(graph), count)


@given(graph=graphs(40))
def test_a_perfect_order_is_found_where_there_is_one_by_definition(graph: Graph) -> None:
    found = symbolic.maximum_cardinality(*Adjacency.from_edges(graph.n, graph.edges), True)
    expected = reference.topology.maximum_cardinality(graph.n, edges_of(graph))
    is_perfect = reference.topology.is_perfect(graph.n, edges_of(graph), expected)
    assert found.tolist() == (expected if is_perfect else [])


@given(graph=graphs(40), leaf=st.integers(1, 12))
def test_dissection_of_any_graph_visits_every_node_once_by_definition(graph: Graph, leaf: int) -> None:
    adjacency = Adjacency.from_edges(graph.n, graph.edges)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dissection, "LEAF", leaf)
        patch.setattr(dissection, "LARGEST", 1.0)
        assert sorted(graph_dissection(adjacency).tolist()) == list(range(graph.n))


@pytest.mark.parametrize("graph", FIXED, ids=str)
def test_a_separator_comes_after_what_it_parts_by_definition(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dissection, "LEAF", 20)
    monkeypatch.setattr(dissection, "LARGEST", 1.0)
    adjacency = Adjacency.from_edges(graph.n, graph.edges)
    order, near = graph_dissection(adjacency), symbolic.breadth_first(*adjacency)
    sides = np.empty(graph.n, np.int8)
    sides[near] = separate(adjacency.induced(near))
    below, above = (sides == BELOW).sum(), (sides == ABOVE).sum()
    assert sides[order].tolist() == [BELOW] * below + [ABOVE] * above + [SEPARATOR] * (graph.n - below - above)


def test_orders_are_the_same_each_time_however_edges_are_listed() -> None:
    graph, rng = triangulated(500), np.random.default_rng(1)
    shuffled = rng.permuted(rng.permutation(graph.edges), axis=1)
    assert Graph(500, shuffled).order.tolist() == graph.order.tolist() == Graph(500, graph.edges).order.tolist()


@pytest.mark.parametrize("graph", [*FIXED, triangulated(2_000)], ids=str)
def test_orders_do_not_depend_on_the_number_of_threads(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    adjacency = Adjacency.from_edges(graph.n, graph.edges)
    monkeypatch.setattr(dissection, "LEAF", 20)
    monkeypatch.setattr(dissection, "LARGEST", 1.0)
    one = graph_dissection(adjacency)  # too small to be shared
    monkeypatch.setattr(threads, "MIN_WORK", 1)
    sharing, submit = set(), ThreadPoolExecutor.submit
    monkeypatch.setattr(ThreadPoolExecutor, "submit", lambda *args: (sharing.add(args[1]), submit(*args))[1])
    try:
        for count in (2, 3):
            set_num_threads(count)
            assert graph_dissection(adjacency).tolist() == one.tolist()
            assert sharing
            sharing.clear()
    finally:
        set_num_threads(None)


# ---------------------------------------------------------------------- what an order is worth


@pytest.mark.parametrize(
    "shape", [(4, 4), (8, 8), (28, 28), (64, 64), (128, 128), (13, 57), (3, 200), (6, 6, 6), (20, 20, 20), (5, 5, 5, 5)]
)
def test_a_grid_has_never_more_entries_than_cut_along_its_axes(shape: tuple[int, ...]) -> None:
    grid = Grid(*shape)
    along_axes = nnz(grid.n, grid.edges, reference.topology.axis_parallel_dissection(shape))
    assert grid.factor_pattern.nnz <= along_axes
    if min(shape) >= 20:
        assert grid.factor_pattern.nnz <= 0.75 * along_axes


def test_a_thin_grid_takes_minimum_degree_and_a_large_one_does_not() -> None:
    for shape, is_least in (((10, 1000), True), ((100, 100), False)):
        grid = Grid(*shape)
        least = orders.minimum_degree(grid.n, grid.edges)
        assert (grid.order.tolist() == least.tolist()) == is_least
        assert grid.factor_pattern.nnz <= nnz(grid.n, grid.edges, least)


@pytest.mark.parametrize(("topology", "metis"), [(triangulated(10_000), 191_323), (Torus(64, 64), 95_576)], ids=str)
def test_a_graph_has_hardly_more_entries_than_by_metis(topology: Graph | Torus, metis: int) -> None:
    """METIS 5.1 by its defaults; measured: 0.97 and 0.85 of its entries."""
    assert topology.factor_pattern.nnz <= 1.05 * metis


@pytest.mark.parametrize("n", [1, 2, 9, 500, 70_000])
def test_a_grid_of_one_row_is_a_chain(n: int) -> None:
    for shape in ((n,), (1, n), (n, 1), (1, n, 1)):
        assert Grid(*shape).is_naturally_ordered
    assert Grid(1, n).factor_pattern.nnz == 2 * n - 1


def test_long_thin_graphs_have_no_more_than_their_bands() -> None:
    ring = np.stack([np.arange(50_000), np.roll(np.arange(50_000), 1)], axis=1)
    assert Graph(50_000, ring).factor_pattern.nnz == 3 * 50_000 - 3
    for ladder in (Graph(40_000, Grid(2, 20_000).edges), Grid(2, 20_000), Grid(2, 50_000)):
        assert ladder.factor_pattern.nnz <= 3 * ladder.n
    assert Grid(5, 15_000, 2).factor_pattern.nnz <= 11 * 150_000


# ---------------------------------------------------------------------- what it leaves alone


def test_large_chordal_graphs_keep_an_order_without_fill() -> None:
    parents = [-1, *((node - 1) // 3 for node in range(1, 20_000))]
    for topology in (Band(20_000, 3), Tree(parents), Star(20_000)):
        assert Graph(topology.n, topology.edges).factor_pattern.nnz == topology.n + len(topology.edges)


def test_small_graphs_keep_minimum_degree() -> None:
    for shape in ((10, 10), (4, 5, 6), (14, 14)):
        torus = Torus(*shape)
        assert torus.order.tolist() == orders.minimum_degree(torus.n, torus.edges).tolist()


def test_nodes_with_very_many_neighbours_come_last() -> None:
    """Two hubs joined to all leaves: eliminated first, they would join every leaf to every other."""
    n = 20_000
    graph = Graph(n, [(leaf, hub) for leaf in range(2, n) for hub in (0, 1)])
    assert graph.order[-2:].tolist() == [0, 1]
    assert graph.factor_pattern.nnz == 3 * n - 3


def test_many_components_are_dissected_together() -> None:
    squares = [(4 * k + i, 4 * k + (i + 1) % 4) for k in range(5_000) for i in range(4)]
    graph = Graph(25_000, squares)  # 5,000 squares, 5,000 nodes alone
    assert graph.factor_pattern.nnz == 5_000 * 9 + 5_000


def test_graphs_without_small_separators_take_minimum_degree() -> None:
    """A complete graph without a perfect matching, and a random one: a separator would be most of L."""
    pairs = [(i, j) for i, j in itertools.combinations(range(300), 2) if i // 2 != j // 2]
    random = np.random.default_rng(0).integers(2_000, size=(4_000, 2))
    random = np.unique(np.sort(random[random[:, 0] != random[:, 1]], axis=1), axis=0)
    for n, edges in ((300, np.array(pairs)), (2_000, random)):
        least = nnz(n, edges, orders.minimum_degree(n, edges))
        assert nnz(n, edges, graph_dissection(Adjacency.from_edges(n, edges))) <= 1.02 * least
