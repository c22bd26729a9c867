"""The probability of 128 images of grey levels, one sample each: an extended grid 28 × 28 beside a diagonal."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

import sparseggm as sg
from benchmarks.contest import Contestant, Peer, Ratio, Result, Setting, race
from benchmarks.peers import special
from benchmarks.problems import Array, factor_of
from sparseggm.torch import GaussianGraphicalModel, GreyLevels


def _numbers(topology: sg.Topology, batch: int) -> tuple[Array, ...]:
    rng = np.random.default_rng(1)
    loc = rng.standard_normal((batch, topology.n)).astype(np.float32)
    levels, uniform = rng.integers(0, 256, (batch, topology.n)), rng.uniform(0.01, 0.99, (batch, topology.n))
    return loc, factor_of(topology, (batch,), np.float32), levels, uniform.astype(np.float32)


def _contestant(topology: sg.Topology, batch: int, with_gradients: bool) -> Contestant:
    loc, factor, levels, uniform = map(torch.from_numpy, _numbers(topology, batch))
    parameters = [tensor.requires_grad_(with_gradients) for tensor in (loc, factor)]

    def call() -> Any:
        q = GaussianGraphicalModel(parameters[0], factor=parameters[1], topology=topology, validate_args=False)
        log_prob = GreyLevels(q).log_prob(levels, uniform=uniform[None])
        return [log_prob, *(torch.autograd.grad(log_prob.sum(), parameters) if with_gradients else ())]

    return Contestant(call, lambda results: [tensor.detach().numpy() for tensor in results])


def levels(setting: Setting, with_gradients: bool) -> Result:
    """log_prob of images, with or without its gradients; a diagonal needs at least half of the time."""
    side, batch = setting.size(28), setting.size(128)
    grid, diagonal = sg.ExtendedGrid(side, side), sg.Diagonal(side * side)
    of_diagonal = _contestant(diagonal, batch, with_gradients)
    peers = {"a diagonal": Peer(lambda: Contestant(of_diagonal.call, None), 0.5)}
    if not with_gradients:
        loc, factor, levels, uniform = _numbers(grid, batch)
        edges = GreyLevels(GaussianGraphicalModel(loc, factor=factor, topology=grid))._edges().numpy()
        arguments = grid.factor_pattern, loc, factor, np.stack([edges[levels], edges[levels + 1]]), uniform
        peers["scipy.special, a loop over nodes"] = Peer(lambda: special.levels_log_prob(*arguments), 3.0)
    work = f"log_prob of grey levels{' + gradients' if with_gradients else ''}, {grid}, batch {batch}, float32"
    result = race(setting, work, _contestant(grid, batch, with_gradients), peers)
    result.ratios.append(Ratio("a pixel and sample", result.seconds["sparseggm"] / (batch * grid.n), unit="s"))
    return result


ROWS = {
    "levels-128x784": lambda setting: levels(setting, False),
    "levels-gradient-128x784": lambda setting: levels(setting, True),
}
