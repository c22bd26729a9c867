"""Maximum likelihood of a sparse factor in closed form, column by column."""

from __future__ import annotations

import numpy as np

from sparseggm import checks
from sparseggm.errors import NotPositiveDefiniteError
from sparseggm.pattern import FloatArray, IntArray
from sparseggm.topology import Topology


def columns_of_factor(topology: Topology, centred: FloatArray) -> FloatArray:
    """The L on `topology.factor_pattern` whose Gaussian is most likely for centred samples, in float64.

    Column j is a regression on its own: with C the empirical covariance of S_j = {j, later rows of column j},
        L_{S_j, j} = C⁻¹ e₁ / √(e₁ᵀ C⁻¹ e₁).
    Solved for standardised samples, C = S R S with R the empirical correlation, so that units do not matter; columns of
    equal length together.

    Args:
        topology: factor-free.
        centred: (..., N, n) samples less their mean, in elimination order.
    Raises:
        NotPositiveDefiniteError: an R is singular to working precision.
    """
    pattern, count = topology.factor_pattern, centred.shape[-2]
    scale = np.sqrt(np.einsum("...ni,...ni->...i", centred, centred) / count)
    standard = centred / np.where(scale > 0, scale, 1.0)[..., None, :]
    lengths = np.diff(pattern.indptr)
    factor = np.empty((*centred.shape[:-2], pattern.nnz))
    for length in np.unique(lengths):
        columns = np.flatnonzero(lengths == length)
        positions = pattern.indptr[columns, None] + np.arange(length)
        x = standard[..., pattern.rows[positions]]  # (..., N, columns, length)
        correlation = np.einsum("...nca,...ncb->...cab", x, x) / count
        _require_regular(correlation, topology, columns, count)
        unit = np.zeros((length, 1))
        unit[0] = 1.0
        first = np.linalg.solve(correlation, np.broadcast_to(unit, (*correlation.shape[:-1], 1)))[..., 0]
        factor[..., positions] = first / np.sqrt(first[..., :1]) / scale[..., pattern.rows[positions]]
    return factor


def _require_regular(correlation: FloatArray, topology: Topology, columns: IntArray, count: int) -> None:
    """λ_min > c u λ_max for every R (..., columns, c, c): else its inverse has no digit left."""
    eigenvalues = np.linalg.eigvalsh(correlation)
    limit = correlation.shape[-1] * np.finfo(np.float64).eps * eigenvalues[..., -1]
    singular = ~(eigenvalues[..., 0] > limit)
    if singular.any():
        *batch_index, place = (int(axis) for axis in np.argwhere(singular)[0])
        column, pivot = int(columns[place]), float(eigenvalues[(*batch_index, place, 0)])
        raise NotPositiveDefiniteError(
            f"fit: the correlation of {topology.describe(int(topology.order[column]))} and its "
            f"{correlation.shape[-1] - 1} later neighbours is singular for {count} samples (least eigenvalue "
            f"{pivot:.3g}){checks.in_batch(tuple(batch_index))}. Give more samples, or a sparser topology.",
            batch_index=tuple(batch_index),
            column=column,
            pivot=pivot,
        )
