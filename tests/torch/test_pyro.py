"""As a Pyro sample site."""

from __future__ import annotations

import pytest
import torch

import sparseggm as sg
from sparseggm.torch import FactorHead
from tests.torch.gaussians import gaussian
from tests.torch.problems import factor

pyro = pytest.importorskip("pyro", reason="Pyro is not installed: pip install pyro-ppl")

TOPOLOGY = sg.Grid(2, 2)


@pytest.fixture
def site():
    """The class with Pyro's mixin."""
    from sparseggm.pyro import GaussianGraphicalModel

    return GaussianGraphicalModel


def test_a_sample_site_has_the_log_prob_of_the_distribution(site):
    q = gaussian(TOPOLOGY)

    def model():
        return pyro.sample("z", site(q.loc, factor=q.factor, topology=TOPOLOGY))

    trace = pyro.poutine.trace(model).get_trace()
    trace.compute_log_prob()
    assert torch.equal(trace.nodes["z"]["log_prob"], q.log_prob(trace.nodes["z"]["value"]))


def test_the_gaussian_of_a_head_becomes_a_site(site):
    q = FactorHead(3, sg.Chain(4))(torch.randn(5, 3))

    def model():
        with pyro.plate("data", 5):
            return pyro.sample("z", site.of(q))

    trace = pyro.poutine.trace(model).get_trace()
    trace.compute_log_prob()
    assert torch.equal(trace.nodes["z"]["log_prob"], q.log_prob(trace.nodes["z"]["value"]))


def test_plates_and_observations_expand_it(site):
    q, data = gaussian(TOPOLOGY), torch.randn(5, 4, dtype=torch.float64)

    def model():
        with pyro.plate("data", 5):
            pyro.sample("x", site(q.loc, factor=q.factor, topology=TOPOLOGY), obs=data)

    assert torch.allclose(pyro.poutine.trace(model).get_trace().log_prob_sum(), q.log_prob(data).sum())


def test_variational_inference_finds_a_posterior(site):
    """z ~ N(0, I), x = z + N(0, I): the posterior given x = 4 has mean 2 and precision 2 I, so L = √2 I."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    zeros, ones = torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    pattern = TOPOLOGY.factor_pattern
    diagonal = torch.from_numpy(pattern.diagonal.astype("int64"))

    def model():
        z = pyro.sample("z", pyro.distributions.Normal(zeros, ones).to_event(1))
        pyro.sample("x", pyro.distributions.Normal(z, ones).to_event(1), obs=4 * ones)

    def guide():
        loc = pyro.param("loc", zeros.clone())
        lower = pyro.param("lower", 0.1 * factor(pattern).detach().index_fill(0, diagonal, 10.0))
        pyro.sample("z", site(loc, factor=lower, topology=TOPOLOGY))

    optimiser = pyro.optim.Adam({"lr": 0.02})
    loss = pyro.infer.Trace_ELBO(num_particles=16, vectorize_particles=True, max_plate_nesting=0)
    inference = pyro.infer.SVI(model, guide, optimiser, loss)
    for _ in range(600):
        inference.step()
    assert torch.allclose(pyro.param("loc"), 2 * ones, atol=0.1)
    assert torch.allclose(pyro.param("lower")[diagonal], 2**0.5 * ones, atol=0.1)
