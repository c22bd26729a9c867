"""KL between Gaussian graphical models, independent and dense normals; the draw with its KL."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

import sparseggm as sg
from sparseggm.torch import GaussianGraphicalModel, sample_and_kl
from sparseggm.torch.operators.registration import key_of
from tests.torch.gaussians import KINDS, Kind, dense, gaussian, in_numpy
from tests.torch.problems import TOPOLOGIES, factor, gradgradcheck, vectors

CLOSE = {"rtol": 1e-11, "atol": 1e-11}  # float64, n ≤ 9, condition numbers below 100

SAME_SIZE = [
    Kind(sg.ExtendedGrid(3, 3), "factor"),
    Kind(sg.Grid(3, 3), "precision"),
    Kind(sg.Grid(3, 3), "factor"),  # whose P has edges off the grid
    Kind(sg.Chain(9), "precision"),
    Kind(sg.Star(9), "factor"),
    Kind(sg.Cycle(9), "precision"),
]
every_pair = pytest.mark.parametrize(("first", "second"), list(itertools.product(SAME_SIZE, repeat=2)), ids=str)
every_kind = pytest.mark.parametrize("kind", KINDS, ids=str)


def independent(n: int, *batch: int) -> Independent:
    return Independent(Normal(vectors(n, *batch, seed=5), vectors(n, *batch, seed=6).detach().exp()), 1)


def dense_normal(n: int, *batch: int) -> MultivariateNormal:
    root = torch.eye(n, dtype=torch.float64) + 0.2 * vectors(n, *batch, n, seed=7).detach().tril(-1)
    return MultivariateNormal(vectors(n, *batch, seed=8), scale_tril=root)


@every_pair
def test_kl_between_topologies_and_orders_is_that_of_the_dense_normals(first, second):
    q, p = first.example(2), second.example(2, seed=10)
    expected = kl_divergence(dense(q), dense(p))
    assert torch.allclose(kl_divergence(q, p), expected, **CLOSE)
    assert np.allclose(in_numpy(q).kl_divergence(in_numpy(p)), expected.detach(), **CLOSE)


@pytest.mark.parametrize(
    ("first", "second"),
    [(SAME_SIZE[0], SAME_SIZE[1]), (SAME_SIZE[2], SAME_SIZE[3]), (SAME_SIZE[5], SAME_SIZE[4])],
    ids=str,
)
def test_kl_has_gradients_with_respect_to_both(first, second):
    parameters = (vectors(9, seed=1), first.values(2), vectors(9, 2, seed=2), second.values(seed=9))

    def kl(loc, values, other_loc, other_values):
        return kl_divergence(first.make(loc, values), second.make(other_loc, other_values))

    assert torch.autograd.gradcheck(kl, parameters)
    assert gradgradcheck(kl, parameters)


@pytest.mark.parametrize("other", [independent, dense_normal])
@every_kind
def test_kl_to_and_from_torchs_normals_is_that_of_the_dense_ones(kind, other):
    n = kind.topology.n
    q, p = kind.example(2), other(n, 3, 1)
    as_dense = p if other is dense_normal else MultivariateNormal(p.mean, scale_tril=p.stddev.diag_embed())
    assert torch.allclose(kl_divergence(q, p), kl_divergence(dense(q).expand((3, 2)), as_dense.expand((3, 2))), **CLOSE)
    assert torch.allclose(kl_divergence(p, q), kl_divergence(as_dense.expand((3, 2)), dense(q).expand((3, 2))), **CLOSE)


@pytest.mark.parametrize("other", [independent, dense_normal])
def test_kl_to_and_from_torchs_normals_has_gradients(other):
    kind = Kind(sg.Grid(2, 2), "precision")
    p = other(4)

    def both(loc, values):
        q = kind.make(loc, values)
        return kl_divergence(q, p), kl_divergence(p, q)

    assert torch.autograd.gradcheck(both, (vectors(4, seed=1), kind.values(2)))


@every_kind
def test_kl_to_itself_is_zero(kind):
    q = kind.example(2)
    assert kl_divergence(q, q).abs().max() < 1e-13  # a sum of n ≤ 9 terms of order one that cancel


@every_kind
def test_batches_broadcast(kind):
    n = kind.topology.n
    q = kind.make(vectors(n, 3, 1), kind.values(2))
    p = kind.make(vectors(n, seed=4), kind.values(4, 1, 1, seed=5))
    each = [kl_divergence(kind.make(q.loc[i, 0], kind.values(2)), p) for i in range(3)]
    assert kl_divergence(q, p).shape == (4, 3, 2)
    assert torch.allclose(kl_divergence(q, p), torch.cat(each, dim=1), **CLOSE)


def test_log_determinants_of_float32_are_kept_in_float64_until_the_end():
    """They cancel between q and p: rounded to float32 before, at n = 4096 they would err by 1e-3 nats each."""
    n = 4096
    lower = torch.from_numpy(np.random.default_rng(0).uniform(20, 40, n)).float()
    q = GaussianGraphicalModel(torch.zeros(n), factor=lower, topology=sg.Diagonal(n))
    assert q._logdet().item() == pytest.approx(2 * np.log(lower.double().numpy()).sum(), rel=n * 2.0**-53)


@pytest.mark.parametrize(
    ("other", "error", "message"),
    [
        (gaussian(sg.Chain(5), 2), sg.ShapeError, r"needs two distributions of 4 nodes, got event shape \(5,\)"),
        (independent(3), sg.ShapeError, r"needs two distributions of 4 nodes, got event shape \(3,\)"),
        (dense_normal(3), sg.ShapeError, r"needs two distributions of 4 nodes, got event shape \(3,\)"),
        (gaussian(sg.Chain(4), 3), sg.ShapeError, r"batch axes must broadcast, got \(2,\) of \w+ and \(3,\) of"),
        (Independent(Normal(torch.zeros(2, 4), 1.0), 2), NotImplementedError, r"needs Independent\(Normal, 1\)"),
    ],
    ids=["nodes", "independent nodes", "dense nodes", "batch", "Independent over a batch axis"],
)
def test_distributions_that_do_not_fit_are_refused_both_ways(other, error, message):
    q = gaussian(sg.Chain(4), 2)
    for pair in ((q, other), (other, q)):
        with pytest.raises(error, match=message if error is NotImplementedError else "kl_divergence: "):
            kl_divergence(*pair)
    with pytest.raises(error, match=message):
        kl_divergence(q, other)


# ---------------------------------------------------------------------- the draw with its KL


@every_kind
def test_a_draw_of_any_kind_has_the_exact_kl_to_the_standard_normal(kind):
    q = kind.example(2)
    z, kl = sample_and_kl(q, noise=(noise := vectors(kind.topology.n, 3, 2).detach()))
    assert torch.equal(z, q.loc + q.colorize(noise))
    assert torch.allclose(kl, kl_divergence(q, Independent(Normal(torch.zeros_like(q.loc), 1.0), 1)), **CLOSE)


def test_the_exact_kl_to_a_prior_is_the_registered_one():
    q, p = gaussian(sg.Chain(9), 2), Kind(sg.Grid(3, 3), "precision").example(2)
    z, kl = sample_and_kl(q, p, noise=(noise := vectors(9, 3, 2).detach()))
    assert torch.equal(z, q.loc + q.colorize(noise))
    assert torch.equal(kl, kl_divergence(q, p))


@pytest.mark.parametrize("prior", [None, independent(9), Kind(sg.Grid(3, 3), "precision").example()])
@pytest.mark.parametrize("kind", SAME_SIZE, ids=str)
def test_the_sampled_kl_is_the_log_ratio_of_densities(kind, prior):
    q = kind.example(2)
    p = independent_standard(9) if prior is None else prior
    for estimate in ("sampled", "path"):
        z, kl = sample_and_kl(q, prior, vectors(9, 3, 2).detach(), estimate)
        assert torch.allclose(kl, q.log_prob(z) - p.log_prob(z), rtol=1e-11, atol=1e-10)


def independent_standard(n: int) -> Independent:
    return Independent(Normal(torch.zeros(n, dtype=torch.float64), 1.0), 1)


@every_kind
def test_the_path_gradient_at_the_prior_itself_is_zero_at_every_sample(kind):
    """Where q = p, log q(z) − log p(z) does not depend on z: the sampled KL still has a gradient there."""
    q = kind.example(2)
    loc, lower = q.loc.detach().clone().requires_grad_(), q.factor.detach().clone().requires_grad_()
    own = q._with("q", loc, lower, None, None)
    kl = sample_and_kl(own, q.detach(), vectors(kind.topology.n, 3, 2).detach(), "path")[1]
    assert torch.allclose(kl, torch.zeros_like(kl), atol=1e-10)
    for gradient in torch.autograd.grad(kl.sum(), (loc, lower)):
        assert gradient.abs().max() <= 1e-9


@pytest.mark.parametrize("kl", ["sampled", "path"])
@pytest.mark.parametrize("prior", [None, Kind(sg.Grid(2, 2), "precision").example()])
def test_the_sampled_kl_and_its_gradient_are_unbiased(prior, kl):
    """The mean of 20,000 is within 5 standard errors: 11 normals, beyond that with probability 7e-6."""
    count, topology = 20_000, sg.Chain(4)
    loc, lower = (
        x.detach().expand(count, -1).clone().requires_grad_() for x in (vectors(4), factor(topology.factor_pattern))
    )
    torch.manual_seed(0)
    q = GaussianGraphicalModel(loc, factor=lower, topology=topology)
    sampled = sample_and_kl(q, prior, kl=kl)[1]
    exact = sample_and_kl(q, prior)[1]
    found = (sampled, *torch.autograd.grad(sampled.sum(), (loc, lower)))
    expected = (exact, *torch.autograd.grad(exact.sum(), (loc, lower)))
    for values, target in zip(found, expected, strict=True):
        assert ((values.mean(0) - target[0]).abs() <= 5 * values.std(0) / count**0.5 + 1e-12).all()


def test_noise_is_drawn_from_torchs_generator():
    q = gaussian(sg.ExtendedGrid(2, 3), 2)
    torch.manual_seed(5)
    first = sample_and_kl(q)[0]
    torch.manual_seed(5)
    assert torch.equal(first, sample_and_kl(q, noise=torch.randn(2, 6, dtype=torch.float64))[0])


def test_an_unknown_kind_of_kl_is_refused():
    with pytest.raises(ValueError, match=r"kl must be 'exact', 'sampled' or 'path', got 'stochastic'"):
        sample_and_kl(gaussian(sg.Chain(4)), kl="stochastic")


def test_noise_in_the_place_of_the_prior_is_refused():
    with pytest.raises(TypeError, match=r"p must be a torch distribution, got Tensor\. Noise is given as noise="):
        sample_and_kl(gaussian(sg.Chain(4)), torch.zeros(4))


@pytest.mark.parametrize("kl", ["exact", "sampled", "path"])
@pytest.mark.parametrize("shape", [(), (4,), (2, 4)])
def test_a_density_of_single_nodes_is_refused_where_its_values_would_broadcast(shape, kl):
    """log p(z) has an entry a node, log q(z) one a sample: with two samples of two nodes no shape would tell."""
    normal = torch.distributions.Normal(torch.zeros(shape, dtype=torch.float64), 1.0)
    with pytest.raises(
        sg.ShapeError, match=r"^sample_and_kl: p must have the event shape of q, \(4,\), got \(\)\. Wrap"
    ):
        sample_and_kl(gaussian(sg.Chain(4), 4), normal, kl=kl)


def test_noise_of_another_size_is_refused():
    with pytest.raises(
        sg.ShapeError, match=r"sample_and_kl: noise must end in 4, the nodes of Chain\(n=4\), got shape"
    ):
        sample_and_kl(gaussian(sg.Chain(4)), noise=torch.zeros(5))


def test_a_pair_without_a_registered_kl_is_refused_but_can_be_sampled():
    q = gaussian(sg.Chain(4), 2)
    laplace = Independent(torch.distributions.Laplace(torch.zeros(4, dtype=torch.float64), 1.0), 1)
    with pytest.raises(NotImplementedError, match=r"needs Independent\(Normal, 1\)"):
        sample_and_kl(q, laplace)
    assert sample_and_kl(q, laplace, kl="sampled")[1].shape == (2,)


def test_a_normal_that_is_not_wrapped_is_refused_with_the_remedy():
    q, p = gaussian(sg.Chain(4), 2), Normal(torch.zeros(4).double(), 1.0)
    for pair in ((q, p), (p, q)):
        with pytest.raises(NotImplementedError, match=r"a Normal is of single nodes\. Wrap it: Independent\(p, 1\)"):
            kl_divergence(*pair)
    assert kl_divergence(q, Independent(p, 1)).shape == (2,)


@pytest.mark.parametrize("topology", TOPOLOGIES, ids=str)
def test_draw_and_kl_have_second_derivatives(topology):
    noise = vectors(topology.n, 3, 2).detach()

    def step(loc, lower):
        q = GaussianGraphicalModel(loc, factor=lower, topology=topology, validate_args=False)
        return sample_and_kl(q, noise=noise, kl="sampled")

    assert gradgradcheck(step, (vectors(topology.n, 2), factor(topology.factor_pattern, 2)))


def test_a_draw_comes_with_its_log_density_and_the_whole_gradient_of_it():
    q, noise = gaussian(sg.ExtendedGrid(2, 2)), vectors(4, 5, 2, seed=3).detach()
    z, log_prob = q.rsample_and_log_prob(noise=noise)
    torch.testing.assert_close(log_prob, q.log_prob(z))
    torch.testing.assert_close(z, q.loc + q.colorize(noise), rtol=0, atol=0)
    found, expected = (
        torch.autograd.grad(value.sum(), q._factor, retain_graph=True) for value in (log_prob, q.log_prob(z))
    )
    torch.testing.assert_close(found, expected)


def test_a_draw_with_its_log_density_takes_its_noise_from_the_generator():
    q = gaussian(sg.Chain(4))
    torch.manual_seed(0)
    with torch.no_grad():
        z, _ = q.rsample_and_log_prob((3,))
    torch.manual_seed(0)
    torch.testing.assert_close(z, q.rsample((3,)))


def test_a_small_step_takes_views_and_expanded_cotangents_as_copies():
    """It goes by the addresses of its tensors, which only contiguous ones may be asked for."""
    outputs = torch.from_numpy(np.random.default_rng(4).standard_normal((9, 22)))
    values = factor(sg.Chain(4).factor_pattern, 9, seed=2).detach()
    shift = torch.from_numpy(np.random.default_rng(5).standard_normal((4, 9))).T  # not contiguous
    results = []
    for loc in (outputs[:, 5:9], outputs[:, 5:9].clone()):
        loc, lower = loc.requires_grad_(), values.clone().requires_grad_()
        q = GaussianGraphicalModel(loc, factor=lower, topology=sg.Chain(4))
        z, kl = sample_and_kl(q, noise=shift if len(results) else shift.contiguous())
        assert loc.is_contiguous() is bool(results)
        results.append([z, kl, *torch.autograd.grad(z.sum() + kl.sum(), (loc, lower))])
    for first, second in zip(*results, strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("wrong", [(3,), (9, 1)])
def test_cotangents_of_other_shapes_than_the_divergences_are_refused(wrong):
    """The operator itself may be called with any."""
    pattern = sg.Chain(4).factor_pattern
    x, lower = torch.zeros(9, 4, dtype=torch.float64), factor(pattern, 9).detach()
    key = key_of(pattern, "sample_and_kl", x, lower)
    bar = torch.ones(wrong, dtype=torch.float64)
    with pytest.raises((ValueError, RuntimeError)):
        torch.ops.sparseggm.sample_and_kl_vjp(key, x, lower, x, x, bar, False)


def test_noise_whose_sign_is_a_mere_flag_is_not_read_as_it_lies():
    q = gaussian(sg.Chain(4))
    noise = torch._neg_view(torch.ones_like(q.loc))
    assert noise.is_neg()
    for found, expected in zip(sample_and_kl(q, noise=noise), sample_and_kl(q, noise=noise.resolve_neg()), strict=True):
        assert torch.equal(found, expected)
