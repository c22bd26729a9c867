"""Maximum likelihood of a sparse factor in closed form, column by column."""

from __future__ import annotations

import numpy as np

from sparseggm.errors import NotPositiveDefiniteError
from sparseggm.pattern import FloatArray, Pattern


def columns_of_factor(pattern: Pattern, centred: FloatArray) -> FloatArray:
    """The L on `pattern` whose Gaussian is most likely for centred samples, in float64.

    Column j is a regression on its own: with C the empirical covariance of S_j = {j, later rows of column j},
        L_{S_j, j} = C⁻¹ e₁ / √(e₁ᵀ C⁻¹ e₁).
    Columns of equal length are solved together.

    Args:
        pattern: of L.
        centred: (..., N, n) samples less their mean, in the pattern's numbering.
    Raises:
        NotPositiveDefiniteError: a C is singular to working precision.
    """
    count = centred.shape[-2]
    lengths = np.diff(pattern.indptr)
    factor = np.empty((*centred.shape[:-2], pattern.nnz))
    for length in np.unique(lengths):
        columns = np.flatnonzero(lengths == length)
        positions = pattern.indptr[columns, None] + np.arange(length)
        x = centred[..., pattern.rows[positions]].astype(np.float64)  # (..., N, columns, length)
        covariance = np.einsum("...nca,...ncb->...cab", x, x) / count
        _require_regular(covariance, columns, count)
        unit = np.zeros((length, 1))
        unit[0] = 1.0
        first = np.linalg.solve(covariance, np.broadcast_to(unit, (*covariance.shape[:-1], 1)))[..., 0]
        factor[..., positions] = first / np.sqrt(first[..., :1])
    return factor


def _require_regular(covariance: FloatArray, columns: FloatArray, count: int) -> None:
    """λ_min > c u λ_max for every C (..., columns, c, c): else its inverse has no digit left."""
    eigenvalues = np.linalg.eigvalsh(covariance)
    limit = covariance.shape[-1] * np.finfo(np.float64).eps * eigenvalues[..., -1]
    singular = ~(eigenvalues[..., 0] > limit)
    if singular.any():
        *batch_index, place = (int(axis) for axis in np.argwhere(singular)[0])
        column, pivot = int(columns[place]), float(eigenvalues[(*batch_index, place, 0)])
        raise NotPositiveDefiniteError(
            f"fit: the covariance of column {column} and its {covariance.shape[-1] - 1} neighbours is singular for "
            f"{count} samples (least eigenvalue {pivot:.3g}). Give more samples, or a sparser topology.",
            batch_index=tuple(batch_index),
            column=column,
            pivot=pivot,
        )
