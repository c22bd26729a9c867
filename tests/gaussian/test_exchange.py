"""The way back: P as a dense or sparse matrix in the caller's numbering, and the numbers of nodes that are left."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given

from sparseggm import Chain, GaussianGraphicalModel, Graph, Grid, ShapeError, Topology, from_scipy
from tests.strategies import gaussians
from tests.topologies import topologies


@given(topology=topologies(3))
def test_to_scipy_is_the_way_back_of_pack(topology: Topology) -> None:
    """Exactly, and zeros that are stored stay stored, so that the graph is that of the matrix."""
    values = np.arange(topology.precision_pattern.nnz) % 3.0
    matrix = topology.to_scipy(values)
    np.testing.assert_array_equal(topology.pack(matrix), values)
    np.testing.assert_array_equal(from_scipy(matrix).edges, topology.edges)


@given(g=gaussians())
def test_the_matrix_of_a_gaussian_is_that_of_its_packed_precision(g: GaussianGraphicalModel) -> None:
    dense = g.precision_matrix()
    np.testing.assert_array_equal(g.graph.pack(dense), g.precision)
    if g.precision.ndim == 1:
        sparse = g.precision_matrix(sparse=True)
        assert sp.issparse(sparse)
        np.testing.assert_array_equal(sparse.toarray(), dense)


def test_a_batch_of_sparse_matrices_is_refused() -> None:
    g = GaussianGraphicalModel(np.zeros(2), factor=np.ones((4, 3)), topology=Chain(2))
    with pytest.raises(ShapeError, match=r"^precision_matrix: values must be one matrix, got shape \(4, 3\)"):
        g.precision_matrix(sparse=True)
    with pytest.raises(ShapeError, match=r"to_scipy: values must end in 3, the nnz of P, got shape \(2,\)"):
        Chain(2).to_scipy(np.ones(2))


def test_nodes_are_those_that_are_left() -> None:
    grid = Grid(2, 3)
    g = GaussianGraphicalModel.from_precision(np.zeros(6), precision=grid.pack(5 * np.eye(6)), topology=grid)
    assert g.nodes.tolist() == [0, 1, 2, 3, 4, 5]
    rest = g.condition([1, 4], [0, 0])
    assert rest.nodes.tolist() == [0, 2, 3, 5]
    assert rest.marginal([3, 1]).nodes.tolist() == [5, 2]
    assert rest.condition([0], [1.0]).nodes.tolist() == [2, 3, 5]
    kept = rest.observe([0], 1.0, 1.0).moved_to(np.ones(4)).observe(sp.csr_array(np.ones((1, 4))), 0.0, 1.0)
    assert kept.nodes.tolist() == [0, 2, 3, 5]


def test_a_gaussian_on_an_ordered_graph_returns_its_matrix() -> None:
    graph = Graph(3, [(0, 2)], [2, 0, 1])
    matrix = np.array([[2.0, 0, 1], [0, 3, 0], [1, 0, 4]])
    g = GaussianGraphicalModel.from_precision(np.zeros(3), precision=graph.pack(matrix), topology=graph)
    np.testing.assert_allclose(g.precision_matrix(), matrix, rtol=1e-15)
