"""Topologies, factors and operator calls that the torch tests share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

import sparseggm as sg
from sparseggm import Pattern, adjoints, linalg
from sparseggm.torch import ops

TOPOLOGIES = [
    sg.Diagonal(3),
    sg.Chain(4),
    sg.BlockChain(2, 2),
    sg.ExtendedGrid(2, 3),
    sg.Grid(1, 4),  # factor-free, though not eliminated in its natural order
    sg.Grid(3, 3),
]


def values(pattern: Pattern, *batch: int, seed: int = 0) -> Tensor:
    """Arbitrary packed values, float64, that ask for gradients."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.standard_normal((*batch, pattern.nnz))).requires_grad_()


def vectors(n: int, *batch: int, seed: int = 0) -> Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.standard_normal((*batch, n))).requires_grad_()


def factor(pattern: Pattern, *batch: int, seed: int = 0) -> Tensor:
    """A well-conditioned L: diagonal within e^±0.3 or so, couplings of 0.3."""
    rng = np.random.default_rng(seed)
    lower = 0.3 * rng.standard_normal((*batch, pattern.nnz))
    lower[..., pattern.diagonal] = np.exp(lower[..., pattern.diagonal])
    return torch.from_numpy(lower).requires_grad_()


@dataclass(frozen=True)
class Call:
    """An operator with fixed pattern, its NumPy verb, and arguments that ask for gradients."""

    operator: Callable[..., Any]
    verb: Callable[..., Any]
    arguments: tuple[Tensor, ...]


def gradgradcheck(function: Callable[..., Any], inputs: Any) -> bool:
    """Torch's own, along a random direction instead of along every one: a tenth of the time for many arguments."""
    passes: bool = torch.autograd.gradgradcheck(function, inputs, fast_mode=True)
    return passes


def calls(topology: sg.Topology) -> dict[str, Call]:
    """Every operator on the topology's factor pattern, with batch axes that broadcast."""
    on, n = topology.factor_pattern, topology.n
    gram, closed = on.gram(), on.filled()
    lower, x, y = factor(on, 2), vectors(n, 3, 2, seed=1), vectors(n, 2, seed=2)
    precision = torch.from_numpy(linalg.gram(on, lower.detach().numpy())).requires_grad_()

    def call(name: str, pattern: Pattern, *arguments: Tensor) -> Call:
        verb = getattr(linalg, name, None) or getattr(adjoints, name)
        return Call(lambda *a: getattr(ops, name)(pattern, *a), lambda *a: verb(pattern, *a), arguments)

    summed = Call(lambda *a: ops.outer(on, *a, (2,)), lambda *a: linalg.outer(on, *a, (2,)), (x, y))
    between = (on, closed)
    restricted = Call(
        lambda v: ops.restrict(*between, v), lambda v: v[..., on.positions_in(closed)], (values(closed, 2),)
    )
    extended = Call(lambda v: ops.extend(*between, v), lambda v: _embedded(*between, v), (lower,))
    solved = Call(
        lambda *a: _side_by_side(torch, *ops.precision_solve(gram, *a)),
        lambda *a: _side_by_side(np, *linalg.precision_solve(gram, *a)),
        (precision, x),
    )
    return {
        "solve": call("solve", on, lower, x),
        "solve_t": call("solve_t", on, lower, x),
        "matmul": call("matmul", on, values(on, 2), x),
        "matmul_t": call("matmul_t", on, values(on, 2), x),
        "symmetric_matmul": call("symmetric_matmul", gram, values(gram, 2), x),
        "outer": call("outer", on, x, y),
        "outer, summed to the batch of L": summed,
        "cholesky": call("cholesky", gram, precision),
        "gram": call("gram", on, lower),
        "gram_jvp": call("gram_jvp", on, values(on, 2), values(on, 3, 2, seed=1)),
        "gram_vjp": call("gram_vjp", on, values(on, 2), values(gram, 2, seed=1)),
        "cholesky_jvp": call("cholesky_jvp", closed, factor(closed, 2), values(closed, 2, seed=1)),
        "cholesky_vjp": call("cholesky_vjp", closed, factor(closed, 2), values(closed, 2, seed=1)),
        "logdet": call("logdet", on, lower),
        "precision_logdet": call("precision_logdet", gram, precision),
        "precision_solve": solved,
        "marginal_variances": call("marginal_variances", on, lower),
        "marginal_variances_vjp": call("marginal_variances_vjp", on, lower, y),
        "trace_inverse": call("trace_inverse", on, lower),
        "restrict": restricted,
        "extend": extended,
        "selected_inverse": call("selected_inverse", on, lower),
        "selected_inverse_vjp": call("selected_inverse_vjp", on, lower, values(closed, 3, 1, seed=1)),
    }


def _side_by_side(xp: Any, x: Any, logdet: Any) -> Any:
    """Both results of `precision_solve` as one: (..., n + 1)."""
    return xp.concatenate([x, xp.broadcast_to(logdet[..., None], (*x.shape[:-1], 1))], -1)


def _embedded(pattern: Pattern, on: Pattern, v: Any) -> Any:
    embedded = np.zeros((*v.shape[:-1], on.nnz), v.dtype)
    embedded[..., pattern.positions_in(on)] = v
    return embedded


CALLS = [(topology, name) for topology in TOPOLOGIES for name in calls(topology)]
