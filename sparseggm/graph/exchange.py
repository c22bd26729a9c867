"""Packed values to and from dense arrays, scipy.sparse matrices and LAPACK bands.

Off the pattern a matrix must be zero, and mirror images must agree. Rows and columns are those of the matrix, so that
messages are in the numbering of whoever wrote it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse

from sparseggm.errors import DTypeError, PatternError, ShapeError, in_batch
from sparseggm.promotion import plain

Entries = npt.NDArray[Any]
Places = npt.NDArray[np.int64]
Index = tuple[int, ...]

DENSE_LIMIT = 20_000
"""Nodes; a dense float64 matrix of that size is 3.2 GB."""

ROUNDINGS = 8
"""Units u by which mirror images may differ, see `symmetric_entries`."""


def square_coordinates(function: str, matrix: Any) -> tuple[int, Places, Places]:
    """(n, rows, cols) of the stored entries of a square scipy.sparse matrix, or of the nonzeros of an array.

    Raises:
        DTypeError, ShapeError: something else.
    """
    if not scipy.sparse.issparse(matrix) and not isinstance(matrix, np.ndarray):
        raise DTypeError(f"{function}: the matrix must be of scipy.sparse, got {type(matrix).__name__}.")
    coo = scipy.sparse.coo_array(matrix if scipy.sparse.issparse(matrix) else plain(function, "the matrix", matrix))
    if coo.ndim != 2 or coo.shape[0] != coo.shape[1]:
        raise ShapeError(f"{function}: the matrix must be square, got shape {matrix.shape}.")
    rows, cols = (axis.astype(np.int64) for axis in coo.coords)
    return coo.shape[0], rows, cols


def lower_entries(function: str, structure: object, matrix: Any, rows: Places, cols: Places) -> Entries:
    """(..., k) the entries of a lower-triangular matrix (..., n, n) at the places, rows ≥ cols.

    Args:
        function, structure: for messages: who asks, and what has these places.
    Raises:
        PatternError: a nonzero (or NaN) above the diagonal, or at none of the places.
    """
    read = _Sparse(matrix) if scipy.sparse.issparse(matrix) else _Dense(matrix)
    stray = read.elsewhere(rows, cols)
    if stray and stray[-2] < stray[-1]:
        raise PatternError(
            f"{function}: the matrix must be lower triangular, got {read.named(stray)}. Pass its lower triangle."
        )
    if stray:
        raise PatternError(f"{function}: the matrix must be zero off {structure}, got {read.named(stray)}.")
    return read.at(rows, cols)


def symmetric_entries(function: str, structure: object, matrix: Any, rows: Places, cols: Places) -> Entries:
    """(..., k) the entries of a symmetric matrix (..., n, n) at the places, each of which stands for its mirror image.

    A product of sparse matrices is symmetric up to rounding only. In A = G C Gᵀ with C ≥ 0 diagonal, an entry of k
    terms differs from its mirror image, whose terms are multiplied or summed in another order, by at most
    2 (k + 1) u √(A_ii A_jj), by Cauchy and Schwarz; sums of such products likewise. So a difference of at most
    8 u √(A_ii A_jj) is taken for rounding: terms are few, and their errors partly cancel. So is one of at most 8 u of
    the larger of the two, which serves matrices with zeros on the diagonal. The mean is then the entry. Mirror images
    that differ by more are refused, and so is one triangle alone. Integers must be equal.

    Raises:
        PatternError: a nonzero (or NaN) at none of the places, or mirror images that differ.
    """
    read = _Sparse(matrix) if scipy.sparse.issparse(matrix) else _Dense(matrix)
    stray = read.elsewhere(np.concatenate([rows, cols]), np.concatenate([cols, rows]))
    if stray:
        raise PatternError(
            f"{function}: the matrix must be zero off {structure}, got {read.named(stray)}, and {stray[-2]} and "
            f"{stray[-1]} are not joined. Use a graph that joins them, as from_scipy(matrix) does."
        )
    values, mirrored = read.at(rows, cols), read.at(cols, rows)
    if np.array_equal(values, mirrored):
        return values
    differ = ~_are_equal(values, mirrored, read.at(rows, rows), read.at(cols, cols))
    if differ.any():
        *batch, p = (int(axis) for axis in np.argwhere(differ)[0])
        i, j = int(rows[p]), int(cols[p])
        raise PatternError(
            f"{function}: the matrix must be symmetric, got {read.named((*batch, i, j))} and "
            f"{read.named((*batch, j, i))}. Pass both triangles; (A + A.T) / 2 cures what rounding made differ."
        )
    return np.where(values == mirrored, values, values / 2 + mirrored / 2)


def _are_equal(a: Entries, b: Entries, a_diagonal: Entries, b_diagonal: Entries) -> npt.NDArray[np.bool_]:
    """Up to rounding. Infinities, and NaN, only equal themselves."""
    same: npt.NDArray[np.bool_] = (a == b) | (np.isnan(a) & np.isnan(b))
    if not np.issubdtype(a.dtype, np.inexact):
        return same
    u = np.finfo(a.dtype).eps / 2
    with np.errstate(invalid="ignore", over="ignore"):
        scale = np.maximum(np.sqrt(abs(a_diagonal)) * np.sqrt(abs(b_diagonal)), np.maximum(abs(a), abs(b)))
        same |= (abs(a - b) <= ROUNDINGS * u * scale) & np.isfinite(scale)
    return same


class _Dense:
    """Reads arrays (..., n, n)."""

    def __init__(self, matrix: Entries) -> None:
        self.matrix = matrix

    def at(self, rows: Places, cols: Places) -> Entries:
        """(..., k) entries."""
        return np.ascontiguousarray(self.matrix[..., rows, cols])

    def elsewhere(self, rows: Places, cols: Places) -> Index | None:
        """Batch index, row and column of a nonzero at none of the places."""
        is_place = np.zeros(self.matrix.shape[-2:], bool)
        is_place[rows, cols] = True
        strays = np.argwhere((self.matrix != 0) & ~is_place)
        return tuple(strays[0].tolist()) if len(strays) else None

    def named(self, index: Index) -> str:
        """An entry and its place, for a message."""
        return f"{self.matrix[index]} at ({index[-2]}, {index[-1]}){in_batch(index[:-2])}"


class _Sparse:
    """Reads one scipy.sparse matrix (n, n); entries that are stored twice count together. Methods as `_Dense`."""

    def __init__(self, matrix: Any) -> None:
        csr = scipy.sparse.csr_array(matrix, copy=True)
        csr.sum_duplicates()  # and sorts
        self.n, self.data = csr.shape[0], csr.data
        self.codes = np.repeat(np.arange(self.n) * self.n, np.diff(csr.indptr)) + csr.indices

    def at(self, rows: Places, cols: Places) -> Entries:
        positions, is_stored = self._positions(rows, cols)
        return np.where(is_stored, np.append(self.data, self.data.dtype.type(0))[positions], 0)

    def _positions(self, rows: Places, cols: Places) -> tuple[Places, npt.NDArray[np.bool_]]:
        """Where the places stand among the stored entries, and whether they do."""
        codes = rows * self.n + cols
        positions = np.searchsorted(self.codes, codes)
        return positions, np.append(self.codes, -1)[positions] == codes

    def elsewhere(self, rows: Places, cols: Places) -> Index | None:
        positions, is_stored = self._positions(rows, cols)
        stray = self.data != 0
        stray[positions[is_stored]] = False
        return divmod(int(self.codes[np.argmax(stray)]), self.n) if stray.any() else None

    def named(self, index: Index) -> str:
        value = self.at(np.array([index[0]]), np.array([index[1]]))[0]
        return f"{value} at ({index[0]}, {index[1]})"


def lower_edges(function: str, matrix: Any) -> tuple[int, Places]:
    """n and the (k, 2) places of the stored entries of a lower-triangular scipy.sparse matrix."""
    n, rows, cols = square_coordinates(function, matrix)
    above = rows < cols
    if above.any():
        i, j = rows[above][0], cols[above][0]
        raise PatternError(
            f"{function}: the matrix must be lower triangular, got an entry at ({i}, {j}). "
            "Pass scipy.sparse.tril(matrix)."
        )
    return n, np.stack([rows, cols], axis=-1)


def band_entries(function: str, ab: Entries) -> tuple[int, Places, Places, Entries]:
    """n, indptr, rows and packed values of LAPACK's lower band, see `Pattern.from_banded`."""
    ab = plain(function, "ab", ab)
    if ab.ndim < 2 or ab.shape[-2] > ab.shape[-1]:
        raise ShapeError(f"{function}: ab must be (..., bandwidth + 1 ≤ n, n), got shape {ab.shape}.")
    width, n = ab.shape[-2:]
    cols = np.arange(n)
    reach = np.minimum(cols + width, n) - cols
    indptr, each = np.concatenate([[0], np.cumsum(reach)]), np.repeat(cols, reach)
    depth = np.arange(indptr[-1]) - np.repeat(indptr[:-1], reach)
    return n, indptr, each + depth, ab[..., depth, each]


class Exchanged:
    """What a `Pattern` exchanges with other formats."""

    n: int
    indptr: npt.NDArray[np.int32]
    rows: npt.NDArray[np.int32]
    nnz: Any
    cols: Any
    bandwidth: Any

    def to_scipy(self, values: Entries, symmetric: bool = False) -> Any:
        """One matrix as scipy.sparse.csc_array; the triangular one shares memory with `values` (nnz,)."""
        values = plain("Pattern.to_scipy", "values", values)
        if values.shape != (self.nnz,):
            raise ShapeError(f"Pattern.to_scipy: values must be ({self.nnz},), one matrix, got shape {values.shape}.")
        lower = scipy.sparse.csc_array((values, self.rows, self.indptr), shape=(self.n, self.n))
        return (lower + scipy.sparse.tril(lower, -1).T).tocsc() if symmetric else lower

    def to_dense(self, values: Entries, symmetric: bool = False, force: bool = False) -> Entries:
        """(..., n, n): the lower triangle, or both. Above 20,000 nodes asks for force=True."""
        values = self._checked_values("Pattern.to_dense", values)
        if self.n > DENSE_LIMIT and not force:
            gigabytes = values.itemsize * self.n**2 / 1e9
            raise ShapeError(
                f"Pattern.to_dense: {self.n} nodes would take {gigabytes:.1f} GB a matrix. "
                "Use to_scipy, or force=True if you mean it."
            )
        dense = np.zeros((*values.shape[:-1], self.n, self.n), values.dtype)
        dense[..., self.rows, self.cols] = values
        if symmetric:
            dense[..., self.cols, self.rows] = values
        return dense

    def to_banded(self, values: Entries) -> Entries:
        """LAPACK's lower band (..., bandwidth + 1, n), unused entries zero: see `from_banded`."""
        values = self._checked_values("Pattern.to_banded", values)
        ab = np.zeros((*values.shape[:-1], self.bandwidth + 1, self.n), values.dtype)
        ab[..., self.rows - self.cols, self.cols] = values
        return ab

    def values_of(self, matrix: Any, symmetric: bool = False) -> Entries:
        """Packed values (..., nnz) of a dense (..., n, n) or scipy.sparse matrix: inverse of `to_dense`, `to_scipy`.

        With symmetric=True both triangles are read: see `exchange.symmetric_entries` for what counts as symmetric.

        Raises:
            PatternError: a nonzero (or NaN) off the pattern; with symmetric=False any above the diagonal, with
                symmetric=True a mirrored pair that differs.
        """
        if not scipy.sparse.issparse(matrix):
            matrix = plain("Pattern.values_of", "the matrix", matrix)
        if matrix.shape[-2:] != (self.n, self.n):
            raise ShapeError(f"Pattern.values_of: the matrix must be (..., {self.n}, {self.n}), got {matrix.shape}.")
        entries = symmetric_entries if symmetric else lower_entries
        return entries("Pattern.values_of", self, matrix, self.rows.astype(np.int64), self.cols.astype(np.int64))

    def _checked_values(self, function: str, values: Entries) -> Entries:
        values = plain(function, "values", values)
        if values.ndim == 0 or values.shape[-1] != self.nnz:
            raise ShapeError(f"{function}: values must end in {self.nnz}, the nnz of the pattern, got {values.shape}.")
        return values
