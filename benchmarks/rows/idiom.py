"""The three lines that a user of `torch.distributions` writes, beside the fused step and beside torch's own Normal.

Arguments are validated, as by default, and noise is sampled; the prior is made once. Cotangents of z and KL are given.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence

import sparseggm as sg
from benchmarks.contest import Contestant, Ratio, Result, Setting
from benchmarks.peers import pytorch
from benchmarks.problems import Step
from benchmarks.timing import interleaved
from sparseggm.torch import GaussianGraphicalModel, sample_and_kl

IDIOM, FUSED, NORMAL = "sparseggm", "sample_and_kl", "torch Normal"


def compare(setting: Setting, n: int, goal: float | None) -> Result:
    """Our three lines, our two, three with torch's Normal; `goal`: how many times as fast as the last we must be."""
    problem = Step.make(sg.Chain(setting.size(n)), setting.size(128), np.float32)
    calls = {
        IDIOM: ours(problem, _idiom(problem)).call,
        FUSED: ours(problem, sample_and_kl).call,
        NORMAL: pytorch.normal_idiom(problem).call,
    }
    seconds = interleaved(calls, setting.rounds, setting.seconds)
    batch, n = problem.loc.shape
    return Result(
        f"rsample + kl_divergence + backward, Chain({n}), batch {batch}, float32",
        seconds,
        [
            Ratio("of the time of sample_and_kl", seconds[IDIOM] / seconds[FUSED], 1.3, "≤"),
            Ratio("as fast as torch Normal", seconds[NORMAL] / seconds[IDIOM], goal),
        ],
    )


def ours(problem: Step, sample_and_kl: Callable[[GaussianGraphicalModel], tuple[Tensor, Tensor]]) -> Contestant:
    """The step from constructor to gradients."""
    leaves = [torch.from_numpy(array).requires_grad_() for array in (problem.loc, problem.factor)]
    bars = torch.from_numpy(problem.z_bar), torch.from_numpy(problem.kl_bar)

    def call() -> Any:
        q = GaussianGraphicalModel(leaves[0], factor=leaves[1], topology=problem.topology)
        return torch.autograd.grad(sample_and_kl(q), leaves, bars)

    return Contestant(call, None)


def _idiom(problem: Step) -> Callable[[GaussianGraphicalModel], tuple[Tensor, Tensor]]:
    n = problem.topology.n
    prior = Independent(Normal(torch.zeros(n), torch.ones(n)), 1)
    return lambda q: (q.rsample(), kl_divergence(q, prior))


ROWS = {"idiom-128x16": partial(compare, n=16, goal=1.0), "idiom-128x784": partial(compare, n=784, goal=None)}
