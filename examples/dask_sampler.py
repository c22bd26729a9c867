"""A batch larger than memory, a chunk at a time: `python examples/dask_sampler.py --samples 4000000`.

Our verbs release the GIL and take any batch, so Dask runs them unchanged. Here it maps a chain's sampler over a lazy
batch and reduces each chunk to what is wanted of it, sums and sums of squares; no more chunks exist at a time than
there are threads. Chunk k has its own stream, spawned from one seed: the result depends neither on the workers
nor on who did what.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from dask.delayed import delayed
from distributed import Client, LocalCluster

import sparseggm as sg

Moments = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Work:
    """How many samples of a chain of how many nodes, and how many at a time."""

    samples: int
    nodes: int
    chunk: int
    seed: int = 0

    @property
    def sizes(self) -> list[int]:
        """Samples in each chunk."""
        return [min(self.chunk, self.samples - start) for start in range(0, self.samples, self.chunk)]

    @property
    def batch_bytes(self) -> int:
        """The whole batch, if it existed at once."""
        return 4 * self.samples * self.nodes


def chain(nodes: int) -> sg.GaussianGraphicalModel:
    """Neighbours correlated by about one half."""
    topology = sg.Chain(nodes)
    inputs = np.where(topology.factor_pattern.rows == topology.factor_pattern.cols, 0.0, -0.6).astype(np.float32)
    factor = sg.parametrize.factor(topology, inputs)
    return sg.GaussianGraphicalModel(np.zeros(nodes, np.float32), factor=factor, topology=topology)


def moments_of_chunk(work: Work, number: int) -> Moments:
    """(2, nodes): Σ z and Σ z² over the samples of one chunk."""
    stream = np.random.SeedSequence(work.seed, spawn_key=(number,))
    z = chain(work.nodes).sample(work.sizes[number], np.random.default_rng(stream))
    return np.stack([z.sum(0, dtype=np.float64), np.einsum("ri,ri->i", z, z, dtype=np.float64)])


def moments(work: Work, client: Client) -> tuple[Moments, Moments]:
    """Mean and variance of each node over all samples, by the cluster; chunks are added two by two."""
    parts = [delayed(moments_of_chunk)(work, number) for number in range(len(work.sizes))]
    while len(parts) > 1:
        pairs = [parts[i : i + 2] for i in range(0, len(parts), 2)]
        parts = [delayed(sum)(pair) if len(pair) == 2 else pair[0] for pair in pairs]
    first, second = client.compute(parts[0]).result()
    mean = first / work.samples
    return mean, second / work.samples - mean**2


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=4_000_000)
    parser.add_argument("--nodes", type=int, default=1_000)
    parser.add_argument("--chunk", type=int, default=10_000, help="samples that exist at a time, for each thread")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--memory", default="1GiB", help="limit of each worker")
    options = parser.parse_args(arguments)
    work = Work(options.samples, options.nodes, options.chunk)
    with (
        LocalCluster(
            n_workers=options.workers, threads_per_worker=1, memory_limit=options.memory, dashboard_address=None
        ) as cluster,
        Client(cluster) as client,
    ):
        mean, variance = moments(work, client)
        peak = max(client.run(peak_bytes).values())
    exact = chain(work.nodes).variance
    print(f"the batch: {work.batch_bytes / 1e9:.1f} GB; the largest worker grew to {peak / 1e9:.2f} GB")
    error = abs(variance / exact - 1).max()
    print(f"largest |mean|: {abs(mean).max():.2e}, largest relative error of a variance: {error:.2e}")
    print(f"one standard error: {work.samples**-0.5:.2e} and {(2 / work.samples) ** 0.5:.2e}")


def peak_bytes() -> int:
    """The largest size that this process has had in memory."""
    import resource

    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main()
