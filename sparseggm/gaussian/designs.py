"""`Design`: a sparse matrix A (k, n) as observations use it: products, and the pairs of nodes that its rows join.

The pattern is fixed, and known row by row; the values, called entries, are numbers of the caller's, arrays or tensors.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.sparse

from sparseggm.errors import DTypeError, NonFiniteError, PatternError, ShapeError
from sparseggm.graph.pattern import FloatArray, IntArray
from sparseggm.positivity.namespace import Array, segment_sum, take
from sparseggm.promotion import as_numbers, widest

PRODUCT_LIMIT = 10_000_000
"""More products of two entries of long rows need `force=True`: a dense row of 4,500 entries has as many."""

LONG = 100
"""Entries beyond which a row is long, as one that is dense by accident."""


class Products(NamedTuple):
    """Products A_ri A_sj of the entries of pairs of rows (r, s), each with the pair of nodes {i, j} that it joins."""

    of: IntArray
    """(t,) which pair of rows."""
    first: IntArray
    """(t,) the place of A_ri among the entries; `second` that of A_sj."""
    second: IntArray
    pair: IntArray
    """(t,) which of the pairs of nodes."""
    times: FloatArray
    """(t,) 2 where the product stands for its mirror image in one row too, else 1."""
    nodes: IntArray
    """(m, 2) the pairs of nodes, i ≥ j, each once."""


class Design:
    """The pattern of a matrix A (k, n), and its entries row by row.

    Args:
        function: who asks, for messages.
        matrix: of scipy.sparse, whose stored zeros belong to the pattern, or a dense array, whose zeros do not.
        n: number of columns that it must have.
    Raises:
        ShapeError, DTypeError, NonFiniteError: no matrix of finite real numbers with n columns and a row.
    """

    def __init__(self, function: str, matrix: Any, n: int) -> None:
        csr = _rows_of(function, matrix)
        if csr.ndim != 2 or csr.shape[1] != n or not csr.shape[0]:
            raise ShapeError(
                f"{function}: matrix must be (k, {n}), a row for each observation and a column for each node, got "
                f"shape {csr.shape}."
            )
        self.shape: tuple[int, int] = csr.shape
        self.indptr: IntArray = csr.indptr.astype(np.int64)
        self.cols: IntArray = csr.indices.astype(np.int64)
        self.rows: IntArray = np.repeat(np.arange(self.shape[0]), np.diff(self.indptr))
        entries, dtype = as_numbers(function, "matrix", csr.data)
        self.entries: FloatArray = entries.astype(widest(dtype)) if dtype is not None else entries
        if not np.isfinite(self.entries).all():
            p = int(np.argmin(np.isfinite(self.entries)))
            raise NonFiniteError(
                f"{function}: matrix must be finite, got {self.entries[p]} at ({self.rows[p]}, {self.cols[p]})."
            )
        for array in (self.indptr, self.cols, self.rows, self.entries):
            array.flags.writeable = False

    @property
    def nnz(self) -> int:
        """Number of entries."""
        return len(self.cols)

    def matmul(self, entries: Array, x: Array) -> Array:
        """A x: (..., k) from (..., n), for entries (..., nnz)."""
        return segment_sum(entries * take(x, self.cols), self.rows, self.shape[0])

    def matmul_t(self, entries: Array, y: Array) -> Array:
        """Aᵀ y: (..., n) from (..., k)."""
        return segment_sum(entries * take(y, self.rows), self.cols, self.shape[1])

    def products(self, function: str, pairs: IntArray, force: bool = False) -> Products:
        """The `Products` of pairs of rows (m, 2).

        Raises:
            PatternError: long rows have more than 10⁷, as those have that are dense by accident, and no `force`.
        """
        lengths = np.diff(self.indptr)[pairs]
        counts = lengths.prod(axis=1)
        once = np.where(pairs[:, 0] == pairs[:, 1], (counts + lengths[:, 0]) // 2, counts)  # not the mirror images
        of_long = int(once[lengths.max(axis=1) > LONG].sum())
        if of_long > PRODUCT_LIMIT and not force:
            raise PatternError(
                f"{function}: matrix has rows of up to {lengths.max()} entries, which join as many nodes to one "
                f"another: {of_long:,} products, more than {PRODUCT_LIMIT:,}. Leave out what is zero, use "
                "fields.constrain for a few dense rows without noise, or force=True if you mean it."
            )
        of = np.repeat(np.arange(len(pairs)), counts)
        place = np.arange(len(of)) - np.repeat(np.cumsum(counts) - counts, counts)
        first, second = np.divmod(place, lengths[of, 1])
        first, second = (self.indptr[pairs[of, end]] + offset for end, offset in enumerate((first, second)))
        kept = (pairs[of, 0] != pairs[of, 1]) | (first >= second)
        of, first, second = of[kept], first[kept], second[kept]
        n, i, j = self.shape[1], self.cols[first], self.cols[second]
        codes, pair = np.unique(np.minimum(i, j) * n + np.maximum(i, j), return_inverse=True)
        times = np.where((pairs[of, 0] == pairs[of, 1]) & (first > second), 2.0, 1.0)
        return Products(of, first, second, pair, times, np.stack([codes % n, codes // n], axis=-1))


def rows_of_identity(nodes: IntArray, n: int) -> scipy.sparse.csr_array:
    """The matrix whose rows are the unit vectors of these nodes."""
    return scipy.sparse.csr_array((np.ones(len(nodes), np.int8), (np.arange(len(nodes)), nodes)), (len(nodes), n))


def _rows_of(function: str, matrix: Any) -> Any:
    """A scipy.sparse.csr_array without repeated entries, of the caller's matrix."""
    if scipy.sparse.issparse(matrix):
        csr = scipy.sparse.csr_array(matrix, copy=True)
        csr.sum_duplicates()
        return csr
    if not hasattr(matrix, "__array__") and not isinstance(matrix, list | tuple):
        raise DTypeError(
            f"{function}: matrix must be of scipy.sparse, or a dense array, got {type(matrix).__name__}. "
            "The entries of a fixed pattern may be tensors: entries=."
        )
    dense: npt.NDArray[Any] = as_numbers(function, "matrix", matrix)[0]
    if dense.ndim != 2:
        raise ShapeError(f"{function}: matrix must be (k, n), got shape {dense.shape}.")
    return scipy.sparse.csr_array(dense.astype(dense.dtype.newbyteorder("="), copy=False))
