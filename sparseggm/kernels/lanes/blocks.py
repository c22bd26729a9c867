"""Rows of a batch in and out of blocks of lanes: see `vector`."""

from typing import Any

import numpy as np
from numba.extending import overload, register_jitable

from sparseggm.kernels import INLINED, INNER, njit
from sparseggm.kernels.lanes.tiles import gather_tile, scatter_tile, stream_tile
from sparseggm.kernels.lanes.vector import REGISTER_BYTES, full_like, lanes_of, load, minimum, not_finite, not_positive

UNCACHED = 1 << 22
"""Results of at least so many bytes are stored past the caches, which would not hold them until they are read."""


@njit(**INNER)
def too_few_for_lanes(first, last, lanes):
    """Whether a part of a batch is too small to fill a block; its rows are then done one at a time."""
    return 4 * (last - first) < lanes


@njit(**INNER)
def new_block(size, like):
    """A block of `size` rows and the dtype of `like`; it begins at a cache line, so that each vector is one line."""
    lanes = lanes_of(like)
    memory = np.empty((size + 1) * lanes, like.dtype)
    skip = -memory.ctypes.data % REGISTER_BYTES // memory.itemsize
    return memory[skip : skip + size * lanes].reshape(size, lanes)


@njit(**INNER)
def bad_lanes(block, begin, end):
    """The number of lanes, 0 or 1 for a 1-D array, that hold a NaN or an infinity in the rows begin … end."""
    zero = full_like(block, 0.0)
    taint, other, third, fourth = zero, zero, zero, zero  # four sums overlap; in a single sum each addition waits
    for i in range(begin, end - 3, 4):
        taint = taint + zero * load(block, i)
        other = other + zero * load(block, i + 1)
        third = third + zero * load(block, i + 2)
        fourth = fourth + zero * load(block, i + 3)
    for i in range(end - (end - begin) % 4, end):
        taint = taint + zero * load(block, i)
    return not_finite((taint + other) + (third + fourth))


@njit(**INNER)
def bad_numbers(x):
    """Nonzero if a 1-D array, taken a vector at a time, holds a NaN or an infinity."""
    lanes = lanes_of(x)
    whole = x.shape[0] // lanes * lanes
    return bad_lanes(x[:whole].reshape(-1, lanes), 0, whole // lanes) + bad_lanes(x, whole, x.shape[0])


@njit(**INNER)
def add_means(z_bar, k_bar, loc, loc_bar, first, last):
    """loc̄ = z̄ + k̄ loc for the rows first … last, k̄ (rows, 1); nonzero if a number is not finite."""
    n = loc.shape[1]
    for r in range(first, last):
        for i in range(n):
            loc_bar[r, i] = z_bar[r, i] + k_bar[r, 0] * loc[r, i]
    return bad_numbers(loc_bar.reshape(loc_bar.size)[first * n : last * n])


@njit(**INNER)
def bad_pivots(indptr, L, n):
    """The number of lanes with a diagonal entry, of the first n, that is not positive and finite."""
    zero, least = full_like(L, 0.0), full_like(L, 1.0)
    taint = zero
    for j in range(n):
        pivot = load(L, indptr[j])
        least = minimum(pivot, least)
        taint = taint + zero * pivot
    return not_positive(least + taint)


def new_like(size, like):
    """Memory for `size` values of the kind that `like` holds: a block, or a 1-D array."""
    return np.empty((size, *like.shape[1:]), like.dtype)


@overload(new_like)
def _overload_new_like(size, like):
    if like.ndim == 2:
        return lambda size, like: new_block(size, like)
    return lambda size, like: np.empty(size, like.dtype)


@njit(**INNER)
def gather(matrix, start, stop, block):
    """block[:, lane] = matrix[start + lane]. Unused lanes repeat the last row, so that all hold valid numbers."""
    n, lanes = matrix.shape[1], block.shape[1]
    gather_runs(matrix.reshape(matrix.size), start * n, n, min(stop - start, lanes), block, block.shape[0])


@njit(**INLINED)
def gather_runs(array, first, stride, count, block, size):
    """block[i, lane] = array[first + row · stride + i] for i < size, row = min(lane, count − 1)."""
    lanes = block.shape[1]
    for start in range(0, size if size >= lanes else 0, lanes):
        i = min(start, size - lanes)  # the last tile overlaps the one before
        gather_tile(array, first + i, stride, count, block, i)
    for lane in range(lanes if size < lanes else 0):
        for i in range(size):
            block[i, lane] = array[first + min(lane, count - 1) * stride + i]


@njit(**INNER)
def after(matrix, start, lanes):
    """The arguments of `tiles.streamed` for the rows that follow `lanes` rows of a matrix from `start` on."""
    n = matrix.shape[1]
    return matrix.reshape(matrix.size), (start + lanes) * n, n


@njit(**INNER)
def gather_rows(matrix, chosen, block):
    """block[:, lane] = matrix[chosen[lane]], unused lanes as in `gather`."""
    count, first = chosen.shape[0], chosen[0]
    successive = True
    for lane in range(count):
        successive &= chosen[lane] == first + lane
    if successive:
        gather(matrix, first, first + count, block)
        return
    for lane in range(block.shape[1]):
        row = chosen[min(lane, count - 1)]
        for column in range(block.shape[0]):
            block[column, lane] = matrix[row, column]


@njit(**INNER)
def scatter(block, matrix, start, stop, past_caches=False):
    """matrix[start + lane] = block[:, lane] for the rows start … stop; see `scatter_runs`."""
    n = matrix.shape[1]
    scatter_runs(block, n, matrix.reshape(matrix.size), start * n, n, stop - start, past_caches)


@njit(**INLINED)
def scatter_runs(block, size, array, first, stride, count, past_caches):
    """array[first + lane · stride + i] = block[i, lane] for i < size and the lanes < count.

    `past_caches` needs `is_in_lines`, and a `first` where a line of memory begins.
    """
    lanes = block.shape[1]
    for i in range(0, size - lanes + 1, lanes):
        if past_caches:
            stream_tile(block, i, array, first + i, stride, count)
        else:
            scatter_tile(block, i, array, first + i, stride, count)
    if size % lanes and size > lanes:
        scatter_tile(block, size - lanes, array, first + size - lanes, stride, count)
    for lane in range(count if size < lanes else 0):
        for i in range(size):
            array[first + lane * stride + i] = block[i, lane]


@njit(**INNER)
def is_in_lines(matrix):
    """Whether each row begins at a line of memory, and the whole is too large for caches to keep."""
    row = matrix.shape[1] * matrix.itemsize
    return row % REGISTER_BYTES == 0 and begins_a_line(matrix)


@register_jitable
def begins_a_line(array: Any) -> Any:
    """Whether an array begins at a line of memory, and is too large for caches to keep."""
    return array.ctypes.data % REGISTER_BYTES == 0 and array.nbytes >= UNCACHED
