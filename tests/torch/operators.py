"""Every operator that the library registers, with arguments on any batch shapes: one list for what must hold of all.

A row is (number of batch shapes, arguments): the arguments are a function of as many shapes, which broadcast. A row's
name is that of the operator, up to a comma. The pattern is an extended grid's factor, whose fill and Gram pattern are
larger, in an order that is not the caller's.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import sparseggm as sg
import sparseggm.torch  # registers
from sparseggm import Pattern
from sparseggm.torch.registration import index
from tests.torch.problems import factor, values, vectors

Shape = tuple[int, ...]
Arguments = tuple[Any, ...]

ON = sg.ExtendedGrid(2, 3).factor_pattern
GRAM, FILLED = ON.gram(), ON.filled()
ORDER = index(sg.Grid(2, 3).order)

BATCHES: list[Shape] = [(), (1,), (2,), (3, 1), (3, 2)]
EMPTY: list[Shape] = [(), (0,), (3, 1), (3, 0)]


def batches(count: int) -> Iterator[tuple[Shape, ...]]:
    """All tuples of so many batch shapes that broadcast."""
    yield from dict.fromkeys(
        itertools.chain(itertools.product(BATCHES, repeat=count), itertools.product(EMPTY, repeat=count))
    )


def _packed(pattern: Pattern, *batch: int, seed: int = 0) -> Tensor:
    return values(pattern, *batch, seed=seed).detach()


def _nodes(*batch: int, seed: int = 1) -> Tensor:
    return vectors(ON.n, *batch, seed=seed).detach()


def _lower(*batch: int, on: Pattern = ON) -> Tensor:
    return factor(on, *batch).detach()


def _precision(*batch: int) -> Tensor:
    on_diagonal = torch.from_numpy(GRAM.rows == GRAM.cols)
    return torch.where(on_diagonal, 4.0, 0.3 * _packed(GRAM, *batch))


def _numbers(*batch: int) -> Tensor:
    return _nodes(*batch, seed=5)[..., 0]


def _full(*shapes: Shape) -> Shape:
    return tuple(torch.broadcast_shapes(*shapes))


OPERATORS: dict[str, tuple[int, Callable[..., Arguments]]] = {
    "solve": (2, lambda a, b: (ON.key, _lower(*a), _nodes(*b))),
    "solve_t": (2, lambda a, b: (ON.key, _lower(*a), _nodes(*b))),
    "matmul": (2, lambda a, b: (ON.key, _packed(ON, *a), _nodes(*b))),
    "matmul_t": (2, lambda a, b: (ON.key, _packed(ON, *a), _nodes(*b))),
    "symmetric_matmul": (2, lambda a, b: (GRAM.key, _packed(GRAM, *a), _nodes(*b))),
    "outer": (3, lambda a, b, of: (ON.key, _nodes(*_full(a, of)), _nodes(*b, seed=2), of)),
    "cholesky": (1, lambda a: (GRAM.key, _precision(*a))),
    "gram_jvp": (2, lambda a, b: (ON.key, _packed(ON, *a), _packed(ON, *b, seed=1))),
    "gram_vjp": (2, lambda a, b: (ON.key, _packed(ON, *a), _packed(GRAM, *b))),
    "cholesky_jvp": (2, lambda a, b: (FILLED.key, _lower(*a, on=FILLED), _packed(FILLED, *b))),
    "cholesky_vjp": (2, lambda a, b: (FILLED.key, _lower(*a, on=FILLED), _packed(FILLED, *b))),
    "logdet": (1, lambda a: (ON.key, _lower(*a), False)),
    "logdet, in float64": (1, lambda a: (ON.key, _lower(*a), True)),
    "precision_logdet": (1, lambda a: (GRAM.key, _precision(*a))),
    "marginal_variances": (1, lambda a: (ON.key, _lower(*a))),
    "marginal_variances_vjp": (2, lambda a, b: (ON.key, _lower(*a), _nodes(*b))),
    "selected_inverse": (1, lambda a: (ON.key, "", _lower(*a))),
    "selected_inverse, on a pattern": (1, lambda a: (ON.key, FILLED.key, _lower(*a))),
    "selected_inverse_vjp": (2, lambda a, b: (ON.key, FILLED.key, _lower(*a), _packed(FILLED, *b))),
    "restrict": (1, lambda a: (ON.key, FILLED.key, _packed(FILLED, *a))),
    "extend": (1, lambda a: (ON.key, FILLED.key, _packed(ON, *a))),
    "leading_eigenpair": (1, lambda a: (GRAM.key, _hollow(*a))),
    "sample_and_kl": (3, lambda a, b, c: (ON.key, _nodes(*a), _lower(*b), _nodes(*c, seed=2))),
    "sample_and_kl_vjp": (3, lambda a, b, c: (*_step_vjp(a, b, c), True)),
    "sample_and_kl_vjp, but for the noise": (3, lambda a, b, c: (*_step_vjp(a, b, c), False)),
    "draw": (3, lambda a, b, c: (ON.key, _nodes(*a), _lower(*b), ORDER, _full(a, b, c))),
    "draw_vjp": (3, lambda a, b, c: _draw_vjp(a, b, _full(a, b, c))),
    "draw_and_log_prob": (
        4,
        lambda a, b, c, d: (ON.key, _nodes(*a), _lower(*b), ORDER, _nodes(*c)[..., :1], _nodes(*d, seed=2)),
    ),
    "square_distance": (3, lambda a, b, c: (ON.key, _nodes(*a), _lower(*b), ORDER, _nodes(*c, seed=2))),
    "square_distance_vjp": (3, lambda a, b, c: (*_distance_vjp(a, b, c), True)),
    "square_distance_vjp, but for x": (3, lambda a, b, c: (*_distance_vjp(a, b, c), False)),
    "square_norm": (1, lambda a: (_nodes(*a),)),
}

FIRST_ORDER = {"draw_vjp", "sample_and_kl_vjp", "square_distance_vjp"}
"""Operators of a backward pass that is not to be differentiated: they have no derivative."""


def _hollow(*batch: int) -> Tensor:
    on_diagonal = torch.from_numpy(GRAM.rows == GRAM.cols)
    return torch.where(on_diagonal, 0.0, _packed(GRAM, *batch))


def _step_vjp(a: Shape, b: Shape, c: Shape) -> Arguments:
    z_bar, kl_bar = _nodes(*_full(a, b, c), seed=3), _numbers(*_full(a, b))
    return ON.key, _nodes(*a), _lower(*b), _nodes(*c, seed=2), z_bar, kl_bar


def _draw_vjp(a: Shape, b: Shape, full: Shape) -> Arguments:
    return ON.key, _nodes(*a), _lower(*b), ORDER, _nodes(*full, seed=2), _nodes(*full, seed=3)


def _distance_vjp(a: Shape, b: Shape, c: Shape) -> Arguments:
    return ON.key, _nodes(*a), _lower(*b), ORDER, _nodes(*c, seed=2), _numbers(*_full(a, b, c))


def registered() -> set[str]:
    """The names that the library has registered with the dispatcher."""
    return set(torch.ops.sparseggm)


def name_of(row: str) -> str:
    return row.split(",")[0]


def operator(row: str) -> Any:
    return getattr(torch.ops.sparseggm, name_of(row)).default
