"""Gershgorin's theorem on a sparse precision: every eigenvalue lies in a disc |λ − P_ii| ≤ Σ_{j≠i} |P_ij|.

Sufficient, never necessary: a positive `slack` proves P ≻ 0 and bounds λ_min from below; a nonpositive one proves
nothing. Packed values on a pattern, in its numbering, as NumPy arrays or torch tensors [Horn & Johnson 2013, §6.1].
"""

from __future__ import annotations

import numpy as np

from sparseggm.errors import ShapeError
from sparseggm.namespace import Array, namespace, segment_sum
from sparseggm.pattern import Pattern


def discs(pattern: Pattern, precision: Array) -> tuple[Array, Array]:
    """Centres P_ii and radii Σ_{j≠i} |P_ij|, both (..., n).

    Args:
        pattern: of P.
        precision: (..., nnz) values of P.
    Cost: O(nnz). Error: a radius of k terms has relative error ≤ γ_k. Reference: `reference.linalg.discs`.
    """
    if precision.shape[-1:] != (pattern.nnz,):
        raise ShapeError(
            f"gershgorin: precision must end in {pattern.nnz}, the nnz of the pattern, got {precision.shape}."
        )
    off_diagonal = np.flatnonzero(pattern.rows != pattern.cols)
    magnitudes = namespace(precision).abs(precision[..., off_diagonal])
    ends = np.concatenate([pattern.rows[off_diagonal], pattern.cols[off_diagonal]])
    both = namespace(precision).concatenate([magnitudes, magnitudes], -1)  # an entry stands for two
    return precision[..., pattern.diagonal.astype(np.int64)], segment_sum(both, ends, pattern.n)


def slack(pattern: Pattern, precision: Array) -> Array:
    """P_ii − Σ_{j≠i} |P_ij|, (..., n): min slack > 0 proves P ≻ 0 and λ_min(P) ≥ min slack."""
    centres, radii = discs(pattern, precision)
    return centres - radii


def bounds(pattern: Pattern, precision: Array) -> tuple[Array, Array]:
    """Numbers (...) with lower ≤ λ ≤ upper for every eigenvalue of P; the lower may be negative even if P ≻ 0."""
    centres, radii = discs(pattern, precision)
    xp = namespace(precision)
    return xp.amin(centres - radii, -1), xp.amax(centres + radii, -1)
