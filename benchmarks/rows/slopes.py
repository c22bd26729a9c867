"""Exact tr Σ over two decades of nodes: the slope of log time against log n, one matrix, float64."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

import sparseggm as sg
from benchmarks.contest import Ratio, Result, Setting
from benchmarks.problems import factor_of, precision_of
from benchmarks.timing import Call, interleaved
from sparseggm import linalg

SIDES = (16, 32, 64, 128, 256)
"""Sides of the square grids."""


def _given_precision(side: int) -> Call:
    topology = sg.Grid(side, side)
    pattern, precision = topology.precision_pattern, precision_of(topology, ())
    return lambda: linalg.trace_inverse(pattern.filled(), linalg.cholesky(pattern, precision))


def _given_factor(side: int) -> Call:
    topology = sg.ExtendedGrid(side, side)
    factor = factor_of(topology, (), np.float64)
    return lambda: linalg.trace_inverse(topology.factor_pattern, factor)


def slope(setting: Setting, name: str, make: Callable[[int], Call]) -> Result:
    """The slope of one family."""
    sides = sorted({setting.size(side, 4 + index) for index, side in enumerate(SIDES)})
    seconds = interleaved({f"m = {side}": make(side) for side in sides}, setting.rounds, setting.seconds)
    fitted = np.polyfit(2.0 * np.log(sides), np.log(list(seconds.values())), 1)[0]
    work = f"exact tr Σ, m × m {name}, m = {sides[0]} … {sides[-1]}, float64"
    return Result(work, seconds, [Ratio("slope of log time against log n", float(fitted), 1.6, "≤", "")])


ROWS = {
    "trace-slope-grid": partial(slope, name="grid given P", make=_given_precision),
    "trace-slope-extended-grid": partial(slope, name="extended grid given L", make=_given_factor),
}
