"""Steps with KL between two Gaussians, float32, in eager torch.

That of a residual posterior is one operator, beside the same in the lines of a user, who makes q, draws a sample and
asks for the KL of each node. KL of two factors on one pattern is beside torch's, of dense matrices. The step of a
Gaussian to N(0, I), `sample_and_kl`, has a third of the arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

import sparseggm as sg
from benchmarks.contest import Ratio, Result, Setting
from benchmarks.problems import Step
from benchmarks.rows import steps
from benchmarks.timing import interleaved
from sparseggm.torch import GaussianGraphicalModel, Residual, kl_terms

KL, DENSE = "kl_divergence", "MultivariateNormal"
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


def divergence(setting: Setting, topology: sg.Topology) -> Result:
    """KL between 128 pairs of Gaussians, and its gradients with respect to both."""
    problem = Step.make(topology, setting.size(128), np.float32)
    given = [problem.loc, problem.factor, problem.noise, problem.factor[::-1]]
    leaves = [torch.from_numpy(array.copy()).requires_grad_() for array in given]
    dense = [leaves[0], _dense(topology, problem.factor), leaves[2], _dense(topology, problem.factor[::-1])]

    def ours() -> Any:
        q, p = (
            GaussianGraphicalModel(loc, factor=factor, topology=topology, validate_args=False)
            for loc, factor in (leaves[:2], leaves[2:])
        )
        return torch.autograd.grad(kl_divergence(q, p).sum(), leaves)

    def torchs() -> Any:
        q, p = (
            MultivariateNormal(loc, precision_matrix=lower @ lower.mT, validate_args=False)
            for loc, lower in (dense[:2], dense[2:])
        )
        return torch.autograd.grad(kl_divergence(q, p).sum(), dense)

    calls = {KL: ours, DENSE: torchs, PLAIN: steps.ours(problem).call}
    seconds = interleaved(calls, setting.rounds, setting.seconds)
    return Result(
        f"KL of two, backward, {topology}, batch {len(problem.loc)}, float32",
        seconds,
        [
            Ratio("as fast as torch's MultivariateNormal", seconds[DENSE] / seconds[KL], 2.0),
            Ratio("of the time of sample_and_kl", seconds[KL] / seconds[PLAIN], 4.0, "≤"),
        ],
    )


def _dense(topology: sg.Topology, factor: Any) -> Tensor:
    lower = topology.factor_pattern.to_dense(factor)
    return torch.from_numpy(lower).requires_grad_()


ROWS = {
    "kl-of-two-128x16": partial(divergence, topology=sg.ExtendedGrid(4, 4)),
    "kl-of-two-128x40": partial(divergence, topology=sg.BlockChain(8, 5)),
    "residual-128x16": partial(compare, topology=sg.ExtendedGrid(4, 4)),
    "residual-128x40": partial(compare, topology=sg.BlockChain(8, 5)),
}
