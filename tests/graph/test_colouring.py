"""Colourings: valid on any graph, and determined by it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparseggm import Chain, Diagonal, Grid, Pattern, Star, distance_colouring
from tests.strategies import mask, named_patterns

patterns = named_patterns(4, "precision")


def balls(pattern: Pattern, distance: int) -> np.ndarray:
    """(n, n) boolean: whether two nodes are at most so many edges apart, by powers of the adjacency matrix."""
    joined = mask(pattern) | mask(pattern).T
    reached = np.eye(pattern.n, dtype=bool)
    for _ in range(distance):
        reached = (reached.astype(int) @ joined) > 0
    return reached


@given(named=patterns, distance=st.integers(0, 5))
def test_colours_differ_within_the_distance_and_each_is_the_least_free_one(named, distance) -> None:
    pattern = named[1]
    colours = distance_colouring(pattern, distance)
    near = balls(pattern, distance) & ~np.eye(pattern.n, dtype=bool)
    assert not (near & (colours[:, None] == colours)).any()
    for node in range(pattern.n):  # greedy: all smaller colours are taken within the distance
        assert set(range(colours[node])) <= set(colours[near[node]])


@given(named=patterns)
def test_colours_beyond_the_diameter_are_all_different_in_a_component(named) -> None:
    pattern = named[1]
    colours = distance_colouring(pattern, pattern.n)
    for component in balls(pattern, pattern.n):
        assert sorted(colours[component]) == list(range(component.sum()))


@given(named=patterns, seed=st.integers(0, 2**32 - 1), distance=st.integers(0, 3))
def test_colours_of_a_renumbered_graph_are_valid_there(named, seed, distance) -> None:
    pattern, _ = named[1].permuted(np.random.default_rng(seed).permutation(named[1].n))
    colours = distance_colouring(pattern, distance)
    near = balls(pattern, distance) & ~np.eye(pattern.n, dtype=bool)
    assert not (near & (colours[:, None] == colours)).any()


def test_colours_are_pinned() -> None:
    """Part of the definition: published figures depend on them."""
    rows = Pattern.from_edges(12, Grid(3, 4).edges)
    assert distance_colouring(rows, 1).reshape(3, 4).tolist() == [[0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1]]
    assert distance_colouring(rows, 2).reshape(3, 4).tolist() == [[0, 1, 2, 0], [2, 3, 4, 1], [1, 0, 5, 2]]
    assert distance_colouring(Star(5).precision_pattern, 1).tolist() == [0, 0, 0, 0, 1]


@pytest.mark.parametrize(
    ("topology", "distance", "count"),
    [(Diagonal(7), 3, 1), (Chain(50), 0, 1), (Chain(50), 4, 5), (Grid(20, 20), 1, 2), (Grid(20, 20), 3, 8)],
    ids=str,
)
def test_colours_are_as_few_as_possible_on_simple_graphs(topology, distance, count) -> None:
    assert distance_colouring(topology.precision_pattern, distance).max() + 1 == count


def test_colours_of_a_negative_distance_raise() -> None:
    with pytest.raises(ValueError, match="distance_colouring: distance must be at least 0, got -1"):
        distance_colouring(Chain(3).precision_pattern, -1)
