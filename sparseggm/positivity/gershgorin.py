"""Gershgorin's theorem on a sparse precision: every eigenvalue lies in a disc |λ − P_ii| ≤ Σ_{j≠i} |P_ij| x_j / x_i.

The test is sufficient, never necessary: a positive `slack` proves P ≻ 0 and bounds λ_min from below; a nonpositive one
proves nothing. Values are packed on a pattern, in its numbering, as NumPy arrays or torch tensors.

The theorem is applied to X⁻¹ P X, X = diag(x), which has the eigenvalues of P whatever the `weights` x > 0; without
them x = 1 [Horn & Johnson 2013, Cor. 6.1.6]. Some x proves P ≻ 0 if and only if P is walk-summable (scaled dominant).
"""

from __future__ import annotations

import numpy as np

from sparseggm.errors import NonPositiveError, PatternError, ShapeError
from sparseggm.graph.pattern import Pattern
from sparseggm.linalg import checks
from sparseggm.positivity.namespace import Array, array_namespace, known, known_to_fail, segment_sum, take


def discs(pattern: Pattern, precision: Array, weights: Array | None = None) -> tuple[Array, Array]:
    """Centres P_ii and radii Σ_{j≠i} |P_ij| x_j / x_i, both (..., n).

    Args:
        pattern: of P.
        precision: (..., nnz) values of P.
        weights: (..., n) positive x; None: all one. D⁻¹ gives D M D the slack D_ii² slack_i(M).
    Raises:
        NonPositiveError: a weight is not positive and finite. Where the values of a tensor cannot be read, as under
            torch.compile, its radius is infinite instead, which proves nothing.
    Cost: O(nnz). Error: a radius of k terms has relative error ≤ γ_k, γ_{k+2} with weights.
    Reference: `reference.linalg.discs`.
    """
    if not isinstance(pattern, Pattern):
        raise PatternError(
            f"gershgorin: pattern must be a Pattern, as precision_pattern, got {type(pattern).__name__}."
        )
    precision = known("gershgorin", "precision", precision)
    if precision.shape[-1:] != (pattern.nnz,):
        raise ShapeError(
            f"gershgorin: precision must end in {pattern.nnz}, the nnz of the pattern, got {tuple(precision.shape)}."
        )
    if weights is not None:
        weights = known("gershgorin", "weights", weights)
        _require_valid_weights(pattern, weights)
    off_diagonal = np.flatnonzero(pattern.rows != pattern.cols)
    magnitudes = array_namespace(precision).abs(take(precision, off_diagonal))
    i, j = pattern.rows[off_diagonal], pattern.cols[off_diagonal]
    if weights is None:
        terms = [magnitudes, magnitudes]  # an entry stands for two
    else:
        terms = [magnitudes * take(weights, j), magnitudes * take(weights, i)]
    radii = segment_sum(array_namespace(precision).concatenate(terms, -1), np.concatenate([i, j]), pattern.n)
    if weights is not None:
        xp = array_namespace(radii)
        radii = xp.where(weights > 0, radii / weights, xp.full_like(radii, np.inf))
    return take(precision, pattern.diagonal), radii


def _require_valid_weights(pattern: Pattern, weights: Array) -> None:
    if weights.shape[-1:] != (pattern.n,):
        raise ShapeError(f"gershgorin: weights must end in {pattern.n}, the nodes, got {tuple(weights.shape)}.")
    valid = (weights > 0) & (weights < np.inf)
    if known_to_fail(valid):
        *batch_index, column = (int(axis) for axis in np.argwhere(~np.asarray(valid))[0])
        raise NonPositiveError(
            f"gershgorin: weights must be positive and finite, got {float(weights[(*batch_index, column)]):.3g} at "
            f"column {column} of {pattern.n}{checks.in_batch(tuple(batch_index))}."
        )


def slack(pattern: Pattern, precision: Array, weights: Array | None = None) -> Array:
    """P_ii − Σ_{j≠i} |P_ij| x_j / x_i, (..., n): min slack > 0 proves P ≻ 0 and λ_min(P) ≥ min slack."""
    centres, radii = discs(pattern, precision, weights)
    return centres - radii


def bounds(pattern: Pattern, precision: Array, weights: Array | None = None) -> tuple[Array, Array]:
    """Numbers (...) with lower ≤ λ ≤ upper for every eigenvalue of P; the lower may be negative even if P ≻ 0."""
    centres, radii = discs(pattern, precision, weights)
    xp = array_namespace(precision)
    return xp.amin(centres - radii, -1), xp.amax(centres + radii, -1)


def condition_bound(pattern: Pattern, precision: Array, weights: Array | None = None) -> Array:
    """A number (...) ≥ λ_max(P) / λ_min(P): upper / lower of `bounds`; infinite where the slack proves nothing."""
    lower, upper = bounds(pattern, precision, weights)
    xp = array_namespace(precision)
    proven = lower > 0
    # The quotient that is discarded stays finite, and so does its gradient.
    return xp.where(proven, upper / xp.where(proven, lower, xp.ones_like(lower)), xp.full_like(lower, np.inf))
