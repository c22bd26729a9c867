"""Colouring a graph so that equal colours are far apart: which nodes one probe may serve at once.

If Σ_ij decays with the distance of i and j in the graph of P, then nodes of one colour hardly disturb each other in
Σ z, z the sum of their unit vectors up to sign. See `stochastic.estimate_trace_by_probing`.
"""

from __future__ import annotations

import numpy as np

from sparseggm.graph.pattern import IntArray, Pattern
from sparseggm.kernels import symbolic


def distance_colouring(pattern: Pattern, distance: int) -> IntArray:
    """Colours 0, 1, … of the nodes, different wherever two nodes are at most `distance` edges apart.

    Greedy: nodes in breadth-first order (each component from its lowest number, neighbours ascending) take the least
    colour that is free, so the result is determined by the pattern. On a 64 × 64 grid distances 1, 2, 3, 4, 6, 8 take
    2, 7, 8, 19, 34, 54 colours, where ⌈(distance + 1)² / 2⌉ = 2, 5, 8, 13, 25, 41 are needed.

    Args:
        pattern: of P, as `topology.precision_pattern`. That of a factor with fill would join nodes that are far apart.
        distance: in edges, at least 0; 0 gives all nodes one colour.
    Returns:
        (n,) in the pattern's numbering.
    Cost: the edges in all balls of radius `distance`; on a grid O(n · distance²).
    """
    if not isinstance(distance, int | np.integer):
        raise TypeError(f"distance_colouring: distance must be an integer, got {distance!r}.")
    if distance < 0:
        raise ValueError(f"distance_colouring: distance must be at least 0, got {distance}.")
    graph = pattern.to_scipy(np.ones(pattern.nnz, np.int8), symmetric=True)
    graph.sort_indices()
    order = symbolic.breadth_first(graph.indptr, graph.indices)
    return np.asarray(symbolic.distance_colouring(graph.indptr, graph.indices, order, distance))
