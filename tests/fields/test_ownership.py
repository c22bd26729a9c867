"""Whose memory it is: what a caller writes into an array or a tensor changes no model that was made from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

import sparseggm as sg
from sparseggm import fields
from sparseggm.torch import GaussianGraphicalModel as TorchGaussian
from sparseggm.torch import fields as torch_fields

CHAIN = sg.Chain(3)
LAPLACIAN = CHAIN.pack(np.array([[1.0, -1.0, 0.0], [-1.0, 2.0, -1.0], [0.0, -1.0, 1.0]]))
IDENTITY = CHAIN.pack(np.eye(3))
POINT = np.array([0.0, 1.0, 3.0])
CORNERS = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])


def gaussian(kind: str = "arrays") -> Any:
    if kind == "tensors":
        return TorchGaussian(torch.zeros(3).double(), factor=torch.ones(5).double(), topology=CHAIN)
    return sg.GaussianGraphicalModel(np.zeros(3), factor=np.ones(5), topology=CHAIN)


@dataclass(frozen=True)
class Model:
    """How a model is made of the arrays of a caller, and what it answers."""

    given: tuple[Any, ...]
    make: Callable[..., Any]
    ask: Callable[[Any], list[Any]]


def numbers(answer: Any) -> Any:
    return answer.numpy().copy() if isinstance(answer, torch.Tensor) else np.array(answer)


def of_constrained(c: Any) -> list[Any]:
    answers = [c.mean, c.values, c.matrix, c.log_density, c.project(POINT), c.log_prob(c.mean)]
    return [*answers, c.observe([0], [1.0], 1.0).mean]


def of_intrinsic(i: Any) -> list[Any]:
    return [i.precision, i.log_prob(POINT), i.log_evidence([0, 1, 2], POINT, 1.0)]


def of_likelihood(likelihood: Any) -> list[Any]:
    return list(likelihood(POINT / 4))


ROW, ONE = np.ones((1, 3)), np.ones(1)
MODELS = {
    "GaussianGraphicalModel": Model(
        (POINT, np.ones(5)),
        lambda loc, factor: sg.GaussianGraphicalModel(loc, factor=factor, topology=CHAIN),
        lambda g: [g.loc, g.factor, g.log_prob(np.zeros(3))],
    ),
    "from_precision": Model(
        (POINT, LAPLACIAN + IDENTITY),
        lambda loc, p: sg.GaussianGraphicalModel.from_precision(loc, precision=p, topology=CHAIN),
        lambda g: [g.loc, g.precision, g.factor],
    ),
    "Potential": Model(
        (POINT, LAPLACIAN),
        lambda h, p: sg.Potential(h, precision=p, topology=CHAIN),
        lambda potential: [potential.information, gaussian().product(potential).loc],
    ),
    "constrain": Model((ROW, ONE), lambda a, e: fields.constrain(gaussian(), a, e), of_constrained),
    "constrain a tensor": Model(
        (torch.tensor(ROW), torch.tensor(ONE)), lambda a, e: fields.constrain(gaussian("tensors"), a, e), of_constrained
    ),
    "IntrinsicGaussian": Model((LAPLACIAN,), lambda p: fields.IntrinsicGaussian(p, topology=CHAIN), of_intrinsic),
    "IntrinsicGaussian of a tensor": Model(
        (torch.tensor(LAPLACIAN),), lambda p: torch_fields.IntrinsicGaussian(p, topology=CHAIN), of_intrinsic
    ),
    "Poisson": Model((POINT, 1.0 + POINT), fields.Poisson, of_likelihood),
    "Binomial": Model((POINT, 1.0 + POINT), fields.Binomial, of_likelihood),
    "NegativeBinomial": Model((POINT, 1.0 + POINT, 2.0 + POINT), fields.NegativeBinomial, of_likelihood),
    "Normal": Model((POINT, 1.0 + POINT), fields.Normal, of_likelihood),
    "local_level": Model((1.0 + POINT,), fields.local_level, lambda part: [part.variances]),
    "local_linear_trend": Model((1.0 + POINT, ONE), fields.local_linear_trend, lambda part: [part.variances]),
    "seasonal": Model((1.0 + POINT,), lambda v: fields.seasonal(4, v), lambda part: [part.variances]),
    "LinearObservation": Model(
        (ROW,), lambda a: fields.LinearObservation(CHAIN, a), lambda o: [o.posterior(gaussian(), [1.0], 1.0).loc]
    ),
    "Mesh": Model(
        (CORNERS, np.array([[0, 1, 2], [1, 3, 2]])),
        fields.Mesh,
        lambda mesh: [mesh.points, mesh.triangles, fields.Matern(mesh).precision(range=1.0, sd=1.0)],
    ),
    "Lattice": Model(
        (np.array([1.0, 2.0]),),
        lambda spacing: fields.Lattice((3, 3), spacing),
        lambda lattice: [fields.Matern(lattice).precision(range=1.0, sd=1.0)],
    ),
    "CAR": Model(
        (np.array([1.0, 2.0]),), lambda w: fields.CAR(CHAIN, w), lambda car: [car.precision(tau=1.0, rho=0.5)]
    ),
}


def window(array: Any) -> Any:
    """The same memory, which the view itself does not let be written."""
    return np.lib.stride_tricks.as_strided(array, writeable=False)


@pytest.mark.parametrize("seen_as", [lambda array: array, window], ids=["itself", "window"])
@pytest.mark.parametrize("name", MODELS)
def test_a_model_does_not_change_with_what_it_was_made_from(name: str, seen_as: Callable[[Any], Any]) -> None:
    model = MODELS[name]
    given = [array.clone() if isinstance(array, torch.Tensor) else array.copy() for array in model.given]
    made = model.make(*(array if isinstance(array, torch.Tensor) else seen_as(array) for array in given))
    before = [numbers(answer) for answer in model.ask(made)]
    for array in given:
        array[...] = 2
    for now, then in zip(model.ask(made), before, strict=True):
        np.testing.assert_array_equal(numbers(now), then)


def test_what_is_known_of_a_gaussian_cannot_be_written_into() -> None:
    constrained, of_some = fields.constrain(gaussian(), ROW, ONE), gaussian().marginal([2, 0])
    tensors = gaussian("tensors").marginal([2, 0])
    given = gaussian().condition([1], [0.0]), gaussian("tensors").condition([1], [0.0])
    arrays = [constrained.mean, constrained.matrix, constrained.values, of_some.nodes, tensors.nodes]
    for array in (*arrays, *(g.nodes for g in given)):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0


def test_a_parameter_that_an_optimiser_moves_moves_the_likelihood() -> None:
    size = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    likelihood = fields.NegativeBinomial(POINT, size)
    before = likelihood(torch.tensor(POINT)).log_prob
    with torch.no_grad():
        size += 1.0
    now = likelihood(torch.tensor(POINT)).log_prob
    expected = fields.NegativeBinomial(POINT, size.detach().numpy())(POINT).log_prob
    assert not torch.equal(before, now)
    np.testing.assert_allclose(now.detach(), expected, rtol=1e-15)
