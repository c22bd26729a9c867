"""Grey levels as a torch distribution: probabilities of levels whose logits are Gaussian, by sequential samples.

`sparseggm.gaussian.observed.GreyLevels` for tensors.
"""

from __future__ import annotations

import math
from typing import Any, Self

import torch
from torch import Tensor
from torch.distributions import constraints

from sparseggm.errors import DTypeError, ShapeError
from sparseggm.gaussian.observed import levels_at, require_levels, require_num_samples
from sparseggm.graph.families import Diagonal
from sparseggm.stochastic.estimators import Estimate
from sparseggm.torch.border import as_tensor, as_tensors, common_batch, tells
from sparseggm.torch.distribution import GaussianGraphicalModel
from sparseggm.torch.observed import OfLogits
from sparseggm.torch.operators import levels as operators
from sparseggm.torch.operators.numbering import reordered
from sparseggm.torch.operators.registration import have_values


class GreyLevels(OfLogits):
    """Levels 0 … K − 1 of n pixels: level k where the logit-normal number is in [k/K, (k + 1)/K).

    Args:
        gaussian: of the logits; its loc and factor, or precision, are the parameters.
        levels: K, at least 2.
        limit: where the first and the last level end, as logits ∓limit. Less than ∞, probabilities are those of the
            levels and of all logits within the limit: lower bounds, whose samples cannot run away.
        validate_args: as in torch. Levels out of range raise in any case.
    A probability, so that its logarithm is at most 0, and comparable with every model of levels.

    >>> import torch
    >>> from sparseggm import ExtendedGrid
    >>> from sparseggm.torch import FactorHead, GreyLevels
    >>> images = torch.randint(0, 256, (5, 16), dtype=torch.uint8)
    >>> decoder = FactorHead(8, ExtendedGrid(4, 4))
    >>> nats = -GreyLevels(decoder(torch.randn(5, 8))).log_prob(images)
    >>> nats.mean().backward()
    """

    has_rsample = False

    def __init__(
        self,
        gaussian: GaussianGraphicalModel,
        levels: int = 256,
        limit: float = math.inf,
        validate_args: bool | None = None,
    ) -> None:
        require_levels(levels, limit)
        self.levels, self.limit = int(levels), float(limit)
        super().__init__(gaussian, validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.integer_interval(0, self.levels - 1), 1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Self:
        """The same distributions under more batch axes; copies nothing."""
        new = super().expand(batch_shape, _instance)
        new.levels, new.limit = self.levels, self.limit
        return new

    def __repr__(self) -> str:
        limit = "" if math.isinf(self.limit) else f", limit={self.limit}"
        return f"GreyLevels({self.gaussian!r}, levels={self.levels}{limit})"

    # ------------------------------------------------------------------ probabilities

    def log_prob(
        self,
        value: Any,
        num_samples: int = 1,
        *,
        generator: torch.Generator | None = None,
        uniform: Tensor | None = None,
        missing: Tensor | None = None,
    ) -> Tensor:
        """log of an unbiased estimate of P(levels = x), nats: a lower bound in expectation; exact on `Diagonal`.

        Differentiable once with respect to the parameters, the uniform numbers given.

        Args:
            value: (..., n) integers of 0 … levels − 1; batch axes broadcast.
            num_samples: sequential samples whose weights are averaged.
            generator: of their uniform numbers; None: torch's own.
            uniform: (num_samples, ..., n) in (0, 1) instead, as many axes as the batch has and one more: common random
                numbers. Its nodes are in the order of elimination.
            missing: (..., n) booleans, where the level is unknown: the probability is that of the others. The samples
                are best where the missing pixels come first in the order of elimination, such as the upper rows.
        Returns:
            (...) float64, whatever the dtype of the Gaussian.
        Raises:
            DTypeError, ShapeError, ValueError: what is no level of this many pixels.
            NonFiniteError, NonPositiveError: a parameter, by batch index and pixel.
        Cost: O(nnz(L) + n) a sample, see `linalg.levels.levels_log_prob`.
        """
        log_weights = self._log_weights("GreyLevels.log_prob", value, num_samples, generator, uniform, missing)
        count = len(log_weights)
        return log_weights[0] if count == 1 else log_weights.logsumexp(0) - math.log(count)

    def estimate_log_prob(
        self,
        value: Any,
        num_samples: int = 1,
        *,
        generator: torch.Generator | None = None,
        uniform: Tensor | None = None,
        missing: Tensor | None = None,
    ) -> Estimate:
        """`log_prob` and its standard error, σ(w) / (w̄ √N) for weights w; without gradients.

        Of one sample the error is NaN, on `Diagonal` 0.
        """
        with torch.no_grad():
            log_weights = self._log_weights(
                "GreyLevels.estimate_log_prob", value, num_samples, generator, uniform, missing
            )
        if self._is_exact:
            return Estimate(log_weights[0], torch.zeros_like(log_weights[0]))  # type: ignore[arg-type]
        largest, count = log_weights.amax(0), len(log_weights)
        weights = (log_weights - largest).exp()
        mean = weights.mean(0)
        deviation = weights.std(0) if count > 1 else torch.full_like(mean, math.nan)
        return Estimate(largest + mean.log(), deviation / (mean * math.sqrt(count)))  # type: ignore[arg-type]

    def sample_logits(
        self, value: Any, *, generator: torch.Generator | None = None, missing: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """z (..., n), sampled one after another in the intervals of levels, and the logarithms of their weights.

        A missing pixel is sampled from the whole line, given those after it in the order of elimination: this fills in
        an image. Without gradients.
        """
        function = "GreyLevels.sample_logits"
        x, batch = self._levels(function, value, missing)
        with torch.no_grad():
            uniform = self._uniform(batch, generator)
            z, log_weight = _told(function)(operators.sample_in_levels, self.gaussian, *self._arguments(x), uniform)
        return self.gaussian._to_caller(z), log_weight

    # ------------------------------------------------------------------ levels

    @property
    def mean(self) -> Tensor:
        """The expected level of each pixel, batch_shape + (n,), float64: Σ_k P(level ≥ k), from exact variances."""
        loc, deviation = self.gaussian.loc.double(), self.gaussian.variance.double().sqrt()
        total = torch.zeros_like(loc)
        for edge in self._edges()[1 : self.levels]:
            total = total + torch.special.ndtr((loc - edge) / deviation)
        return total

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008  torch's own signature
        """Levels, int64, sample_shape + batch_shape + (n,)."""
        return self.levels_of(self.gaussian.sample(sample_shape).double().sigmoid())

    def levels_of(self, x: Any) -> Tensor:
        """The levels, int64, of numbers in [0, 1]. Raises ValueError for others, where values can be read."""
        wide = torch.zeros((), dtype=torch.float64, device=self.gaussian.loc.device)
        numbers, _ = as_tensors("GreyLevels.levels_of", x=x, beside=wide)
        if have_values(numbers) and not ((numbers >= 0) & (numbers <= 1)).all():
            bad = numbers[~((numbers >= 0) & (numbers <= 1))][0].item()
            raise ValueError(f"GreyLevels.levels_of: numbers must be in [0, 1], got {bad}.")
        found: Tensor = levels_at(numbers, self.levels)
        return found.long()

    # ------------------------------------------------------------------ between caller and operator

    @property
    def _is_exact(self) -> bool:
        return isinstance(self.gaussian.topology, Diagonal)

    def _edges(self) -> Tensor:
        """The logits of k / K, K + 1 of them, and those of the level K + 1, the whole line: a missing pixel."""
        count = torch.arange(self.levels + 1, dtype=torch.float64, device=self.gaussian.loc.device)
        return torch.cat(
            [(count / self.levels).logit().clamp(-self.limit, self.limit), count.new_tensor([-math.inf, math.inf])]
        )

    def _log_weights(
        self,
        function: str,
        value: Any,
        num_samples: int,
        generator: torch.Generator | None,
        uniform: Tensor | None,
        missing: Tensor | None,
    ) -> Tensor:
        """(num_samples, ...), or (1, ...) where one is exact."""
        require_num_samples(function, num_samples)
        x, batch = self._levels(function, value, missing)
        if self._is_exact:
            uniform = self.gaussian.loc.new_full((1,), 0.5).expand(1, *(1,) * len(batch), self.gaussian.topology.n)
        elif uniform is None:
            uniform = self._uniform((num_samples, *batch), generator)
        else:
            uniform = self._given_uniform(function, uniform, (num_samples, *batch))
        log_weights: Tensor = _told(function)(operators.levels_log_prob, self.gaussian, *self._arguments(x), uniform)
        return log_weights

    def _arguments(self, x: Tensor) -> tuple[Tensor, ...]:
        """loc, factor, levels and edges, nodes in the order of elimination."""
        gaussian = self.gaussian
        order = gaussian._order
        return reordered(gaussian.loc, order), gaussian._factor, reordered(x, order), self._edges()

    def _levels(self, function: str, value: Any, missing: Tensor | None) -> tuple[Tensor, torch.Size]:
        """Levels as int64, missing ones that of the whole line, and their batch axes together with the Gaussians."""
        x = as_tensor(value, device=self.gaussian.loc.device)
        if x.is_floating_point() or x.is_complex() or x.dtype is torch.bool:
            raise DTypeError(
                f"{function}: levels must be integers, got {x.dtype}. Convert them with levels_of or long."
            )
        if x.shape[-1:] != self.event_shape:
            raise ShapeError(
                f"{function}: x must end in {self.event_shape[0]}, the pixels of {self.gaussian.topology}, got shape "
                f"{tuple(x.shape)}."
            )
        x = x.long()
        if missing is not None:
            absent = as_tensor(missing, device=x.device)
            if absent.dtype is not torch.bool or absent.shape[-1:] != self.event_shape:
                raise ShapeError(
                    f"{function}: missing must be booleans that end in {self.event_shape[0]}, the pixels, got "
                    f"{absent.dtype} of shape {tuple(absent.shape)}."
                )
            common_batch(function, x=x, missing=absent)
            x = torch.where(absent, 0, x)
        if have_values(x) and x.numel():
            least, most = (int(end) for end in x.aminmax())
            if least < 0 or most >= self.levels:
                raise ValueError(f"{function}: levels must be in 0 … {self.levels - 1}, got {least} … {most}.")
        elif x.numel():
            x = torch.where(x < self.levels, x, -1)  # which the operator refuses, where values cannot be read here
        if missing is not None:
            x = torch.where(absent, self.levels + 1, x)
        return x, common_batch(function, x=x, gaussian=self.gaussian.loc)

    def _uniform(self, batch: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        """Uniform numbers (batch, n) in (0, 1): torch's own in [0, 1), and half a step in place of 0."""
        loc = self.gaussian.loc
        size = (*batch, self.gaussian.topology.n)
        chosen = {} if generator is None else {"generator": generator}  # with one, sizes that vary cannot be compiled
        uniform = torch.rand(size, dtype=loc.dtype, device=loc.device, **chosen)  # type: ignore[call-overload]
        clamped: Tensor = uniform.clamp(min=torch.finfo(loc.dtype).eps / 4)
        return clamped

    def _given_uniform(self, function: str, uniform: Any, batch: tuple[int, ...]) -> Tensor:
        loc = self.gaussian.loc
        numbers = as_tensor(uniform, dtype=loc.dtype, device=loc.device)
        full = (*batch, self.gaussian.topology.n)
        fits = numbers.ndim == len(full) and all(size in (1, of) for size, of in zip(numbers.shape, full, strict=True))
        if not fits or numbers.shape[0] != full[0] or numbers.shape[-1] != full[-1]:
            raise ShapeError(
                f"{function}: uniform must have the shape {full} of samples, batch and pixels, its batch axes perhaps "
                f"1, got {tuple(numbers.shape)}."
            )
        if have_values(numbers) and not ((numbers > 0) & (numbers < 1)).all():
            bad = numbers[~((numbers > 0) & (numbers < 1))][0].item()
            raise ValueError(f"{function}: uniform must be in (0, 1), in {loc.dtype}, got {bad}.")
        return numbers


def _told(function: str) -> Any:
    """Call an operator for a Gaussian, so that a failure names the function, and the Gaussian's pixel."""

    @tells(function=function)
    def call(operator: Any, gaussian: GaussianGraphicalModel, *tensors: Tensor) -> Any:
        return operator(gaussian.factor_pattern, *tensors)

    return call
