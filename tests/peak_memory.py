"""Peak memory of a fit beyond its samples, in MB: `python -m tests.peak_memory chain`.

Linux resets the high-water mark of resident memory on request. A small fit comes first, for what is compiled and kept.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import sparseggm as sg

SAMPLES = 10_000
TOPOLOGIES: dict[str, sg.Topology] = {
    "chain": sg.Chain(784),
    "extended-grid": sg.ExtendedGrid(28, 28),
    "stencil": sg.Stencil(28, 28, 2),
}


def resident(what: str) -> int:
    """VmRSS or VmHWM of this process, in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) * 1024


def measure(topology: sg.Topology, dtype: str) -> float:
    samples = np.random.default_rng(0).integers(0, 255, (SAMPLES, topology.n)).astype(dtype)
    sg.GaussianGraphicalModel.fit(samples[:100], topology)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    sg.GaussianGraphicalModel.fit(samples, topology)
    return (resident("VmHWM") - before) / 1e6


if __name__ == "__main__":
    print(max(measure(TOPOLOGIES[sys.argv[1]], dtype) for dtype in ("uint8", "float32", "float64")))
