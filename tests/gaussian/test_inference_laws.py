"""What conditioning, marginals, observations and KL must satisfy among themselves, without an oracle.

Tolerances are those of `gaussian_bounds`: each result is within δ, as a quadratic form, of an exact one that the law
relates to the other.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import reference.gaussian
import reference.inference
from sparseggm import (
    Chain,
    GaussianGraphicalModel,
    Graph,
    Grid,
    NonFiniteError,
    NonPositiveError,
    NotPositiveDefiniteError,
    Pattern,
    PatternError,
    ShapeError,
    Topology,
    union,
)
from sparseggm.gaussian import conditioning
from tests import numerics
from tests.gaussian_bounds import (
    covariance_of,
    distance,
    energy,
    factorisation_error,
    family,
    kl_bound,
    loc_of,
    log_prob_bound,
    precision_error,
    precision_of,
    spread,
)
from tests.ledger import check
from tests.numerics import WIDE, Array
from tests.strategies import gaussians, seeds
from tests.topologies import topologies

FLOAT64 = np.float64


def delta(g: GaussianGraphicalModel) -> Array:
    """How far one factorisation of `g.precision`, whole or of a part of it, may be from exact."""
    return spread(precision_of(g), precision_error(g) + factorisation_error(precision_of(g), g.dtype))


def split(g: GaussianGraphicalModel, seed: int, parts: int) -> list[list[int]]:
    """All nodes in random order, cut into parts of which the first has at least one."""
    rng = np.random.default_rng(seed)
    cuts = np.sort(rng.integers(1, g.n + 1, parts - 1))
    return [part.tolist() for part in np.split(rng.permutation(g.n), cuts)]


def relative(a: GaussianGraphicalModel, b: GaussianGraphicalModel) -> Array:
    """‖P_a as a form relative to P_b, less I‖₂."""
    return distance(a, covariance_of(b))


def mean_share(g: GaussianGraphicalModel, step: Array, size: Array) -> Array:
    """‖m̂ − m‖_P of a computed conditional mean, for ‖s‖_P = `size`, s = v − loc at the given nodes and zero elsewhere.

    m solves P_AA x = −(P s)_A. A change E of P, |E| ≤ E⁺ with spread δ, moves it by ‖E (x, s)‖_{P⁻¹} / (1 − δ) ≤
    δ ‖s‖_P / (1 − δ), because ‖w_A‖ in P_AA⁻¹ is at most ‖w‖ in P⁻¹, and ‖(x, s)‖_P ≤ ‖s‖_P. The same holds of errors
    |E⁺ s|, as |s| ≤ |L⁻ᵀ||Lᵀ s|. There are: one E of P itself, 2 for the solves, and for L (Lᵀ s) one of
    γ_{r+c+1} ≤ (c + 1) γ_{r+1}.
    """
    shares = 1 + 2 + g.factor_pattern.longest_column + 1
    return np.asarray(shares * step / (1 - step) * size)


def size_of(g: GaussianGraphicalModel, nodes: list[int], values: Array) -> Array:
    """‖v − loc‖_P, zero off the nodes."""
    shift = np.zeros((*np.broadcast_shapes(g.loc.shape[:-1], values.shape[:-1]), g.n), WIDE)
    shift[..., nodes] = values.astype(WIDE) - g.loc[..., nodes]
    return energy(precision_of(g), shift)


def rounded(g: GaussianGraphicalModel) -> Array:
    """What the last sum, loc + move, can cost in the energy norm."""
    return energy(abs(precision_of(g)), numerics.rounding(2, g.dtype) * abs(loc_of(g)))


# ---------------------------------------------------------------------- conditionals and marginals


@pytest.mark.property
@given(g=gaussians(), seed=seeds)
def test_conditioning_and_marginals_commute(g: GaussianGraphicalModel, seed: int) -> None:
    """z_A given z_B: from z_A, z_C given z_B without z_C, and from the marginal of z_A, z_B given z_B.

    Each covariance is within (1 ± δ) of the exact one for each of its two factorisations, and so are the means.
    """
    kept, given_nodes, _ = split(g, seed, 3)
    kept, values = sorted(kept), np.random.default_rng(seed).standard_normal(len(given_nodes)).astype(g.dtype)
    first = g.condition(given_nodes, values)
    rest = reference.inference.others(g.n, given_nodes)
    one = first.marginal([rest.index(node) for node in kept])
    both = g.marginal([*kept, *given_nodes])
    other = both.condition(range(len(kept), both.n), values)
    steps = delta(g), delta(g), delta(first), delta(both)
    grown = np.prod(np.broadcast_arrays(*(1 + step for step in steps)), axis=0)
    shrunk = np.prod(np.broadcast_arrays(*(1 - step for step in steps)), axis=0)
    check("condition · marginal", family(g), g.dtype, relative(one, other), grown / shrunk - 1)
    size = size_of(g, given_nodes, values)
    bound = (
        mean_share(g, delta(g), size) + mean_share(both, delta(both) + delta(g), size) + rounded(one) + rounded(other)
    )
    difference = energy(precision_of(one), loc_of(one) - loc_of(other))
    check("condition · marginal, loc", family(g), g.dtype, difference, bound * grown / shrunk)


@pytest.mark.property
@given(g=gaussians(dtype="float64"), seed=seeds)
def test_all_but_one_node_given_leave_the_reciprocal_of_p(g: GaussianGraphicalModel, seed: int) -> None:
    """1/P_ii with P_ii a sum of squares: one rounding a term, and six for root, reciprocal and square."""
    node = seed % g.n
    left = g.condition([i for i in range(g.n) if i != node], np.zeros(g.n - 1))
    exact = 1 / precision_of(g)[..., node, node]
    variance = np.broadcast_to(exact, left.batch_shape)[..., None]
    level = numerics.rounding(g.factor_pattern.longest_row + 7, g.dtype)
    check("1 / P_ii", family(g), g.dtype, left.variance - variance, level * variance)


@pytest.mark.property
@given(g=gaussians(dtype="float64"), seed=seeds)
def test_a_density_is_that_of_a_part_times_that_of_the_rest_given_it(g: GaussianGraphicalModel, seed: int) -> None:
    """log p(x_A) + log p(x_B | x_A) = log p(x).

    Of each factorisation log det errs by n δ/(1 − δ), and q = dᵀ P d by δ q. The conditional mean errs by e in the
    energy norm, which adds 2 √q e + e²; and each density by its evaluation.
    """
    part, rest = split(g, seed, 2)
    x = np.random.default_rng(seed).standard_normal((*g.batch_shape, g.n))
    marginal = g.marginal(part)
    total, bound = marginal.log_prob(x[..., part]), log_prob_bound(marginal, x[..., part])
    step, q = delta(g), reference.gaussian.quadratic(precision_of(g), x.astype(WIDE) - loc_of(g))
    if rest:
        kept = sorted(rest)
        conditional = g.condition(part, x[..., part])
        total = total + conditional.log_prob(x[..., kept])
        bound = bound + log_prob_bound(conditional, x[..., kept])
        e = mean_share(g, step, size_of(g, part, x[..., part])) + rounded(conditional)
        bound = bound + (1 + step) * (np.sqrt(q) * e + e**2 / 2)
    bound = bound + log_prob_bound(g, x) + (2 * g.n * step / (1 - step) + step * q) / 2
    bound = bound + numerics.rounding(2, FLOAT64) * abs(total)
    check("chain rule", family(g), g.dtype, total - g.log_prob(x), bound)


# ---------------------------------------------------------------------- observations


@pytest.mark.property
@given(g=gaussians(), seed=seeds)
def test_an_observation_of_infinite_variance_changes_nothing(g: GaussianGraphicalModel, seed: int) -> None:
    """The mean to the bit, L by one more factorisation."""
    nodes = split(g, seed, 2)[0]
    values = np.full(len(nodes), 1e6, g.dtype)
    posterior = g.observe(nodes, values, np.inf)
    np.testing.assert_array_equal(posterior.loc, np.broadcast_to(g.loc, posterior.loc.shape))
    check("observe nothing", family(g), g.dtype, distance(posterior, covariance_of(g)), delta(g))


@pytest.mark.property
@given(g=gaussians(dtype="float64"), seed=seeds)
def test_an_observation_of_small_variance_is_a_condition(g: GaussianGraphicalModel, seed: int) -> None:
    """The kept precision is P_AA − P_AB (P_BB + I/v)⁻¹ P_BA, below P_AA by at most v P_AB P_BA."""
    observed, kept = split(g, seed, 2)
    assume(kept)
    kept, variance = sorted(kept), 1e-13
    values = np.random.default_rng(seed).standard_normal(len(observed))
    posterior = g.observe(observed, values, variance)
    left, conditioned = posterior.marginal(kept), g.condition(observed, values)
    P = precision_of(g)
    across = P[..., kept, :][..., observed]
    effect = spread(P[..., kept, :][..., kept], variance * abs(across) @ numerics.transpose(abs(across)))
    step = 2 * delta(g) + 2 * delta(posterior) + effect
    check("observe exactly", family(g), g.dtype, relative(left, conditioned), step / (1 - step))
    # Exactly, y − m_B = v S_B (m_B − loc_B) with S_B ≼ P_BB the marginal precision, and |m_B − loc_B| ≤ |s|. Computed,
    # ‖Δm‖ ≤ δ shares ‖s‖ / √v in the energy norm of the posterior, whose precision is ≥ 1/v at these nodes.
    size = np.sqrt(((values - loc_of(g)[..., observed]) ** 2).sum(axis=-1))
    bound = variance * np.trace(P, axis1=-2, axis2=-1) * size + mean_share(g, delta(posterior) + delta(g), size)
    bound = bound + np.sqrt(variance) * rounded(posterior)
    miss = abs(posterior.loc[..., observed] - values).max(axis=-1)
    check("observe exactly, loc", family(g), g.dtype, miss, bound)


def test_a_mean_far_from_zero_keeps_its_digits_under_observation() -> None:
    """The posterior moves with the mean: around 2⁴⁰ it is that around 0, shifted, up to the spacing there."""
    chain = Chain(5)
    precision = chain.pack((np.full(5, 2.0), np.full(4, -0.99)))
    far = 2.0**40
    near, moved = (
        GaussianGraphicalModel.from_precision(np.full(5, loc), precision=precision, topology=chain).observe(
            [1, 3], np.array([loc + 1.5, loc - 0.25]), 0.25
        )
        for loc in (0.0, far)
    )
    assert abs(moved.loc - far - near.loc).max() <= np.spacing(far)


# ---------------------------------------------------------------------- equal Gaussians on other graphs


@st.composite
def same_gaussians(draw: st.DrawFn) -> tuple[GaussianGraphicalModel, GaussianGraphicalModel, Array]:
    """One precision on a topology, and on a larger graph in another order; and the precision, dense."""
    topology: Topology = draw(topologies(3))
    rng = np.random.default_rng(draw(seeds))
    n, m = topology.n, len(topology.edges)
    couplings = rng.uniform(-1, 1, m)
    dense = np.zeros((n, n))
    dense[topology.edges[:, 0], topology.edges[:, 1]] = couplings
    dense += dense.T
    dense[np.diag_indices(n)] = abs(dense).sum(axis=0) + rng.uniform(0.1, 2, n)
    more = Graph(n, np.argwhere(np.tril(rng.random((n, n)) < draw(st.sampled_from([0.0, 0.3])), -1)))
    order = rng.permutation(n) if draw(st.booleans()) else None
    larger = Graph(n, union(topology, more).edges, order)
    loc = rng.standard_normal(n)
    q, p = (
        GaussianGraphicalModel.from_precision(loc, precision=on.pack(dense), topology=on) for on in (topology, larger)
    )
    return q, p, dense


@pytest.mark.property
@given(pair=same_gaussians())
def test_equal_gaussians_on_different_graphs_have_no_divergence(
    pair: tuple[GaussianGraphicalModel, GaussianGraphicalModel, Array],
) -> None:
    """Two factorisations within δ of one P: their KL is ≤ n (2δ)² / (1 − 2δ)², and the rest is its evaluation."""
    q, p, dense = pair
    step = 2 * spread(dense.astype(WIDE), factorisation_error(dense.astype(WIDE), FLOAT64))
    for a, b in ((q, p), (p, q)):
        check("kl of equals", family(a), a.dtype, a.kl_divergence(b), kl_bound(a, b) + q.n * (step / (1 - step)) ** 2)


def test_a_chain_renumbered_and_a_grid_in_a_larger_graph_are_the_same_gaussians() -> None:
    for small, large in (
        (Chain(8), Graph(8, Chain(8).edges, order=[3, 0, 7, 5, 1, 2, 6, 4])),
        (Grid(3, 4), union(Grid(3, 4), Chain(12))),
    ):
        degree = np.bincount(small.edges.ravel(), minlength=small.n)
        couplings = np.where((small.edges[:, 0] + small.edges[:, 1]) % 2, 0.5, -0.5)
        pair = (degree + 1.0, couplings)
        q = GaussianGraphicalModel.from_precision(np.ones(small.n), precision=small.pack(pair), topology=small)
        dense = small.precision_pattern.to_dense(small.pack(pair), symmetric=True)
        place = small.inverse_order
        P = large.pack(dense[place[:, None], place])
        p = GaussianGraphicalModel.from_precision(np.ones(small.n), precision=P, topology=large)
        assert abs(q.kl_divergence(p)) <= kl_bound(q, p)
        assert abs(p.kl_divergence(q)) <= kl_bound(p, q)


def test_an_l_that_fills_its_graph_is_not_taken_for_one_on_the_graph() -> None:
    """On a 2 × 2 grid L has an entry at the chord; with that one large, dropping P there would be seen at once."""
    grid = Grid(2, 2)
    factor = np.linspace(1, 2, grid.factor_pattern.nnz)
    g = GaussianGraphicalModel(np.zeros(4), factor=factor, topology=grid)
    P = precision_of(g).astype(FLOAT64)
    assert not g.is_on_topology
    assert len(g.graph.edges) == len(grid.edges) + 1
    sigma = np.linalg.inv(P)
    np.testing.assert_allclose(g.marginal([3, 1]).covariance_on([(0, 1)]), sigma[3, 1], rtol=1e-12)
    np.testing.assert_allclose(g.condition([0], np.ones(1)).variance, np.diag(np.linalg.inv(P[1:, 1:])), rtol=1e-12)
    standard = GaussianGraphicalModel(np.zeros(4), factor=np.ones(4), topology=Graph(4, []))
    expected = reference.gaussian.kl_divergence(np.zeros(4), np.eye(4), np.zeros(4), P)
    np.testing.assert_allclose(standard.kl_divergence(g), expected, rtol=1e-12)


# ---------------------------------------------------------------------- refusals

G = GaussianGraphicalModel(np.zeros(3), factor=np.ones(5), topology=Chain(3))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: G.condition([0, 1, 2], np.zeros(3)), PatternError, r"condition: all 3 nodes are given"),
        (lambda: G.condition([0, 0], np.zeros(2)), PatternError, r"condition: each node must be given once, got 2"),
        (lambda: G.condition([3], np.zeros(1)), PatternError, r"condition: nodes must be in 0 … 2, got 3 … 3"),
        (lambda: G.condition([-1], np.zeros(1)), PatternError, r"condition: nodes must be in 0 … 2, got -1 … -1"),
        (
            lambda: G.condition([0.0], np.zeros(1)),
            PatternError,
            r"condition: nodes must be a list of integers or a mask, got f",
        ),
        (
            lambda: G.condition([[0]], np.zeros(1)),
            PatternError,
            r"condition: nodes must be a list of integers or a mask, got i",
        ),
        (lambda: G.condition([0], np.zeros(2)), ShapeError, r"condition: values must end in 1, the nodes, got shape"),
        (lambda: G.condition([0], [np.nan]), NonFiniteError, r"condition: values must be finite, got nan"),
        (lambda: G.observe([0], [np.inf], 1.0), NonFiniteError, r"observe: values must be finite, got inf"),
        (
            lambda: G.observe([0], np.zeros(2), 1.0),
            ShapeError,
            r"observe: values and variance must broadcast to \(\.\.\., 1\)",
        ),
        (lambda: G.observe([0], [0.0], 0.0), NonPositiveError, r"observe: variance must be positive.* got 0\.0\. Use"),
        (lambda: G.observe([0], [0.0], -1.0), NonPositiveError, r"observe: variance must be positive.* got -1\.0\."),
        (lambda: G.observe([0], [0.0], np.nan), NonPositiveError, r"observe: variance must be positive.* got nan\."),
        (lambda: G.observe([0], [0.0], 1e-320), NonPositiveError, r"observe: .*1/variance in the range of float64"),
        (lambda: G.marginal([]), PatternError, r"marginal: needs at least one node"),
        (lambda: G.marginal([1, 1]), PatternError, r"marginal: each node must be given once"),
        (lambda: G.covariance_on([(0, 3)]), PatternError, r"covariance_on: nodes must be in 0 … 2, got 0 … 3"),
        (lambda: G.covariance_on([[0, 1, 2]]), PatternError, r"covariance_on: edges must be \(m, 2\) integers"),
        (lambda: G.correlation_on([(0, 1.5)]), PatternError, r"correlation_on: edges must be \(m, 2\) integers"),
    ],
)
def test_what_cannot_be_inferred_is_refused_by_name(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}"):
        call()


def test_no_nodes_given_leave_the_gaussian_as_it_is() -> None:
    for left in (G.condition([], []), G.observe([], [], 1.0), G.marginal([0, 1, 2])):
        np.testing.assert_array_equal(left.precision, G.precision)
        np.testing.assert_array_equal(left.loc, G.loc)


def test_a_large_marginal_has_to_be_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub of a star gone, its leaves are all joined: 5 · 6 / 2 entries."""
    star = Graph(6, [(i, 0) for i in range(1, 6)], order=range(6))
    g = GaussianGraphicalModel(np.zeros(6), factor=np.ones(star.factor_pattern.nnz), topology=star)
    monkeypatch.setattr(conditioning, "MARGINAL_LIMIT", 14)
    with pytest.raises(PatternError, match=r"^marginal: the marginal of 5 nodes .* of more than 14 entries"):
        g.marginal([1, 2, 3, 4, 5])
    assert g.marginal([1, 2, 3, 4, 5], force=True).factor.shape == (15,)
    assert g.marginal([0, 1, 2]).n == 3


def test_a_marginal_beyond_the_limit_is_refused_before_its_fill_is_formed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of half of a 300 × 300 grid it would have 50 million entries; they are counted up to the limit alone."""
    grid = Grid(300, 300, order=range(90_000))
    nodes = np.random.default_rng(0).permutation(90_000)[:45_000]
    grid.inverse_order, grid.precision_pattern  # noqa: B018  # derived before their brothers are forbidden

    def formed(pattern: Pattern) -> Pattern:
        raise AssertionError(f"the fill of {pattern} was formed")

    monkeypatch.setattr(Pattern, "filled", formed)
    with pytest.raises(
        PatternError, match=r"^marginal: the marginal of 45000 nodes .* of more than 10,000,000 entries"
    ):
        conditioning.schur_complement(grid, nodes, force=False)


def test_a_marginal_of_a_p_that_is_singular_to_working_precision_names_the_node() -> None:
    """L L⊤ of a float32 L with 1/L_jj near 10⁸ is no longer positive definite."""
    chain = Chain(3)
    factor = np.array([1, 1, 1e-6, 1, 1], np.float32)
    g = GaussianGraphicalModel(np.zeros(3, np.float32), factor=factor, topology=chain)
    with pytest.raises(NotPositiveDefiniteError, match=r"^marginal: P is not positive definite to working precision"):
        g.marginal([1, 0, 2])
