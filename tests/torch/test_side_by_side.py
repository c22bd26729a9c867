"""torch's dense MultivariateNormal beside ours: agreement in float64, and float32 where only one of them is right."""

from __future__ import annotations

import numpy as np
import torch
from torch.distributions import MultivariateNormal

import sparseggm as sg
from sparseggm.torch import GaussianGraphicalModel
from tests.torch import side_by_side


def test_values_and_gradients_agree_to_the_condition_number():
    worst = side_by_side.run(cases=300, seed=1)
    assert max(worst.values()) <= 1, worst


def test_float32_keeps_a_chain_that_the_dense_normal_loses():
    """256 nodes given L, condition number 1e8: 1/u in float32 is 2e7."""
    n, u = 256, 2.0**-24
    topology = sg.Chain(n)
    pattern = topology.factor_pattern
    lower = np.where(pattern.rows == pattern.cols, 1.0, -1.021)  # each node follows the next, a little enlarged
    dense = pattern.to_dense(lower.astype(np.float32).astype(np.float64))
    precision = dense @ dense.T
    assert 0.5e8 <= np.linalg.cond(precision) <= 2e8
    exact = np.diagonal(np.linalg.inv(dense).T @ np.linalg.inv(dense))

    q = GaussianGraphicalModel(torch.zeros(n), factor=torch.from_numpy(lower).float(), topology=topology)
    # A chain's recurrence adds positive terms: 10 n u whatever the condition number, see `linalg.marginal_variances`.
    assert (abs(q.variance.numpy() - exact) <= 10 * n * u * exact).all()

    assert loses(torch.from_numpy(precision).float(), exact)


def loses(precision: torch.Tensor, exact: np.ndarray) -> bool:
    """Whether the dense normal refuses a precision, or has a variance that is off by a tenth."""
    try:
        variance = MultivariateNormal(torch.zeros(len(exact)), precision_matrix=precision, validate_args=False).variance
    except torch.linalg.LinAlgError:
        return True
    return not bool((abs(variance.numpy() - exact) <= 0.1 * exact).all())
