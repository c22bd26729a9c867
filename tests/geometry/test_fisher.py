"""The Fisher matrix: against the metric of dense matrices, the Hessian of KL, and its own inverse."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reference.gaussian
import reference.geometry
from sparseggm import (
    BlockChain,
    Chain,
    Diagonal,
    ExtendedGrid,
    GaussianGraphicalModel,
    Grid,
    NonFiniteError,
    PatternError,
    ShapeError,
    Stencil,
    Topology,
    geometry,
)
from sparseggm.geometry import chains
from sparseggm.geometry.fisher import Fisher
from tests import numerics
from tests.gaussian_bounds import factor_of, family
from tests.ledger import check
from tests.numerics import WIDE, Array
from tests.strategies import dense, factor_values, seeds
from tests.topologies import topologies

COORDINATES = ("factor", "regression", "natural", "expectation")
factor_free = topologies(3).filter(lambda topology: topology.is_factor_free)


def has(topology: Topology, coordinates: str) -> bool:
    return coordinates in ("factor", "regression") or topology.factor_pattern.is_closed


@dataclass(frozen=True)
class Problem:
    """A Gaussian, its coordinates, and two changes of them."""

    g: GaussianGraphicalModel
    coordinates: str
    v: geometry.Tangent
    w: geometry.Tangent

    @property
    def condition(self) -> Array:
        """‖L‖ ‖L⁻¹‖ of the Frobenius norm, squared: of P, and so of every Σ_RR."""
        L = factor_of(self.g)
        inverse = np.linalg.inv(L.astype(np.float64))
        return np.asarray((L**2).sum(axis=(-1, -2)) * (inverse**2).sum(axis=(-1, -2)))

    def size(self, *parts: Array) -> Array:
        return np.asarray(np.sqrt(sum((part.astype(WIDE) ** 2).sum(axis=-1) for part in parts)))


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    topology, coordinates = draw(factor_free), draw(st.sampled_from(COORDINATES))
    if not has(topology, coordinates):
        coordinates = "factor"
    rng, dtype = np.random.default_rng(draw(seeds)), np.dtype(draw(st.sampled_from(["float32", "float64"])))
    batch, other = draw(st.sampled_from([((), ()), ((2,), (2,)), ((), (3,)), ((3, 1), (2,)), ((0,), (0,))]))
    values = factor_values(rng, topology.factor_pattern, batch, "plain", dtype)
    g = GaussianGraphicalModel(rng.standard_normal(topology.n).astype(dtype), factor=values, topology=topology)
    sizes = topology.n, topology.factor_pattern.nnz
    v, w = (geometry.Tangent(*(rng.standard_normal((*other, size)).astype(dtype) for size in sizes)) for _ in range(2))
    return Problem(g, coordinates, v, w)


def in_elimination_order(g: GaussianGraphicalModel, v: geometry.Tangent) -> tuple[Array, Array]:
    return v.vector.astype(WIDE)[..., g.topology.order], dense(g.factor_pattern, v.values)


@pytest.mark.property
@given(problem=problems())
def test_a_product_with_the_fisher_matrix_is_the_metric(problem: Problem) -> None:
    """vᵀ F w = dlocᵀ P dloc' + ½ tr(Σ dP Σ dP') of the changes of loc and P: in all coordinates but "expectation"."""
    g, coordinates, v, w = problem.g, problem.coordinates, problem.v, problem.w
    if coordinates == "expectation":  # its F is W F_natural⁻¹ W, which the inverse of the next test ties to F_natural
        return
    L, loc = factor_of(g), g.loc.astype(WIDE)[g.topology.order]
    changes = [reference.geometry.change_of_precision(coordinates, L, loc, in_elimination_order(g, u)) for u in (v, w)]
    exact = reference.geometry.metric(L @ np.swapaxes(L, -1, -2), *changes)
    made = geometry.fisher_matmul(g, *w, coordinates)
    found = sum((a.astype(WIDE) * b).sum(axis=-1) for a, b in zip(v, made, strict=True))
    bound = 8 * numerics.rounding(4 * g.n**2 + 20, g.dtype) * problem.condition * problem.size(*v) * problem.size(*made)
    bound = bound + reach(problem)
    check(f"fisher_matmul {coordinates}", family(g), g.dtype, found - exact, bound)


def reach(problem: Problem) -> Array:
    """Where terms of F v cancel, their size: ‖v‖ ‖w‖ times the largest of the entries of F in any coordinates."""
    g = problem.g
    L = factor_of(g)
    inverse = np.linalg.inv(L.astype(np.float64))
    P, S = (L**2).sum(axis=(-1, -2)), (inverse**2).sum(axis=(-1, -2))
    loc = 1 + (g.loc.astype(WIDE) ** 2).sum(axis=-1)
    entries = P + S * loc + S**2 + S * P
    level = 8 * numerics.rounding(4 * g.n**2 + 20, g.dtype) * problem.condition
    return np.asarray(level * entries * problem.size(*problem.v) * problem.size(*problem.w))


@pytest.mark.property
@given(problem=problems())
def test_the_inverse_undoes_the_product(problem: Problem) -> None:
    """F⁻¹ F v = v: an error of F v, or of F⁻¹, by a few n u grows by the condition of F, at most that of P squared."""
    g, v = problem.g, problem.v
    made = geometry.fisher_matmul(g, *v, problem.coordinates)
    back = geometry.fisher_solve(g, *made, problem.coordinates)
    far = 1 + (g.loc.astype(WIDE) ** 2).sum(axis=-1)
    level = 8 * numerics.rounding(4 * g.n**2 + 20, g.dtype) * problem.condition**2 * far**2
    error = problem.size(back.vector.astype(WIDE) - v.vector, back.values.astype(WIDE) - v.values)
    assert back.vector.shape == made.vector.shape
    assert back.vector.dtype == back.values.dtype == g.dtype
    check(f"fisher_solve {problem.coordinates}", family(g), g.dtype, error, level * problem.size(*v))


@pytest.mark.property
@given(problem=problems())
def test_the_fisher_matrix_and_its_inverse_are_symmetric(problem: Problem) -> None:
    g, v, w = problem.g, problem.v, problem.w
    for of in (geometry.fisher_matmul, geometry.fisher_solve):
        first, second = of(g, *v, problem.coordinates), of(g, *w, problem.coordinates)
        left = sum((a.astype(WIDE) * b).sum(axis=-1) for a, b in zip(w, first, strict=True))
        right = sum((a.astype(WIDE) * b).sum(axis=-1) for a, b in zip(v, second, strict=True))
        far = 1 + (g.loc.astype(WIDE) ** 2).sum(axis=-1)
        level = 8 * numerics.rounding(4 * g.n**2 + 20, g.dtype) * problem.condition**2 * far**2
        size = problem.size(*w) * problem.size(*first) + problem.size(*v) * problem.size(*second)
        check(f"{of.__name__} is symmetric", family(g), g.dtype, left - right, level * size)


def moved(g: GaussianGraphicalModel, coordinates: str, v: geometry.Tangent, step: float) -> tuple[Array, Array]:
    """Mean and P, in WIDE and elimination order, after a step of the coordinates."""
    L, loc = factor_of(g), g.loc.astype(WIDE)
    vector, matrix = v.vector * WIDE(step), dense(g.factor_pattern, v.values) * WIDE(step)
    if coordinates == "factor":
        return loc + vector, (L + matrix) @ (L + matrix).T
    if coordinates == "regression":
        pivots = np.diag(L) * np.exp(-np.diag(matrix))
        L = (L / np.diag(L) - np.tril(matrix, -1)) * pivots
        return loc + vector, L @ L.T
    change = matrix + np.tril(matrix, -1).T
    P = L @ L.T
    if coordinates == "natural":
        mean = reference.gaussian.covariance(P + change) @ (P @ loc + vector)
        return mean, P + change
    mean, second = loc + vector, reference.gaussian.covariance(P) + np.outer(loc, loc) + change
    return mean, reference.gaussian.covariance(second - np.outer(mean, mean))


HESSIANS = [
    *((topology, name) for topology in (Chain(1), Chain(2), BlockChain(1, 3), Diagonal(3)) for name in COORDINATES),
    *((topology, name) for topology in (ExtendedGrid(2, 3), Stencil(2, 2, 1)) for name in COORDINATES[:2]),
    (Chain(4), "natural"),
]


@pytest.mark.parametrize(("topology", "coordinates"), HESSIANS, ids=str)
def test_the_fisher_matrix_is_the_hessian_of_kl_in_either_argument(topology: Topology, coordinates: str) -> None:
    """2 KL / ε² to O(ε), of which the mean of ±ε leaves O(ε²). "expectation" on graphs whose Σ is all on the graph."""
    rng, pattern = np.random.default_rng(0), topology.factor_pattern
    g = GaussianGraphicalModel(
        rng.standard_normal(topology.n), factor=factor_values(rng, pattern, (), "plain", np.float64), topology=topology
    )
    for _ in range(5):
        v = geometry.Tangent(rng.standard_normal(topology.n), rng.standard_normal(pattern.nnz))
        if coordinates == "expectation" and not len(topology.edges):
            v = geometry.Tangent(0 * v.vector, v.values)  # a product of means would leave the diagonal
        size = sum(a @ b for a, b in zip(v, geometry.fisher_matmul(g, *v, coordinates), strict=True))
        here, step = (g.loc.astype(WIDE), factor_of(g) @ factor_of(g).T), 1e-5 / np.sqrt(float(size))
        there = [moved(g, coordinates, v, sign * step) for sign in (1, -1)]
        for pairs in ([(here, end) for end in there], [(end, here) for end in there]):
            kl = sum(reference.gaussian.kl_divergence(*a, *b) for a, b in pairs)
            np.testing.assert_allclose(float(kl / step**2), size, rtol=1e-7)


@pytest.mark.parametrize("n", [1, 2, chains.BLOCK, 2 * chains.BLOCK + 3])
@pytest.mark.parametrize("coordinates", COORDINATES[:2])
@pytest.mark.parametrize("batch", [(), (3, 1)])
def test_a_chain_in_passes_has_the_numbers_of_any_pattern(n: int, coordinates: str, batch: tuple[int, ...]) -> None:
    """Vector and values of one batch shape go together, of two shapes one after the other."""
    rng, chain = np.random.default_rng(0), Chain(n)
    factor = factor_values(rng, chain.factor_pattern, (2,), "plain", np.float64)
    g = GaussianGraphicalModel(rng.standard_normal(n), factor=factor, topology=chain)
    v = geometry.Tangent(rng.standard_normal((*batch, n)), rng.standard_normal((3, 1, 2 * n - 1)))
    fisher = Fisher(chain.factor_pattern, g.factor, g.loc)
    plain = Fisher(chain.factor_pattern, g.factor, g.loc)
    plain.is_chain_of_arrays = False
    for inverse in (False, True):
        for one, two in zip(*(each.applied(coordinates, v, inverse)[0] for each in (fisher, plain)), strict=True):
            assert one.shape == two.shape
            np.testing.assert_allclose(one, two, rtol=1e-11, atol=1e-11)


# ---------------------------------------------------------------------- refusals


def refusals() -> list[Any]:
    chain = GaussianGraphicalModel(np.zeros(3), factor=np.ones(5), topology=Chain(3))
    grid = ExtendedGrid(3, 3)
    extended = GaussianGraphicalModel(np.zeros(9), factor=np.ones(grid.factor_pattern.nnz), topology=grid)
    values = Grid(2, 2).pack((np.full(4, 4.0), np.ones(4)))
    lattice = GaussianGraphicalModel.from_precision(np.zeros(4), precision=values, topology=Grid(2, 2))
    zero, five = np.zeros(3), np.zeros(5)
    return [
        (chain, zero, zero, "factor", ShapeError, r"on Chain\(n=3\) vector must end in 3 and values in 5, got"),
        (chain, zero, five, "polar", ValueError, r'coordinates must be "factor", "regression", "natural" or "expecta'),
        (chain, zero, five * np.nan, "factor", NonFiniteError, r"values must be finite, got nan at node 0"),
        (chain, zero + np.inf, five, "factor", NonFiniteError, r"vector must be finite, got inf"),
        (chain, zero + 1e308, five, "factor", NonFiniteError, r"the arguments are finite but the result overflows"),
        (chain, np.zeros((2, 3)), np.zeros((3, 5)), "factor", ShapeError, "batch axes must broadcast"),
        (
            extended,
            np.zeros(9),
            np.zeros(extended.factor.size),
            "natural",
            PatternError,
            r'"natural" needs a graph that',
        ),
        (lattice, np.zeros(4), np.zeros(9), "factor", PatternError, r"needs an L that is free on its pattern, got one"),
    ]


@pytest.mark.parametrize(("g", "vector", "values", "coordinates", "error", "message"), refusals())
def test_what_has_no_fisher_matrix_is_refused(g, vector, values, coordinates, error, message) -> None:
    for of in (geometry.fisher_matmul, geometry.fisher_solve):
        with pytest.raises(error, match=f"^{of.__name__}: {message}"):
            of(g, vector, values, coordinates)


@pytest.mark.parametrize("coordinates", COORDINATES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_every_value_that_is_not_finite_is_found_and_named(coordinates: str, bad: float) -> None:
    """Wherever it stands, whatever zeros it meets: the result alone is tested."""
    topology = BlockChain(2, 2)
    rng, pattern = np.random.default_rng(0), topology.factor_pattern
    factor = np.where(pattern.rows == pattern.cols, 1.0, 0.0)
    for g in (
        GaussianGraphicalModel(rng.standard_normal(4), factor=factor, topology=topology),
        GaussianGraphicalModel(np.zeros(5), factor=[1.0, 0, 1, 0, 1, 0, 1, 0, 1], topology=Chain(5)),
    ):
        sizes = g.n, g.factor_pattern.nnz
        for of in (geometry.fisher_matmul, geometry.fisher_solve):
            for which, size in enumerate(sizes):
                for place in range(size):
                    given = [np.zeros(each) for each in sizes]
                    given[which][place] = bad
                    name = ("vector", "values")[which]
                    with pytest.raises(NonFiniteError, match=f"^{of.__name__}: {name} must be finite, got {bad}"):
                        of(g, *given, coordinates)
