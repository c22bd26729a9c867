"""The families on tensors: the numbers of NumPy, gradients against differences, and gradients alive at zero."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

import sparseggm as sg
import sparseggm.torch
from sparseggm import parametrize, spectral
from tests.test_parametrize import FAMILIES, level

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
    key = sparseggm.torch.registration.key_of(pattern, "test")
    values = torch.tensor([0, 1.0, 0, 2.0, 0, -1.0, 0], dtype=torch.float64, requires_grad=True)
    operator = torch.ops.sparseggm.leading_eigenpair.default
    # Its vector has no derivative, which the check of AOT dispatch would ask for.
    torch.library.opcheck(operator, (key, values), test_utils=("test_schema", "test_autograd_registration"))
    torch.library.opcheck(operator, (key, values.detach()))
