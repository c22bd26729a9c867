"""Gaussians of the latent variables by name: a graph on any number of them, and the family that makes L or P.

A posterior has the inputs of its family from an encoder, a prior has them as weights. No numbers here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import breadth_first_order

from sparseggm.graph.derived import derived
from sparseggm.graph.families import Band, BlockChain, Chain, Diagonal, ExtendedGrid
from sparseggm.graph.graphs import Grid, Tree
from sparseggm.graph.topology import Topology
from sparseggm.positivity import families
from sparseggm.positivity.families import Family
from sparseggm.vae.errors import ConfigError


@dataclass(frozen=True)
class LatentGaussian:
    """A graph and a family.

    Args:
        graph: of sizes: the number of latent variables, or rows and columns where `is_rectangular`.
        family: of `sparseggm.parametrize`.
        is_rectangular: whether the latent variables are arranged in the squarest rows × columns, two rows or more.
    """

    graph: Callable[..., Topology]
    family: Family = families.factor
    is_rectangular: bool = False


@dataclass(frozen=True)
class Layer:
    """Latent variables of one stochastic layer: how many, and the name of their Gaussian.

    Args:
        size: number of latent variables.
        name: a key of `LATENT_GAUSSIANS`.
        edges: of a tree, see `parents_of`; empty: the graph's own.
    Raises:
        ConfigError: see `require_latents`.
    """

    size: int
    name: str
    edges: str = ""

    def __post_init__(self) -> None:
        require_latents(self.name, self.size, self.edges)

    @property
    def family(self) -> Family:
        """What makes L or P of the numbers of a network."""
        return LATENT_GAUSSIANS[self.name].family

    @derived
    def topology(self) -> Topology:
        """The graph."""
        return latent_topology(self.name, self.size, self.edges)


def layers_of(text: str) -> tuple[Layer, ...]:
    """Layers from the top, as in "16:extended-grid 40:block-chain".

    Raises:
        ConfigError: a word that is no layer, an unknown graph, or a number of nodes on which there is none.
    """
    return tuple(_layer(word) for word in text.split())


def _layer(word: str) -> Layer:
    match = re.fullmatch("([0-9]{1,10}):(.+)", word)
    if match is None or int(match[1]) < 1:
        raise ConfigError(f"layers: needed size:graph, such as 16:extended-grid 40:block-chain, got {word!r}.")
    if match[2] not in LATENT_GAUSSIANS:
        raise ConfigError(f"layers: unknown graph {match[2]!r} in {word}; one of: {', '.join(LATENT_GAUSSIANS)}.")
    return Layer(int(match[1]), match[2])


def block_diagonal(topologies: Sequence[Topology]) -> dict[str, npt.NDArray[Any]]:
    """Rows, columns and order of the factors of topologies one after the other, as one block-diagonal factor."""
    starts = np.cumsum([0, *(topology.n for topology in topologies)])[:-1]
    found: dict[str, list[npt.NDArray[Any]]] = {
        "rows": [topology.factor_pattern.rows for topology in topologies],
        "cols": [topology.factor_pattern.cols for topology in topologies],
        "order": [topology.order for topology in topologies],
    }
    return {
        name: np.concatenate([start + each for start, each in zip(starts, arrays, strict=True)])
        for name, arrays in found.items()
    }


def binary_tree(n: int) -> Tree:
    """The parent of i is (i − 1) // 2."""
    return Tree(tuple((np.arange(-1, n - 1) // 2).tolist()))


def complete_graph(n: int) -> Band:
    """All nodes joined, so that L is dense."""
    return Band(n, max(1, n - 1))


LATENT_GAUSSIANS = {
    "diagonal": LatentGaussian(Diagonal),
    "chain": LatentGaussian(Chain),
    "tree": LatentGaussian(binary_tree),
    "grid-dominant": LatentGaussian(Grid, families.dominant, is_rectangular=True),
    "grid-scaled": LatentGaussian(Grid, families.scaled, is_rectangular=True),
    "grid-edge": LatentGaussian(Grid, families.edge, is_rectangular=True),
    "grid-spectral": LatentGaussian(Grid, families.spectral, is_rectangular=True),
    "extended-grid": LatentGaussian(ExtendedGrid, is_rectangular=True),
    "block-chain": LatentGaussian(lambda rows, cols: BlockChain(cols, rows), is_rectangular=True),
    "full": LatentGaussian(complete_graph),
}


def latent_topology(name: str, latent: int, edges: str = "") -> Topology:
    """The graph of that name on `latent` nodes.

    Args:
        name: a key of `LATENT_GAUSSIANS`.
        edges: of a tree, see `parents_of`; empty: the graph's own.
    Raises:
        ConfigError: see `require_latents`.
    """
    if edges:
        return Tree(parents_of(edges, latent))
    gaussian = LATENT_GAUSSIANS[name]
    return gaussian.graph(*_rows_and_cols(name, latent)) if gaussian.is_rectangular else gaussian.graph(latent)


def require_latents(name: str, latent: int, edges: str = "") -> None:
    """Raise unless there is such a graph, without making it: a graph of too many nodes would exhaust the memory.

    Raises:
        ConfigError: it needs two rows or more, and these nodes form none; or the edges are not those of a tree.
    """
    if LATENT_GAUSSIANS[name].is_rectangular:
        _rows_and_cols(name, latent)
    if edges:
        parents_of(edges, latent)


def parents_of(edges: str, n: int) -> tuple[int, ...]:
    """The parent of each node of a tree whose root is node 0, −1 for that of the root.

    Args:
        edges: pairs of nodes, as in "0-1 1-5 1-2", each edge once, in any order and orientation.
        n: number of nodes.
    Raises:
        ConfigError: something that is no pair, an unknown node, or edges that form no tree on all nodes.
    """
    pairs = [_pair(word, n) for word in edges.split()]
    if len(pairs) != n - 1:
        raise ConfigError(f"edges: a tree on {n} latent variables has {n - 1} edges, got {len(pairs)}.")
    ends = np.array(pairs, np.int64).reshape(-1, 2).T
    graph = coo_array((np.ones(len(pairs)), (ends[0], ends[1])), shape=(n, n)).tocsr()
    reached, parents = breadth_first_order(graph, 0, directed=False)
    if len(reached) < n:  # n − 1 edges reach all n nodes only if none of them closes a cycle
        missed = np.setdiff1d(np.arange(n), reached)[0]
        raise ConfigError(f"edges: not a tree: no path joins nodes 0 and {missed}, so some edges form a cycle.")
    parents[0] = -1
    return tuple(parents.tolist())


def _pair(word: str, n: int) -> tuple[int, int]:
    match = re.fullmatch("([0-9]{1,10})-([0-9]{1,10})", word)
    if match is None:
        raise ConfigError(f"edges: needed pairs of nodes such as 0-1 1-5, got {word!r}.")
    first, second = int(match[1]), int(match[2])
    if max(first, second) >= n:
        raise ConfigError(f"edges: nodes must be in 0 … {n - 1}, got {word}.")
    return first, second


def _rows_and_cols(name: str, latent: int) -> tuple[int, int]:
    rows, cols = squarest(latent)
    if rows < 2:
        raise ConfigError(f"{name} needs a latent size with two rows or more, got {latent}; {products_near(latent)}.")
    return rows, cols


def products_near(n: int) -> str:
    """The numbers near n that are products of two greater than one, for a message."""
    near = [m for m in range(max(4, n - 4), n + 5) if squarest(m)[0] > 1]
    return f"near it: {', '.join(f'{m} = {r} × {c}' for m in near for r, c in [squarest(m)])}"


def squarest(n: int) -> tuple[int, int]:
    """Rows and columns of the grid of n nodes nearest to a square, rows ≤ columns; 1 × n for a prime n."""
    rows = max(r for r in range(1, math.isqrt(n) + 1) if n % r == 0)
    return rows, n // rows
