"""Rows of a batch in and out of blocks of lanes: see `vector`."""

import numpy as np
from numba import njit
from numba.extending import overload

from sparseggm.kernels import INNER
from sparseggm.kernels.vector import (
    REGISTER_BYTES,
    constant,
    gather_tile,
    lanes_of,
    load,
    not_finite,
    not_positive,
    prefetch,
    scatter_tile,
)

VECTOR_DIGEST = "3be825edddd084f9"


@njit(**INNER)
def is_few(first, last, lanes):
    """Whether a part of a batch is too small to fill a block with: then its rows are done one at a time."""
    return 4 * (last - first) < lanes


@njit(**INNER)
def new_block(size, like):
    """A block of `size` rows and the dtype of `like`, at the start of a cache line: a vector is then one line."""
    lanes = lanes_of(like)
    memory = np.empty((size + 1) * lanes, like.dtype)
    skip = -memory.ctypes.data % REGISTER_BYTES // memory.itemsize
    return memory[skip : skip + size * lanes].reshape(size, lanes)


@njit(**INNER)
def bad_lanes(block):
    """The number of lanes, 0 or 1 for a 1-D array, that hold a NaN or an infinity."""
    zero = constant(block, 0.0)
    size = block.shape[0]
    taint, other, third, fourth = zero, zero, zero, zero  # four sums at a time: one alone would wait for itself
    for i in range(0, size - 3, 4):
        taint = taint + zero * load(block, i)
        other = other + zero * load(block, i + 1)
        third = third + zero * load(block, i + 2)
        fourth = fourth + zero * load(block, i + 3)
    for i in range(size // 4 * 4, size):
        taint = taint + zero * load(block, i)
    return not_finite((taint + other) + (third + fourth))


@njit(**INNER)
def bad_numbers(x):
    """Nonzero if a 1-D array, taken a vector at a time, holds a NaN or an infinity."""
    lanes = lanes_of(x)
    whole = x.shape[0] // lanes * lanes
    return bad_lanes(x[:whole].reshape(-1, lanes)) + bad_lanes(x[whole:])


@njit(**INNER)
def bad_pivots(indptr, L):
    """The number of diagonal entries, in every lane, that are not positive and finite."""
    bad = 0
    for j in range(indptr.shape[0] - 1):
        bad += not_positive(load(L, indptr[j]))
    return bad


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
    """block[:, lane] = matrix[start + lane]. Lanes left over repeat the last row: all hold sane numbers."""
    if stop - start == block.shape[1]:
        gather_runs(
            matrix.reshape(matrix.size),
            start * matrix.shape[1],
            matrix.shape[1],
            block,
            matrix.shape[1] * block.shape[1],
        )
        return
    for lane in range(block.shape[1]):
        row = min(start + lane, stop - 1)
        for column in range(block.shape[0]):
            block[column, lane] = matrix[row, column]


@njit(**INNER)
def gather_runs(array, first, stride, block, ahead):
    """block[i, lane] = array[first + lane · stride + i]; what lies `ahead` elements further will be gathered next."""
    size, lanes = block.shape
    whole = size // lanes * lanes
    for i in range(0, whole, lanes):
        gather_tile(array, first + i, stride, block, i)
        for lane in range(lanes):
            prefetch(array, first + i + ahead + lane * stride)
    for lane in range(lanes):
        for i in range(whole, size):
            block[i, lane] = array[first + lane * stride + i]


@njit(**INNER)
def gather_rows(matrix, chosen, block):
    """block[:, lane] = matrix[chosen[lane]], lanes left over as in `gather`."""
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
def scatter(block, matrix, start, stop):
    """matrix[start + lane] = block[:, lane] for the rows start … stop."""
    if stop - start == block.shape[1]:
        scatter_runs(block, matrix.reshape(matrix.size), start * matrix.shape[1], matrix.shape[1])
        return
    for lane in range(stop - start):
        for column in range(block.shape[0]):
            matrix[start + lane, column] = block[column, lane]


@njit(**INNER)
def scatter_runs(block, array, first, stride):
    """array[first + lane · stride + i] = block[i, lane]."""
    size, lanes = block.shape
    whole = size // lanes * lanes
    for i in range(0, whole, lanes):
        scatter_tile(block, i, array, first + i, stride)
    for lane in range(lanes):
        for i in range(whole, size):
            array[first + lane * stride + i] = block[i, lane]
