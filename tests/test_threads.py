"""Threads and forks: calls from many threads and from a forked child work, and results never depend on their number."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparseggm import (
    Chain,
    ExtendedGrid,
    Grid,
    NonFiniteError,
    get_num_threads,
    linalg,
    set_num_threads,
    threads,
)
from sparseggm.linalg.sampling import sample_and_log_prob
from tests import stress_threads
from tests.numerics import Array
from tests.strategies import precision_values
from tests.verbs import VERBS, Verb, arguments

ROOT = Path(__file__).resolve().parents[1]
TOPOLOGIES = {"Chain": Chain(60), "ExtendedGrid": ExtendedGrid(5, 6), "Grid": Grid(5, 6)}
BATCH = (67,)  # not a multiple of a kernel's lanes, nor of the thread counts

each_verb = pytest.mark.parametrize("verb", VERBS.values(), ids=list(VERBS))


@pytest.fixture(autouse=True)
def many_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Even the smallest call is worth a thread, and the number of threads is put back."""
    monkeypatch.setattr(threads, "MIN_WORK", 1)
    yield
    set_num_threads(None)


def run(verb: Verb, name: str, seed: int = 0) -> Any:
    pattern = verb.on(TOPOLOGIES[name].factor_pattern)
    return verb(pattern, arguments(verb, pattern, seed, BATCH))


def test_the_calls_of_this_module_do_use_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    used = set()

    def kernel(first: int, last: int) -> int:
        used.add(threading.get_ident())
        gathered.wait(timeout=30)
        return 0

    gathered = threading.Barrier(3)
    set_num_threads(3)
    assert threads.over_batch(kernel, 1000, batch=BATCH[0]) == 0
    assert len(used) == 3


@pytest.mark.parametrize("name", TOPOLOGIES)
@each_verb
def test_results_do_not_depend_on_the_number_of_threads_by_a_bit(verb: Verb, name: str) -> None:
    set_num_threads(1)
    serial = run(verb, name)
    for count in (2, 3, 7, 100):
        set_num_threads(count)
        np.testing.assert_array_equal(run(verb, name), serial)


@pytest.mark.parametrize("work", [0, 1, 10**12])
@pytest.mark.parametrize("batch", [0, 1, 2, 5, 67])
@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_every_batch_element_is_done_exactly_once(work: int, batch: int, count: int) -> None:
    done: list[int] = []
    set_num_threads(count)
    assert threads.over_batch(lambda first, last: done.extend(range(first, last)) or 0, work, batch=batch) == 0
    assert sorted(done) == list(range(batch))


def test_the_first_failure_is_reported_whichever_thread_finds_it() -> None:
    """Statuses are 1 + the failing row; parts fail independently."""
    set_num_threads(4)
    assert threads.over_batch(lambda first, last: first + 1 if first else 0, 10**12, batch=8) == 3
    pattern = TOPOLOGIES["Chain"].factor_pattern
    values = arguments(VERBS["logdet"], pattern, 0, BATCH)["factor"]
    values[[66, 40, 41], 0] = np.nan
    with pytest.raises(NonFiniteError, match=r"batch element \(40,\)"):
        linalg.logdet(pattern, values)


@pytest.mark.parametrize("count", [1, 3])
def test_concurrent_callers_get_what_they_would_alone(count: int) -> None:
    """Four Python threads, all verbs, shared pool and shared patterns."""
    set_num_threads(count)
    jobs = [(verb, name, seed) for verb in VERBS.values() for name in TOPOLOGIES for seed in range(2)]
    alone = [run(*job) for job in jobs]
    with ThreadPoolExecutor(4) as callers:
        together = list(callers.map(lambda job: run(*job), jobs * 3))
    for expected, value in zip(alone * 3, together, strict=True):
        np.testing.assert_array_equal(value, expected)


def test_changing_the_number_of_threads_during_calls_is_harmless() -> None:
    verb = VERBS["selected_inverse"]
    set_num_threads(2)
    expected = run(verb, "Grid")
    with ThreadPoolExecutor(4) as callers:
        calls = [callers.submit(run, verb, "Grid") for _ in range(100)]
        for count in (1, 4, 2, 7) * 5:
            set_num_threads(count)
        for call in calls:
            np.testing.assert_array_equal(call.result(), expected)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("topology", [Grid(5, 5), Chain(40)], ids=str)
def test_bits_depend_neither_on_threads_nor_on_the_batch_around(topology, dtype: str) -> None:
    """Of verbs that go another way where rows are few: a thread's part of one row is few, that of sixteen is not."""
    rng, count = np.random.default_rng(0), 40
    precision = precision_values(rng, topology.precision_pattern, (count,), "dominant", dtype)
    pattern = topology.precision_pattern.filled()
    factor = linalg.cholesky(topology.precision_pattern, precision)
    loc, noise = rng.standard_normal((2, count, topology.n)).astype(dtype)
    peak = linalg.logdet(pattern, factor, dtype="float64")

    def results(rows: slice) -> tuple[Array, ...]:
        log_det = linalg.precision_logdet(topology.precision_pattern, precision[rows])
        return log_det, *sample_and_log_prob(pattern, None, loc[rows], factor[rows], peak[rows], noise[rows])

    set_num_threads(1)
    expected = results(slice(None))
    for threads_used, size in itertools.product((1, 7, 16), (1, 2, 3, 4, 15, 16, 17, 40)):
        set_num_threads(threads_used)
        for some, all_rows in zip(results(slice(0, size)), expected, strict=True):
            np.testing.assert_array_equal(some, all_rows[:size])


def _child(verb_name: str, name: str, connection: Any) -> None:
    set_num_threads(3)
    connection.send(run(VERBS[verb_name], name))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("name", ["solve_t", "cholesky", "selected_inverse_vjp"])
def test_a_child_forked_after_use_works(name: str) -> None:
    """As a torch DataLoader's worker does: the pool of the parent does not exist there."""
    set_num_threads(3)
    expected = run(VERBS[name], "Grid")
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    child = context.Process(target=_child, args=(name, "Grid", there), daemon=True)
    child.start()
    try:
        assert here.poll(60), "the forked child hangs"
        np.testing.assert_array_equal(here.recv(), expected)
        child.join(60)
        assert child.exitcode == 0
    finally:
        child.kill()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
@pytest.mark.parametrize("layer", stress_threads.LAYERS)
def test_numba_s_threading_layer_does_not_matter(layer: str) -> None:
    """Every verb from four threads at once, and in children forked meanwhile: a few rounds of the stress test."""
    if not stress_threads.is_installed(layer):
        pytest.skip(f"{layer} cannot be loaded here")
    assert "4 rounds" in stress_threads.run_under(layer, rounds=4, fork_every=2)


def test_the_number_of_threads_is_what_was_set_and_at_least_one() -> None:
    set_num_threads(5)
    assert get_num_threads() == 5
    for count in (0, -1, 2.5, 2.0, True, "2", [2], np.float64(2)):
        message = f"set_num_threads: needs an integer of at least 1, or None, got {count!r}."
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            set_num_threads(count)
    assert get_num_threads() == 5
    set_num_threads(np.int64(4))
    assert type(get_num_threads()) is int


def test_a_small_call_stays_in_its_thread_and_asks_nobody_how_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.delattr(threads, "get_num_threads")
    used = []
    threads.over_batch(lambda first, last: used.append(threading.get_ident()) or 0, 16, batch=128)
    assert used == [threading.get_ident()]


LATE = """
import atexit, sys, threading, time
import numpy as np
from sparseggm import Chain, linalg, set_num_threads
from sparseggm import threads

threads.MIN_WORK = 1
set_num_threads(3)
pattern = Chain(8).factor_pattern
L, x = np.tile(pattern.rows == pattern.cols, (64, 1)).astype(float), np.ones((64, 8))

def work():
    assert (linalg.solve_t(pattern, L, x) == x).all()
    print("done", flush=True)

def later():
    threading.main_thread().join()
    time.sleep(0.1)
    work()

def twice():
    later()
    work()

if sys.argv[1] == "used before":
    work()
if sys.argv[2] == "atexit":
    atexit.register(work)
elif sys.argv[2] == "thread":
    threading.Thread(target=twice).start()
else:
    daemon = threading.Thread(target=later, daemon=True)
    daemon.start()
    atexit.register(daemon.join)
"""


@pytest.mark.parametrize("when", ["atexit", "thread", "daemon"])
@pytest.mark.parametrize("before", ["used before", "not used before"])
def test_what_is_called_after_the_main_thread_has_ended_is_done_by_the_caller(before: str, when: str) -> None:
    command = [sys.executable, "-c", LATE, before, when]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("done") == (before == "used before") + (2 if when == "thread" else 1)


def test_where_the_system_gives_no_thread_the_caller_does_all_and_each_part_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The pool keeps the part for which it could not start a thread: it must not be done again, later."""
    done: list[int] = []

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    set_num_threads(4)
    with monkeypatch.context() as limit:
        limit.setattr(threading.Thread, "start", refuse)
        assert threads.over_batch(lambda first, last: done.extend(range(first, last)) or 0, 10**12, batch=8) == 0
    assert sorted(done) == list(range(8))
    threads._ensure_pool().submit(int).result(timeout=30)  # a thread works off what the pool has kept
    assert sorted(done) == list(range(8))


def test_an_interrupted_caller_waits_for_the_threads_that_write_to_its_memory() -> None:
    """Kernels of a step write to addresses, which nothing but the caller keeps alive."""
    began, ended = threading.Event(), threading.Event()

    def kernel(first: int, last: int) -> int:
        if first == 0:
            began.wait(timeout=30)
            raise KeyboardInterrupt
        began.set()
        time.sleep(0.2)
        ended.set()
        return 0

    set_num_threads(2)
    with pytest.raises(KeyboardInterrupt):
        threads.over_batch(kernel, 10**12, batch=2)
    assert ended.is_set()
