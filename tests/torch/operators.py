"""Every operator that the library registers, with arguments on any batch shapes: one list for what must hold of all.

A row is (number of batch shapes, arguments): the arguments are a function of as many shapes, which broadcast. A row's
name is that of the operator, up to a comma.
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
from sparseggm.torch.operators.registration import index
from tests.torch.problems import factor, values, vectors

Shape = tuple[int, ...]
Row = tuple[int, Callable[..., tuple[Any, ...]]]

BATCHES: list[Shape] = [(), (1,), (2,), (3, 1), (3, 2)]
EMPTY: list[Shape] = [(), (0,), (3, 1), (3, 0)]

FIRST_ORDER = {
    "sample_vjp",
    "sample_and_kl_vjp",
    "sample_and_kl_terms_vjp",
    "kl_terms_vjp",
    "square_distance_vjp",
    "kl_to_normal_vjp",
    "kl_from_normal_vjp",
    "log_prob_vjp",
    "sample_in_levels",
}
"""Operators that are not to be differentiated, most of them of a backward pass: they have no derivative."""

ONCE = {"leading_eigenpair", "levels_log_prob_and_gradients"}
"""Operators whose first result can be differentiated; the others are what its gradient is made of."""

CONSTANTS = {"edges", "uniform"}
"""Names of floating arguments with respect to which nothing is differentiated."""


def pairwise(shapes: list[Shape], count: int) -> Iterator[tuple[Shape, ...]]:
    """Tuples of so many shapes in which every two places have every pair of them; the other places have no axis."""
    for places in itertools.combinations(range(count), min(count, 2)):
        for pair in itertools.product(shapes, repeat=len(places)):
            chosen = dict(zip(places, pair, strict=True))
            yield tuple(chosen.get(place, ()) for place in range(count))


def batches(count: int) -> Iterator[tuple[Shape, ...]]:
    """Tuples of so many batch shapes that broadcast: every pair of them in every two places, and all places full."""
    full = itertools.product([(2,), (3, 1)], repeat=count)
    yield from dict.fromkeys(itertools.chain(pairwise(BATCHES, count), pairwise(EMPTY, count), full))


def operators(on: Pattern) -> dict[str, Row]:
    """The rows on a pattern of L, in an order of elimination that is not the caller's."""
    gram, filled = on.gram(), on.filled()
    order = index(torch.arange(on.n).roll(1).numpy())

    def nodes(batch: Shape, seed: int = 1) -> Tensor:
        return vectors(on.n, *batch, seed=seed).detach()

    def numbers(batch: Shape) -> Tensor:
        return nodes(batch, seed=5)[..., 0]

    def packed(pattern: Pattern, batch: Shape, seed: int = 0) -> Tensor:
        return values(pattern, *batch, seed=seed).detach()

    def lower(batch: Shape, pattern: Pattern = on) -> Tensor:
        return factor(pattern, *batch).detach()

    def with_diagonal(entry: float, batch: Shape) -> Tensor:
        return torch.where(torch.from_numpy(gram.rows == gram.cols), entry, 0.3 * packed(gram, batch))

    def symmetric(batch: Shape) -> Tensor:
        square = vectors(on.n, *batch, on.n, seed=6).detach()
        return square + square.mT

    def tensors(a: Shape, b: Shape, c: Shape) -> tuple[Tensor, Tensor, Tensor]:
        return nodes(a), lower(b), nodes(c, seed=2)

    def step_vjp(a: Shape, b: Shape, c: Shape) -> tuple[Any, ...]:
        return on.key, *tensors(a, b, c), nodes(_full(a, b, c), seed=3), numbers(_full(a, b))

    def residual(a: Shape, b: Shape, c: Shape) -> tuple[Any, ...]:
        """Of priors, of what moves them, and of the noise."""
        return on.key, nodes(a), lower(a), nodes(b, seed=2), 0.3 * packed(on, b), nodes(c, seed=4)

    def residual_vjp(a: Shape, b: Shape, c: Shape) -> tuple[Any, ...]:
        key, _, *tensors = residual(a, b, c)
        full = _full(a, b, c)
        return key, *tensors, nodes(full, seed=3), nodes(full, seed=5)

    def two_factors(a: Shape, b: Shape, c: Shape) -> tuple[Any, ...]:
        return on.key, nodes(a), lower(b), 1.2 * lower(c)

    def sample_vjp(a: Shape, b: Shape, c: Shape) -> tuple[Any, ...]:
        full = _full(a, b, c)
        return on.key, nodes(a), lower(b), order, nodes(full, seed=2), nodes(full, seed=3)

    def distance_vjp(a: Shape, b: Shape, c: Shape) -> tuple[Any, ...]:
        loc, values, x = tensors(a, b, c)
        return on.key, loc, values, order, x, numbers(_full(a, b, c))

    def scales(batch: Shape) -> Tensor:
        return nodes(batch, seed=4).exp()

    def beside_normal(a: Shape, b: Shape, c: Shape, d: Shape) -> tuple[Any, ...]:
        return on.key, nodes(a), lower(b), order, nodes(c, seed=2), scales(d)

    def beside_normal_vjp(a: Shape, b: Shape, c: Shape, d: Shape) -> tuple[Any, ...]:
        return *beside_normal(a, b, c, d), numbers(_full(a, b, c, d))

    def of_levels(a: Shape, b: Shape, c: Shape) -> tuple[Any, ...]:
        uniform = 0.1 + 0.6 * nodes(a, seed=2).sigmoid()
        return on.key, nodes(a), lower(b), (3.0 + nodes(c)).long().clamp(0, 7), (torch.arange(9) / 8.0).logit(), uniform

    return {
        "solve": (2, lambda a, b: (on.key, lower(a), nodes(b))),
        "solve_t": (2, lambda a, b: (on.key, lower(a), nodes(b))),
        "matmul": (2, lambda a, b: (on.key, packed(on, a), nodes(b))),
        "matmul_t": (2, lambda a, b: (on.key, packed(on, a), nodes(b))),
        "symmetric_matmul": (2, lambda a, b: (gram.key, packed(gram, a), nodes(b))),
        "outer": (3, lambda a, b, of: (on.key, nodes(_full(a, of)), nodes(b, seed=2), of)),
        "cholesky": (1, lambda a: (gram.key, with_diagonal(4.0, a))),
        "gram_jvp": (2, lambda a, b: (on.key, packed(on, a), packed(on, b, seed=1))),
        "gram_vjp": (2, lambda a, b: (on.key, packed(on, a), packed(gram, b))),
        "cholesky_jvp": (2, lambda a, b: (filled.key, lower(a, filled), packed(filled, b))),
        "cholesky_vjp": (2, lambda a, b: (filled.key, lower(a, filled), packed(filled, b))),
        "logdet": (1, lambda a: (on.key, lower(a), False)),
        "logdet, in float64": (1, lambda a: (on.key, lower(a), True)),
        "precision_logdet": (1, lambda a: (gram.key, with_diagonal(4.0, a))),
        "precision_solve": (2, lambda a, b: (gram.key, with_diagonal(4.0, a), nodes(b))),
        "marginal_variances": (1, lambda a: (on.key, lower(a))),
        "marginal_variances_vjp": (2, lambda a, b: (on.key, lower(a), nodes(b))),
        "selected_inverse": (1, lambda a: (on.key, "", lower(a))),
        "selected_inverse, on a pattern": (1, lambda a: (on.key, filled.key, lower(a))),
        "selected_inverse_vjp": (2, lambda a, b: (on.key, filled.key, lower(a), packed(filled, b))),
        "restrict": (1, lambda a: (on.key, filled.key, packed(filled, a))),
        "extend": (1, lambda a: (on.key, filled.key, packed(on, a))),
        "leading_eigenspace": (1, lambda a: (symmetric(a),)),
        "leading_projector": (1, lambda a: (symmetric(a),)),
        "leading_eigenpair": (1, lambda a: (gram.key, with_diagonal(0.0, a))),
        "sample_and_kl": (3, lambda a, b, c: (on.key, *tensors(a, b, c))),
        "sample_and_kl_vjp": (3, lambda a, b, c: (*step_vjp(a, b, c), True)),
        "sample_and_kl_vjp, but for the noise": (3, lambda a, b, c: (*step_vjp(a, b, c), False)),
        "sample_and_kl_terms": (3, residual),
        "sample_and_kl_terms_vjp": (3, lambda *shapes: (*residual_vjp(*shapes), True)),
        "sample_and_kl_terms_vjp, but for the noise": (3, lambda *shapes: (*residual_vjp(*shapes), False)),
        "kl_terms": (3, two_factors),
        "kl_terms_vjp": (3, lambda *shapes: (*two_factors(*shapes), nodes(_full(*shapes), seed=3))),
        "sample": (3, lambda a, b, c: (on.key, nodes(a), lower(b), order, _full(a, b, c))),
        "sample_vjp": (3, sample_vjp),
        "sample_and_log_prob": (
            4,
            lambda a, b, c, d: (on.key, nodes(a), lower(b), order, numbers(c)[..., None], nodes(d, seed=2)),
        ),
        "square_distance": (3, lambda a, b, c: distance_vjp(a, b, c)[:-1]),
        "square_distance_vjp": (3, lambda a, b, c: (*distance_vjp(a, b, c), True)),
        "square_distance_vjp, but for x": (3, lambda a, b, c: (*distance_vjp(a, b, c), False)),
        **{
            f"{name}{row}": (4, arguments)
            for name in ("kl_to_normal", "kl_from_normal")
            for row, arguments in (
                ("", beside_normal),
                ("_vjp", lambda *shapes: (*beside_normal_vjp(*shapes), True)),
                ("_vjp, but for mean and scale", lambda *shapes: (*beside_normal_vjp(*shapes), False)),
            )
        },
        "log_prob": (3, lambda a, b, c: distance_vjp(a, b, c)[:-1]),
        "log_prob_vjp": (3, lambda a, b, c: (*distance_vjp(a, b, c), True)),
        "log_prob_vjp, but for x": (3, lambda a, b, c: (*distance_vjp(a, b, c), False)),
        "entropy": (1, lambda a: (on.key, lower(a))),
        "levels_log_prob": (3, of_levels),
        "levels_log_prob_and_gradients": (3, of_levels),
        "sample_in_levels": (3, of_levels),
        "square_norm": (1, lambda a: (nodes(a),)),
    }


OPERATORS = operators(sg.ExtendedGrid(2, 3).factor_pattern)
"""On an extended grid's factor, whose fill and Gram pattern are larger."""


def _full(*shapes: Shape) -> Shape:
    return tuple(torch.broadcast_shapes(*shapes))


def registered() -> set[str]:
    """The names that the library has registered with the dispatcher."""
    return set(torch.ops.sparseggm)


def name_of(row: str) -> str:
    return row.split(",")[0]


def operator(row: str) -> Any:
    return getattr(torch.ops.sparseggm, name_of(row)).default


def floating(row: str, arguments: tuple[Any, ...]) -> list[int]:
    """The places of the arguments that are mapped and differentiated."""
    names = [argument.name for argument in operator(row)._schema.arguments]
    found = (i for i, a in enumerate(arguments) if isinstance(a, Tensor) and a.is_floating_point())
    return [i for i in found if names[i] not in CONSTANTS]
