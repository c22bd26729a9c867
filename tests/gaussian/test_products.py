"""Products of Gaussians and potentials: against the dense sum of natural parameters, and among themselves.

A computed product has P̂ = P₁ + P₂ + E with E known entrywise: the Gram product that gives P of a factor, one rounding
of the sum, and the factorisation. So it is within δ of the exact one as a quadratic form, see `gaussian_bounds`.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import reference.inference
from sparseggm import (
    Chain,
    Diagonal,
    DTypeError,
    ExtendedGrid,
    GaussianGraphicalModel,
    Graph,
    Grid,
    NonFiniteError,
    NotPositiveDefiniteError,
    PatternError,
    Potential,
    ShapeError,
    Stencil,
    Topology,
    parametrize,
)
from tests import numerics
from tests.gaussian.test_inference import product_error
from tests.gaussian_bounds import (
    covariance_of,
    distance,
    energy,
    factorisation_error,
    family,
    in_callers_numbering,
    loc_of,
    precision_error,
    precision_of,
    solution_bound,
    spread,
)
from tests.ledger import check
from tests.numerics import WIDE, Array
from tests.strategies import dense, gaussians, precision_values, seeds
from tests.topologies import sides, topologies_of, trees

Factor = GaussianGraphicalModel | Potential


@st.composite
def topologies_together(draw: st.DrawFn, count: int) -> list[Topology]:
    """On the same nodes: chains, grids, extended grids, stencils, trees and graphs."""
    rows, cols = draw(sides(3)), draw(sides(3))
    n = rows * cols
    lattices = [Grid(rows, cols), ExtendedGrid(rows, cols), Stencil(rows, cols, 1)]
    one = st.one_of(st.sampled_from(lattices), topologies_of(n), trees(n).filter(lambda tree: tree.n == n))
    return [draw(one) for _ in range(count)]


def potential(rng: np.random.Generator, topology: Topology, batch: tuple[int, ...], kind: str, dtype) -> Potential:
    """Of full rank or not: an edge family, the Gram matrix of a factor, a diagonal, or nothing."""
    if kind == "gram" and not topology.is_factor_free:
        kind = "edge"
    made = {"gram": parametrize.gram}.get(kind, parametrize.semidefinite_edge)
    inputs = rng.standard_normal((*batch, made.num_inputs(topology)))
    if kind in ("diagonal", "nothing"):
        inputs[..., topology.n :] = 0.0
    if kind == "nothing":
        inputs[..., : topology.n] = -1e5
    information = rng.standard_normal((*draw_part(rng, batch), topology.n))
    return Potential(information.astype(dtype), precision=made(topology, inputs).astype(dtype), topology=topology)


def draw_part(rng: np.random.Generator, batch: tuple[int, ...]) -> tuple[int, ...]:
    """Some batch axes that broadcast with these."""
    return batch[rng.integers(len(batch) + 1) :]


@st.composite
def factors(draw: st.DrawFn, kinds: tuple[str, ...]) -> list[Factor]:
    """A Gaussian, from L or P, and others of these kinds on graphs of their own; batch axes broadcast."""
    first, *others = draw(topologies_together(1 + len(kinds)))
    g = draw(gaussians(first))
    rng = np.random.default_rng(draw(seeds))
    result: list[Factor] = [g]
    for topology, kind in zip(others, kinds, strict=True):
        batch = draw(st.sampled_from([(), g.batch_shape, (2, *g.batch_shape), draw_part(rng, g.batch_shape)]))
        if kind == "gaussian":
            values = precision_values(rng, topology.precision_pattern, batch, "dominant", g.dtype)
            loc = rng.standard_normal((*draw_part(rng, batch), topology.n)).astype(g.dtype)
            result.append(GaussianGraphicalModel.from_precision(loc, precision=values, topology=topology))
        else:
            kind = draw(st.sampled_from(["edge", "gram", "diagonal", "nothing"]))
            result.append(potential(rng, topology, batch, kind, g.dtype))
    return result


# ---------------------------------------------------------------------- exact values and bounds


def matrix_of(factor: Factor) -> Array:
    """P or Λ in WIDE and the caller's numbering."""
    if isinstance(factor, GaussianGraphicalModel):
        return precision_of(factor)
    return in_callers_numbering(factor.topology, dense(factor.topology.precision_pattern, factor.precision, True))


def information_of(factor: Factor) -> Array:
    if isinstance(factor, GaussianGraphicalModel):
        return numerics.apply(precision_of(factor), loc_of(factor))
    return factor.information.astype(WIDE)


@dataclass(frozen=True)
class Bound:
    """What a product of a Gaussian with another factor may lose: of P entrywise, and of the mean in the norm of P."""

    precision: Array
    loc: Array


def bound_of(g: GaussianGraphicalModel, other: Factor, result: GaussianGraphicalModel) -> Bound:
    P, more = matrix_of(g), matrix_of(other)
    error = precision_error(g) + factorisation_error(P + more, g.dtype) + numerics.rounding(1, g.dtype) * abs(P + more)
    if isinstance(other, GaussianGraphicalModel):
        error = error + precision_error(other)
        pull = product_error(other, abs(loc_of(other) - loc_of(g)))
    else:
        k = g.n + 2
        size = abs(information_of(other)) + numerics.apply(abs(more), abs(loc_of(g)))
        pull = numerics.rounding(k, g.dtype) * size + k * numerics.underflow(g.dtype)
    sigma = reference.inference.product(loc_of(g), P, information_of(other), more)[1]
    return Bound(error, solution_bound(result, sigma, loc_of(g), error, pull))


def compare(name: str, g: GaussianGraphicalModel, other: Factor) -> None:
    """A product with its definition."""
    result = g.product(other)
    mean, sigma = reference.inference.product(loc_of(g), matrix_of(g), information_of(other), matrix_of(other))
    assert result.dtype == g.dtype
    assert result.batch_shape == np.broadcast_shapes(g.batch_shape, other.batch_shape)
    P, bound = matrix_of(g) + matrix_of(other), bound_of(g, other, result)
    check(name, family(g), g.dtype, distance(result, sigma), spread(P, bound.precision))
    check(f"{name}, loc", family(g), g.dtype, energy(P, loc_of(result) - mean), bound.loc)


# ---------------------------------------------------------------------- values


@pytest.mark.property
@given(given_factors=factors(("potential",)))
def test_a_product_with_a_potential_adds_natural_parameters(given_factors: list[Factor]) -> None:
    g, other = given_factors
    compare("Gaussian.product(potential)", g, other)


@pytest.mark.property
@given(given_factors=factors(("gaussian",)))
def test_a_product_of_gaussians_adds_natural_parameters_in_either_order(given_factors: list[Factor]) -> None:
    g, other = given_factors
    for one, two in ((g, other), (other, g)):
        compare("Gaussian.product(Gaussian)", one, two)


@pytest.mark.property
@given(given_factors=factors(("gaussian",)))
def test_products_of_gaussians_commute(given_factors: list[Factor]) -> None:
    """Each is within its bound of the same exact product."""
    g, other = given_factors
    results, P = (g.product(other), other.product(g)), matrix_of(g) + matrix_of(other)
    bounds = bound_of(g, other, results[0]), bound_of(other, g, results[1])
    agree("product commutes", results, bounds, P)


@pytest.mark.property
@given(given_factors=factors(("potential", "potential")))
def test_products_associate(given_factors: list[Factor]) -> None:
    """(q a) b and q (a b), each within its bound of the exact product.

    A mean of q a that errs by Δ moves that of (q a) b by P⁻¹ P_qa Δ, hence by at most ‖Δ‖ in the norm of P_qa. The sums
    of a b round once more.
    """
    g, a, b = given_factors
    middle, both = g.product(a), a.product(b)
    results, P = (middle.product(b), g.product(both)), sum(map(matrix_of, given_factors))
    first, second, other = bound_of(g, a, middle), bound_of(middle, b, results[0]), bound_of(g, both, results[1])
    level = numerics.rounding(1, g.dtype)
    sums = level * abs(matrix_of(both)), level * abs(information_of(both))
    pull = energy(abs(np.linalg.inv(P.astype(np.float64))), sums[1] + numerics.apply(sums[0], abs(loc_of(results[1]))))
    bounds = (
        Bound(first.precision + second.precision, first.loc + second.loc + shift(results[0], P, first.precision)),
        Bound(other.precision + sums[0], 1.01 * (other.loc + pull)),  # the inverse is of float64
    )
    agree("product associates", results, bounds, P)


def shift(result: GaussianGraphicalModel, P: Array, error: Array) -> Array:
    """How far an error of P moves the mean: P⁻¹ |E| |m|, in the norm of P."""
    sigma = abs(np.linalg.inv(P.astype(np.float64)))
    return 1.01 * energy(sigma, numerics.apply(error, abs(loc_of(result))))


def agree(name: str, results: tuple[GaussianGraphicalModel, ...], bounds: tuple[Bound, ...], P: Array) -> None:
    """Two Gaussians within bounds of an exact one are within both of each other."""
    one, two = results
    steps = [spread(P, bound.precision) for bound in bounds]
    grown = np.prod(np.broadcast_arrays(*(1 + step for step in steps)), axis=0)
    shrunk = np.prod(np.broadcast_arrays(*(1 - step for step in steps)), axis=0)
    check(name, family(one), one.dtype, distance(one, covariance_of(two)), grown / shrunk - 1)
    check(f"{name}, loc", family(one), one.dtype, energy(P, loc_of(one) - loc_of(two)), bounds[0].loc + bounds[1].loc)


@pytest.mark.property
@given(given_factors=factors(("potential", "potential")))
def test_products_of_potentials_are_sums_in_either_order(given_factors: list[Factor]) -> None:
    _, a, b = given_factors
    one, two = a.product(b), b.product(a)
    exact, level = matrix_of(a) + matrix_of(b), numerics.rounding(1, a.dtype)
    check("Potential.product", family(a), a.dtype, matrix_of(one) - exact, level * abs(exact))
    h = information_of(a) + information_of(b)
    check("Potential.product, h", family(a), a.dtype, information_of(one) - h, level * abs(h))
    np.testing.assert_array_equal(matrix_of(one), matrix_of(two))
    np.testing.assert_array_equal(one.information, two.information)
    assert one.batch_shape == np.broadcast_shapes(a.batch_shape, b.batch_shape)


@pytest.mark.property
@given(g=gaussians(), seed=seeds, scale=st.integers(-20, 20))
def test_a_diagonal_likelihood_is_an_observation(g: GaussianGraphicalModel, seed: int, scale: int) -> None:
    """The same factor to the bit; the means differ by the rounding of h − Λ loc, and of (y − loc) Λ there."""
    rng = np.random.default_rng(seed)
    nodes = rng.permutation(g.n)[: rng.integers(g.n + 1)]
    y, variance = rng.standard_normal((2, len(nodes))).astype(g.dtype)
    variance = (2.0**scale * (0.5 + abs(variance))).astype(g.dtype)
    weight, h = np.zeros((2, g.n), g.dtype)
    weight[nodes], h[nodes] = 1 / variance, y / variance
    likelihood = Potential(h, precision=weight, topology=Diagonal(g.n))
    product, posterior = g.product(likelihood), g.observe(nodes, y, variance)
    assert product.topology == posterior.topology
    np.testing.assert_array_equal(product.factor, posterior.factor)
    P, bound = matrix_of(g) + matrix_of(likelihood), bound_of(g, likelihood, product)
    size = abs(h) + abs(weight * loc_of(g))
    more = energy(abs(reference.inference.covariance(P)), numerics.rounding(4, g.dtype) * size)
    difference = energy(P, loc_of(product) - loc_of(posterior))
    check("product = observe, loc", family(g), g.dtype, difference, 2 * bound.loc + more)


def test_a_product_with_nothing_changes_nothing() -> None:
    g = GaussianGraphicalModel(np.arange(4.0) + 2.0**40, factor=np.ones(7), topology=Chain(4))
    nothing = Potential(np.zeros(4), precision=np.zeros(4), topology=Diagonal(4))
    np.testing.assert_array_equal(g.product(nothing).loc, g.loc)
    np.testing.assert_array_equal(g.product(nothing).precision, g.precision)
    np.testing.assert_array_equal(g.product(g).loc, g.loc)


def test_a_mean_far_from_zero_keeps_its_digits() -> None:
    """The product of Gaussians around 2⁴⁰ is that around 0, shifted, up to the spacing there."""
    far, rng = 2.0**40, np.random.default_rng(0)
    locs = rng.integers(-8, 8, (2, 5)) / 8  # exact there too
    factor = rng.uniform(0.5, 1, (2, 9))
    near, moved = (
        GaussianGraphicalModel(locs[0] + at, factor=factor[0], topology=Chain(5)).product(
            GaussianGraphicalModel(locs[1] + at, factor=factor[1], topology=Chain(5))
        )
        for at in (0.0, far)
    )
    assert abs(moved.loc - far - near.loc).max() <= np.spacing(far)


@pytest.mark.parametrize("topology", [Chain(6), Chain(6, order=range(6)[::-1]), Graph(6, [(5, 0), (4, 0)])], ids=str)
def test_a_factor_on_a_chordal_graph_gets_no_fill(topology: Topology) -> None:
    g = GaussianGraphicalModel(np.zeros(6), factor=np.ones(topology.factor_pattern.nnz), topology=topology)
    for of in (topology, Diagonal(6)):
        nothing = Potential(np.zeros(6), precision=np.zeros(of.precision_pattern.nnz), topology=of)
        assert g.product(nothing).factor_pattern is g.factor_pattern


def test_dtypes_promote_to_the_wider() -> None:
    g = GaussianGraphicalModel(np.zeros(3, np.float32), factor=np.ones(5, np.float32), topology=Chain(3))
    narrow = Potential(np.ones(3, np.float32), precision=np.ones(3, np.float32), topology=Diagonal(3))
    wide = Potential(np.full(3, 0.1), precision=np.full(3, 0.1), topology=Diagonal(3))
    assert g.product(narrow).dtype == np.float32
    assert g.product(wide).dtype == narrow.product(wide).dtype == np.float64
    np.testing.assert_array_equal(narrow.product(wide).information, 1.1)
    assert Potential([1, 2, 3], precision=[1, 1, 1], topology=Diagonal(3)).dtype == np.float64


def test_a_potential_is_immutable_and_pickled() -> None:
    information = np.ones(3)
    potential = Potential(information, precision=np.ones(5), topology=Chain(3))
    information[0] = 7.0
    assert potential.information[0] == 1.0
    with pytest.raises(ValueError, match="read-only"):
        potential.precision[0] = 2.0
    again = pickle.loads(pickle.dumps(potential))
    np.testing.assert_array_equal(again.precision, potential.precision)
    assert again.topology == potential.topology
    assert repr(again) == "Potential(Chain(n=3), batch_shape=(), dtype=float64)"


# ---------------------------------------------------------------------- positive definite by construction


@pytest.mark.property
@given(
    topologies=topologies_together(2),
    seed=seeds,
    scale=st.sampled_from([1.0, 1e3, 1e8, 1e15, 1e16, 1e30, 1e150, 1e300]),
    dtype=st.sampled_from(["float32", "float64"]),
)
def test_a_product_is_positive_definite_or_an_error_however_large_the_potential(topologies, seed, scale, dtype) -> None:
    """P within rounding of P₁ + Λ; or an error, if Λ overflows, or if P₁ + Λ is too near to singular for the dtype."""
    first, second = topologies
    rng = np.random.default_rng(seed)
    made = parametrize.gram if second.is_factor_free and rng.random() < 0.5 else parametrize.semidefinite_edge
    with np.errstate(over="ignore"):
        inputs = np.clip(scale * rng.standard_normal(made.num_inputs(second)), *float_range(dtype)).astype(dtype)
    prior = GaussianGraphicalModel(
        np.zeros(first.n, dtype), factor=np.ones(first.factor_pattern.nnz, dtype), topology=first
    )
    try:
        with np.errstate(over="ignore"):
            likelihood = Potential(np.ones(first.n, dtype), precision=made(second, inputs), topology=second)
    except NonFiniteError:
        assume(scale < float(np.finfo(dtype).max) ** 0.5 / 100)  # where W Wᵀ cannot overflow
        raise
    P = matrix_of(prior) + matrix_of(likelihood)
    try:
        posterior = prior.product(likelihood)
    except NotPositiveDefiniteError:
        root = np.sqrt(np.diagonal(P))
        scaled = (P / root[:, None] / root).astype(np.float64)
        gram = spread_of(precision_error(prior) / root[:, None] / root)
        rounded = first.n * numerics.unit_roundoff(dtype) + first.n**2 * numerics.unit_roundoff(np.float64)
        assert np.linalg.eigvalsh(scaled)[0] <= numerics.failure_margin(first.n, dtype) + gram + rounded
        return
    error = bound_of(prior, likelihood, posterior).precision
    assert (abs(precision_of(posterior) - P) <= error).all()
    assert np.isfinite(posterior.loc).all()


def spread_of(error: Array) -> Array:
    """‖E‖₂ of an entrywise bound, at most."""
    return np.asarray(np.sqrt((error**2).sum()))


def float_range(dtype: str) -> tuple[float, float]:
    return float(np.finfo(dtype).min), float(np.finfo(dtype).max)


def test_an_indefinite_sum_names_the_node() -> None:
    g = GaussianGraphicalModel(np.zeros(3), factor=np.ones(5), topology=Chain(3))
    with pytest.raises(
        NotPositiveDefiniteError, match=r"^product: not positive definite: pivot -\d+ at node 0 of Chain"
    ):
        g.product(Potential(np.zeros(3), precision=[-9.0, 0.0, 0.0], topology=Diagonal(3)))


def test_a_sum_beyond_the_dtype_names_the_node() -> None:
    huge = np.full(3, 3e38, np.float32)
    g = GaussianGraphicalModel.from_precision(np.zeros(3, np.float32), precision=huge, topology=Diagonal(3))
    likelihood = Potential(np.zeros(3, np.float32), precision=huge, topology=Diagonal(3))
    with pytest.raises(NonFiniteError, match=r"^product: precision must be finite, got inf at node 0 of Diagonal"):
        g.product(likelihood)
    with pytest.raises(NonFiniteError, match=r"^product: precision must be finite, got inf at node 0 of Diagonal"):
        likelihood.product(likelihood)


# ---------------------------------------------------------------------- what is refused

G = GaussianGraphicalModel(np.zeros((2, 3)), factor=np.ones(5), topology=Chain(3))
A = Potential(np.zeros(3), precision=np.ones(5), topology=Chain(3))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: Potential(np.zeros(4), precision=np.ones(5), topology=Chain(3)),
            ShapeError,
            "information must end in 3",
        ),
        (
            lambda: Potential(np.zeros(3), precision=np.ones(4), topology=Chain(3)),
            ShapeError,
            "precision must end in 5",
        ),
        (lambda: Potential(np.float64(0), precision=np.ones(5), topology=Chain(3)), ShapeError, "must end in 3"),
        (
            lambda: Potential(np.zeros((2, 3)), precision=np.ones((3, 5)), topology=Chain(3)),
            ShapeError,
            r"batch axes must broadcast, got \(2,\) of information and \(3,\) of precision",
        ),
        (
            lambda: Potential([0, np.nan, 0], precision=np.ones(5), topology=Chain(3)),
            NonFiniteError,
            r"information must be finite, got nan at node 1 of Chain\(n=3\)",
        ),
        (
            lambda: Potential(np.zeros(3), precision=[1, 1, np.inf, 1, 1], topology=Chain(3)),
            NonFiniteError,
            r"precision must be finite, got inf at node 1 of Chain\(n=3\)",
        ),
        (lambda: Potential("no", precision=np.ones(5), topology=Chain(3)), DTypeError, "must hold real numbers"),
        (lambda: Potential(np.zeros(3, complex), precision=np.ones(5), topology=Chain(3)), DTypeError, "real numbers"),
        (
            lambda: Potential(np.zeros(3), precision=np.ones(5), topology=Chain(3).precision_pattern),
            PatternError,
            "topology must be a Topology",
        ),
        (lambda: G.product(3.0), TypeError, "other must be a sparseggm.GaussianGraphicalModel or .* got float"),
        (lambda: G.product(None), TypeError, "other must be .* got NoneType"),
        (lambda: G.product(np.zeros(3)), TypeError, "other must be .* got numpy.ndarray"),
        (lambda: A.product(G), TypeError, r"other must be a sparseggm\.Potential, got .*GaussianGraphicalModel"),
        (
            lambda: G.product(Potential(np.zeros(4), precision=np.ones(7), topology=Chain(4))),
            ShapeError,
            r"other must be on 3 nodes, as Chain\(n=3\), got Potential\(Chain\(n=4\)",
        ),
        (
            lambda: G.product(Potential(np.zeros((3, 3)), precision=np.ones(5), topology=Chain(3))),
            ShapeError,
            r"batch axes must broadcast, got \(2,\) of this and \(3,\) of other",
        ),
        (
            lambda: Potential(np.zeros((2, 3)), precision=np.ones(5), topology=Chain(3)).product(
                Potential(np.zeros((3, 3)), precision=np.ones(5), topology=Chain(3))
            ),
            ShapeError,
            r"batch axes must broadcast, got \(2,\) of this and \(3,\) of other",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(
    call: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=rf"^(product|Potential): .*{message}"):
        call()
