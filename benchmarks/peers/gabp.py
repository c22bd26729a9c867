"""gabp-sparse-inv: the selected inverse of a batch of grids, and the gradient, by its routes for repeated use."""

from __future__ import annotations

from typing import Any

import gabp_sparse_inv as gabp
import numpy as np
import torch
from torch import Tensor

from benchmarks.contest import Contestant
from benchmarks.problems import Array
from sparseggm import Grid


def _weighted(topology: Grid, result: tuple[Tensor, Tensor, Tensor], weights: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Σ on nodes and edges of the grid, (batch, n + m), and Σ · weights."""
    diagonal, filled, lower = result
    codes = filled[0] * topology.n + filled[1]
    order = torch.argsort(codes)
    wanted = torch.from_numpy(topology.edges[:, 0] * topology.n + topology.edges[:, 1])
    places = order[torch.searchsorted(codes[order], wanted)]
    on_graph = torch.cat([diagonal[..., 0, 0], lower[..., places, 0, 0]], -1)
    return on_graph, (on_graph * torch.cat(weights, -1)).sum()


def selected_inverse_with_gradient(
    topology: Grid, diagonal: Array, couplings: Array, weights: tuple[Array, Array], *, reused: bool
) -> Contestant:
    """Σ on nodes and edges, and the gradient of Σ · weights with respect to P's stored values.

    Args:
        weights: (batch, n) and (batch, m).
        reused: take the fastest route, with the analysis done beforehand, level by level; else the first route of its
            README, node by node.
    """
    rows, cols = topology.shape
    order = gabp.elimination_order_nested_dissection(rows, cols)
    edges = torch.from_numpy(np.ascontiguousarray(topology.edges.T))
    leaves = [torch.from_numpy(np.ascontiguousarray(values))[..., None, None] for values in (diagonal, couplings)]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    cotangents = [torch.from_numpy(array) for array in weights]
    analysis = gabp.analyze_junction(topology.n, edges, order)

    def call() -> Any:
        if reused:
            inverse = analysis.factor(*leaves, batched=True).selected_inverse()
        else:
            inverse = gabp.selinv_junction(leaves[0], edges, leaves[1], order)
        on_graph, weighted = _weighted(topology, inverse, cotangents)
        return on_graph, *torch.autograd.grad(weighted, leaves)

    def answer(result: Any) -> list[Any]:
        return [result[0].detach().numpy(), *(bar[..., 0, 0].numpy() for bar in result[1:])]

    return Contestant(call, answer)
