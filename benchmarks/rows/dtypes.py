"""Every verb in float32 against float64: half the bytes should never take longer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

import sparseggm as sg
from benchmarks.contest import Ratio, Result, Setting
from benchmarks.timing import Call, interleaved
from tests.verbs import VERBS, Verb, arguments

LEAST_SECONDS = 100e-6
"""Work that takes less time in float64 is mostly overhead, and is shown without a goal."""


def call_of(verb: Verb, topology: sg.Topology, batch: int, dtype: Any) -> Call:
    """A call of a verb on the pattern of L, or on its fill where the verb needs a closed pattern."""
    pattern = topology.factor_pattern.filled() if verb.needs_closed else topology.factor_pattern
    operands = arguments(verb, pattern, 0, (batch,), dtype=dtype)
    return lambda: verb(pattern, operands)


def compare(setting: Setting, make: Callable[[int], sg.Topology]) -> Result:
    """Time in float32 over time in float64, each pair interleaved."""
    topology, batch = make(setting.size(28)), setting.size(128)
    seconds: dict[str, float] = {}
    ratios = []
    for name, verb in VERBS.items():
        calls = {
            f"{name}, {np.dtype(dtype)}": call_of(verb, topology, batch, dtype) for dtype in (np.float32, np.float64)
        }
        single, double = (measured := interleaved(calls, setting.rounds, setting.seconds)).values()
        seconds |= measured
        goal = 1.05 if double >= LEAST_SECONDS else None
        ratios.append(Ratio(f"of float64's time, {name}", single / double, goal, "≤"))
    return Result(f"every verb in float32, {topology}, batch {batch}", seconds, ratios)


ROWS = {
    "dtype-chain": partial(compare, make=lambda side: sg.Chain(side * side)),
    "dtype-extended-grid": partial(compare, make=lambda side: sg.ExtendedGrid(side, side)),
    "dtype-grid": partial(compare, make=lambda side: sg.Grid(side, side)),
}
