"""The inverse Σ = (L Lᵀ)⁻¹ on a pattern: selected entries, variances, the trace. Never the dense inverse."""

from __future__ import annotations

import numpy as np

from sparseggm.graph.pattern import FloatArray, Pattern
from sparseggm.linalg import checks, memory
from sparseggm.linalg.engines import engine_for


def selected_inverse(pattern: Pattern, factor: FloatArray, on: Pattern | None = None) -> FloatArray:
    """Σ = (L Lᵀ)⁻¹ on a pattern, never the dense inverse.

    Args:
        pattern: S, of L; closed or not.
        factor: (..., nnz) values of L, diagonal positive.
        on: F, where Σ is wanted: closed under elimination, with S inside. None: `pattern.filled()`.
    Returns:
        (..., nnz of F) values of Σ.
    Raises:
        NonPositiveError: a diagonal entry of L is ≤ 0.
        PatternError: `on` is not closed, or lacks an entry of `pattern`.
    Cost: 2 Σ_j |S_j| |F_j| flops: a chain O(n), an extended grid O(n · cols). Σ is stored once. Large matrices on their
        fill by dense fronts, with scratch of up to 4 nnz(F) numbers a thread.
    Error: the defining equations Σ_ij L_jj + Σ_{k ∈ S_j} Σ_ik L_kj = δ_ij / L_jj hold within γ_{c+2} of the same
        sums on absolute values, and √tiny √Σ_ii for an entry set to zero.
    Source: [Takahashi, Fagan & Chin 1973; Erisman & Tinney 1975], with the columns of a sparse L; [Campbell & Davis
        1995] by fronts.
    Reference: `reference.linalg.selected_inverse`.
    """
    checks.check("selected_inverse", pattern, packed={"factor": factor})
    fill = checks.closed_superset("selected_inverse", pattern, on)
    return _inverse("selected_inverse", pattern, fill, factor, fill.nnz)


def marginal_variances(pattern: Pattern, factor: FloatArray) -> FloatArray:
    """diag Σ, (..., n). Σ is not stored; scratch is nnz(F) for each of 16 batch elements in float32, 8 in float64.

    Raises, Cost, Source: as `selected_inverse`.
    Error: for a chain all terms are positive, and the relative error of each variance is ≤ 10 min(n, 1/(1 − ρ²)) u,
        ρ the largest correlation of neighbours, whatever the condition number; else a-posteriori bounds.
    Reference: `reference.linalg.marginal_variances`.
    """
    checks.check("marginal_variances", pattern, packed={"factor": factor})
    return _inverse("marginal_variances", pattern, pattern.filled(), factor, pattern.n)


def trace_inverse(pattern: Pattern, factor: FloatArray) -> FloatArray:
    """tr Σ, (...), the sum of the variances in float64. Raises, Cost, Source: as `marginal_variances`."""
    checks.check("trace_inverse", pattern, packed={"factor": factor})
    filled = pattern.filled()
    variances = _inverse("trace_inverse", pattern, filled, factor, pattern.n)
    with np.errstate(over="ignore"):  # tested below
        trace = np.asarray(variances.sum(axis=-1, dtype=np.float64)).astype(factor.dtype)
    if not np.isfinite(trace).all():
        checks.raise_cause("trace_inverse", {"factor": (pattern, factor)})
    return trace


def _inverse(verb: str, pattern: Pattern, fill: Pattern, factor: FloatArray, size: int) -> FloatArray:
    """Σ on `fill`, or its diagonal: (..., size)."""
    batch_shape = factor.shape[:-1]
    result = memory.empty((*batch_shape, size), factor.dtype)
    rows = checks.as_rows(factor, batch_shape)
    what = "selected_inverse" if verb == "selected_inverse" else "marginal_variances"
    engine, out = engine_for(pattern, len(rows), factor.dtype), result.reshape(len(rows), size)
    if engine.sweep(what, pattern, fill, rows, rows[:, :0], out):
        checks.raise_cause(verb, {"factor": (pattern, factor)})
    return result
