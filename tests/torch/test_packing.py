"""`pack` and `unpack` of tensors: the values of arrays, gradients, and what is refused."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch

import sparseggm as sg
from sparseggm.torch import GaussianGraphicalModel
from tests.torch.problems import TOPOLOGIES, gradgradcheck

PACKED = [*TOPOLOGIES, sg.Star(4), sg.Graph(4, [(0, 3), (1, 2)], [3, 0, 2, 1])]


def pair(topology: sg.Topology, *batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(0)
    sizes = topology.n, len(topology.edges)
    diagonal, couplings = (torch.from_numpy(rng.standard_normal((*batch, size))).requires_grad_() for size in sizes)
    return diagonal, couplings


@pytest.mark.parametrize("topology", PACKED, ids=str)
def test_pairs_and_matrices_of_tensors_are_packed_as_arrays_are(topology: sg.Topology) -> None:
    diagonal, couplings = pair(topology, 2)
    values = topology.pack((diagonal, couplings))
    np.testing.assert_array_equal(
        values.detach().numpy(), topology.pack((diagonal.detach().numpy(), couplings.detach().numpy()))
    )
    dense = torch.diag_embed(diagonal)
    i, j = torch.from_numpy(topology.edges.T.copy())
    dense = dense.index_put((torch.arange(2)[:, None], i, j), couplings)
    dense = dense.index_put((torch.arange(2)[:, None], j, i), couplings)
    torch.testing.assert_close(topology.pack(dense), values, rtol=0, atol=0)
    for again, given in zip(topology.unpack(values), (diagonal, couplings), strict=True):
        torch.testing.assert_close(again, given, rtol=0, atol=0)


@pytest.mark.parametrize("topology", [topology for topology in PACKED if len(topology.edges)], ids=str)
def test_packing_can_be_differentiated(topology: sg.Topology) -> None:
    given = pair(topology, 2)
    assert torch.autograd.gradcheck(lambda *both: topology.pack(both), given)
    assert gradgradcheck(lambda *both: topology.pack(both).square(), given)
    values = topology.pack(given).detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda v: topology.unpack(v), values)


def test_mirror_images_share_the_gradient() -> None:
    matrix = torch.tensor([[2.0, -1.0], [-1.0, 2.0]], requires_grad=True)
    sg.Chain(2).pack(matrix)[1].backward()
    torch.testing.assert_close(matrix.grad, torch.tensor([[0.0, 0.5], [0.5, 0.0]]))


LAYOUTS = {
    "coo": torch.Tensor.to_sparse_coo,
    "csr": torch.Tensor.to_sparse_csr,
    "csc": torch.Tensor.to_sparse_csc,
    "coo, entries given twice": lambda dense: torch.sparse_coo_tensor(
        torch.cat([dense.to_sparse_coo().indices()] * 2, 1),
        torch.cat([dense.to_sparse_coo().values() / 2] * 2),
        dense.shape,
        check_invariants=True,
    ),
}


@pytest.mark.filterwarnings("ignore:Sparse CS. tensor support is in beta")  # torch's own, of the layout
@pytest.mark.parametrize("topology", PACKED, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_sparse_tensors_are_packed_as_dense_ones_are(layout: str, topology: sg.Topology) -> None:
    """And their gradient is that of the values stored; torch has none for the layout csc."""
    diagonal, couplings = (each.detach() for each in pair(topology))
    dense = torch.from_numpy(topology.to_scipy(topology.pack((diagonal.numpy(), couplings.numpy()))).todense())
    expected, weights = topology.pack(dense.requires_grad_()), torch.arange(1.0, topology.precision_pattern.nnz + 1)
    (expected * weights).sum().backward()
    given = LAYOUTS[layout](dense.detach()).requires_grad_(layout != "csc")
    packed = topology.pack(given)
    torch.testing.assert_close(packed, expected, rtol=0, atol=0)
    if layout != "csc":
        (packed * weights).sum().backward()
        assert given.grad is not None
        assert dense.grad is not None
        torch.testing.assert_close(given.grad.to_dense() * (dense != 0), dense.grad * (dense != 0))


def test_a_sparse_tensor_may_store_zeros_off_the_graph_and_nothing_else() -> None:
    ends, chain = torch.tensor([[0, 1, 2, 0], [0, 1, 2, 2]]), sg.Chain(3)
    zeros = torch.sparse_coo_tensor(ends, torch.tensor([1.0, 2.0, 3.0, 0.0]), (3, 3), check_invariants=True)
    assert chain.pack(zeros).tolist() == chain.pack(zeros.to_dense()).tolist()
    with pytest.raises(sg.PatternError, match=re.escape("pack: the matrix must be zero off Chain(n=3), got 4.0 at")):
        chain.pack(torch.sparse_coo_tensor(ends, torch.tensor([1.0, 2.0, 3.0, 4.0]), (3, 3), check_invariants=True))
    with pytest.raises(sg.PatternError, match="pack: the matrix must be symmetric"):
        chain.pack(torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]).to_sparse_coo())


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (torch.eye(3).expand(2, 3, 3).to_sparse_coo(), sg.ShapeError, "got (2, 3, 3) with 3 sparse axes"),
        (torch.eye(3).to_sparse(1), sg.ShapeError, "got (3, 3) with 1 sparse axes"),
        (torch.eye(4).to_sparse(), sg.ShapeError, "the precision must be (..., 3, 3), got (4, 4)"),
        (torch.eye(3).to_sparse().to("meta"), sg.DTypeError, "a sparse tensor must have values"),
        (torch.eye(3).to_mkldnn(), sg.DTypeError, "precision must be a dense tensor, got torch._mkldnn"),
        ((torch.ones(3).to_sparse(), torch.ones(2)), sg.DTypeError, "diagonal must be a dense tensor, got torch.spar"),
        ((torch.ones(3), torch.ones(2).to_sparse()), sg.DTypeError, "couplings must be a dense tensor, got torch.spa"),
        (torch.eye(3).to_sparse() * 1j, sg.DTypeError, "precision must hold float32, float64 or integers"),
    ],
)
def test_sparse_tensors_that_do_not_fit_are_refused(given: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        sg.Chain(3).pack(given)


def test_a_sparse_tensor_under_transforms() -> None:
    chain, given = sg.Chain(3), (2.0 * torch.eye(3)).to_sparse()
    with pytest.raises(sg.DTypeError, match=r"which torch\.func and the meta device hide"):
        torch.func.grad(lambda c: (c * chain.pack(given)).sum())(torch.ones(()))
    compiled = torch.compile(lambda matrix: 2 * chain.pack(matrix), backend="eager")
    torch.testing.assert_close(compiled(given), 2 * chain.pack(given))


def test_entries_of_a_sparse_tensor_given_twice_are_summed_in_its_dtype() -> None:
    """As by to_dense."""
    twice = torch.sparse_coo_tensor(
        torch.tensor([[0, 0], [0, 0]]), torch.tensor([True, True]), (1, 1), check_invariants=True
    )
    assert sg.Chain(1).pack(twice).tolist() == sg.Chain(1).pack(twice.to_dense()).tolist() == [1.0]


def test_a_dense_precision_makes_a_gaussian_whose_matrix_it_is() -> None:
    matrix = torch.tensor([[3.0, 0, 1], [0, 3, 1], [1, 1, 3]], dtype=torch.float64, requires_grad=True)
    star = sg.Graph(3, [(0, 2), (1, 2)])
    q = GaussianGraphicalModel.from_precision(torch.zeros(3), precision=star.pack(matrix), topology=star)
    torch.testing.assert_close(q.precision_matrix, matrix)
    q.entropy().backward()
    torch.testing.assert_close(matrix.grad, torch.where(matrix != 0, -0.5 * matrix.detach().inverse(), 0.0))


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (torch.ones(2, 2), sg.ShapeError, "pack: the precision must be (..., 3, 3), got (2, 2)"),
        (torch.ones(3, 3), sg.PatternError, "pack: the matrix must be zero off Chain(n=3), got 1.0 at (0, 2)"),
        (torch.ones(3, 3).tril().triu(-1), sg.PatternError, "pack: the matrix must be symmetric, got 1.0 at"),
        ((torch.ones(3), torch.ones(3)), sg.ShapeError, "pack: needs a diagonal (..., 3) and couplings (..., 2)"),
        ((torch.ones(3),), sg.ShapeError, "pack: a tuple must be a pair (diagonal, couplings), got 1 values"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(given: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        sg.Chain(3).pack(given)


def test_packed_values_of_another_length_are_refused() -> None:
    with pytest.raises(sg.ShapeError, match=re.escape("unpack: values must end in 5, the nnz of P, got shape (4,)")):
        sg.Chain(3).unpack(torch.ones(4))


def test_nodes_are_those_that_are_left() -> None:
    star = sg.Star(5)
    q = GaussianGraphicalModel(torch.zeros(5), factor=torch.ones(9), topology=star)
    assert q.nodes.tolist() == [0, 1, 2, 3, 4]
    rest = q.condition([0, 2], torch.ones(2))
    assert rest.nodes.tolist() == [1, 3, 4]
    assert rest.marginal([2, 0]).nodes.tolist() == [4, 1]
    assert rest.observe([0], 1.0, 1.0).expand((2,)).moved_to(torch.ones(3)).nodes.tolist() == [1, 3, 4]
