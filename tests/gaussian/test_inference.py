"""Second moments, the information form, conditioning, observations and marginals against dense formulas.

A result that comes out of a factorisation is compared as quadratic forms, see `gaussian_bounds`: the covariance that
`reference.inference` gives is within δ of the computed one, and the mean within a bound in the energy norm.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reference.gaussian
import reference.inference
import reference.linalg
from sparseggm import GaussianGraphicalModel, Graph
from tests import numerics
from tests.gaussian_bounds import (
    covariance_of,
    distance,
    energy,
    factor_of,
    factorisation_error,
    family,
    in_callers_numbering,
    inverse_error,
    loc_of,
    precision_error,
    precision_of,
    solution_bound,
    spread,
)
from tests.ledger import check
from tests.numerics import WIDE, Array, transpose
from tests.strategies import Shape, gaussians, seeds

pytestmark = pytest.mark.property


@dataclass(frozen=True)
class Evidence:
    """A Gaussian, some of its nodes, and values for them."""

    g: GaussianGraphicalModel
    nodes: list[int]
    values: Array
    rng: np.random.Generator

    @property
    def kept(self) -> list[int]:
        return reference.inference.others(self.g.n, self.nodes)

    @property
    def shift(self) -> Array:
        """v − loc at the nodes, exact, zero elsewhere."""
        offset = self.values.astype(WIDE) - self.g.loc[..., self.nodes]
        shift = np.zeros((*offset.shape[:-1], self.g.n), WIDE)
        shift[..., self.nodes] = offset
        return shift


@st.composite
def evidence(draw: st.DrawFn) -> Evidence:
    """None, some or all but one of the nodes, in any order; values near the mean or far, with or without its batch."""
    g = draw(gaussians())
    rng = np.random.default_rng(draw(seeds))
    count = draw(st.integers(0, g.n - 1))
    nodes = rng.permutation(g.n)[:count].tolist()
    batch: Shape = draw(st.sampled_from([(), g.batch_shape, (3, *g.batch_shape)]))
    far = draw(st.sampled_from([0.0, 1e3]))
    values = (far + rng.standard_normal((*batch, count))).astype(g.dtype)
    return Evidence(g, nodes, values, rng)


# ---------------------------------------------------------------------- second moments


@given(g=gaussians(), seed=seeds, count=st.integers(0, 6))
def test_covariances_and_correlations_are_those_of_the_dense_inverse(
    g: GaussianGraphicalModel, seed: int, count: int
) -> None:
    """Of any pairs: edges or not, i = j too, repeats too."""
    pairs = np.random.default_rng(seed).integers(0, g.n, (count, 2))
    i, j = pairs.T
    sigma, error = inverse_error(g)
    covariances, correlations = g.covariance_on(pairs), g.correlation_on(pairs)
    assert covariances.shape == correlations.shape == (*g.batch_shape, count)
    assert covariances.dtype == correlations.dtype == g.dtype
    check("Gaussian.covariance_on", family(g), g.dtype, covariances - sigma[..., i, j], error[..., i, j])
    # ρ = Σ_ij / √Σ_ii / √Σ_jj: two roots and two quotients, of numbers that err
    level = numerics.rounding(6, g.dtype)
    relative = [error[..., k, k] / sigma[..., k, k] for k in (i, j)]
    scale = 1 / np.sqrt(sigma[..., i, i] * sigma[..., j, j])
    exact = sigma[..., i, j] * scale
    grown = (1 + level) / np.sqrt((1 - relative[0]) * (1 - relative[1]))
    bound = error[..., i, j] * scale * grown + abs(exact) * (grown - 1) + numerics.underflow(g.dtype)
    check("Gaussian.correlation_on", family(g), g.dtype, correlations - exact, bound)


@given(g=gaussians())
def test_the_precision_is_l_times_its_transpose_on_the_graph(g: GaussianGraphicalModel) -> None:
    values = g.precision
    exact, error = precision_of(g), precision_error(g)
    place = g.graph.order
    dense = g.graph.precision_pattern.to_dense(values.astype(WIDE), symmetric=True)
    assert values.dtype == g.dtype
    difference = dense - exact[..., place[:, None], place]
    check("Gaussian.precision", family(g), g.dtype, difference, error[..., place[:, None], place])


@given(g=gaussians())
def test_the_information_is_the_precision_times_the_mean(g: GaussianGraphicalModel) -> None:
    exact = reference.linalg.matmul(precision_of(g), loc_of(g))
    check(
        "Gaussian.information_vector",
        family(g),
        g.dtype,
        g.information_vector - exact,
        product_error(g, abs(loc_of(g))),
    )


def product_error(g: GaussianGraphicalModel, size: Array) -> Array:
    """Of L (Lᵀ d), |d| ≤ size: γ_{r+c+1} |L||L|ᵀ|d|, d itself rounded once, and the underflow of both products."""
    L = abs(factor_of(g))
    terms = g.factor_pattern.longest_row + g.factor_pattern.longest_column
    grown = in_callers_numbering(g.topology, L @ transpose(L))
    reach = in_callers_numbering(g.topology, L @ np.ones_like(L))[..., 0]
    floor = terms * numerics.underflow(g.dtype) * (1 + reach)
    return numerics.rounding(terms + 1, g.dtype) * numerics.apply(grown, size) + floor


@given(g=gaussians())
def test_natural_parameters_give_the_gaussian_back(g: GaussianGraphicalModel) -> None:
    again = GaussianGraphicalModel.from_information(g.information_vector, precision=g.precision, topology=g.graph)
    P, error = precision_of(g), precision_error(g) + factorisation_error(precision_of(g), g.dtype)
    check("Gaussian.from_information", family(g), g.dtype, distance(again, covariance_of(g)), spread(P, error))
    pull = product_error(g, abs(loc_of(g)))
    bound = solution_bound(again, covariance_of(g), np.zeros(g.n, WIDE), error, pull)
    check("Gaussian.from_information, loc", family(g), g.dtype, energy(P, loc_of(again) - loc_of(g)), bound)


@given(g=gaussians())
def test_a_gaussian_moved_elsewhere_keeps_its_precision_and_graph(g: GaussianGraphicalModel) -> None:
    moved = g.moved_to(g.loc + 1)
    np.testing.assert_array_equal(moved.loc, g.loc + 1)
    np.testing.assert_array_equal(moved.precision, g.precision)
    assert moved.factor is g.factor
    assert moved.graph == g.graph


# ---------------------------------------------------------------------- conditioning


@given(case=evidence())
def test_condition_is_the_conditional_of_the_dense_gaussian(case: Evidence) -> None:
    g, kept = case.g, case.kept
    given_values = g.condition(case.nodes, case.values)
    mean, sigma = reference.inference.condition(loc_of(g), precision_of(g), case.nodes, case.values.astype(WIDE))
    assert given_values.topology == Graph(len(kept), induced(g, kept))
    assert given_values.dtype == g.dtype
    assert given_values.batch_shape == np.broadcast_shapes(g.batch_shape, case.values.shape[:-1])
    P = precision_of(g)[..., kept, :][..., kept]
    error = precision_error(g)[..., kept, :][..., kept] + factorisation_error(P, g.dtype)
    check("Gaussian.condition", family(g), g.dtype, distance(given_values, sigma), spread(P, error))
    pull = product_error(g, abs(case.shift))[..., kept]
    bound = solution_bound(given_values, sigma, loc_of(g)[..., kept], error, pull)
    check("Gaussian.condition, loc", family(g), g.dtype, energy(P, loc_of(given_values) - mean), bound)


def induced(g: GaussianGraphicalModel, kept: list[int]) -> list[tuple[int, int]]:
    """The edges among the kept nodes, renumbered."""
    number = {node: k for k, node in enumerate(kept)}
    return [(number[i], number[j]) for i, j in g.graph.edges.tolist() if i in number and j in number]


@given(case=evidence(), scale=st.integers(-20, 20))
def test_observe_is_the_posterior_of_the_dense_gaussian(case: Evidence, scale: int) -> None:
    """With variances from a millionth to a million, so from nearly exact to nearly nothing."""
    g = case.g
    variance = (2.0**scale * case.rng.uniform(0.5, 2, len(case.nodes))).astype(g.dtype)
    posterior = g.observe(case.nodes, case.values, variance)
    mean, sigma = reference.inference.observe(
        loc_of(g), precision_of(g), case.nodes, case.values.astype(WIDE), variance.astype(WIDE)
    )
    assert posterior.topology == g.graph
    assert posterior.batch_shape == np.broadcast_shapes(g.batch_shape, case.values.shape[:-1])
    more = np.zeros(g.n, WIDE)
    more[case.nodes] = 1 / variance.astype(WIDE)
    P = precision_of(g) + np.diag(more)
    diagonal = reference.linalg.diagonal(P)[..., None] * np.eye(g.n)
    error = precision_error(g) + factorisation_error(P, g.dtype) + numerics.rounding(2, g.dtype) * diagonal
    check("Gaussian.observe", family(g), g.dtype, distance(posterior, sigma), spread(P, error))
    pull = numerics.rounding(3, g.dtype) * abs(case.shift) * more + numerics.underflow(g.dtype)
    bound = solution_bound(posterior, sigma, loc_of(g), error, pull)
    check("Gaussian.observe, loc", family(g), g.dtype, energy(P, loc_of(posterior) - mean), bound)


@given(case=evidence())
def test_marginal_is_the_marginal_of_the_dense_gaussian(case: Evidence) -> None:
    g = case.g
    nodes = case.rng.permutation(case.kept).tolist()
    marginal = g.marginal(nodes)
    sigma = covariance_of(g)[..., nodes, :][..., nodes]
    delta = spread(precision_of(g), precision_error(g) + factorisation_error(precision_of(g), g.dtype))
    assert marginal.batch_shape == g.batch_shape
    assert marginal.dtype == g.dtype
    assert marginal.topology.is_naturally_ordered
    check("Gaussian.marginal", family(g), g.dtype, distance(marginal, sigma), delta)
    np.testing.assert_array_equal(np.broadcast_to(marginal.loc, (*g.batch_shape, len(nodes))), g_loc(g)[..., nodes])


def g_loc(g: GaussianGraphicalModel) -> Array:
    return np.broadcast_to(g.loc, (*g.batch_shape, g.n))


@given(case=evidence())
def test_a_marginal_is_on_the_graph_with_an_edge_for_each_path_through_the_others(case: Evidence) -> None:
    """Its precision pattern is the graph of the kept nodes joined by paths whose inner nodes are gone."""
    g, nodes = case.g, case.rng.permutation(case.kept).tolist()
    joined = np.eye(g.n, dtype=bool)
    for i, j in g.graph.edges:
        joined[i, j] = joined[j, i] = True
    for gone in case.nodes:
        joined |= np.outer(joined[:, gone], joined[gone])
    schur = {(a, b) for a in range(len(nodes)) for b in range(a) if joined[nodes[a], nodes[b]]}
    assert schur <= {(i, j) for i, j in g.marginal(nodes).topology.edges.tolist()}
    filled = Graph(len(nodes), sorted(schur), order=range(len(nodes))).factor_pattern
    assert g.marginal(nodes).factor_pattern is filled
