"""Interleaved timing; a copy of memory, whose speed bounds all memory-bound work; peak memory."""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np

import sparseggm as sg

Call = Callable[[], object]

SECONDS_FOR_SLOW = 20.0
"""A contestant whose rounds would together take more seconds runs in fewer rounds, at least one."""

COPIED = 2**26
"""Bytes of the copy that measures the bandwidth of memory: many times any cache."""


def interleaved(contestants: dict[str, Call], rounds: int, seconds: float) -> dict[str, float]:
    """Median seconds a call of each contestant; every round lets each run for `seconds` in turn.

    So other work of the machine slows all contestants alike.
    """
    repeats, rounds_of = {}, {}
    for name, call in contestants.items():
        once = seconds_of(call)  # compile, allocate, warm the caches
        if once < SECONDS_FOR_SLOW / 4:
            once = seconds_of(call)
        repeats[name] = max(1, int(seconds / max(once, 1e-7)))
        rounds_of[name] = max(1, min(rounds, int(SECONDS_FOR_SLOW / (once * repeats[name]))))
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(rounds):
        for name, call in contestants.items():
            if turn < rounds_of[name]:
                times[name].append(seconds_of(call, repeats[name]))
    return {name: statistics.median(of) for name, of in times.items()}


def seconds_of(call: Call, repeats: int = 1) -> float:
    """Mean seconds of a call."""
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


@cache
def copy(threads: int, size: int = COPIED) -> Call:
    """A call that copies `size` bytes to memory already in use, a part by each thread: 2 `size` bytes move."""
    source = np.ones(size, np.uint8)
    target = np.zeros_like(source)
    bounds = [thread * size // threads for thread in range(threads + 1)]
    parts = [slice(*bounds[thread : thread + 2]) for thread in range(threads)]
    if threads == 1:
        return lambda: np.copyto(target, source)
    pool = ThreadPoolExecutor(threads)  # copyto releases the GIL
    return lambda: list(pool.map(lambda part: np.copyto(target[part], source[part]), parts))


def peak_memory(call: Call) -> int | None:
    """Bytes by which the resident memory of this process rose at most during a call; None but on Linux with glibc."""
    clear, status, libc = Path("/proc/self/clear_refs"), Path("/proc/self/status"), ctypes.CDLL(None)
    if not (clear.exists() and hasattr(libc, "malloc_trim")):
        return None
    call()  # so that first-time allocations do not count
    sg.release_memory()  # nor must this call use memory that we or the C library kept
    libc.malloc_trim(0)
    clear.write_text("5")  # resets the peak
    before = _kilobytes(status, "VmRSS")
    call()
    return 1024 * (_kilobytes(status, "VmHWM") - before)


def _kilobytes(status: Path, name: str) -> int:
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(name))
