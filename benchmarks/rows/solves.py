"""`solve_t`, which makes a sample given L, against the memory limit."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

import sparseggm as sg
from benchmarks.contest import Contestant, Peer, Result, Setting, race
from benchmarks.peers import lapack, peer_module, pytorch
from benchmarks.problems import Array, factor_of
from sparseggm import linalg


def large(setting: Setting, kind: str, dtype: Any) -> Result:
    """Lᵀ x = ε for 4096 factors of 784 nodes."""
    side, batch = setting.size(28), setting.size(4096)
    topology = sg.Chain(side * side) if kind == "chain" else sg.ExtendedGrid(side, side)
    pattern, factor, noise = _problem(topology, batch, dtype)
    peers = {"LAPACK tbtrs, threads over the batch": Peer(lambda: lapack.solve_t(pattern, factor, noise))}
    return _race(setting, topology, factor, noise, peers, limit_goal=0.8)


def medium(setting: Setting) -> Result:
    """Lᵀ x = ε for 128 extended grids, small enough for the dense and the sparse solves of torch."""
    side, batch = setting.size(28), setting.size(128)
    topology = sg.ExtendedGrid(side, side)
    pattern, factor, noise = _problem(topology, batch, np.float32)
    peers = {
        "LAPACK tbtrs, threads over the batch": Peer(lambda: lapack.solve_t(pattern, factor, noise)),
        "torch, dense": Peer(lambda: pytorch.solve_t(pattern, factor, noise)),
        "torchsparsegradutils": Peer(
            lambda: peer_module("gradutils", "torchsparsegradutils").solve_t(pattern, factor, noise)
        ),
    }
    return _race(setting, topology, factor, noise, peers)


def _problem(topology: sg.Topology, batch: int, dtype: Any) -> tuple[sg.Pattern, Array, Array]:
    noise = np.random.default_rng(1).standard_normal((batch, topology.n)).astype(dtype)
    return topology.factor_pattern, factor_of(topology, (batch,), dtype), noise


def _race(
    setting: Setting,
    topology: sg.Topology,
    factor: Array,
    noise: Array,
    peers: dict[str, Peer],
    limit_goal: float | None = None,
) -> Result:
    return race(
        setting,
        f"solve_t, {topology}, batch {len(factor)}, {factor.dtype}",
        Contestant(lambda: linalg.solve_t(topology.factor_pattern, factor, noise), lambda x: [x]),
        peers,
        tolerance=200 * float(np.finfo(factor.dtype).eps),
        bytes_moved=factor.nbytes + 2 * noise.nbytes,
        limit_goal=limit_goal,
    )


ROWS = {
    f"solve_t-{kind}-{np.dtype(dtype)}": partial(large, kind=kind, dtype=dtype)
    for kind in ("chain", "extended-grid")
    for dtype in (np.float32, np.float64)
} | {"solve_t-128x784": medium}
