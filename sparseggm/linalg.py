"""The verbs of linear algebra on packed values: checks, memory, one kernel call, and the meaning of its status.

A verb knows a `Pattern` and nothing of topologies: all nodes are in the pattern's own numbering. Packed values are
(..., nnz) on it, see `sparseggm.pattern`; leading axes are batch axes and broadcast. Arguments are float32 or
float64, of one dtype, and never modified; results are new memory of that dtype.

Errors common to all verbs, raised before any work unless they concern single values:
    ShapeError: a last axis does not fit the pattern, or batch axes do not broadcast.
    DTypeError: not float32 or float64 in native byte order, or two arrays that differ.
    NonFiniteError: NaN or infinity in an argument, or a result beyond the dtype.

Costs are a batch element; c is the longest column of the pattern, S_j and F_j columns of L and of its fill.
u is the unit roundoff, γ_k = k u / (1 − k u). The bounds are derived in docs/errors-and-bounds.md.
"""

from __future__ import annotations

import math
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from sparseggm import checks, long_chain, memory, threads
from sparseggm.checks import Shape
from sparseggm.errors import DTypeError, NotPositiveDefiniteError, ShapeError
from sparseggm.kernels import cholesky as cholesky_kernels
from sparseggm.kernels import inverse, products
from sparseggm.kernels.chain import SMALL_PIVOT
from sparseggm.pattern import FloatArray, IntArray, Pattern

_SEGMENT = 1 << 16
"""Nodes whose logarithms one thread sums."""

_NONE: FloatArray = np.empty(0)

ALL = checks.frozen(np.empty(0, np.int32))
"""For `inverse.derive`: no choice among the entries of its result."""

# ---------------------------------------------------------------------- triangular products and solves


def solve(pattern: Pattern, factor: FloatArray, rhs: FloatArray) -> FloatArray:
    """Solve L x = rhs.

    Args:
        pattern: of L.
        factor: (..., nnz) values of L, diagonal nonzero.
        rhs: (..., n); many right-hand sides of one factor are batch axes that `factor` lacks.
    Returns:
        (..., n).
    Cost: 2 nnz − n flops a right-hand side; the factor is never copied.
    Error: (L + ΔL) x = rhs with |ΔL| ≤ γ_r |L| entrywise, r the longest row [Higham 2002, Thm 8.5]; 2u more where
        parts of one long chain meet.
    Reference: `reference.linalg.solve`.
    """
    return _product("solve", products.SOLVE, pattern, ("factor", factor), ("rhs", rhs), divides=True)


def solve_t(pattern: Pattern, factor: FloatArray, rhs: FloatArray, out: FloatArray | None = None) -> FloatArray:
    """Solve Lᵀ x = rhs: with rhs = ε ~ N(0, I), x is a draw from N(0, (L Lᵀ)⁻¹).

    Args, Returns, Cost: as `solve`; but `out`, if given, is where the result goes. It may be `rhs` itself, whose values
        are lost then: draws need no memory beyond their own. What it overlaps otherwise is copied first.
    Error: (L + ΔL)ᵀ x = rhs with |ΔL| ≤ γ_c |L| entrywise [Higham 2002, Thm 8.5]; of one long chain as `solve`.
    Reference: `reference.linalg.solve_t`.
    """
    return _product("solve_t", products.SOLVE_T, pattern, ("factor", factor), ("rhs", rhs), divides=True, out=out)


def matmul(pattern: Pattern, factor: FloatArray, x: FloatArray) -> FloatArray:
    """L x, (..., n).

    Cost: 2 nnz flops. Error: |Δ| ≤ γ_r |L| |x|, r the longest row [Higham 2002, §3.5].
    Reference: `reference.linalg.matmul`.
    """
    return _product("matmul", products.MATMUL, pattern, ("factor", factor), ("x", x))


def matmul_t(pattern: Pattern, factor: FloatArray, x: FloatArray) -> FloatArray:
    """Lᵀ x, (..., n).

    Cost: 2 nnz flops. Error: |Δ| ≤ γ_c |L|ᵀ |x| [Higham 2002, §3.5]. Reference: `reference.linalg.matmul_t`.
    """
    return _product("matmul_t", products.MATMUL_T, pattern, ("factor", factor), ("x", x))


def symmetric_matmul(pattern: Pattern, precision: FloatArray, x: FloatArray) -> FloatArray:
    """P x, (..., n), from the lower triangle of P.

    Cost: 4 nnz − 2 n flops. Error: |Δ| ≤ γ_k |P| |x|, k the entries of the fullest row of P, both triangles counted
    [Higham 2002, §3.5]. Reference: `reference.linalg.symmetric_matmul`.
    """
    return _product("symmetric_matmul", products.SYMMETRIC_MATMUL, pattern, ("precision", precision), ("x", x))


def outer(pattern: Pattern, x: FloatArray, y: FloatArray, batch_shape: Shape | None = None) -> FloatArray:
    """x yᵀ on the pattern: result[p] = x[rows[p]] y[cols[p]].

    Args:
        pattern: where to evaluate; all else of x yᵀ is dropped.
        x, y: (..., n).
        batch_shape: of the result; axes along which it would broadcast to the batch of x and y are summed, which is the
            gradient of a factor that many right-hand sides shared. None: that batch, no sum.
    Returns:
        batch_shape + (nnz,).
    Cost: 2 nnz flops a term; sums are formed in float64, and single terms are never stored.
    Error: |Δ| ≤ (u + γ_m) Σ |x| |y|ᵀ for m terms, γ with the float64 u.
    Reference: `reference.linalg.outer`.
    """
    checks.check("outer", pattern, x=x, y=y)
    full = checks.broadcast("outer", x=x.shape[:-1], y=y.shape[:-1])
    target = full if batch_shape is None else batch_shape
    if checks.broadcast("outer", batch_shape=target, terms=full) != full:
        raise ShapeError(f"outer: batch_shape {target} must broadcast to {full}, the batch of x and y.")
    members = checks.frozen(_terms(target, full))
    values = memory.new((*target, pattern.nnz), x.dtype)
    rows = (checks.as_rows(x, full), checks.as_rows(y, full), values.reshape(len(members), pattern.nnz))
    work = pattern.nnz * members.shape[1]
    if threads.run(products.outer, work, pattern.indptr, pattern.rows, members, *rows, batch=len(members)):
        checks.explain("outer", {"x": (None, x), "y": (None, y)})
    return values


def _terms(target: Shape, full: Shape) -> IntArray:
    """For each row of the batch `target` those of the batch `full` that broadcasting gives: (rows, terms)."""
    rows = np.arange(math.prod(full)).reshape(full)
    added = len(full) - len(target)
    summed = [*range(added), *(axis for axis in range(added, len(full)) if target[axis - added] != full[axis])]
    kept = [axis for axis in range(len(full)) if axis not in summed]
    terms = math.prod(full[axis] for axis in summed)
    return np.ascontiguousarray(rows.transpose(kept + summed).reshape(math.prod(target), terms))


def _product(
    verb: str,
    code: int,
    pattern: Pattern,
    matrix: tuple[str, FloatArray],
    vector: tuple[str, FloatArray],
    divides: bool = False,
    out: FloatArray | None = None,
) -> FloatArray:
    """Run `products.product` on one matrix a batch element and any number of vectors a matrix."""
    values, x = matrix[1], vector[1]
    checks.check(verb, pattern, packed=dict([matrix]), **dict([vector]))
    full = checks.broadcast(verb, **{matrix[0]: values.shape[:-1], vector[0]: x.shape[:-1]})
    if out is None:
        result = memory.new((*full, pattern.n), x.dtype)
    else:
        result = _checked_out(verb, out, (*full, pattern.n), x.dtype)
        values, x = _apart(values, out), x if _is_same(x, out) else _apart(x, out)
    count = math.prod(full)
    matrices, owners = checks.as_rows(values, values.shape[:-1]), checks.owners(values.shape[:-1], full)
    rows = (checks.as_rows(x, full), result.reshape(count, pattern.n))
    if divides and long_chain.is_long(pattern, count):
        status = sum(
            _solve_long(code, pattern, matrices[owner], *pair) for owner, *pair in zip(owners, *rows, strict=True)
        )
    else:
        period = math.prod(values.shape[:-1]) if full[len(full) - values.ndim + 1 :] == values.shape[:-1] else count
        structure = (code, pattern.is_chain, pattern.indptr, pattern.rows, matrices, owners, period)
        status = threads.run(products.product, pattern.nnz, *structure, *rows, batch=count)
    if status:
        inputs = {matrix[0]: (pattern, values), vector[0]: (None, x)}
        if out is not None and _is_same(x, out):  # overwritten: only the factor can still be asked
            del inputs[vector[0]]
        checks.explain(verb, inputs, divides)
    return result


def _checked_out(verb: str, out: FloatArray, shape: Shape, dtype: np.dtype[Any]) -> FloatArray:
    if out.shape != shape or out.dtype != dtype or not out.flags.c_contiguous:
        raise ShapeError(
            f"{verb}: out must be C-contiguous {dtype} of shape {shape}, got {out.dtype} of shape {out.shape}."
        )
    if not out.flags.writeable:
        raise ValueError(f"{verb}: out must be writeable, got a read-only array.")
    return out


def _is_same(x: FloatArray, out: FloatArray) -> bool:
    """Whether they are the same numbers in memory, so that each row may take the place of its right-hand side."""
    return x is out or (x.ctypes.data == out.ctypes.data and x.shape == out.shape and x.strides == out.strides)


def _apart(array: FloatArray, out: FloatArray) -> FloatArray:
    """The array, copied if it might be overwritten before it is read."""
    return array.copy() if np.may_share_memory(array, out) else array


def _solve_long(code: int, pattern: Pattern, L: FloatArray, b: FloatArray, y: FloatArray) -> int:
    return long_chain.solve(L, b, y) if code == products.SOLVE else long_chain.solve_t(pattern, L, b, y)


# ---------------------------------------------------------------------- factorisation


def cholesky(pattern: Pattern, precision: FloatArray) -> FloatArray:
    """The factor L of P = L Lᵀ, lower triangular with positive diagonal.

    Args:
        pattern: of P.
        precision: (..., nnz) lower triangle of P.
    Returns:
        (..., nnz of F) values of L on F = `pattern.filled()`.
    Raises:
        NotPositiveDefiniteError: a pivot is not positive, or elimination overflowed, or rounding alone could have made
            the pivot: L_kk² ≤ min(∛u P_kk, γ_{r+1} |w|ᵀ |L| |L|ᵀ |w|), w = L_kk L⁻ᵀ e_k, which a singular P does not
            pass by luck. It carries batch index, column and pivot.
    Cost: Σ_j |F_j|² flops, memory nnz(F); left-looking [Davis 2006, §4.8].
    Error: L Lᵀ = P + ΔP with |ΔP| ≤ γ_{r+1} |L| |Lᵀ| + 2 r √tiny √(P_ii P_jj), r the longest row of F: the first term
        is [Higham 2002, Thm 10.3], the second that of entries below √tiny √P_ii, which are set to zero. Of one long
        chain 2u L_jj² more where parts meet.
    Reference: `reference.linalg.cholesky`.
    """
    factor, columns, status = _factorise("cholesky", pattern, precision)
    if status:
        checks.require_finite("cholesky", "precision", pattern, precision)
        filled = pattern.filled()
        _raise_not_positive_definite(filled, factor.reshape(-1, filled.nnz), columns, precision.shape[:-1])
    return factor


def attempt_cholesky(pattern: Pattern, precision: FloatArray) -> tuple[FloatArray, npt.NDArray[np.bool_]]:
    """`cholesky` that says of each batch element whether it succeeded, which proves P ≻ 0 up to rounding.

    Returns:
        (..., nnz of F) values, those of L where the factorisation succeeded; and booleans (...).
    Cost, Error: as `cholesky`.
    """
    factor, columns, _ = _factorise("attempt_cholesky", pattern, precision)
    return factor, np.asarray(columns.reshape(precision.shape[:-1]) < 0)


def _factorise(
    verb: str, pattern: Pattern, precision: FloatArray, sums: FloatArray = _NONE
) -> tuple[FloatArray, IntArray, int]:
    """L (..., nnz of F), for each matrix of the flattened batch the column of its failing pivot, or −1, and a status.

    Where there are `sums`, log det P goes there, and neither L nor columns are given; a nonzero status then says that
    a matrix may have failed, or that they are too few.
    """
    checks.check(verb, pattern, packed={"precision": precision})
    filled, batch_shape = pattern.filled(), precision.shape[:-1]
    count = math.prod(batch_shape)
    factor = memory.new((*batch_shape, 0 if sums.size else filled.nnz), precision.dtype)
    columns = np.empty(count, np.int64)
    rows = (checks.as_rows(precision, batch_shape), factor.reshape(count, factor.shape[-1]), columns)
    by_rows = (*filled.row_structure, filled.column_groups)
    status = 1
    if long_chain.is_long(pattern, count):
        statuses = [long_chain.cholesky(P, L) for P, L in zip(*rows[:2], strict=True)]
        columns[:] = [SMALL_PIVOT if status else -1 for status in statuses]
        status = 1 if 1 in statuses else max(statuses, default=0)
    if status == 1:  # in strips a failure has no column
        structure = (pattern.is_chain, filled.indptr, filled.rows, by_rows, pattern.positions_in_fill)
        work = squared_columns(filled)
        status = threads.run(cholesky_kernels.cholesky, work, *structure, *rows, sums, batch=count)
    if status and not sums.size:
        judged = filled.indptr, filled.rows, by_rows, *rows[1:]
        threads.run(cholesky_kernels.singular_columns, 2 * filled.nnz, *judged, batch=count)
        status = int((columns >= 0).any())
    return factor, columns, status


def _raise_not_positive_definite(filled: Pattern, rows: FloatArray, columns: Any, batch_shape: Shape) -> NoReturn:
    """Describe the first failing matrix; the kernel left the pivot on its diagonal."""
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
    values = memory.new((*batch_shape, product.nnz), factor.dtype)
    rows = checks.as_rows(factor, batch_shape)
    half = checks.frozen(rows * factor.dtype.type(0.5))  # L Lᵀ = L (½L)ᵀ + (½L) Lᵀ
    structure = (inverse.GRAM_JVP, False, pattern.indptr, pattern.rows, wide(product), ALL)
    out = values.reshape(len(rows), product.nnz)
    if threads.run(inverse.derive, squared_columns(pattern), *structure, rows, half, out, batch=len(rows)):
        checks.explain("gram", {"factor": (pattern, factor)}, divides=False)
    return values


def logdet(pattern: Pattern, factor: FloatArray, dtype: npt.DTypeLike | None = None) -> FloatArray:
    """log det P = 2 Σ_j log L_jj, shape (...).

    Args:
        pattern: of L.
        factor: (..., nnz) values of L.
        dtype: of the result, float32 or float64; None for that of the factor. The sum is in float64 in any case.
    Raises:
        DTypeError: `dtype` is another.
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
    rows = checks.as_rows(factor, batch_shape)
    segments = -(-pattern.n // _SEGMENT)
    sums, work = np.empty((len(rows), segments)), 20 * pattern.n // segments
    if threads.run(products.logdet, work, pattern.indptr, rows, sums, batch=sums.size):
        checks.explain("logdet", {"factor": (pattern, factor)})
    return (2.0 * sums.sum(axis=1)).reshape(batch_shape).astype(result_dtype)  # type: ignore[no-any-return]


def precision_logdet(pattern: Pattern, precision: FloatArray) -> FloatArray:
    """log det P given P itself, shape (...): `logdet` of `cholesky`, but L never leaves the cache.

    Args:
        pattern: of P.
        precision: (..., nnz) lower triangle of P.
    Raises:
        NotPositiveDefiniteError: as `cholesky`.
    Cost: as `cholesky`, without the memory.
    Error: |Δ| ≤ 2 γ_{n+3} + 4 u |log det (P + ΔP)| in float64, ΔP the backward error of `cholesky`; of one long chain
        as `precision_solve`; and u |log det P| for the rounding to the dtype.
    Reference: `reference.linalg.precision_logdet`.
    """
    checks.check("precision_logdet", pattern, packed={"precision": precision})
    sums = np.empty(math.prod(precision.shape[:-1]))
    if long_chain.is_long(pattern, sums.size):
        nothing = precision[..., :0]
        done = _solve_long_precision(pattern, precision, nothing, nothing, sums)
    else:
        done = sums.size >= threads.LANES and not _factorise("precision_logdet", pattern, precision, sums)[2]
    if not done:
        with checks.speaking_as("precision_logdet", "cholesky"):
            filled, factor = pattern.filled(), cholesky(pattern, precision)
        rows = checks.as_rows(factor, precision.shape[:-1])
        threads.run(
            cholesky_kernels.log_determinants_of_factors, 20 * filled.n, filled.indptr, rows, sums, batch=sums.size
        )
    return sums.reshape(precision.shape[:-1]).astype(precision.dtype)


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
    Cost: `cholesky`, `solve`, `solve_t` and `logdet`; of one long chain two passes over P and b, two divisions a node
        and n/256 logarithms, and no memory but that of x. A long chain with a pivot beyond the normal numbers goes by
        its factor.
    Error: (P + ΔP) x = b with |ΔP| ≤ γ_{3r+1} |L| |Lᵀ|, r the longest row of L [Higham 2002, Thm 10.4], and what
        `cholesky` sets to zero. Of one long chain |ΔP| ≤ γ_13 |P| entrywise, as in [Higham 2002, Thm 9.14], a smallest
        subnormal a product more; log det P that of such a matrix within 2 γ_{n+3} + γ_{n+1} Σ |log D_jj|.
    Reference: `reference.linalg.precision_solve`.
    """
    checks.check("precision_solve", pattern, packed={"precision": precision}, rhs=rhs)
    full = checks.broadcast("precision_solve", precision=precision.shape[:-1], rhs=rhs.shape[:-1])
    count = math.prod(full)
    if count and long_chain.is_long(pattern, count):
        x, sums = memory.new((*full, pattern.n), rhs.dtype), np.empty(math.prod(precision.shape[:-1]))
        if _solve_long_precision(pattern, precision, rhs, x, sums):
            return x, sums.reshape(precision.shape[:-1]).astype(rhs.dtype)
    with checks.speaking_as("precision_solve", "cholesky", "solve", "solve_t"):
        filled, factor = pattern.filled(), cholesky(pattern, precision)
        x = solve(filled, factor, rhs)
        return solve_t(filled, factor, x, out=x), logdet(filled, factor)


def _solve_long_precision(
    pattern: Pattern, precision: FloatArray, rhs: FloatArray, x: FloatArray, logdets: FloatArray
) -> bool:
    """Long chains one by one; x and `rhs` without entries are not wanted. False: see what `cholesky` says."""
    full = x.shape[:-1]
    rows, right = checks.as_rows(precision, precision.shape[:-1]), checks.as_rows(rhs, full)
    solutions = x.reshape(len(right), rhs.shape[-1])
    for k, owner in enumerate(checks.owners(precision.shape[:-1], full)):
        status, logdets[owner] = long_chain.solve_precision(pattern, rows[owner], right[k], solutions[k])
        if status:
            return False
    return True


# ---------------------------------------------------------------------- selected inverse


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
    Cost: 4 Σ_j |S_j| |F_j| flops: a chain O(n), an extended grid O(n · cols). Σ is stored once.
    Error: the defining equations Σ_ij L_jj + Σ_{k ∈ S_j} Σ_ik L_kj = δ_ij / L_jj hold within γ_{c+2} of the same
        sums on absolute values, and √tiny √Σ_ii for an entry set to zero.
    Source: [Takahashi, Fagan & Chin 1973; Erisman & Tinney 1975], with the columns of a sparse L.
    Reference: `reference.linalg.selected_inverse`.
    """
    checks.check("selected_inverse", pattern, packed={"factor": factor})
    fill = checks.closed_superset("selected_inverse", pattern, on)
    return _inverse("selected_inverse", inverse.SELECTED_INVERSE, pattern, fill, factor, fill.nnz)


def marginal_variances(pattern: Pattern, factor: FloatArray) -> FloatArray:
    """diag Σ, (..., n). Σ is not stored: scratch is nnz(F) for each of 16 batch elements in float32, 8 in float64.

    Raises, Cost, Source: as `selected_inverse`.
    Error: for a chain all terms are positive, and the relative error of each variance is ≤ 10 min(n, 1/(1 − ρ²)) u,
        ρ the largest correlation of neighbours, whatever the condition number; else a-posteriori bounds.
    Reference: `reference.linalg.marginal_variances`.
    """
    checks.check("marginal_variances", pattern, packed={"factor": factor})
    return _inverse("marginal_variances", inverse.MARGINAL_VARIANCES, pattern, pattern.filled(), factor, pattern.n)


def trace_inverse(pattern: Pattern, factor: FloatArray) -> FloatArray:
    """tr Σ, (...), the sum of the marginal variances formed in float64. Raises, Cost, Source: as there."""
    checks.check("trace_inverse", pattern, packed={"factor": factor})
    filled = pattern.filled()
    variances = _inverse("trace_inverse", inverse.MARGINAL_VARIANCES, pattern, filled, factor, pattern.n)
    with np.errstate(over="ignore"):  # tested below
        trace = np.asarray(variances.sum(axis=-1, dtype=np.float64)).astype(factor.dtype)
    if not np.isfinite(trace).all():
        checks.explain("trace_inverse", {"factor": (pattern, factor)})
    return trace


def _inverse(verb: str, code: int, pattern: Pattern, fill: Pattern, factor: FloatArray, size: int) -> FloatArray:
    """Run `inverse.derive` for a verb that computes Σ on `fill`; (..., size)."""
    batch_shape = factor.shape[:-1]
    result = memory.new((*batch_shape, size), factor.dtype)
    rows = checks.as_rows(factor, batch_shape)
    out = result.reshape(len(rows), size)
    if code == inverse.MARGINAL_VARIANCES and long_chain.is_long(pattern, len(rows)):
        status = sum(long_chain.marginal_variances(pattern, L, v) for L, v in zip(rows, out, strict=True))
    else:
        structure = (code, pattern.is_chain, pattern.indptr, pattern.rows, wide(fill), ALL)
        arrays, work = (rows, rows[:, :0], out), column_pairs(pattern, fill)
        status = threads.run(inverse.derive, work, *structure, *arrays, batch=len(rows))
    if status:
        checks.explain(verb, {"factor": (pattern, factor)})
    return result


def wide(pattern: Pattern) -> tuple[Any, ...]:
    """The wide pattern of `inverse.derive`, by columns and by rows."""
    return pattern.indptr, pattern.rows, *pattern.row_structure


def column_pairs(pattern: Pattern, fill: Pattern) -> int:
    """2 Σ_j |S_j| |F_j|: multiply-adds of the selected inverse, the work that `threads` weighs."""
    return 2 * pattern.column_pairs(fill)


def squared_columns(pattern: Pattern) -> int:
    """Σ_j |S_j|²: multiply-adds, twice over, of a factorisation or a Gram product."""
    return column_pairs(pattern, pattern) // 2
