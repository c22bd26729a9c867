"""KL by node between factors on one pattern, on arrays: terms within their bound, and what must hold to the bit.

The bound of a term, in WIDE. Σ is within `numerics.inverse_forward_bound`. Δ and a are formed in float64 and rounded
once: |δΔ| ≤ u |Δ| + γ_4 (|M_ij/M_jj| + |L_ij/L_jj|), |δa| ≤ u |a| + γ_{c+1} |M|ᵀ |d|, γ of float64. The square of c
terms adds γ_{c+4} of its absolute terms. h is within 30 units of float64: at |r| = 0.2, where its two ways meet, the
difference of e^{2δ} − 1 and δ loses less than a digit and a half.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reference.gaussian
import reference.linalg
import sparseggm as sg
from sparseggm.linalg import conditionals
from tests import numerics
from tests.ledger import check
from tests.linalg.test_residual import h
from tests.numerics import WIDE, Array
from tests.strategies import dtypes, factor_values, seeds
from tests.topologies import topologies

batches = st.sampled_from([(), (1,), (3,), (2, 9)])
ref = reference.linalg


def arguments(pattern, batch, seed, apart, dtype) -> list[Array]:
    """d, L and M, whose relative difference is about `apart`; two factors of their own for None."""
    rng = np.random.default_rng(seed)
    d = rng.standard_normal((*batch, pattern.n)).astype(dtype)
    L, M = (factor_values(rng, pattern, batch, "plain", dtype) for _ in range(2))
    near = L * (1 + (0.0 if apart is None else apart) * rng.uniform(-0.5, 0.5, L.shape))
    return [d, L, M if apart is None else near.astype(dtype)]


def expected_terms(pattern, given: list[Array], dtype) -> tuple[Array, Array]:
    """The terms in WIDE, and the bound of their error; see above."""
    d, L, M = (array.astype(WIDE) for array in given)
    c, L, M = pattern.longest_column, pattern.to_dense(L), pattern.to_dense(M)
    own, pivots, sigma = ref.diagonal(L), ref.diagonal(M), ref.inverse(L)
    weights = M / pivots[..., None, :], L / own[..., None, :]
    change, a = np.tril(weights[0] - weights[1], -1), (M * d[..., :, None]).sum(axis=-2)
    unit, wide = numerics.unit_roundoff(dtype), np.float64
    of_change = unit * abs(change) + numerics.gamma(4, wide) * np.tril(abs(weights[0]) + abs(weights[1]), -1)
    of_a = unit * abs(a) + numerics.gamma(c + 1, wide) * (abs(M) * abs(d)[..., :, None]).sum(axis=-2)
    error = numerics.inverse_forward_bound(L, abs(sigma), c, dtype)

    def form(x: Array, matrix: Array, y: Array) -> Array:
        return np.asarray((x * (matrix @ y)).sum(axis=-2))

    largest = abs(change) + of_change
    spread = form(largest, error, largest) + form(of_change, abs(sigma), 2 * abs(change) + of_change)
    summed = numerics.gamma(c + 4, dtype) * form(largest, abs(sigma) + error, largest)
    terms = h(np.log(pivots / own)) + a**2 / 2 + pivots**2 * form(change, sigma, change) / 2
    rounding = numerics.gamma(30, wide) + numerics.gamma(2, dtype)
    bound = pivots**2 * (spread + summed) / 2 + abs(a) * of_a + of_a**2 + rounding * terms
    return terms, bound + numerics.underflow(dtype) * (1 + pivots**2)


@pytest.mark.property
@given(topology=topologies(3), batch=batches, seed=seeds, dtype=dtypes, apart=st.sampled_from([None, 1.0, 1e-2, 1e-6]))
def test_terms_are_within_their_bound_and_not_negative(topology, batch, seed, dtype, apart) -> None:
    pattern = topology.factor_pattern
    given = arguments(pattern, batch, seed, apart, dtype)
    terms = conditionals.kl_terms(pattern, *given)
    expected, bound = expected_terms(pattern, given, dtype)
    assert (terms >= 0).all()
    check("conditionals: terms", type(topology).__name__, dtype, terms - expected, bound)
    d, L, M = (array.astype(WIDE) for array in given)
    P, Q = ref.gram(pattern.to_dense(L)), ref.gram(pattern.to_dense(M))
    kl = reference.gaussian.kl_divergence(d, P, 0 * d, Q)
    condition = max(np.linalg.cond(each.astype(float)).max() for each in (P, Q))
    own = numerics.gamma(pattern.n**3 + 9, WIDE) * condition * (pattern.n + abs(kl))
    check("conditionals: KL", type(topology).__name__, dtype, terms.astype(WIDE).sum(-1) - kl, bound.sum(-1) + own)


@pytest.mark.property
@given(topology=topologies(3), batch=batches, seed=seeds, dtype=dtypes)
def test_equal_gaussians_have_no_term(topology, batch, seed, dtype) -> None:
    d, L, M = arguments(topology.factor_pattern, batch, seed, 0.0, dtype)
    np.testing.assert_array_equal(conditionals.kl_terms(topology.factor_pattern, 0 * d, L, M), 0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_divergence_of_scales_has_nearly_all_digits_over_the_whole_range(dtype) -> None:
    """From subnormal pivots to the square root of the largest number, and nearly equal ones, at every scale."""
    info, rng = np.finfo(dtype), np.random.default_rng(0)
    pivots = np.geomspace(info.smallest_subnormal, 0.5 * np.sqrt(float(info.max)), 801)
    near = 1 + np.concatenate([np.linspace(-0.3, 0.5, 801), rng.standard_normal(400) * 10.0 ** rng.uniform(-7, 0, 400)])
    M = np.concatenate([pivots, near[near > 0]]).astype(dtype)[:, None]
    pattern, one = sg.Diagonal(1).factor_pattern, np.ones_like(M)
    terms = conditionals.kl_terms(pattern, 0 * one, one, M)
    exact = h(np.log(M.astype(WIDE)))
    bound = (30 * numerics.unit_roundoff(np.float64) + 2 * numerics.unit_roundoff(dtype)) * exact
    assert (abs(terms - exact) <= bound).all(), float((abs(terms - exact) / bound)[exact > 0].max())

    limit = 100.0 if dtype == "float64" else 9.0
    L = (10.0 ** rng.uniform(-limit, limit, (4000, 1))).astype(dtype)
    M = (L * np.exp(rng.uniform(-0.6, 0.6, L.shape))).astype(dtype)
    terms, exact = conditionals.kl_terms(pattern, 0 * L, L, M), h(np.log(M.astype(WIDE) / L.astype(WIDE)))
    bound = (30 * numerics.unit_roundoff(np.float64) + 2 * numerics.unit_roundoff(dtype)) * exact
    assert (abs(terms - exact) <= bound).all(), float((abs(terms - exact) / bound)[exact > 0].max())


@pytest.mark.parametrize("topology", [sg.Chain(5), sg.ExtendedGrid(3, 3)], ids=str)
def test_a_row_does_not_depend_on_the_batch_around_it(topology) -> None:
    pattern = topology.factor_pattern
    given = arguments(pattern, (37,), 0, None, "float32")
    bar = np.random.default_rng(1).standard_normal((37, pattern.n)).astype("float32")
    together = conditionals.kl_terms_vjp(pattern, *given, bar)
    alone = conditionals.kl_terms_vjp(pattern, *(array[3:4] for array in (*given, bar)))
    for found, expected in zip(alone, together, strict=True):
        np.testing.assert_array_equal(found[0], expected[3])


@pytest.mark.parametrize("name", ["factor", "prior"])
def test_a_pivot_that_is_not_positive_is_named(name) -> None:
    pattern = sg.Chain(3).factor_pattern
    d, L, M = arguments(pattern, (3,), 0, None, "float64")
    (L if name == "factor" else M)[1, pattern.diagonal[2]] = -1.0
    for call in (conditionals.kl_terms, lambda *given: conditionals.kl_terms_vjp(*given, d)):
        with pytest.raises(
            sg.NonPositiveError, match=f"the diagonal of {name} must be positive, got -1 at column 2 .*1"
        ):
            call(pattern, d, L, M)


def test_batch_shapes_must_be_equal() -> None:
    pattern = sg.Chain(3).factor_pattern
    d, L, M = arguments(pattern, (3,), 0, None, "float64")
    with pytest.raises(sg.ShapeError, match=r"kl_terms: batch shapes must be equal"):
        conditionals.kl_terms(pattern, d[:2], L, M)
