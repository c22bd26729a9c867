"""`GaussianGraphicalModel` as a `torch.distributions.Distribution`, and the training step `sample_and_kl`.

Samples and means are in the caller's numbering of nodes; packed values in the topology's order of elimination.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal, constraints
from torch.distributions.kl import register_kl

from sparseggm.errors import DTypeError, NonPositiveError, ShapeError
from sparseggm.pattern import Pattern
from sparseggm.topology import Topology, require_topology
from sparseggm.torch import fused, ops
from sparseggm.torch.registration import batch_of, index

LOG_2PI = math.log(2.0 * math.pi)


class GaussianGraphicalModel(Distribution):
    """N(loc, P⁻¹) with P = L Lᵀ sparse, given by the factor L.

    Args:
        loc: (..., n) mean, in the caller's numbering.
        factor: (..., nnz) values of L on `topology.factor_pattern`, diagonal positive.
        topology: the graph. Keyword-only, as `factor` is: bare values of P and of L can have equal lengths.
        validate_args: as in torch; O(nnz), and never a factorisation.
    The factor is kept unbroadcast: many samples, or `expand`, copy no factor.
    """

    arg_constraints = {"loc": constraints.real_vector}  # noqa: RUF012  torch's own protocol
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, loc: Tensor, *, factor: Tensor, topology: Topology, validate_args: bool | None = None) -> None:
        require_topology("GaussianGraphicalModel", topology)
        self.topology = topology
        self._factor = factor
        self._check_shapes(loc)
        batch_shape = torch.Size(batch_of(loc, factor))
        self.loc = loc.expand(*batch_shape, topology.n)
        super().__init__(batch_shape, torch.Size([topology.n]), validate_args=validate_args)
        if self._validate_args:
            self._check_factor()

    def _check_shapes(self, loc: Tensor) -> None:
        n, nnz = self.topology.n, self._pattern.nnz
        if loc.shape[-1:] != (n,) or self._factor.shape[-1:] != (nnz,):
            raise ShapeError(
                f"GaussianGraphicalModel: on {self.topology} loc must end in {n} and factor in {nnz}, "
                f"got shapes {tuple(loc.shape)} and {tuple(self._factor.shape)}."
            )
        if loc.dtype != self._factor.dtype or loc.dtype not in (torch.float32, torch.float64):
            raise DTypeError(
                f"GaussianGraphicalModel: loc and factor must both be float32 or both float64, got {loc.dtype} and "
                f"{self._factor.dtype}."
            )

    def _check_factor(self) -> None:
        pivots = self._factor.detach().index_select(-1, index(self._pattern.diagonal))
        if not (self._factor.isfinite().all() and (pivots > 0).all()):
            raise NonPositiveError(
                "GaussianGraphicalModel: factor must be finite with a positive diagonal, its least diagonal entry is "
                f"{pivots.min():.3g}. FactorHead guarantees both."
            )

    @property
    def _pattern(self) -> Pattern:
        return self.topology.factor_pattern

    @property
    def factor(self) -> Tensor:
        """(batch_shape, nnz) values of L on `topology.factor_pattern`; a view."""
        return self._factor.expand(*self.batch_shape, self._factor.shape[-1])

    def expand(self, batch_shape: Any, _instance: Any = None) -> GaussianGraphicalModel:
        """The same Gaussians under more batch axes; copies nothing."""
        new = self._get_checked_instance(GaussianGraphicalModel, _instance)
        new.topology, new._factor = self.topology, self._factor
        new.loc = self.loc.expand(*batch_shape, self.topology.n)
        super(GaussianGraphicalModel, new).__init__(torch.Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return cast(GaussianGraphicalModel, new)

    # ------------------------------------------------------------------ maps

    def whiten(self, d: Tensor) -> Tensor:
        """Lᵀ d for a centred vector d (..., n); see the NumPy class."""
        return self._in_elimination_order(ops.matmul_t, d)

    def colorize(self, eps: Tensor) -> Tensor:
        """L⁻ᵀ ε for white noise ε (..., n): covariance Σ; see the NumPy class."""
        return self._in_elimination_order(ops.solve_t, eps)

    def _in_elimination_order(self, verb: Any, x: Tensor) -> Tensor:
        return self._to_caller(verb(self._pattern, self._factor, self._to_elimination(x)))

    def _to_elimination(self, x: Tensor) -> Tensor:
        return x if self.topology.is_naturally_ordered else x.index_select(-1, index(self.topology.order))

    def _to_caller(self, x: Tensor) -> Tensor:
        return x if self.topology.is_naturally_ordered else x.index_select(-1, index(self.topology.inverse_order))

    # ------------------------------------------------------------------ torch's protocol

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008  torch's own signature
        """loc + L⁻ᵀ ε, differentiable: sample_shape + batch_shape + (n,)."""
        shape = self._extended_shape(sample_shape)
        noise = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        return self.loc + self.colorize(noise)

    def log_prob(self, value: Tensor) -> Tensor:
        """½ [log det P − ‖Lᵀ(x − loc)‖² − n log 2π], nats."""
        if self._validate_args:
            self._validate_sample(value)
        square = self.whiten(value - self.loc).square().sum(-1, dtype=torch.float64)
        return (0.5 * (self._logdet() - square - self.topology.n * LOG_2PI)).to(self.loc.dtype)

    def entropy(self) -> Tensor:
        """½ [n (1 + log 2π) − log det P], nats, shape batch_shape."""
        entropy = 0.5 * (self.topology.n * (1.0 + LOG_2PI) - self._logdet())
        return entropy.to(self.loc.dtype).expand(self.batch_shape)

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def mode(self) -> Tensor:
        return self.loc

    @property
    def variance(self) -> Tensor:
        """diag Σ, (batch_shape, n), exact; computed at each access."""
        return self._to_caller(ops.marginal_variances(self._pattern, self._factor)).expand(*self.batch_shape, -1)

    def _logdet(self) -> Tensor:
        return ops.logdet(self._pattern, self._factor).double()


def sample_and_kl(q: GaussianGraphicalModel, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """A reparametrised draw z ~ q and KL(q ‖ N(0, I)), exact, in nats: the training step in one operator.

    Args:
        q: the posterior.
        noise: ε (..., n), whose batch axes end in q's; None: drawn from torch's generator, shape of q.loc.
    Returns:
        z, of the shape of noise, and KL (batch_shape).
    Raises:
        NonFiniteError, NonPositiveError: a value of loc, factor or noise, tested as it is loaded.
    Cost: one triangular solve and the marginal variances; a chain O(n), an extended grid O(n · cols).
    """
    noise = torch.randn_like(q.loc) if noise is None else noise
    to_elimination = q._to_elimination
    z, kl = fused.sample_and_kl(q._pattern, to_elimination(q.loc), q._factor, to_elimination(noise))
    return q._to_caller(z), kl


@register_kl(GaussianGraphicalModel, Independent)
def _kl_to_independent_normal(q: GaussianGraphicalModel, p: Independent[Normal]) -> Tensor:
    """KL(q ‖ N(m, diag s²)) = ½ [Σ (Σ_ii + (loc_i − m_i)²) / s_i² − n + log det P_q + 2 Σ log s_i], exact."""
    normal = p.base_dist
    if not isinstance(normal, Normal) or p.reinterpreted_batch_ndims != 1:
        raise NotImplementedError(
            f"KL of a GaussianGraphicalModel to {p} is not defined: needs Independent(Normal, 1)."
        )
    second_moment = (q.variance + (q.loc - normal.loc).square()) / normal.scale.square()
    terms = (second_moment + 2.0 * normal.scale.log()).sum(-1, dtype=torch.float64)
    return (0.5 * (terms - q.topology.n + q._logdet())).to(q.loc.dtype)
