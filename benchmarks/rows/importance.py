"""Importance weighting: thousands of samples of each of many small Gaussians, and their log-densities."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

import sparseggm as sg
from benchmarks.contest import Contestant, Peer, Ratio, Result, Setting, race
from benchmarks.peers import pytorch
from benchmarks.problems import factor_of
from benchmarks.timing import peak_memory
from sparseggm.torch import GaussianGraphicalModel


def importance(setting: Setting) -> Result:
    """5,000 samples of each of 128 extended grids 4 × 4, noise given."""
    samples, batch = setting.size(5000), setting.size(128)
    topology = sg.ExtendedGrid(4, 4)
    pattern, factor = topology.factor_pattern, factor_of(topology, (batch,), np.float32)
    rng = np.random.default_rng(1)
    loc = rng.standard_normal((batch, topology.n), np.float32)
    noise = rng.standard_normal((samples, batch, topology.n), np.float32)
    mean, values, eps = (torch.from_numpy(array) for array in (loc, factor, noise))
    q = GaussianGraphicalModel(mean, factor=values, topology=topology, validate_args=False)

    def call() -> Any:
        return q.rsample_and_log_prob(noise=eps)

    work = f"{samples:,} samples + log-densities, {topology}, batch {batch}, float32"
    ours = Contestant(call, lambda result: [tensor.numpy() for tensor in result])
    peers = {
        "torch, dense triangular solve": Peer(lambda: pytorch.draws_by_solve(pattern, loc, factor, noise), 3.0),
        "torch, dense inverse": Peer(lambda: pytorch.draws_by_inverse(pattern, loc, factor, noise), 3.0),
    }
    output = noise.nbytes + noise[..., 0].nbytes
    result = race(setting, work, ours, peers, tolerance=1e-4, bytes_moved=output + noise.nbytes)
    peak = peak_memory(call)
    if peak is not None:
        result.ratios.append(Ratio("of the output's size, peak memory", peak / output, 1.2, "≤"))
    return result


ROWS = {"importance-weighting": importance}
