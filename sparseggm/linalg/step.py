"""The training step of a variational autoencoder on arrays: a sample, KL to N(0, I), and their gradients, in one pass.

A step composed of verbs moves every byte three times, and at n = 16 calling them costs more than their arithmetic.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sparseggm.errors import ShapeError
from sparseggm.graph.pattern import FloatArray, Pattern
from sparseggm.linalg import checks, memory
from sparseggm.linalg.engines import engine_of
from sparseggm.linalg.primitives import Step

LIKE: dict[Any, Any] = {np.dtype(kind): kind(0) for kind in (np.float32, np.float64)}


def sample_and_kl(
    pattern: Pattern,
    loc: FloatArray,
    factor: FloatArray,
    noise: FloatArray,
    seam_states: list[FloatArray] | None = None,
) -> tuple[FloatArray, FloatArray]:
    """z = loc + L⁻ᵀ ε, and KL(N(loc, P⁻¹) ‖ N(0, I)) = ½ [tr Σ + |loc|² − n + log det P] in nats.

    Args:
        pattern: of L, whose numbering all arguments follow.
        loc, factor, noise: (..., n), (..., nnz) and (..., n), of one batch shape.
        seam_states: a list to which a long chain appends numbers, 1/64 of L, that `sample_and_kl_vjp` would otherwise
            compute again.
    Returns:
        z (..., n) and KL (...), whose sums are formed in float64.
    Raises:
        ShapeError: batch shapes that differ, and the common errors of `linalg`.
    Error: y = z − loc as `linalg.solve_t`, on a chain one rounding a node more; see docs/errors-and-bounds.md.
    Cost: one solve and the marginal variances, each byte moved once; scratch of 5 n + nnz(L) + nnz(F) for a block.
    """
    _check("sample_and_kl", pattern, factor, loc=loc, noise=noise)
    z, kl = memory.empty(loc.shape, loc.dtype), np.empty(loc.shape[:-1], loc.dtype)
    rows = [checks.as_rows(array, loc.shape[:-1]) for array in (loc, factor, noise)]
    task = Step(LIKE[loc.dtype], len(rows[0]), [array.ctypes.data for array in (*rows, z, kl)], seam_states)
    if engine_of(pattern, task).sample_and_kl(pattern, task):
        checks.raise_cause("sample_and_kl", _inputs(pattern, factor, loc=loc, noise=noise))
    return z, kl


def sample_and_kl_vjp(
    pattern: Pattern,
    loc: FloatArray,
    factor: FloatArray,
    noise: FloatArray,
    z_bar: FloatArray,
    kl_bar: FloatArray,
    noise_too: bool = True,
    seam_states: list[FloatArray] | None = None,
) -> tuple[FloatArray, FloatArray, FloatArray | None]:
    """The cotangents of loc, factor and noise for those of z (..., n) and KL (...); the last None unless `noise_too`.

        ε̄ = L⁻¹ z̄,   loc̄ = z̄ + k̄ loc,   L̄ = −y ε̄ᵀ + k̄ (½ ∂tr Σ/∂L + diag(1/L_jj)),   y = L⁻ᵀ ε

    Args:
        seam_states: the list that `sample_and_kl` was given.
    Cost: y and Σ are computed again rather than stored: three times `sample_and_kl`.
    """
    verb = "sample_and_kl_vjp"
    _check(verb, pattern, factor, loc=loc, noise=noise, z_bar=z_bar)
    checks.require_floats(verb, "kl_bar", kl_bar)
    checks.same_dtype(verb, factor=factor, kl_bar=kl_bar)
    column = kl_bar[..., None]
    require_one_batch(verb, factor, kl_bar=column)
    batch_shape = loc.shape[:-1]
    rows = [checks.as_rows(array, batch_shape) for array in (loc, factor, noise, z_bar, column)]
    loc_bar, factor_bar = memory.empty(loc.shape, loc.dtype), memory.empty(factor.shape, loc.dtype)
    noise_bar = memory.empty(noise.shape, loc.dtype) if noise_too else None
    bars = loc_bar, factor_bar, noise_bar
    addresses = [0 if array is None or not array.size else array.ctypes.data for array in (*rows, *bars)]
    task = Step(LIKE[loc.dtype], len(rows[0]), addresses, seam_states)
    if engine_of(pattern, task).sample_and_kl_vjp(pattern, task):
        inputs = _inputs(pattern, factor, loc=loc, noise=noise, z_bar=z_bar, kl_bar=column)
        checks.raise_cause(verb, inputs)
    return bars


def _check(verb: str, pattern: Pattern, factor: FloatArray, **vectors: FloatArray) -> None:
    """Require shapes and dtypes that fit, and one batch shape: nothing broadcasts."""
    checks.check(verb, pattern, packed={"factor": factor}, **vectors)
    require_one_batch(verb, factor, **vectors)


def require_one_batch(verb: str, factor: FloatArray, **vectors: FloatArray) -> None:
    batch_shape = factor.shape[:-1]
    for name, vector in vectors.items():
        if vector.shape[:-1] != batch_shape:
            raise ShapeError(
                f"{verb}: batch shapes must be equal, got {batch_shape} of factor and {vector.shape[:-1]} of {name}."
            )


def _inputs(pattern: Pattern, factor: FloatArray, **vectors: FloatArray) -> dict[str, Any]:
    """The arguments in the form that `checks.raise_cause` takes."""
    return {"factor": (pattern, factor), **{name: (None, vector) for name, vector in vectors.items()}}
