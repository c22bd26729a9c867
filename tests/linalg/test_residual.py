"""The residual posterior on arrays: terms within their bound, their sum the exact KL, and what must hold to the bit.

The bound of a term, in WIDE. The kernel rounds L at most eight times an entry, the exponential counted for four:
|δL| ≤ γ_8 e^{−δ} (|M| + |Δ| M_jj), so P changes by |δP| ≤ |δL| |L|ᵀ + |L| |δL|ᵀ + |δL| |δL|ᵀ, and Σ by at most
(I − K)⁻¹ K |Σ|, K = |Σ| |δP| with row sums below ½. `numerics.inverse_forward_bound` adds the recursion's error, at the
worst L and Σ of these; each sum of c terms adds γ_{c+4} of its absolute terms; h is within 9 u.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import reference.gaussian
import reference.linalg
import sparseggm as sg
from sparseggm import linalg
from sparseggm.kernels.sparse.residual import SERIES
from sparseggm.linalg import residual
from tests import numerics
from tests.ledger import check
from tests.numerics import WIDE, Array
from tests.strategies import dtypes, factor_values, seeds
from tests.topologies import topologies

batches = st.sampled_from([(), (1,), (3,), (2, 9)])
ref = reference.linalg


def arguments(pattern, batch, seed, size, dtype) -> list[Array]:
    """loc, factor, shift, moves and noise."""
    rng = np.random.default_rng(seed)
    loc, shift, noise = (rng.standard_normal((*batch, pattern.n)).astype(dtype) for _ in range(3))
    moves = (size * rng.standard_normal((*batch, pattern.nnz))).astype(dtype)
    return [loc, factor_values(rng, pattern, batch, "plain", dtype), shift, moves, noise]


def h(delta: Array) -> Array:
    """½ (e^{2δ} − 1) − δ in WIDE, by its series where that is shorter than the cancellation."""
    x = 2 * delta
    series = np.zeros_like(x)
    for k in range(30, 1, -1):
        series = (series + 1) * x / (k + 1)
    return np.where(abs(x) < 1, (series + 1) * x * x / 4, (np.expm1(x) - x) / 2)


def expected_terms(pattern, given: list[Array], dtype) -> tuple[Array, Array]:
    """The terms in WIDE, and the bound of their error; see above."""
    _, factor, shift, moves, _ = (array.astype(WIDE) for array in given)
    M, moved = pattern.to_dense(factor), pattern.to_dense(moves)
    L, change, c = ref.moved(M, moved), np.tril(moved, -1), pattern.longest_column
    pivots, shrink = ref.diagonal(M), np.exp(-ref.diagonal(moved))
    sigma = ref.inverse(L)
    rounded = numerics.gamma(8, dtype) * shrink[..., None, :] * (abs(M) + abs(change) * pivots[..., None, :])
    product = rounded @ numerics.transpose(abs(L))
    pull = abs(sigma) @ (product + numerics.transpose(product) + rounded @ numerics.transpose(rounded))
    assume((pull.sum(-1) < 0.5).all())
    spread = sum_of_powers(pull) @ abs(sigma)
    error = spread + numerics.inverse_forward_bound(farthest(L, rounded), abs(sigma) + spread, c, dtype)

    def form(matrix: Array, x: Array) -> Array:
        return np.asarray((x * (matrix @ x)).sum(axis=-2))

    size = form(abs(sigma) + error, abs(change))
    quadratic = pivots**2 * (form(error, abs(change)) + numerics.gamma(c + 4, dtype) * size) / 2
    own = h(ref.diagonal(moved))
    terms = own + shift**2 / 2 + pivots**2 * form(sigma, change) / 2
    rounding = numerics.gamma(10, np.float64) + numerics.gamma(2, dtype)
    return terms, quadratic + rounding * terms + numerics.underflow(dtype) * (1 + pivots**2)


def sum_of_powers(K: Array) -> Array:
    """K + K² + …, of a nonnegative K with row sums below ½: 64 terms, the rest is below 2⁻⁶⁴ of the last."""
    total = K
    for _ in range(64):
        total = K + total @ K
    return total


def farthest(L: Array, rounded: Array) -> Array:
    """Least pivots and largest couplings within `rounded` of L, for which the bound of the recursion is largest."""
    off = np.tril(L, -1)
    eye = np.eye(L.shape[-1], dtype=WIDE)
    return np.where(off < 0, off - rounded, off + rounded) * (1 - eye) + eye * (L - rounded)


@pytest.mark.property
@given(topology=topologies(3), batch=batches, seed=seeds, dtype=dtypes, size=st.sampled_from([1e-6, 1e-2, 0.3]))
def test_terms_are_within_their_bound_and_not_negative(topology, batch, seed, dtype, size) -> None:
    pattern = topology.factor_pattern
    given = arguments(pattern, batch, seed, size, dtype)
    _, terms = residual.sample_and_kl_terms(pattern, *given)
    expected, bound = expected_terms(pattern, given, dtype)
    assert (terms >= 0).all()
    check("residual: terms", type(topology).__name__, dtype, terms - expected, bound)
    sums = terms.astype(WIDE).sum(-1)
    loc, factor, shift, moves, _ = (array.astype(WIDE) for array in given)
    M = pattern.to_dense(factor)
    L = ref.moved(M, pattern.to_dense(moves))
    kl = reference.gaussian.kl_divergence(ref.solve_t(M, shift), ref.gram(L), 0 * loc, ref.gram(M))
    own = numerics.gamma(pattern.n**3 + 9, WIDE) * np.linalg.cond(ref.gram(L).astype(float)) * (pattern.n + abs(kl))
    check("residual: KL", type(topology).__name__, dtype, sums - kl, bound.sum(-1) + own)


@pytest.mark.property
@given(topology=topologies(3), batch=batches, seed=seeds, dtype=dtypes)
def test_zero_moves_and_shift_leave_the_prior_to_the_bit(topology, batch, seed, dtype) -> None:
    pattern = topology.factor_pattern
    loc, factor, shift, moves, noise = arguments(pattern, batch, seed, 0.0, dtype)
    z, terms = residual.sample_and_kl_terms(pattern, loc, factor, 0 * shift, moves, noise)
    np.testing.assert_array_equal(z, loc + linalg.solve_t(pattern, factor, noise))
    np.testing.assert_array_equal(terms, 0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_divergence_of_scales_has_nearly_all_digits_over_the_whole_range(dtype) -> None:
    """Ten roundings at most: eˣ − 1 within 2 u for |x| ≥ ½, where the difference with x loses less than a digit."""
    ends = (-340.0, 340.0) if dtype == "float64" else (-40.0, 40.0)
    rng = np.random.default_rng(0)
    tiny = rng.standard_normal(400) * 10.0 ** rng.uniform(-9, 0, 400)
    delta = np.concatenate([np.linspace(*ends, 801), np.linspace(-0.3, 0.3, 801), tiny]).astype(dtype)[:, None]
    pattern, zero, one = sg.Diagonal(1).factor_pattern, np.zeros_like(delta), np.ones_like(delta)
    _, terms = residual.sample_and_kl_terms(pattern, zero, one, zero, delta, zero)
    exact = h(delta.astype(WIDE))
    bound = (9 * numerics.unit_roundoff(np.float64) + 2 * numerics.unit_roundoff(dtype)) * exact
    assert (abs(terms - exact) <= bound).all(), float((abs(terms - exact) / bound)[exact > 0].max())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("topology", [sg.Chain(5), sg.ExtendedGrid(3, 3), sg.BlockChain(3, 2)], ids=str)
def test_terms_are_not_negative_where_their_squares_nearly_vanish(topology, dtype) -> None:
    """Nearly singular q: rounding of Σ alone can make a square negative."""
    pattern, rng = topology.factor_pattern, np.random.default_rng(0)
    loc, factor, shift, moves, noise = arguments(pattern, (200,), 1, 3.0, dtype)
    moves[..., pattern.diagonal] = rng.uniform(-4, 4, (200, pattern.n))
    _, terms = residual.sample_and_kl_terms(pattern, loc, factor, 0 * shift, moves, noise)
    assert (terms >= 0).all()


@pytest.mark.parametrize("topology", [sg.Chain(5), sg.ExtendedGrid(3, 3)], ids=str)
def test_a_row_does_not_depend_on_the_batch_around_it(topology) -> None:
    pattern = topology.factor_pattern
    given = arguments(pattern, (37,), 0, 0.3, "float32")
    bars = [np.random.default_rng(k).standard_normal((37, pattern.n)).astype("float32") for k in range(2)]
    together = residual.sample_and_kl_terms_vjp(pattern, *given[1:], *bars)
    alone = residual.sample_and_kl_terms_vjp(pattern, *(array[3:4] for array in (*given[1:], *bars)))
    for found, expected in zip(alone, together, strict=True):
        np.testing.assert_array_equal(found[0], expected[3])


def test_a_cotangent_of_the_noise_that_is_not_wanted_is_not_made() -> None:
    pattern = sg.Chain(3).factor_pattern
    given = arguments(pattern, (2,), 0, 0.3, "float64")
    bars = [np.ones((2, 3))] * 2
    wanted = residual.sample_and_kl_terms_vjp(pattern, *given[1:], *bars)
    unwanted = residual.sample_and_kl_terms_vjp(pattern, *given[1:], *bars, noise_too=False)
    assert unwanted[3] is None
    np.testing.assert_array_equal(unwanted[2], wanted[2])


def test_batch_shapes_must_be_equal() -> None:
    pattern = sg.Chain(3).factor_pattern
    loc, *given = arguments(pattern, (3,), 0, 0.3, "float64")
    with pytest.raises(sg.ShapeError, match=r"sample_and_kl_terms: batch shapes must be equal, got \(3,\) of factor"):
        residual.sample_and_kl_terms(pattern, loc[:2], *given)


def test_the_series_ends_where_its_terms_do() -> None:
    assert SERIES[-1] == 0.25
    assert SERIES[0] * 0.5**14 < 0.25 * numerics.unit_roundoff("float64")
