"""Orders of elimination: by definition, without fill where there is such an order, and pinned, as checkpoints need."""

from __future__ import annotations

import copy
import hashlib
import itertools
import pickle
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given

import reference.topology
from sparseggm import (
    Band,
    BlockChain,
    Chain,
    Cycle,
    Graph,
    Grid,
    PatternError,
    Star,
    Stencil,
    Topology,
    Torus,
    Tree,
    union,
)
from sparseggm.graph.orders import RULE, factor_work, graph_order, maximum_cardinality
from tests.topologies import chordal_graphs, complete_graph, edges_of, graphs, trees

SIDES = [(rows, cols) for rows in range(1, 6) for cols in range(1, 6)]


def unordered(graph: Graph) -> Graph:
    """The same graph in the order that it finds."""
    return Graph(graph.n, graph.edges)


# ---------------------------------------------------------------------- by definition


@given(graph=graphs(16))
def test_maximum_cardinality_is_that_of_the_definition(graph: Graph) -> None:
    expected = reference.topology.maximum_cardinality(graph.n, edges_of(graph))
    assert maximum_cardinality(graph.n, graph.edges).tolist() == expected


@given(graph=graphs(16))
def test_a_graph_takes_maximum_cardinality_if_that_is_perfect_else_minimum_degree(graph: Graph) -> None:
    expected = reference.topology.graph_order(graph.n, edges_of(graph))
    assert unordered(graph).order.tolist() == graph_order(graph.n, graph.edges).tolist() == expected


@given(graph=graphs(12))
def test_factor_work_is_that_of_the_filled_graph(graph: Graph) -> None:
    expected = reference.topology.work(graph.n, edges_of(graph), graph.order.tolist())
    assert factor_work(graph.n, graph.edges, graph.order) == expected


@pytest.mark.parametrize("shape", [*SIDES, (1,), (6,), (2, 3, 4), (3, 3, 3), (2, 2, 2, 2), (7, 4), (8, 8), (1, 9, 1)])
def test_orders_of_a_grid_are_those_of_their_definitions(shape: tuple[int, ...]) -> None:
    assert Grid(*shape).order.tolist() == reference.topology.grid_order(shape)


@pytest.mark.parametrize("shape", [(3,), (5,), (3, 3), (3, 4), (4, 3), (5, 5), (3, 7), (3, 3, 3), (4, 3, 5), (8, 8)])
def test_orders_of_a_torus_are_those_of_their_definitions(shape: tuple[int, ...]) -> None:
    edges = reference.topology.torus(shape)
    assert Torus(*shape).order.tolist() == reference.topology.graph_order(len(Torus(*shape).order), edges)


# ---------------------------------------------------------------------- no fill where none is needed


def fill(topology: Topology) -> int:
    return topology.factor_pattern.nnz - topology.precision_pattern.nnz


@given(graph=chordal_graphs(24))
def test_a_chordal_graph_has_no_fill(graph: Graph) -> None:
    assert fill(graph) == 0
    assert graph.is_factor_free
    assert reference.topology.is_perfect(graph.n, edges_of(graph), graph.order.tolist())


@given(graph=graphs(8))
def test_a_graph_has_no_fill_exactly_if_no_ring_is_induced(graph: Graph) -> None:
    graph = unordered(graph)
    assert (fill(graph) == 0) == (not reference.topology.has_induced_cycle(graph.n, edges_of(graph)))
    assert graph.is_factor_free == (fill(graph) == 0)


def test_all_graphs_on_five_nodes_are_told_apart_by_chordality() -> None:
    """All 1024 of them; 822 are chordal [OEIS A058862: 1, 2, 8, 61, 822]."""
    pairs = list(itertools.combinations(range(5), 2))
    chordal = 0
    for chosen in itertools.product([False, True], repeat=len(pairs)):
        graph = Graph(5, [pair for pair, taken in zip(pairs, chosen, strict=True) if taken])
        free = fill(graph) == 0
        assert free == (not reference.topology.has_induced_cycle(5, edges_of(graph)))
        chordal += free
    assert chordal == 822


@given(tree=trees(20))
def test_a_tree_has_no_fill_as_a_tree_or_as_a_graph(tree: Tree) -> None:
    assert fill(tree) == fill(Graph(tree.n, tree.edges)) == 0


def test_two_cliques_joined_by_a_node_have_no_fill() -> None:
    """Nodes 0 … 4 and 4 … 8: none in the order that the graph finds, much in one that begins at the joint."""
    edges = [*itertools.combinations(range(5), 2), *itertools.combinations(range(4, 9), 2)]
    assert fill(Graph(9, edges)) == 0
    assert Graph(9, edges).order.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    joint_first = Graph(9, edges, order=[4, 0, 1, 2, 3, 5, 6, 7, 8])
    assert fill(joint_first) == 16  # every node of one clique is joined to every node of the other


@pytest.mark.parametrize("n", [1, 2, 7])
def test_a_complete_graph_is_closed_and_a_graph_without_edges_too(n: int) -> None:
    assert complete_graph(n).factor_pattern.nnz == n * (n + 1) // 2
    assert Graph(n, []).factor_pattern.nnz == n


def test_a_chain_as_a_graph_keeps_its_order() -> None:
    assert Graph(9, Chain(9).edges).is_naturally_ordered
    assert Graph(9, Chain(9).edges).factor_pattern is Chain(9).factor_pattern


def test_a_given_order_is_taken_even_where_it_fills() -> None:
    hub_first = Graph(6, Star(6).edges, order=range(6))
    assert hub_first.order.tolist() == [0, 1, 2, 3, 4, 5]
    assert fill(hub_first) == 10
    assert not hub_first.is_factor_free
    assert Torus(3, 3, order=range(9)).is_naturally_ordered


@given(graph=graphs(10))
def test_a_graph_of_several_parts_fills_no_more_than_they_do_alone(graph: Graph) -> None:
    graph = unordered(graph)
    both = Graph(2 * graph.n, np.concatenate([graph.edges, graph.edges + graph.n]))
    assert fill(both) == 2 * fill(graph)


# ---------------------------------------------------------------------- orders that are given

ORDERED: dict[str, Any] = {
    "Chain(n=9": lambda **order: Chain(9, **order),
    "Band(n=9, bandwidth=2": lambda **order: Band(9, 2, **order),
    "BlockChain(blocks=3, size=3": lambda **order: BlockChain(3, 3, **order),
    "Grid(3, 3": lambda **order: Grid(3, 3, **order),
    "Torus(3, 3": lambda **order: Torus(3, 3, **order),
    "Graph(n=9, 12 edges": lambda **order: Graph(9, Grid(3, 3).edges, **order),
}
"""Every topology that takes an order: how its `repr` begins, and how it is made."""

each_ordered = pytest.mark.parametrize(("name", "make"), ORDERED.items(), ids=[name.split("(")[0] for name in ORDERED])


@each_ordered
def test_a_given_order_is_part_of_what_a_topology_is(name: str, make: Any) -> None:
    order = [4, 0, 8, 2, 6, 1, 3, 5, 7]
    plain, ordered = make(), make(order=order)
    assert ordered.order.tolist() == order
    assert ordered == make(order=iter(np.array(order))) != make(order=order[::-1])
    assert hash(ordered) == hash(make(order=tuple(order)))
    assert plain not in (ordered, make(order=plain.order))  # what was said is kept
    assert (repr(plain), repr(ordered)) == (f"{name})", f"{name}, order=…)")
    np.testing.assert_array_equal(ordered.edges, plain.edges)
    for again in (pickle.loads(pickle.dumps(ordered)), copy.deepcopy(ordered)):
        assert again == ordered
        assert again.order.tolist() == order
        assert not again.order.flags.writeable


@each_ordered
@pytest.mark.parametrize(
    ("order", "need"),
    [
        (range(8), "must be a permutation of 0 … 8."),
        ([0, *range(8)], "must be a permutation of 0 … 8."),
        (range(1, 10), "must be a permutation of 0 … 8."),
        (np.arange(9.0), "must be integers, got "),
        (3, "must be integers, got 3."),
    ],
    ids=["short", "repeated", "shifted", "floats", "a number"],
)
def test_an_order_that_is_no_permutation_is_refused(name: str, make: Any, order: Any, need: str) -> None:
    with pytest.raises(PatternError, match=f"^{re.escape(name.split('(')[0])}: order {re.escape(need)}"):
        make(order=order)


@pytest.mark.parametrize("make", [ORDERED[name] for name in list(ORDERED)[:3]], ids=["chain", "band", "block chain"])
def test_backwards_there_is_no_fill(make: Any) -> None:
    plain, backwards = make(), make(order=range(9)[::-1])
    assert backwards.precision_pattern is backwards.factor_pattern is plain.factor_pattern
    assert backwards.is_factor_free
    assert backwards.node_positions.tolist() == plain.node_positions.tolist()[::-1]
    from_the_middle = make(order=[4, 3, 5, 2, 6, 1, 7, 0, 8])
    assert fill(from_the_middle) > 0
    assert not from_the_middle.is_factor_free


def test_blocks_backwards_have_no_fill_whatever_the_order_inside() -> None:
    order = [8, 6, 7, 3, 4, 5, 1, 0, 2]
    assert BlockChain(3, 3, order=order).factor_pattern is BlockChain(3, 3).factor_pattern


def test_a_chain_backwards_has_the_kernels_of_a_chain() -> None:
    assert Chain(9, order=range(9)[::-1]).factor_pattern.is_chain
    assert not Chain(9, order=[4, 3, 5, 2, 6, 1, 7, 0, 8]).factor_pattern.is_chain


# ---------------------------------------------------------------------- pinned


def test_the_version_of_the_rule_belongs_to_the_orders_below() -> None:
    """Raise it when an order below changes: files say which rule found theirs."""
    assert RULE == 2


def scattered(n: int) -> list[tuple[int, int]]:
    """About an eleventh of all pairs."""
    return [(i, j) for i in range(n) for j in range(i) if (7 * i * j + i + 3 * j) % 11 == 0]


def test_orders_of_small_graphs_never_change() -> None:
    assert Torus(3, 3).order.tolist() == [0, 4, 8, 1, 2, 3, 5, 6, 7]
    assert Torus(3, 4).order.tolist() == [0, 2, 5, 7, 8, 4, 1, 3, 6, 9, 10, 11]
    assert Tree([-1, 0, 0, 1, 1, 2, -1, 6]).order.tolist() == [3, 4, 5, 1, 2, 7, 0, 6]
    two_forks = Graph(7, [(3, 0), (3, 1), (3, 2), (4, 3), (5, 4), (6, 4)])
    assert two_forks.order.tolist() == [0, 1, 2, 3, 5, 4, 6]  # chordal: maximum cardinality
    assert union(Grid(2, 3), Chain(6)).order.tolist() == [0, 5, 1, 2, 3, 4]  # not: minimum degree


PINNED = [
    (Torus(4, 4), "bf76fae1f446a1c4", "6367e702fb7459fb249bd6ac9ff3cf37", "4e228a7b20f988c0b37225ea7105be81"),
    (Torus(8, 8), "8c630b8bc8c1189a", "dec90b7c54a2dc53d3b7d1ca01230dc2", "96ec417415c8c7426042932be052bb25"),
    (Torus(7, 13), "10977c273ea525f9", "478890641920be1901369d38b65db187", "98cbdbf7138411ea7a88b8aab4c302cf"),
    (Torus(28, 28), "264b6f55dec07843", "cd9a3c81ffac62d04be24f367e60d37e", "82e0250bdfa1c11bbd3797bc9c469677"),
    (Torus(4, 5, 6), "700957d305b410bb", "7d241b7bec21aa1b5d68dfadf1a83614", "064ebc8ba681e9795e40de62ecf1c904"),
    (
        Graph(64, Grid(8, 8).edges),
        "a20bf86c2e2a55aa",
        "ab553a07bdfc6f510e4d83f9e72960da",
        "3eae837cd8b81f0f539a9baba4519743",
    ),
    (
        Graph(64, Torus(8, 8).edges),
        "8c630b8bc8c1189a",
        "dec90b7c54a2dc53d3b7d1ca01230dc2",
        "96ec417415c8c7426042932be052bb25",
    ),
    (
        Graph(40, scattered(40)),
        "f40b227524bb54ca",
        "52b5ede71abc6b9e9f18f6c272d74151",
        "b09719834a2bffa35eb2730b3bd43970",
    ),
    (
        Graph(64, Band(64, 3).edges),
        "0efffaa315ba9965",
        "519375d8330edb338c0d0ea4b33db379",
        "519375d8330edb338c0d0ea4b33db379",
    ),
    (
        union(Grid(6, 6), Chain(36)),
        "dff7eb435325fe22",
        "8afc7edaea2804d3caf3d708065f3686",
        "04b661eb5153a99f8640d07aadb97dca",
    ),
    (
        Tree([-1, *((node - 1) // 3 for node in range(1, 100))]),
        "51560749129094b5",
        "dc5ed48b2108e448bd18c1f41e491529",
        "dc5ed48b2108e448bd18c1f41e491529",
    ),
    (Star(100), "aff36bd36e996077", "1ca3465422b7d13211f3185f78c4629a", "1ca3465422b7d13211f3185f78c4629a"),
    (Cycle(100), "628b07d52f28f30b", "1364d187bc854f990c1871bfd21f5e23", "f36e7fa2eecb389c3af7c4e3145746e3"),
    (Band(100, 5), "628b07d52f28f30b", "5ea0a78113d20335c4ff3ec09425a647", "5ea0a78113d20335c4ff3ec09425a647"),
    (Stencil(8, 8, 1), "0efffaa315ba9965", "1cd0fae83996dfe2ad82df8980c76dea", "df32eea6a13cfb3e4a40f115766893af"),
    (Stencil(6, 6, 2, 3), "ecae6470117688b9", "7edbedefb78ac2cd0bce594e25f8f8fd", "e418f1675912d925eac4ea7d92a3f3e5"),
    (Stencil(28, 28, 1), "820f7b287e228c7d", "a70f014fb2d647e26229e1eb4c711e18", "6c17890ce9a28f91a2ccf452a4798bb5"),
    (Torus(64, 64), "80ca10fdf41ac950", "639015ac46c413028035fcedc053a39d", "eaf2e9fce942a8ae9ec48815cc8fb1f2"),
    (Torus(9, 10, 11), "d2a070993b39933e", "76f27eb68e218f14469ac874077ca0ac", "4790a8fa4cfafdd7e63c2239f6ba0278"),
    (
        Graph(9000, Grid(90, 100).edges),
        "377cebd4007f1397",
        "1d1a1c1201f7c8ed2fa753ba311f480e",
        "650153ffc87e12cb1a9ffeee33d24cb9",
    ),
    (
        union(Grid(30, 30), Chain(900)),
        "7e60ab447121b60b",
        "edc734cdd954df2dd873cf289612f02d",
        "da122432ffd71e3498cbf32bf50fa3d7",
    ),
    (
        Graph(300, scattered(300)),
        "15b2d75f21118394",
        "4445bfc6b998f2209ab0e33dde080c4a",
        "52ff8a140fb86ba6b7fafa71f364b764",
    ),
]


@pytest.mark.parametrize(("topology", "order", "precision", "factor"), PINNED, ids=[str(row[0]) for row in PINNED])
def test_orders_and_keys_never_change(topology: Topology, order: str, precision: str, factor: str) -> None:
    """The meaning of a checkpoint: digest of the order, keys of the patterns of P and L."""
    assert hashlib.blake2b(topology.order.astype("<i8").tobytes(), digest_size=8).hexdigest() == order
    assert (topology.precision_pattern.key, topology.factor_pattern.key) == (precision, factor)
