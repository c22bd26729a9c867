"""The distribution against the NumPy Gaussian and torch's dense MultivariateNormal, and torch's protocol; the heads."""

from __future__ import annotations

import pickle
import re

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributions import (
    Categorical,
    Independent,
    MixtureSameFamily,
    Normal,
    SigmoidTransform,
    TransformedDistribution,
    kl_divergence,
)

import sparseggm as sg
from sparseggm.torch import FactorHead, GaussianGraphicalModel, sample_and_kl
from tests.torch.gaussians import KINDS, Kind, dense, gaussian, in_numpy
from tests.torch.problems import TOPOLOGIES, factor, vectors

CLOSE = {"rtol": 1e-11, "atol": 1e-11}  # float64, n ≤ 9, condition numbers below 100

every_kind = pytest.mark.parametrize("kind", KINDS, ids=str)
every_topology = pytest.mark.parametrize("topology", TOPOLOGIES, ids=str)


@every_kind
def test_agrees_with_the_dense_normal(kind):
    q, p = kind.example(2), dense(kind.example(2))
    x = vectors(kind.topology.n, 3, 2, seed=4).detach()
    assert torch.allclose(q.log_prob(x), p.log_prob(x), **CLOSE)
    assert torch.allclose(q.entropy(), p.entropy(), **CLOSE)
    assert torch.allclose(q.variance, p.variance, **CLOSE)
    assert torch.allclose(q.stddev, p.stddev, **CLOSE)
    assert torch.equal(q.mean, p.mean)
    assert torch.equal(q.mode, p.mode)


@every_kind
def test_agrees_with_the_numpy_gaussian(kind):
    q = kind.example(2)
    g, noise = in_numpy(q), vectors(kind.topology.n, 3, 2, seed=7).detach()
    z, kl = sample_and_kl(q, noise=noise)
    if kind.made_from == "factor":  # to the bit; from P, the twin's factor is that of P = L Lᵀ again
        assert np.array_equal(z.detach().numpy(), g.loc + g.colorize(noise.numpy()))
        assert np.array_equal(q.whiten(noise).detach().numpy(), g.whiten(noise.numpy()))
    assert np.allclose(z.detach(), g.loc + g.colorize(noise.numpy()), **CLOSE)
    assert kl.detach().numpy() == pytest.approx(g.kl_divergence(), rel=1e-13)
    assert np.allclose(q.log_prob(z.detach()).detach(), g.log_prob(z.detach().numpy()), **CLOSE)


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


@every_kind
def test_expand_copies_nothing(kind):
    q = kind.example()
    wide = q.expand((7, 2))
    n = kind.topology.n
    assert wide.batch_shape == (7, 2)
    assert wide.factor.data_ptr() == q.factor.data_ptr()
    assert wide.loc.data_ptr() == q.loc.data_ptr()
    assert wide.graph == q.graph
    assert wide.rsample().shape == (7, 2, n)
    assert wide.entropy().shape == wide.log_prob(torch.zeros(n, dtype=torch.float64)).shape == (7, 2)
    assert wide.trace_covariance().shape == wide.covariance_on([]).shape[:-1] == (7, 2)
    assert wide.precision_matrix.shape == wide.covariance_matrix.shape == (7, 2, n, n)
    assert torch.equal(wide.variance, q.variance.expand(7, 2, n))


def test_is_pickled_and_printed():
    q = GaussianGraphicalModel(torch.zeros(4), factor=torch.ones(2, 7), topology=sg.Chain(4))
    again = pickle.loads(pickle.dumps(q.expand((3, 2))))
    assert repr(again) == "GaussianGraphicalModel(Chain(n=4), batch_shape=(3, 2), dtype=torch.float32)"
    assert torch.equal(again.variance[0], q.variance)


# ---------------------------------------------------------------------- inside torch's own distributions


def test_works_under_independent():
    q = Independent(gaussian(sg.Chain(4), 3, 2), 1)
    assert q.event_shape == (2, 4)
    assert q.log_prob(q.rsample()).shape == (3,)
    p = Independent(Kind(sg.Grid(2, 2), "precision").example(3, 2), 1)
    assert torch.allclose(kl_divergence(q, p), kl_divergence(q.base_dist, p.base_dist).sum(-1), **CLOSE)


@every_kind
def test_works_under_transformed_distribution(kind):
    x = torch.rand(3, 2, kind.topology.n, dtype=torch.float64)
    logit_normal, expected = (
        TransformedDistribution(base, SigmoidTransform()) for base in (kind.example(2), dense(kind.example(2)))
    )
    assert logit_normal.event_shape == kind.example(2).event_shape
    assert torch.allclose(logit_normal.log_prob(x), expected.log_prob(x), **CLOSE)
    assert ((sample := logit_normal.rsample((5,))) > 0).all()
    assert sample.requires_grad


@every_kind
def test_works_under_mixture_same_family(kind):
    weights, x = Categorical(torch.tensor([0.3, 0.7], dtype=torch.float64)), vectors(kind.topology.n, 5).detach()
    mixture, expected = (MixtureSameFamily(weights, parts) for parts in (kind.example(2), dense(kind.example(2))))
    assert torch.allclose(mixture.log_prob(x), expected.log_prob(x), **CLOSE)
    assert torch.allclose(mixture.mean, expected.mean, **CLOSE)
    assert torch.allclose(mixture.variance, expected.variance, **CLOSE)
    assert mixture.sample((3,)).shape == (3, kind.topology.n)


# ---------------------------------------------------------------------- what is refused


def nan_at(shape: tuple[int, ...], *place: int) -> torch.Tensor:
    values = torch.ones(shape)
    values[place] = float("nan")
    return values


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"loc": torch.zeros(5)},
            sg.ShapeError,
            r"on Chain\(n=4\) loc must end in 4 and factor in 7, got shapes \(5,\)",
        ),
        ({"factor": torch.ones(8)}, sg.ShapeError, r"got shapes \(4,\) and \(8,\)"),
        (
            {"loc": torch.zeros(2, 4), "factor": torch.ones(3, 7)},
            sg.ShapeError,
            r"batch axes must broadcast, got \(2,\) of loc and \(3,\) of factor",
        ),
        (
            {"factor": -torch.ones(7)},
            sg.NonPositiveError,
            r"diagonal of factor must be positive, got -1 at node 0 of Chain\(n=4\)\.",
        ),
        (
            {"factor": nan_at((2, 7), 1, 3)},
            sg.NonFiniteError,
            r"factor must be finite, got nan at node 1 of Chain\(n=4\) and node 2 of .*, batch element \(1,\)",
        ),
        (
            {"loc": nan_at((3, 4), 2, 1)},
            sg.NonFiniteError,
            r"loc must be finite, got nan at node 1 of Chain\(n=4\), batch element \(2,\)",
        ),
    ],
)
def test_bad_parameters_are_named(change, error, message):
    arguments = {"loc": torch.zeros(4), "factor": torch.ones(7), **change}
    with pytest.raises(error, match=message):
        GaussianGraphicalModel(**arguments, topology=sg.Chain(4), validate_args=True)


@pytest.mark.parametrize(
    ("precision", "error", "message"),
    [
        (torch.ones(6), sg.ShapeError, r"from_precision: on Chain\(n=4\) loc must end in 4 and precision in 7, got"),
        (nan_at((7,), 2), sg.NonFiniteError, r"from_precision: precision must be finite, got nan at node 1 of Chain"),
    ],
)
def test_a_bad_precision_is_named(precision, error, message):
    with pytest.raises(error, match=message):
        GaussianGraphicalModel.from_precision(
            torch.zeros(4), precision=precision, topology=sg.Chain(4), validate_args=True
        )


def test_a_bad_pivot_is_named_by_its_place_on_the_grid():
    topology = sg.Grid(3, 3)
    lower = factor(topology.factor_pattern, 2).detach()
    lower[1, int(topology.factor_pattern.diagonal[4])] = 0.0
    node = int(topology.order[4])
    place = re.escape(f"got 0 at node {node} (row {node // 3}, column {node % 3} of Grid(3, 3)), batch element (1,)")
    with pytest.raises(sg.NonPositiveError, match=place):
        GaussianGraphicalModel(torch.zeros(9).double(), factor=lower, topology=topology, validate_args=True)


def test_a_precision_that_is_not_positive_definite_is_named_by_batch_element_and_node():
    topology = sg.Grid(3, 3)
    precision = Kind(topology, "precision").values(3).detach()
    precision[1, int(topology.node_positions[5])] = -1.0
    with pytest.raises(torch.linalg.LinAlgError) as caught:
        GaussianGraphicalModel.from_precision(torch.zeros(9).double(), precision=precision, topology=topology)
    failure = caught.value
    assert isinstance(failure, sg.NotPositiveDefiniteError)
    assert isinstance(failure, sg.torch.NotPositiveDefiniteError)
    assert failure.batch_index == (1,)
    assert topology.order[failure.column] == 5
    assert failure.pivot < 0
    assert re.search(
        r"GaussianGraphicalModel\.from_precision: .*\(row 1, column 2 of Grid\(3, 3\)\), batch", str(failure)
    )


def test_values_are_tested_as_they_are_loaded_whatever_validate_args():
    q = gaussian(sg.Chain(4), 2)
    for value in (float("nan"), float("inf")):
        x = torch.zeros(3, 2, 4, dtype=torch.float64)
        x[2, 1, 3] = value
        with pytest.raises(
            sg.NonFiniteError, match=rf"value must be finite, got {value} at node 3 of Chain.*, batch .*\(2, 1\)"
        ):
            q.log_prob(x)
    bad = GaussianGraphicalModel(nan_at((4,), 2), factor=torch.ones(7), topology=sg.Chain(4), validate_args=False)
    with pytest.raises(sg.NonFiniteError, match="rsample: loc must be finite, got nan at node 2"):
        bad.rsample()
    bad = GaussianGraphicalModel(torch.zeros(4), factor=-torch.ones(7), topology=sg.Chain(4), validate_args=False)
    with pytest.raises(sg.NonPositiveError, match="entropy: the diagonal of factor must be positive, got -1 at node 0"):
        bad.entropy()


@pytest.mark.parametrize("shape", [(), (5,), (3, 4, 5)])
def test_a_value_of_another_size_is_refused(shape):
    with pytest.raises(sg.ShapeError, match=r"log_prob: value must end in 4, the nodes of Chain\(n=4\), got shape"):
        gaussian(sg.Chain(4)).log_prob(torch.zeros(shape, dtype=torch.float64))


def test_a_value_whose_batch_does_not_fit_is_refused():
    with pytest.raises(sg.ShapeError, match="batch axes must broadcast"):
        gaussian(sg.Chain(4), 2).log_prob(torch.zeros(3, 4, dtype=torch.float64))


def test_tensors_elsewhere_are_refused_and_told_what_to_do():
    with FakeTensorMode():  # no accelerator is needed to test a message
        loc, lower = torch.empty(4, device="cuda"), torch.empty(7, device="cuda")
        with pytest.raises(ValueError, match=r"loc and factor must be on the CPU, got cuda:0 and cuda:0\. Move them"):
            GaussianGraphicalModel(loc, factor=lower, topology=sg.Chain(4))
        with pytest.raises(ValueError, match=r"loc and precision must be on the CPU, got cuda:0 and cpu"):
            GaussianGraphicalModel.from_precision(loc, precision=torch.empty(7), topology=sg.Chain(4))


def test_a_topology_is_needed():
    with pytest.raises(sg.PatternError, match="topology must be a Topology"):
        GaussianGraphicalModel(torch.zeros(4), factor=torch.ones(7), topology=sg.Chain(4).factor_pattern)


# ---------------------------------------------------------------------- under transforms and compilers


def everything(kind: Kind, loc: torch.Tensor, values: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    q = kind.make(loc, values, validate_args=True)
    standard = Independent(Normal(torch.zeros_like(loc), 1.0, validate_args=False), 1, validate_args=False)
    return q.log_prob(x), q.entropy(), q.variance, kl_divergence(q, standard), q.rsample((3,)) * 0.0


@pytest.mark.parametrize(
    ("kind", "backend"),
    [(Kind(sg.ExtendedGrid(2, 3), "factor"), "aot_eager"), (Kind(sg.Grid(3, 3), "precision"), "eager")],
    ids=str,
)
def test_compiles_without_breaks_and_without_validation(kind, backend):
    arguments = vectors(kind.topology.n), kind.values(2), vectors(kind.topology.n, 2, seed=1)
    expected = everything(kind, *arguments)  # the topology's patterns exist from here on
    found = torch.compile(everything, fullgraph=True, backend=backend)(kind, *arguments)
    for value, other in zip(found, expected, strict=True):
        assert torch.allclose(value, other, rtol=1e-14)
    bars, others = (torch.autograd.grad(sum(v.sum() for v in values), arguments) for values in (found, expected))
    for bar, other in zip(bars, others, strict=True):
        assert torch.allclose(bar, other, rtol=1e-13, atol=1e-13)


def test_validation_is_skipped_where_values_cannot_decide():
    q = GaussianGraphicalModel(
        torch.zeros(4, device="meta"), factor=torch.zeros(7, device="meta"), topology=sg.Chain(4), validate_args=True
    )
    assert q.log_prob(torch.zeros(3, 4, device="meta")).shape == (3,)

    def batch_shape(loc: torch.Tensor) -> torch.Tensor:
        made = GaussianGraphicalModel(loc, factor=torch.zeros(7), topology=sg.Chain(4), validate_args=True)
        return made.mean * 0.0

    assert torch.func.vmap(batch_shape)(torch.ones(3, 4)).shape == (3, 4)


# ---------------------------------------------------------------------- heads


@pytest.mark.parametrize("topology", [t for t in TOPOLOGIES if t.is_factor_free], ids=str)
def test_a_head_starts_at_unit_precision_and_learns(topology):
    head = FactorHead(5, topology)
    features = torch.randn(8, 5)
    q = head(features)
    assert torch.equal(q.variance, torch.ones(8, topology.n))
    z, kl = sample_and_kl(q)
    (z.square().sum() + kl.sum()).backward()
    assert (head.layer.weight.grad[topology.n :].abs().sum(1) > 0).all()


def test_a_head_bounds_its_log_diagonal():
    head = FactorHead(1, sg.Chain(3))
    with torch.no_grad():
        head.layer.bias.fill_(1e6)
    pivots = head(torch.zeros(1)).factor[torch.tensor([0, 2, 4])]
    assert torch.allclose(pivots.log(), torch.tensor(5.0))


def test_a_head_refuses_a_topology_that_is_not_factor_free():
    with pytest.raises(sg.PatternError, match=r"Grid\(3, 3\) is not factor-free"):
        FactorHead(5, sg.Grid(3, 3))


def test_weights_of_another_topology_do_not_load():
    with pytest.raises(sg.PatternError, match=r"for another topology than that of Chain\(n=4\)"):
        FactorHead(5, sg.Chain(4)).set_extra_state(FactorHead(5, sg.BlockChain(2, 2)).get_extra_state())
    FactorHead(5, sg.Chain(4)).load_state_dict(FactorHead(5, sg.Chain(4)).state_dict())


@pytest.mark.parametrize("validate", [True, False])
def test_what_is_made_of_a_gaussian_validates_as_it_does(validate: bool) -> None:
    chain = sg.Chain(3)
    q = GaussianGraphicalModel(torch.zeros(3), factor=torch.ones(5), topology=chain, validate_args=validate)
    for made in (q.condition([0], torch.ones(1)), q.marginal([0, 1]), q.expand((2,)), q.moved_to(torch.ones(3))):
        assert made._validate_args is validate


def test_correlation_on_says_its_name() -> None:
    q = GaussianGraphicalModel(torch.zeros(3), factor=torch.ones(5), topology=sg.Chain(3))
    with pytest.raises(sg.PatternError, match=r"^correlation_on: nodes must be in 0 … 2"):
        q.correlation_on([(0, 99)])
