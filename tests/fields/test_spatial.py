"""Areal models, Matérn fields and Kronecker products, against their dense definitions and published identities."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import scipy.special
import torch
from scipy.spatial import Delaunay

import sparseggm as sg
import sparseggm.torch as st
from sparseggm.errors import DTypeError, NonFiniteError, NonPositiveError, PatternError, ShapeError
from sparseggm.fields.areal import _scaling
from tests.fields.test_state_space import dense_precision
from tests.numerics import Array


def dense(topology: sg.Topology, packed: Array) -> Array:
    order = topology.inverse_order
    return topology.precision_pattern.to_dense(packed, symmetric=True)[..., order[:, None], order]


def laplacian(topology: sg.Topology, weights: Array) -> tuple[Array, Array]:
    """D and W."""
    W = np.zeros((topology.n, topology.n))
    W[tuple(topology.edges.T)] = weights
    W += W.T
    return np.diag(W.sum(1)), W


# ---------------------------------------------------------------------- areal models


def test_a_car_has_the_conditionals_of_its_definition() -> None:
    """E[z_i | rest] = loc_i − Q_ii⁻¹ Σ Q_ij (z_j − loc_j), precision Q_ii [Rue & Held 2005, eq. 2.3–2.5]."""
    rng = np.random.default_rng(0)
    t = sg.Grid(3, 4)
    w = rng.uniform(0.5, 2.0, len(t.edges))
    D, W = laplacian(t, w)
    tau, rho, loc = 1.7, 0.8, rng.standard_normal(12)
    g = sg.fields.CAR(t, w).prior(tau, rho, loc)
    Q = tau * (D - rho * W)
    np.testing.assert_allclose(dense_precision(g), Q, rtol=1e-13, atol=1e-14)
    z = rng.standard_normal(12)
    for i in range(12):
        others = np.delete(np.arange(12), i)
        rest = g.condition(others, z[others])
        assert rest.loc[0] == pytest.approx(loc[i] + rho * W[i] @ (z - loc) / D[i, i], rel=1e-12)
        assert rest.variance[0] == pytest.approx(1 / (tau * D[i, i]), rel=1e-12)
    i, j = t.edges[5]
    pair = g.condition(np.delete(np.arange(12), [i, j]), np.delete(z, [i, j]))
    partial = pair.correlation_on([[0, 1]])[0]  # −Q_ij / √(Q_ii Q_jj)
    assert partial == pytest.approx(-Q[i, j] / math.sqrt(Q[i, i] * Q[j, j]), rel=1e-12)


@pytest.mark.parametrize("t", [sg.Chain(2), sg.Chain(9), sg.Cycle(5), sg.Grid(4, 3), sg.Star(6)], ids=str)
def test_the_scaling_of_an_intrinsic_field_is_its_generalised_variance(t: sg.Topology) -> None:
    w = np.random.default_rng(1).uniform(0.5, 2.0, len(t.edges))
    D, W = laplacian(t, w)
    scale, logdet = _scaling(t, w, np.diag(D))
    inverse = np.linalg.pinv(D - W)
    assert scale == pytest.approx(np.exp(np.log(np.diag(inverse)).mean()), rel=1e-10)
    spectrum = np.linalg.eigvalsh(D - W)[1:]
    assert logdet == pytest.approx(np.log(spectrum).sum() - math.log(t.n), rel=1e-10, abs=1e-10)  # matrix-tree theorem


def test_batches_and_tensors_give_the_same_values() -> None:
    t = sg.Grid(3, 3)
    car, bym = sg.fields.CAR(t), sg.fields.BYM2(t, np.arange(9.0)[:, None])
    tau, rho = np.array([[0.5], [2.0]]), np.array([0.1, 0.5, 0.9])
    packed = car.precision(tau, rho)
    assert packed.shape == (2, 3, t.precision_pattern.nnz)
    np.testing.assert_array_equal(packed[1, 2], car.precision(2.0, 0.9))
    np.testing.assert_array_equal(car.precision(torch.tensor(tau), rho), packed)
    prior = bym.prior(tau, rho)
    assert prior.precision.shape[:-1] == (2, 3)
    np.testing.assert_allclose(bym.prior(torch.tensor(2.0).double(), 0.9).precision, prior.precision[1, 2], rtol=1e-15)
    np.testing.assert_allclose(bym.prior(2.0, 0.9).log_constant, prior.log_constant[1, 2], rtol=1e-14)


def test_the_precision_of_bym2_is_that_of_its_two_parts() -> None:
    t = sg.Grid(3, 3)
    D, W = laplacian(t, np.ones(len(t.edges)))
    model = sg.fields.BYM2(t, np.arange(18.0).reshape(9, 2))
    sd, mix = 0.7, 0.3
    P = dense(model.topology, model.prior(sd, mix).precision)
    rows = np.hstack([np.eye(9), -sd * math.sqrt(mix) * np.eye(9), np.zeros((9, 2))]) / (sd * math.sqrt(1 - mix))
    expected = rows.T @ rows
    expected[9:18, 9:18] += model.scale * (D - W)
    np.testing.assert_allclose(P, expected, rtol=1e-12, atol=1e-13)


# ---------------------------------------------------------------------- finite elements


def mesh(n: int = 60, seed: int = 0) -> sg.fields.Mesh:
    points = np.random.default_rng(seed).uniform(size=(n, 2))
    return sg.fields.Mesh(points, Delaunay(points).simplices)


@pytest.mark.parametrize(
    "domain", [mesh(), sg.fields.Lattice((5, 7), (0.5, 2.0)), sg.fields.Lattice((3, 4, 5))], ids=str
)
def test_mass_is_the_area_and_stiffness_the_energy_of_linear_functions(domain: sg.fields.Mesh) -> None:
    """1ᵀ C 1 = |Ω|, G 1 = 0, and ∫ ∇f · ∇g = fᵀ G g for linear f and g: a · b |Ω|."""
    mass, stiffness = domain.elements()
    if isinstance(domain, sg.fields.Mesh):
        places, size = domain.points, domain.areas.sum()
    else:
        places = np.stack(np.unravel_index(np.arange(domain.n), domain.shape), -1) * domain.spacing
        size = np.prod((np.array(domain.shape) - 1) * domain.spacing)
    assert mass.sum() == pytest.approx(size, rel=1e-12)
    np.testing.assert_allclose(stiffness @ np.ones(domain.n), 0, atol=1e-11)
    np.testing.assert_allclose(places.T @ stiffness @ places, size * np.eye(places.shape[1]), atol=1e-10)


@pytest.mark.parametrize("alpha", [1, 2])
def test_the_precision_is_the_equations(alpha: int) -> None:
    domain = mesh()
    field = sg.fields.Matern(domain, alpha)
    mass, G = domain.elements()
    kappa, tau = 3.0, 0.4
    K = kappa**2 * np.diag(mass) + G.toarray()
    expected = tau**2 * (K if alpha == 1 else K @ np.diag(1 / mass) @ K)
    np.testing.assert_allclose(dense(field.topology, field.precision_of(kappa, tau)), expected, rtol=1e-11, atol=1e-11)


def matern(h: Array, range: float, sd: float, nu: float) -> Array:
    x = np.maximum(np.sqrt(8 * nu) / range * h, 1e-12)
    return sd**2 * 2 ** (1 - nu) / math.gamma(nu) * x**nu * scipy.special.kv(nu, x)


@pytest.mark.parametrize(
    ("shape", "alpha", "range", "tolerance"),
    [((400,), 1, 20.0, 0.005), ((400,), 2, 30.0, 0.005), ((81, 81), 2, 16.0, 0.02)],
)
def test_covariances_far_from_the_boundary_are_matern(
    shape: tuple[int, ...], alpha: int, range: float, tolerance: float
) -> None:
    field = sg.fields.Matern(sg.fields.Lattice(shape), alpha)
    g = field.prior(range, 1.5)
    centre = np.ravel_multi_index(tuple(side // 2 for side in shape), shape)
    lags = np.array([0, 1, 3, 8, 15])
    expected = matern(lags.astype(float), range, 1.5, field.smoothness)
    found = g.covariance_on(np.stack([np.full(5, centre), centre + lags], -1))
    np.testing.assert_allclose(found, expected, atol=tolerance * 1.5**2)


def test_a_grid_and_the_mesh_of_its_halved_squares_have_one_stiffness() -> None:
    lattice = sg.fields.Lattice((4, 5))
    node = np.arange(20).reshape(4, 5)
    a, b, c, d = node[:-1, :-1].ravel(), node[:-1, 1:].ravel(), node[1:, :-1].ravel(), node[1:, 1:].ravel()
    places = np.stack(np.unravel_index(np.arange(20), (4, 5)), -1).astype(float)
    triangles = sg.fields.Mesh(places, np.concatenate([np.stack([a, b, c], -1), np.stack([d, c, b], -1)]))
    np.testing.assert_allclose(
        triangles.elements().stiffness.toarray(), lattice.elements().stiffness.toarray(), atol=1e-12
    )


@pytest.mark.parametrize("domain", [mesh(200), sg.fields.Lattice((5, 7), (0.5, 0.25))], ids=str)
def test_a_projector_reproduces_linear_functions_and_nodes(domain: sg.fields.Mesh) -> None:
    rng = np.random.default_rng(3)
    if isinstance(domain, sg.fields.Mesh):
        nodes = domain.points
        places = (rng.dirichlet(np.ones(3), 500)[..., None] * nodes[domain.triangles[rng.integers(0, 300, 500)]]).sum(1)
    else:
        nodes = np.stack(np.unravel_index(np.arange(35), (5, 7)), -1) * domain.spacing
        places = rng.uniform(size=(500, 2)) * (np.array(domain.shape) - 1) * domain.spacing
    A = domain.projector(places)
    np.testing.assert_allclose(A @ nodes, places, atol=1e-12)
    np.testing.assert_allclose(A.sum(1), 1, atol=1e-13)
    assert A.min() >= -1e-9
    np.testing.assert_allclose(domain.projector(nodes).toarray(), np.eye(domain.n), atol=1e-9)


def test_a_projector_agrees_with_scipys_search() -> None:
    rng = np.random.default_rng(4)
    points = np.concatenate([rng.uniform(size=(100, 2)), 0.5 + 1e-3 * rng.uniform(size=(100, 2))])  # sizes of all kinds
    triangulation = Delaunay(points)
    places = np.concatenate([rng.uniform(0.2, 0.8, (300, 2)), 0.5 + 1e-3 * rng.uniform(size=(300, 2))])
    A = sg.fields.Mesh(points, triangulation.simplices).projector(places)
    found = np.sort(A.indices.reshape(-1, 3), axis=1)
    np.testing.assert_array_equal(found, np.sort(triangulation.simplices[triangulation.find_simplex(places)], axis=1))


# ---------------------------------------------------------------------- Kronecker products


def test_a_kronecker_product_is_that_of_the_precisions() -> None:
    rng = np.random.default_rng(5)
    space, time = sg.Grid(2, 3), sg.Chain(4)
    product = sg.fields.Kronecker(space, time)
    first = sg.parametrize.dominant(space, rng.standard_normal(space.n + len(space.edges)))
    second = sg.parametrize.dominant(time, rng.standard_normal((2, time.n + len(time.edges))))
    packed = product.precision(first, second)
    for k in range(2):
        expected = np.kron(dense(space, first), dense(time, second[k]))
        np.testing.assert_array_equal(dense(product.topology, packed[k]), expected)
    g, one, two = (
        sg.GaussianGraphicalModel.from_precision(np.zeros(t.n), precision=P, topology=t)
        for t, P in ((product.topology, packed), (space, first), (time, second))
    )
    np.testing.assert_allclose(g._logdet(), 4 * one._logdet() + 6 * two._logdet(), rtol=1e-12)


# ---------------------------------------------------------------------- gradients and mistakes


def test_gradients_with_respect_to_all_parameters() -> None:
    t, field = sg.Grid(2, 3), sg.fields.Matern(mesh(12))
    car, bym = sg.fields.CAR(t), sg.fields.BYM2(t)
    x = torch.linspace(-1, 1, 12, dtype=torch.float64)

    def values(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, ...]:
        improper = bym.prior(a, b)
        return car.prior(a, b).log_prob(x[:6]), field.prior(a, b).log_prob(x), improper.precision, improper.log_constant

    assert isinstance(field.prior(torch.tensor(0.5), 1.0), st.GaussianGraphicalModel)
    given = torch.tensor([0.5, 0.8]).double().requires_grad_(), torch.tensor(0.4).double().requires_grad_()
    assert torch.autograd.gradcheck(values, given)


def test_triangles_that_count_twice_are_refused() -> None:
    corners = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [-1.0, 1.0]])
    with pytest.raises(PatternError, match=r"a triangle may be given once, got that of \[0 1 2\] twice"):
        sg.fields.Mesh(corners[:3], [[0, 1, 2], [2, 0, 1]])
    with pytest.raises(PatternError, match=r"a side may be of two triangles, got that of \[0 2\] in more"):
        sg.fields.Mesh(corners, [[0, 1, 2], [0, 3, 2], [0, 4, 2]])


def test_a_field_of_four_dimensions_is_told_of_no_smoothness_that_would_do() -> None:
    with pytest.raises(
        ValueError, match=r"half of the dimension 4, got 2: the field has no variance. Use precision_of"
    ):
        sg.fields.Matern(sg.fields.Lattice((2, 2, 2, 2)), 2).precision(1.0, 1.0)


def test_what_does_not_fit_is_refused_by_name() -> None:
    t = sg.Grid(2, 2)
    with pytest.raises(NonPositiveError, match=r"CAR.precision: rho must be in \(-1, 1\), got 1"):
        sg.fields.CAR(t).precision(1.0, 1.0)
    with pytest.raises(NonPositiveError, match=r"tau must be positive and finite, got -1, batch element \(1,\)"):
        sg.fields.CAR(t).precision([1.0, -1.0], 0.5)
    with pytest.raises(PatternError, match="CAR: every district must have a neighbour, got none of 2"):
        sg.fields.CAR(sg.Graph(3, [[0, 1]]))
    with pytest.raises(PatternError, match="in 2 parts; district 2 cannot be reached"):
        sg.fields.BYM2(sg.Graph(3, [[0, 1]]))
    with pytest.raises(ValueError, match="column 1 of covariates is constant"):
        sg.fields.BYM2(t, np.array([[0, 1], [1, 1], [2, 1], [3, 1]]))
    with pytest.raises(NonPositiveError, match=r"mix must be in \(0, 1\), got 0"):
        sg.fields.BYM2(t).prior(1.0, 0.0)
    with pytest.raises(ShapeError, match=r"weights must be \(4,\)"):
        sg.fields.CAR(t, np.ones(3))
    with pytest.raises(ValueError, match="alpha must exceed half of the dimension 2, got 1"):
        sg.fields.Matern(sg.fields.Lattice((3, 3)), 1).precision(1.0, 1.0)
    with pytest.raises(NonPositiveError, match="range must be positive"):
        sg.fields.Matern(sg.fields.Lattice((3, 3))).precision(0.0, 1.0)
    with pytest.raises(ShapeError, match="first must end in 3"):
        sg.fields.Kronecker(sg.Chain(2), sg.Chain(2)).precision(np.ones(2), np.ones(3))


TRIANGLE = np.array([[0.0, 0], [1, 0], [0, 1]])
CONSTANTS: dict[str, tuple[Callable[[Any], Any], Any]] = {
    "points": (lambda x: sg.fields.Mesh(x, [[0, 1, 2]]).projector([[0.2, 0.3]]).toarray(), TRIANGLE),
    "triangles": (lambda x: sg.fields.Mesh(TRIANGLE, x).projector([[0.2, 0.3]]).toarray(), np.array([[0, 1, 2]])),
    "places": (lambda x: sg.fields.Mesh(TRIANGLE, [[0, 1, 2]]).projector(x).toarray(), np.array([[0.2, 0.3]])),
    "places of a lattice": (lambda x: sg.fields.Lattice((3, 3)).projector(x).toarray(), np.array([[0.2, 0.3]])),
    "spacing": (lambda x: sg.fields.Lattice((3, 3), x).projector([[0.2, 0.3]]).toarray(), np.array([0.5, 2.0])),
    "weights": (lambda x: sg.fields.CAR(sg.Chain(3), x).precision(1.0, 0.5), np.array([1.0, 2.0])),
    "weights of BYM2": (lambda x: sg.fields.BYM2(sg.Chain(3), None, x).prior(1.0, 0.5).precision, np.array([1.0, 2.0])),
    "covariates": (lambda x: sg.fields.BYM2(sg.Chain(3), x).matrix.toarray(), np.array([[0.0], [1], [2]])),
    "H": (lambda x: sg.fields.StateSpace(3, 2).observation(x).toarray(), np.array([[1.0, 2.0]])),
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_constants_of_models_are_read_by_one_rule(name: str) -> None:
    make, value = CONSTANTS[name]
    expected = make(value)
    for same in (value.tolist(), np.asfortranarray(value), torch.tensor(value), value[::-1].copy()[::-1]):
        np.testing.assert_array_equal(make(same), expected)
    hidden = np.ma.masked_array(value, np.zeros(value.shape))
    hidden[(0,) * value.ndim] = np.ma.masked
    for wrong in (hidden, value * 1j, np.full(value.shape, "a")):
        with pytest.raises(DTypeError):
            make(wrong)
    if value.dtype == np.float64:
        with pytest.raises(ValueError, match=r"finite|every place"):
            make(np.where(value == value.max(), np.nan, value))
        with pytest.raises(DTypeError):
            make(torch.tensor(value, requires_grad=True))


def test_a_model_keeps_constants_of_its_own() -> None:
    weights, points = np.ones(2), TRIANGLE.copy()
    car, domain = sg.fields.CAR(sg.Chain(3), weights), sg.fields.Mesh(points, [[0, 1, 2]])
    before = car.precision(1.0, 0.5), domain.projector([[0.2, 0.3]]).toarray()
    weights[:], points[:] = 7.0, 7.0
    np.testing.assert_array_equal(car.precision(1.0, 0.5), before[0])
    np.testing.assert_array_equal(domain.projector([[0.2, 0.3]]).toarray(), before[1])


@pytest.mark.parametrize(
    "make",
    [
        lambda x, y: sg.fields.Matern(sg.fields.Lattice((3, 3))).prior(x, y),
        lambda x, y: sg.fields.Matern(sg.fields.Lattice((3, 3))).precision_of(x, y),
        lambda x, y: sg.fields.CAR(sg.Cycle(4)).prior(x, y / 2),
        lambda x, y: sg.fields.BYM2(sg.Cycle(4)).prior(x, y / 2),
        lambda x, y: sg.fields.Autoregression(4).prior(x[:, None] / 2, y),
        lambda x, y: sg.fields.Kronecker(sg.Chain(1), sg.Chain(1)).prior(x[:, None], y[:, None]),
    ],
    ids=["Matern", "Matern of kappa", "CAR", "BYM2", "Autoregression", "Kronecker"],
)
@pytest.mark.parametrize("of", [np.ones, torch.ones])
def test_batches_of_parameters_that_do_not_broadcast_are_named(
    make: Callable[..., Any], of: Callable[[int], Any]
) -> None:
    with pytest.raises(ShapeError, match=r"batch axes must broadcast, got \(2,\) of .* and \(3,\) of"):
        make(of(2), of(3))


def test_sides_and_domains_of_any_kind() -> None:
    assert sg.fields.Lattice(np.int64(5)).shape == (5,)  # type: ignore[arg-type]
    for wrong in (5.0, "55", (), True):
        with pytest.raises(PatternError, match="Lattice"):
            sg.fields.Lattice(wrong)  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="spacing must be a number or"):
        sg.fields.Lattice((3, 3), [1.0, 2.0, 3.0])
    with pytest.raises(TypeError, match="domain must be a Mesh or a Lattice, got tuple"):
        sg.fields.Matern((3, 3))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="alpha must be 1 or 2, got array"):
        sg.fields.Matern(sg.fields.Lattice(3), np.array([1, 2]))  # type: ignore[arg-type]
    for extreme in (1e-200, 1e200):
        with pytest.raises(NonFiniteError, match="the precision overflows float64"):
            sg.fields.Matern(sg.fields.Lattice((3, 3))).precision(extreme, 1.0)


def test_a_bad_mesh_is_refused_by_name() -> None:
    points = np.array([[0.0, 0], [1, 0], [0, 1], [2, 0]])
    with pytest.raises(PatternError, match="point 3 in none"):
        sg.fields.Mesh(points, [[0, 1, 2]])
    with pytest.raises(PatternError, match="got 0 of triangle 1"):
        sg.fields.Mesh(points, [[0, 1, 2], [0, 1, 3]])
    with pytest.raises(ValueError, match=r"got \(3.0, 0.0\) at row 1. Extend the mesh"):
        sg.fields.Mesh(points[:3], [[0, 1, 2]]).projector([[0.2, 0.2], [3.0, 0.0]])
    with pytest.raises(ValueError, match="must be on the lattice"):
        sg.fields.Lattice((3, 3)).projector([[0.5, 2.5]])
    with pytest.raises(NonPositiveError, match="spacing must be positive"):
        sg.fields.Lattice((3, 3), 0.0)


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_a_precision_beyond_the_dtype_is_refused_by_name(kind: Any) -> None:
    square, pair = sg.Grid(2, 2), sg.Chain(2)
    huge, large = kind(np.array(1e308)), kind(np.full(3, 1e200))
    with pytest.raises(NonFiniteError, match=r"^CAR.precision: .* the precision overflows .*float64"):
        sg.fields.CAR(square).precision(huge, 0.5)
    with pytest.raises(NonFiniteError, match=r"^BYM2.prior: .* the precision overflows .*float64"):
        sg.fields.BYM2(square).prior(1.0 / huge, 0.5)
    with pytest.raises(NonFiniteError, match=r"^Kronecker.precision: .* the precision overflows .*float64"):
        sg.fields.Kronecker(pair, pair).precision(large, large)
    with pytest.raises(NonFiniteError, match=r"^Kronecker.precision: second must be finite"):
        sg.fields.Kronecker(pair, pair).precision(large, large * np.nan)


@pytest.mark.parametrize("size", [1000.0, 1.0])
def test_midpoints_of_the_hull_are_inside_however_far_the_origin_is(size: float) -> None:
    """In metres of a map, rounding of coordinates is 1e-9 of them."""
    points = np.random.default_rng(3).random((60, 2))
    triangulation, turned = Delaunay(points), points @ [[0.955, 0.296], [-0.296, 0.955]] * size + 4.5e6
    hull = triangulation.convex_hull
    middle = (turned[hull[:, 0]] + turned[hull[:, 1]]) / 2
    A = sg.fields.Mesh(turned, triangulation.simplices).projector(middle)
    np.testing.assert_allclose(A @ turned, middle, rtol=1e-9)
    outside = turned.mean(0) + 1.01 * (middle[0] - turned.mean(0))
    with pytest.raises(ValueError, match="every place must be in a triangle"):
        sg.fields.Mesh(turned, triangulation.simplices).projector([outside])
