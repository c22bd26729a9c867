"""Cholesky factorisation, Gram products, log determinants, and solutions given P."""

from __future__ import annotations

import math
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from sparseggm import threads
from sparseggm.errors import DTypeError, NotPositiveDefiniteError
from sparseggm.graph.pattern import FloatArray, IntArray, Pattern
from sparseggm.kernels.sparse.cholesky import log_determinants_of_factors
from sparseggm.linalg import checks, memory
from sparseggm.linalg.checks import Shape
from sparseggm.linalg.engines import engine_for
from sparseggm.linalg.primitives import Shared
from sparseggm.linalg.products import solve, solve_t
from sparseggm.linalg.sparse import judge_small_pivots


def cholesky(pattern: Pattern, precision: FloatArray) -> FloatArray:
    """The factor L of P = L Lᵀ, lower triangular with positive diagonal.

    Args:
        pattern: of P.
        precision: (..., nnz) lower triangle of P.
    Returns:
        (..., nnz of F) values of L on F = `pattern.filled()`.
    Raises:
        NotPositiveDefiniteError: a pivot is not positive, or elimination overflowed, or rounding alone could have made
            the pivot: L_kk² ≤ min(∛u P_kk, γ_{r+1} |w|ᵀ |L| |L|ᵀ |w|), w = L_kk L⁻ᵀ e_k; so a singular P does not
            succeed by luck. The error carries batch index, column and pivot.
    Cost: Σ_j |F_j|² flops, memory nnz(F); left-looking [Davis 2006, §4.8]. Large matrices by dense fronts [Duff & Reid
        1983; Liu 1992], with scratch of up to 4 nnz(F) numbers a thread.
    Error: L Lᵀ = P + ΔP with |ΔP| ≤ γ_{r+1} |L| |Lᵀ| + 2 r √tiny √(P_ii P_jj), r the longest row of F: the first term
        is [Higham 2002, Thm 10.3]; the second is for entries below √tiny √P_ii, which are set to zero. For one long
        chain, 2u L_jj² more where parts meet.
    Reference: `reference.linalg.cholesky`.
    """
    factor, columns, failed = _factorise("cholesky", pattern, precision)
    if failed:
        checks.require_finite("cholesky", "precision", pattern, precision)
        filled = pattern.filled()
        _raise_not_positive_definite(filled, factor.reshape(-1, filled.nnz), columns, precision.shape[:-1])
    return factor


def attempt_cholesky(pattern: Pattern, precision: FloatArray) -> tuple[FloatArray, npt.NDArray[np.bool_]]:
    """`cholesky` that does not raise: it returns for each batch element whether P ≻ 0, up to rounding.

    Returns:
        (..., nnz of F) values, those of L where the factorisation succeeded; and booleans (...).
    Cost, Error: as `cholesky`.
    """
    factor, columns, _ = _factorise("attempt_cholesky", pattern, precision)
    return factor, np.asarray(columns.reshape(precision.shape[:-1]) < 0)


def _factorise(verb: str, pattern: Pattern, precision: FloatArray) -> tuple[FloatArray, IntArray, bool]:
    """L (..., nnz of F); for each matrix of the flattened batch, the failing column or −1; whether any failed."""
    checks.check(verb, pattern, packed={"precision": precision})
    filled, batch_shape = pattern.filled(), precision.shape[:-1]
    count = math.prod(batch_shape)
    factor, columns = memory.empty((*batch_shape, filled.nnz), precision.dtype), np.empty(count, np.int64)
    rows = factor.reshape(count, filled.nnz)
    engine = engine_for(pattern, count, precision.dtype)
    if engine.cholesky(pattern, checks.as_rows(precision, batch_shape), rows, columns):
        judge_small_pivots(filled, rows, columns)
    return factor, columns, bool((columns >= 0).any())


def _raise_not_positive_definite(filled: Pattern, rows: FloatArray, columns: Any, batch_shape: Shape) -> NoReturn:
    """Raise an error that describes the first failing matrix, whose pivot the kernel left on the diagonal."""
    row = int(np.argmax(columns >= 0))
    column = int(columns[row])
    batch_index = tuple(int(axis) for axis in np.unravel_index(row, batch_shape)) if batch_shape else ()
    pivot = float(rows[row, filled.indptr[column]])
    failure = "not positive definite" if not pivot > 0 else "singular to working precision"
    raise NotPositiveDefiniteError(
        f"cholesky: {failure}: pivot {pivot:.3g} at column {column} of {filled.n}{checks.in_batch(batch_index)}.",
        batch_index=batch_index,
        column=column,
        pivot=pivot,
    )


def gram(pattern: Pattern, factor: FloatArray) -> FloatArray:
    """P = L Lᵀ, (..., nnz of the result) on `pattern.gram()`.

    Cost: 2 Σ_j |S_j|² flops. Error: |Δ| ≤ γ_{r+1} |L| |L|ᵀ, r the longest row [Higham 2002, §3.5], and
        η (|L|1 + 1ᵀ|L|ᵀ) where L is subnormal, η the smallest subnormal.
    Reference: `reference.linalg.gram`.
    """
    checks.check("gram", pattern, packed={"factor": factor})
    product, batch_shape = pattern.gram(), factor.shape[:-1]
    values = memory.empty((*batch_shape, product.nnz), factor.dtype)
    rows = checks.as_rows(factor, batch_shape)
    half = checks.read_only_view(rows * factor.dtype.type(0.5))  # L Lᵀ = L (½L)ᵀ + (½L) Lᵀ
    out, engine = values.reshape(len(rows), product.nnz), engine_for(pattern, len(rows), factor.dtype)
    if engine.sweep("gram_jvp", pattern, product, rows, half, out):
        checks.raise_cause("gram", {"factor": (pattern, factor)}, divides=False)
    return values


def logdet(pattern: Pattern, factor: FloatArray, dtype: npt.DTypeLike | None = None) -> FloatArray:
    """log det P = 2 Σ_j log L_jj, shape (...).

    Args:
        pattern: of L.
        factor: (..., nnz) values of L.
        dtype: of the result, float32 or float64; None: that of the factor. The sum is formed in float64 in any case.
    Raises:
        DTypeError: `dtype` is neither float32 nor float64.
        NonPositiveError: a diagonal entry of L is ≤ 0. Other entries are not read.
    Cost: n/8 logarithms (n if a pivot is beyond 2^±127), summed in float64.
    Error: |Δ| ≤ γ_{n+1} Σ 2 |log L_jj| + 2 γ_n in float64, and u |log det P| for the rounding
        to another dtype.
    Reference: `reference.linalg.logdet`.
    """
    checks.check("logdet", pattern, packed={"factor": factor})
    result_dtype = factor.dtype if dtype is None else np.dtype(dtype)
    if result_dtype not in (np.float32, np.float64):
        raise DTypeError(f"logdet: dtype must be float32 or float64, got {result_dtype}.")
    batch_shape = factor.shape[:-1]
    rows, sums = checks.as_rows(factor, batch_shape), np.empty(math.prod(batch_shape))
    if engine_for(pattern, len(rows), factor.dtype).logdet(pattern, rows, sums):
        checks.raise_cause("logdet", {"factor": (pattern, factor)})
    return sums.reshape(batch_shape).astype(result_dtype)


def precision_logdet(pattern: Pattern, precision: FloatArray) -> FloatArray:
    """log det P given P itself, shape (...): `logdet` of `cholesky`, but L never leaves the cache.

    Args:
        pattern: of P.
        precision: (..., nnz) lower triangle of P.
    Raises:
        NotPositiveDefiniteError: as `cholesky`.
    Cost: as `cholesky`, without the memory.
    Error: |Δ| ≤ 2 γ_{n+3} + 4 u |log det (P + ΔP)| in float64, ΔP the backward error of `cholesky`; for one long chain
        as `precision_solve`; and u |log det P| for the rounding to the dtype.
    Reference: `reference.linalg.precision_logdet`.
    """
    checks.check("precision_logdet", pattern, packed={"precision": precision})
    batch_shape = precision.shape[:-1]
    sums = np.empty(math.prod(batch_shape))
    engine = engine_for(pattern, sums.size, precision.dtype)
    if engine.precision_logdet(pattern, checks.as_rows(precision, batch_shape), sums):
        with checks.speaking_as("precision_logdet", "cholesky"):
            filled, factor = pattern.filled(), cholesky(pattern, precision)
        rows = checks.as_rows(factor, batch_shape)
        threads.over_batch(log_determinants_of_factors, 20 * filled.n, filled.structure[0], rows, sums, batch=sums.size)
    return sums.reshape(batch_shape).astype(precision.dtype)


def precision_solve(pattern: Pattern, precision: FloatArray, rhs: FloatArray) -> tuple[FloatArray, FloatArray]:
    """x = P⁻¹ b and log det P given P itself: a posterior mean and its evidence, without the factor.

    Args:
        pattern: of P.
        precision: (..., nnz) lower triangle of P.
        rhs: (..., n), b; batch axes broadcast.
    Returns:
        (..., n) solutions, and log det P on the batch axes of `precision`.
    Raises:
        NotPositiveDefiniteError: as `cholesky`.
    Cost: `cholesky`, `solve`, `solve_t` and `logdet`; for one long chain two passes over P and b, two divisions a node
        and n/256 logarithms, and no memory but that of x. A long chain with a pivot beyond the normal numbers is
        factorised instead.
    Error: (P + ΔP) x = b with |ΔP| ≤ γ_{3r+1} |L| |Lᵀ|, r the longest row of L [Higham 2002, Thm 10.4], and the entries
        that `cholesky` sets to zero. For one long chain |ΔP| ≤ γ_13 |P| entrywise, as in [Higham 2002, Thm 9.14], and
        one smallest subnormal a product; log det P is that of such a matrix within 2 γ_{n+3} + γ_{n+1} Σ |log D_jj|.
    Reference: `reference.linalg.precision_solve`.
    """
    checks.check("precision_solve", pattern, packed={"precision": precision}, rhs=rhs)
    full = checks.broadcast("precision_solve", precision=precision.shape[:-1], rhs=rhs.shape[:-1])
    own, count = precision.shape[:-1], math.prod(full)
    x, sums = memory.empty((*full, pattern.n), rhs.dtype), np.empty(math.prod(own))
    matrices = Shared(checks.as_rows(precision, own), checks.owners(own, full))
    rows = checks.as_rows(rhs, full), x.reshape(count, pattern.n), sums
    if count and not engine_for(pattern, count, rhs.dtype).precision_solve(pattern, matrices, *rows):
        return x, sums.reshape(own).astype(rhs.dtype)
    with checks.speaking_as("precision_solve", "cholesky", "solve", "solve_t"):
        filled, factor = pattern.filled(), cholesky(pattern, precision)
        x = solve(filled, factor, rhs)
        return solve_t(filled, factor, x, out=x), logdet(filled, factor)
