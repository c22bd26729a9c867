"""The training step of a variational autoencoder on arrays: a sample, KL to N(0, I), and their gradients, in one pass.

Composed of verbs, a step moves every byte three times, and at n = 16 calling them costs more than their arithmetic.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from sparseggm.errors import ShapeError
from sparseggm.graph.pattern import FloatArray, Pattern
from sparseggm.kernels.chain import step as chain_step
from sparseggm.kernels.sparse import step
from sparseggm.linalg import checks, long_chain, memory, threads
from sparseggm.linalg.work import fill_structure, selected_inverse_work

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
        seam_states: a list to which a long chain adds what `sample_and_kl_vjp` would compute again, 1/64 of L.
    Returns:
        z (..., n) and KL (...), the sums of which are formed in float64.
    Raises:
        ShapeError: batch shapes that differ, and the common errors of `linalg`.
    Error: of y = z − loc as `linalg.solve_t`, with one rounding a node more on a chain; docs/errors-and-bounds.md.
    Cost: one solve and the marginal variances, each byte moved once; scratch of 5 n + nnz(L) + nnz(F) for a block.
    """
    _check("sample_and_kl", pattern, factor, loc=loc, noise=noise)
    z, kl = memory.empty(loc.shape, loc.dtype), np.empty(loc.shape[:-1], loc.dtype)
    rows = [checks.as_rows(array, loc.shape[:-1]) for array in (loc, factor, noise)]
    out, batch = (z.reshape(rows[0].shape), kl.reshape(len(rows[0]))), len(rows[0])
    if long_chain.is_long(pattern, batch):
        each = zip(*rows, out[0], out[1].reshape(batch, 1), strict=True)
        statuses, carries = zip(*(long_chain.sample_and_kl(pattern, *row) for row in each), strict=True)
        status = sum(statuses)
        if seam_states is not None:
            seam_states += carries
    else:
        addresses = (array.ctypes.data for array in (*rows, *out))
        status = sample_and_kl_at(pattern, LIKE[loc.dtype], batch, *addresses)
    if status:
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
        seam_states: what `sample_and_kl` left there.
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
    batch = len(rows[0])
    loc_bar, factor_bar = memory.empty(loc.shape, loc.dtype), memory.empty(factor.shape, loc.dtype)
    noise_bar = memory.empty(noise.shape if noise_too else (0, pattern.n), loc.dtype)
    bars: tuple[FloatArray, ...] = (loc_bar, factor_bar, noise_bar)
    out = [bar.reshape(math.prod(bar.shape[:-1]), bar.shape[-1]) for bar in bars]
    if long_chain.is_long(pattern, batch):
        out[2] = out[2] if noise_too else np.empty((batch, 0), loc.dtype)
        each = zip(seam_states or batch * [None], *rows, *out, strict=True)
        status = sum(long_chain.sample_and_kl_vjp(pattern, *row) for row in each)
    else:
        addresses = [array.ctypes.data if array.size else 0 for array in (*rows, *out)]
        status = sample_and_kl_vjp_at(pattern, LIKE[loc.dtype], batch, *addresses)
    if status:
        inputs = _inputs(pattern, factor, loc=loc, noise=noise, z_bar=z_bar, kl_bar=column)
        checks.raise_cause(verb, inputs)
    return loc_bar, factor_bar, noise_bar if noise_too else None


def sample_and_kl_at(pattern: Pattern, like: Any, batch: int, *addresses: int) -> int:
    """`sample_and_kl` at the addresses of loc, factor, noise, z and KL, in that order, contiguous and each its own.

    Args:
        like: any number of the type of their numbers.
        batch: rows of each.
    Returns:
        Nonzero if `sample_and_kl` would raise.
    """
    if pattern.is_chain:
        arguments = like, batch, pattern.n, pattern.indptr, *addresses
        return threads.over_batch(chain_step.sample_and_kl, 6 * pattern.n, *arguments, batch=batch)
    structure = pattern.indptr, pattern.rows, fill_structure(pattern.filled())
    return threads.over_batch(step.sample_and_kl, _work(pattern), like, batch, *structure, *addresses, batch=batch)


def sample_and_kl_vjp_at(pattern: Pattern, like: Any, batch: int, *addresses: int) -> int:
    """`sample_and_kl_vjp` likewise: loc, factor, noise, z̄, k̄, and the results; 0 for that of noise, if not wanted."""
    if pattern.is_chain:
        arguments = like, batch, pattern.n, *addresses
        return threads.over_batch(chain_step.sample_and_kl_vjp, 8 * pattern.n, *arguments, batch=batch)
    structure = pattern.indptr, pattern.rows, fill_structure(pattern.filled())
    return threads.over_batch(
        step.sample_and_kl_vjp, 3 * _work(pattern), like, batch, *structure, *addresses, batch=batch
    )


def _check(verb: str, pattern: Pattern, factor: FloatArray, **vectors: FloatArray) -> None:
    """Shapes and dtypes are right, and nothing is shared."""
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
    """The arguments as `checks.raise_cause` takes them."""
    return {"factor": (pattern, factor), **{name: (None, vector) for name, vector in vectors.items()}}


def _work(pattern: Pattern) -> int:
    """Multiply-adds a batch element, as `threads` weighs them."""
    return 4 * pattern.nnz + selected_inverse_work(pattern, pattern.filled())
