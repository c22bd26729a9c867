"""Peak memory of each call, in units of its samples: `python -m tests.torch.peak_memory`.

Linux resets the high-water mark of resident memory on request, and counts every allocator's pages. A small call of the
same kind comes first, so that compiled kernels and torch's own buffers are there before the measurement.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import sparseggm as sg
from sparseggm.torch import GaussianGraphicalModel
from tests.peak_memory import resident
from tests.torch.problems import factor

SAMPLES = 10_000
TOPOLOGY = sg.ExtendedGrid(64, 64)
REORDERED = sg.Star(64 * 64)  # whose hub is eliminated last


def gaussian(topology: sg.Topology) -> GaussianGraphicalModel:
    """In float32, asking for gradients."""
    lower = (factor(topology.factor_pattern).detach() * 0.1).float().requires_grad_()
    with torch.no_grad():
        lower[torch.from_numpy(topology.factor_pattern.diagonal.astype("int64"))] = 1.0
    return GaussianGraphicalModel(torch.zeros(topology.n, requires_grad=True), factor=lower, topology=topology)


def draw_and_backward(q: GaussianGraphicalModel, count: int) -> None:
    q.rsample((count,)).sum().backward()


def draw_log_prob_and_backward(q: GaussianGraphicalModel, count: int) -> None:
    z: Tensor = q.rsample((count,))
    q.log_prob(z).sum().backward()


def draw_with_log_prob(q: GaussianGraphicalModel, count: int) -> None:
    with torch.no_grad():
        q.rsample_and_log_prob((count,))


CASES: dict[str, tuple[Callable[[GaussianGraphicalModel, int], None], sg.Topology]] = {
    "draw-and-backward": (draw_and_backward, TOPOLOGY),
    "draw-and-backward, reordered": (draw_and_backward, REORDERED),
    "draw-with-log-prob": (draw_with_log_prob, TOPOLOGY),
    "draw-with-log-prob, reordered": (draw_with_log_prob, REORDERED),
    "draw-log-prob-and-backward": (draw_log_prob_and_backward, TOPOLOGY),
}


def measure(case: str) -> float:
    """Peak memory beyond what was there before, in units of the samples."""
    call, topology = CASES[case]
    q = gaussian(topology)
    call(q, 32)  # enough for the kernels of large batches
    sg.release_memory()  # of the case before
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    call(q, SAMPLES)
    return (resident("VmHWM") - before) / (SAMPLES * topology.n * 4)


if __name__ == "__main__":
    print(json.dumps({case: measure(case) for case in CASES}))
