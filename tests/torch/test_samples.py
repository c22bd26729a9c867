"""Draws and distances of many samples: the numbers of the plain formulas, derivatives, blocks, and the generator."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import sparseggm as sg
from sparseggm import linalg
from sparseggm.torch import GaussianGraphicalModel
from sparseggm.torch.operators import blocks, distances
from sparseggm.torch.operators.registration import index, key_of
from tests.torch.gaussians import KINDS, Kind
from tests.torch.problems import TOPOLOGIES, factor, gradgradcheck, vectors

every_kind = pytest.mark.parametrize("kind", KINDS, ids=str)
batches = pytest.mark.parametrize(
    ("loc_batch", "batch", "sample_shape"),
    [((), (), ()), ((2,), (2,), (5,)), ((), (3, 2), (2, 2)), ((3, 1), (2,), ()), ((2,), (), (0,)), ((1,), (1,), (40,))],
    ids=str,
)


def by_formula(q: GaussianGraphicalModel, sample_shape: tuple[int, ...]) -> torch.Tensor:
    noise = torch.randn((*sample_shape, *q.batch_shape, *q.event_shape), dtype=q.loc.dtype)
    return q.loc + q.colorize(noise)


@pytest.fixture(params=[blocks.BLOCK, 30], ids=["one block", "many blocks"])
def block(request, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", request.param)


# ---------------------------------------------------------------------- draws


@every_kind
@batches
@pytest.mark.usefixtures("block")
def test_a_draw_is_the_formula_on_torchs_noise(kind, loc_batch, batch, sample_shape):
    loc, values = vectors(kind.topology.n, *loc_batch, seed=3), kind.values(*batch)
    weights = None
    results = []
    for sampler in (GaussianGraphicalModel.rsample, by_formula):
        q = kind.make(loc, values)
        torch.manual_seed(3)
        z = sampler(q, sample_shape)
        weights = torch.randn_like(z) if weights is None else weights
        results.append((z, *torch.autograd.grad((z * weights).sum(), (loc, values))))
    (z, *bars), (expected, *expected_bars) = results
    assert torch.equal(z, expected)
    for bar, expected_bar in zip(bars, expected_bars, strict=True):
        assert torch.allclose(bar, expected_bar, rtol=1e-12, atol=1e-12)


@every_kind
def test_a_draw_has_derivatives_of_first_and_second_order(kind):
    def drawn(loc, values):
        torch.manual_seed(0)
        return kind.make(loc, values, validate_args=False).rsample((3,))

    parameters = (vectors(kind.topology.n), kind.values(2))
    assert torch.autograd.gradcheck(drawn, parameters)
    assert gradgradcheck(drawn, parameters)


def test_a_draw_without_gradients_for_the_factor_has_those_of_loc():
    loc = vectors(4)
    q = GaussianGraphicalModel(loc, factor=factor(sg.Chain(4).factor_pattern).detach(), topology=sg.Chain(4))
    q.rsample((5,)).sum().backward()
    assert torch.equal(loc.grad, torch.full((4,), 5.0, dtype=torch.float64))


def test_draws_follow_the_seed_and_leave_a_forked_generator_alone():
    q = Kind(sg.Grid(3, 3), "factor").example(2)
    torch.manual_seed(1)
    first, second = q.sample((3,)), q.sample((3,))
    assert not torch.equal(first, second)
    torch.manual_seed(1)
    with torch.random.fork_rng():
        assert torch.equal(q.sample((3,)), first)
    assert torch.equal(q.sample((3,)), first)


def test_solving_in_place_gives_the_same_bits():
    pattern = sg.ExtendedGrid(5, 7).factor_pattern
    lower, rhs = factor(pattern, 2).detach().numpy(), vectors(35, 40, 2).detach().numpy()
    expected = linalg.solve_t(pattern, lower, rhs)
    x = rhs.copy()
    assert linalg.solve_t(pattern, lower, x, out=x) is x
    np.testing.assert_array_equal(x, expected)


@pytest.mark.parametrize("out", [np.empty((3, 4)), np.empty((2, 4), np.float32), np.empty((4, 2)).T])
def test_memory_that_does_not_fit_is_refused(out):
    pattern = sg.Chain(4).factor_pattern
    with pytest.raises(sg.ShapeError, match=r"solve_t: out must be C-contiguous float64 of shape \(2, 4\), got"):
        linalg.solve_t(pattern, np.ones(7), np.ones((2, 4)), out=out)


def test_a_failure_in_place_is_explained_from_the_factor():
    pattern, x = sg.Chain(4).factor_pattern, np.ones((2, 4))
    lower = np.ones(7)
    lower[2] = np.nan
    with pytest.raises(sg.NonFiniteError, match=r"solve_t: factor must be finite, got nan at entry \(1, 1\)"):
        linalg.solve_t(pattern, lower, x, out=x)


# ---------------------------------------------------------------------- draws with their densities


@every_kind
@batches
def test_a_draw_with_its_density_is_the_formula(kind, loc_batch, batch, sample_shape):
    n = kind.topology.n
    loc, values = vectors(n, *loc_batch, seed=3), kind.values(*batch)
    q, other = kind.make(loc, values), kind.make(loc, values)
    noise = vectors(n, *sample_shape, *q.batch_shape, seed=8)
    z = other.loc + other.colorize(noise)
    expected = (z, 0.5 * (other._logdet() - noise.square().sum(-1) - n * math.log(2 * math.pi)))
    found = q.rsample_and_log_prob(noise=noise)
    assert torch.equal(found[0], z)
    assert torch.allclose(found[1], expected[1], rtol=1e-13, atol=1e-13)
    weights = [torch.randn_like(result) for result in found]
    bars, expected_bars = (
        torch.autograd.grad(sum((w * x).sum() for w, x in zip(weights, pair, strict=True)), (loc, values, noise))
        for pair in (found, expected)
    )
    for bar, expected_bar in zip(bars, expected_bars, strict=True):
        assert torch.allclose(bar, expected_bar, rtol=1e-12, atol=1e-12)


@every_kind
def test_a_draw_with_its_density_has_derivatives_of_first_and_second_order(kind):
    def drawn(loc, values, noise):
        return kind.make(loc, values, validate_args=False).rsample_and_log_prob(noise=noise)

    parameters = (vectors(kind.topology.n), kind.values(2), vectors(kind.topology.n, 3, 1, seed=1))
    assert torch.autograd.gradcheck(drawn, parameters)
    assert gradgradcheck(drawn, parameters)


def test_one_noise_and_one_factor_meet_many_means():
    loc, lower, noise = vectors(9, 5, 3), Kind(sg.Grid(3, 3), "factor").values(), vectors(9, 5, 1, seed=1)

    def gradients(function):
        q = GaussianGraphicalModel(loc, factor=lower, topology=sg.Grid(3, 3))
        return torch.autograd.grad(function(q).square().sum(), (loc, lower, noise))

    found = gradients(lambda q: q.rsample_and_log_prob(noise=noise)[0])
    for bar, expected in zip(found, gradients(lambda q: q.loc + q.colorize(noise)), strict=True):
        assert torch.allclose(bar, expected, rtol=1e-12, atol=1e-12)


def test_a_gradient_of_a_draw_with_its_density_keeps_its_digits_far_from_zero():
    """ε is at hand: L⁻ᵀ ε is not z − loc, of which float32 has no digit here."""
    pattern = sg.Chain(4).factor_pattern
    lower, noise = factor(pattern).detach(), vectors(4, 5).detach()
    bars = []
    for dtype in (torch.float32, torch.float64):
        values = lower.to(dtype).requires_grad_()
        q = GaussianGraphicalModel(torch.full((4,), 1e9, dtype=dtype), factor=values, topology=sg.Chain(4))
        z, _ = q.rsample_and_log_prob(noise=noise.to(dtype))
        bars.append(torch.autograd.grad(z.sum(), values)[0].double())
    assert torch.allclose(*bars, rtol=1e-5, atol=1e-5)


def test_noise_that_is_not_finite_is_named_by_the_callers_node():
    q, noise = Kind(sg.Star(4), "factor").example(), torch.zeros(20, 4, dtype=torch.float64)
    noise[3, 1] = math.inf
    with pytest.raises(
        sg.NonFiniteError, match=r"noise must be finite, got inf at node 1 of Star.*, batch element \(3,\)"
    ):
        q.rsample_and_log_prob(noise=noise)


# ---------------------------------------------------------------------- distances


@every_kind
@batches
@pytest.mark.usefixtures("block")
def test_a_square_distance_is_the_formula(kind, loc_batch, batch, sample_shape):
    n = kind.topology.n
    loc, values = vectors(n, *loc_batch, seed=3), kind.values(*batch)
    q, other = kind.make(loc, values), kind.make(loc, values)
    x = vectors(n, *sample_shape, *q.batch_shape, seed=8)
    found, expected = q._square_distance(x), other.whiten(x - other.loc).square().sum(-1)
    assert torch.allclose(found, expected, rtol=1e-13)
    weights = torch.randn_like(found)
    bars, expected_bars = (torch.autograd.grad((s * weights).sum(), (loc, values, x)) for s in (found, expected))
    for bar, expected_bar in zip(bars, expected_bars, strict=True):
        assert torch.allclose(bar, expected_bar, rtol=1e-12, atol=1e-12)


@every_kind
def test_log_prob_has_derivatives_of_first_and_second_order(kind):
    def log_prob(loc, values, x):
        return kind.make(loc, values, validate_args=False).log_prob(x)

    parameters = (vectors(kind.topology.n), kind.values(2), vectors(kind.topology.n, 3, 1, seed=1))
    assert torch.autograd.gradcheck(log_prob, parameters)
    assert gradgradcheck(log_prob, parameters)


def test_one_point_meets_many_gaussians():
    q = Kind(sg.Grid(3, 3), "factor").example(3, 2)
    x = vectors(9)
    copies = x.detach().expand(3, 2, 9).clone().requires_grad_()
    bar, bars = (torch.autograd.grad(q.log_prob(points).sum(), points)[0] for points in (x, copies))
    assert torch.allclose(bar, bars.sum((0, 1)), rtol=1e-13)


def test_squares_are_formed_in_float64():
    """(1 + 2⁻¹²)² = 1 + 2⁻¹¹ + 2⁻²⁴ has no float32; in float64 the sum is exact."""
    n, x = 1000, 1 + 2.0**-12
    q = GaussianGraphicalModel(torch.zeros(n), factor=torch.ones(n), topology=sg.Diagonal(n))
    values = torch.full((2, n), x)
    assert (q._square_distance(values) == n * x * x).all()
    assert (distances.square_norm(values) == n * x * x).all()


@pytest.mark.parametrize("limit", [blocks.BLOCK, 1])
def test_gradients_of_many_samples_are_summed_in_float64(limit, monkeypatch):
    """2²⁴ + 1 has no float32, so a running sum in float32 would not count."""
    monkeypatch.setattr(blocks, "BLOCK", limit)
    loc = torch.zeros(1, requires_grad=True)
    q = GaussianGraphicalModel(loc, factor=torch.ones(1), topology=sg.Diagonal(1))
    weights = torch.cat([torch.tensor([2.0**24]), torch.ones(100)])[:, None]
    (q.rsample((101,)) * weights).sum().backward()
    assert loc.grad.item() == 2**24 + 100
    loc.grad = None
    (q.rsample_and_log_prob((101,))[0] * weights).sum().backward()
    assert loc.grad.item() == 2**24 + 100
    loc.grad = None
    (q.log_prob(torch.ones(101, 1)) * weights[:, 0]).sum().backward()
    assert loc.grad.item() == 2**24 + 100


def test_squares_beyond_float32_do_not_overflow():
    q = GaussianGraphicalModel(torch.zeros(2), factor=torch.ones(2), topology=sg.Diagonal(2))
    assert q._square_distance(torch.tensor([1e25, 0.0])).item() == pytest.approx(1e50, rel=1e-6)


def test_square_norm_has_derivatives_of_first_and_second_order():
    assert torch.autograd.gradcheck(distances.square_norm, (vectors(3, 2),))
    assert gradgradcheck(distances.square_norm, (vectors(3, 2),))


# ---------------------------------------------------------------------- the machinery


@pytest.mark.parametrize("shape", [(), (0,), (7,), (3, 5), (2, 1, 9), (4, 0)], ids=str)
@pytest.mark.parametrize("limit", [1, 6, 13, 10_000])
def test_blocks_cover_each_batch_element_once_and_stay_small(shape, limit, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", limit)
    count = np.zeros((*shape, 3))
    for part in blocks.blocks(shape, 3):
        count[part] += 1
        assert count[part].size <= max(limit, 3)
    assert (count == 1).all()


def test_an_operand_meets_its_block():
    full = np.arange(math.prod((4, 3, 2))).reshape(4, 3, 2)
    for part in blocks.blocks((4, 3), 2):
        for operand in (full, full[0], full[:1], full[:, :1], full[0, 0]):
            met = blocks.aligned(operand, part, 3)
            assert np.array_equal(np.broadcast_to(met, full[part].shape), np.broadcast_to(operand, full.shape)[part])


@pytest.mark.parametrize("topology", [sg.ExtendedGrid(2, 3), sg.Grid(3, 3)], ids=str)
def test_the_operators_keep_the_contract_of_the_dispatcher(topology):
    pattern, order = topology.factor_pattern, None if topology.is_naturally_ordered else index(topology.order)
    key = key_of(pattern, "test")
    loc, lower, x = vectors(topology.n, 2), factor(pattern, 2), vectors(topology.n, 3, 2, seed=1)
    operators = torch.ops.sparseggm
    # The check of AOT dispatch would draw twice, and compare.
    random = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(operators.sample.default, (key, loc, lower, order, (3, 2)), test_utils=random)
    torch.library.opcheck(
        operators.sample_vjp.default, (key, loc.detach(), lower.detach(), order, x.detach(), x.detach())
    )
    peak = torch.zeros(2, 1, dtype=torch.float64, requires_grad=True)
    torch.library.opcheck(operators.sample_and_log_prob.default, (key, loc, lower, order, peak, x))
    torch.library.opcheck(operators.square_distance.default, (key, loc, lower, order, x))
    bar = torch.ones(3, 2, dtype=torch.float64)
    for needs_x in (True, False):
        arguments = (key, loc.detach(), lower.detach(), order, x.detach(), bar, needs_x)
        torch.library.opcheck(operators.square_distance_vjp.default, arguments)
    torch.library.opcheck(operators.square_norm.default, (x,))


@pytest.mark.parametrize("topology", TOPOLOGIES, ids=str)
def test_float32_in_float32_out(topology):
    q = GaussianGraphicalModel(
        torch.zeros(topology.n), factor=factor(topology.factor_pattern).detach().float(), topology=topology
    )
    z = q.rsample((3,))
    assert z.dtype == q.log_prob(z).dtype == q.entropy().dtype == torch.float32
