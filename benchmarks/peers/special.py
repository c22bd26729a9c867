"""Levels by SciPy's normal distribution: a loop over the nodes, each for a whole batch."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import log_ndtr, ndtri_exp

import sparseggm as sg
from benchmarks.contest import Contestant
from benchmarks.problems import Array


def levels_log_prob(pattern: sg.Pattern, loc: Array, factor: Array, ends: Array, uniform: Array) -> Contestant:
    """Sequential truncated samples: ends (2, batch, n) are those of the intervals, lower and upper."""

    def call() -> Any:
        total, x = np.zeros(len(loc)), np.empty(loc.shape)
        for j in range(pattern.n - 1, -1, -1):
            begin, stop = pattern.indptr[j], pattern.indptr[j + 1]
            pivot = factor[:, begin].astype(np.float64)
            pull = (factor[:, begin + 1 : stop] * x[:, pattern.rows[begin + 1 : stop]]).sum(axis=-1)
            a, b = pivot * (ends[:, :, j] - loc[:, j]) + pull
            mirrored = a + b > 0  # so that the lower tail is the lesser
            low, high = log_ndtr(np.where(mirrored, -b, a)), log_ndtr(np.where(mirrored, -a, b))
            mass = high + np.log(-np.expm1(low - high))
            v = np.where(mirrored, 1.0 - uniform[:, j], uniform[:, j])
            e = ndtri_exp(np.logaddexp(low, np.log(v) + mass))
            x[:, j] = (np.where(mirrored, -e, e) - pull) / pivot
            total += mass
        return total

    return Contestant(call, lambda result: [result])
