"""The step of a residual posterior, float32, in eager torch: one operator, beside the same in the lines of a user.

The user's lines make q, draw a sample and ask for the KL of each node. The step of a Gaussian that is not moved from
another, `sample_and_kl`, has a third of the arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

import sparseggm as sg
from benchmarks.contest import Ratio, Result, Setting
from benchmarks.problems import Step
from benchmarks.rows import steps
from benchmarks.timing import interleaved
from sparseggm.torch import GaussianGraphicalModel, Residual, kl_terms

ONE_OPERATOR, LINES, PLAIN = "sparseggm", "gaussian, rsample, kl_terms", "sample_and_kl"


def compare(setting: Setting, topology: sg.Topology) -> Result:
    """A sample and its KL by node, and their gradients, on 128 Gaussians."""
    problem = Step.make(topology, setting.size(128), np.float32)
    calls = {
        ONE_OPERATOR: moved(problem, lambda residual, noise: residual.sample_and_kl_terms(noise)),
        LINES: moved(problem, _in_lines),
        PLAIN: steps.ours(problem).call,
    }
    seconds = interleaved(calls, setting.rounds, setting.seconds)
    return Result(
        f"sample, KL by node, backward, {topology}, batch {len(problem.loc)}, float32",
        seconds,
        [
            Ratio("as fast as a user's lines", seconds[LINES] / seconds[ONE_OPERATOR], 2.0),
            Ratio("of the time of sample_and_kl", seconds[ONE_OPERATOR] / seconds[PLAIN], 4.0, "≤"),
        ],
    )


def moved(problem: Step, sample_and_kl_terms: Callable[[Residual, Tensor], tuple[Tensor, Tensor]]) -> Callable[[], Any]:
    """The step from p, shift and moves to their gradients."""
    rng = np.random.default_rng(2)
    arrays = [
        problem.loc,
        problem.factor,
        *(0.2 * rng.standard_normal(like.shape) for like in (problem.loc, problem.factor)),
    ]
    leaves = [torch.from_numpy(array.astype(np.float32)).requires_grad_() for array in arrays]
    noise, z_bar = torch.from_numpy(problem.noise), torch.from_numpy(problem.z_bar)
    bars = z_bar, torch.ones_like(z_bar)

    def call() -> Any:
        p = GaussianGraphicalModel(leaves[0], factor=leaves[1], topology=problem.topology, validate_args=False)
        return torch.autograd.grad(sample_and_kl_terms(Residual(p, leaves[2], leaves[3]), noise), leaves, bars)

    return call


def _in_lines(residual: Residual, noise: Tensor) -> tuple[Tensor, Tensor]:
    q = residual.gaussian()
    return q.loc + q.colorize(noise), kl_terms(q, residual.p)


ROWS = {
    "residual-128x16": partial(compare, topology=sg.ExtendedGrid(4, 4)),
    "residual-128x40": partial(compare, topology=sg.BlockChain(8, 5)),
}
