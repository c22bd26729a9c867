"""The sampler of examples/dask_sampler.py on a local cluster: right moments, bounded memory, whoever makes them."""

from __future__ import annotations

import re

import numpy as np
import pytest

pytest.importorskip("distributed", reason="Dask is not installed: pip install distributed")

from distributed import Client, LocalCluster

from examples import dask_sampler
from examples.dask_sampler import Work, moments, moments_of_chunk, peak_bytes

WORK = Work(samples=60_000, nodes=2_000, chunk=2_000)  # 480 MB, 16 MB at a time


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # sockets that Dask closes when it is collected
def test_a_batch_larger_than_its_workers_is_sampled_with_bounded_memory():
    limits = {"n_workers": 2, "threads_per_worker": 1, "memory_limit": "400MB", "dashboard_address": None}
    with LocalCluster(**limits) as cluster, Client(cluster) as client:
        before = max(client.run(peak_bytes).values())
        mean, variance = moments(WORK, client)
        growth = max(client.run(peak_bytes).values()) - before
    assert growth < WORK.batch_bytes / 4
    expected = sum(
        moments_of_chunk(WORK, number) for number in range(2)
    )  # of any process, in any order: the same streams
    assert np.isfinite(expected).all()
    exact = dask_sampler.chain(WORK.nodes).variance
    # largest of 2,000 normal deviations: beyond 5 standard errors with probability 1e-3, and the seed is fixed
    assert abs(mean / np.sqrt(exact)).max() < 5 * WORK.samples**-0.5
    assert abs(variance / exact - 1).max() < 5 * (2 / WORK.samples) ** 0.5


def test_chunks_do_not_depend_on_who_samples_them():
    work = Work(samples=50, nodes=30, chunk=20)
    alone = sum(moments_of_chunk(work, number) for number in range(3))
    threads = {"n_workers": 1, "threads_per_worker": 2, "processes": False, "dashboard_address": None}
    with LocalCluster(**threads) as cluster, Client(cluster) as client:
        mean, variance = moments(work, client)
    np.testing.assert_allclose(mean, alone[0] / 50, rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(variance, alone[1] / 50 - mean**2, rtol=1e-12)


def test_the_command_reports_memory_and_errors(capsys):
    dask_sampler.main(["--samples", "2000", "--nodes", "50", "--chunk", "500"])
    assert re.search(r"the batch: 0\.0 GB; the largest worker grew to \d\.\d+ GB", capsys.readouterr().out)
