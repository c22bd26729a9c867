"""Costs of a fresh process: the import, the first call, and the compilation of every kernel. Uses subprocesses."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile

from benchmarks.contest import Ratio, Result, Setting
from tests.verbs import VERBS

IMPORT = "import sparseggm"
FIRST_CALL = """
import numpy as np, sparseggm as sg
g = sg.GaussianGraphicalModel(np.zeros(16), factor=np.tile([1.0, 0.2], 16)[:31], topology=sg.Chain(16))
# timed from here
g.sample(rng=np.random.default_rng(0))
"""
EVERY_VERB = """
import numpy as np, sparseggm as sg
from benchmarks.rows.dtypes import call_of
from tests.verbs import VERBS
# timed from here
for dtype in (np.float32, np.float64):
    for verb in [VERBS["logdet"], *(verb for verb in VERBS.values() if verb.name != "logdet")][:{count}]:
        call_of(verb, sg.ExtendedGrid(3, 4), 2, dtype)()
"""
START = "# timed from here\n"


def seconds_in_process(script: str, **environment: str) -> float:
    """Seconds that the part of the script after `START` takes in a fresh interpreter."""
    before, _, timed = script.rpartition(START)
    whole = f"import time\n{before}\nstart = time.perf_counter()\n{timed}\nprint(time.perf_counter() - start, end='')\n"
    done = subprocess.run(
        [sys.executable, "-c", whole], env=os.environ | environment, capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def _median(script: str, rounds: int) -> float:
    seconds_in_process(script)  # fills the caches of files and of compiled kernels
    return statistics.median(seconds_in_process(script) for _ in range(rounds))


def importing(setting: Setting) -> Result:
    """Time of `import sparseggm`, including NumPy, SciPy and Numba."""
    seconds = _median(IMPORT, setting.rounds)
    return Result(IMPORT, {"sparseggm": seconds}, [Ratio("in all", seconds, 0.6, "≤", "s")])


def first_call(setting: Setting) -> Result:
    """Time of the first sample of a process, with the kernels in the cache."""
    seconds = _median(FIRST_CALL, setting.rounds)
    return Result("first sample, warm cache", {"sparseggm": seconds}, [Ratio("in all", seconds, 0.2, "≤", "s")])


def cold_compile(setting: Setting) -> Result:
    """Time of every verb in both dtypes with an empty cache; `scale` leaves fewer verbs, the quickest to compile."""
    script = EVERY_VERB.format(count=setting.size(len(VERBS), 1))
    with tempfile.TemporaryDirectory() as cache:
        seconds = seconds_in_process(script, NUMBA_CACHE_DIR=cache)
    return Result(
        "every verb, both dtypes, empty cache", {"sparseggm": seconds}, [Ratio("in all", seconds, 60.0, "≤", "s")]
    )


ROWS = {"import": importing, "first-call": first_call, "cold-compile": cold_compile}
