"""Every call of a Gaussian that takes values, in one table: what holds for one of them is tested on all.

Values are small integers, and halves of them, so that each is the same number in every dtype.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparseggm import Chain, GaussianGraphicalModel, Star

TOPOLOGIES = (Chain(4), Star(4))
"""Eliminated as numbered, and not."""


@dataclass(frozen=True)
class Call:
    """A method with values of its own, which are a Gaussian or arrays."""

    name: str
    """With which its messages begin."""
    function: Callable[..., Any]
    """Of a Gaussian, by which a class method only knows topology and class, and of the values."""
    values: dict[str, Any]
    """Argument name → an array of integers in float64."""
    uses_gaussian: bool = True


def of_class(make: Callable[..., Any]) -> Callable[..., Any]:
    return lambda g, **values: make(type(g), topology=g.topology, **values)


VECTOR = np.array([[1.0, -2.0, 3.0, 0.0], [2.0, 1.0, 0.0, -1.0]])
SAMPLES = np.array([[1, 0, 2, 5], [0, 3, 1, 1], [4, 1, 0, 2], [2, 2, 2, 0], [0, 1, 5, 3], [1, 4, 1, 1]]) * 1.0
NODES = [2, 0]


def factor(topology: Any) -> Any:
    pattern = topology.factor_pattern
    return np.where(pattern.rows == pattern.cols, 2.0, 1.0)


def precision(topology: Any) -> Any:
    pattern = topology.precision_pattern
    return np.where(pattern.rows == pattern.cols, 4.0, 1.0)


def calls(topology: Any) -> dict[str, Call]:
    g, name, loc = GaussianGraphicalModel, "GaussianGraphicalModel", {"loc": VECTOR}
    L, P = {"factor": factor(topology)}, {"precision": precision(topology)}
    pattern, pair = topology.factor_pattern, {"values": VECTOR[:, :2]}
    rows = (
        Call(name, of_class(lambda c, **v: c(**v)), {**loc, **L}, False),
        Call(f"{name}.from_precision", of_class(lambda c, **v: c.from_precision(**v)), {**loc, **P}, False),
        Call(
            f"{name}.from_information",
            of_class(lambda c, **v: c.from_information(**v)),
            {"information": VECTOR, **P},
            False,
        ),
        Call(f"{name}.from_factor", of_class(lambda c, **v: c.from_factor(pattern=pattern, **v)), {**loc, **L}, False),
        Call("fit", of_class(lambda c, **v: c.fit(**v)), {"samples": SAMPLES}, False),
        Call("moved_to", g.moved_to, loc),
        Call("log_prob", g.log_prob, {"x": VECTOR}),
        Call("whiten", g.whiten, {"d": VECTOR}),
        Call("colorize", g.colorize, {"eps": VECTOR}),
        Call("condition", lambda g, **v: g.condition(NODES, **v), pair),
        Call("observe", lambda g, **v: g.observe(NODES, **v), {**pair, "variance": np.array([1.0, 2.0])}),
        Call("log_evidence", lambda g, **v: g.log_evidence(NODES, **v), {**pair, "variance": np.array([1.0, 2.0])}),
        Call("covariance_matmul", g.covariance_matmul, {"x": VECTOR}),
    )
    return {call.name: call for call in rows}


def gaussian(topology: Any, dtype: Any = np.float64) -> GaussianGraphicalModel:
    loc = np.array([0.0, 1.0, 0.5, -1.0], dtype)
    return GaussianGraphicalModel(loc, factor=factor(topology).astype(dtype), topology=topology)


def arrays_of(result: Any) -> list[Any]:
    """What a call gave, as arrays."""
    return [result.loc, result.factor] if isinstance(result, GaussianGraphicalModel) else [result]
