"""Interleaved timing, and the bandwidth that bounds everything that moves more than it computes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np

Contestants = dict[str, Callable[[], object]]


def interleaved(contestants: Contestants, rounds: int, seconds: float) -> dict[str, float]:
    """Median seconds a call of each contestant; every round lets each run for `seconds` in turn."""
    repeats = {}
    for name, call in contestants.items():
        call()  # compile, allocate, warm the caches
        start = time.perf_counter()
        call()
        repeats[name] = max(1, int(seconds / max(time.perf_counter() - start, 1e-7)))
    rounds_of: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, call in contestants.items():
            start = time.perf_counter()
            for _ in range(repeats[name]):
                call()
            rounds_of[name].append((time.perf_counter() - start) / repeats[name])
    return {name: statistics.median(times) for name, times in rounds_of.items()}


def copy_bandwidth(rounds: int) -> float:
    """Bytes moved a second (read + written) when one thread copies an array too large for the caches."""
    source = np.ones(2**25)
    target = np.empty_like(source)
    median = interleaved({"copy": lambda: np.copyto(target, source)}, rounds, 0.05)["copy"]
    return 2 * source.nbytes / median
