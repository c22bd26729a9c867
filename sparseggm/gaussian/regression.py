"""Regression coordinates of a factor: how moves of them change it, and KL by node between factors on one pattern.

Column j of a factor L gives the conditional of node j given the later nodes of the column, its parents i: weights
β_ij = −L_ij/L_jj and scale σ_j = 1/L_jj. Everything here is in the numbering of the pattern; `moved` and
`scale_divergence` take NumPy arrays and torch tensors.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from sparseggm import linalg
from sparseggm.errors import NonFiniteError, PatternError
from sparseggm.graph.pattern import FloatArray, Pattern
from sparseggm.kernels.sparse.residual import SERIES
from sparseggm.linalg import calculus, checks, conditionals
from sparseggm.positivity.namespace import Array, array_namespace, mask, take

_SERIES = tuple(SERIES.tolist())  # numbers, which torch.compile takes where an array's it does not
_LARGE = 1 << 13
"""Entries of L beyond which a block of lanes leaves the caches, and verbs, with less scratch each, are as fast."""


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
    for coefficient in _SERIES:
        series = series * near + coefficient
    return xp.where(small, series * near * near, 0.5 * (xp.expm1(x) - x))


def on_one_pattern(q: Any, p: Any) -> bool:
    """Whether the factors of two Gaussians are on one pattern, in one order of elimination."""
    return q.factor_pattern is p.factor_pattern and (
        q.topology is p.topology or np.array_equal(q.topology.order, p.topology.order)
    )


def require_one_pattern(function: str, q: Any, p: Any) -> None:
    """Require `on_one_pattern`."""
    if on_one_pattern(q, p):
        return
    raise PatternError(
        f"{function}: needs two factors on one pattern, in one order of elimination, got {q.factor_pattern!r} of "
        f"{q.topology} and {p.factor_pattern!r} of {p.topology}."
    )


def is_one_pass(pattern: Pattern, d: Array, factor: Array, prior: Array) -> bool:
    """Whether `kl_terms` of arrays or tensors goes through one kernel, not through verbs; batch axes broadcast."""
    if pattern.nnz > _LARGE:
        return False
    batch = np.broadcast_shapes(*(tuple(each.shape[:-1]) for each in (d, factor, prior)))
    return conditionals.is_faster(pattern, math.prod(factor.shape[:-1]), math.prod(batch))


def kl_terms(function: str, pattern: Pattern, d: FloatArray, factor: FloatArray, prior: FloatArray) -> FloatArray:
    """`linalg.conditionals.kl_terms` for arrays whose batch axes broadcast; composed of verbs where that is faster.

    Factors are valid; `function` names the error of an overflow, of d too.
    """
    try:
        terms = _kl_terms(pattern, d, factor, prior)
    except NonFiniteError as caught:
        raise checks.overflow(function, factor.dtype) from caught
    return checks.require_representable(function, terms, factor.dtype)


def _kl_terms(pattern: Pattern, d: FloatArray, factor: FloatArray, prior: FloatArray) -> FloatArray:
    if is_one_pass(pattern, d, factor, prior):
        batch = np.broadcast_shapes(d.shape[:-1], factor.shape[:-1], prior.shape[:-1])
        given = (np.broadcast_to(each, (*batch, each.shape[-1])) for each in (d, factor, prior))
        return conditionals.kl_terms(pattern, *given)
    white = linalg.matmul_t(pattern, prior, d).astype(np.float64)
    M, L = prior.astype(np.float64), factor.astype(np.float64)
    pivots, own = M.take(pattern.diagonal, axis=-1), L.take(pattern.diagonal, axis=-1)
    change = M / pivots.take(pattern.cols, axis=-1) - L / own.take(pattern.cols, axis=-1)
    fill, gram = pattern.filled(), pattern.gram()
    sigma = linalg.selected_inverse(pattern, factor).take(gram.positions_in(fill), axis=-1).astype(np.float64)
    sigma[..., gram.diagonal] *= 0.5
    pulls = change * calculus.gram_vjp(pattern, change, sigma)  # Δ_ij (Σ_RR Δ_j)_i
    squares = linalg.matmul_t(pattern, pulls, np.ones(pattern.n)).clip(0.0)  # rounding can make a square negative
    return scale_divergence(np.log(pivots / own)) + 0.5 * (white**2 + pivots**2 * squares)  # type: ignore[no-any-return]
