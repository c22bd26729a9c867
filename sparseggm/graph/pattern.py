"""`Pattern`: the nonzero structure of a lower triangle, and the one storage convention of the library.

A pattern lists columns in order; in each column the diagonal comes first, then increasing rows. It holds no
numbers. Values are a packed array whose last axis runs over it, leading axes are batch:

    values[..., p] == A[rows[p], cols[p]]              shape (..., nnz)

        ⎡a00            ⎤        p        0   1   2   3   4   5   6
    A = ⎢a10 a11        ⎥        rows     0   1   3   1   2   2   3        indptr  0 3 5 6 7
        ⎢    a21 a22    ⎥        cols     0   0   0   1   1   2   3
        ⎣a30         a33⎦        values  a00 a10 a30 a11 a21 a22 a33

so one batch element is a SciPy CSC matrix `(values, rows, indptr)` without a copy, and there is no padding.

A symmetric matrix is stored by its lower triangle: an off-diagonal entry stands for two. Gradients are with
respect to stored values, so d log det P / d values is Σ_jj on the diagonal and 2 Σ_ij off it.

The module is longer than others: the derived facts of one structure belong to one class.
"""

from __future__ import annotations

import hashlib
import weakref
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from sparseggm import forks
from sparseggm.errors import PatternError
from sparseggm.graph.derived import derived, make_read_only
from sparseggm.graph.exchange import Exchanged, band_entries, lower_edges
from sparseggm.graph.fronts import fronts_of
from sparseggm.kernels import symbolic
from sparseggm.kernels.fronts.assembly import Tree

FloatArray = npt.NDArray[Any]  # float32 or float64; `linalg` checks which
IntArray = npt.NDArray[np.int64]
IndexArray = npt.NDArray[np.int32]

_MAX_ENTRIES = np.iinfo(np.int32).max
_FEW_RUNS = 8

_interned: weakref.WeakValueDictionary[str, Pattern] = weakref.WeakValueDictionary()
_intern_lock = forks.Lock()


class Pattern(Exchanged):
    """The nonzero structure of a lower-triangular n × n matrix with a full diagonal.

    Interned: two patterns of equal structure are the same object, so `is` and `==` agree. Immutable; derived
    facts are computed once and kept. Exchange of values with other formats: `exchange.Exchanged`.

    Args:
        n: size, at least 1.
        indptr: (n + 1,) where each column starts, as in CSC.
        rows: (nnz,) row of each entry: in each column the diagonal, then increasing.
    Raises:
        PatternError: the arrays do not describe such a structure.
    """

    n: int
    indptr: IndexArray
    rows: IndexArray
    nnz: int
    """Number of stored entries, the n diagonal ones among them."""
    key: str
    """Digest of (n, indptr, rows): what checkpoints store and torch operators take."""

    def __new__(cls, n: int, indptr: npt.ArrayLike, rows: npt.ArrayLike) -> Pattern:
        indptr, rows = _checked(n, np.asarray(indptr), np.asarray(rows))
        digest = hashlib.blake2b(np.int64(n).tobytes(), digest_size=16)
        digest.update(indptr.astype("<i4", copy=False).data)
        digest.update(rows.astype("<i4", copy=False).data)
        key = digest.hexdigest()
        with _intern_lock:
            known = _interned.get(key)
            if known is not None:
                return known
            self = super().__new__(cls)
            self.n, self.indptr, self.rows, self.nnz, self.key = int(n), indptr, rows, rows.size, key
            _interned[key] = self
            return self

    def __reduce__(self) -> tuple[type[Pattern], tuple[int, IndexArray, IndexArray]]:
        return Pattern, (self.n, self.indptr, self.rows)

    def __copy__(self) -> Pattern:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Pattern:
        return self

    def __repr__(self) -> str:
        return f"Pattern(n={self.n}, nnz={self.nnz}, key={self.key[:8]}…)"

    # ------------------------------------------------------------------ construction

    @staticmethod
    def from_key(key: str) -> Pattern:
        """The living pattern with this key.

        Raises:
            PatternError: no such pattern exists in this process.
        """
        pattern = _interned.get(key)
        if pattern is None:
            raise PatternError(
                f"Pattern.from_key: no pattern {key!r} is alive in this process. Build its topology first, and keep it."
            )
        return pattern

    @staticmethod
    def from_edges(n: int, edges: npt.ArrayLike) -> Pattern:
        """The diagonal and one entry for each of the (m, 2) pairs, in either order; repeats count once."""
        pairs = as_pairs("Pattern.from_edges", edges)
        if n < 1:
            raise PatternError(f"Pattern.from_edges: n must be at least 1, got {n}.")
        if pairs.size and (pairs.min() < 0 or pairs.max() >= n):
            raise PatternError(f"Pattern.from_edges: nodes must be in 0 … {n - 1}, got {pairs.min()} … {pairs.max()}.")
        nodes = np.arange(n, dtype=np.int64)
        i, j = pairs.T
        codes = np.concatenate([nodes * n + nodes, np.minimum(i, j) * n + np.maximum(i, j)])
        return _from_codes(n, _sorted_once(codes))

    @staticmethod
    def from_scipy(matrix: Any) -> tuple[Pattern, FloatArray]:
        """Pattern and packed values of a lower-triangular scipy.sparse matrix or array.

        The diagonal is always part of the pattern; stored zeros are kept. Entries above the diagonal raise.
        """
        pattern = Pattern.from_edges(*lower_edges("Pattern.from_scipy", matrix))
        return pattern, pattern.values_of(matrix)

    @staticmethod
    def from_banded(ab: FloatArray) -> tuple[Pattern, FloatArray]:
        """Pattern and packed values of LAPACK's lower band: ab (..., bandwidth + 1, n), ab[..., i − j, j] = A[i, j].

        The unused last entries of each row are ignored.
        """
        n, indptr, rows, values = band_entries("Pattern.from_banded", ab)
        return Pattern(n, indptr, rows), values

    # ------------------------------------------------------------------ facts

    @derived
    def structure(self) -> tuple[IndexArray, IndexArray]:
        """(indptr, rows) as kernels take them: views, since a tracer of torch makes arrays that it meets writable.

        To Numba an array that can be written to has another type, for which it would compile every kernel again.
        """
        return make_read_only(self.indptr.view()), make_read_only(self.rows.view())

    @derived
    def cols(self) -> IndexArray:
        """(nnz,) column of each entry."""
        return make_read_only(np.repeat(np.arange(self.n, dtype=np.int32), np.diff(self.indptr)))

    @property
    def diagonal(self) -> IndexArray:
        """(n,) packed position of each diagonal entry."""
        return self.indptr[:-1]

    @derived
    def multiplicity(self) -> FloatArray:
        """(nnz,) how many entries of a symmetric matrix each stored one stands for: 1 on the diagonal, 2 off it."""
        return make_read_only(np.where(self.rows == self.cols, 1.0, 2.0))

    @derived
    def bandwidth(self) -> int:
        """max i − j over the entries."""
        return int((self.rows[self.indptr[1:] - 1] - np.arange(self.n)).max())

    @derived
    def longest_column(self) -> int:
        """Entries in the longest column, the diagonal counted: the c of the error bounds."""
        return int(np.diff(self.indptr).max())

    def column_pairs(self, fill: Pattern) -> int:
        """Σ_j |S_j| |F_j| for these columns S and those of a fill F: what every cost of a factorisation is made of."""
        if fill not in self._column_pairs:
            lengths, fill_lengths = (np.diff(pattern.indptr).astype(np.int64) for pattern in (self, fill))
            self._column_pairs[fill] = int(lengths @ fill_lengths)
        return self._column_pairs[fill]

    @derived
    def _column_pairs(self) -> weakref.WeakKeyDictionary[Pattern, int]:
        return weakref.WeakKeyDictionary()

    @derived
    def longest_row(self) -> int:
        """Entries in the longest row, the diagonal counted."""
        return int(np.diff(self.row_structure[0]).max()) + 1

    @derived
    def row_structure(self) -> tuple[IndexArray, IndexArray, IndexArray]:
        """(row_indptr, row_cols, row_positions) of the strictly lower entries, row by row."""
        row_indptr = np.zeros(self.n + 1, np.int32)
        row_cols = np.empty(self.nnz - self.n, np.int32)
        row_positions = np.empty(self.nnz - self.n, np.int32)
        symbolic.transpose(*self.structure, row_indptr, row_cols, row_positions)
        return make_read_only(row_indptr), make_read_only(row_cols), make_read_only(row_positions)

    @derived
    def column_groups(self) -> npt.NDArray[np.int8]:
        """Of each strictly lower entry, row by row: how many columns from its own on a factorisation takes together."""
        groups = np.zeros(self.nnz - self.n, np.int8)
        symbolic.group_columns(*self.structure, *self.row_structure, groups)
        return make_read_only(groups)

    @derived
    def is_chain(self) -> bool:
        """Whether column j holds j and j + 1, for every j: the factor of a chain in its natural order."""
        return self.nnz == 2 * self.n - 1 and bool((self.rows - self.cols <= 1).all())

    @property
    def is_closed(self) -> bool:
        """Whether elimination adds no entry: the Cholesky factor of a P on this pattern stays on it."""
        return self.filled() is self

    # ------------------------------------------------------------------ derived patterns

    @derived
    def fronts(self) -> Tree | None:
        """Of a closed pattern: its columns in dense fronts, where these are faster than columns one by one."""
        return fronts_of(*self.structure)

    def filled(self) -> Pattern:
        """Where the Cholesky factor of a P on this pattern may be nonzero. Cost O(nnz of the result)."""
        return self._filled or self

    @derived
    def _filled(self) -> Pattern | None:  # None for itself: a pattern that holds itself would never be freed
        row_indptr, row_cols, _ = self.row_structure
        parent = np.empty(self.n, np.int64)
        counts = np.empty(self.n, np.int64)
        symbolic.fill_counts(row_indptr, row_cols, parent, counts, 0, symbolic.MOST)
        if counts.sum() == self.nnz:
            return None
        indptr = np.concatenate([[0], np.cumsum(counts)])
        _require_indexable(int(indptr[-1]))
        rows = np.empty(indptr[-1], np.int32)
        symbolic.fill_rows(row_indptr, row_cols, parent, indptr, rows)
        return Pattern(self.n, indptr, rows)

    @derived
    def positions_in_fill(self) -> IndexArray:
        """(nnz,) where each entry stands in `filled()`."""
        if self.is_closed:
            return make_read_only(np.arange(self.nnz, dtype=np.int32))
        return make_read_only(self.positions_in(self.filled()).astype(np.int32))

    def diagonal_part(self) -> Pattern:
        """The diagonal alone."""
        return self._diagonal_part or self

    @derived
    def _diagonal_part(self) -> Pattern | None:
        return None if self.nnz == self.n else Pattern(self.n, np.arange(self.n + 1), np.arange(self.n))

    def gram(self) -> Pattern:
        """Where L Lᵀ may be nonzero for L on this pattern. Itself if closed."""
        return self._gram or self

    @derived
    def _gram(self) -> Pattern | None:
        if self.is_closed:
            return None
        ones = self.to_scipy(np.ones(self.nnz))
        return Pattern.from_edges(self.n, np.stack((ones @ ones.T).tocoo().coords, axis=-1))

    def union(self, other: Pattern) -> Pattern:
        """The entries of either."""
        if other.n != self.n:
            raise PatternError(f"Pattern.union: both patterns must have the same n, got {self.n} and {other.n}.")
        return _from_codes(self.n, _sorted_once(np.concatenate([self._codes, other._codes])))

    def envelope(self) -> Pattern:
        """Each column made contiguous, from the diagonal to its last row."""
        reach = self.rows[self.indptr[1:] - 1].astype(np.int64) - np.arange(self.n) + 1
        indptr = np.concatenate([[0], np.cumsum(reach)])
        _require_indexable(int(indptr[-1]))
        rows = np.arange(indptr[-1]) + np.repeat(np.arange(self.n) - indptr[:-1], reach)
        return Pattern(self.n, indptr, rows)

    def permuted(self, order: npt.ArrayLike) -> tuple[Pattern, IntArray]:
        """The same symmetric matrix, renumbered: new node k is old node order[k].

        Returns:
            the pattern, and `gather` (nnz,) with new values = values[..., gather].
        """
        order = np.asarray(order, dtype=np.int64)
        if not np.array_equal(np.sort(order), np.arange(self.n)):
            raise PatternError(f"Pattern.permuted: order must be a permutation of 0 … {self.n - 1}.")
        inverse = np.empty(self.n, np.int64)
        inverse[order] = np.arange(self.n)
        i, j = inverse[self.rows], inverse[self.cols]
        codes = np.minimum(i, j) * self.n + np.maximum(i, j)
        gather = np.argsort(codes)
        return _from_codes(self.n, codes[gather]), gather

    def positions_in(self, other: Pattern, function: str = "Pattern.positions_in") -> IntArray:
        """(nnz,) where each entry stands in `other`; found once, and kept while both live.

        Args:
            function: who asks, for the message.

        Raises:
            PatternError: `other` lacks an entry.
        """
        known = self._positions_in.get(other)
        if known is None:
            known = self._positions_in[other] = make_read_only(self._found_in(other, function))
        return known

    @derived
    def _positions_in(self) -> weakref.WeakKeyDictionary[Pattern, IntArray]:
        return weakref.WeakKeyDictionary()

    def _found_in(self, other: Pattern, function: str) -> IntArray:
        if other.n != self.n:
            raise PatternError(f"{function}: both patterns must have the same n, got {self.n} and {other.n}.")
        positions = other.positions_of(self.rows, self.cols)
        if (positions < 0).any():
            p = int(np.argmin(positions))
            raise PatternError(f"{function}: entry ({self.rows[p]}, {self.cols[p]}) is not in {other!r}.")
        return positions

    def positions_of(self, rows: IntArray | IndexArray, cols: IntArray | IndexArray) -> IntArray:
        """Packed position of each entry (row, col), row ≥ col; −1 where the pattern has none. O(log |S_col|) each."""
        wanted = np.array(np.broadcast_arrays(rows, cols), np.int64)
        positions = np.empty(wanted.shape[1:], np.int64)
        symbolic.locate(*self.structure, *wanted.reshape(2, -1), positions.ravel())
        return positions

    def positions_between(self, i: IntArray | IndexArray, j: IntArray | IndexArray) -> IntArray:
        """Packed position of the entry for each pair of nodes, in either orientation; −1 where the pattern has none."""
        return self.positions_of(np.maximum(i, j), np.minimum(i, j))

    @derived
    def dense_positions(self) -> IntArray:
        """(n²,) packed position of each entry of a full symmetric matrix; nnz where there is none."""
        positions = np.full((self.n, self.n), self.nnz, np.int64)
        positions[self.rows, self.cols] = positions[self.cols, self.rows] = np.arange(self.nnz)
        return make_read_only(positions.ravel())

    @property
    def _codes(self) -> IntArray:
        """cols · n + rows: increasing along the pattern."""
        return self.cols.astype(np.int64) * self.n + self.rows


def as_pairs(function: str, edges: npt.ArrayLike) -> IntArray:
    """(m, 2) node numbers, in the caller's order.

    Raises:
        PatternError: another shape, as (2, m), which would be read as other pairs; or numbers that are not integers.
    """
    if np.ma.is_masked(edges):
        raise PatternError(f"{function}: edges must have a value in every place, got a masked array. Choose the rows.")
    pairs = np.asarray(edges)
    if not pairs.size:
        return np.empty((0, 2), np.int64)
    if pairs.ndim != 2 or pairs.shape[1] != 2 or not np.issubdtype(pairs.dtype, np.integer):
        raise PatternError(f"{function}: edges must be (m, 2) integers, got {pairs.dtype} of shape {pairs.shape}.")
    return pairs.astype(np.int64)


def _checked(n: int, indptr: npt.NDArray[Any], rows: npt.NDArray[Any]) -> tuple[IndexArray, IndexArray]:
    """Private int32 read-only copies, after every check a kernel relies on."""
    if n < 1:
        raise PatternError(f"Pattern: n must be at least 1, got {n}.")
    if indptr.shape != (n + 1,) or rows.ndim != 1 or indptr[0] != 0 or indptr[-1] != rows.size:
        raise PatternError(
            f"Pattern: indptr must be ({n + 1},) from 0 to the number of rows, got shape {indptr.shape}."
        )
    _require_indexable(rows.size)
    if (np.diff(indptr) < 1).any() or not np.array_equal(rows[indptr[:-1]], np.arange(n)):
        raise PatternError("Pattern: each column must start with its diagonal entry.")
    follows = np.ones(rows.size, bool)
    follows[indptr[:-1]] = False  # entries that have a predecessor in their column
    if (np.diff(rows)[follows[1:]] <= 0).any() or rows.max() >= n:
        raise PatternError(f"Pattern: the rows of a column must increase and stay below {n}.")
    return make_read_only(indptr.astype(np.int32)), make_read_only(rows.astype(np.int32))


def _from_codes(n: int, codes: IntArray) -> Pattern:
    """The pattern whose entries are codes = col · n + row, increasing and unique."""
    cols, rows = np.divmod(codes, n)
    return Pattern(n, np.searchsorted(cols, np.arange(n + 1)), rows)


def _sorted_once(codes: IntArray) -> IntArray:
    """Increasing, without repeats. A stable sort merges a few sorted runs in linear time; of many it is slow."""
    runs = np.count_nonzero(codes[1:] < codes[:-1])
    codes = np.sort(codes, kind="stable" if runs < _FEW_RUNS else None)
    first = np.append(True, codes[1:] != codes[:-1])
    return cast(IntArray, codes[first])


def _require_indexable(nnz: int) -> None:
    if nnz > _MAX_ENTRIES:
        raise PatternError(f"Pattern: {nnz} entries, but indices are 32-bit: at most {_MAX_ENTRIES}. Split the graph.")
