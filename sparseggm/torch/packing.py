"""`Topology.pack` and `unpack` of tensors, differentiable: rules that `graph.topology` finds by the type of a value."""

from __future__ import annotations

from typing import Any

import scipy.sparse
import torch
from torch import Tensor

from sparseggm.errors import DTypeError, ShapeError
from sparseggm.graph.topology import Topology, pack_rules, unpack_rules
from sparseggm.positivity.namespace import scatter, take
from sparseggm.torch.border import as_tensors
from sparseggm.torch.operators.registration import array, have_values
from sparseggm.torch.operators.tracing import untraced

_SPARSE = (torch.sparse_coo, torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc)


@pack_rules.register(Tensor)
def _pack(kind: Tensor, topology: Topology, precision: Any) -> Tensor:
    """The entry that stands for two mirror images is their mean, so each has half of the gradient."""
    function, n = f"{topology}.pack", topology.n
    if isinstance(precision, tuple):
        return _pack_pair(function, topology, precision)
    if precision.shape[-2:] != (n, n):
        raise ShapeError(f"{function}: the precision must be (..., {n}, {n}), got {tuple(precision.shape)}.")
    if precision.layout in _SPARSE:
        return _pack_sparse(function, topology, precision)
    (matrix,) = as_tensors(function, precision=precision)
    if have_values(matrix):
        topology.pack(array(matrix))  # refuses what is off the graph, or not symmetric
    pattern, order = topology.precision_pattern, topology.order
    i, j, flat = order[pattern.rows], order[pattern.cols], matrix.flatten(-2)
    return take(flat, i * n + j) / 2 + take(flat, j * n + i) / 2  # type: ignore[no-any-return]


@untraced
def _pack_sparse(function: str, topology: Topology, matrix: Tensor) -> Tensor:
    """Of one sparse matrix. Its pattern is read, so it must have values."""
    if matrix.dim() != 2 or matrix.sparse_dim() != 2:
        raise ShapeError(
            f"{function}: a sparse precision must be one matrix whose two axes are sparse, got {tuple(matrix.shape)} "
            f"with {matrix.sparse_dim()} sparse axes. Stack the results of several."
        )
    if not have_values(matrix):
        raise DTypeError(
            f"{function}: a sparse tensor must have values, which torch.func and the meta device hide. Give the pair "
            "(diagonal, couplings)."
        )
    entries = matrix.to_sparse_coo().coalesce()  # in its own dtype, as to_dense
    (values,), ends = as_tensors(function, precision=entries.values()), entries.indices().numpy()
    topology.pack(scipy.sparse.coo_array((array(values), tuple(ends)), tuple(matrix.shape)))  # refuses as above
    pattern = topology.precision_pattern
    position = torch.from_numpy(pattern.positions_between(*topology.inverse_order[ends]))
    halves, on_graph = torch.where(torch.from_numpy(ends[0] == ends[1]), values, values / 2), position >= 0
    packed: Tensor = values.new_zeros(pattern.nnz).index_add(0, position[on_graph], halves[on_graph])
    return packed  # what was off the graph is zero


def _pack_pair(function: str, topology: Topology, pair: tuple[Any, ...]) -> Tensor:
    if len(pair) != 2:
        raise ShapeError(f"{function}: a tuple must be a pair (diagonal, couplings), got {len(pair)} values.")
    diagonal, couplings = as_tensors(function, diagonal=pair[0], couplings=pair[1])
    topology.require_pair(tuple(diagonal.shape), tuple(couplings.shape))
    parts = [(topology.node_positions, diagonal), (topology.edge_positions, couplings)]
    return scatter(parts, topology.precision_pattern.nnz)  # type: ignore[no-any-return]


@unpack_rules.register(Tensor)
def _unpack(values: Tensor, topology: Topology) -> tuple[Tensor, Tensor]:
    (packed,) = as_tensors(f"{topology}.unpack", values=values)
    topology.require_packed("unpack", tuple(packed.shape))
    return take(packed, topology.node_positions), take(packed, topology.edge_positions)
