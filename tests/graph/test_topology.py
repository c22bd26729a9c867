"""Topologies: graphs and orders by definition, and pinned, because checkpoints depend on them."""

from __future__ import annotations

import copy
import hashlib
import pickle
import re

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st

import reference.topology
from sparseggm import BlockChain, Chain, Diagonal, ExtendedGrid, Grid, PatternError, ShapeError, Topology
from sparseggm.graph.edges import canonical_edges
from sparseggm.graph.orders import minimum_degree
from sparseggm.graph.topology import FactorTopology
from tests.strategies import mask, seeds
from tests.topologies import edges_of, topologies

SIDES = [(rows, cols) for rows in range(1, 6) for cols in range(1, 6)]


def elimination_mask(topology: Topology) -> np.ndarray:
    """The lower mask of P in elimination order, by definition."""
    renamed = reference.topology.permuted(topology.n, edges_of(topology), topology.order.tolist())
    return reference.topology.pattern(topology.n, renamed)


# ---------------------------------------------------------------------- graphs


@pytest.mark.parametrize("n", range(1, 8))
def test_a_diagonal_has_no_edges_and_a_chain_joins_neighbours(n: int) -> None:
    assert edges_of(Diagonal(n)) == []
    assert edges_of(Chain(n)) == reference.topology.chain(n)


@pytest.mark.parametrize(("blocks", "size"), SIDES)
def test_a_block_chain_joins_a_block_inside_and_to_the_next(blocks: int, size: int) -> None:
    assert edges_of(BlockChain(blocks, size)) == reference.topology.block_chain(blocks, size)


@pytest.mark.parametrize("shape", [*SIDES, (1,), (5,), (2, 3, 4), (3, 1, 2), (2, 2, 2, 2)])
def test_a_grid_joins_points_at_distance_one(shape: tuple[int, ...]) -> None:
    assert edges_of(Grid(*shape)) == reference.topology.grid(shape)


@pytest.mark.parametrize(("rows", "cols"), SIDES)
def test_an_extended_grid_has_the_grid_on_l_and_an_anti_diagonal_a_cell_on_p(rows: int, cols: int) -> None:
    topology = ExtendedGrid(rows, cols)
    lattice = reference.topology.pattern(topology.n, reference.topology.grid((rows, cols)))
    np.testing.assert_array_equal(mask(topology.factor_pattern), lattice)
    assert edges_of(topology) == reference.topology.extended_grid(rows, cols)
    np.testing.assert_array_equal(mask(topology.precision_pattern), reference.topology.gram(lattice))


def test_the_4_by_4_models_have_the_posters_sizes() -> None:
    extended, blocks = ExtendedGrid(4, 4), BlockChain(4, 4)
    assert (extended.factor_pattern.nnz, len(extended.edges)) == (40, 24 + 9)
    assert Grid(4, 4).precision_pattern.nnz == 40
    assert blocks.factor_pattern.nnz == 88


def test_other_graphs_that_are_chains() -> None:
    chain = Chain(6)
    for other in (Grid(6, order=range(6)), ExtendedGrid(1, 6), ExtendedGrid(6, 1), BlockChain(6, 1)):
        assert other.precision_pattern is chain.precision_pattern
        assert other.factor_pattern is chain.factor_pattern
    assert edges_of(Grid(1, 6)) == edges_of(Grid(6, 1)) == edges_of(chain)
    assert BlockChain(1, 6).factor_pattern.nnz == 21  # and one block is a dense matrix


# ---------------------------------------------------------------------- patterns and positions


@given(topology=topologies())
def test_patterns_are_those_of_the_graph_in_elimination_order(topology: Topology) -> None:
    expected = elimination_mask(topology)
    np.testing.assert_array_equal(mask(topology.precision_pattern), expected)
    if not isinstance(topology, FactorTopology):
        np.testing.assert_array_equal(mask(topology.factor_pattern), reference.topology.filled(expected))


@given(topology=topologies())
def test_factor_free_means_that_every_factor_stays_on_the_graph(topology: Topology) -> None:
    product = reference.topology.gram(mask(topology.factor_pattern))
    assert topology.is_factor_free == (product == mask(topology.precision_pattern)).all()


def test_which_topologies_are_factor_free() -> None:
    free = [Diagonal(3), Chain(3), BlockChain(3, 2), ExtendedGrid(3, 3), Grid(1, 4), Grid(5)]
    assert all(topology.is_factor_free for topology in free)
    assert not Grid(2, 2).is_factor_free
    assert not Grid(4, 4).is_factor_free


@given(topology=topologies())
def test_positions_are_where_each_node_and_edge_is_stored(topology: Topology) -> None:
    place = topology.inverse_order
    np.testing.assert_array_equal(place[topology.order], np.arange(topology.n))
    nodes, edges = topology.factor_positions
    for pattern, node_at, edge_at in (
        (topology.precision_pattern, topology.node_positions, topology.edge_positions),
        (topology.factor_pattern, nodes, edges),
    ):
        stored = {(int(i), int(j)): p for p, (i, j) in enumerate(zip(pattern.rows, pattern.cols, strict=True))}
        assert node_at.tolist() == [stored[k, k] for k in place]
        expected = [stored.get((max(place[i], place[j]), min(place[i], place[j])), -1) for i, j in topology.edges]
        assert edge_at.tolist() == expected


def test_the_extended_grid_has_edges_of_p_without_an_entry_of_l() -> None:
    _, edges = ExtendedGrid(2, 2).factor_positions
    assert dict(zip(edges_of(ExtendedGrid(2, 2)), edges.tolist(), strict=True))[2, 1] == -1


# ---------------------------------------------------------------------- orders


@given(seed=seeds, n=st.integers(1, 30), density=st.sampled_from([0.0, 0.05, 0.1, 0.2, 0.5, 1.0]))
def test_minimum_degree_is_that_of_the_definition_on_any_graph(seed: int, n: int, density: float) -> None:
    chosen = np.argwhere(np.tril(np.random.default_rng(seed).random((n, n)) < density, -1))
    edges = canonical_edges(n, chosen)
    expected = reference.topology.minimum_degree(n, [(i, j) for i, j in edges.tolist()])
    assert minimum_degree(n, edges).tolist() == expected


@given(topology=topologies())
def test_order_is_a_permutation_and_read_only(topology: Topology) -> None:
    assert sorted(topology.order.tolist()) == list(range(topology.n))
    assert topology.is_naturally_ordered == (topology.order.tolist() == list(range(topology.n)))
    for array in (topology.order, topology.inverse_order, topology.edges, topology.node_positions):
        assert not array.flags.writeable


@pytest.mark.parametrize("topology", [Diagonal(5), Chain(5), BlockChain(3, 2), ExtendedGrid(3, 4)], ids=str)
def test_where_the_order_is_the_model_it_is_natural(topology: Topology) -> None:
    assert topology.is_naturally_ordered


def test_orders_and_layouts_of_small_grids_never_change() -> None:
    assert Grid(2, 2).order.tolist() == ORDER_2X2
    assert Grid(3, 3).order.tolist() == ORDER_3X3
    assert Grid(3, 3).precision_pattern.rows.tolist() == ROWS_3X3
    assert Grid(3, 3).factor_pattern.indptr.tolist() == FACTOR_INDPTR_3X3
    assert ExtendedGrid(2, 3).factor_pattern.rows.tolist() == FACTOR_ROWS_EXTENDED_2X3
    assert edges_of(ExtendedGrid(2, 2)) == [(1, 0), (2, 0), (2, 1), (3, 1), (3, 2)]


ORDER_2X2 = [0, 1, 2, 3]
ORDER_3X3 = [0, 2, 6, 8, 1, 3, 4, 5, 7]
ROWS_3X3 = [0, 4, 5, 1, 4, 7, 2, 5, 8, 3, 7, 8, 4, 6, 5, 6, 6, 7, 8, 7, 8]
FACTOR_INDPTR_3X3 = [0, 3, 6, 9, 12, 16, 20, 23, 25, 26]
FACTOR_ROWS_EXTENDED_2X3 = [0, 1, 3, 1, 2, 4, 2, 5, 3, 4, 4, 5, 5]

PINNED = {
    Diagonal(784): ("820f7b287e228c7d", "a81d3c87a3bb6fd256dcbe54b52d91ff", "a81d3c87a3bb6fd256dcbe54b52d91ff"),
    Chain(16): ("a5fa8c2122b8d94f", "3251bd074825877b2c37ea1826673ae0", "3251bd074825877b2c37ea1826673ae0"),
    Chain(784): ("820f7b287e228c7d", "cdd0e1513036c97a8c0f2dbfc7e4db58", "cdd0e1513036c97a8c0f2dbfc7e4db58"),
    BlockChain(4, 4): ("a5fa8c2122b8d94f", "333755125608e839348d7ba2d1ede631", "333755125608e839348d7ba2d1ede631"),
    BlockChain(28, 28): ("820f7b287e228c7d", "85470adc3fd88469d29a517bb9745f6b", "85470adc3fd88469d29a517bb9745f6b"),
    ExtendedGrid(4, 4): ("a5fa8c2122b8d94f", "8c58bf26cee1c6783e9886c8f880be00", "1bcf0839fc07d8bfb1acc3f0649dcbee"),
    ExtendedGrid(28, 28): ("820f7b287e228c7d", "3a0248637ae7ffb98e7fd7a46b13adfa", "f55c1e647a4e039574c868a3ec9fe02a"),
    Grid(4, 4): ("caca6ce2f169a03c", "3f738a623a0b08e2213b5228bc550d3e", "e330b88715ec202125d9ab0f24fb62d6"),
    Grid(8, 8): ("a20bf86c2e2a55aa", "ab553a07bdfc6f510e4d83f9e72960da", "3eae837cd8b81f0f539a9baba4519743"),
    Grid(28, 28): ("65d7d3ab5251f0ff", "4cef35971bf2cd4db759e3a895cd4c31", "48f4cc9ba99c5118140200db20d8d425"),
    Grid(7, 13): ("bb7a45f990eb61f4", "11a54f2e86f1f5c0a6a477327a989d5a", "38f8c2259860fb228995440360a08d6a"),
    Grid(4, 5, 6): ("b95e1f7dc323952f", "bd38b437c0ba82007eff540474d570f2", "ca581e4cea65369306378e049c08aa05"),
    Grid(64, 64): ("6f88684b25e8451f", "e10e6d844183c49b38df4f6eb7f06444", "f96611a98d508bd80341543f58efc44a"),
    Grid(128, 128): ("606343c7e2d0152f", "5575237beb09af189ff07c4d0552e647", "44b4ab65ac7468875f7b5b69b2d0239a"),
    Grid(10, 1000): ("c20f8cd179e4b9fe", "b91eed193395ee379573a697f932183d", "f45dbb8b6d7923718b9365188313d7e3"),
    Grid(12, 13, 14): ("d1251039431a8a03", "3892c603919727b6cf5577e8724d4318", "cba87a324dbd82525d2f791ffbfce70b"),
    Grid(5, 4, 3, 4, 2): ("eecd254e05475133", "c36264b7267a548383fe3f1a42174cae", "77148a86cea68fe7d5cc3ae438c65d77"),
}


@pytest.mark.parametrize("topology", PINNED, ids=str)
def test_orders_and_keys_of_larger_topologies_never_change(topology: Topology) -> None:
    """The meaning of a checkpoint: digest of the order, keys of the patterns of P and L."""
    order = hashlib.blake2b(topology.order.astype("<i8").tobytes(), digest_size=8).hexdigest()
    assert (order, topology.precision_pattern.key, topology.factor_pattern.key) == PINNED[topology]


def test_a_given_order_is_taken_and_is_part_of_identity() -> None:
    natural = Grid(2, 3, order=range(6))
    assert natural.order.tolist() == list(range(6))
    assert natural == Grid(2, 3, order=[0, 1, 2, 3, 4, 5])
    assert natural != Grid(2, 3)
    assert hash(natural) != hash(Grid(2, 3))
    assert repr(natural) == "Grid(2, 3, order=…)"


# ---------------------------------------------------------------------- value semantics


@given(topology=topologies(), other=topologies())
def test_equality_is_that_of_kind_and_sides(topology: Topology, other: Topology) -> None:
    assert pickle.loads(pickle.dumps(topology)) == topology
    assert hash(pickle.loads(pickle.dumps(topology))) == hash(topology)
    assert (topology == other) == (identity(topology) == identity(other))


def identity(topology: Topology) -> tuple[object, ...]:
    """Kind, sizes, graph and order: `repr` tells sizes, and whether an order was given."""
    return repr(topology), topology.edges.tobytes(), topology.order.tobytes()


@given(topology=topologies())
def test_a_copy_is_read_only_too_and_derives_everything_anew(topology: Topology) -> None:
    assert topology.factor_positions  # something is derived before the copy
    for copied in (pickle.loads(pickle.dumps(topology)), copy.deepcopy(topology)):
        assert not any("pattern" in name for name in vars(copied))
        assert copied.precision_pattern is topology.precision_pattern
        for array in (copied.edges, copied.order, *copied.factor_positions):
            assert not array.flags.writeable


def test_a_topology_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        Chain(3).n = 4  # type: ignore[misc]
    with pytest.raises(AttributeError):
        Grid(2, 2).shape = (3, 3)  # type: ignore[misc]


# ---------------------------------------------------------------------- pack and unpack


@given(topology=topologies(), seed=seeds, batch=st.sampled_from([(), (1,), (3, 2), (0,)]))
def test_pack_takes_dense_sparse_and_pairs_alike(topology: Topology, seed: int, batch: tuple[int, ...]) -> None:
    rng = np.random.default_rng(seed)
    diagonal = rng.standard_normal((*batch, topology.n))
    couplings = rng.standard_normal((*batch, len(topology.edges)))
    dense = np.zeros((*batch, topology.n, topology.n))
    dense[..., range(topology.n), range(topology.n)] = diagonal
    for e, (i, j) in enumerate(topology.edges):
        dense[..., i, j] = dense[..., j, i] = couplings[..., e]
    values = topology.pack((diagonal, couplings))
    np.testing.assert_array_equal(topology.pack(dense), values)
    renumbered = dense[..., topology.order[:, None], topology.order]
    np.testing.assert_array_equal(topology.precision_pattern.to_dense(values, symmetric=True), renumbered)
    again = topology.unpack(values)
    np.testing.assert_array_equal(again[0], diagonal)
    np.testing.assert_array_equal(again[1], couplings)
    if batch == ():
        np.testing.assert_array_equal(topology.pack(scipy.sparse.csr_array(dense)), values)


def test_pack_refuses_what_is_not_on_the_graph() -> None:
    dense = np.eye(4)
    dense[3, 0] = dense[0, 3] = 0.1
    for matrix in (dense, scipy.sparse.coo_array(dense)):
        with pytest.raises(PatternError, match=r"must be zero off Grid\(2, 2\), got 0\.1 at \(0, 3\)"):
            Grid(2, 2).pack(matrix)
    with pytest.raises(ShapeError, match=re.escape("Chain(n=3).pack: the precision must be (..., 3, 3), got (4, 4).")):
        Chain(3).pack(dense)
    with pytest.raises(
        ShapeError, match=re.escape("Chain(n=3).pack: needs a diagonal (..., 3) and couplings (..., 2)")
    ):
        Chain(3).pack((np.ones(3), np.ones(3)))
    with pytest.raises(ShapeError, match=re.escape("Chain(n=3).unpack: values must end in 5, the nnz of P")):
        Chain(3).unpack(np.ones(4))


# ---------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Diagonal(0), "Diagonal: n must be at least 1, got 0."),
        (lambda: Chain(-1), "Chain: n must be at least 1, got -1."),
        (lambda: BlockChain(2, 0), "BlockChain: size must be at least 1, got 0."),
        (lambda: ExtendedGrid(0, 2), "ExtendedGrid: rows must be at least 1, got 0."),
        (lambda: Grid(), "Grid: needs at least one side, as in Grid(28, 28)."),
        (lambda: Grid(2, 0), "Grid: side 1 must be at least 1, got 0."),
        (lambda: Grid(2, 2, order=[0, 1, 2]), "Grid: order must be a permutation of 0 … 3."),
        (lambda: Grid(2, 2, order=[0, 1, 2, 2]), "Grid: order must be a permutation of 0 … 3."),
        (lambda: canonical_edges(3, [(0, 3)]), "edges: nodes must be in 0 … 2, got (0, 3)."),
        (lambda: canonical_edges(3, [(-1, 0)]), "edges: nodes must be in 0 … 2, got (-1, 0)."),
        (lambda: canonical_edges(3, [(1, 1)]), "edges: node 1 is joined to itself."),
        (lambda: canonical_edges(3, [(2, 0), (0, 2)]), "edges: the pair (2, 0) is given twice."),
    ],
)
def test_malformed_topologies_are_refused(call, message: str) -> None:
    with pytest.raises(PatternError, match=f"^{re.escape(message)}$"):
        call()


def test_edges_in_any_order_and_orientation_become_canonical() -> None:
    assert canonical_edges(4, [(3, 2), (0, 1), (0, 3)]).tolist() == [[1, 0], [3, 0], [3, 2]]
    assert canonical_edges(4, []).shape == (0, 2)
