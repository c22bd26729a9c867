"""Every public verb in one table, so that a contract is tested on all of them by the same few lines.

A verb with several results has a row for each, and one with an option that changes memory or pattern a row for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import logit

from sparseggm import Pattern, adjoints, linalg
from sparseggm.linalg import conditionals, density, levels, residual, sampling, step
from tests.numerics import Array
from tests.strategies import Shape, factor_values, precision_values

SCALARS = ("number", "number in float64")
"""Kinds of operand that have one number a batch element, the second whatever the dtype of the rest."""

VECTORS = ("vector", "scale", "uniform")
"""Kinds that have a number a node."""


@dataclass(frozen=True)
class Verb:
    """A function of a pattern and arrays, and where each array lives."""

    function: Callable[..., Any]
    operands: dict[str, str]
    """Argument name → kind: factor, packed or moves (small; on the pattern), precision, gram, filled, vector, scale
    (positive), uniform (in (0, 1)), or one of SCALARS."""
    result: str
    """Kind of the result, also half (on `half_of` the pattern); scalar for none of its own axes."""
    needs_closed: bool = False
    row: str = ""
    """What tells this row from others of the function."""
    call: Callable[..., Any] | None = None
    """How the function is called on these, and which of its results is meant; None: as it is, and its only one."""
    batch_of: str | None = None
    """The operand whose batch axes the result has; None: all, broadcast."""
    is_one_batch: bool = False
    """Whether all operands must have the same batch axes."""
    dtype: str | None = None
    """Of the result; None: that of the operands."""
    judges: bool = False
    """Whether NaN is no error, but makes the answer False."""
    takes_logarithms: bool = False

    @property
    def name(self) -> str:
        """With which messages begin."""
        return self.function.__name__

    def __str__(self) -> str:
        return f"{self.name}{self.row}"

    def __call__(self, pattern: Pattern, arguments: dict[str, Array]) -> Array:
        return (self.call or self.function)(pattern, *arguments.values())

    @property
    def arrays(self) -> list[str]:
        """The operands that have an axis of their own."""
        return [name for name, kind in self.operands.items() if kind not in SCALARS]

    @property
    def needs_positive_diagonal(self) -> bool:
        """Whether a factor with a diagonal entry ≤ 0 is an error (a triangular solve only needs it nonzero)."""
        allows_others = self.name in ("sample", "sample_vjp") or self.name.startswith(
            ("matmul", "solve", "gram", "sample_and_log_prob")
        )
        return "factor" in self.operands and not allows_others

    def on(self, pattern: Pattern) -> Pattern:
        """The pattern, or its fill where it must be closed."""
        return pattern.filled() if self.needs_closed else pattern

    def batch(self, given: dict[str, Array]) -> Shape:
        """Batch axes of the call."""
        shapes = (np.shape(given[name])[: -1 if name in self.arrays else None] for name in self.operands)
        return np.broadcast_shapes(*shapes)


def half_of(pattern: Any) -> Any:
    """The diagonal and every other entry below it; what is no pattern as it is."""
    if not isinstance(pattern, Pattern):
        return pattern
    below = np.flatnonzero(pattern.rows != pattern.cols)[::2]
    return Pattern.from_edges(pattern.n, np.stack([pattern.rows[below], pattern.cols[below]], axis=-1))


def solve_t_into(pattern: Any, factor: Array, rhs: Array) -> Array:
    """`solve_t` into memory of the caller's."""
    try:
        batch = np.broadcast_shapes(np.shape(factor)[:-1], np.shape(rhs)[:-1])
    except ValueError:
        batch = ()  # which the verb is to refuse
    out = np.zeros((*batch, pattern.n), getattr(rhs, "dtype", None))
    assert linalg.solve_t(pattern, factor, rhs, out=out) is out
    return out


def result(function: Callable[..., Any], number: int) -> Callable[..., Any]:
    return lambda *arguments: function(*arguments)[number]


def of_naturally_ordered(function: Callable[..., Any], number: int | None = None) -> Callable[..., Any]:
    """A function whose order of elimination is the caller's, and one of its results."""

    def call(pattern: Any, *arrays: Array) -> Any:
        results = function(pattern, None, *arrays)
        return results if number is None else results[number]

    return call


def sample_and_log_prob(pattern: Any, *arrays: Array) -> tuple[Array, ...]:
    return sampling.sample_and_log_prob(pattern, None, *arrays)


EDGES = np.asarray(logit(np.arange(9) / 8))
"""Of eight levels."""


def of_levels(function: Callable[..., Any], number: int | None = None) -> Callable[..., Any]:
    """A function of levels at the last one, whose interval has no upper end, and one of its results."""

    def call(pattern: Any, loc: Array, factor: Array, uniform: Array) -> Any:
        given = np.full(getattr(pattern, "n", 1), 7)
        results = function(pattern, loc, factor, given, EDGES, uniform)
        return results if number is None else results[number]

    return call


SYSTEM = {"precision": "precision", "rhs": "vector"}
STEP = {"loc": "vector", "factor": "factor", "noise": "vector"}
STEP_VJP = {**STEP, "z_bar": "vector", "kl_bar": "number"}
COMPARED = {"d": "vector", "factor": "factor", "prior": "factor"}
MOVED = {"factor": "factor", "shift": "vector", "moves": "moves", "noise": "vector"}
BESIDE_NORMAL = {"loc": "vector", "factor": "factor", "mean": "vector", "scale": "scale"}
DENSITY = {"loc": "vector", "factor": "factor", "value": "vector"}
LEVELS = {"loc": "vector", "factor": "factor", "uniform": "uniform"}
SAMPLE = {"loc": "vector", "factor": "factor", "at_mean": "number in float64", "noise": "vector"}

VERBS = {
    str(verb): verb
    for verb in (
        Verb(linalg.matmul, {"factor": "factor", "x": "vector"}, "vector"),
        Verb(linalg.matmul_t, {"factor": "factor", "x": "vector"}, "vector"),
        Verb(linalg.symmetric_matmul, {"precision": "precision", "x": "vector"}, "vector"),
        Verb(linalg.solve, {"factor": "factor", "rhs": "vector"}, "vector"),
        Verb(linalg.solve_t, {"factor": "factor", "rhs": "vector"}, "vector"),
        Verb(linalg.solve_t, {"factor": "factor", "rhs": "vector"}, "vector", row="(out=)", call=solve_t_into),
        Verb(linalg.outer, {"x": "vector", "y": "vector"}, "packed"),
        Verb(linalg.cholesky, {"precision": "precision"}, "filled"),
        Verb(
            linalg.attempt_cholesky,
            {"precision": "precision"},
            "filled",
            row=": L",
            call=result(linalg.attempt_cholesky, 0),
            judges=True,
        ),
        Verb(
            linalg.attempt_cholesky,
            {"precision": "precision"},
            "scalar",
            row=": success",
            call=result(linalg.attempt_cholesky, 1),
            dtype="bool",
            judges=True,
        ),
        Verb(linalg.gram, {"factor": "factor"}, "gram"),
        Verb(linalg.logdet, {"factor": "factor"}, "scalar", takes_logarithms=True),
        Verb(linalg.precision_logdet, {"precision": "precision"}, "scalar", takes_logarithms=True),
        Verb(linalg.precision_solve, SYSTEM, "vector", row=": x", call=result(linalg.precision_solve, 0)),
        Verb(
            linalg.precision_solve,
            SYSTEM,
            "scalar",
            row=": log det",
            call=result(linalg.precision_solve, 1),
            batch_of="precision",
            takes_logarithms=True,
        ),
        Verb(linalg.selected_inverse, {"factor": "factor"}, "filled"),
        Verb(linalg.marginal_variances, {"factor": "factor"}, "vector"),
        Verb(linalg.trace_inverse, {"factor": "factor"}, "scalar"),
        Verb(adjoints.gram_jvp, {"a": "packed", "b": "packed"}, "gram"),
        Verb(adjoints.gram_vjp, {"a": "packed", "v": "gram"}, "packed"),
        Verb(adjoints.cholesky_jvp, {"factor": "factor", "v": "packed"}, "packed", needs_closed=True),
        Verb(adjoints.cholesky_vjp, {"factor": "factor", "x": "packed"}, "packed", needs_closed=True),
        Verb(
            adjoints.cholesky_vjp,
            {"factor": "factor", "x": "packed"},
            "half",
            needs_closed=True,
            row="(on=)",
            call=lambda pattern, factor, x: adjoints.cholesky_vjp(pattern, factor, x, on=half_of(pattern)),
        ),
        Verb(adjoints.selected_inverse_vjp, {"factor": "factor", "sigma_bar": "filled"}, "packed"),
        Verb(adjoints.marginal_variances_vjp, {"factor": "factor", "variances_bar": "vector"}, "packed"),
        Verb(step.sample_and_kl, STEP, "vector", row=": z", call=result(step.sample_and_kl, 0), is_one_batch=True),
        Verb(
            step.sample_and_kl,
            STEP,
            "scalar",
            row=": KL",
            call=result(step.sample_and_kl, 1),
            is_one_batch=True,
            takes_logarithms=True,
        ),
        *(
            Verb(
                step.sample_and_kl_vjp,
                STEP_VJP,
                STEP[name],
                row=f": {name}",
                call=result(step.sample_and_kl_vjp, number),
                is_one_batch=True,
            )
            for number, name in enumerate(STEP)
        ),
        *(
            Verb(
                residual.sample_and_kl_terms,
                {"loc": "vector", **MOVED},
                "vector",
                row=f": {name}",
                call=result(residual.sample_and_kl_terms, number),
                is_one_batch=True,
            )
            for number, name in enumerate(("z", "terms"))
        ),
        *(
            Verb(
                residual.sample_and_kl_terms_vjp,
                {**MOVED, "z_bar": "vector", "terms_bar": "vector"},
                kind,
                row=f": {name}",
                call=result(residual.sample_and_kl_terms_vjp, number),
                is_one_batch=True,
            )
            for number, (name, kind) in enumerate(MOVED.items())
        ),
        Verb(conditionals.kl_terms, COMPARED, "vector", is_one_batch=True),
        *(
            Verb(
                conditionals.kl_terms_vjp,
                {**COMPARED, "terms_bar": "vector"},
                kind,
                row=f": {name}",
                call=result(conditionals.kl_terms_vjp, number),
                is_one_batch=True,
            )
            for number, (name, kind) in enumerate(COMPARED.items())
        ),
        Verb(density.sample, STEP, "vector", call=of_naturally_ordered(density.sample), is_one_batch=True),
        Verb(
            density.sample_vjp,
            {"loc": "vector", "factor": "factor", "z": "vector", "z_bar": "vector"},
            "packed",
            call=of_naturally_ordered(density.sample_vjp),
            is_one_batch=True,
        ),
        *(
            Verb(
                function,
                operands,
                "scalar",
                call=of_naturally_ordered(function),
                is_one_batch=True,
                takes_logarithms=True,
            )
            for function, operands in (
                (density.kl_to_normal, BESIDE_NORMAL),
                (density.kl_from_normal, BESIDE_NORMAL),
                (density.log_prob, DENSITY),
            )
        ),
        *(
            Verb(
                function,
                operands,
                operands[name] if name != "scale" else "vector",
                row=f": {name}",
                call=of_naturally_ordered(function, number),
                is_one_batch=True,
            )
            for function, operands, names in (
                (density.kl_to_normal_vjp, {**BESIDE_NORMAL, "kl_bar": "number"}, ("loc", "factor", "scale")),
                (
                    density.sample_and_kl_to_normal_vjp,
                    {**BESIDE_NORMAL, "z": "vector", "z_bar": "vector", "kl_bar": "number"},
                    ("loc", "factor"),
                ),
                (density.kl_from_normal_vjp, {**BESIDE_NORMAL, "kl_bar": "number"}, ("loc", "factor", "scale")),
                (density.log_prob_vjp, {**DENSITY, "log_prob_bar": "number"}, ("loc", "factor")),
            )
            for number, name in enumerate(names)
        ),
        Verb(density.entropy, {"factor": "factor"}, "scalar", takes_logarithms=True),
        Verb(sampling.sample_and_log_prob, SAMPLE, "vector", row=": z", call=result(sample_and_log_prob, 0)),
        Verb(sampling.sample_and_log_prob, SAMPLE, "scalar", row=": log q(z)", call=result(sample_and_log_prob, 1)),
        Verb(levels.levels_log_prob, LEVELS, "scalar", call=of_levels(levels.levels_log_prob), dtype="float64"),
        Verb(levels.sample_in_levels, LEVELS, "vector", row=": z", call=of_levels(levels.sample_in_levels, 0)),
        *(
            Verb(
                levels.levels_log_prob_and_gradients,
                LEVELS,
                kind,
                row=f": {name}",
                call=of_levels(levels.levels_log_prob_and_gradients, number),
            )
            for number, (name, kind) in enumerate({"loc": "vector", "factor": "packed"}.items(), 1)
        ),
    )
}

PAIRS = [(verb, operand) for verb in VERBS.values() for operand in verb.arrays]
"""Every operand with an axis of its own."""


def size_of(kind: str, pattern: Pattern) -> int:
    """Length of the last axis of an array of this kind."""
    if kind == "half":
        return half_of(pattern).nnz
    sizes = dict.fromkeys(VECTORS, pattern.n)
    sizes |= {"gram": pattern.gram().nnz, "filled": pattern.filled().nnz}
    return sizes.get(kind, pattern.nnz)


def operand(rng: np.random.Generator, kind: str, pattern: Pattern, batch: Shape, dtype: Any) -> Array:
    """Moderate values: no overflow, no failure."""
    if kind == "factor":
        return factor_values(rng, pattern, batch, "plain", dtype)
    if kind == "precision":
        return precision_values(rng, pattern, batch, "dominant", dtype)
    if kind in SCALARS:
        return rng.standard_normal(batch).astype(dtype if kind == "number" else np.float64)
    if kind == "uniform":
        return rng.uniform(0.01, 0.99, (*batch, pattern.n)).astype(dtype)
    values = rng.standard_normal((*batch, size_of(kind, pattern)))
    if kind == "moves":
        values *= 0.3
    return (np.exp(0.3 * values) if kind == "scale" else values).astype(dtype)


def arguments(
    verb: Verb, pattern: Pattern, seed: int = 0, *batches: Shape, dtype: Any = np.float64
) -> dict[str, Array]:
    """An argument for each operand, with the batch shapes in turn; the last of them (or none) serves the rest.

    Where all must be equal, that to which they broadcast serves all.
    """
    rng = np.random.default_rng(seed)
    if verb.is_one_batch:
        batches = (np.broadcast_shapes(*batches),)
    shapes = [*batches, *[batches[-1] if batches else ()] * len(verb.operands)]
    pairs = zip(verb.operands.items(), shapes, strict=False)
    return {name: operand(rng, kind, pattern, shape, dtype) for (name, kind), shape in pairs}
