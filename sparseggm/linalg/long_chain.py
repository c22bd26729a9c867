"""The verbs on one long chain, which is cut into strips that threads share: see `kernels.chain.strips`."""

from __future__ import annotations

import math

import numpy as np

from sparseggm import threads
from sparseggm.graph.pattern import FloatArray, Pattern
from sparseggm.kernels.chain import elimination
from sparseggm.kernels.chain import strips as kernels
from sparseggm.kernels.chain.chunks import BackwardTask, ForwardTask
from sparseggm.kernels.chain.seams import CHUNK
from sparseggm.kernels.lanes.blocks import begins_a_line
from sparseggm.kernels.lanes.vector import REGISTER_BYTES
from sparseggm.linalg import checks

LONG = 1 << 14
"""Nodes from which a chain is worth cutting."""

_STRIP = 1 << 17
"""Nodes of a strip, unless there would be more than `_MOST` strips."""

_MOST = 16


def cholesky(P: FloatArray, L: FloatArray) -> int:
    """Overwrite L with the factor of P. Status 1: some pivot fails, unknown which; 2: a pivot is small."""
    carry = _carry(P, 1)
    status = threads.over_batch(kernels.factorise_strips, _work(P, carry), P, L, carry, batch=len(carry))
    return status if status == 1 else int(kernels.mend_factorise(P, L, carry)) or status


def solve_precision(pattern: Pattern, P: FloatArray, b: FloatArray, x: FloatArray) -> tuple[int, float]:
    """x = P⁻¹ b, unless b is empty, and log det P. Nonzero status: a pivot fails or is small, or a value not finite."""
    carry, lanes = _carry(P, 2), REGISTER_BYTES // P.itemsize
    chunks, work = carry.shape[1] // 2 - 1, _work(P, carry)
    indptr, rest = pattern.structure[0], np.empty(lanes)
    sums = np.empty((len(carry), chunks * lanes))
    status = threads.over_batch(elimination.eliminate_strips, work, indptr, P, b, carry, sums, batch=len(carry))
    status = status or int(elimination.mend_elimination(indptr, P, b, carry, sums, rest))
    if len(b) and not status:
        found = np.empty((len(carry), chunks + 1, lanes), P.dtype)
        threads.over_batch(elimination.substitute_strips, work, P, b, x, carry, found, batch=len(carry))
        status = int(elimination.mend_substitution(P, b, x, carry, found))
    return status, 0.5 * float(sums.sum() + rest[0])


def solve(L: FloatArray, b: FloatArray, y: FloatArray) -> int:
    """y = L⁻¹ b; y may be b. Nonzero status: something is not finite."""
    absent, unwanted, carry = L[:0], y[:0], _carry(L, 2)
    task = ForwardTask(absent, checks.apart(b, y), _in_lanes(0.0, L), unwanted, y, False, absent, unwanted)
    return _forward(task, L, carry, carry)


def solve_t(pattern: Pattern, L: FloatArray, b: FloatArray, y: FloatArray) -> int:
    """y = L⁻ᵀ b; y may be b. Nonzero status: something is not finite."""
    task = _backward_task(False, pattern, checks.apart(b, y), L[:0], y, y[:0], begins_a_line(y))
    return _backward(task, L, _carry(L, 2))[0]


def marginal_variances(pattern: Pattern, L: FloatArray, v: FloatArray) -> int:
    """v = diag (L Lᵀ)⁻¹. Nonzero status: something is not finite, or a pivot not positive."""
    return _backward(_backward_task(True, pattern, L[:0], L[:0], v[:0], v, False), L, _carry(L, 2))[0]


def natural_gradient(
    pattern: Pattern,
    L: FloatArray,
    half: FloatArray,
    u: FloatArray,
    by_regression: bool,
    x: FloatArray,
    natural: FloatArray,
) -> int:
    """x = L⁻ᵀ half and the natural gradient for u. Nonzero status: something is not finite, or a pivot not positive."""
    past_caches = begins_a_line(natural) and (not len(x) or begins_a_line(x))
    nothing = L[:0], x, x[:0]
    task = BackwardTask(True, pattern.structure[0], half, *nothing, past_caches, u, natural, by_regression)
    return _backward(task, L, _carry(L, 2))[0]


def sample_and_kl(
    pattern: Pattern, loc: FloatArray, L: FloatArray, eps: FloatArray, z: FloatArray, kl: FloatArray
) -> tuple[int, FloatArray]:
    """z = loc + L⁻ᵀ ε, and kl[0]. Nonzero status: something is not finite, or a pivot not positive.

    Also returns y and v at the ends of chunks, which `sample_and_kl_vjp` takes.
    """
    carry = _carry(L, 2)
    status, total = _backward(_backward_task(True, pattern, eps, loc, z, z[:0], begins_a_line(z)), L, carry)
    with np.errstate(over="ignore"):
        kl[0] = 0.5 * (total - pattern.n)
    return status + (not math.isfinite(kl[0])), carry


def sample_and_kl_vjp(
    pattern: Pattern,
    entering: FloatArray | None,
    loc: FloatArray,
    L: FloatArray,
    eps: FloatArray,
    z_bar: FloatArray,
    kl_bar: FloatArray,
    loc_bar: FloatArray,
    L_bar: FloatArray,
    eps_bar: FloatArray,
) -> int:
    """The cotangents of loc, L and ε for those of z and kl[0]; an empty `eps_bar` is not wanted. Status likewise.

    `entering` is what `sample_and_kl` returned; if None, it is computed again.
    """
    status = 0
    if entering is None:
        entering = _carry(L, 2)
        nothing = L[:0], L_bar[:0], L_bar[:0]
        status, _ = _backward(_backward_task(True, pattern, eps, *nothing, False), L, entering)
    k_bar, past_caches = _in_lanes(kl_bar[0], L), begins_a_line(L_bar)
    task = ForwardTask(eps, z_bar, k_bar, L_bar, eps_bar, past_caches, loc, loc_bar)
    return status + _forward(task, L, entering, _carry(L, 2))


def _backward_task(
    positive: bool,
    pattern: Pattern,
    eps: FloatArray,
    loc: FloatArray,
    z: FloatArray,
    v: FloatArray,
    past_caches: bool,
) -> BackwardTask:
    """A task without a gradient by the entries of L."""
    return BackwardTask(positive, pattern.structure[0], eps, loc, z, v, past_caches, eps[:0], z[:0], False)


def _backward(task: BackwardTask, L: FloatArray, carry: FloatArray) -> tuple[int, float]:
    """Run both backward kernels: a status, and the sum of the `kl_terms` if there is a mean."""
    lanes = carry.shape[2] if len(task.loc) else 0
    sums, rest = np.empty((len(carry), (carry.shape[1] // 2 - 1) * lanes)), np.zeros(lanes)
    suspect = threads.over_batch(kernels.backward_strips, _work(L, carry), task, L, carry, sums, batch=len(carry))
    status = int(kernels.mend_backward(suspect, task, L, carry, sums, rest))
    return status, float(sums.sum() + rest[:1].sum())


def _forward(task: ForwardTask, L: FloatArray, entering: FloatArray, carry: FloatArray) -> int:
    """Run both forward kernels: a status."""
    suspect = threads.over_batch(kernels.forward_strips, _work(L, carry), task, L, entering, carry, batch=len(carry))
    return int(kernels.mend_forward(suspect, task, L, entering, carry))


def _in_lanes(number: float, L: FloatArray) -> FloatArray:
    """The number in every lane: a block of one row."""
    return np.full((1, REGISTER_BYTES // L.itemsize), number, L.dtype)


def _work(L: FloatArray, carry: FloatArray) -> int:
    """Multiply-adds a strip, by which `threads` decides how many threads to use."""
    return 5 * len(L) // len(carry)


def _carry(L: FloatArray, rows: int) -> FloatArray:
    """Memory for the values that chunks pass on: (strips, (chunks + 1) · rows, lanes)."""
    n, lanes = (len(L) + 1) // 2, REGISTER_BYTES // L.itemsize
    strips = max(1, min(n // _STRIP, _MOST))
    part = (n - 1) // (strips * lanes * lanes) * lanes
    return np.empty((strips, rows * (-(-part // CHUNK) + 1), lanes), L.dtype)
