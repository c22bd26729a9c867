"""A Gaussian's complaints about packed values name the caller's nodes, not the order of their elimination."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sparseggm import GaussianGraphicalModel, NonFiniteError, NonPositiveError, Pattern, PatternError, Topology
from tests.numerics import Array
from tests.strategies import seeds
from tests.topologies import topologies

MAKERS: dict[str, tuple[str, Callable[..., Any]]] = {
    "GaussianGraphicalModel": ("factor", GaussianGraphicalModel),
    "GaussianGraphicalModel.from_factor": (
        "factor",
        lambda loc, topology, **values: GaussianGraphicalModel.from_factor(
            loc, topology=topology, pattern=topology.precision_pattern.filled(), **values
        ),
    ),
    "GaussianGraphicalModel.from_precision": ("precision", GaussianGraphicalModel.from_precision),
    "GaussianGraphicalModel.from_information": ("precision", GaussianGraphicalModel.from_information),
}
"""Every maker of a Gaussian from packed values: the start of its messages, and which matrix it takes."""


def pattern_of(function: str, topology: Topology) -> Pattern:
    if function.endswith("from_factor"):
        return topology.precision_pattern.filled()
    return topology.factor_pattern if MAKERS[function][0] == "factor" else topology.precision_pattern


def identity(pattern: Pattern) -> Array:
    return np.tile((pattern.rows == pattern.cols).astype(np.float64), (2, 1))


@given(topology=topologies(), function=st.sampled_from(list(MAKERS)), seed=seeds)
def test_a_value_that_is_no_number_is_named_by_its_nodes(topology: Topology, function: str, seed: int) -> None:
    name, make = MAKERS[function]
    pattern = pattern_of(function, topology)
    values, p = identity(pattern), seed % pattern.nnz
    values[1, p] = np.nan
    nodes = sorted({topology.order.tolist()[k] for k in (pattern.rows[p], pattern.cols[p])})
    where = " and ".join(topology.describe(node) for node in nodes)
    message = f"{function}: {name} must be finite, got nan at {where}, batch element (1,)."
    with pytest.raises(NonFiniteError, match=f"^{re.escape(message)}$"):
        make(np.zeros(topology.n), topology=topology, **{name: values})


@given(topology=topologies(), function=st.sampled_from(list(MAKERS)[:2]), node=st.integers(0, 100))
def test_a_diagonal_that_is_not_positive_is_named_by_its_node(topology: Topology, function: str, node: int) -> None:
    pattern, node = pattern_of(function, topology), node % topology.n
    factor = identity(pattern)
    factor[1, pattern.diagonal[topology.order.tolist().index(node)]] = -2.0
    where = f"{topology.describe(node)}, batch element (1,)"
    message = f"{function}: the diagonal of factor must be positive, got -2 at {where}."
    with pytest.raises(NonPositiveError, match=f"^{re.escape(message)}$"):
        MAKERS[function][1](np.zeros(topology.n), factor=factor, topology=topology)


@given(topology=topologies())
def test_an_edge_that_a_pattern_cannot_give_is_named_by_its_nodes(topology: Topology) -> None:
    assume(len(topology.edges))
    i, j = topology.edges[0]
    for pattern, message in (
        (Pattern.from_edges(topology.n, []), f"joins what {topology} does, got one that does not join {i} and {j}."),
        (Pattern.from_edges(topology.n + 1, []), f"must be one of {topology.n} nodes, as {topology}, got "),
    ):
        with pytest.raises(PatternError, match=f"^GaussianGraphicalModel.from_factor: .*{re.escape(message)}"):
            GaussianGraphicalModel.from_factor(
                np.zeros(topology.n), factor=np.ones(pattern.nnz), topology=topology, pattern=pattern
            )
