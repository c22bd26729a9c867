"""Draws with their log-densities: the equations they solve, and what does not change them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparseggm import Chain, ExtendedGrid, NonFiniteError, NonPositiveError, ShapeError, linalg
from sparseggm.linalg.sampling import sample_and_log_prob
from tests import numerics
from tests.ledger import check
from tests.numerics import WIDE
from tests.strategies import dense, dtypes, factor_values, named_patterns, seeds

batches = st.sampled_from(  # of loc, factor and noise
    [
        ((), (), ()),
        ((), (), (37,)),
        ((3,), (3,), (20, 3)),
        ((3,), (), (7, 3)),
        ((), (16,), (5, 16)),
        ((2, 1), (2, 9), (4, 2, 9)),
        ((2, 1), (1,), (2, 9)),
        ((40,), (40,), (40,)),
        ((5,), (5,), ()),
        ((2,), (2,), (0, 2)),
    ]
)


def arguments(pattern, shapes, seed, dtype):
    """A random order, loc, factor, peak and noise."""
    rng = np.random.default_rng(seed)
    loc_batch, batch, noise_batch = shapes
    loc, noise = (rng.standard_normal((*shape, pattern.n)).astype(dtype) for shape in (loc_batch, noise_batch))
    order = rng.permutation(pattern.n) if seed % 2 else None
    return order, loc, factor_values(rng, pattern, batch, "plain", dtype), rng.standard_normal(batch), noise


@pytest.mark.property
@given(named=named_patterns(), shapes=batches, seed=seeds, dtype=dtypes)
def test_a_draw_solves_its_equation_and_its_density_is_a_sum(named, shapes, seed, dtype) -> None:
    """Lᵀ (z − loc) = ε as `solve_t` and a rounding of z more; log q(z) to n + 2 roundings in float64, and one."""
    family, pattern = named
    order, loc, factor, peak, noise = arguments(pattern, shapes, seed, dtype)
    z, log_prob = sample_and_log_prob(pattern, order, loc, factor, peak, noise)
    assert z.dtype == log_prob.dtype == dtype
    assert z.shape[:-1] == log_prob.shape == np.broadcast_shapes(*shapes)

    take = slice(None) if order is None else order
    upper = numerics.transpose(dense(pattern, factor))
    offset, last = (z.astype(WIDE) - loc)[..., take], numerics.unit_roundoff(dtype) * abs(z.astype(WIDE))[..., take]
    bound = numerics.solve_bound(upper, abs(offset) + last, pattern.longest_column, dtype)
    bound = bound + numerics.apply(abs(upper), last)
    check("draws: draw", family, dtype, numerics.apply(upper, offset) - noise[..., take], bound)

    terms = 0.5 * noise.astype(WIDE) ** 2
    exact, size = peak - terms.sum(-1), abs(peak) + terms.sum(-1)
    bound = numerics.gamma(pattern.n + 2, np.float64) * size
    bound = bound + numerics.unit_roundoff(dtype) * (abs(exact) + bound)
    check("draws: log-density", family, dtype, log_prob - exact, bound)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("topology", "batch", "draws"), [(ExtendedGrid(4, 4), 128, 50), (ExtendedGrid(16, 16), 100, 6), (Chain(5), 7, 90)]
)
def test_a_draw_has_the_bits_of_the_verb_whatever_the_walk(topology, batch, draws, dtype) -> None:
    """Where all factors stay in cache, where they need several walks, and where phases outnumber the Gaussians."""
    pattern = topology.factor_pattern
    _, loc, factor, peak, noise = arguments(pattern, ((batch,), (batch,), (draws, batch)), 0, dtype)
    z, _ = sample_and_log_prob(pattern, None, loc, factor, peak, noise)
    np.testing.assert_array_equal(z, loc + linalg.solve_t(pattern, factor, noise))
    alone, _ = sample_and_log_prob(pattern, None, loc[3], factor[3], peak[3], noise[1, 3])
    np.testing.assert_array_equal(alone, z[1, 3])


@pytest.mark.parametrize("count", [1, 40])
def test_what_is_not_finite_is_named_by_the_callers_node(count) -> None:
    pattern = Chain(4).factor_pattern
    order, peak = np.array([2, 0, 3, 1]), np.zeros(())
    good = {"loc": np.zeros(4), "factor": np.ones(7), "noise": np.ones((count, 4))}
    for name, message in (
        ("loc", r"loc must be finite, got nan at column 3"),
        ("noise", r"noise must be finite, got nan at column 3, batch element \(0,\)"),
        ("factor", r"factor must be finite, got nan at entry \(2, 1\)"),
    ):
        bad = {**good, name: good[name].copy()}
        bad[name].reshape(-1)[3] = np.nan
        with pytest.raises(NonFiniteError, match=message):
            sample_and_log_prob(pattern, order, bad["loc"], bad["factor"], peak, bad["noise"])
    with pytest.raises(NonPositiveError, match=r"the diagonal of factor must be positive, got 0 at column 2 of 4"):
        sample_and_log_prob(pattern, order, good["loc"], np.array([1.0, 0, 1, 0, 0, 0, 1]), peak, good["noise"])
    with pytest.raises(ShapeError, match=r"sample_and_log_prob: noise must end in 4"):
        sample_and_log_prob(pattern, order, good["loc"], good["factor"], peak, np.ones((count, 5)))
