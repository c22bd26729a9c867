"""What `observe` takes for observations, and what every method takes for nodes."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pandas
import pytest

from sparseggm import (
    Chain,
    DTypeError,
    GaussianGraphicalModel,
    NonFiniteError,
    NonPositiveError,
    PatternError,
    ShapeError,
)

G = GaussianGraphicalModel(np.arange(3.0), factor=np.array([2, 1, 2, 1, 2]), topology=Chain(3))


NODES = [2, 0, 1]
FORMS: dict[str, tuple[Any, Any]] = {
    "two scalars": (1.5, 0.5),
    "integers": (1, 2),
    "a scalar and a list": (1.5, [0.5, 1.0, 2.0]),
    "a list and a scalar": ([1, 2, 3], 0.5),
    "one number and a row": ([1.0], [0.5, 1.0, 2.0]),
    "a batch and a scalar": (np.arange(6.0).reshape(2, 3), 0.5),
    "a scalar and a batch": (1.5, np.arange(1.0, 7.0).reshape(2, 3)),
    "a column and a row": (np.array([[1.0], [2.0]]), np.array([0.5, 1.0, 2.0])),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("nodes", [NODES, np.array([True, True, True])], ids=["list", "mask"])
def test_values_and_variance_broadcast_to_the_nodes(form: str, nodes: Any) -> None:
    values, variance = (np.asarray(part, np.float64) for part in FORMS[form])
    shape = np.broadcast_shapes(values.shape, variance.shape, (3,))
    full = [np.broadcast_to(part, shape).copy() for part in (values, variance)]
    found, expected = G.observe(nodes, *FORMS[form]), G.observe(nodes, *full)
    np.testing.assert_array_equal(found.loc, expected.loc)
    np.testing.assert_array_equal(np.broadcast_to(found.precision, expected.precision.shape), expected.precision)
    assert found.batch_shape == shape[:-1]
    assert found.factor.shape[:-1] == variance.shape[:-1]  # values do not make P another


@pytest.mark.parametrize("values", [[1.0, np.nan, 2.0], [[np.nan, 1.0, 2.0], [1.0, np.nan, np.nan]]])
def test_nan_with_infinite_variance_is_a_missing_value(values: Any) -> None:
    y = np.array(values)
    variance = np.where(np.isnan(y), np.inf, 0.5)
    posterior = G.observe(NODES, y, variance)
    for value in (0.0, 1e3):
        same = G.observe(NODES, np.where(np.isnan(y), value, y), variance)
        np.testing.assert_array_equal(posterior.precision, same.precision)
        np.testing.assert_array_equal(posterior.loc, same.loc)
    if y.ndim == 1:
        there = np.flatnonzero(~np.isnan(y))
        fewer = G.observe([NODES[k] for k in there], y[there], 0.5)
        np.testing.assert_array_equal(posterior.precision, fewer.precision)
        np.testing.assert_array_equal(posterior.loc, fewer.loc)


@pytest.mark.parametrize(
    ("values", "variance", "error", "message"),
    [
        (1.0, -np.inf, NonPositiveError, "variance must be positive, and 1/variance in the range of float64, got -inf"),
        (1.0, np.nan, NonPositiveError, "variance must be positive, and 1/variance in the range of float64, got nan"),
        (1.0, [1.0, -0.0, 1.0], NonPositiveError, "variance must be positive, and 1/variance in the range of float64"),
        (1.0, [1.0, 5e-324, 1.0], NonPositiveError, "variance must be positive, and 1/variance in the range of float6"),
        (np.nan, 1.0, NonFiniteError, "values must be finite, got nan at node 2 of Chain(n=3)"),
        (
            [1.0, np.nan, 1.0],
            [np.inf, 1.0, np.inf],
            NonFiniteError,
            "values must be finite, got nan at node 0 of Chain(n=3)",
        ),
        (np.inf, np.inf, NonFiniteError, "values must be finite, got inf"),
        ([1.0, 2.0], 1.0, ShapeError, "values and variance must broadcast to (..., 3), one for each node, got shapes"),
        (1.0, [1.0, 2.0], ShapeError, "values and variance must broadcast to (..., 3), one for each node, got shapes"),
    ],
)
def test_observations_that_mean_nothing_are_refused(
    values: Any, variance: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"^observe: {re.escape(message)}"):
        G.observe(NODES, values, variance)


# ---------------------------------------------------------------------- masks of nodes


@pytest.mark.parametrize("form", [np.asarray, list, tuple, pandas.Series], ids=lambda form: form.__name__)
def test_a_mask_stands_for_its_nodes(form: Any) -> None:
    g = GaussianGraphicalModel(np.arange(4.0), factor=np.full(7, 1.5), topology=Chain(4))
    mask, nodes = form([True, False, False, True]), [0, 3]
    pairs = [
        (g.condition(mask, [1, 2]), g.condition(nodes, [1, 2])),
        (g.observe(mask, [1, 2], 0.5), g.observe(nodes, [1, 2], 0.5)),
        (g.marginal(mask), g.marginal(nodes)),
    ]
    for found, expected in pairs:
        np.testing.assert_array_equal(found.loc, expected.loc)
        np.testing.assert_array_equal(found.factor, expected.factor)


@pytest.mark.parametrize("name", ["condition", "observe", "marginal"])
def test_a_mask_of_another_length_or_masked_nodes_are_refused(name: str) -> None:
    values = {"condition": (0.0,), "observe": (0.0, 1.0), "marginal": ()}[name]
    for nodes in ([True, False], np.zeros((3, 1), bool), np.zeros(0, bool)):
        with pytest.raises(PatternError, match=rf"^{name}: a mask of nodes must be \(3,\), got shape"):
            getattr(G, name)(nodes, *values)
    with pytest.raises(DTypeError, match=rf"^{name}: nodes must have a value in every place, got a masked array"):
        getattr(G, name)(np.ma.array([0, 1], mask=[False, True]), *values)
