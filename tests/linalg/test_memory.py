"""Memory of large results: whose it is, where it begins, and how much of it may lie idle."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import sparseggm as sg
from sparseggm import linalg
from sparseggm.kernels.lanes.blocks import UNCACHED
from sparseggm.kernels.lanes.vector import REGISTER_BYTES
from sparseggm.linalg import memory, sampling, step

COUNT = UNCACHED // 8
"""Float64 numbers of the smallest large result."""


@pytest.fixture(autouse=True)
def _nothing_idle():
    sg.release_memory()
    yield
    sg.release_memory()


def place_of(array) -> int:
    return array.ctypes.data


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [0, 3, COUNT - 1, COUNT, 2 * COUNT + 5])
def test_an_array_is_what_numpy_would_give(size, dtype) -> None:
    array = memory.empty((size, 1), dtype)
    assert array.shape == (size, 1)
    assert array.dtype == dtype
    assert array.flags.c_contiguous
    assert array.flags.writeable
    assert array.flags.aligned


def test_a_large_one_begins_at_a_line_of_memory() -> None:
    arrays = [memory.empty((COUNT + extra,), "float64") for extra in range(5)]
    assert {place_of(array) % REGISTER_BYTES for array in arrays} == {0}


def test_memory_serves_again_when_no_array_is_left_on_it() -> None:
    first = memory.empty((COUNT,), "float64")
    place, row = place_of(first), first[3:5]
    del first
    second = memory.empty((COUNT,), "float64")
    assert place_of(second) != place  # the row is still there
    row[:] = 7.0
    second[:] = 0.0
    assert row.tolist() == [7.0, 7.0]
    del row
    assert place_of(memory.empty((COUNT,), "float64")) == place


def test_only_memory_of_about_the_size_serves() -> None:
    place = place_of(memory.empty((2 * COUNT,), "float64"))
    assert place_of(memory.empty((COUNT,), "float64")) != place
    assert place_of(memory.empty((2 * COUNT - COUNT // 8,), "float64")) == place


def test_no_more_than_what_is_stated_lies_idle(monkeypatch) -> None:
    monkeypatch.setattr(memory, "KEPT", 3 * UNCACHED)
    arrays = [memory.empty((COUNT,), "float64") for _ in range(5)]
    del arrays
    assert 2 * UNCACHED <= sg.release_memory() <= 3 * UNCACHED
    assert sg.release_memory() == 0


def test_results_in_use_are_never_overwritten() -> None:
    """Two threads, each with the last two of its results at hand."""
    pattern = sg.Chain(COUNT // 4).factor_pattern
    factor = np.tile((pattern.rows == pattern.cols).astype("float64"), (4, 1))

    def work(seed: int) -> bool:
        rng, good = np.random.default_rng(seed), True
        rhs = rng.standard_normal((4, pattern.n))
        before = linalg.solve_t(pattern, factor, rhs)
        for _ in range(8):
            after = linalg.solve_t(pattern, factor, rhs)
            good &= np.array_equal(before, rhs) and not np.shares_memory(before, after)
            before = after
        return good

    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(work, range(2)))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("topology", [sg.Chain(16), sg.ExtendedGrid(4, 4)], ids=str)
def test_what_is_stored_past_the_caches_is_what_small_batches_give(topology, dtype) -> None:
    """Rows of whole lines in a result of more than 4 MB, with lanes left over at its end."""
    pattern, rng = topology.factor_pattern, np.random.default_rng(0)
    batch = UNCACHED // (16 * np.dtype(dtype).itemsize) + 5
    factor = (0.1 * rng.standard_normal((batch, pattern.nnz))).astype(dtype)
    factor[:, pattern.diagonal] += 1
    loc, noise = (rng.standard_normal((batch, 16)).astype(dtype) for _ in range(2))

    def drawn(part: slice):
        return sampling.sample_and_log_prob(pattern, None, loc[part], factor[part], np.zeros(()), noise[part])[0]

    calls = {
        "solve_t": lambda part: linalg.solve_t(pattern, factor[part], noise[part]),
        "matmul": lambda part: linalg.matmul(pattern, factor[part], noise[part]),
        "step": lambda part: step.sample_and_kl(pattern, loc[part], factor[part], noise[part])[0],
        "draws": drawn,
    }
    for name, call in calls.items():
        whole = call(slice(None))
        assert place_of(whole) % REGISTER_BYTES == 0
        for first in (0, batch // 2, batch - 40):
            part = slice(first, first + 40)
            np.testing.assert_array_equal(whole[part], call(part), err_msg=name)


def test_an_array_may_outlive_the_module_of_its_memory() -> None:
    """As one does that a function kept elsewhere refers to, such as a hook: nothing is printed as the process ends."""
    program = f"""if True:
        import threading
        from sparseggm.linalg import memory
        array = memory.empty(({COUNT},), "float64")
        threading.kept = lambda: array
    """
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
