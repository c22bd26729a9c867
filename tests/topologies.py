"""Hypothesis strategies for topologies: every family, and graphs that no family has.

The corners are drawn on purpose: one node, no edges, all edges, one row, several components.
"""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import strategies as st

from sparseggm import (
    Band,
    BlockChain,
    Chain,
    Cycle,
    Diagonal,
    ExtendedGrid,
    Graph,
    Grid,
    Star,
    Stencil,
    Topology,
    Torus,
    Tree,
)


def edges_of(topology: Topology) -> list[tuple[int, int]]:
    """Its edges as the reference has them."""
    return [(i, j) for i, j in topology.edges.tolist()]


def sides(most: int) -> st.SearchStrategy[int]:
    return st.integers(1, most)


def topologies(most: int = 4) -> st.SearchStrategy[Topology]:
    """Every family, lattices with sides up to `most`; one node and one row among them."""
    return st.one_of(
        st.builds(Diagonal, sides(2 * most)),
        st.builds(Chain, sides(3 * most)),
        st.builds(BlockChain, sides(most), sides(3)),
        st.builds(ExtendedGrid, sides(most), sides(most)),
        st.builds(Grid, sides(most), sides(most)),
        st.builds(Grid, st.just(2), st.just(2), sides(most)),
        st.builds(Band, sides(2 * most), sides(3)),
        st.builds(Stencil, sides(min(most, 3)), sides(min(most, 3)), sides(2), sides(2)),
        st.builds(Torus, st.integers(3, max(most, 3)), st.integers(3, 4)),
        st.builds(Star, sides(2 * most)),
        st.builds(Cycle, st.integers(3, 3 * most)),
        reordered(most),
        trees(3 * most),
        graphs(2 * most),
        chordal_graphs(2 * most),
        st.builds(complete_graph, sides(most + 1)),
        st.builds(disconnected, sides(most), sides(most)),
    )


@st.composite
def reordered(draw: st.DrawFn, most: int) -> Topology:
    """A chain, a band or a block chain backwards, which has no fill, or in a random order, which may."""
    make, first, second = draw(st.sampled_from([(Chain, 3 * most, 0), (Band, 2 * most, 3), (BlockChain, most, 3)]))
    sizes = [draw(sides(size)) for size in (first, second) if size]
    n = make(*sizes).n
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return make(*sizes, order=draw(st.sampled_from([range(n)[::-1], rng.permutation(n)])))


@st.composite
def trees(draw: st.DrawFn, most: int) -> Tree:
    """A forest: each node below an earlier one or a root, then renumbered at random."""
    n = draw(sides(most))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    label, parents = rng.permutation(n), np.full(n, -1)
    for i in range(1, n):
        above = rng.integers(-1, i)
        parents[label[i]] = label[above] if above >= 0 else -1
    return Tree(parents.tolist())


@st.composite
def graphs(draw: st.DrawFn, most: int) -> Graph:
    """Any set of edges, from none to all, in the order that `Graph` finds or in a random one."""
    n = draw(sides(most))
    density = draw(st.sampled_from([0.0, 0.1, 0.3, 0.6, 1.0]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    order = rng.permutation(n) if draw(st.booleans()) else None
    return Graph(n, np.argwhere(np.tril(rng.random((n, n)) < density, -1)), order)


@st.composite
def chordal_graphs(draw: st.DrawFn, most: int) -> Graph:
    """Chordal by construction: each node is joined to some of a clique of earlier ones; then renumbered at random."""
    n = draw(sides(most))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    density, label, cliques = rng.random(), rng.permutation(n), [[0]]
    edges: list[tuple[int, int]] = []
    for i in range(1, n):
        joined = [j for j in cliques[rng.integers(i)] if rng.random() < density]
        cliques.append([*joined, i])
        edges += [(label[i], label[j]) for j in joined]
    return Graph(n, edges)


def complete_graph(n: int) -> Graph:
    return Graph(n, list(itertools.combinations(range(n), 2)))


def disconnected(left: int, right: int) -> Graph:
    """A cycle and a star, or what is left of them at small sizes, without an edge between."""
    ring = [(i, (i + 1) % left) for i in range(left)] if left > 2 else []
    return Graph(left + right, [*ring, *((left, left + k) for k in range(1, right))])


@st.composite
def topologies_of(draw: st.DrawFn, n: int) -> Topology:
    """On n nodes: chain, star, random tree or graph, in an order of its own or in a random one."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    order = rng.permutation(n)
    random = np.argwhere(np.tril(rng.random((n, n)) < draw(st.sampled_from([0.0, 0.2, 0.5])), -1))
    plain = [Diagonal(n), Chain(n), Star(n), Graph(n, random), Grid(1, n)]
    return draw(st.sampled_from([*plain, Graph(n, random, order), Graph(n, Chain(n).edges, order)]))
