"""The largest eigenvalue of a sparse symmetric matrix R with zero diagonal, with a certificate.

An iteration approaches λ_max(R) from below, and a matrix t I − R with t below λ_max(R) is indefinite. So an estimate ρ
is returned only when (1 + ROOM) ρ is known to be above λ_max(R):

* up to `DENSE_NODES` nodes from the dense matrix, made tridiagonal: its rounding, n² u ‖R‖, is far inside ROOM;
* beyond, because the sparse Cholesky factorisation of (1 + ROOM) ρ I − R succeeded: it would have failed for a
  matrix with an eigenvalue below −n γ_{n+1} times its diagonal [Higham 2002, Thm 10.7]. ρ is the Rayleigh
  quotient of inverse iterations with the same factors. docs/positivity.md describes the whole method and its cost.

Everything is formed in float64, whatever the dtype of the values, which are packed on a pattern, in its numbering.
`sparseggm.torch` adds its rule for tensors to `rules` when it is imported: nothing here knows torch.
"""

from __future__ import annotations

import math
from functools import singledispatch
from typing import Any

import numpy as np

from sparseggm import linalg
from sparseggm.errors import DTypeError, NonFiniteError, PatternError, ShapeError
from sparseggm.graph.pattern import FloatArray, Pattern
from sparseggm.linalg import checks
from sparseggm.linalg.eigenpairs import leading_pairs
from sparseggm.positivity import gershgorin
from sparseggm.positivity.namespace import Array, array_namespace, in_float64, known_to_fail, take

DENSE_NODES = 64
"""Up to about this many nodes dense eigenvalues are cheaper than sparse factorisations. In torch, dense eigenvalues
have second derivatives."""

ROOM = 2e-5
"""λ_max(R) ≤ (1 + ROOM) times the result."""

_PRECISE = 1e-12  # residual ‖R v − ρ v‖ / ρ at which the eigenvector counts as found
_MOST_SOLVES = 60  # spent on the eigenvector with the last factor; nearly multiple eigenvalues never converge
_MOST_FACTORISATIONS = 200  # bisection alone needs log₂(largest degree / ROOM)


def largest_eigenvalue(pattern: Pattern, values: Array) -> Array:
    """ρ with ρ ≤ λ_max(R) ≤ (1 + ROOM) ρ, both to rounding; ρ ≥ 0 as the trace is 0.

    Args:
        pattern: of R.
        values: (..., nnz) of R, zero on the diagonal; float32 or float64, array or tensor.
    Returns:
        (...), float64 whatever the dtype. Differentiable for a tensor: a stored value has the derivative 2 v_i v_j, v
        the unit eigenvector. First and second derivatives of a multiple eigenvalue are those of the mean of its copies:
        a subgradient, zero at R = 0. Beyond `DENSE_NODES` nodes there is only the first derivative; that of a multiple
        eigenvalue then belongs to some vector of its eigenspace.
    Raises:
        NonFiniteError: NaN or infinity in `values`.
        PatternError: a diagonal entry is not zero, where values can be read.
    Cost: up to `DENSE_NODES` nodes 2 n³ multiply-adds, in lanes of the batch, and where eigenvalues come together what
        LAPACK needs for all of them; beyond, 3 to 10 factorisations and 10 to 30 solves on `pattern.filled()`.
    Error: up to `DENSE_NODES` nodes n² u ‖R‖ [Golub & Van Loan 2013, §8.3]; beyond, ROOM in the worst case, but
        r² / gap with the residual r = 1e-12 ρ where the next eigenvalue is further off than √(1e-12) ρ.
    """
    if tuple(values.shape[-1:]) != (pattern.nnz,):
        raise ShapeError(
            f"largest_eigenvalue: values must end in {pattern.nnz}, the nnz of the pattern, got {tuple(values.shape)}."
        )
    return rules(values, pattern)


def require_zero_diagonal(function: str, pattern: Pattern, values: Array) -> None:
    """Require a zero diagonal: the bracket begins at zero, and with a diagonal all eigenvalues could be below it."""
    diagonal = take(values, pattern.diagonal)
    is_zero = diagonal == 0
    if known_to_fail(is_zero):
        *batch_index, column = (int(axis) for axis in np.argwhere(~np.asarray(is_zero))[0])
        raise PatternError(
            f"{function}: values must be zero on the diagonal, got {float(diagonal[(*batch_index, column)]):.3g} at "
            f"column {column} of {pattern.n}{checks.in_batch(tuple(batch_index))}."
        )


@singledispatch
def rules(values: Any, pattern: Pattern) -> Any:
    """Do the work of `largest_eigenvalue` for one type of values."""
    raise DTypeError(
        f"largest_eigenvalue: values must be a NumPy array, got {type(values).__name__}. "
        "For tensors, import sparseggm.torch first."
    )


@rules.register(np.ndarray)
def _of_array(values: FloatArray, pattern: Pattern) -> FloatArray:
    checks.check("largest_eigenvalue", pattern, packed={"values": values})
    checks.require_finite("largest_eigenvalue", "values", pattern, values)
    require_zero_diagonal("largest_eigenvalue", pattern, values)
    if pattern.n <= DENSE_NODES:
        return _leading_eigenvalue(dense(pattern, values))
    return leading_eigenpair(pattern, values)[0]


def dense(pattern: Pattern, values: Array) -> Array:
    """R, (..., n, n) in float64, both triangles; differentiable in torch."""
    padded = in_float64(values)
    padded = array_namespace(values).concatenate([padded, array_namespace(values).zeros_like(padded[..., :1])], -1)
    return take(padded, pattern.dense_positions).reshape(*values.shape[:-1], pattern.n, pattern.n)


def _leading_eigenvalue(matrix: FloatArray) -> FloatArray:
    """That of `leading_projector`, alone."""
    rows = matrix.reshape(-1, *matrix.shape[-2:])
    value, _, is_alone = leading_pairs(rows)
    if not is_alone.all():
        value[~is_alone] = np.linalg.eigvalsh(rows[~is_alone])[:, -1]
    return value.reshape(matrix.shape[:-2])


def leading_projector(matrix: FloatArray) -> tuple[FloatArray, FloatArray]:
    """λ_max of dense symmetric matrices R (..., n, n), and Π (..., n, n), which projects on its eigenspace.

    Of an eigenvalue that stands alone by `linalg.eigenpairs`, a fifth of LAPACK's time in batches; of one with
    others near it by `leading_eigenspace`.
    """
    n = matrix.shape[-1]
    rows = matrix.reshape(-1, n, n).astype(np.float64, copy=False)
    value, v, is_alone = leading_pairs(rows)
    projector = v[:, :, None] * v[:, None, :]
    if not is_alone.all():
        value[~is_alone], projector[~is_alone], _ = leading_eigenspace(rows[~is_alone])
    value, projector = (array.astype(matrix.dtype, copy=False) for array in (value, projector))
    return value.reshape(matrix.shape[:-2]), projector.reshape(matrix.shape)


def leading_eigenspace(matrix: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """λ_max of dense symmetric matrices R (..., n, n), and Π and K (..., n, n), from which its derivatives are made.

    Π projects on the eigenspace of λ_max: an eigenvalue closer to λ_max than its error, n² u ‖R‖, counts as a copy.
    K = (λ_max I − R)⁺, zero on that space.
    """
    eigenvalues, vectors = np.linalg.eigh(matrix)
    gap = eigenvalues[..., -1:] - eigenvalues
    size = abs(eigenvalues[..., [0, -1]]).max(axis=-1, keepdims=True)
    is_copy = gap <= matrix.shape[-1] ** 2 * np.finfo(np.float64).eps / 2 * size
    inverse_gap = np.where(is_copy, 0.0, 1.0 / np.where(is_copy, 1.0, gap))
    transposed = vectors.swapaxes(-1, -2)
    return (
        np.array(eigenvalues[..., -1]),
        (vectors * is_copy[..., None, :]) @ transposed,
        (vectors * inverse_gap[..., None, :]) @ transposed,
    )


# ---------------------------------------------------------------------- sparse


def leading_eigenpair(pattern: Pattern, values: FloatArray) -> tuple[FloatArray, FloatArray]:
    """ρ as `largest_eigenvalue` gives it, and its unit vector v, by sparse factorisations: (...) and (..., n), float64.

    For every batch element a bracket (low, high] of λ_max is kept: if Cholesky succeeds on t I − R, high becomes t; if
    it fails, low does; and ρ raises low too. With the factor of a success, two inverse iterations improve v and ρ. The
    next t is just above ρ + ‖R v − ρ v‖, which probably exceeds λ_max, or else the middle. R = 0 has ρ = 0.

    Raises, Cost, Error: as `largest_eigenvalue`.
    """
    checks.check("leading_eigenpair", pattern, packed={"values": values})
    checks.require_finite("leading_eigenpair", "values", pattern, values)
    require_zero_diagonal("leading_eigenpair", pattern, values)
    batch_shape = values.shape[:-1]
    rows = values.reshape(math.prod(batch_shape), pattern.nnz).astype(np.float64)
    size = gershgorin.bounds(pattern, rows)[1]  # ≥ λ_max; of order one from here on
    if not np.isfinite(size).all():
        raise NonFiniteError("leading_eigenpair: the values are finite but their sums overflow float64. Rescale.")
    rho = np.zeros(len(rows))
    vectors = np.tile(np.random.default_rng(0).standard_normal(pattern.n), (len(rows), 1))  # the same in every call
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    nonzero = np.flatnonzero(size)
    scaled = rows[nonzero] / size[nonzero, None]
    found, vectors[nonzero] = _bisect(pattern, scaled, vectors[nonzero])
    rho[nonzero] = found * size[nonzero]
    return rho.reshape(batch_shape), vectors.reshape(*batch_shape, pattern.n)


def _bisect(pattern: Pattern, rows: FloatArray, v: FloatArray) -> tuple[FloatArray, FloatArray]:
    """(ρ, v) of matrices (batch, nnz) with 0 < λ_max ≤ 1, from vectors (batch, n)."""
    rho = np.zeros(len(rows))
    low, high = np.zeros(len(rows)), np.ones(len(rows))
    trial = np.full(len(rows), 1.0 + ROOM)
    active = np.arange(len(rows))
    for _ in range(_MOST_FACTORISATIONS):
        if not len(active):
            return rho, v
        factor, succeeded = linalg.attempt_cholesky(pattern, _shifted(pattern, rows[active], trial[active]))
        low[active[~succeeded]] = trial[active[~succeeded]]
        above, factor = active[succeeded], factor[succeeded]
        high[above] = trial[above]
        rho[above], v[above], residual = _inverse_iterations(pattern, rows[above], factor, v[above], 2)
        certified = high[above] <= (1 + ROOM) * rho[above]
        done = above[certified]
        rho[done], v[done], _ = _inverse_iterations(pattern, rows[done], factor[certified], v[done], _MOST_SOLVES)
        active = np.setdiff1d(active, done, assume_unique=True)
        middle = 0.5 * (np.maximum(low, rho) + high)
        trial = middle.copy()
        trial[above] = np.maximum((1 + ROOM) * rho[above], np.minimum(rho[above] + 2 * residual, middle[above]))
        trial = np.where(trial > low, trial, middle)
    raise AssertionError("leading_eigenpair: bisection did not end")


def _inverse_iterations(
    pattern: Pattern, rows: FloatArray, factor: FloatArray, v: FloatArray, most: int
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """ρ, v and ‖R v − ρ v‖ after at most `most` steps v ← (t I − R)⁻¹ v / ‖…‖, where L Lᵀ = t I − R."""
    filled = pattern.filled()
    for _ in range(most):
        v = linalg.solve_t(filled, factor, linalg.solve(filled, factor, v))
        v = v / np.linalg.norm(v, axis=-1, keepdims=True)
        image = linalg.symmetric_matmul(pattern, rows, v)
        rho = (v * image).sum(axis=-1)
        residual = np.linalg.norm(image - rho[:, None] * v, axis=-1)
        if (residual <= _PRECISE * rho).all():
            break
    return rho, v, residual


def _shifted(pattern: Pattern, rows: FloatArray, t: FloatArray) -> FloatArray:
    """t I − R."""
    shifted = -rows
    shifted[:, pattern.diagonal] += t[:, None]
    return shifted
