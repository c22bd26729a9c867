"""Numba kernels: loops on raw arrays, no checks, no exceptions, status by return value.

`symbolic` works on patterns (orders, fill), the others on values. `compilation` keeps compiled code on disk, and
compiles all of it again when any file of this package has changed. docs/kernels.md says why each kernel is fast. Words
that have no name elsewhere:

    lane      one of the 16 float32 (8 float64) numbers of a vector register; each batch element has one
    block     scratch of shape (k, lanes): `lanes` rows of a batch, transposed; row i holds the i-th number of each
    tile      a square of lanes × lanes numbers, transposed in registers on its way into a block or out of it
    stream    a block, each load from which also prefetches what will be gathered into it next
    line      64 bytes of memory, one vector
    strip     as many parts of one long chain as a vector has lanes; threads share strips
    part      a run of nodes of one long chain that goes in one lane
    chunk     256 nodes of each part of a strip, which are in cache together; of a short chain the whole
    seam      where one part ends and the next begins: the values that cross it are guessed, compared, and mended
    carry     the values that cross the ends of chunks, kept for the seams and for the gradient
    phase     the blocks of noise, equally spaced in the batch, that belong to the same Gaussians
    taint     a sum of 0 · v over values v, NaN as soon as one of them is not finite

A batch of five chains of three nodes with four lanes is two blocks, and one long chain of 26 nodes with two lanes is
one strip of two parts, in chunks of five nodes, and four nodes left over:

    rows of a batch         block 1             block 2           one long chain
    a0 a1 a2  b0 b1 b2      a0 b0 c0 d0         e0 e0 e0 e0       part 0: nodes  0 … 10 = chunk 0 … 4 | 5 … 9 | 10
    c0 c1 c2  d0 d1 d2  ->  a1 b1 c1 d1         e1 e1 e1 e1       part 1: nodes 11 … 21 = 11 … 15 | 16 … 20 | 21
    e0 e1 e2                a2 b2 c2 d2         e2 e2 e2 e2                     seam between 10 and 11; rest 22 … 25
"""

from typing import Any

from sparseggm.kernels.compilation import njit

__all__ = ["INLINED", "INNER", "KERNEL", "njit"]

KERNEL: dict[str, Any] = {"nogil": True, "error_model": "numpy", "no_cfunc_wrapper": True}
"""Options of functions that Python calls, and C does not."""

INNER: dict[str, Any] = KERNEL | {"no_cpython_wrapper": True}
"""Options of functions that only kernels call: without a wrapper for Python, they compile a tenth faster."""

INLINED: dict[str, Any] = INNER | {"forceinline": True}
"""Options of functions called for each block or column, where a call would cost as much as the work in it."""
