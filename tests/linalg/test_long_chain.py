"""One long chain in strips of lanes against the same chain node after node, whatever its couplings do.

The parts go together from guesses; where a guess is off by more than 2u the part is done again. So the residuals of the
recurrences are bounded as in `solve`, `solve_t` and `cholesky`, γ of the roundings of a node plus 2u where parts meet,
and each variance differs from that of the plain recurrence by what its condition allows.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from numba import njit

from sparseggm import Chain, NonFiniteError, NotPositiveDefiniteError, linalg, threads
from sparseggm.kernels.chain import recurrences
from sparseggm.linalg import long_chain, step
from tests import numerics
from tests.ledger import check
from tests.numerics import WIDE, Array


@njit
def plain_backward(L, y, v):
    """`recurrences.backward` along a whole chain, whose last node is coupled by zero to one after it; y enters as ε."""
    recurrences.backward(L, y, v, y.shape[0], L[-1], L[-1])


@njit
def plain_forward(L, y, v, e, k_bar):
    """`recurrences.forward` likewise; y and v have an entry more; e enters as z̄, and L̄ takes the place of L."""
    recurrences.forward(L, y, v, e, k_bar, e.shape[0], L[-1], k_bar)


def plain_draw(L: Array, eps: Array) -> tuple[Array, Array]:
    """y and v of a chain, node after node."""
    y, v = eps.copy(), np.empty_like(eps)
    plain_backward(np.append(L, L.dtype.type(0)), y, v)
    return y, v


def plain_gradient(L: Array, y: Array, v: Array, z_bar: Array, k_bar: float) -> tuple[Array, Array]:
    """ε̄ and L̄ of a chain, node after node."""
    zero, e = L.dtype.type(0), z_bar.copy()
    coupled = np.append(L, zero)
    plain_forward(coupled, np.append(y, zero), np.append(v, zero), e, L.dtype.type(k_bar))
    return e, coupled[:-1]


each_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])
NOTHING = {name: np.empty(0, name) for name in ("float32", "float64")}
COUPLINGS = ("weak", "mixed", "slow", "growing", "islands", "none")


def factor_of(n: int, couplings: str, seed: int, dtype: str) -> Array:
    """A chain's L whose ratios |b / a| are far below 1, around it, just below it, above it, or in stretches of each."""
    rng = np.random.default_rng(seed)
    a = np.exp(0.3 * rng.standard_normal(n))
    ratio = {
        "weak": 0.3 * rng.standard_normal(n),
        "mixed": rng.standard_normal(n),
        "slow": np.full(n, -0.9999),
        "growing": np.full(n, 1.001),
        "islands": np.where(np.arange(n) // 37 % 2, 1.05, 0.1) * rng.choice([-1.0, 1.0], n),
        "none": np.zeros(n),
    }[couplings]
    L = np.empty(2 * n - 1)
    L[::2] = a
    L[1::2] = (ratio * a)[:-1]
    return given_to_kernels(L.astype(dtype))


def given_to_kernels(array: Array) -> Array:
    """Read-only, as all arguments of kernels are: what could be written to would be compiled for once more."""
    array.flags.writeable = False
    return array


def residual_bound(L: Array, y: Array, rhs: Array, transposed: bool, roundings: int = 3) -> tuple[Array, Array]:
    """|L y − rhs| or |Lᵀ y − rhs|, in long double, and γ of the roundings + 2u of its absolute terms."""
    wide, a, b = y.astype(WIDE), L[::2].astype(WIDE), L[1::2].astype(WIDE)
    near = b * (wide[1:] if transposed else wide[:-1])
    residual, size = a * wide - rhs, abs(a * wide)
    inner = slice(0, -1) if transposed else slice(1, None)
    residual[inner] += near
    size[inner] += abs(near)
    u = numerics.unit_roundoff(L.dtype)
    return residual, (numerics.gamma(roundings, L.dtype) + 2 * u) * size + numerics.underflow(L.dtype)


@pytest.fixture(params=[1, 3])
def strips(request, monkeypatch) -> int:
    """Chains of any length are cut into that many strips."""
    monkeypatch.setattr(long_chain, "_STRIP", 1)
    monkeypatch.setattr(long_chain, "_MOST", request.param)
    return request.param


any_chain = given(
    n=st.one_of(st.integers(800, 3_000), st.integers(14_000, 16_000)),  # one chunk a part, or several
    couplings=st.sampled_from(COUPLINGS),
    seed=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from(["float32", "float64"]),
)
# the strips are the same for all examples
with_strips = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def has_small_pivot(P: Array) -> bool:
    """Whether some pivot is at most ∛u P_jj; those that are so within rounding are left out of the tests."""
    wide, share = P.astype(WIDE), np.cbrt(numerics.unit_roundoff(P.dtype))
    d, least = wide[0], WIDE(1)
    for j in range(2, len(wide), 2):
        d = wide[j] - wide[j - 1] ** 2 / d
        least = min(least, d / wide[j])
    assume(abs(least - share) > 0.01 * share)
    return bool(least < share)


@pytest.mark.property
@any_chain
@with_strips
def test_solves_satisfy_their_equations_to_rounding(strips, n, couplings, seed, dtype) -> None:
    L, rng = factor_of(n, couplings, seed, dtype), np.random.default_rng(seed)
    rhs, y = given_to_kernels(rng.standard_normal(n).astype(dtype)), np.empty(n, dtype)
    long_chain.solve_t(Chain(n).factor_pattern, L, rhs, y)
    check("long chain: solve_t", "Chain", dtype, *residual_bound(L, y, rhs, transposed=True))
    long_chain.solve(L, rhs, y)
    check("long chain: solve", "Chain", dtype, *residual_bound(L, y, rhs, transposed=False))


@pytest.mark.property
@any_chain
@with_strips
def test_variances_and_gradients_are_those_of_the_plain_recurrences(strips, n, couplings, seed, dtype) -> None:
    """All terms of v and g are positive: 2u at each seam, on top of equal roundings."""
    pattern = Chain(n).factor_pattern
    L, rng = factor_of(n, couplings, seed, dtype), np.random.default_rng(seed)
    eps, z_bar, loc = (given_to_kernels(rng.standard_normal(n).astype(dtype)) for _ in range(3))
    v, e, loc_bar, L_bar = (*(np.empty(n, dtype) for _ in range(3)), np.empty_like(L))
    plain_y, plain_v = plain_draw(L, eps)
    long_chain.marginal_variances(pattern, L, v)
    u, seams = numerics.unit_roundoff(dtype), 16 * strips
    check("long chain: variances", "Chain", dtype, v.astype(WIDE) - plain_v, seams * 2 * u * plain_v.astype(WIDE))

    k_bar = np.full(1, 0.7, dtype)
    long_chain.sample_and_kl_vjp(pattern, None, loc, L, eps, z_bar, k_bar, loc_bar, L_bar, e)
    _, kept = long_chain.sample_and_kl(pattern, loc, L, eps, np.empty_like(loc), np.empty(1, dtype))
    kept_bar = np.empty_like(L)
    long_chain.sample_and_kl_vjp(pattern, kept, loc, L, eps, z_bar, k_bar, loc_bar, kept_bar, e)
    np.testing.assert_array_equal(kept_bar, L_bar)
    np.testing.assert_array_equal(loc_bar, z_bar + k_bar * loc)
    # y and e differ by what their recurrences make of 2u at a seam, which |·| of all terms bounds
    down = -abs(L.astype(np.float64))
    down[::2] *= -1
    size_y, size_v = plain_draw(down, abs(eps.astype(np.float64)))
    size, bound = plain_gradient(down, -size_y, size_v, abs(z_bar.astype(np.float64)), 0.7)
    terms = np.zeros(2 * n - 1)
    terms[::2] = 0.7 / L[::2] + size_y * size + abs(bound[::2]) * 2
    terms[1::2] = size_y[1:] * size[:-1] + abs(bound[1::2]) * 2
    difference = L_bar.astype(WIDE) - plain_gradient(L, plain_y, plain_v, z_bar, 0.7)[1]
    check("long chain: gradient", "Chain", dtype, difference, seams * 6 * u * terms + numerics.underflow(dtype))


@pytest.mark.property
@any_chain
@with_strips
@pytest.mark.parametrize("by_regression", [False, True])
def test_natural_gradients_are_those_of_their_columns(strips, by_regression, n, couplings, seed, dtype) -> None:
    """Σ_j+1,j+1 differs by 2u at each seam, and eight roundings of a term, from that of the plain recurrence."""
    pattern = Chain(n).factor_pattern
    L, rng = factor_of(n, couplings, seed, dtype), np.random.default_rng(seed)
    half, u = (given_to_kernels(rng.standard_normal(size).astype(dtype)) for size in (n, 2 * n - 1))
    x, alone, found, again = np.empty(n, dtype), np.empty(0, dtype), np.empty_like(u), np.empty_like(u)
    long_chain.natural_gradient(pattern, L, half, u, by_regression, x, found)
    long_chain.natural_gradient(pattern, L, NOTHING[dtype], u, by_regression, alone, again)
    check("long chain: Σ x", "Chain", dtype, *residual_bound(L, x, half, transposed=True, roundings=4))
    a, b, v = L[::2].astype(WIDE), L[1::2].astype(WIDE), plain_draw(L, half)[1][1:].astype(WIDE)

    def columns(b: Array, u: Array) -> Array:
        result, along = u.astype(WIDE), a * u[::2]
        along[:-1] += b * u[1::2]
        result[::2] *= 0.5
        result[1::2] /= a[:-1] ** 2 * v if by_regression else v
        if not by_regression:
            result[::2] = 0.5 * a * along
            result[1::2] += 0.5 * b * along[:-1]
        return result

    expected, terms = columns(b, u), columns(abs(b), abs(u))
    share = numerics.gamma(8, dtype) + 16 * strips * 2 * numerics.unit_roundoff(dtype)
    bound = share * terms + numerics.underflow(dtype)
    for result in (found, again):  # a part is done again where y differs at a seam, too, which is 0 in the second
        check("long chain: natural gradient", "Chain", dtype, result - expected, bound)


@pytest.mark.property
@any_chain
@with_strips
def test_a_factor_gives_back_its_matrix(strips, n, couplings, seed, dtype) -> None:
    """[Higham 2002, Thm 10.3] for two entries a row, 2u of the pivots at seams, and what is set to zero."""
    pattern = Chain(n).factor_pattern
    P = precision_of(n, couplings, seed, dtype)
    L = np.empty_like(P)
    assert long_chain.cholesky(P, L) == (2 if has_small_pivot(P) else 0)
    product = linalg.gram(pattern, abs(L).astype(np.float64))
    wide = L.astype(WIDE)
    residual = -P.astype(WIDE)
    residual[::2] += wide[::2] ** 2
    residual[2::2] += wide[1::2] ** 2
    residual[1::2] += wide[1::2] * wide[:-1:2]
    flushed = 4 * np.sqrt(float(np.finfo(dtype).tiny)) * np.repeat(abs(P[::2]), 2)[:-1]
    bound = (numerics.gamma(3, dtype) + 2 * numerics.unit_roundoff(dtype)) * product + flushed
    check("long chain: cholesky", "Chain", dtype, residual, bound)


def precision_of(n: int, couplings: str, seed: int, dtype: str) -> Array:
    """P = L Lᵀ, rounded to the dtype, with what rounding may have cost on the diagonal."""
    P = linalg.gram(Chain(n).factor_pattern, factor_of(n, couplings, seed, "float64")).astype(dtype)
    P[::2] *= 1 + 4 * np.finfo(dtype).eps
    return given_to_kernels(P)


def times_vector(P: Array, x: Array) -> Array:
    """P x in long double."""
    product = P[::2].astype(WIDE) * x
    product[:-1] += P[1::2].astype(WIDE) * x[1:]
    product[1:] += P[1::2].astype(WIDE) * x[:-1]
    return product


def log_det(P: Array) -> tuple[np.longdouble, np.longdouble]:
    """Σ log D_jj and Σ |log D_jj| in long double, node after node; −∞ and 0 where P is not positive definite."""
    logs, pull = [], WIDE(0)
    for diagonal, coupling in zip(P[::2].astype(WIDE), np.append(P[1::2], P.dtype.type(0)).astype(WIDE), strict=True):
        if not diagonal > pull:
            return WIDE(-np.inf), WIDE(0)
        logs.append(np.log(diagonal - pull))
        pull = coupling * coupling / (diagonal - pull)
    return np.sum(logs), np.abs(logs).sum()


@pytest.mark.property
@any_chain
@with_strips
def test_a_system_is_solved_for_a_matrix_within_rounding_of_the_given(strips, n, couplings, seed, dtype) -> None:
    """(P + ΔP) x = b, |ΔP| ≤ γ_13 |P| entrywise, so |P x − b| ≤ γ_13 |P| |x|; whatever the condition of P."""
    P, rng = precision_of(n, couplings, seed, dtype), np.random.default_rng(seed)
    b, x = given_to_kernels(rng.standard_normal(n).astype(dtype)), np.empty(n, dtype)
    status, _ = long_chain.solve_precision(Chain(n).factor_pattern, P, b, x)
    assert bool(status) == has_small_pivot(P)
    assume(not status)  # it goes by its factor
    bound = numerics.rounding(13, dtype) * times_vector(abs(P), abs(x)) + 4 * numerics.underflow(dtype)
    check("long chain: precision_solve", "Chain", dtype, times_vector(P, x.astype(WIDE)) - b, bound)


@pytest.mark.property
@any_chain
@with_strips
def test_the_log_det_is_that_of_a_matrix_within_rounding_of_the_given(strips, n, couplings, seed, dtype) -> None:
    """|ΔP| ≤ γ_13 |P| gives −D ⪯ ΔP ⪯ D, D the diagonal of its row sums: log det lies between those of P − D and P + D.

    Where P − D is not positive definite, as nearly singular ones in float32, a backward error bounds log det on one
    side only.
    """
    P = precision_of(n, couplings, seed, dtype)
    status, found = long_chain.solve_precision(Chain(n).factor_pattern, P, P[:0], P[:0])
    assert bool(status) == has_small_pivot(P)
    assume(not status)  # it goes by its factor
    D = np.zeros(len(P), WIDE)
    D[::2] = numerics.rounding(13, dtype) * times_vector(abs(P), np.ones(n))
    exact, size = log_det(P)
    (above, _), (below, _) = log_det(P + D), log_det(P - D)
    assert np.isfinite(below) or couplings not in ("weak", "none")
    summed = 2 * numerics.gamma(n + 3, np.float64) + numerics.gamma(n + 1, np.float64) * size
    error = found - exact
    bound = (above - exact if error > 0 else exact - below) + summed
    check("long chain: precision_logdet", "Chain", dtype, error, bound)


@each_dtype
@pytest.mark.parametrize("couplings", COUPLINGS)
def test_a_system_given_by_its_precision_agrees_with_that_of_its_factor(couplings, dtype) -> None:
    n = long_chain.LONG + 11
    pattern, P = Chain(n).precision_pattern, precision_of(n, couplings, 3, dtype)
    b = np.random.default_rng(0).standard_normal((2, n)).astype(dtype)
    x, logdet = linalg.precision_solve(pattern, P, b)
    assert (x.shape, logdet.shape) == ((2, n), ())
    assert x.dtype == logdet.dtype == P.dtype
    np.testing.assert_array_equal(linalg.precision_solve(pattern, np.stack([P, P]), b[0])[0][1], x[0])
    np.testing.assert_array_equal(linalg.precision_logdet(pattern, P), logdet)
    bound = numerics.rounding(13, dtype) * times_vector(abs(P), abs(x[1])) + 4 * numerics.underflow(dtype)
    check("long chain: precision_solve", "Chain", dtype, times_vector(P, x[1].astype(WIDE)) - b[1], bound)
    if couplings in ("weak", "none"):
        L = linalg.cholesky(pattern, P)
        np.testing.assert_allclose(logdet, linalg.logdet(pattern, L), rtol=64 * numerics.unit_roundoff(dtype))
        by_factor = linalg.solve_t(pattern, L, linalg.solve(pattern, L, b))
        np.testing.assert_allclose(
            x, by_factor, rtol=0, atol=256 * numerics.unit_roundoff(dtype) * abs(by_factor).max()
        )


def test_no_right_hand_sides_have_no_solutions_but_a_log_det() -> None:
    n = long_chain.LONG
    pattern, P = Chain(n).precision_pattern, precision_of(n, "weak", 0, "float64")
    x, logdet = linalg.precision_solve(pattern, P, np.empty((0, n)))
    assert x.shape == (0, n)
    np.testing.assert_allclose(logdet, linalg.precision_logdet(pattern, P), rtol=1e-13)
    assert linalg.precision_logdet(pattern, np.empty((0, pattern.nnz))).shape == (0,)


def test_pivots_that_are_not_normal_are_left_to_the_factor() -> None:
    """1/D_jj would be infinite; the roots in L are not."""
    n = long_chain.LONG
    pattern, P = Chain(n).precision_pattern, np.zeros(2 * n - 1)
    P[::2] = 1e-310
    x, logdet = linalg.precision_solve(pattern, P, np.full(n, 1e-310))
    np.testing.assert_allclose(x, 1.0, rtol=1e-12)
    np.testing.assert_allclose(logdet, n * np.log(P[0]), rtol=1e-14)


@pytest.mark.parametrize("place", [0, 5_001, 2 * long_chain.LONG - 2])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_system_with_a_number_that_is_not_finite_says_which(place, bad) -> None:
    n = long_chain.LONG
    pattern, b = Chain(n).precision_pattern, np.ones(n)
    P = precision_of(n, "weak", 0, "float64").copy()
    P[place] = bad
    for call in (lambda: linalg.precision_solve(pattern, P, b), lambda: linalg.precision_logdet(pattern, P)):
        with pytest.raises(NonFiniteError, match=rf"precision must be finite, got {bad}"):
            call()
    P, b[place // 2] = precision_of(n, "weak", 0, "float64"), bad
    with pytest.raises(NonFiniteError, match=rf"rhs must be finite, got {bad}"):
        linalg.precision_solve(pattern, P, b)


@each_dtype
@pytest.mark.parametrize("couplings", COUPLINGS)
def test_the_verbs_take_the_long_way_and_agree_with_a_batch_of_the_same(couplings, dtype) -> None:
    """A batch of equal chains goes in lanes of whole chains: other code, the same numbers up to seams."""
    n = long_chain.LONG + 11
    couplings = "weak" if couplings == "growing" else couplings  # 1.001¹⁶³⁹⁵ is beyond float32
    pattern, L = Chain(n).factor_pattern, factor_of(n, couplings, 3, dtype).copy()
    rhs = np.random.default_rng(0).standard_normal(n).astype(dtype)
    if couplings in ("mixed", "islands"):
        L[1::2] *= 0.5
    for verb in (linalg.solve, linalg.solve_t):
        alone = verb(pattern, L, rhs)
        residual = residual_bound(L, alone, rhs, transposed=verb is linalg.solve_t)
        check(f"long chain: {verb.__name__}", "Chain", dtype, *residual)
    together = linalg.marginal_variances(pattern, np.tile(L, (2 * threads.LANES, 1)))[0]
    np.testing.assert_allclose(linalg.marginal_variances(pattern, L), together, rtol=64 * numerics.unit_roundoff(dtype))


def test_the_solution_may_take_the_place_of_the_right_hand_side() -> None:
    n = long_chain.LONG
    pattern, L = Chain(n).factor_pattern, factor_of(n, "slow", 0, "float64")  # parts are done again
    rhs = np.random.default_rng(0).standard_normal(n)
    expected = linalg.solve_t(pattern, L, rhs)
    np.testing.assert_array_equal(linalg.solve_t(pattern, L, rhs, out=rhs), expected)


@pytest.mark.parametrize("place", [0, 7, 2 * long_chain.LONG - 2])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_number_that_is_not_finite_is_found_wherever_it_stands(place, bad) -> None:
    n = long_chain.LONG
    pattern, L, x = Chain(n).factor_pattern, factor_of(n, "weak", 0, "float64").copy(), np.ones(n)
    L[place] = bad
    for call in (
        lambda: linalg.solve(pattern, L, x),
        lambda: linalg.solve_t(pattern, L, x),
        lambda: linalg.marginal_variances(pattern, L),
        lambda: step.sample_and_kl(pattern, x, L, x),
        lambda: step.sample_and_kl_vjp(pattern, x, L, x, x, np.ones(())),
    ):
        with pytest.raises(NonFiniteError, match=rf"factor must be finite, got {bad}"):
            call()


@each_dtype
def test_a_long_step_agrees_with_its_verbs(dtype) -> None:
    n = long_chain.LONG + 5
    pattern, L = Chain(n).factor_pattern, factor_of(n, "weak", 1, dtype)
    rng = np.random.default_rng(2)
    loc, eps, z_bar = (rng.standard_normal(n).astype(dtype) for _ in range(3))
    z, kl = step.sample_and_kl(pattern, loc, L, eps)
    np.testing.assert_array_equal(z, loc + step.sample_and_kl(pattern, np.zeros_like(loc), L, eps)[0])
    terms = linalg.marginal_variances(pattern, L).astype(WIDE) + loc.astype(WIDE) ** 2
    logs = 2 * np.log(L[::2].astype(WIDE))
    bound = (numerics.gamma(4 * n, np.float64) + 64 * numerics.unit_roundoff(dtype)) * (terms + abs(logs) + 1).sum()
    check("long chain: KL", "Chain", dtype, 2 * kl - (terms + logs - 1).sum(), bound)

    bars = step.sample_and_kl_vjp(pattern, loc, L, eps, z_bar, np.ones((), dtype))
    arrays, count = (loc, L, eps, z_bar), 2 * threads.LANES
    in_batch = step.sample_and_kl_vjp(pattern, *(np.tile(x, (count, 1)) for x in arrays), np.ones(count, dtype))
    for alone, together in zip(bars, in_batch, strict=True):
        scale = abs(together[0]).max()
        np.testing.assert_allclose(alone, together[0], rtol=0, atol=64 * numerics.unit_roundoff(dtype) * scale)


@pytest.mark.property
@any_chain
@with_strips
def test_a_draw_satisfies_its_equations_to_rounding(strips, n, couplings, seed, dtype) -> None:
    """One rounding a node more than `solve_t`, as it multiplies by 1 / L_jj."""
    L, rng = factor_of(n, couplings, seed, dtype), np.random.default_rng(seed)
    eps, loc = given_to_kernels(rng.standard_normal(n).astype(dtype)), given_to_kernels(np.zeros(n, dtype))
    z, kl = np.empty(n, dtype), np.empty(1, dtype)
    long_chain.sample_and_kl(Chain(n).factor_pattern, loc, L, eps, z, kl)
    residual, bound = residual_bound(L, z, eps, transposed=True, roundings=4)
    check("long chain: draw", "Chain", dtype, residual, bound)


@pytest.mark.parametrize("node", [0, 5000, 2**14 - 1])
def test_a_pivot_that_fails_is_named(node) -> None:
    n = long_chain.LONG
    pattern = Chain(n).precision_pattern
    P = linalg.gram(pattern, factor_of(n, "weak", 0, "float64"))
    P[2 * node] = -3.0
    calls = lambda: linalg.cholesky(pattern, P), lambda: linalg.precision_solve(pattern, P, np.ones(n))
    for call in (*calls, lambda: linalg.precision_logdet(pattern, P)):
        with pytest.raises(NotPositiveDefiniteError, match=f"at column {node} of {n}"):
            call()


def test_threads_share_strips_and_change_nothing() -> None:
    """Two strips, on one thread and on two: the number of parts depends on the chain alone."""
    n = 2 * 2**17
    pattern, L = Chain(n).factor_pattern, factor_of(n, "weak", 0, "float32")
    P = linalg.gram(pattern, L)
    rhs = np.random.default_rng(0).standard_normal(n).astype("float32")
    results = []
    try:
        for count in (1, 2):
            threads.set_num_threads(count)
            products = [linalg.solve_t(pattern, L, rhs), linalg.solve(pattern, L, rhs), linalg.logdet(pattern, L)]
            results.append([*products, *linalg.precision_solve(pattern, P, rhs)])
    finally:
        threads.set_num_threads(None)
    for one, two in zip(*results, strict=True):
        np.testing.assert_array_equal(one, two)
