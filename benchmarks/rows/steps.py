"""The training step `sample_and_kl` and its gradients, float32, in eager torch; and the likelihood of a grid.

All contestants get the same noise and the same cotangents of z and KL.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

import sparseggm as sg
from benchmarks.contest import Contestant, Peer, Ratio, Result, Setting, race
from benchmarks.peers import peer_module, pytorch
from benchmarks.problems import Step
from sparseggm.torch import GaussianGraphicalModel, sample_and_kl

JAX = "JAX, jit scan"
JAX_UNROLLED = "JAX, jit scan, 16 nodes unrolled"


def ours(problem: Step) -> Contestant:
    """`sample_and_kl`, and the gradients of loc and L."""
    leaves = [torch.from_numpy(array).requires_grad_() for array in (problem.loc, problem.factor)]
    noise, z_bar, kl_bar = (torch.from_numpy(array) for array in (problem.noise, problem.z_bar, problem.kl_bar))

    def call() -> Any:
        q = GaussianGraphicalModel(leaves[0], factor=leaves[1], topology=problem.topology, validate_args=False)
        z, kl = sample_and_kl(q, noise=noise)
        return z, kl, *torch.autograd.grad((z, kl), leaves, (z_bar, kl_bar))

    return Contestant(call, lambda result: [tensor.detach().numpy() for tensor in result])


def jax_peers(problem: Step, goal: float) -> dict[str, Peer]:
    """The plain scan, and one with 16 nodes an iteration, which at n = 16 is straight-line code."""

    def step(unroll: int) -> Contestant:
        contestant: Contestant = peer_module("jax_scan", "jax").step(problem, unroll)
        return contestant

    return {JAX: Peer(lambda: step(1), goal), JAX_UNROLLED: Peer(lambda: step(16), goal)}


def small(setting: Setting) -> Result:
    """128 × 16, the latent code of a digit."""
    problem = Step.make(sg.Chain(16), setting.size(128), np.float32)
    peers = jax_peers(problem, goal=1.0) | {
        "torch Normal": Peer(lambda: pytorch.independent_normal(problem), goal=1.0),
        "torch loop over nodes": Peer(lambda: pytorch.chain_step(problem, pytorch.loop_over_nodes)),
        "torch, dense": Peer(lambda: pytorch.chain_step(problem, pytorch.dense)),
        "torch MultivariateNormal": Peer(lambda: pytorch.chain_step(problem, pytorch.multivariate_normal, False)),
    }
    return _race(setting, problem, peers, bytes_moved=0)  # overhead bounds it, not memory


def medium(setting: Setting) -> Result:
    """128 × 784."""
    problem = Step.make(sg.Chain(setting.size(784, 4)), setting.size(128), np.float32)
    peers = jax_peers(problem, goal=5.0) | {
        "torch Normal": Peer(lambda: pytorch.independent_normal(problem)),
        "torch loop over nodes": Peer(lambda: pytorch.chain_step(problem, pytorch.loop_over_nodes), 100.0),
        "torch, dense": Peer(lambda: pytorch.chain_step(problem, pytorch.dense), 2000.0),
        "torch MultivariateNormal": Peer(
            lambda: pytorch.chain_step(problem, pytorch.multivariate_normal, False), 5000.0
        ),
    }
    return _race(setting, problem, peers, bytes_of(problem))


def large(setting: Setting) -> Result:
    """4096 × 784."""
    problem = Step.make(sg.Chain(setting.size(784, 4)), setting.size(4096), np.float32)
    peers = jax_peers(problem, goal=5.0) | {"torch Normal": Peer(lambda: pytorch.independent_normal(problem))}
    return _race(setting, problem, peers, bytes_of(problem))


def bytes_of(problem: Step) -> int:
    """Least traffic: forward reads loc, L, ε and writes z; backward reads loc, L, z, z̄ and writes the gradients."""
    forward = 3 * problem.loc.nbytes + problem.factor.nbytes
    return forward + 4 * problem.loc.nbytes + 2 * problem.factor.nbytes


def _race(setting: Setting, problem: Step, peers: dict[str, Peer], bytes_moved: int) -> Result:
    batch, n = problem.loc.shape
    work = f"sample_and_kl + backward, Chain({n}), batch {batch}, float32"
    return race(setting, work, ours(problem), peers, tolerance=1e-4, bytes_moved=bytes_moved)


def likelihood(setting: Setting) -> Result:
    """rsample + log_prob + backward: an extended grid against a chain of as many nodes."""
    side, batch = setting.size(28), setting.size(128)
    chain, grid = (
        _likelihood(Step.make(topology, batch, np.float32))
        for topology in (sg.Chain(side * side), sg.ExtendedGrid(side, side))
    )
    work = f"rsample + log_prob + backward, ExtendedGrid({side}, {side}), batch {batch}, float32"
    result = race(setting, work, grid, {"the chain of as many nodes": Peer(lambda: chain)})
    times = result.seconds["sparseggm"] / result.seconds["the chain of as many nodes"]
    return Result(work, result.seconds, [Ratio("of the time of the chain of as many nodes", times, 2.0, "≤")])


def _likelihood(problem: Step) -> Contestant:
    leaves = [torch.from_numpy(array).requires_grad_() for array in (problem.loc, problem.factor)]
    noise, z_bar = torch.from_numpy(problem.noise), torch.from_numpy(problem.z_bar)
    log_bar = torch.from_numpy(problem.kl_bar)

    def call() -> Any:
        q = GaussianGraphicalModel(leaves[0], factor=leaves[1], topology=problem.topology, validate_args=False)
        z = q.loc + q.colorize(noise)  # rsample with the given noise
        log_q = q.log_prob(z)
        return z, log_q, *torch.autograd.grad((z, log_q), leaves, (z_bar, log_bar))

    return Contestant(call, None)


ROWS = {"step-128x16": small, "step-128x784": medium, "step-4096x784": large, "likelihood-extended-grid": likelihood}
