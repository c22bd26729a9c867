"""How far one machine goes: `python -m benchmarks.scale` prints the tables of docs/scale.md.

Each piece of work is timed on one matrix in float64, at a size that takes a few seconds at most, and extrapolated by
its stated cost (docs/costs.md). Memory counts the arrays that must exist at once: the factor, arguments and results,
and scratch of nnz(F) where Σ is needed, twice that for gradients.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

import sparseggm as sg
from benchmarks.slopes import call_of

ENTRIES = 2**31 - 1
"""Largest number of stored entries of a pattern, whose indexes are 32-bit."""

NODES = tuple(10**k for k in range(4, 10))


@dataclass(frozen=True)
class Work:
    """A verb on a family of topologies, and how its time and memory grow."""

    family: str
    verb: str
    make: Callable[[int], sg.Topology]
    reference: int
    """Number of nodes at which the verb is timed."""
    operations: Callable[[float], float]
    """Number of operations for n nodes; the time is proportional to it."""
    factor_entries: Callable[[float], float]
    """nnz(L) for n nodes."""
    scratch: Callable[[float], float]
    """Numbers beside L, the arguments and the result."""

    def seconds(self) -> float:
        """Seconds at the reference size, the best of three."""
        call = call_of(self.verb, self.make(self.reference))
        call()
        times = []
        for _ in range(3):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        return min(times)

    def entries(self, n: float) -> float:
        """Entries of the largest pattern: that of L, or of Σ on its fill."""
        return max(self.factor_entries(n), self.scratch(n) / 2 if "gradient" in self.verb else self.scratch(n))

    def gigabytes(self, n: float) -> float:
        """Memory of the values in float64, and of the pattern's 32-bit indexes by columns and by rows."""
        return (8 * (2 * self.factor_entries(n) + 2 * n + self.scratch(n)) + 12 * self.entries(n)) / 1e9


def side(n: int) -> int:
    """Side of a square grid of at most n nodes."""
    return math.isqrt(n)


def grid_fill(n: float) -> float:
    """nnz(L) of a nested dissection, as 25.2 n at 512 × 512 with the growth n log n."""
    return 25.2 / math.log2(512**2) * n * math.log2(n)


def works(scale: int) -> list[Work]:
    """The rows of the table; `scale` divides the sizes at which they are timed."""
    chain, block = 10**6 // scale, 10**5 // scale
    lattice_nodes, extended_nodes = 512**2 // scale, 256**2 // scale

    def blocks(n: int) -> sg.Topology:
        return sg.BlockChain(max(n // 8, 1), 8)

    def extended(n: int) -> sg.Topology:
        return sg.ExtendedGrid(side(n), side(n))

    def lattice(n: int) -> sg.Topology:
        return sg.Grid(side(n), side(n))

    def linear(n: float) -> float:
        return n

    def cubed(n: float) -> float:
        return n**1.5

    def none(n: float) -> float:
        return 0.0

    return [
        Work("chain", "solve_t", sg.Chain, chain, linear, lambda n: 2 * n, none),
        Work("chain", "marginal_variances", sg.Chain, chain, linear, lambda n: 2 * n, none),
        Work("chain", "gradient of tr Σ", sg.Chain, chain, linear, lambda n: 2 * n, lambda n: 4 * n),
        Work("block chain, b = 8", "solve_t", blocks, block, linear, lambda n: 12.5 * n, none),
        Work("block chain, b = 8", "marginal_variances", blocks, block, linear, lambda n: 12.5 * n, lambda n: 12.5 * n),
        Work("extended grid", "solve_t", extended, chain, linear, lambda n: 3 * n, none),
        Work("extended grid", "marginal_variances", extended, extended_nodes, cubed, lambda n: 3 * n, cubed),
        Work(
            "extended grid", "gradient of tr Σ", extended, extended_nodes, cubed, lambda n: 3 * n, lambda n: 2 * n**1.5
        ),
        Work("grid given P", "cholesky", lattice, lattice_nodes, cubed, grid_fill, none),
        Work("grid given P", "marginal_variances", lattice, lattice_nodes, cubed, grid_fill, grid_fill),
    ]


def cell(work: Work, constant: float, n: int, memory: float) -> str:
    """The text of a cell: time and memory, or the limit that n exceeds."""
    if work.entries(n) > ENTRIES:
        return "beyond 2³¹ entries"
    gigabytes = work.gigabytes(n)
    size = f"{gigabytes:.3g} GB" if gigabytes >= 0.1 else f"{1000 * gigabytes:.3g} MB"
    seconds = constant * work.operations(n)
    duration = f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"
    return f"{duration}, {size}" + (" (beyond memory)" if gigabytes > memory else "")


def main(arguments: list[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--scale", type=int, default=1, help="divide the sizes that are timed")
    parser.add_argument("--memory", type=float, default=25.8, help="of the machine, GB")
    options = parser.parse_args(arguments)
    print("| topology | verb | " + " | ".join(f"n = 10{chr(0x2070 + k)}" for k in range(4, 10)) + " |")
    print("|---" * (2 + len(NODES)) + "|")
    for work in works(options.scale):
        n = work.make(work.reference).n
        constant = work.seconds() / work.operations(n)
        print(f"| {work.family} | {work.verb} | {' | '.join(cell(work, constant, n, options.memory) for n in NODES)} |")
    print("\n| batch of chains, n = 784, float32 | sample | bytes of the samples |\n|---|---|---|")
    topology, rng = sg.Chain(784), np.random.default_rng(0)
    pattern, rows = topology.factor_pattern, 4096 // options.scale
    factor = np.where(pattern.rows == pattern.cols, 1.0, 0.3).astype(np.float32)
    noise = rng.standard_normal((rows, topology.n), np.float32)
    sg.linalg.solve_t(pattern, factor, noise)
    start = time.perf_counter()
    sg.linalg.solve_t(pattern, np.broadcast_to(factor, (rows, pattern.nnz)), noise)
    each = (time.perf_counter() - start) / rows
    for exponent in range(3, 10):
        count = 10**exponent
        power = "³" if exponent == 3 else chr(0x2070 + exponent)
        print(f"| 10{power} | {count * each:.3g} s | {count * 4 * 784 / 1e9:.3g} GB |")


if __name__ == "__main__":
    main()
