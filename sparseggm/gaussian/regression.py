"""Regression coordinates of a factor: how moves of them change it, and what it takes to compare two.

Column j of a factor L gives the conditional of node j given the later nodes of the column, its parents i: weights
β_ij = −L_ij/L_jj and scale σ_j = 1/L_jj. Everything here is in the numbering of the pattern; `moved` and
`scale_divergence` take NumPy arrays and torch tensors.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sparseggm.errors import PatternError
from sparseggm.graph.pattern import Pattern
from sparseggm.kernels.sparse.residual import SERIES
from sparseggm.positivity.namespace import Array, array_namespace, mask, take


def moved(pattern: Pattern, factor: Array, moves: Array) -> Array:
    """L_jj = M_jj e^{−δ_j}, L_ij = e^{−δ_j} (M_ij − Δ_ij M_jj): log σ + δ and β + Δ, from a factor M.

    Args:
        factor, moves: (..., nnz); δ is the diagonal of the moves.
    """
    xp, shrink = array_namespace(moves), array_namespace(moves).exp(-take(moves, pattern.diagonal))
    change = xp.where(mask(moves, pattern.rows == pattern.cols), xp.zeros_like(moves), moves)
    pivots = take(take(factor, pattern.diagonal), pattern.cols)
    return take(shrink, pattern.cols) * (factor - change * pivots)


def scale_divergence(delta: Array) -> Array:
    """h(δ) = ½ (e^{2δ} − 1) − δ ≥ 0 of float64 numbers: KL(N(0, e^{2δ}) ‖ N(0, 1)), without cancellation near zero."""
    xp, x = array_namespace(delta), 2.0 * delta
    small = abs(x) < 0.5
    near = xp.where(small, x, xp.zeros_like(x))
    series = xp.zeros_like(x)
    for coefficient in SERIES.tolist():
        series = series * near + coefficient
    return xp.where(small, series * near * near, 0.5 * (xp.expm1(x) - x))


def require_one_pattern(function: str, q: Any, p: Any) -> None:
    """Require the factors of two Gaussians to be on one pattern, in one order of elimination."""
    if q.factor_pattern is p.factor_pattern and np.array_equal(q.topology.order, p.topology.order):
        return
    raise PatternError(
        f"{function}: needs two factors on one pattern, in one order of elimination, got {q.factor_pattern!r} of "
        f"{q.topology} and {p.factor_pattern!r} of {p.topology}."
    )
