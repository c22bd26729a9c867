"""Sharing a kernel call among threads.

Kernels release the GIL and take the part `first, last` of the batch to do, so a plain thread pool serves: no
threading layer to abort on concurrent or forked use, no thread that spins while idle. Waking a thread costs some
tens of microseconds, so calls below `MIN_WORK` run in the caller. Batch elements never share arithmetic:
results do not depend on the number of threads.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

MIN_WORK = 1 << 19
"""Multiply-adds a thread must be given before it is worth waking: about a tenth of a millisecond."""

LANES = 16
"""Parts of a large batch begin at multiples of this, so that no thread but the last has lanes to spare."""

_num_threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
_pool: ThreadPoolExecutor | None = None


def set_num_threads(count: int) -> None:
    """Threads that one call may use, at least 1. At start: the cores this process may run on."""
    if count < 1:
        raise ValueError(f"set_num_threads: needs at least 1, got {count}.")
    global _num_threads
    _num_threads = count
    _forget_pool()


def get_num_threads() -> int:
    """Threads that one call may use."""
    return _num_threads


def run(kernel: Callable[..., int], work: int, *args: Any, batch: int) -> int:
    """kernel(*args, first, last) over a batch of `batch` elements of `work` multiply-adds; the worst status."""
    parts = min(_num_threads, batch, 1 + work * batch // (2 * MIN_WORK))
    if parts < 2:
        return int(kernel(*args, 0, batch)) if batch else 0
    grain = LANES if batch >= parts * LANES else 1
    bounds = [part * batch // parts // grain * grain for part in range(parts)] + [batch]
    others = [_ensure_pool().submit(kernel, *args, *bounds[part : part + 2]) for part in range(1, parts)]
    statuses = [kernel(*args, *bounds[:2]), *(other.result() for other in others)]
    return int(min((status for status in statuses if status), default=0))


def _ensure_pool() -> ThreadPoolExecutor:
    global _pool
    if _pool is None:
        _pool = ThreadPoolExecutor(_num_threads, thread_name_prefix="sparseggm")
    return _pool


def _forget_pool() -> None:
    """The next call makes its own: threads do not survive a fork. Running calls keep the old pool until they end."""
    global _pool
    _pool = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)
