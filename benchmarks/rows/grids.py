"""Grids and meshes: log det, its gradient, the selected inverse given P and its gradient; variances given L."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.spatial import Delaunay

import sparseggm as sg
from benchmarks.contest import Contestant, Peer, Result, Setting, race
from benchmarks.peers import lapack, peer_module, pytorch
from benchmarks.problems import Array, factor_of, precision_of
from sparseggm import adjoints, linalg
from sparseggm.torch import ops


def _grid(setting: Setting, batch: int) -> tuple[sg.Grid, Array]:
    side = setting.size(28)
    topology = sg.Grid(side, side)
    return topology, precision_of(topology, (batch,))


def logdet(setting: Setting) -> Result:
    """log det P."""
    topology, precision = _grid(setting, setting.size(128))
    pattern = topology.precision_pattern
    ours = Contestant(lambda: linalg.precision_logdet(pattern, precision), lambda x: [x])
    peers = {
        "sparsax (CHOLMOD)": Peer(lambda: _cholmod().logdet(pattern, precision), 10.0),
        "LAPACK pbtrf, threads over the batch": Peer(lambda: lapack.logdet(topology, precision)),
        "torch, dense": Peer(lambda: pytorch.logdet(pattern, precision)),
    }
    return race(setting, f"log det, {topology} given P, batch {len(precision)}, float64", ours, peers)


def logdet_with_gradient(setting: Setting) -> Result:
    """log det P and its gradient: Σ on the graph, with couplings doubled."""
    topology, precision = _grid(setting, setting.size(128))
    pattern = topology.precision_pattern
    leaf = torch.from_numpy(precision).requires_grad_()
    ones = torch.ones(len(precision), dtype=torch.float64)

    def call() -> Any:
        logdets = ops.precision_logdet(pattern, leaf)
        return logdets, *torch.autograd.grad(logdets, leaf, ones)

    ours = Contestant(call, lambda result: [tensor.detach().numpy() for tensor in result])
    peers = {"sparsax (CHOLMOD)": Peer(lambda: _cholmod().logdet_with_gradient(pattern, precision), 10.0)}
    return race(setting, f"log det + gradient, {topology} given P, batch {len(precision)}, float64", ours, peers)


def mesh_logdet_with_gradient(setting: Setting) -> Result:
    """log det P of one large matrix, and its gradient: a Matérn field on a triangulation."""
    side = setting.size(140)
    corners = np.stack(np.divmod(np.arange(side**2), side), axis=-1)
    points = (corners + np.random.default_rng(0).uniform(-0.3, 0.3, corners.shape)) / side
    matern = sg.fields.Matern(sg.fields.Mesh(points, Delaunay(points).simplices))
    pattern, precision = matern.topology.precision_pattern, matern.precision(0.02, 1.0)[None]
    leaf = torch.from_numpy(precision).requires_grad_()

    def call() -> Any:
        logdet = ops.precision_logdet(pattern, leaf)
        return logdet, *torch.autograd.grad(logdet.sum(), leaf)

    ours = Contestant(call, lambda result: [tensor.detach().numpy() for tensor in result])
    peers = {"sparsax (CHOLMOD)": Peer(lambda: _cholmod().logdet_with_gradient(pattern, precision), 3.0)}
    work = f"log det + gradient, Matérn field on a mesh of {pattern.n} nodes, float64"
    return race(setting, work, ours, peers, tolerance=1e-6)


def selected_inverse(setting: Setting) -> Result:
    """Σ on the graph given P."""
    topology, precision = _grid(setting, setting.size(128))
    pattern, filled = topology.precision_pattern, topology.precision_pattern.filled()
    on_graph = pattern.positions_in(filled)
    ours = Contestant(
        lambda: linalg.selected_inverse(filled, linalg.cholesky(pattern, precision)), lambda x: [x[..., on_graph]]
    )
    peers = {"sparsax (CHOLMOD)": Peer(lambda: _cholmod().selected_inverse(pattern, precision), 10.0)}
    return race(setting, f"selected inverse, {topology} given P, batch {len(precision)}, float64", ours, peers)


def selected_inverse_with_gradient(setting: Setting) -> Result:
    """Σ on nodes and edges, weighted, and the gradient with respect to P's stored values."""
    topology, precision = _grid(setting, setting.size(16))
    pattern, filled = topology.precision_pattern, topology.precision_pattern.filled()
    rng = np.random.default_rng(2)
    weights = [rng.standard_normal((len(precision), count)) for count in (topology.n, len(topology.edges))]
    on_graph = pattern.positions_in(filled)
    sigma_bar = np.zeros((len(precision), filled.nnz))
    sigma_bar[:, on_graph] = topology.pack(tuple(weights))

    def call() -> Any:
        factor = linalg.cholesky(pattern, precision)
        sigma = linalg.selected_inverse(filled, factor)
        factor_bar = adjoints.selected_inverse_vjp(filled, factor, sigma_bar)
        return sigma, adjoints.cholesky_vjp(filled, factor, factor_bar)

    def answer(result: Any) -> list[Array]:
        sigma, precision_bar = (topology.unpack(values[:, on_graph]) for values in result)
        return [np.concatenate(sigma, -1), *precision_bar]

    def gabp(reused: bool, goal: float | None) -> Peer:
        def make() -> Contestant:
            module = peer_module("gabp", "gabp_sparse_inv")
            values = topology.unpack(precision)
            made: Contestant = module.selected_inverse_with_gradient(topology, *values, weights, reused=reused)
            return made

        return Peer(make, goal)

    peers = {
        "gabp-sparse-inv": gabp(reused=False, goal=1000.0),
        "gabp-sparse-inv, analysis reused, batched": gabp(reused=True, goal=None),
    }
    work = f"selected inverse + backward, {topology} given P, batch {len(precision)}, float64"
    return race(setting, work, Contestant(call, answer), peers)


def variances_with_gradient(setting: Setting) -> Result:
    """Exact variances of an extended grid given L, and the gradient of L."""
    side, batch = setting.size(28), setting.size(128)
    topology = sg.ExtendedGrid(side, side)
    pattern, factor = topology.factor_pattern, factor_of(topology, (batch,), np.float32)
    bar = np.random.default_rng(1).standard_normal((batch, topology.n)).astype(np.float32)
    leaf, cotangent = torch.from_numpy(factor).requires_grad_(), torch.from_numpy(bar)

    def call() -> Any:
        variances = ops.marginal_variances(pattern, leaf)
        return variances, *torch.autograd.grad(variances, leaf, cotangent)

    ours = Contestant(call, lambda result: [tensor.detach().numpy() for tensor in result])
    peers = {"torch, dense": Peer(lambda: pytorch.variances_with_gradient(pattern, factor, bar), 200.0)}
    work = f"variances + backward, {topology} given L, batch {batch}, float32"
    return race(setting, work, ours, peers, tolerance=1e-4)


def _cholmod() -> Any:
    return peer_module("cholmod", "jax", "sparsax")


ROWS = {
    "grid-logdet": logdet,
    "grid-logdet-gradient": logdet_with_gradient,
    "grid-selected-inverse": selected_inverse,
    "mesh-logdet-gradient": mesh_logdet_with_gradient,
    "grid-selected-inverse-backward": selected_inverse_with_gradient,
    "extended-grid-variances-backward": variances_with_gradient,
}
