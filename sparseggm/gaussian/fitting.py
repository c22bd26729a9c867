"""Moments of samples, and the maximum likelihood of a sparse factor in closed form, column by column.

Samples are read in chunks, so that memory beside them is bounded: see `CHUNK_VALUES`. Samples that are made chunk by
chunk, and never exist at once, are summed by `SampleMoments`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from sparseggm.errors import NotPositiveDefiniteError
from sparseggm.graph.pattern import FloatArray, IntArray, Pattern
from sparseggm.graph.topology import Topology
from sparseggm.linalg import checks
from sparseggm.positivity.namespace import Array, array_namespace, mask, readable, scatter, take

CHUNK_VALUES = 1 << 22
"""Numbers in one array of centred samples, or of correlations: 8 MiB in float64."""

BLOCK = 32
"""Number of columns of the moments that one product of matrices forms."""


def mean_and_covariance(topology: Topology, samples: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The mean (..., n), in the caller's numbering, and C (..., nnz) on `topology.precision_pattern`, in float64.

    Args:
        samples: (..., N, n), of any real dtype.
    Raises:
        NonFiniteError: a sample is not finite, or a moment is beyond float64.
    Memory: C, and a few chunks.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        mean = samples.mean(axis=-2, dtype=np.float64)
        covariance = covariance_on(topology.precision_pattern, topology.order, samples, mean)
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        checks.raise_cause("fit", {"samples": (None, samples)})
    return mean, covariance


def covariance_on(pattern: Pattern, order: IntArray, samples: FloatArray, mean: FloatArray) -> FloatArray:
    """C_ij = mean of (x_i − mean_i)(x_j − mean_j) for every entry of a pattern, (..., nnz), in float64.

    One product of matrices forms a block of columns; only its entries on the pattern are kept.
    """
    *batch, count, n = samples.shape
    rows, means = samples.reshape(-1, count, n), mean.reshape(-1, n)
    sums = np.zeros((len(rows), pattern.nnz))
    blocks = [_block(pattern, first) for first in range(0, n, BLOCK)]
    for elements in parts(len(rows), count * n):
        for chunk in parts(count, n * (elements.stop - elements.start)):
            x = rows[elements, chunk] - means[elements, None]
            x = np.ascontiguousarray(np.swapaxes(x, -1, -2).take(order, axis=-2))  # (elements, n, chunk)
            for columns, stored, later, i, j in blocks:
                product = x[:, later] @ np.swapaxes(x[:, columns], -1, -2)
                sums[elements, stored] += product[:, i, j]
    return np.asarray(sums / count).reshape(*batch, pattern.nnz)


class SampleMoments:
    """Mean and covariance of samples that come in chunks; memory of the covariance on `topology.precision_pattern`.

    Args:
        topology: factor-free.
        about: (n,) a guess of the mean; a sum is one of differences from it, so that few digits cancel.
    """

    def __init__(self, topology: Topology, about: FloatArray) -> None:
        self._topology, self._about = topology, about
        self._sum, self._products = np.zeros(topology.n), np.zeros(topology.precision_pattern.nnz)
        self.count = 0.0

    def add(self, samples: FloatArray) -> None:
        """Add samples (N, n)."""
        pattern, order = self._topology.precision_pattern, self._topology.order
        self._sum += (samples - self._about).sum(axis=0)
        self._products += len(samples) * covariance_on(pattern, order, samples, self._about)
        self.count += len(samples)

    def add_independent(self, count: float, mean: float, variance: float) -> None:
        """Add the moments of `count` samples of independent nodes, which need not be a whole number."""
        pattern, shift = self._topology.precision_pattern, mean - self._about
        self._sum += count * shift
        self._products += count * self._outer(shift)
        self._products[pattern.diagonal] += count * variance
        self.count += count

    @property
    def mean(self) -> FloatArray:
        """(n,), in the caller's numbering."""
        return np.asarray(self._about + self._sum / self.count)

    @property
    def covariance(self) -> FloatArray:
        """(nnz,) on `topology.precision_pattern`."""
        return np.asarray(self._products / self.count - self._outer(self._sum / self.count))

    def factor(self) -> FloatArray:
        """The most likely L on `topology.factor_pattern`; raises as `mean_and_factor`."""
        return columns_of_factor(self._topology, self.covariance, of_samples(round(self.count)))  # type: ignore[no-any-return]

    def _outer(self, x: FloatArray) -> FloatArray:
        pattern, x = self._topology.precision_pattern, x.take(self._topology.order)
        return np.asarray(x[pattern.rows] * x[pattern.cols])


def _block(pattern: Pattern, first: int) -> tuple[Any, ...]:
    """A block of columns, its packed entries, their distinct rows, and each entry's place among rows and columns."""
    columns = slice(first, min(first + BLOCK, pattern.n))
    stored = slice(int(pattern.indptr[columns.start]), int(pattern.indptr[columns.stop]))
    rows, places = np.unique(pattern.rows[stored], return_inverse=True)
    return columns, stored, rows, places, pattern.cols[stored] - first


def parts(count: int, values_each: int) -> Iterator[slice]:
    """Slices of range(count), each as long as `CHUNK_VALUES` allows."""
    chunk = max(1, CHUNK_VALUES // max(1, values_each))
    return (slice(first, min(first + chunk, count)) for first in range(0, count, chunk))


class Words(NamedTuple):
    """What errors about moments say."""

    function: str
    given: str
    """Where the moments come from."""
    remedy: str


def of_samples(count: int) -> Words:
    """The words of `fit` for moments of so many samples."""
    return Words("fit", f"{count} samples", "Give more samples, or a sparser topology.")


def columns_of_factor(topology: Topology, covariance: Array, words: Words, pattern: Pattern | None = None) -> Array:
    """L (..., nnz) from the moments C on `topology.precision_pattern`, which holds the pairs of every column.

    Each column j is a separate regression: with C that of S_j = {j, later rows of column j},
        L_{S_j, j} = C⁻¹ e₁ / √(e₁ᵀ C⁻¹ e₁).
    It is solved with the correlations R, C = S R S, so that units do not matter; columns of equal length go together.

    Args:
        covariance: (..., nnz) array or tensor in float64; L is of the same kind, and differentiable.
        pattern: of L; None: `topology.factor_pattern`.
    Raises:
        NotPositiveDefiniteError: an R is singular to working precision.
    """
    pattern, moments, xp = pattern or topology.factor_pattern, topology.precision_pattern, array_namespace(covariance)
    variance = take(covariance, moments.diagonal)
    scale = xp.sqrt(xp.where(variance > 0.0, variance, 1.0))
    parts = []
    for columns, positions, pairs in columns_alike(pattern, moments, math.prod(covariance.shape[:-1])):
        units = take(scale, pattern.rows[positions])
        correlation = take(covariance, pairs) / (units[..., :, None] * units[..., None, :])
        _require_regular(readable(correlation), topology, columns, words)
        values = _first_column(correlation) / units
        parts.append((positions.ravel(), values.reshape(*covariance.shape[:-1], positions.size)))
    return scatter(parts, pattern.nnz)


def columns_alike(
    pattern: Pattern, on: Pattern, batch: int, least: int = 1
) -> Iterator[tuple[IntArray, IntArray, IntArray]]:
    """Columns of one length c ≥ `least`, as many at a time as `CHUNK_VALUES` allows for a batch.

    Returns:
        the columns (k,), the places (k, c) of their entries, and those of the pairs of their rows on `on`, (k, c, c).
    """
    lengths = np.diff(pattern.indptr)
    for length in np.unique(lengths[lengths >= least]):
        alike = np.flatnonzero(lengths == length)
        for part in parts(len(alike), length**2 * batch):
            positions = np.asarray(pattern.indptr[alike[part], None] + np.arange(length), np.int64)
            rows = pattern.rows[positions]
            yield alike[part], positions, on.positions_between(rows[:, :, None], rows[:, None, :])


def _first_column(correlation: Array) -> Array:
    """R⁻¹ e₁ / √(e₁ᵀ R⁻¹ e₁), (..., c), for each R (..., c, c)."""
    xp, unit = array_namespace(correlation), mask(correlation, np.eye(correlation.shape[-1], 1))
    first = xp.linalg.solve(correlation, xp.broadcast_to(unit, (*correlation.shape[:-1], 1)))[..., 0]
    return first / xp.sqrt(first[..., :1])


def _require_regular(correlation: FloatArray | None, topology: Topology, columns: IntArray, words: Words) -> None:
    """Require λ_min > c u λ_max for every R (..., columns, c, c); otherwise no digit of its inverse would be right."""
    if correlation is None:  # unknown in a trace
        return
    eigenvalues = np.linalg.eigvalsh(correlation)
    limit = correlation.shape[-1] * np.finfo(np.float64).eps * eigenvalues[..., -1]
    singular = ~(eigenvalues[..., 0] > limit)
    if singular.any():
        *batch_index, place = (int(axis) for axis in np.argwhere(singular)[0])
        column, pivot = int(columns[place]), float(eigenvalues[(*batch_index, place, 0)])
        raise NotPositiveDefiniteError(
            f"{words.function}: the correlation of {topology.describe(int(topology.order[column]))} and its "
            f"{correlation.shape[-1] - 1} later neighbours is singular for {words.given} (least eigenvalue "
            f"{pivot:.3g}){checks.in_batch(tuple(batch_index))}. {words.remedy}",
            batch_index=tuple(batch_index),
            column=column,
            pivot=pivot,
        )
