"""Where the entries of Σ lie that a caller asks for, on the pattern on which the selected inverse must be formed."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from sparseggm.errors import NonFiniteError, PatternError, in_batch
from sparseggm.graph.pattern import FloatArray, IntArray, Pattern, as_pairs
from sparseggm.graph.topology import Topology
from sparseggm.linalg.checks import REMEDY


def covariance_positions(
    topology: Topology, pattern: Pattern, pairs: npt.ArrayLike, function: str = "covariance_on"
) -> tuple[Pattern, IntArray, IntArray]:
    """The pattern F on which the selected inverse of an L must be formed, and the places of nodes and pairs on F.

    Args:
        pairs: (m, 2) nodes of the topology, in any order; i = j is allowed.
    Returns:
        (pattern of L ∪ pairs).filled(), packed positions (n,) of Σ_ii and (m,) of Σ_ij.
    """
    pairs = as_pairs(function, pairs)
    n = topology.n
    if pairs.size and (pairs.min() < 0 or pairs.max() >= n):
        raise PatternError(f"{function}: nodes must be in 0 … {n - 1}, got {pairs.min()} … {pairs.max()}.")
    ends = topology.inverse_order[pairs]
    fill = pattern.union(Pattern.from_edges(n, ends)).filled()
    nodes = fill.diagonal[topology.inverse_order].astype(np.int64)
    return fill, nodes, fill.positions_between(*ends.T)


def require_normal_variances(function: str, variances: FloatArray) -> None:
    """Raise where a variance (..., n) is below the normal numbers of its dtype, and so has lost its digits, or all."""
    lost = ~(variances >= np.finfo(variances.dtype).tiny)
    if lost.any():
        *batch, node = (int(axis) for axis in np.argwhere(lost)[0])
        raise NonFiniteError(
            f"{function}: the variance of node {node}{in_batch(tuple(batch))} underflows {variances.dtype}. {REMEDY}"
        )


_Places = tuple[str, Pattern, IntArray]


def trace_positions(topology: Topology, pattern: Pattern, graph: Topology) -> tuple[Pattern, IntArray]:
    """For tr(P Σ), P on another graph: F of `covariance_positions`, and the place of each P_ij on F.

    The result is computed once for an L on `pattern`, and kept while both topologies live, because one prior is
    compared with many posteriors.
    """
    of_graph: WeakKeyDictionary[Topology, _Places] = topology.kept.setdefault("trace", WeakKeyDictionary())
    key, fill, positions = of_graph.get(graph, ("", pattern, np.empty(0, np.int64)))
    if key != pattern.key:
        on = graph.precision_pattern
        fill, _, positions = covariance_positions(topology, pattern, graph.order[np.stack([on.rows, on.cols], axis=-1)])
        of_graph[graph] = pattern.key, fill, positions
    return fill, positions
