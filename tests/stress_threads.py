"""Threads and forks under load: every verb from four Python threads at once, and in children forked meanwhile.

    python -m tests.stress_threads --rounds 1000

Runs itself once for each `NUMBA_THREADING_LAYER` that is installed, with its threads started by a function that is none
of ours (our kernels use no layer: it must not matter). Every result is compared with the serial one, bit by bit, and a
hang is a failure: a watchdog prints where each thread stands and ends the process.
"""

from __future__ import annotations

import argparse
import faulthandler
import multiprocessing
import os
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np

from sparseggm import Chain, ExtendedGrid, Grid, set_num_threads, threads
from tests.numerics import Array
from tests.verbs import VERBS, arguments

LAYERS = {"workqueue": "workqueue", "omp": "omppool", "tbb": "tbbpool"}
"""Numba's threading layers, and the modules that they are."""
CALLERS, BATCH, POOL = 4, 67, 3
"""Threads that call; batch elements, not a multiple of a kernel's lanes; threads that one call uses."""
SECONDS_TO_HANG = 300

Job = tuple[str, str]
TOPOLOGIES = {"Chain": Chain(60), "ExtendedGrid": ExtendedGrid(5, 6), "Grid": Grid(5, 6)}
JOBS: list[Job] = [(verb, name) for verb in VERBS for name in TOPOLOGIES]


class WrongError(Exception):
    """A result differs from the serial one, a call did not use the pool, or a child did not return."""


def is_installed(layer: str) -> bool:
    """Whether the layer can be loaded: wheels of Numba hold all three, but not the library of tbb."""
    code = f"import numba.np.ufunc.{LAYERS[layer]}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def start_numba_threads() -> None:
    """Load the layer that the environment names, as a caller's own parallel functions would."""

    @numba.njit(parallel=True)
    def total(x: Array) -> float:
        result = 0.0
        for i in numba.prange(len(x)):
            result += x[i]
        return result

    assert total(np.ones(1000)) == 1000.0
    if numba.threading_layer() != os.environ["NUMBA_THREADING_LAYER"]:
        raise WrongError(f"the layer is {numba.threading_layer()}, not {os.environ['NUMBA_THREADING_LAYER']}.")


class Stress:
    """Arguments and serial results of every verb on every topology, and rounds of them in parallel."""

    def __init__(self) -> None:
        threads.MIN_WORK = 1  # even the smallest call is worth a thread
        self.inputs = {job: self._inputs(*job) for job in JOBS}
        set_num_threads(1)
        self.serial = {job: self.call(job) for job in JOBS}
        set_num_threads(POOL)

    @staticmethod
    def _inputs(verb: str, name: str) -> tuple[Any, dict[str, Array]]:
        pattern = VERBS[verb].on(TOPOLOGIES[name].factor_pattern)
        return pattern, arguments(VERBS[verb], pattern, 0, (BATCH,))

    def call(self, job: Job) -> Array:
        return VERBS[job[0]](*self.inputs[job])

    def check(self, job: Job) -> None:
        result = self.call(job)
        if result.tobytes() != self.serial[job].tobytes():
            raise WrongError(f"{job[0]} on {job[1]} differs from its serial result.")

    def round(self, number: int, fork: bool) -> None:
        """Every job by four callers, in different orders; with `fork`, a child is forked while they are at it."""
        start = threading.Barrier(CALLERS)

        def caller(which: int) -> None:
            order = np.random.default_rng((number, which)).permutation(len(JOBS))
            start.wait()
            for job in order:
                self.check(JOBS[job])

        with ThreadPoolExecutor(CALLERS) as callers:
            calls = [callers.submit(caller, which) for which in range(CALLERS)]
            if fork:
                self.check_in_child()
            for call in calls:
                call.result()

    def check_in_child(self) -> None:
        """All jobs in a forked child, which in turn calls from two threads."""
        if threads._pool is None:
            self.check(JOBS[0])  # the parent has a pool
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*multi-threaded.*fork", DeprecationWarning)
            child = multiprocessing.get_context("fork").Process(target=self._child, daemon=True)
            child.start()
        child.join(SECONDS_TO_HANG / 2)
        if child.exitcode != 0:
            child.kill()
            raise WrongError(f"a forked child ended with {child.exitcode} (None: it hangs).")

    def _child(self) -> None:
        set_num_threads(POOL)  # in a child that of the parent is but one bound
        with ThreadPoolExecutor(2) as callers:
            list(callers.map(self.check, JOBS))


def run(rounds: int, fork_every: int) -> str:
    """All rounds in this process; a line about them."""
    stress, began = Stress(), time.perf_counter()
    forks = 0
    for number in range(rounds):
        faulthandler.dump_traceback_later(SECONDS_TO_HANG, exit=True)
        fork = hasattr(os, "fork") and number % fork_every == 0
        stress.round(number, fork)
        forks += fork
    faulthandler.cancel_dump_traceback_later()
    calls = rounds * CALLERS * len(JOBS)
    if threads._pool is None:
        raise WrongError("no call has used the pool.")
    return f"{rounds} rounds, {calls:,} calls by {CALLERS} threads, {forks} forks: {time.perf_counter() - began:.0f} s"


def run_under(layer: str, rounds: int, fork_every: int) -> str:
    """The same in a fresh process with this threading layer.

    Raises:
        WrongError: with what that process wrote.
    """
    command = [sys.executable, "-m", "tests.stress_threads", "--inside", "--rounds", str(rounds)]
    done = subprocess.run(
        [*command, "--fork-every", str(fork_every)],
        env={**os.environ, "NUMBA_THREADING_LAYER": layer},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise WrongError(f"{layer}: ended with {done.returncode}.\n{done.stdout}{done.stderr}")
    return done.stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1000, help="for each threading layer")
    parser.add_argument("--fork-every", type=int, default=5, help="rounds from one forked child to the next")
    parser.add_argument("--inside", action="store_true", help="run here, under the layer of the environment")
    options = parser.parse_args()
    if options.inside:
        start_numba_threads()
        print(run(options.rounds, options.fork_every))
        return
    for layer in LAYERS:
        result = run_under(layer, options.rounds, options.fork_every) if is_installed(layer) else "not installed"
        print(f"{layer}: {result}", flush=True)


if __name__ == "__main__":
    main()
