"""Every public verb in one table, so that a contract is tested on all of them by the same few lines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparseggm import Pattern, adjoints, linalg
from tests.numerics import Array
from tests.strategies import Shape, factor_values, precision_values


@dataclass(frozen=True)
class Verb:
    """A function of a pattern and arrays, and where each array lives."""

    function: Callable[..., Array]
    operands: dict[str, str]
    """Argument name → kind: factor or packed (on the pattern), precision, gram, filled, or vector."""
    result: str
    """Kind of the result; scalar for none of its own axes."""
    needs_closed: bool = False

    @property
    def name(self) -> str:
        return self.function.__name__

    def __call__(self, pattern: Pattern, arguments: dict[str, Array]) -> Array:
        return self.function(pattern, *arguments.values())

    @property
    def needs_positive_diagonal(self) -> bool:
        """Whether a factor with a diagonal entry ≤ 0 is an error (a triangular solve only needs it nonzero)."""
        return "factor" in self.operands and not self.name.startswith(("matmul", "solve", "gram"))


VERBS = {
    verb.name: verb
    for verb in (
        Verb(linalg.matmul, {"factor": "factor", "x": "vector"}, "vector"),
        Verb(linalg.matmul_t, {"factor": "factor", "x": "vector"}, "vector"),
        Verb(linalg.symmetric_matmul, {"precision": "precision", "x": "vector"}, "vector"),
        Verb(linalg.solve, {"factor": "factor", "rhs": "vector"}, "vector"),
        Verb(linalg.solve_t, {"factor": "factor", "rhs": "vector"}, "vector"),
        Verb(linalg.outer, {"x": "vector", "y": "vector"}, "packed"),
        Verb(linalg.cholesky, {"precision": "precision"}, "filled"),
        Verb(linalg.gram, {"factor": "factor"}, "gram"),
        Verb(linalg.logdet, {"factor": "factor"}, "scalar"),
        Verb(linalg.selected_inverse, {"factor": "factor"}, "filled"),
        Verb(linalg.marginal_variances, {"factor": "factor"}, "vector"),
        Verb(linalg.trace_inverse, {"factor": "factor"}, "scalar"),
        Verb(adjoints.gram_jvp, {"a": "packed", "b": "packed"}, "gram"),
        Verb(adjoints.gram_vjp, {"a": "packed", "v": "gram"}, "packed"),
        Verb(adjoints.cholesky_jvp, {"factor": "factor", "v": "packed"}, "packed", needs_closed=True),
        Verb(adjoints.cholesky_vjp, {"factor": "factor", "x": "packed"}, "packed", needs_closed=True),
        Verb(adjoints.selected_inverse_vjp, {"factor": "factor", "sigma_bar": "filled"}, "packed"),
        Verb(adjoints.marginal_variances_vjp, {"factor": "factor", "variances_bar": "vector"}, "packed"),
    )
}

PAIRS = [(verb, operand) for verb in VERBS.values() for operand in verb.operands]


def size_of(kind: str, pattern: Pattern) -> int:
    """Length of the last axis of an array of this kind."""
    sizes = {"vector": pattern.n, "gram": pattern.gram().nnz, "filled": pattern.filled().nnz}
    return sizes.get(kind, pattern.nnz)


def operand(rng: np.random.Generator, kind: str, pattern: Pattern, batch: Shape, dtype: Any) -> Array:
    """Moderate values: no overflow, no failure."""
    if kind == "factor":
        return factor_values(rng, pattern, batch, "plain", dtype)
    if kind == "precision":
        return precision_values(rng, pattern, batch, "dominant", dtype)
    return rng.standard_normal((*batch, size_of(kind, pattern))).astype(dtype)


def arguments(
    verb: Verb, pattern: Pattern, seed: int = 0, *batches: Shape, dtype: Any = np.float64
) -> dict[str, Array]:
    """An argument for each operand, with the batch shapes in turn; the last of them (or none) serves the rest."""
    rng = np.random.default_rng(seed)
    shapes = [*batches, *[batches[-1] if batches else ()] * len(verb.operands)]
    pairs = zip(verb.operands.items(), shapes, strict=False)
    return {name: operand(rng, kind, pattern, shape, dtype) for (name, kind), shape in pairs}
