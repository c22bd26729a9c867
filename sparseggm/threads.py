"""Sharing a kernel call among threads.

Kernels release the GIL and take the part `first, last` of the batch to do, so a plain thread pool serves: no
threading layer to abort on concurrent or forked use, no thread that spins while idle. Waking a thread costs some
tens of microseconds, so calls below twice `MIN_WORK` run in the caller. Batch elements never share arithmetic:
results do not depend on the number of threads.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

from sparseggm import cores, forks

MIN_WORK = 1 << 20
"""Multiply-adds for which waking a thread is worthwhile, about a fifth of a millisecond: the least part of each."""

LANES = 16
"""Parts of a large batch begin at multiples of this, so that only the last thread has unused lanes."""

_given: int | None = None
_overrules = False  # whether the given number overrules the limits of the process; not in a forked child
_pool: ThreadPoolExecutor | None = None


def set_num_threads(count: int | None) -> None:
    """Set the number of threads that one call may use, at least 1. None, the default: as many as the process may use.

    The process may use the cores of its affinity and of its container's quota, and no more threads than torch's number
    where torch is loaded, or OMP_NUM_THREADS where it is not. A given number overrules these limits in this process; in
    a forked child it is one limit among them.
    """
    if count is not None and (isinstance(count, bool) or not hasattr(count, "__index__") or count < 1):
        raise ValueError(f"set_num_threads: needs an integer of at least 1, or None, got {count!r}.")
    global _given, _overrules
    _given, _overrules = None if count is None else int(count), count is not None
    _forget_pool()


def get_num_threads() -> int:
    """The number of threads that one call may use now."""
    if _given is None:
        return _allowed()
    return _given if _overrules else min(_given, _allowed())


def _allowed() -> int:
    torch_number = getattr(sys.modules.get("torch"), "get_num_threads", None)  # that of a DataLoader's worker is 1
    return min(_cores(), torch_number() if torch_number else cores.omp_num_threads())


@functools.cache
def _cores() -> int:
    return cores.allowed_cores()


def over_batch(kernel: Callable[..., int], work: int, *args: Any, batch: int) -> int:
    """Call kernel(*args, first, last) over `batch` elements of `work` multiply-adds each; returns the worst status."""
    parts = min(batch, 1 + work * batch // (2 * MIN_WORK))
    if parts > 1:
        parts = min(parts, get_num_threads())
    if parts < 2:
        return int(kernel(*args, 0, batch)) if batch else 0
    grain = LANES if batch >= parts * LANES else 1
    bounds = [part * batch // parts // grain * grain for part in range(parts)] + [batch]
    others = [_Part(functools.partial(kernel, *args, *bounds[part : part + 2])) for part in range(1, parts)]
    with contextlib.suppress(RuntimeError):  # no thread can start, or the interpreter ends: the caller does all parts
        for part in others:
            _ensure_pool().submit(part.run)
    try:
        statuses = [kernel(*args, *bounds[:2]), *(part.status() for part in others)]
    finally:  # an interrupted caller must not free memory that a thread still writes to
        wait([part for part in others if not part.cancel()])
    return int(min((status for status in statuses if status), default=0))


class _Part(Future[int]):
    """A part of the batch, done by a thread of the pool, or by the caller if no thread has begun it."""

    def __init__(self, call: Callable[[], int]) -> None:
        super().__init__()
        self.call = call

    def run(self) -> None:
        """Do the part in a thread of the pool."""
        if self.set_running_or_notify_cancel():
            try:
                self.set_result(self.call())
            except BaseException as failure:
                self.set_exception(failure)
                raise

    def status(self) -> int:
        """The status of the part; called in the caller, who does the part if no thread has begun it."""
        return self.call() if self.cancel() else self.result()


def _ensure_pool() -> ThreadPoolExecutor:
    global _pool
    pool = _pool or ThreadPoolExecutor(_given or _cores(), thread_name_prefix="sparseggm")
    _pool = pool  # another thread may forget it at any time
    return pool


def _forget_pool() -> None:
    """Let the next call make a new pool. Running calls keep the old one until they end."""
    global _pool
    _pool = None


def _renew() -> None:
    """Start afresh in a forked child: threads do not survive a fork, and the child may be given fewer cores."""
    global _overrules
    _overrules = False
    _cores.cache_clear()
    _forget_pool()


forks.in_child(_renew)
