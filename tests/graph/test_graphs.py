"""Topologies that are given by a graph: edges by definition, graphs from elsewhere, identity, and refusals."""

from __future__ import annotations

import copy
import itertools
import pickle
import re

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st

import reference.topology
from sparseggm import (
    Band,
    BlockChain,
    Chain,
    Cycle,
    Diagonal,
    DTypeError,
    ExtendedGrid,
    Graph,
    Grid,
    Pattern,
    PatternError,
    ShapeError,
    Star,
    Stencil,
    Topology,
    Torus,
    Tree,
    from_networkx,
    from_scipy,
    union,
)
from tests.strategies import mask, seeds
from tests.topologies import edges_of, graphs, topologies

# ---------------------------------------------------------------------- edges


@pytest.mark.parametrize(("n", "bandwidth"), list(itertools.product(range(1, 8), range(1, 9))))
def test_a_band_joins_numbers_that_differ_by_at_most_its_width(n: int, bandwidth: int) -> None:
    topology = Band(n, bandwidth)
    assert edges_of(topology) == reference.topology.band(n, bandwidth)
    assert topology.factor_pattern is topology.precision_pattern
    assert topology.is_naturally_ordered


def test_a_band_of_width_one_is_a_chain_and_a_full_one_is_dense() -> None:
    assert Band(6, 1).precision_pattern is Chain(6).precision_pattern
    assert Band(6, 5).precision_pattern is Band(6, 9).precision_pattern
    assert Band(6, 5).precision_pattern.nnz == 21


@pytest.mark.parametrize(
    ("rows", "cols", "radius", "channels"), list(itertools.product(range(1, 5), range(1, 5), (1, 2, 3), (1, 2)))
)
def test_a_stencil_has_its_window_on_l_and_the_gram_of_it_on_p(
    rows: int, cols: int, radius: int, channels: int
) -> None:
    topology = Stencil(rows, cols, radius, channels)
    window = reference.topology.pattern(topology.n, reference.topology.stencil_factor(rows, cols, radius, channels))
    np.testing.assert_array_equal(mask(topology.factor_pattern), window)
    np.testing.assert_array_equal(mask(topology.precision_pattern), reference.topology.gram(window))
    joined = reference.topology.gram(window)
    assert edges_of(topology) == reference.topology.edges_where(topology.n, lambda i, j: bool(joined[i, j]))
    assert topology.is_naturally_ordered
    assert topology.is_factor_free
    assert topology.factor_pattern.longest_column <= channels * (2 * radius**2 + 2 * radius + 1)


@pytest.mark.parametrize("shape", [(3,), (4,), (7,), (3, 3), (3, 4), (5, 3), (4, 4), (3, 3, 3), (3, 4, 5)])
def test_a_torus_joins_points_at_distance_one_around_every_axis(shape: tuple[int, ...]) -> None:
    topology = Torus(*shape)
    assert edges_of(topology) == reference.topology.torus(shape)
    assert len(topology.edges) == topology.n * len(shape)


@pytest.mark.parametrize("n", range(1, 7))
def test_a_tree_joins_children_to_parents_whatever_the_forest(n: int) -> None:
    """All forests on up to four nodes, and a sample of larger ones; the others of n − 1 parents each have cycles."""
    every = itertools.product(range(-1, n), repeat=n)
    forests = 0
    for parents in every if n <= 4 else itertools.islice(every, 0, None, 97):
        if reaches_a_root(parents):
            forests += 1
            topology = Tree(parents)
            assert edges_of(topology) == reference.topology.tree(list(parents))
            assert topology.order.tolist() == sorted(range(n), key=lambda node: (-depth(parents, node), node))
            assert topology.factor_pattern is topology.precision_pattern
        else:
            with pytest.raises(PatternError, match=r"^Tree: node \d has no root: its chain of parents is a cycle\.$"):
                Tree(parents)
    assert forests == (n + 1) ** (n - 1) or n > 4  # Cayley's formula for rooted forests


def reaches_a_root(parents: tuple[int, ...]) -> bool:
    return all(depth(parents, node) <= len(parents) for node in range(len(parents)))


def depth(parents: tuple[int, ...], node: int) -> int:
    """Steps to a root; more than n if there is none."""
    steps = 0
    while parents[node] >= 0 and steps <= len(parents):
        node, steps = parents[node], steps + 1
    return steps


@pytest.mark.parametrize("n", range(1, 8))
def test_a_star_joins_all_to_node_zero_and_eliminates_it_last(n: int) -> None:
    topology = Star(n)
    assert edges_of(topology) == reference.topology.star(n)
    assert topology.order.tolist() == [*range(1, n), 0]
    assert topology.factor_pattern is topology.precision_pattern


@pytest.mark.parametrize("n", range(3, 9))
def test_a_cycle_joins_neighbours_and_both_ends(n: int) -> None:
    topology = Cycle(n)
    assert edges_of(topology) == reference.topology.cycle(n)
    assert topology.is_naturally_ordered
    assert topology.factor_pattern.nnz == 3 * n - 3  # of column j: j, j + 1 and the last


@given(graph=graphs(9), seed=seeds)
def test_a_graph_has_its_edges_in_whatever_order_and_orientation_they_come(graph: Graph, seed: int) -> None:
    rng = np.random.default_rng(seed)
    shuffled = rng.permuted(rng.permutation(graph.edges), axis=1)
    again = Graph(graph.n, shuffled, graph.given_order)
    assert again == graph
    assert hash(again) == hash(graph)
    np.testing.assert_array_equal(again.edges, graph.edges)
    assert edges_of(graph) == sorted(edges_of(graph), key=lambda edge: edge[::-1])
    assert all(i > j for i, j in edges_of(graph))


# ---------------------------------------------------------------------- graphs from elsewhere


@given(first=topologies(2), seed=seeds)
def test_a_union_has_the_edges_of_all(first: Topology, seed: int) -> None:
    n = first.n
    other = Graph(n, np.argwhere(np.tril(np.random.default_rng(seed).random((n, n)) < 0.3, -1)))
    expected = sorted({*edges_of(first), *edges_of(other)}, key=lambda edge: edge[::-1])
    assert edges_of(union(first, other)) == expected
    assert union(first, other) == union(other, first) == union(first, other, first)
    assert edges_of(union(first)) == edges_of(first)


@given(graph=graphs(9), form=st.sampled_from(["csr", "csc", "coo", "lil", "dok"]), diagonal=st.booleans())
def test_a_graph_comes_back_from_scipy(graph: Graph, form: str, diagonal: bool) -> None:
    values = np.full(graph.precision_pattern.nnz, 0.5)
    if not diagonal:
        values[graph.precision_pattern.diagonal] = 0
    matrix = graph.precision_pattern.to_scipy(values, symmetric=True)
    place = graph.inverse_order
    matrix = matrix[place][:, place]
    matrix.eliminate_zeros()
    assert from_scipy(matrix.asformat(form), graph.given_order) == graph


def test_stored_zeros_and_repeats_are_entries_of_a_scipy_matrix() -> None:
    rows, cols = [0, 1, 1, 2, 0, 0], [1, 0, 2, 1, 1, 0]
    matrix = scipy.sparse.coo_array((np.zeros(6), (rows, cols)), shape=(3, 3))
    assert from_scipy(matrix) == Graph(3, [(1, 0), (2, 1)])


def test_a_graph_comes_back_from_networkx_numbered_as_listed() -> None:
    networkx = pytest.importorskip("networkx", reason="networkx is optional")
    graph = networkx.Graph()
    graph.add_nodes_from(["c", "a", "b"])
    graph.add_edges_from([("a", "b"), ("b", "c")])
    assert from_networkx(graph) == Graph(3, [(2, 1), (2, 0)])
    assert from_networkx(graph, order=[2, 0, 1]) == Graph(3, [(2, 1), (2, 0)], order=[2, 0, 1])
    assert from_networkx(networkx.MultiGraph([(0, 1), (1, 0), (0, 1)])) == Graph(2, [(0, 1)])
    for topology, build in ((Grid(3, 4), networkx.grid_2d_graph(3, 4)), (Cycle(5), networkx.cycle_graph(5))):
        np.testing.assert_array_equal(from_networkx(build).edges, topology.edges)
    with pytest.raises(PatternError, match=r"^from_networkx: needs an undirected graph\. Use graph.to_undirected"):
        from_networkx(networkx.DiGraph([(0, 1)]))
    with pytest.raises(PatternError, match=r"^edges: node 0 is joined to itself\.$"):
        from_networkx(networkx.Graph([(0, 0), (0, 1)]))


# ---------------------------------------------------------------------- identity


@given(topology=topologies())
def test_kind_and_sizes_survive_a_pickle_and_a_deep_copy(topology: Topology) -> None:
    for again in (pickle.loads(pickle.dumps(topology)), copy.deepcopy(topology)):
        assert again == topology
        assert hash(again) == hash(topology)
        np.testing.assert_array_equal(again.order, topology.order)


def test_an_order_is_part_of_equality_hash_and_pickles() -> None:
    edges, order = [(1, 0), (2, 1), (3, 2)], [3, 1, 0, 2]
    plain, ordered = Graph(4, edges), Graph(4, edges, order=order)
    assert plain != ordered
    assert hash(plain) != hash(ordered)
    assert ordered == Graph(4, edges, order=np.array(order)) != Graph(4, edges, order=order[::-1])
    assert pickle.loads(pickle.dumps(ordered)).order.tolist() == order
    assert repr(ordered) == "Graph(n=4, 3 edges, order=…)"
    assert Graph(4, edges, order=plain.order) != plain  # though nothing else differs: what was said is kept
    for torus in (Torus(3, 3), Grid(3, 3)):
        assert type(torus)(3, 3, order=torus.order) != torus


def test_equal_graphs_of_different_kinds_are_different_topologies() -> None:
    chain = Graph(4, Chain(4).edges)
    assert chain != Chain(4)
    assert Grid(3, 3) != Torus(3, 3)
    assert Graph(9, Grid(3, 3).edges) != Grid(3, 3)
    assert chain.precision_pattern is Chain(4).precision_pattern


def test_the_callers_edges_are_not_kept() -> None:
    edges = np.array([[1, 0], [2, 1]])
    graph = Graph(3, edges)
    edges[:] = 0
    assert edges_of(graph) == [(1, 0), (2, 1)]
    with pytest.raises(ValueError, match="read-only"):
        graph.edges[0, 0] = 2


# ---------------------------------------------------------------------- words


def test_a_node_is_described_by_its_place() -> None:
    assert Torus(3, 4).describe(7) == "node 7 (row 1, column 3 of Torus(3, 4))"
    assert Grid(3, 4, order=range(12)).describe(5) == "node 5 (row 1, column 1 of Grid(3, 4, order=…))"
    assert Grid(2, 2, 2).describe(5) == "node 5 of Grid(2, 2, 2)"
    assert Tree([-1, 0]).describe(1) == "node 1 of Tree(n=2)"
    assert Diagonal(2).describe(1) == "node 1 of Diagonal(n=2)"
    assert Graph(3, [(0, 1)]).describe(2) == "node 2 of Graph(n=3, 1 edges)"


@given(graph=graphs(7))
def test_positions_of_are_those_of_the_entries_and_minus_one_elsewhere(graph: Graph) -> None:
    pattern = graph.precision_pattern
    rows, cols = np.tril_indices(graph.n)
    stored = {(int(i), int(j)): p for p, (i, j) in enumerate(zip(pattern.rows, pattern.cols, strict=True))}
    expected = [stored.get((int(i), int(j)), -1) for i, j in zip(rows, cols, strict=True)]
    assert pattern.positions_of(rows, cols).tolist() == expected


# ---------------------------------------------------------------------- refusals

ONE_SIDED = scipy.sparse.csr_array(np.tril(np.ones((3, 3))))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Graph(0, []), "Graph: n must be at least 1, got 0."),
        (lambda: Graph(2.5, []), "Graph: n must be an integer, got 2.5."),
        (lambda: Graph(3, [(1, 1)]), "edges: node 1 is joined to itself."),
        (lambda: Graph(3, [(1, 0), (0, 1)]), "edges: the pair (1, 0) is given twice."),
        (lambda: Graph(3, [(0, 3)]), "edges: nodes must be in 0 … 2, got (0, 3)."),
        (lambda: Graph(3, [(-1, 0)]), "edges: nodes must be in 0 … 2, got (-1, 0)."),
        (lambda: Graph(4, [[0, 1, 2], [1, 2, 3]]), "edges: edges must be (m, 2) integers, got int64 of shape (2, 3)."),
        (lambda: Graph(3, [(0.0, 1.5)]), "edges: edges must be (m, 2) integers, got float64 of shape (1, 2)."),
        (lambda: Graph(3, (0, 1)), "edges: edges must be (m, 2) integers, got int64 of shape (2,)."),
        (lambda: Graph(3, [], order=[0, 1]), "Graph: order must be a permutation of 0 … 2."),
        (lambda: Graph(3, [], order=[0, 1, 1]), "Graph: order must be a permutation of 0 … 2."),
        (lambda: Graph(2, [], order=[0.0, 1.2]), "Graph: order must be integers, got [0.0, 1.2]."),
        (lambda: Pattern.from_edges(3, [[0, 1, 2]]), "Pattern.from_edges: edges must be (m, 2) integers, got int64 of"),
        (lambda: Band(3, 0), "Band: bandwidth must be at least 1, got 0."),
        (lambda: Band(0, 1), "Band: n must be at least 1, got 0."),
        (lambda: Chain(3.5), "Chain: n must be an integer, got 3.5."),
        (lambda: Stencil(3, 3, 0), "Stencil: radius must be at least 1, got 0."),
        (lambda: Stencil(3, 3, 1, 0), "Stencil: channels must be at least 1, got 0."),
        (lambda: Torus(2, 3), "Torus: side 0 must be at least 3, got 2."),
        (lambda: Torus(3, 4.0), "Torus: side 1 must be an integer, got 4.0."),
        (lambda: Torus(), "Torus: needs at least one side, as in Torus(28, 28)."),
        (lambda: Cycle(2), "Cycle: n must be at least 3, got 2."),
        (lambda: Star(0), "Star: n must be at least 1, got 0."),
        (lambda: Tree([]), "Tree: n must be at least 1, got 0."),
        (lambda: Tree([-1, 2]), "Tree: parents must be in −1 … 1, got 2 for node 1."),
        (lambda: Tree([-2]), "Tree: parents must be in −1 … 0, got -2 for node 0."),
        (lambda: Tree([0]), "Tree: node 0 has no root: its chain of parents is a cycle."),
        (lambda: Tree([-1, 2, 1]), "Tree: node 1 has no root: its chain of parents is a cycle."),
        (lambda: Tree([-1, 0.5]), "Tree: parents must be integers, got [-1, 0.5]."),
        (lambda: union(Chain(3), Chain(4)), "union: needs topologies of one size, got Chain(n=3) and Chain(n=4)."),
        (lambda: from_scipy(ONE_SIDED), "from_scipy: entries (1, 0) and (0, 1) must both be stored, or neither."),
        (lambda: from_scipy(ONE_SIDED.T), "from_scipy: entries (1, 0) and (0, 1) must both be stored, or neither."),
    ],
)
def test_malformed_graphs_are_refused_with_what_was_got(call, message: str) -> None:
    with pytest.raises(PatternError, match=f"^{re.escape(message)}"):
        call()


def test_what_is_no_square_matrix_is_refused_by_from_scipy() -> None:
    with pytest.raises(ShapeError, match=r"^from_scipy: the matrix must be square, got shape \(3, 4\)\.$"):
        from_scipy(scipy.sparse.eye_array(3, 4))
    for wrong, kind in ((np.eye(3).tolist(), "list"), (None, "NoneType"), (Chain(3), "Chain")):
        with pytest.raises(DTypeError, match=rf"^from_scipy: the matrix must be of scipy\.sparse, got {kind}\.$"):
            from_scipy(wrong)


SIZES: dict[type[Topology], tuple[int, ...]] = {
    Diagonal: (4,),
    Chain: (4,),
    Band: (5, 2),
    BlockChain: (3, 2),
    ExtendedGrid: (3, 4),
    Stencil: (3, 4, 1, 2),
    Grid: (3, 4),
    Torus: (3, 4),
    Star: (4,),
    Cycle: (4,),
}


@pytest.mark.parametrize("kind", SIZES, ids=lambda kind: kind.__name__)
def test_a_size_is_an_integer_of_any_library_but_no_truth_value(kind) -> None:
    sizes = SIZES[kind]
    for integer in (np.int64, np.int32, np.uint8):
        topology = kind(*map(integer, sizes))
        assert repr(topology) == repr(kind(*sizes))
        assert type(topology.n) is int
    for place in range(len(sizes)):
        for wrong in (True, np.True_, float(sizes[place]), str(sizes[place])):
            with pytest.raises(PatternError, match=rf"^{kind.__name__}: .* must be an integer, got"):
                kind(*sizes[:place], wrong, *sizes[place + 1 :])


def test_graphs_and_trees_take_no_truth_values_and_no_masked_nodes() -> None:
    hidden = np.ma.array([(1, 0), (2, 1)], mask=[(False, False), (True, True)])
    for call in (
        lambda: Graph(True, []),
        lambda: Graph(2, [(True, False)]),
        lambda: Graph(2, [], order=[False, True]),
        lambda: Tree([-1, False]),
        lambda: Graph(3, hidden),
        lambda: Pattern.from_edges(3, hidden),
    ):
        with pytest.raises(PatternError, match=r"must be|must have"):
            call()
    assert repr(Graph(np.int64(3), [])) == repr(Graph(3, []))
    assert repr(Tree(np.array([-1, 0]))) == repr(Tree([-1, 0]))
