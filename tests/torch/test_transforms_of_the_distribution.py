"""The torch Gaussian under vmap and torch.func.grad: as batches would give; what reads values refuses them."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import kl_divergence
from torch.func import grad, vmap

from sparseggm import Chain
from sparseggm.fields import Poisson, constrain, laplace
from sparseggm.torch import (
    GaussianGraphicalModel,
    elbo_gradient,
    natural_step,
    precondition,
    refine,
    sample_and_kl,
)
from sparseggm.torch.fields import IntrinsicGaussian
from tests.torch.gaussians import KINDS
from tests.torch.problems import vectors

every_kind = pytest.mark.parametrize("kind", KINDS, ids=str)
CLOSE = {"rtol": 1e-12, "atol": 1e-12}  # the same kernels in batches of other shapes


def everything(kind, p, loc, values, x):
    q = kind.make(loc, values, validate_args=True)
    return (
        q.log_prob(x),
        q.entropy(),
        q.variance,
        kl_divergence(q, p),
        kl_divergence(p, q),
        q.covariance_on([[0, 2]]),
        q.covariance_matrix,
        q.precision_matrix,
        q.condition([0], x[..., :1]).loc,
        q.marginal([2, 0]).variance,
        *sample_and_kl(q, noise=x),
        sample_and_kl(q, noise=x, kl="sampled")[1],
        sample_and_kl(q, p, noise=x)[1],
    )


def parameters(kind):
    n = kind.topology.n
    return vectors(n, 3).detach(), kind.values(3).detach(), vectors(n, 3, seed=2).detach()


@every_kind
def test_mapped_answers_are_those_of_a_batch(kind):
    arguments, p = parameters(kind), kind.example()
    mapped = vmap(lambda *each: everything(kind, p, *each))(*arguments)
    for found, expected in zip(mapped, everything(kind, p, *arguments), strict=True):
        assert torch.allclose(found, expected, **CLOSE)


@every_kind
def test_mapped_gradients_are_those_of_a_batch(kind):
    arguments, p = parameters(kind), kind.example()

    def loss(*each):
        answers = everything(kind, p, *each)
        return answers[0] + answers[3]

    mapped = vmap(grad(loss, argnums=(0, 1, 2)))(*arguments)
    leaves = [argument.clone().requires_grad_() for argument in arguments]
    for found, expected in zip(mapped, torch.autograd.grad(loss(*leaves).sum(), leaves), strict=True):
        assert torch.allclose(found, expected, **CLOSE)


@every_kind
def test_mapped_draws_differ_where_asked_to(kind):
    loc, values, _ = parameters(kind)
    z = vmap(lambda *each: kind.make(*each).rsample((5,)), randomness="different")(
        loc[:1].expand(2, -1), values[:1].expand(2, -1)
    )
    assert z.shape == (2, 5, kind.topology.n)
    assert not torch.equal(z[0], z[1])


CHAIN, NOISE = Chain(5), torch.ones(4, 5)
IS_DIAGONAL = torch.from_numpy(CHAIN.factor_pattern.rows == CHAIN.factor_pattern.cols)


def chain_about(loc):
    return GaussianGraphicalModel(loc * torch.ones(5), factor=torch.where(IS_DIAGONAL, 2.0, 0.5), topology=CHAIN)


def random_walk(scale):
    precision = CHAIN.pack((scale * torch.tensor([1.0, 2.0, 2.0, 2.0, 1.0]), -scale * torch.ones(4)))
    return IntrinsicGaussian(precision, topology=CHAIN)


def log_joint(z):
    return -z.square().sum(-1)


COUNTS, WALK = Poisson(torch.ones(5)), random_walk(torch.tensor(1.0))
READERS = {
    "laplace": lambda x: laplace(chain_about(x), COUNTS).log_evidence,
    "constrain": lambda x: constrain(chain_about(x), [[1.0] * 5], 0.0).mean.sum(),
    "natural_step": lambda x: natural_step(chain_about(x), torch.ones(5), torch.zeros(9))[0].loc.sum(),
    "precondition": lambda x: precondition(chain_about(x)).loc.sum(),
    "elbo_gradient": lambda x: elbo_gradient(chain_about(x), log_joint, NOISE)[1].sum(),
    "refine": lambda x: refine(chain_about(x), log_joint, 2, noise=lambda step: NOISE).gaussian.loc.sum(),
    "IntrinsicGaussian": lambda x: random_walk(x).precision.sum(),
    "observe": lambda x: WALK.observe([0], x, 1.0).loc.sum(),
    "log_evidence": lambda x: WALK.log_evidence([0], x, 1.0),
}


@pytest.mark.parametrize("name", READERS)
def test_what_reads_values_refuses_transforms_by_name(name):
    for transform, argument in ((vmap, torch.ones(2)), (grad, torch.tensor(1.0))):
        with pytest.raises(TypeError, match=f"^{name}: runs under no transform of torch.func"):
            transform(READERS[name])(argument)
