"""Products of Gaussians and potentials in torch: those of NumPy, differentiable, compiled and under `torch.func`."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from torch.func import vmap

import sparseggm as sg
from sparseggm import parametrize
from sparseggm.torch import GaussianGraphicalModel, NotPositiveDefiniteError, Potential, PotentialHead, PrecisionHead
from tests.torch.gaussians import KINDS, Kind, in_numpy
from tests.torch.problems import gradgradcheck, vectors

CLOSE = {"rtol": 1e-11, "atol": 1e-12}  # float64, n ≤ 9, condition numbers below 100

every_kind = pytest.mark.parametrize("kind", KINDS, ids=str)


def others(topology: sg.Topology) -> list[sg.Topology]:
    """On the same nodes: the same graph, a smaller one, and two that may cross it, one in an order of its own."""
    n = topology.n
    return [topology, sg.Diagonal(n), sg.Star(n), sg.Graph(n, sg.Chain(n).edges, order=range(n)[::-1])]


def parameters(topology: sg.Topology, *batch: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """h, and inputs of Λ."""
    size = parametrize.semidefinite_edge.num_inputs(topology)
    return vectors(topology.n, *batch, seed=seed), vectors(size, *batch, seed=seed + 1)


def potential(topology: sg.Topology, information: torch.Tensor, inputs: torch.Tensor) -> Potential:
    return Potential(information, precision=parametrize.semidefinite_edge(topology, inputs), topology=topology)


def potential_in_numpy(of: Potential) -> sg.Potential:
    return sg.Potential(of.information.detach().numpy(), precision=of.precision.detach().numpy(), topology=of.topology)


def assert_same(found: GaussianGraphicalModel, expected: sg.GaussianGraphicalModel) -> None:
    assert found.topology == expected.topology
    assert found.factor_pattern is expected.factor_pattern
    assert tuple(found.batch_shape) == expected.batch_shape
    np.testing.assert_allclose(found.loc.detach(), np.broadcast_to(expected.loc, found.loc.shape), **CLOSE)
    np.testing.assert_allclose(
        found.factor.detach(), np.broadcast_to(expected.factor, tuple(found.factor.shape)), **CLOSE
    )


@every_kind
def test_products_are_those_of_numpy(kind):
    q = kind.example(3)
    for topology in others(kind.topology):
        one = potential(topology, *parameters(topology, 2, 1))
        two = potential(topology, *parameters(topology, seed=5))
        assert_same(q.product(one), in_numpy(q).product(potential_in_numpy(one)))
        both, expected = one.product(two), potential_in_numpy(one).product(potential_in_numpy(two))
        np.testing.assert_array_equal(both.information.detach(), expected.information)
        np.testing.assert_array_equal(both.precision.detach(), expected.precision)
        assert both.topology == expected.topology
        p = Kind(topology, "precision").example(2, 1)
        assert_same(q.product(p), in_numpy(q).product(in_numpy(p)))


@every_kind
def test_a_diagonal_likelihood_is_an_observation(kind):
    q, n = kind.example(2), kind.topology.n
    y, variance = torch.linspace(-1.0, 2.0, n).double(), torch.linspace(0.5, 2.0, n).double()
    likelihood = Potential(y / variance, precision=1 / variance, topology=sg.Diagonal(n))
    assert_same(q.product(likelihood), in_numpy(q).observe(np.arange(n), y.numpy(), variance.numpy()))


PAIRS = [
    (Kind(sg.Chain(4), "factor"), sg.Chain(4)),
    (Kind(sg.Grid(2, 2), "precision"), sg.Chain(4, order=[3, 1, 0, 2])),
    (Kind(sg.Cycle(4), "factor"), sg.Star(4)),
    (Kind(sg.ExtendedGrid(2, 2), "factor"), sg.Diagonal(4)),
]
every_pair = pytest.mark.parametrize(("kind", "topology"), PAIRS, ids=str)


@every_pair
def test_a_product_has_derivatives_of_first_and_second_order(kind, topology):
    def answer(loc, values, information, inputs):
        q = kind.make(loc, values, validate_args=False).product(potential(topology, information, inputs))
        return q.loc.sum(-1) + q.variance.sum(-1) + q.entropy()

    arguments = vectors(4), kind.values(2), *parameters(topology)
    assert torch.autograd.gradcheck(answer, arguments)
    assert gradgradcheck(answer, arguments)


def test_a_product_of_gaussians_has_derivatives_of_first_and_second_order():
    one, two = Kind(sg.Chain(4), "factor"), Kind(sg.Grid(2, 2), "precision")

    def answer(loc, values, other_loc, other_values):
        q = one.make(loc, values, validate_args=False).product(two.make(other_loc, other_values, validate_args=False))
        return q.loc.sum(-1) + q.variance.sum(-1)

    arguments = vectors(4), one.values(2), vectors(4, seed=1), two.values(seed=2)
    assert torch.autograd.gradcheck(answer, arguments)
    assert gradgradcheck(answer, arguments)


def test_a_product_is_that_of_each_element_under_vmap():
    chain = sg.Chain(4)
    q, (information, inputs) = Kind(chain, "factor").example(), parameters(chain, 3)

    def mean(h, x):
        return q.product(potential(chain, h, x)).loc

    torch.testing.assert_close(vmap(mean)(information, inputs), mean(information, inputs), rtol=1e-13, atol=1e-13)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # torch's own, where a graph breaks
@pytest.mark.parametrize("fullgraph", [True, False])
def test_a_compiled_product_is_that_of_eager(fullgraph):
    """On one graph whole; on two the graph breaks where they are united, as docs/limits.md says."""
    torch._dynamo.reset()
    grid = sg.Grid(2, 3)
    other = grid if fullgraph else sg.Chain(6)
    prior, likelihood = PrecisionHead(3, grid), PotentialHead(3, other)
    features = torch.linspace(-1.0, 1.0, 6).reshape(2, 3)
    for head in (prior, likelihood):
        torch.nn.init.normal_(head.layer.weight, generator=torch.Generator().manual_seed(0))

    def loss(features):
        q = prior(features).product(likelihood(features))
        return q.loc.square().sum() + q.variance.sum()

    found = []
    for function in (loss, torch.compile(loss, fullgraph=fullgraph, backend="aot_eager")):
        likelihood.zero_grad()
        value = function(features)
        value.backward()
        found.append((value.detach(), *(parameter.grad.clone() for parameter in likelihood.parameters())))
    torch.testing.assert_close(*found)


def test_dtypes_promote_to_the_wider():
    diagonal = sg.Diagonal(3)
    q = GaussianGraphicalModel(torch.zeros(3), factor=torch.ones(3), topology=diagonal)
    narrow = Potential(torch.ones(3), precision=torch.ones(3), topology=diagonal)
    wide = Potential(np.full(3, 0.1), precision=[1, 1, 1], topology=diagonal)
    assert q.product(narrow).loc.dtype == torch.float32
    assert q.product(wide).loc.dtype == narrow.product(wide).information.dtype == torch.float64
    half = Potential(torch.ones(3, dtype=torch.bfloat16), precision=torch.ones(3), topology=diagonal)
    assert half.information.dtype == torch.float32


def test_a_potential_is_copied_and_pickled_and_shares_its_tensors():
    information = torch.ones(3)
    one = Potential(information, precision=torch.ones(5), topology=sg.Chain(3))
    assert one.information is information
    for again in (pickle.loads(pickle.dumps(one)), copy.deepcopy(one)):
        assert torch.equal(again.precision, one.precision)
        assert again.topology == one.topology
    assert repr(one) == "Potential(Chain(n=3), batch_shape=(), dtype=torch.float32)"


def test_an_indefinite_sum_names_the_node():
    q = GaussianGraphicalModel(torch.zeros(3), factor=torch.ones(5), topology=sg.Chain(3))
    bad = Potential(torch.zeros(3), precision=[-9.0, 0.0, 0.0], topology=sg.Diagonal(3))
    with pytest.raises(NotPositiveDefiniteError, match=r"^product: not positive definite: pivot -8 at node 0 of Chain"):
        q.product(bad)


def test_a_sum_beyond_the_dtype_says_so():
    huge = torch.full((3,), 3e38)
    q = GaussianGraphicalModel.from_precision(torch.zeros(3), precision=huge, topology=sg.Diagonal(3))
    likelihood = Potential(torch.zeros(3), precision=huge, topology=sg.Diagonal(3))
    with pytest.raises(sg.NonFiniteError, match=r"^product: the arguments are finite but the result overflows float32"):
        q.product(likelihood)
    with pytest.raises(sg.NonFiniteError, match=r"^product: precision must be finite, got inf at node 0 of Diagonal"):
        likelihood.product(likelihood)


CHAIN = sg.Chain(3)


def of_chain(*batch: int) -> Potential:
    return Potential(torch.zeros(*batch, 3), precision=torch.ones(5), topology=CHAIN)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda q: Potential(torch.zeros(4), precision=torch.ones(5), topology=CHAIN),
            sg.ShapeError,
            "information must end in 3 and precision in 5, got shapes",
        ),
        (
            lambda q: Potential(torch.zeros(2, 3), precision=torch.ones(3, 5), topology=CHAIN),
            sg.ShapeError,
            r"batch axes must broadcast, got \(2,\) of information and \(3,\) of precision",
        ),
        (
            lambda q: Potential([0, float("nan"), 0], precision=torch.ones(5), topology=CHAIN),
            sg.NonFiniteError,
            r"information must be finite, got nan at node 1 of Chain\(n=3\)",
        ),
        (
            lambda q: Potential(torch.zeros(3), precision=[1, 1, float("inf"), 1, 1], topology=CHAIN),
            sg.NonFiniteError,
            r"precision must be finite, got inf at node 1 of Chain\(n=3\)",
        ),
        (
            lambda q: Potential(torch.zeros(3, dtype=torch.complex64), precision=torch.ones(5), topology=CHAIN),
            sg.DTypeError,
            "information must hold float32, float64 or integers",
        ),
        (
            lambda q: Potential(torch.zeros(3), precision=torch.ones(5), topology=CHAIN.precision_pattern),
            sg.PatternError,
            "topology must be a Topology",
        ),
        (lambda q: q.product(1.0), TypeError, "other must be a sparseggm.torch.GaussianGraphicalModel or .* got float"),
        (lambda q: q.product(torch.zeros(3)), TypeError, r"other must be .* got torch\.Tensor"),
        (lambda q: q.product(in_numpy(q)), TypeError, "got sparseggm.gaussian.model.GaussianGraphicalModel"),
        (lambda q: q.product(potential_in_numpy(of_chain())), TypeError, "got sparseggm.gaussian.potentials.Potential"),
        (lambda q: in_numpy(q).product(of_chain()), TypeError, "got sparseggm.torch.potentials.Potential"),
        (lambda q: of_chain().product(q), TypeError, r"other must be a sparseggm\.torch\.Potential, got .*Gaussian"),
        (
            lambda q: q.product(Potential(torch.zeros(4), precision=torch.ones(7), topology=sg.Chain(4))),
            sg.ShapeError,
            r"other must be on 3 nodes, as Chain\(n=3\), got Potential\(Chain\(n=4\)",
        ),
        (lambda q: q.product(of_chain(3)), sg.ShapeError, r"batch axes must broadcast, got \(2,\) of this and \(3,\)"),
        (
            lambda q: of_chain(2).product(of_chain(3)),
            sg.ShapeError,
            r"batch axes must broadcast, got \(2,\) of this and \(3,\) of other",
        ),
        (
            lambda q: q.product(Potential(torch.zeros(3, device="meta"), precision=torch.ones(5), topology=CHAIN)),
            ValueError,
            "must be on the CPU",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(call, error, message):
    q = GaussianGraphicalModel(torch.zeros(2, 3), factor=torch.ones(5), topology=CHAIN)
    with pytest.raises(error, match=rf"^(product|Potential): .*{message}"):
        call(q)
