"""Graphical models of observed numbers as torch distributions: what they share, and logit-normal densities on (0, 1).

`sparseggm.gaussian.observed` for tensors; levels are in `grey_levels`. All are made from a `GaussianGraphicalModel` of
the logits z, of any batch; their pixels are its nodes.
"""

from __future__ import annotations

from typing import Any, Self, cast

import numpy.typing as npt
import torch
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.distributions.constraint_registry import biject_to, transform_to
from torch.distributions.transforms import SigmoidTransform

from sparseggm.linalg import checks
from sparseggm.torch.distribution import GaussianGraphicalModel
from sparseggm.torch.operators.registration import array, have_values


class _OpenUnitInterval(constraints.Constraint):
    """(0, 1), without its ends."""

    def check(self, value: Tensor) -> Tensor:
        return (value > 0) & (value < 1)


@biject_to.register(_OpenUnitInterval)
@transform_to.register(_OpenUnitInterval)
def _to_open_unit_interval(constraint: _OpenUnitInterval) -> SigmoidTransform:
    return SigmoidTransform()


class OfLogits(Distribution):
    """What a distribution of numbers with Gaussian logits shares with others: the Gaussian has the parameters."""

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012  torch's protocol; the Gaussian validates

    def __init__(self, gaussian: GaussianGraphicalModel, validate_args: bool | None = None) -> None:
        self._set(gaussian, type(self)._validate_args if validate_args is None else validate_args)

    def _set(self, gaussian: GaussianGraphicalModel, validate_args: bool) -> None:
        checks.require_gaussian(type(self).__name__, "gaussian", gaussian, GaussianGraphicalModel)
        self.gaussian = gaussian
        super().__init__(gaussian.batch_shape, gaussian.event_shape, validate_args=False)
        self._validate_args = validate_args

    def expand(self, batch_shape: Any, _instance: Any = None) -> Self:
        """The same distributions under more batch axes; copies nothing."""
        new: OfLogits = type(self).__new__(type(self)) if _instance is None else _instance
        new._set(self.gaussian.expand(batch_shape), self._validate_args)
        return cast(Self, new)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.gaussian!r})"


class LogitNormal(OfLogits):
    """Numbers x in (0, 1)ⁿ whose logits log x − log(1 − x) are Gaussian.

    Args:
        gaussian: of the logits; its loc and factor, or precision, are the parameters.
        validate_args: as in torch: whether numbers outside (0, 1) raise in words. Without, they still raise.

    >>> import torch
    >>> from sparseggm import ExtendedGrid
    >>> from sparseggm.torch import FactorHead, LogitNormal
    >>> images = torch.rand(5, 16).clamp(0.01, 0.99)
    >>> decoder = FactorHead(8, ExtendedGrid(4, 4))
    >>> loss = -LogitNormal(decoder(torch.randn(5, 8))).log_prob(images).mean()
    >>> loss.backward()
    """

    support = constraints.independent(_OpenUnitInterval(), 1)
    has_rsample = True

    def log_prob(self, value: Any) -> Tensor:
        """log N(logit x; loc, P⁻¹) − Σ log x (1 − x), nats; batch axes of x (..., n) broadcast.

        Raises:
            ValueError: a number outside (0, 1). At 0 and 1 the density is 0 or undefined: move them inside.
            NonFiniteError: the result is beyond the dtype, where values can be read.
        """
        gaussian, x = self.gaussian._beside("LogitNormal.log_prob", value=value)
        z = self._logits("log_prob", x)
        jacobian = -(x.double() * (1.0 - x.double())).log().sum(-1)
        log_prob = (gaussian.log_prob(z).double() + jacobian).to(z.dtype)
        if have_values(log_prob):
            checks.require_representable("LogitNormal.log_prob", array(log_prob), array(log_prob).dtype)
        return log_prob

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008  torch's own signature
        """1 / (1 + e⁻ᶻ), differentiable, sample_shape + batch_shape + (n,). Rounding leaves none at 0 or 1."""
        x = self.gaussian.rsample(sample_shape).sigmoid()
        limits = torch.finfo(x.dtype)
        return x.clamp(limits.tiny, 1.0 - limits.eps / 2)

    def condition(self, nodes: npt.ArrayLike, values: Any) -> LogitNormal:
        """Of the other pixels, ascending, given x[nodes] = values: see `GaussianGraphicalModel.condition`."""
        gaussian, (x,) = self.gaussian._promoted("LogitNormal.condition", values=values)
        return LogitNormal(gaussian.condition(nodes, self._logits("condition", x)), validate_args=self._validate_args)

    def _logits(self, function: str, x: Tensor) -> Tensor:
        if self._validate_args and have_values(x):
            outside = x[~((x > 0) & (x < 1))]
            if len(outside):
                raise ValueError(
                    f"LogitNormal.{function}: numbers must be in (0, 1), got {outside[0].item()}. Move 0 and 1 inside, "
                    "for example by a + (1 − 2a) x with a = 1e-6."
                )
        return x.logit()
