"""The residual posterior: q = p at zero, terms of KL, one operator against the composition, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import kl_divergence

import sparseggm as sg
from sparseggm.torch import GaussianGraphicalModel, Residual, ResidualHead, kl_terms
from sparseggm.torch.operators import residual
from tests.torch.gaussians import in_numpy
from tests.torch.problems import factor, gradgradcheck, values, vectors
from tests.torch.support import TOPOLOGIES

FACTOR_FREE = [topology for topology in TOPOLOGIES if topology.is_factor_free]
FACTOR_FREE += [sg.Chain(5, order=range(5)[::-1]), sg.Grid(1, 4), sg.ExtendedGrid(3, 3)]
every_topology = pytest.mark.parametrize("topology", FACTOR_FREE, ids=str)
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def prior(topology, *batch, dtype=torch.float64):
    loc, lower = vectors(topology.n, *batch, seed=1).detach(), factor(topology.factor_pattern, *batch).detach()
    return GaussianGraphicalModel(loc.to(dtype), factor=lower.to(dtype), topology=topology)


def moved(topology, *batch, dtype=torch.float64, size=0.5, prior_batch=None):
    p = prior(topology, *(batch if prior_batch is None else prior_batch), dtype=dtype)
    moves = size * values(topology.factor_pattern, *batch, seed=3).detach()
    return Residual(p, vectors(topology.n, *batch, seed=2).detach().to(dtype), moves.to(dtype))


def noise_like(q):
    return torch.linspace(-1.5, 2.0, q.shift.numel(), dtype=q.shift.dtype).reshape(q.shift.shape)


@every_topology
@each_dtype
def test_zero_moves_and_shift_leave_the_prior_to_the_bit(topology, dtype):
    p = prior(topology, 3, dtype=dtype)
    q = Residual(p, torch.zeros(3, topology.n, dtype=dtype), torch.zeros_like(p.factor))
    noise = vectors(topology.n, 3, seed=7).detach().to(dtype)
    z, terms = q.sample_and_kl_terms(noise)
    assert torch.equal(q.gaussian().factor, p.factor)
    assert torch.equal(q.gaussian().loc, p.loc)
    assert torch.equal(z, p.loc + p.colorize(noise))
    assert torch.equal(terms, torch.zeros(3, topology.n, dtype=dtype))
    assert torch.equal(kl_terms(q.gaussian(), p), terms)


@every_topology
def test_terms_are_those_of_the_arrays_and_sum_to_the_exact_kl(topology):
    q = moved(topology, 2, 3)
    _, terms = q.sample_and_kl_terms()
    gaussian = q.gaussian()
    expected = in_numpy(gaussian).kl_terms(in_numpy(q.p))
    torch.testing.assert_close(terms, torch.from_numpy(expected), rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(kl_terms(gaussian, q.p), torch.from_numpy(expected), rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(terms.sum(-1), kl_divergence(gaussian, q.p), rtol=1e-11, atol=1e-11)


@every_topology
@pytest.mark.parametrize("prior_batch", [None, (), (1,)], ids=str)
@pytest.mark.parametrize("samples", [(), (4,)], ids=str)
def test_one_operator_gives_what_its_composition_gives(topology, prior_batch, samples):
    """Values and gradients; the prior may be shared, and the noise may have axes of its own."""
    base = moved(topology, 3, prior_batch=prior_batch)
    leaves = [t.detach().clone().requires_grad_() for t in (base.p.loc, base.p._factor, base.shift, base.moves)]
    p = GaussianGraphicalModel(leaves[0], factor=leaves[1], topology=topology)
    q = Residual(p, *leaves[2:])
    noise = torch.randn(*samples, 3, topology.n, dtype=torch.float64, requires_grad=True)
    found = q.sample_and_kl_terms(noise)
    gaussian = q.gaussian()
    expected = gaussian.loc + gaussian.colorize(noise), kl_terms(gaussian, p)
    bars = [torch.randn_like(result) for result in expected]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)
    gradients = (torch.autograd.grad(each, [*leaves, noise], bars) for each in (found, expected))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


@every_topology
def test_second_derivatives_and_a_shared_prior(topology):
    on, n = topology.factor_pattern, topology.n
    moves = (0.3 * values(on, 2, seed=3).detach()).requires_grad_()
    tensors = vectors(n), factor(on), vectors(n, 2, seed=2), moves, vectors(n, 2, seed=4)

    def call(*arguments):
        return residual.sample_and_kl_terms(on, *arguments)

    assert torch.autograd.gradcheck(call, tensors)
    assert gradgradcheck(call, tensors)


@pytest.mark.parametrize("topology", [sg.Chain(4), sg.ExtendedGrid(2, 3)], ids=str)
@pytest.mark.parametrize("batch", [(), (2,)], ids=str)
def test_the_registered_operator_passes_the_checks_of_torch(topology, batch):
    on, n = topology.factor_pattern, topology.n
    moves = (0.3 * values(on, *batch, seed=3).detach()).requires_grad_()
    tensors = vectors(n, *batch), factor(on, *batch), vectors(n, *batch, seed=2), moves, vectors(n, *batch, seed=4)
    torch.library.opcheck(torch.ops.sparseggm.sample_and_kl_terms.default, (on.key, *tensors))


@each_dtype
def test_small_moves_keep_their_digits(dtype):
    """h(δ) = Σ 2ᵏ⁻¹ δᵏ / k!, k ≥ 2: by the difference of its two parts nothing would be left."""
    p = prior(sg.Diagonal(4), dtype=dtype)
    moves = torch.tensor([1e-3, -1e-6, 1e-9, 1e-12], dtype=dtype)
    terms = Residual(p, torch.zeros(4, dtype=dtype), moves).sample_and_kl_terms()[1].double()
    expected = sum(2.0 ** (k - 1) * moves.double() ** k / math.factorial(k) for k in range(2, 12))
    torch.testing.assert_close(terms, expected, rtol=2 * torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("topology", [sg.ExtendedGrid(2, 3), sg.Chain(5)], ids=str)
def test_a_head_starts_with_the_precision_of_the_prior_and_live_gradients(topology):
    head, features = ResidualHead(4, topology), torch.randn(5, 4)
    p, noise = prior(topology, dtype=torch.float32), torch.randn(5, topology.n)
    q = head(features, p)
    z, terms = q.sample_and_kl_terms(noise)
    assert torch.equal(q.gaussian().factor, p.factor.expand(5, -1))
    torch.testing.assert_close(z, p.loc + p.colorize(q.shift + noise))
    torch.testing.assert_close(terms, q.shift.square() / 2)
    assert (q.shift.std(0) > 0.01).all()  # it depends on the features
    (z.square().sum() + terms.sum()).backward()
    assert (head.layer.weight.grad.abs().sum(1) > 0).all()


def test_a_head_that_emits_zeros_gives_the_prior_to_the_bit():
    topology = sg.ExtendedGrid(2, 3)
    head, p, noise = ResidualHead(4, topology), prior(topology, dtype=torch.float32), torch.randn(5, topology.n)
    nn.init.zeros_(head.layer.weight)
    nn.init.zeros_(head.layer.bias)
    z, terms = head(torch.randn(5, 4), p).sample_and_kl_terms(noise)
    assert torch.equal(z, p.loc + p.colorize(noise))
    assert (terms == 0).all()


def test_a_head_bounds_scales_alone_and_casts_half_precision():
    topology = sg.Chain(4)
    head, p = ResidualHead(3, topology).to(torch.bfloat16), prior(topology, dtype=torch.float32)
    with torch.no_grad():
        head.layer.weight.zero_()
        head.layer.bias.fill_(20.0)
    q = head(torch.ones(2, 3, dtype=torch.bfloat16), p)
    diagonal = torch.from_numpy(topology.factor_pattern.rows == topology.factor_pattern.cols)
    assert q.moves.dtype == torch.float32
    torch.testing.assert_close(q.moves[:, diagonal], torch.full((2, 4), 5.0), atol=0.01, rtol=0)
    assert torch.equal(q.moves[:, ~diagonal], torch.full((2, 3), 20.0))


def test_a_head_trains_and_compiles_whole():
    topology = sg.BlockChain(3, 2)
    head, p, features = ResidualHead(3, topology), prior(topology, dtype=torch.float32), torch.randn(4, 3)
    nn.init.normal_(head.layer.weight, std=0.3)
    noise = torch.randn(4, topology.n)

    def step(features):
        z, terms = head(features, p).sample_and_kl_terms(noise)
        return z.sum() + terms.clamp(min=0.1).sum()

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    results = [
        (value, torch.autograd.grad(value, head.layer.weight)[0]) for value in (compiled(features), step(features))
    ]
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_weights_of_another_head_do_not_load():
    head, other = ResidualHead(3, sg.Chain(4)), sg.torch.FactorHead(3, sg.Chain(4), sg.parametrize.regression)
    with pytest.raises(
        sg.PatternError, match=r"ResidualHead: .* for another family than that of Chain\(n=4\), residual"
    ):
        head.load_state_dict(other.state_dict())
    head.load_state_dict(ResidualHead(3, sg.Chain(4)).state_dict())


CHAIN, GRID = prior(sg.Chain(4)), prior(sg.Grid(3, 3))
ZEROS = torch.zeros(7, dtype=torch.float64)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Residual(GRID, ZEROS, ZEROS), sg.PatternError, "Residual: needs a p .* factor-free"),
        (
            lambda: Residual(GaussianGraphicalModel.from_precision(
                torch.zeros(9, dtype=torch.float64), precision=prior(sg.ExtendedGrid(3, 3)).precision,
                topology=sg.ExtendedGrid(3, 3)), ZEROS, ZEROS),
            sg.PatternError, "Residual: needs a p with its factor on the pattern",
        ),
        (lambda: Residual(None, ZEROS, ZEROS), TypeError, "Residual: p must be a GaussianGraphicalModel"),
        (lambda: Residual(CHAIN, ZEROS, ZEROS), sg.ShapeError, "shift must end in 4 and moves in 7"),
        (lambda: Residual(CHAIN, ZEROS[:4], ZEROS[:4]), sg.ShapeError, "shift must end in 4 and moves in 7"),
        (
            lambda: Residual(CHAIN, ZEROS[:4].expand(3, 4), ZEROS.expand(2, 7)),
            sg.ShapeError, r"batch axes must broadcast, got \(\) of p and \(3,\) of shift and \(2,\) of moves",
        ),
        (lambda: ResidualHead(3, sg.Grid(3, 3)), sg.PatternError, r"ResidualHead: Grid\(3, 3\) is not factor-free"),
        (
            lambda: ResidualHead(3, sg.Chain(4))(torch.ones(3), prior(sg.Chain(5))),
            sg.PatternError, r"ResidualHead: p must be on Chain\(n=4\), got one on Chain\(n=5\)",
        ),
        (
            lambda: ResidualHead(3, sg.Chain(4))(torch.ones(3), prior(sg.Chain(4, order=range(4)[::-1]))),
            sg.PatternError, r"p must be on Chain\(n=4\)",
        ),
        (lambda: kl_terms(CHAIN, GRID), sg.PatternError, r"kl_terms: .* of Chain\(n=4\) and .* of Grid\(3, 3\)"),
        (lambda: kl_terms(CHAIN, 1), TypeError, "kl_terms: p must be"),
        (
            lambda: kl_terms(CHAIN, prior(sg.Chain(4, order=range(4)[::-1]))),
            sg.PatternError, "one pattern, in one order of elimination",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("batch", [(), (20,)], ids=str)
@pytest.mark.parametrize("n", [100, 2000])
def test_terms_beyond_the_dtype_raise_by_one_kernel_and_by_verbs(n, batch):
    topology = sg.Chain(n)
    loc, lower = torch.full((*batch, n), 1e20), torch.full((*batch, 2 * n - 1), 0.5)
    q, p = (GaussianGraphicalModel(x, factor=lower, topology=topology) for x in (loc, 0 * loc))
    for name, call in {
        "kl_terms": lambda: kl_terms(q, p),
        "kl_divergence": lambda: kl_divergence(q, p),
        "sample_and_kl_terms": lambda: Residual(p, loc, 0 * lower).sample_and_kl_terms(),
    }.items():
        with pytest.raises(sg.NonFiniteError, match=f"^{name}: the arguments are finite but the result overflows"):
            call()


@pytest.mark.parametrize("call", [kl_terms, kl_divergence])
def test_means_too_far_apart_for_the_dtype_are_an_overflow(call):
    topology, lower = sg.Chain(3), torch.tensor([1, 0.1, 1, 0.1, 1]).expand(2, -1)
    q, p = (GaussianGraphicalModel(torch.full((2, 3), x), factor=lower, topology=topology) for x in (3e38, -3e38))
    with pytest.raises(sg.NonFiniteError, match=f"^{call.__name__}: the arguments are finite but the result overflows"):
        call(q, p)


@pytest.mark.parametrize(
    "shapes", [((), (), ()), ((3,), (3,), (3,)), ((17,), (), ()), ((2, 1), (3,), ()), ((), (5,), (5,))]
)
@pytest.mark.parametrize("topology", [sg.Chain(700), sg.ExtendedGrid(20, 20), sg.Chain(5)], ids=str)
def test_few_and_shared_factors_give_the_terms_of_many(topology, shapes):
    """Composed of verbs, or in one pass, by size: against a batch that is large and shares nothing."""
    on, (a, b, c) = topology.factor_pattern, shapes
    batch = torch.broadcast_shapes(*shapes)
    given = [vectors(topology.n, *a), factor(on, *b), factor(on, *c, seed=5)]
    q = GaussianGraphicalModel(given[0], factor=given[1], topology=topology)
    p = GaussianGraphicalModel(torch.zeros(topology.n, dtype=torch.float64), factor=given[2], topology=topology)
    copies = [x.detach().expand(*batch, x.shape[-1]).expand(16, *batch, -1).clone().requires_grad_() for x in given]
    many = [GaussianGraphicalModel(x, factor=lower, topology=topology) for x, lower in
            ((copies[0], copies[1]), (torch.zeros_like(copies[0]), copies[2]))]  # fmt: skip
    terms, expected = kl_terms(q, p), kl_terms(*many)
    torch.testing.assert_close(terms, expected[0], rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(kl_divergence(q, p), expected[0].sum(-1), rtol=1e-9, atol=1e-9)
    arrays = in_numpy(q), in_numpy(p)
    np.testing.assert_allclose(arrays[0].kl_terms(arrays[1]), expected[0].detach(), rtol=1e-9, atol=1e-11)
    bar = torch.randn_like(terms)
    found = torch.autograd.grad(terms, given, bar)
    whole = torch.autograd.grad(expected[0], copies, bar)
    for one, other in zip(found, whole, strict=True):
        torch.testing.assert_close(one, other[0].sum_to_size(one.shape), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", ["shift", "moves", "noise"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_number_that_is_not_finite_is_named_by_its_node(name, bad):
    q = moved(sg.Chain(4, order=range(4)[::-1]), 2)
    tensors = {"shift": q.shift, "moves": q.moves, "noise": noise_like(q)}
    tensors[name][1, 0] = bad
    with pytest.raises(sg.NonFiniteError, match=rf"sample_and_kl_terms: {name} must be finite, got {bad} at node"):
        Residual(q.p, tensors["shift"], tensors["moves"]).sample_and_kl_terms(tensors["noise"])


def test_scales_beyond_the_dtype_raise():
    p = prior(sg.Chain(3))
    moves = torch.zeros(5, dtype=torch.float64)
    for delta in (400.0, -800.0):
        moves[0] = delta
        with pytest.raises(sg.NonFiniteError, match="the arguments are finite but the result overflows"):
            Residual(p, torch.zeros(3, dtype=torch.float64), moves).sample_and_kl_terms()
