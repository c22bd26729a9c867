"""The same of tensors, and that their gradient is the quotient's."""

from __future__ import annotations

import pytest
import torch

from sparseggm import Chain, NonFiniteError
from sparseggm.torch import GaussianGraphicalModel
from tests.gaussian.test_correlations import PAIRS, SAME, STEEP, TOPOLOGIES, steep, tight


@pytest.mark.parametrize("topology", TOPOLOGIES, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_no_correlation_is_beyond_one(topology, dtype):
    loc, factor = (torch.from_numpy(array) for array in tight(topology, dtype, 0, (50,)))
    correlation = GaussianGraphicalModel(loc, factor=factor, topology=topology).correlation_on(PAIRS)
    assert correlation.dtype == loc.dtype
    assert correlation.abs().max() <= 1.0
    assert (correlation[:, torch.from_numpy(SAME)] == 1.0).all()


@pytest.mark.parametrize("topology", TOPOLOGIES, ids=str)
def test_the_gradient_is_the_quotients_where_its_value_is_cut_too(topology):
    loc, factor = (torch.from_numpy(array) for array in tight(topology, "float64", 0, (50,)))
    factor.requires_grad_()
    q = GaussianGraphicalModel(loc, factor=factor, topology=topology)
    deviation = q.variance.sqrt()
    quotient = q.covariance_on(PAIRS) / deviation[:, PAIRS[:, 0]] / deviation[:, PAIRS[:, 1]]
    assert (quotient.abs() > 1.0).any()
    cotangent = torch.randn(quotient.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    (found,) = torch.autograd.grad(q.correlation_on(PAIRS), factor, cotangent)
    (expected,) = torch.autograd.grad(quotient, factor, cotangent)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("dtype", "scale"), STEEP)
def test_variances_that_underflow_are_refused_by_node(dtype, scale):
    loc, factor = (torch.from_numpy(array) for array in steep(dtype, scale))
    with pytest.raises(NonFiniteError, match=rf"variance of node 0, batch element \(1,\) underflows {dtype}"):
        GaussianGraphicalModel(loc, factor=factor, topology=Chain(3)).correlation_on([(0, 1)])
