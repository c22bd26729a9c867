"""The families on tensors: the numbers of NumPy, gradients against differences, and gradients alive at zero."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

import sparseggm as sg
import sparseggm.torch
from sparseggm import parametrize, spectral
from tests.positivity.test_families import FAMILIES, level

TOPOLOGIES = [sg.Diagonal(3), sg.Chain(2), sg.Chain(5), sg.ExtendedGrid(2, 3), sg.Grid(3, 3), sg.Star(4)]

every_family = pytest.mark.parametrize("name", FAMILIES)
every_topology = pytest.mark.parametrize("topology", TOPOLOGIES, ids=str)


@pytest.fixture(params=["dense", "sparse"])
def eigenvalues(request, monkeypatch):
    """Both ways to the largest eigenvalue, on graphs small enough for tests."""
    monkeypatch.setattr(spectral, "DENSE_NODES", 64 if request.param == "dense" else 0)


def inputs_of(name: str, topology: sg.Topology, *batch: int, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.standard_normal((*batch, FAMILIES[name].num_inputs(topology)))).requires_grad_()


@every_family
@every_topology
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.usefixtures("eigenvalues")
def test_tensors_give_the_numbers_of_arrays(name, topology, dtype):
    inputs = inputs_of(name, topology, 3, 2).detach().to(dtype)
    values, arrays = FAMILIES[name](topology, inputs), FAMILIES[name](topology, inputs.numpy())
    assert values.dtype == dtype
    # At most three exponentials, n + 6 roundings, and n² u of an eigenvalue, on either side.
    tolerance = level(3, topology.n + 6 + topology.n**2, str(arrays.dtype))
    np.testing.assert_allclose(values.numpy(), arrays, rtol=float(2 * tolerance), atol=0)
    assert FAMILIES[name](topology, inputs[:0]).shape == (0, 2, values.shape[-1])


@every_family
@every_topology
@pytest.mark.usefixtures("eigenvalues")
def test_gradients_agree_with_differences(name, topology):
    inputs = inputs_of(name, topology, 2)
    assert torch.autograd.gradcheck(lambda x: FAMILIES[name](topology, x), (inputs,))
    if name != "spectral" or spectral.DENSE_NODES:
        assert torch.autograd.gradgradcheck(lambda x: FAMILIES[name](topology, x), (inputs,))


@every_topology
@pytest.mark.usefixtures("eigenvalues")
def test_gradients_are_alive_at_zero(topology):
    """∂P_ij/∂w_ij is 1 (spectral: −1), ∂P_ii/∂w the subgradient 0, ∂P_ii/∂d is 1 (spectral: 2), ∂P_ii/∂s is 2."""
    n, m = topology.n, len(topology.edges)
    eye, none = np.eye(n), np.zeros((n, m))
    coupling = np.eye(m)
    for name, on_nodes, sign, trailing in (
        ("dominant", [eye], 1, 0),
        ("scaled", [eye, 2 * eye], 1, 0),
        ("edge", [eye], 1, m),
        ("spectral", [2 * eye], -1, 0),
    ):
        zeros = torch.zeros(FAMILIES[name].num_inputs(topology), dtype=torch.float64)
        jacobian = torch.autograd.functional.jacobian(lambda x, family=FAMILIES[name]: family(topology, x), zeros)
        assert jacobian.isfinite().all()
        nodes, edges = jacobian[topology.node_positions.copy()], jacobian[topology.edge_positions.copy()]
        np.testing.assert_array_equal(nodes, np.concatenate([*on_nodes, none, np.zeros((n, trailing))], axis=1))
        of_nodes = np.zeros((m, n * len(on_nodes)))
        expected = np.concatenate([of_nodes, sign * coupling, np.zeros((m, trailing))], axis=1)
        np.testing.assert_array_equal(edges, expected)


@every_family
def test_training_from_zero_moves_every_coupling(name):
    """A step down the gradient of tr(A P) − log det P, the negative log likelihood of second moments A, from P = I."""
    topology = sg.Grid(3, 3)
    pattern = topology.precision_pattern
    moments = torch.from_numpy(np.random.default_rng(0).standard_normal(pattern.nnz))
    inputs = torch.zeros(FAMILIES[name].num_inputs(topology), dtype=torch.float64, requires_grad=True)
    precision = FAMILIES[name](topology, inputs)
    factor = sparseggm.torch.ops.cholesky(pattern, precision)
    (precision @ moments - sparseggm.torch.ops.logdet(pattern.filled(), factor)).backward()
    couplings = inputs.grad[-12:] if name != "edge" else inputs.grad[9:21]
    assert (couplings != 0).all()


def test_zero_has_no_nan_in_float32_and_beyond_the_dense_size():
    topology = sg.Grid(9, 9)
    assert topology.n > spectral.DENSE_NODES
    inputs = torch.zeros(2, parametrize.spectral.num_inputs(topology), requires_grad=True)
    values = parametrize.spectral(topology, inputs)
    values.sum().backward()
    assert values.dtype == torch.float32
    np.testing.assert_array_equal(values.detach().sum(-1), [81.0, 81.0])
    np.testing.assert_array_equal(inputs.grad[:, 81:], -np.ones((2, 144)))


def test_a_large_graph_has_the_gradient_of_differences():
    topology = sg.Grid(9, 9)
    inputs = inputs_of("spectral", topology)
    assert torch.autograd.gradcheck(lambda x: parametrize.spectral(topology, x), (inputs,), fast_mode=True)


def test_a_second_derivative_that_is_not_there_says_so():
    topology = sg.Grid(9, 9)
    inputs = inputs_of("spectral", topology)
    (gradient,) = torch.autograd.grad(parametrize.spectral(topology, inputs).square().sum(), inputs, create_graph=True)
    with pytest.raises(NotImplementedError, match=re.escape("beyond 64 nodes it can be differentiated once")):
        gradient.square().sum().backward()


def test_the_operator_passes_the_checks_of_torch():
    pattern = sg.Chain(4).precision_pattern
    sparseggm.torch.spectral.largest_eigenvalue(pattern, torch.zeros(pattern.nnz))
    key = sparseggm.torch.operators.registration.key_of(pattern, "test")
    values = torch.tensor([0, 1.0, 0, 2.0, 0, -1.0, 0], dtype=torch.float64, requires_grad=True)
    operator = torch.ops.sparseggm.leading_eigenpair.default
    # Its vector has no derivative, which the check of AOT dispatch would ask for.
    torch.library.opcheck(operator, (key, values), test_utils=("test_schema", "test_autograd_registration"))
    torch.library.opcheck(operator, (key, values.detach()))


# ---------------------------------------------------------------------- second derivatives where eigenvalues coincide


def at_zero(name: str, topology: sg.Topology) -> torch.Tensor:
    return torch.zeros(FAMILIES[name].num_inputs(topology), dtype=torch.float64, requires_grad=True)


def hessian(name: str, topology: sg.Topology, inputs: torch.Tensor) -> torch.Tensor:
    """Of a weighted sum of the values of P."""
    weights = torch.linspace(1.0, 2.0, topology.precision_pattern.nnz, dtype=torch.float64)
    return torch.autograd.functional.hessian(lambda x: FAMILIES[name](topology, x) @ weights, inputs)


@every_family
@every_topology
def test_second_derivatives_at_zero_are_finite_and_symmetric(name, topology):
    """Every head starts there."""
    found = hessian(name, topology, at_zero(name, topology))
    assert found.isfinite().all()
    torch.testing.assert_close(found, found.mT, rtol=1e-14, atol=1e-14)  # sums of a few terms, in another order


@every_topology
def test_second_derivatives_of_the_spectral_family_at_zero_agree_with_central_differences(topology):
    """R λ_max(R) has one on each side; central differences take their mean, as the mean of the eigenvalues, 0, does."""
    inputs = at_zero("spectral", topology)
    assert torch.autograd.gradgradcheck(lambda x: parametrize.spectral(topology, x), (inputs,))
    couplings = slice(topology.n, None)
    assert (hessian("spectral", topology, inputs)[couplings, couplings] == 0).all()


@pytest.mark.parametrize("topology", [sg.Star(5), sg.Grid(3, 3), sg.Torus(3, 3), sg.Cycle(6)], ids=str)
def test_equal_couplings_whose_other_eigenvalues_coincide_have_second_derivatives(topology):
    """The largest eigenvalue of a connected graph with positive weights is simple."""
    inputs = torch.cat([torch.zeros(topology.n), torch.ones(len(topology.edges))]).double().requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: parametrize.spectral(topology, x), (inputs,))
    assert hessian("spectral", topology, inputs).isfinite().all()


def test_derivatives_of_third_order_are_those_of_a_simple_eigenvalue():
    topology = sg.Star(4)

    def gradient(x):
        return torch.autograd.grad(parametrize.spectral(topology, x).square().sum(), x, create_graph=True)

    inputs = torch.cat([torch.zeros(4), torch.ones(3)]).double().requires_grad_()  # eigenvalues √3, 0, 0, −√3
    assert torch.autograd.gradgradcheck(gradient, (inputs,))


def test_a_multiple_eigenvalue_has_the_derivatives_of_the_mean_of_its_copies():
    """Of two edges apart the eigenvalues are ± w₁ and ± w₂, here 1 and 1: (w₁ + w₂) / 2."""
    topology = sg.Graph(4, [(1, 0), (3, 2)])
    pattern = topology.precision_pattern
    values = torch.zeros(pattern.nnz, dtype=torch.float64)
    values[topology.edge_positions.copy()] = 1.0

    def top(x):
        return sparseggm.torch.spectral.largest_eigenvalue(pattern, x)

    gradient = torch.autograd.functional.jacobian(top, values)[topology.edge_positions.copy()]
    torch.testing.assert_close(gradient, torch.full((2,), 0.5, dtype=torch.float64))
    second = torch.autograd.functional.hessian(top, values)[topology.edge_positions.copy()]
    assert second[:, topology.edge_positions.copy()].abs().max() < 1e-15


def test_beyond_the_dense_size_a_second_derivative_at_zero_is_refused_not_nan():
    topology = sg.Grid(9, 9)
    inputs = at_zero("spectral", topology)
    (gradient,) = torch.autograd.grad(parametrize.spectral(topology, inputs).square().sum(), inputs, create_graph=True)
    with pytest.raises(NotImplementedError, match=re.escape("beyond 64 nodes it can be differentiated once")):
        gradient.square().sum().backward()
