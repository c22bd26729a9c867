"""Products and triangular solves with one sparse matrix and any number of vectors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from sparseggm.errors import ShapeError
from sparseggm.graph.pattern import FloatArray, IntArray, Pattern
from sparseggm.linalg import checks, memory
from sparseggm.linalg.checks import Shape
from sparseggm.linalg.engines import engine_for
from sparseggm.linalg.primitives import Shared


def solve(pattern: Pattern, factor: FloatArray, rhs: FloatArray) -> FloatArray:
    """Solve L x = rhs.

    Args:
        pattern: of L.
        factor: (..., nnz) values of L, diagonal nonzero.
        rhs: (..., n); batch axes that `factor` lacks hold many right-hand sides of one factor.
    Returns:
        (..., n).
    Cost: 2 nnz − n flops a right-hand side; the factor is never copied.
    Error: (L + ΔL) x = rhs with |ΔL| ≤ γ_r |L| entrywise, r the longest row [Higham 2002, Thm 8.5]; 2u more where
        parts of one long chain meet.
    Reference: `reference.linalg.solve`.
    """
    return _product("solve", pattern, ("factor", factor), ("rhs", rhs), divides=True)


def solve_t(pattern: Pattern, factor: FloatArray, rhs: FloatArray, out: FloatArray | None = None) -> FloatArray:
    """Solve Lᵀ x = rhs: with rhs = ε ~ N(0, I), x is a sample from N(0, (L Lᵀ)⁻¹).

    Args, Returns, Cost: as `solve`; but the result is written to `out`, if given. `out` may be `rhs` itself, which is
        then overwritten: samples need no memory beyond their own. An argument that overlaps it otherwise is copied.
    Error: (L + ΔL)ᵀ x = rhs with |ΔL| ≤ γ_c |L| entrywise [Higham 2002, Thm 8.5]; for one long chain as `solve`.
    Reference: `reference.linalg.solve_t`.
    """
    return _product("solve_t", pattern, ("factor", factor), ("rhs", rhs), divides=True, out=out)


def matmul(pattern: Pattern, factor: FloatArray, x: FloatArray) -> FloatArray:
    """L x, (..., n).

    Cost: 2 nnz flops. Error: |Δ| ≤ γ_r |L| |x|, r the longest row [Higham 2002, §3.5].
    Reference: `reference.linalg.matmul`.
    """
    return _product("matmul", pattern, ("factor", factor), ("x", x))


def matmul_t(pattern: Pattern, factor: FloatArray, x: FloatArray) -> FloatArray:
    """Lᵀ x, (..., n).

    Cost: 2 nnz flops. Error: |Δ| ≤ γ_c |L|ᵀ |x| [Higham 2002, §3.5]. Reference: `reference.linalg.matmul_t`.
    """
    return _product("matmul_t", pattern, ("factor", factor), ("x", x))


def symmetric_matmul(pattern: Pattern, precision: FloatArray, x: FloatArray) -> FloatArray:
    """P x, (..., n), from the lower triangle of P.

    Cost: 4 nnz − 2 n flops. Error: |Δ| ≤ γ_k |P| |x|, k the entries of the fullest row of P, both triangles counted
    [Higham 2002, §3.5]. Reference: `reference.linalg.symmetric_matmul`.
    """
    return _product("symmetric_matmul", pattern, ("precision", precision), ("x", x))


def outer(pattern: Pattern, x: FloatArray, y: FloatArray, batch_shape: Shape | None = None) -> FloatArray:
    """x yᵀ on the pattern: result[p] = x[rows[p]] y[cols[p]].

    Args:
        pattern: the entries of x yᵀ to compute.
        x, y: (..., n).
        batch_shape: of the result; sums over the axes along which it broadcasts to the batch of x and y, as in the
            gradient of a factor that many right-hand sides share. None: the batch of x and y, no sum.
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
    members = checks.read_only_view(_terms(target, full))
    values = memory.empty((*target, pattern.nnz), x.dtype)
    rows = (checks.as_rows(x, full), checks.as_rows(y, full), values.reshape(len(members), pattern.nnz))
    if engine_for(pattern, len(members), x.dtype).outer(pattern, members, *rows):
        checks.raise_cause("outer", {"x": (None, x), "y": (None, y)})
    return values


def _terms(target: Shape, full: Shape) -> IntArray:
    """For each row of the batch `target`, the rows of the batch `full` to which it broadcasts: (rows, terms)."""
    rows = np.arange(math.prod(full)).reshape(full)
    added = len(full) - len(target)
    summed = [*range(added), *(axis for axis in range(added, len(full)) if target[axis - added] != full[axis])]
    kept = [axis for axis in range(len(full)) if axis not in summed]
    terms = math.prod(full[axis] for axis in summed)
    return np.ascontiguousarray(rows.transpose(kept + summed).reshape(math.prod(target), terms))


def _product(
    verb: str,
    pattern: Pattern,
    matrix: tuple[str, FloatArray],
    vector: tuple[str, FloatArray],
    divides: bool = False,
    out: FloatArray | None = None,
) -> FloatArray:
    """Run a verb on one matrix a batch element and any number of vectors a matrix."""
    values, x = matrix[1], vector[1]
    checks.check(verb, pattern, packed=dict([matrix]), **dict([vector]))
    full = checks.broadcast(verb, **{matrix[0]: values.shape[:-1], vector[0]: x.shape[:-1]})
    if out is None:
        result = memory.empty((*full, pattern.n), x.dtype)
    else:
        result = _checked_out(verb, out, (*full, pattern.n), x.dtype)
        values, x = checks.apart(values, out), x if _is_same(x, out) else checks.apart(x, out)
    count, own = math.prod(full), values.shape[:-1]
    repeat = math.prod(own) if full[len(full) - len(own) :] == own else count
    matrices = Shared(checks.as_rows(values, own), checks.owners(own, full), repeat)
    rows = checks.as_rows(x, full), result.reshape(count, pattern.n)
    if engine_for(pattern, count, x.dtype).product(verb, pattern, matrices, *rows):
        inputs = {matrix[0]: (pattern, values), vector[0]: (None, x)}
        if out is not None and _is_same(x, out):  # x is overwritten; only the factor can still be examined
            del inputs[vector[0]]
        checks.raise_cause(verb, inputs, divides)
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
    """Whether both are the same numbers in memory, so that each solution may overwrite its right-hand side."""
    return x is out or (x.ctypes.data == out.ctypes.data and x.shape == out.shape and x.strides == out.strides)
