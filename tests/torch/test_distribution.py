"""The distribution against the NumPy Gaussian and against torch's dense MultivariateNormal; the heads."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

import sparseggm as sg
from sparseggm.torch import FactorHead, GaussianGraphicalModel, sample_and_kl
from tests.torch.problems import TOPOLOGIES, factor, vectors

every_topology = pytest.mark.parametrize("topology", TOPOLOGIES, ids=str)


def gaussian(topology: sg.Topology, *batch: int) -> GaussianGraphicalModel:
    return GaussianGraphicalModel(
        vectors(topology.n, *batch, seed=3), factor=factor(topology.factor_pattern, *batch), topology=topology
    )


def dense(q: GaussianGraphicalModel) -> MultivariateNormal:
    inverse = q.topology.inverse_order
    lower = q.topology.factor_pattern.to_dense(q.factor.detach().numpy())
    precision = (lower @ lower.swapaxes(-1, -2))[..., inverse[:, None], inverse]
    return MultivariateNormal(q.loc.detach(), precision_matrix=torch.from_numpy(precision))


@every_topology
def test_agrees_with_the_dense_normal(topology):
    q, p = gaussian(topology, 2), dense(gaussian(topology, 2))
    x = vectors(topology.n, 3, 2, seed=4).detach()
    close = {"rtol": 1e-11, "atol": 1e-11}  # float64, n ≤ 9, condition numbers below 100
    assert torch.allclose(q.log_prob(x), p.log_prob(x), **close)
    assert torch.allclose(q.entropy(), p.entropy(), **close)
    assert torch.allclose(q.variance, p.variance, **close)
    assert torch.allclose(q.stddev, p.stddev, **close)
    standard = Independent(Normal(torch.zeros(topology.n, dtype=torch.float64), 1.0), 1)
    white = MultivariateNormal(standard.mean, torch.eye(topology.n, dtype=torch.float64))
    assert torch.allclose(kl_divergence(q, standard), kl_divergence(p, white), **close)


@every_topology
def test_kl_to_independent_normals_agrees_with_the_dense_normal(topology):
    q, p = gaussian(topology, 2), dense(gaussian(topology, 2))
    mean, scale = vectors(topology.n, seed=5).detach(), vectors(topology.n, seed=6).detach().exp()
    other = MultivariateNormal(mean, scale_tril=scale.diag())
    found = kl_divergence(q, Independent(Normal(mean, scale), 1))
    assert torch.allclose(found, kl_divergence(p, other), rtol=1e-11)


@every_topology
def test_agrees_with_the_numpy_gaussian(topology):
    q = gaussian(topology, 2)
    g = sg.GaussianGraphicalModel(q.loc.detach().numpy(), factor=q.factor.detach().numpy(), topology=topology)
    noise = vectors(topology.n, 3, 2, seed=7)
    z, kl = sample_and_kl(q, noise=noise)
    assert np.array_equal(z.detach().numpy(), g.loc + g.colorize(noise.detach().numpy()))
    assert kl.detach().numpy() == pytest.approx(g.kl_divergence(), rel=1e-14)  # |loc|² may be summed in another order
    assert np.array_equal(q.whiten(noise).detach().numpy(), g.whiten(noise.detach().numpy()))


def test_samples_have_the_shape_of_torch_and_the_moments_of_the_gaussian():
    torch.manual_seed(0)
    q = gaussian(sg.ExtendedGrid(2, 3), 2)
    x = q.sample((20_000,))
    assert x.shape == (20_000, 2, 6)
    assert not x.requires_grad
    standardised = (x.mean(0) - q.loc) / (q.stddev / 20_000**0.5)
    assert standardised.abs().max() < 5  # 12 standard normals: beyond 5 with probability 7e-6
    whitened = q.whiten(x - q.loc)
    assert (torch.cov(whitened[:, 0].T) - torch.eye(6)).abs().max() < 5 * (2 / 20_000) ** 0.5


def test_a_reparametrised_sample_carries_gradients_to_every_parameter():
    loc, lower = vectors(4, 2), factor(sg.Chain(4).factor_pattern, 2)
    GaussianGraphicalModel(loc, factor=lower, topology=sg.Chain(4)).rsample((5,)).square().sum().backward()
    assert (loc.grad != 0).all()
    assert (lower.grad != 0).all()


def test_expand_copies_no_factor():
    q = gaussian(sg.Chain(4))
    wide = q.expand((7, 2))
    assert wide.batch_shape == (7, 2)
    assert wide.factor.data_ptr() == q.factor.data_ptr()
    assert wide.rsample().shape == (7, 2, 4)
    assert wide.entropy().shape == wide.log_prob(torch.zeros(4, dtype=torch.float64)).shape == (7, 2)
    assert torch.equal(wide.variance, q.variance.expand(7, 2, 4))


def test_works_under_independent():
    q = Independent(gaussian(sg.Chain(4), 3, 2), 1)
    assert q.event_shape == (2, 4)
    assert q.log_prob(q.rsample()).shape == (3,)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"loc": torch.zeros(5)},
            sg.ShapeError,
            r"on Chain\(n=4\) loc must end in 4 and factor in 7, got shapes \(5,\)",
        ),
        ({"factor": torch.ones(8)}, sg.ShapeError, r"got shapes \(4,\) and \(8,\)"),
        ({"loc": torch.zeros(4, dtype=torch.float64)}, sg.DTypeError, "must both be float32 or both float64"),
        ({"factor": -torch.ones(7)}, sg.NonPositiveError, "positive diagonal, its least diagonal entry is -1"),
        ({"factor": torch.full((7,), float("nan"))}, sg.NonPositiveError, "must be finite"),
        ({"loc": torch.full((4,), float("nan"))}, ValueError, "parameter loc"),
    ],
)
def test_bad_parameters_are_named(change, error, message):
    with pytest.raises(error, match=message):
        GaussianGraphicalModel(**{"loc": torch.zeros(4), "factor": torch.ones(7), **change}, topology=sg.Chain(4))


def test_kl_to_something_else_is_refused():
    with pytest.raises(NotImplementedError, match="needs Independent"):
        kl_divergence(gaussian(sg.Chain(4)), Independent(Normal(torch.zeros(2, 4), 1.0), 2))


# ---------------------------------------------------------------------- heads


@pytest.mark.parametrize("topology", [t for t in TOPOLOGIES if t.is_factor_free], ids=str)
def test_a_head_starts_at_unit_precision_and_learns(topology):
    head = FactorHead(5, topology)
    features = torch.randn(8, 5)
    q = head(features)
    assert torch.equal(q.variance, torch.ones(8, topology.n))
    z, kl = sample_and_kl(q)
    (z.square().sum() + kl.sum()).backward()
    assert (head.linear.weight.grad[topology.n :].abs().sum(1) > 0).all()


def test_a_head_bounds_its_log_diagonal():
    head = FactorHead(1, sg.Chain(3))
    with torch.no_grad():
        head.linear.bias.fill_(1e6)
    pivots = head(torch.zeros(1)).factor[torch.tensor([0, 2, 4])]
    assert torch.allclose(pivots.log(), torch.tensor(5.0))


def test_a_head_refuses_a_topology_that_is_not_factor_free():
    with pytest.raises(sg.PatternError, match=r"Grid\(3, 3\) is not factor-free"):
        FactorHead(5, sg.Grid(3, 3))


def test_weights_of_another_topology_do_not_load():
    with pytest.raises(sg.PatternError, match="another topology"):
        FactorHead(5, sg.Chain(4)).set_extra_state(FactorHead(5, sg.BlockChain(2, 2)).get_extra_state())
    FactorHead(5, sg.Chain(4)).load_state_dict(FactorHead(5, sg.Chain(4)).state_dict())
