"""SciPy's LAPACK routines for bands and tridiagonals, with a pool of threads over the batch."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from scipy.linalg import lapack

import sparseggm as sg
from benchmarks.contest import Contestant
from benchmarks.problems import Array


def over_batch(one: Callable[[int], None], result: Array) -> Contestant:
    """Call `one(element)`, which fills `result`, for the whole batch, a part in each thread."""
    threads, batch = sg.get_num_threads(), len(result)
    pool = ThreadPoolExecutor(threads)
    bounds = [thread * batch // threads for thread in range(threads + 1)]

    def part(first: int, last: int) -> None:
        for element in range(first, last):
            one(element)

    def call() -> Array:
        list(pool.map(part, bounds[:-1], bounds[1:]))
        return result

    return Contestant(call, lambda filled: [filled])


def solve_t(pattern: sg.Pattern, factor: Array, noise: Array) -> Contestant:
    """Lᵀ x = ε by tbtrs on each band."""
    solve = lapack.stbtrs if factor.dtype == np.float32 else lapack.dtbtrs
    bands = by_column(pattern.to_banded(factor))
    result = np.empty_like(noise)

    def one(element: int) -> None:
        x, info = solve(bands[element], noise[element], uplo="L", trans="T")
        assert info == 0
        result[element] = x

    return over_batch(one, result)


def by_column(matrices: Array) -> Array:
    """The same values, each matrix in Fortran's order, which LAPACK reads without a copy."""
    return np.ascontiguousarray(matrices.swapaxes(-1, -2)).swapaxes(-1, -2)


def band_of(topology: sg.Topology, precision: Array) -> Array:
    """(batch, bandwidth + 1, n) lower band of P in the caller's numbering, in which the band is narrower."""
    diagonal, couplings = topology.unpack(precision)
    upper_ends, lower_ends = topology.edges.max(1), topology.edges.min(1)
    offsets = upper_ends - lower_ends
    band = np.zeros((len(precision), offsets.max() + 1, topology.n))
    band[:, 0] = diagonal
    band[:, offsets, lower_ends] = couplings
    return by_column(band)


def logdet(topology: sg.Topology, precision: Array) -> Contestant:
    """log det P by pbtrf on each band."""
    bands, result = band_of(topology, precision), np.empty(len(precision))

    def one(element: int) -> None:
        factor, info = lapack.dpbtrf(bands[element], lower=1)
        assert info == 0
        result[element] = 2.0 * np.log(factor[0]).sum()

    return over_batch(one, result)


def tridiagonal_solve(diagonal: Array, couplings: Array, rhs: Array) -> Contestant:
    """log det P and x = P⁻¹ b of one chain, by pttrf and pttrs."""

    def call() -> Any:
        d, e, info = lapack.dpttrf(diagonal, couplings)
        assert info == 0
        x, info = lapack.dpttrs(d, e, rhs)
        assert info == 0
        return np.log(d).sum(), x

    return Contestant(call)
