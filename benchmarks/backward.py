"""What gradients of variances cost: `python -m benchmarks.backward` prints their table of docs/costs.md.

Milliseconds of processor time, one thread, batch 16: Σ on the diagonal by torch's operator, forward and backward.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch

import sparseggm as sg
from benchmarks.problems import factor_of
from sparseggm.torch import ops

BATCH = 16
TOPOLOGIES: dict[str, Callable[[int], sg.Topology]] = {
    "`Chain(784)`": lambda scale: sg.Chain(784 // scale),
    "`BlockChain(98, 8)`": lambda scale: sg.BlockChain(98 // scale, 8),
    "`ExtendedGrid(28, 28)`": lambda scale: sg.ExtendedGrid(28, 28 // scale),
    "`Grid(28, 28)`": lambda scale: sg.Grid(28, 28 // scale),
}


def milliseconds(topology: sg.Topology, dtype: torch.dtype, calls: int) -> tuple[float, float]:
    """Forward and backward, each the least of `calls`."""
    pattern = topology.factor_pattern
    values = torch.from_numpy(factor_of(topology, (BATCH,), "float64")).to(dtype).requires_grad_()
    forward, backward = [], []
    for _ in range(calls + 1):
        values.grad = None
        start = time.process_time()
        total = ops.marginal_variances(pattern, values)
        between = time.process_time()
        total.sum().backward()
        forward.append(between - start)
        backward.append(time.process_time() - between)
    return 1e3 * min(forward), 1e3 * min(backward)


def main(arguments: list[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.backward", description=__doc__)
    parser.add_argument("--scale", type=int, default=1, help="divides the sizes, for a quick look")
    parser.add_argument("--calls", type=int, default=200)
    options = parser.parse_args(arguments)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # and so of sparseggm
    try:
        print("| topology | float64 | float32 |")
        print("|---|---|---|")
        for name, make in TOPOLOGIES.items():
            topology = make(options.scale)
            times = [milliseconds(topology, dtype, options.calls) for dtype in (torch.float64, torch.float32)]
            print(f"| {name} | {' | '.join(f'{a:.2g}, {b:.2g}, {b / a:.1f}' for a, b in times)} |", flush=True)
    finally:
        torch.set_num_threads(threads)


if __name__ == "__main__":
    main()
