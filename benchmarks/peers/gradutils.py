"""torchsparsegradutils: samples by its sparse triangular solve, a batch of CSR matrices."""

from __future__ import annotations

import numpy as np
import torch
from torchsparsegradutils import sparse_triangular_solve

from benchmarks.contest import Contestant
from benchmarks.problems import Array
from sparseggm import Pattern

torch.sparse.check_sparse_tensor_invariants.disable()  # the default; torch warns unless it is set


def solve_t(pattern: Pattern, factor: Array, noise: Array) -> Contestant:
    """Lᵀ x = ε."""
    indices = torch.from_numpy(np.stack([pattern.rows, pattern.cols]).astype(np.int64))
    batch = torch.arange(len(factor)).repeat_interleave(pattern.nnz)
    coordinates = torch.cat([batch[None], indices.repeat(1, len(factor))])
    shape = (len(factor), pattern.n, pattern.n)
    values = torch.from_numpy(factor).reshape(-1)
    lower = torch.sparse_coo_tensor(coordinates, values, shape).coalesce()
    column = torch.from_numpy(noise)[..., None]
    return Contestant(
        lambda: sparse_triangular_solve(lower, column, upper=False, transpose=True), lambda x: [x[..., 0].numpy()]
    )
