"""Second moments, conditioning and marginals of the torch Gaussian: those of NumPy, and differentiable."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import sparseggm as sg
from sparseggm.gaussian import conditioning
from sparseggm.torch import GaussianGraphicalModel
from tests.torch.gaussians import KINDS, Kind, dense_precision, gaussian, in_numpy
from tests.torch.problems import gradgradcheck, vectors

CLOSE = {"rtol": 1e-11, "atol": 1e-12}  # float64, n ≤ 9, condition numbers below 100

every_kind = pytest.mark.parametrize("kind", KINDS, ids=str)
PAIRS = [[0, 2], [1, 1], [2, 0], [2, 1]]


@every_kind
def test_second_moments_are_those_of_numpy_and_of_the_dense_inverse(kind):
    q = kind.example(2)
    g, covariance = in_numpy(q), np.linalg.inv(dense_precision(q))
    assert np.allclose(q.covariance_on(PAIRS).detach(), g.covariance_on(PAIRS), **CLOSE)
    assert np.allclose(q.covariance_on(PAIRS).detach(), covariance[:, [0, 1, 2, 2], [2, 1, 0, 1]], **CLOSE)
    assert np.allclose(q.correlation_on(PAIRS).detach(), g.correlation_on(PAIRS), **CLOSE)
    assert np.allclose(q.trace_covariance().detach(), g.trace_covariance(), **CLOSE)
    assert np.allclose(q.covariance_matrix.detach(), covariance, **CLOSE)
    assert np.allclose(q.precision_matrix.detach(), dense_precision(q), **CLOSE)
    assert np.allclose(q.precision.detach(), g.precision, **CLOSE)
    assert np.allclose(q.information_vector.detach(), g.information_vector, **CLOSE)
    assert q.graph == g.graph


@every_kind
def test_conditioning_is_that_of_numpy(kind):
    q = kind.example(2)
    nodes, values = [2, 0], vectors(2, 3, 2).detach()
    conditional, expected = q.condition(nodes, values), in_numpy(q).condition(nodes, values.numpy())
    assert conditional.topology == expected.topology
    assert np.allclose(conditional.loc.detach(), expected.loc, **CLOSE)
    assert np.allclose(conditional.variance.detach()[0], expected.variance[0], **CLOSE)


@every_kind
def test_a_marginal_is_that_of_numpy(kind):
    q = kind.example(2)
    marginal, expected = q.marginal([2, 0]), in_numpy(q).marginal([2, 0])
    assert marginal.topology == expected.topology
    assert np.allclose(marginal.loc.detach(), expected.loc, **CLOSE)
    assert np.allclose(marginal.factor.detach(), expected.factor, **CLOSE)


@every_kind
def test_densities_factor_into_marginal_and_conditional(kind):
    """log p(x) = log p(x_B) + log p(x_A | x_B)."""
    q, x = kind.example(2), vectors(kind.topology.n, 2).detach()
    nodes, rest = [2, 0], [i for i in range(kind.topology.n) if i not in (0, 2)]
    parts = q.marginal(nodes).log_prob(x[:, nodes]) + q.condition(nodes, x[:, nodes]).log_prob(x[:, rest])
    assert torch.allclose(q.log_prob(x), parts, **CLOSE)


QUESTIONS = {
    "variance": lambda q: q.variance,
    "covariance_on": lambda q: q.covariance_on(PAIRS),
    "correlation_on": lambda q: q.correlation_on(PAIRS),
    "trace_covariance": lambda q: q.trace_covariance(),
    "entropy": lambda q: q.entropy(),
    "precision_matrix": lambda q: q.precision_matrix,
    "covariance_matrix": lambda q: q.covariance_matrix,
    "information": lambda q: q.information_vector,
    "condition": lambda q: (c := q.condition([2, 0], [[0.5, 1.0]])).loc.sum(-1) + c.variance.sum(-1),
    "marginal": lambda q: (m := q.marginal([2, 0])).loc.sum(-1) + m.variance.sum(-1),
}


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize(
    "kind",
    [Kind(sg.ExtendedGrid(2, 2), "factor"), Kind(sg.Cycle(4), "factor"), Kind(sg.Grid(2, 2), "precision")],
    ids=str,
)
def test_answers_have_derivatives_of_first_and_second_order(kind, question):
    def answer(loc, values):
        return QUESTIONS[question](kind.make(loc, values, validate_args=False))

    parameters = (vectors(4), kind.values(2))
    assert torch.autograd.gradcheck(answer, parameters)
    assert gradgradcheck(answer, parameters)


def test_conditioning_has_gradients_with_respect_to_the_values():
    q = gaussian(sg.Chain(4))
    assert torch.autograd.gradcheck(lambda values: q.condition([1], values).loc, (vectors(1, 3),))


def test_an_information_vector_gives_the_mean():
    kind = Kind(sg.Grid(3, 3), "precision")
    q = kind.example(2)
    again = GaussianGraphicalModel.from_information(q.information_vector, precision=q.precision, topology=q.topology)
    assert torch.allclose(again.loc, q.loc, **CLOSE)
    assert again.graph == q.graph == kind.topology


@pytest.mark.parametrize(
    ("ask", "error", "message"),
    [
        (lambda q: q.condition([0, 1, 2, 3], torch.zeros(4)), sg.PatternError, "all 4 nodes are given"),
        (lambda q: q.condition([0, 0], torch.zeros(2)), sg.PatternError, "each node must be given once"),
        (lambda q: q.condition([0, 7], torch.zeros(2)), sg.PatternError, "nodes must be in 0 … 3"),
        (lambda q: q.condition([0, 1], torch.zeros(3)), sg.ShapeError, r"values must end in 2, the nodes, got shape"),
        (lambda q: q.condition([0], [float("nan")]), sg.NonFiniteError, "condition: values must be finite, got nan"),
        (lambda q: q.marginal([]), sg.PatternError, "needs at least one node"),
        (lambda q: q.covariance_on([[0, 4]]), sg.PatternError, "nodes must be in 0 … 3"),
        (lambda q: q.covariance_on([0, 1]), sg.PatternError, r"edges must be \(m, 2\) integers"),
        (lambda q: q.whiten(torch.zeros(3)), sg.ShapeError, r"whiten: d must end in 4, the nodes of Chain\(n=4\)"),
        (lambda q: q.colorize(torch.zeros(3)), sg.ShapeError, r"colorize: eps must end in 4"),
    ],
)
def test_questions_that_make_no_sense_are_refused(ask, error, message):
    with pytest.raises(error, match=message):
        ask(gaussian(sg.Chain(4)))


def test_a_large_marginal_asks_to_be_forced(monkeypatch):
    monkeypatch.setattr(conditioning, "MARGINAL_LIMIT", 2)
    q = gaussian(sg.Chain(4))
    with pytest.raises(sg.PatternError, match="or force=True if you mean it"):
        q.marginal([0, 3])
    assert q.marginal([0, 3], force=True).event_shape == (2,)


@pytest.mark.parametrize("name", ["precision_matrix", "covariance_matrix"])
def test_a_dense_matrix_beyond_the_limit_is_refused(name):
    n = 20_001
    q = GaussianGraphicalModel(torch.zeros(n), factor=torch.ones(n), topology=sg.Diagonal(n))
    with pytest.raises(sg.ShapeError, match=rf"{name}: 20001 nodes would take 1\.6 GB a matrix\. Use"):
        getattr(q, name)


def test_a_marginal_that_is_singular_in_float32_names_the_node():
    """P = L Lᵀ of a chain whose pivots are 1e-5 beside couplings of one: 1e-10 is lost in float32."""
    lower = torch.tensor([1.0, -1.0, 1e-5, -1.0, 1.0])
    q = GaussianGraphicalModel(torch.zeros(3), factor=lower, topology=sg.Chain(3))
    with pytest.raises(
        torch.linalg.LinAlgError, match=r"marginal: P is not .* at node 1 of Chain\(n=3\)\. Use float64"
    ):
        q.marginal([2])
