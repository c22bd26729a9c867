"""Locks and caches across a fork. Only the forking thread lives on in the child: locks of others would stay locked."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable


def in_child(renew: Callable[[], None]) -> None:
    """Call `renew` in every forked child, before anything else runs there."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=renew)


def wait_for(acquire: Callable[[], object], release: Callable[[], object]) -> None:
    """Let a fork wait for a reentrant lock, so that the state it guards is never copied half made."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=acquire, after_in_parent=release, after_in_child=release)


class Lock:
    """A reentrant lock that a forked child finds free. It guards single steps; between them the state is consistent.

    The lock is reentrant, because garbage collection inside it may ask for it again.
    """

    def __init__(self) -> None:
        self._renew()
        in_child(self._renew)

    def _renew(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *failure: object) -> None:
        self._lock.release()
