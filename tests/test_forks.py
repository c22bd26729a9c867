"""A child that is forked whatever other threads are doing: it works, or the fork waits until they are done.

    python -m tests.test_forks

holds every lock of the package in turn, forks meanwhile, and lets the child use everything.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import pkgutil
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CellType, FunctionType, ModuleType, SimpleNamespace
from typing import Any

import numba
import numpy as np
import pytest

import sparseggm as sg
from sparseggm import Grid, linalg, set_num_threads, threads
from sparseggm.kernels.lanes.blocks import UNCACHED
from sparseggm.linalg import memory

ROOT = Path(__file__).resolve().parent.parent
SECONDS_TO_HANG = 20.0

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")

PRIMITIVE = (type(threading.Lock()), type(threading.RLock()))
OWNERS = ("sparseggm", "functools", "threading", "queue", "weakref", "concurrent.futures", "numba.core.compiler_lock")
"""Modules whose classes may have a lock that matters to us: those of the package, and those that it builds on."""


def locks_in(*modules: ModuleType) -> dict[str, Any]:
    """Every lock that variables of the modules lead to: through containers, classes, instances and closures."""
    found: dict[str, Any] = {}
    stack = [(module.__name__, vars(module)) for module in modules]
    seen: dict[int, Any] = {}  # keeps what it has seen alive, so that no number returns
    while stack:
        name, thing = stack.pop()
        if id(thing) in seen:
            continue
        seen[id(thing)] = thing
        if isinstance(thing, PRIMITIVE):
            found[name] = thing
        else:
            stack += [(f"{name}.{part}", child) for part, child in parts_of(thing)]
    return found


def parts_of(thing: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(thing, dict):
        yield from list(thing.items())
    elif isinstance(thing, list | tuple | set | frozenset):
        yield from enumerate(thing)
    elif isinstance(thing, CellType):
        yield "cell", thing.cell_contents
    elif isinstance(thing, FunctionType):
        yield from enumerate(thing.__closure__ or ())
    else:
        of_class = thing if isinstance(thing, type) else type(thing)
        if of_class.__module__.startswith(OWNERS) and hasattr(thing, "__dict__"):
            yield from list(vars(thing).items())


def all_modules() -> list[ModuleType]:
    """Of the package, its torch layer and its command, in every one of which a lock may be made."""
    names = {module.name for module in pkgutil.walk_packages(sg.__path__, "sparseggm.")} - {"sparseggm.__main__"}
    optional = {
        "pyro": ("sparseggm.pyro",),
        "torch": ("sparseggm.torch", "sparseggm.pyro", "sparseggm.vae", "sparseggm.cli"),
    }
    absent = tuple(name for package in optional if not importlib.util.find_spec(package) for name in optional[package])
    return [importlib.import_module(name) for name in sorted(names) if not name.startswith(absent)]


# ---------------------------------------------------------------------- in a process of its own


def use_everything(number: int) -> None:
    """An order, a fill and patterns that are new; a kernel, the pool, memory of large results, and a compilation."""
    pattern = Grid(3, 4 + number).factor_pattern
    values, rhs = np.tile(pattern.rows == pattern.cols, (64, 1)).astype(float), np.ones((64, pattern.n))
    np.testing.assert_array_equal(linalg.solve_t(pattern, values, rhs), rhs)
    memory.empty((UNCACHED,), "float64")
    assert numba.njit(lambda x: x + 1)(number) == number + 1


def child_status(number: int) -> int | None:
    """Of a child that uses everything; None if it hangs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12: a fork beside threads
        child = os.fork()
    if child == 0:
        set_num_threads(2)
        use_everything(number)
        os._exit(0)
    end = time.monotonic() + SECONDS_TO_HANG
    while time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        time.sleep(0.01)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return None


def meanwhile(work: Callable[[], None], number: int) -> int | None:
    """`child_status` of a child that is forked while a thread works."""
    worker = threading.Thread(target=work)
    worker.start()
    time.sleep(0.1)
    assert worker.is_alive(), "the work must outlast the fork"
    status = child_status(number)
    worker.join()
    return status


def hold(lock: Any) -> None:
    held = lock.acquire(blocking=False)  # some are held for good, as that of every running thread
    time.sleep(0.5)
    if held:
        lock.release()


def main() -> None:
    threads.MIN_WORK = 1  # even the smallest call is worth a thread
    set_num_threads(2)
    modules = all_modules()
    use_everything(0)
    assert threads._pool is not None
    cases = {name: lambda lock=lock: hold(lock) for name, lock in locks_in(*modules).items()}
    cases["a slow order"] = lambda: Grid(2000, 2000).order
    cases["a compilation"] = lambda: sum(numba.njit(lambda x, k=k: x + k)(1) for k in range(30))
    for number, (name, work) in enumerate(cases.items(), 1):
        status = meanwhile(work, number)
        print(f"{name}: {'hangs' if status is None else status}", flush=True)
        if status != 0:
            sys.exit(1)


# ---------------------------------------------------------------------- tests


def test_a_child_forked_while_a_thread_holds_any_lock_works() -> None:
    command = [sys.executable, "-m", "tests.test_forks"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("pattern._intern_lock._lock", "memory._lock._lock", "a slow order", "a compilation"):
        assert f"{name}: 0\n" in done.stdout
    assert "compiler_lock._lock: 0\n" in done.stdout


def test_locks_are_found_wherever_they_are_made() -> None:
    here = [threading.Lock() for _ in range(6)]

    class Holder:
        of_class, of_instance = here[0], None

    holder = Holder()
    holder.of_instance, Holder.__module__ = here[1], "sparseggm.example"
    condition, closure = threading.Condition(here[2]), (lambda lock: lambda: lock)(here[3])
    module = ModuleType("sparseggm.example")
    vars(module).update(
        plain=here[4], inside=[{"key": (here[5],)}], condition=condition, closure=closure, holder=holder, kind=Holder
    )
    assert {id(lock) for lock in here} == {id(lock) for lock in locks_in(module).values()}
    assert not locks_in(SimpleNamespace(__name__="foreign", numbers=[1, 2.0, "three"]))


if __name__ == "__main__":
    main()
