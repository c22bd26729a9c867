"""Stated costs against measured ones: `python -m benchmarks.slopes` prints the table of docs/costs.md.

For each verb and topology one call on one matrix (float64), on one thread, is timed over three decades of n. The slope
of log time against log n, over all decades and over the upper two, is printed beside the stated exponent. Constant
overheads flatten a slope at the small end; caches, and the logarithm in a grid's fill, steepen it at the large end.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

import sparseggm as sg
from sparseggm import adjoints, linalg

Make = Callable[[int], sg.Topology]


@dataclass(frozen=True)
class Slope:
    """One cell of the table."""

    topology: str
    verb: str
    stated: float
    measured: float
    """Over all three decades."""
    measured_above: float
    """Over the upper two."""
    largest_n: int
    seconds_at_largest: float
    scratch_entries_a_node: float
    """nnz(F) / n at the largest n: memory of the selected-inverse family, a batch element."""


def square(size: int) -> int:
    """Side of the largest square grid with at most `size` nodes."""
    return int(np.sqrt(size))


FAMILIES: dict[str, tuple[Make, dict[str, float]]] = {
    "Chain(n)": (sg.Chain, {"solve_t": 1, "logdet": 1, "cholesky": 1, "marginal_variances": 1, "gradient of tr Σ": 1}),
    "BlockChain(n/8, 8)": (
        lambda n: sg.BlockChain(n // 8, 8),
        {"solve_t": 1, "logdet": 1, "cholesky": 1, "marginal_variances": 1, "gradient of tr Σ": 1},
    ),
    "ExtendedGrid(m, m)": (
        lambda n: sg.ExtendedGrid(square(n), square(n)),
        {"solve_t": 1, "logdet": 1, "marginal_variances": 1.5, "gradient of tr Σ": 1.5},
    ),
    "Grid(m, m)": (
        lambda n: sg.Grid(square(n), square(n)),
        {"solve_t": 1, "cholesky": 1.5, "marginal_variances": 1.5, "gradient of tr Σ": 1.5},
    ),
}


def call_of(verb: str, topology: sg.Topology) -> Callable[[], object]:
    """One call of a verb, with its arguments made in advance."""
    pattern = topology.factor_pattern
    rng = np.random.default_rng(0)
    factor = 0.1 * rng.standard_normal(pattern.nnz)
    factor[pattern.diagonal] = 1.0
    noise = rng.standard_normal(pattern.n)
    if verb == "solve_t":
        return lambda: linalg.solve_t(pattern, factor, noise)
    if verb == "logdet":
        return lambda: linalg.logdet(pattern, factor)
    if verb == "marginal_variances":
        return lambda: linalg.marginal_variances(pattern, factor)
    if verb == "gradient of tr Σ":
        return lambda: adjoints.marginal_variances_vjp(pattern, factor, np.ones(pattern.n))
    on = topology.precision_pattern
    precision = sg.parametrize.dominant(topology, 0.3 * rng.standard_normal(topology.n + len(topology.edges)))
    return lambda: linalg.cholesky(on, precision)


def seconds_of(call: Callable[[], object], least: float) -> float:
    """Seconds of the fastest of the calls that fit into `least` seconds, of three calls at least."""
    call()
    times: list[float] = []
    while len(times) < 3 or sum(times) < least:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def measure(sizes: list[int], least: float) -> list[Slope]:
    """All cells."""
    slopes = []
    for family, (make, verbs) in FAMILIES.items():
        topologies = [make(size) for size in sizes]
        for verb, stated in verbs.items():
            seconds = [seconds_of(call_of(verb, topology), least) for topology in topologies]
            nodes, times = np.log([topology.n for topology in topologies]), np.log(seconds)
            upper = nodes >= nodes[-1] - np.log(100)
            over = [float(np.polyfit(nodes[part], times[part], 1)[0]) for part in (slice(None), upper)]
            fill = topologies[-1].factor_pattern.filled().nnz / topologies[-1].n
            slopes.append(Slope(family, verb, stated, *over, topologies[-1].n, seconds[-1], fill))
    return slopes


def main(arguments: list[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.slopes", description=__doc__)
    parser.add_argument("--largest", type=int, default=262_144, help="nodes; sizes go down from here by factors of 4")
    parser.add_argument("--seconds", type=float, default=0.1, help="for each cell and size")
    parser.add_argument("--out", type=Path, default=Path("runs/slopes.json"))
    options = parser.parse_args(arguments)
    sizes = sorted(max(options.largest // 4**k, 16) for k in range(6))
    sg.set_num_threads(1)
    try:
        slopes = measure(sizes, options.seconds)
    finally:
        sg.set_num_threads(None)
    print("| topology | verb | stated exponent | three decades | upper two | at n | seconds | nnz(F) / n |")
    print("|---|---|---|---|---|---|---|---|")
    for row in slopes:
        cells = (
            f"`{row.topology}`",
            row.verb,
            f"{row.stated:g}",
            f"{row.measured:.2f}",
            f"{row.measured_above:.2f}",
            f"{row.largest_n:,}",
            f"{row.seconds_at_largest:.2g}",
            f"{row.scratch_entries_a_node:.1f}",
        )
        print(f"| {' | '.join(cells)} |")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps([asdict(row) for row in slopes], indent=1))


if __name__ == "__main__":
    main()
