"""The recurrences of a chain, L_jj = a_j and L_{j+1,j} = b_j, on blocks or 1-D arrays; and one long chain in lanes.

Backward, for a draw and the variances:   y_j = (ε_j − b_j y_{j+1}) / a_j,   v_j = (1 + b_j² v_{j+1}) / a_j².
Forward, for their adjoints:   ε̄_j = (z̄_j − b_{j−1} ε̄_{j−1}) / a_j,   g_j = ½ k̄ + (b_{j−1} / a_{j−1})² g_{j−1}.

A recurrence waits for its own divisions, and one chain has nothing else to do meanwhile. So a long chain is cut into
as many parts as a vector has lanes, which go together. The value that enters a part is guessed, by starting from
nothing so far outside that the couplings in between multiply to less than half a unit roundoff. Afterwards each guess
is compared with the value that the neighbouring part arrived at. Where they differ by more than 2u, relatively, that
part is done again, one node after another, backward until it meets what it had before. So the result satisfies the
recurrences up to their roundings and 2u where parts meet, whatever the numbers are; couplings that grow or hardly
decay cost time, not accuracy. The number of parts does not depend on threads.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from sparseggm.kernels.blocks import gather_runs, new_block, scatter_runs
from sparseggm.kernels.vector import constant, flushed, lanes_of, load, not_positive, square_root, store

BLOCKS_DIGEST = "750948f9e24d1c8b"

LONG = 1 << 14
"""Nodes from which a single chain is worth cutting."""

_CHUNK = 512
"""Nodes of each part whose blocks are in cache at a time."""


@njit(cache=True, nogil=True, error_model="numpy")
def backward(L, eps, y, v, y_j, v_j):
    """Nodes y.shape[0] − 1 … 0, each coupled to the next, from the values of the node after them; returns the last."""
    one = constant(L, 1.0)
    for j in range(y.shape[0] - 1, -1, -1):
        a, b = load(L, 2 * j), load(L, 2 * j + 1)
        y_j = (load(eps, j) - b * y_j) / a
        inverse = one / a
        ratio = b * inverse
        v_j = inverse * inverse + (ratio * ratio) * v_j
        store(y, j, y_j)
        store(v, j, v_j)
    return y_j, v_j


@njit(cache=True, nogil=True, error_model="numpy")
def backward_from_end(L, eps, y, v):
    """The whole chain."""
    last = y.shape[0] - 1
    a = load(L, 2 * last)
    inverse = constant(L, 1.0) / a
    y_j, v_j = load(eps, last) / a, inverse * inverse
    store(y, last, y_j)
    store(v, last, v_j)
    backward(L, eps[:last], y[:last], v[:last], y_j, v_j)


@njit(cache=True, nogil=True, error_model="numpy")
def forward(L, y, v, z_bar, k_bar, eps_bar, L_bar, carried, g):
    """Nodes 0 … eps_bar.shape[0] − 1, each coupled to the next, whose y and v are there too.

    L̄ = −y ε̄ᵀ + k̄ (½ ∂Σv/∂L + diag(1/a)). `carried` is b_{j−1} ε̄_{j−1}; returns it and g for the node after the last.
    """
    one, two, half = constant(L, 1.0), constant(L, 2.0), constant(L, 0.5) * k_bar
    for j in range(eps_bar.shape[0]):
        a, b = load(L, 2 * j), load(L, 2 * j + 1)
        e = (load(z_bar, j) - carried) / a
        inverse = one / a
        ratio = b * inverse
        store(eps_bar, j, e)
        store(L_bar, 2 * j, k_bar * inverse - load(y, j) * e - (two * g) * (load(v, j) * inverse))
        store(L_bar, 2 * j + 1, (two * g) * ((ratio * inverse) * load(v, j + 1)) - load(y, j + 1) * e)
        carried = b * e
        g = half + (ratio * ratio) * g
    return carried, g


@njit(cache=True, nogil=True, error_model="numpy")
def forward_from_start(L, y, v, z_bar, k_bar, eps_bar, L_bar):
    """The whole chain."""
    last = y.shape[0] - 1
    half = constant(L, 0.5) * k_bar
    carried, g = forward(L, y, v, z_bar, k_bar, eps_bar[:last], L_bar, constant(L, 0.0), half)
    _forward_end(L, y, v, z_bar, k_bar, eps_bar, L_bar, carried, g)


@njit(cache=True, nogil=True, error_model="numpy")
def _forward_end(L, y, v, z_bar, k_bar, eps_bar, L_bar, carried, g):
    """The last node, which is coupled to none."""
    last = y.shape[0] - 1
    inverse = constant(L, 1.0) / load(L, 2 * last)
    e = (load(z_bar, last) - carried) / load(L, 2 * last)
    store(eps_bar, last, e)
    diagonal = k_bar * inverse - load(y, last) * e
    store(L_bar, 2 * last, diagonal - (constant(L, 2.0) * g) * (load(v, last) * inverse))


@njit(cache=True, nogil=True, error_model="numpy")
def variances(L, v):
    """v alone."""
    one = constant(L, 1.0)
    last = v.shape[0] - 1
    inverse = one / load(L, 2 * last)
    v_j = inverse * inverse
    store(v, last, v_j)
    for j in range(last - 1, -1, -1):
        inverse = one / load(L, 2 * j)
        ratio = load(L, 2 * j + 1) * inverse
        v_j = inverse * inverse + (ratio * ratio) * v_j
        store(v, j, v_j)


@njit(cache=True, nogil=True, error_model="numpy")
def variances_adjoint(L, v, v_bar, L_bar):
    """L̄ for the cotangents of v: g_j = v̄_j + (b_{j−1} / a_{j−1})² g_{j−1}."""
    one, two = constant(L, 1.0), constant(L, 2.0)
    last = v.shape[0] - 1
    g = load(v_bar, 0)
    for j in range(last):
        inverse = one / load(L, 2 * j)
        ratio = load(L, 2 * j + 1) * inverse
        store(L_bar, 2 * j, constant(L, -2.0) * g * (load(v, j) * inverse))
        store(L_bar, 2 * j + 1, (two * g) * ((ratio * inverse) * load(v, j + 1)))
        g = load(v_bar, j + 1) + (ratio * ratio) * g
    store(L_bar, 2 * last, constant(L, -2.0) * g * (load(v, last) / load(L, 2 * last)))


@njit(cache=True, nogil=True, error_model="numpy")
def factorise(P, L, negligible):
    """L with P = L Lᵀ, couplings below negligible √P_ii set to zero; the first column that fails, or −1."""
    last = (P.shape[0] - 1) // 2
    d = load(P, 0)
    for j in range(last):
        if not_positive(d):
            store(L, 2 * j, d)
            return j
        a, next_d = square_root(d), load(P, 2 * j + 2)
        b = flushed(load(P, 2 * j + 1) / a, negligible * square_root(next_d))
        store(L, 2 * j, a)
        store(L, 2 * j + 1, b)
        d = next_d - b * b
    if not_positive(d):
        store(L, 2 * last, d)
        return last
    store(L, 2 * last, square_root(d))
    return -1


# ---------------------------------------------------------------------- one long chain
#
# Arrays are 1-D; an empty one is an argument that is zero, or a result that is not wanted.


@njit(cache=True, nogil=True, error_model="numpy")
def long_backward(L, eps, y, v):
    """y and v of one long chain."""
    n, lanes = (L.shape[0] + 1) // 2, lanes_of(L)
    part = (n - 1) // lanes
    rest = part * lanes
    L_chunk, eps_chunk = new_block(2 * _CHUNK, L), new_block(_CHUNK, L)
    y_chunk, v_chunk = new_block(_CHUNK, L), new_block(_CHUNK, L)
    y_rest, v_rest, eps_rest = np.empty(n - rest, L.dtype), np.empty(n - rest, L.dtype), np.zeros(n - rest, L.dtype)
    _copy(eps, rest, eps_rest)
    backward_from_end(L[2 * rest :], eps_rest, y_rest, v_rest)
    guess = new_block(2, L)
    guess[0, lanes - 1], guess[1, lanes - 1] = y_rest[0], v_rest[0]
    for lane in range(lanes - 1):
        guess[0, lane], guess[1, lane] = _guess_backward(L, eps, (lane + 1) * part, part)
    eps_chunk[:] = 0.0
    y_j, v_j = load(guess, 0), load(guess, 1)
    for stop in range(part, 0, -_CHUNK):
        start = max(stop - _CHUNK, 0)
        size = stop - start
        gather_runs(L, 2 * start, 2 * part, L_chunk[: 2 * size])
        if eps.shape[0]:
            gather_runs(eps, start, part, eps_chunk[:size])
        y_j, v_j = backward(L_chunk, eps_chunk, y_chunk[:size], v_chunk[:size], y_j, v_j)
        if y.shape[0]:
            scatter_runs(y_chunk[:size], y, start, part)
        if v.shape[0]:
            scatter_runs(v_chunk[:size], v, start, part)
    if y.shape[0]:
        y[rest:] = y_rest
    if v.shape[0]:
        v[rest:] = v_rest
    arrived = new_block(2, L)
    store(arrived, 0, y_j)
    store(arrived, 1, v_j)
    for lane in range(lanes - 2, -1, -1):
        if _differ(guess, lane, arrived, lane + 1):
            _redo_backward(L, eps, y, v, lane * part, (lane + 1) * part, arrived, lane)


@njit(cache=True, nogil=True, error_model="numpy")
def _guess_backward(L, eps, start, most):
    """y and v at node `start`, from couplings to at most `most` nodes after it."""
    negligible = np.finfo(L.dtype).eps / 4
    influence, size = constant(L, 1.0), 0
    while size < most and influence > negligible:
        influence = influence * abs(L[2 * (start + size) + 1] / L[2 * (start + size)])
        size += 1
    zero, noise = constant(L, 0.0), np.zeros(size, L.dtype)
    _copy(eps, start, noise)
    return backward(L[2 * start :], noise, np.empty(size, L.dtype), np.empty(size, L.dtype), zero, zero)


@njit(cache=True, nogil=True, error_model="numpy")
def _redo_backward(L, eps, y, v, start, stop, arrived, lane):
    """Nodes stop − 1 … start again, from what the part after them arrived at, until they meet what was there."""
    noise, y_j, v_j = (
        np.zeros(1, L.dtype),
        arrived[0, lane + 1 : lane + 2].copy(),
        arrived[1, lane + 1 : lane + 2].copy(),
    )
    for j in range(stop - 1, start - 1, -1):
        _copy(eps, j, noise)
        backward(L[2 * j :], noise, y_j, v_j, y_j[0], v_j[0])
        met = True
        if y.shape[0]:
            met &= y[j] == y_j[0]
            y[j] = y_j[0]
        if v.shape[0]:
            met &= v[j] == v_j[0]
            v[j] = v_j[0]
        if met:
            return
    arrived[0, lane], arrived[1, lane] = y_j[0], v_j[0]


@njit(cache=True, nogil=True, error_model="numpy")
def long_forward(L, y, v, z_bar, k_bar, eps_bar, L_bar):
    """ε̄ and L̄ of one long chain."""
    n, lanes = (L.shape[0] + 1) // 2, lanes_of(L)
    part = (n - 1) // lanes
    rest = part * lanes
    half = constant(L, 0.5) * k_bar
    L_chunk, L_bar_chunk = new_block(2 * _CHUNK, L), new_block(2 * _CHUNK, L)
    y_chunk, v_chunk = new_block(_CHUNK + 1, L), new_block(_CHUNK + 1, L)
    z_chunk, eps_chunk = new_block(_CHUNK, L), new_block(_CHUNK, L)
    y_chunk[:] = 0.0
    v_chunk[:] = 0.0
    guess, arrived = new_block(2, L), new_block(2, L)
    guess[0, 0], guess[1, 0] = 0.0, half
    for lane in range(1, lanes):
        guess[0, lane], guess[1, lane] = _guess_forward(L, z_bar, half, lane * part, part)
    carried, g = load(guess, 0), load(guess, 1)
    for start in range(0, part, _CHUNK):
        size = min(_CHUNK, part - start)
        gather_runs(L, 2 * start, 2 * part, L_chunk[: 2 * size])
        gather_runs(z_bar, start, part, z_chunk[:size])
        if y.shape[0]:
            gather_runs(y, start, part, y_chunk[: size + 1])
            gather_runs(v, start, part, v_chunk[: size + 1])
        carried, g = forward(L_chunk, y_chunk, v_chunk, z_chunk, k_bar, eps_chunk[:size], L_bar_chunk, carried, g)
        if eps_bar.shape[0]:
            scatter_runs(eps_chunk[:size], eps_bar, start, part)
        if L_bar.shape[0]:
            scatter_runs(L_bar_chunk[: 2 * size], L_bar, 2 * start, 2 * part)
    store(arrived, 0, carried)
    store(arrived, 1, g)
    for lane in range(1, lanes):
        if _differ(guess, lane, arrived, lane - 1):
            start, stop = lane * part, (lane + 1) * part
            before = arrived[0, lane - 1], arrived[1, lane - 1]
            arrived[0, lane], arrived[1, lane] = _forward_again(
                L, y, v, z_bar, k_bar, eps_bar, L_bar, start, stop, before[0], before[1]
            )
    before = arrived[0, lanes - 1], arrived[1, lanes - 1]
    _forward_again(L, y, v, z_bar, k_bar, eps_bar, L_bar, rest, n, before[0], before[1])


@njit(cache=True, nogil=True, error_model="numpy")
def _forward_again(L, y, v, z_bar, k_bar, eps_bar, L_bar, start, stop, carried, g):
    """Nodes start … stop − 1, one after another; what enters node `stop`, if the chain does not end there."""
    n, size = (L.shape[0] + 1) // 2, stop - start
    y_part, v_part, L_bar_part = np.zeros(size + 1, L.dtype), np.zeros(size + 1, L.dtype), np.zeros(2 * size, L.dtype)
    _copy(y, start, y_part[: min(size + 1, n - start)])
    _copy(v, start, v_part[: min(size + 1, n - start)])
    L_part, z_part, eps_part = L[2 * start :], z_bar[start:], np.empty(size, L.dtype)
    if stop < n:
        carried, g = forward(L_part, y_part, v_part, z_part, k_bar, eps_part, L_bar_part, carried, g)
    else:
        coupled = size - 1
        carried, g = forward(L_part, y_part, v_part, z_part, k_bar, eps_part[:coupled], L_bar_part, carried, g)
        _forward_end(L_part, y_part[:size], v_part[:size], z_part, k_bar, eps_part, L_bar_part, carried, g)
    if eps_bar.shape[0]:
        eps_bar[start:stop] = eps_part
    if L_bar.shape[0]:
        L_bar[2 * start : min(2 * stop, 2 * n - 1)] = L_bar_part[: min(2 * stop, 2 * n - 1) - 2 * start]
    return carried, g


@njit(cache=True, nogil=True, error_model="numpy")
def _guess_forward(L, z_bar, half, stop, most):
    """What enters node `stop`, from couplings to at most `most` nodes before it."""
    negligible = np.finfo(L.dtype).eps / 4
    influence, spread, size = constant(L, 1.0), constant(L, 1.0), 0
    while size < most and (influence > negligible or spread > negligible):
        j = stop - size - 1
        influence = influence * abs(L[2 * j + 1] / L[2 * j + 2])
        spread = spread * abs(L[2 * j + 1] / L[2 * j])
        size += 1
    carried, g, one = constant(L, 0.0), half, constant(L, 1.0)
    for j in range(stop - size, stop):
        a, b = L[2 * j], L[2 * j + 1]
        carried = b * ((z_bar[j] - carried) / a)
        ratio = b * (one / a)
        g = half + (ratio * ratio) * g
    return carried, g


@njit(cache=True, nogil=True, error_model="numpy")
def _differ(guess, lane, arrived, neighbour):
    """Whether what a part began with differs by more than 2u, relatively, from what its neighbour arrived at."""
    tolerance = np.finfo(guess.dtype).eps
    for i in range(2):
        if not abs(guess[i, lane] - arrived[i, neighbour]) <= tolerance * abs(arrived[i, neighbour]):
            return True
    return False


@njit(cache=True, nogil=True, error_model="numpy")
def _copy(source, start, target):
    """target = source[start:…]; an empty source leaves it alone."""
    if source.shape[0]:
        target[:] = source[start : start + target.shape[0]]
