"""Memory for large results: it begins at a line of memory, and is kept for later results once no array uses it.

The system hands out fresh memory as pages of zeros, and making them takes as long as a memory-bound verb. So used
memory is used again: at most `KEPT` bytes lie idle, and `release_memory` returns them. Small results are NumPy's own.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from sparseggm import forks
from sparseggm.graph.pattern import FloatArray
from sparseggm.kernels.lanes.blocks import UNCACHED
from sparseggm.kernels.lanes.vector import REGISTER_BYTES

KEPT = 1 << 29
"""Bytes that may lie idle."""

_idle: list[npt.NDArray[np.uint8]] = []
_lock = forks.Lock()


class _Loan:
    """The base of all arrays on a piece of kept memory, which goes back when the last array is gone."""

    def __init__(self, memory: npt.NDArray[np.uint8], size: int) -> None:
        self.memory = memory
        skip = -memory.ctypes.data % REGISTER_BYTES
        self.__array_interface__ = memory[skip : skip + size].__array_interface__

    def __del__(self) -> None:
        if not _lock:  # the process ends, and this module was emptied before the array was freed
            return
        with _lock:
            if sum(memory.nbytes for memory in _idle) + self.memory.nbytes <= KEPT:
                _idle.append(self.memory)


def empty(shape: tuple[int, ...], dtype: npt.DTypeLike) -> FloatArray:
    """`numpy.empty`, for large arrays on kept memory."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size < UNCACHED:
        return np.empty(shape, dtype)
    return np.asarray(_Loan(_take(size + REGISTER_BYTES), size)).view(dtype).reshape(shape)


def _take(size: int) -> npt.NDArray[np.uint8]:
    """Idle memory of that size, or up to an eighth larger; else new memory."""
    with _lock:
        for place, memory in enumerate(_idle):
            if size <= memory.nbytes <= size + size // 8:
                return _idle.pop(place)
    return np.empty(size, np.uint8)


def release_memory() -> int:
    """Return the idle memory of large results to the system. Returns its number of bytes."""
    with _lock:
        size = sum(memory.nbytes for memory in _idle)
        _idle.clear()
    return size
