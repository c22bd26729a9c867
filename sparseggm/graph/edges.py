"""Edges of a graph as an array of pairs of nodes, in one canonical form; sizes and order of a topology, checked."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from typing import Any

import numpy as np

from sparseggm.errors import PatternError
from sparseggm.graph.derived import make_read_only
from sparseggm.graph.pattern import IntArray, as_pairs

Order = tuple[int, ...] | None
"""`order[k]` is the node to eliminate k-th; None where a topology finds its own."""


def canonical_edges(n: int, edges: Any) -> IntArray:
    """(m, 2) int64 pairs i > j, each once, sorted by j and then i, from pairs in any order and orientation.

    Raises:
        PatternError: not (m, 2) integers, a node outside 0 … n − 1, a node joined to itself, or a pair given twice.
    """
    pairs = as_pairs("edges", edges)
    low, high = np.minimum(*pairs.T), np.maximum(*pairs.T)
    outside = (low < 0) | (high >= n)
    if outside.any():
        raise PatternError(f"edges: nodes must be in 0 … {n - 1}, got {tuple(pairs[outside][0].tolist())}.")
    if (low == high).any():
        raise PatternError(f"edges: node {low[low == high][0]} is joined to itself.")
    codes = np.sort(low * n + high)
    twice = codes[1:] == codes[:-1]
    if twice.any():
        j, i = divmod(int(codes[1:][twice][0]), n)
        raise PatternError(f"edges: the pair ({i}, {j}) is given twice.")
    return make_read_only(np.stack([codes % n, codes // n], axis=-1))


def lattice_edges(shape: tuple[int, ...]) -> IntArray:
    """(m, 2) pairs of nearest neighbours on a lattice, nodes numbered with the last axis fastest."""
    node = np.arange(math.prod(shape), dtype=np.int64).reshape(shape)
    pairs = []
    for axis in range(len(shape)):
        along = np.moveaxis(node, axis, 0)
        pairs.append(np.stack([along[1:].ravel(), along[:-1].ravel()], axis=-1))
    return np.concatenate(pairs)


def require_positive(name: str, **sizes: int) -> None:
    """Raise unless every size is an integer of at least 1."""
    require_at_least(1, name, **sizes)


def set_sizes(topology: Any, *names: str, least: int = 1) -> None:
    """Check sizes of a frozen dataclass, and make them Python's own integers: they stand in messages and files."""
    for name in names:
        size = getattr(topology, name)
        require_at_least(least, type(topology).__name__, **{name: size})
        object.__setattr__(topology, name, int(size))


def require_at_least(least: int, name: str, **sizes: int) -> None:
    """Raise unless every size is an integer of at least that."""
    for what, size in sizes.items():
        if not isinstance(size, int | np.integer) or isinstance(size, bool):
            raise PatternError(f"{name}: {what} must be an integer, got {size!r}.")
        if size < least:
            raise PatternError(f"{name}: {what} must be at least {least}, got {size}.")


def checked_order(name: str, n: int, order: Iterable[int] | None) -> Order:
    """The order as Python integers. Raises unless it is a permutation of the nodes."""
    given = None if order is None else integers(f"{name}: order", order)
    if given is not None and sorted(given) != list(range(n)):
        raise PatternError(f"{name}: order must be a permutation of 0 … {n - 1}.")
    return given


def integers(what: str, numbers: Iterable[Any]) -> tuple[int, ...]:
    """Any iterable of integers, NumPy's among them."""
    try:
        given = tuple(numbers)
        indices = tuple(operator.index(number) for number in given)
    except TypeError:
        raise PatternError(f"{what} must be integers, got {numbers!r}.") from None
    if any(isinstance(number, bool) for number in given):  # which Python counts among the integers
        raise PatternError(f"{what} must be integers, got {given!r}.")
    return indices
