"""Likelihoods of the Laplace approximation: log p(y_i | η_i), each of one linear predictor, with two derivatives.

Written on `positivity.namespace`, so that one formula serves arrays and tensors, and torch differentiates the
derivatives once more. A count that is NaN is missing: it says nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import scipy.special

from sparseggm.errors import DTypeError, NonFiniteError, ShapeError
from sparseggm.fields.parameters import constants, is_tensor, parameters, require_broadcast, require_positive
from sparseggm.graph.pattern import FloatArray
from sparseggm.positivity.namespace import Array, array_namespace, constant_like, softplus


class Terms(NamedTuple):
    """One number for each observation, (..., k)."""

    log_prob: Array
    """log p(y_i | η_i), nats."""
    gradient: Array
    """Its derivative by η_i."""
    curvature: Array
    """Minus its second derivative: the weight of the observation."""


class Likelihood(Protocol):
    """Observations that are independent given their linear predictors."""

    def __call__(self, eta: Array) -> Terms:
        """The terms at η, (..., k)."""
        ...


class Poisson:
    """Counts y ~ Poisson(E e^η).

    Args:
        counts: (..., k) nonnegative integers, or NaN.
        exposure: E > 0, broadcast to the counts; log E is the offset.
    """

    def __init__(self, counts: npt.ArrayLike, exposure: Any = 1.0) -> None:
        self.counts, self._seen = _counts("Poisson", "counts", counts)
        (self.exposure,) = parameters("Poisson", exposure=exposure)
        require_positive("Poisson", exposure=self.exposure)
        require_broadcast("Poisson", counts=self.counts, exposure=self.exposure)
        self._constant = -scipy.special.gammaln(self.counts + 1.0)

    def __repr__(self) -> str:
        return f"Poisson({self._seen.sum()} counts)"

    def __call__(self, eta: Array) -> Terms:
        eta = _predictor("Poisson", eta, self.counts)
        xp, y = array_namespace(eta), constant_like(eta, self.counts)
        eta = eta + xp.log(_like(eta, self.exposure))
        mean = xp.exp(eta)
        return _seen(self._seen, y * eta - mean + constant_like(eta, self._constant), y - mean, mean)


class Binomial:
    """Counts y ~ Binomial(m, 1 / (1 + e^−η)).

    Args:
        successes: (..., k) integers of 0 … m, or NaN.
        trials: m, broadcast to the successes.
    """

    def __init__(self, successes: npt.ArrayLike, trials: npt.ArrayLike = 1) -> None:
        self.successes, self._seen = _counts("Binomial", "successes", successes)
        self.trials, known = _counts("Binomial", "trials", trials)
        require_broadcast("Binomial", successes=self.successes, trials=self.trials)
        if not (known | ~self._seen).all():
            raise NonFiniteError("Binomial: trials must be known where successes are, got NaN.")
        if not (self.successes <= self.trials).all():
            k = tuple(int(axis) for axis in np.argwhere(~(self.successes <= self.trials))[0])
            got = np.broadcast_to(self.successes, np.broadcast(self.successes, self.trials).shape)[k]
            raise ValueError(f"Binomial: successes must be at most trials, got {got:g} at {k}.")
        gammaln = scipy.special.gammaln
        rest = self.trials - self.successes
        self._constant = gammaln(self.trials + 1.0) - gammaln(self.successes + 1.0) - gammaln(rest + 1.0)

    def __repr__(self) -> str:
        return f"Binomial({self._seen.sum()} counts)"

    def __call__(self, eta: Array) -> Terms:
        eta = _predictor("Binomial", eta, self.successes)
        y, m, c = (constant_like(eta, each) for each in (self.successes, self.trials, self._constant))
        chance = _logistic(eta)
        return _seen(self._seen, y * eta - m * softplus(eta) + c, y - m * chance, m * chance * _logistic(-eta))


class NegativeBinomial:
    """Counts with mean μ = E e^η and variance μ + μ² / size.

    Args:
        counts: (..., k) nonnegative integers, or NaN.
        size: > 0; the larger, the nearer to Poisson. May be a tensor that needs a gradient.
        exposure: E > 0.
    """

    def __init__(self, counts: npt.ArrayLike, size: Any, exposure: Any = 1.0) -> None:
        self.counts, self._seen = _counts("NegativeBinomial", "counts", counts)
        self.size, self.exposure = parameters("NegativeBinomial", size=size, exposure=exposure)
        require_positive("NegativeBinomial", size=self.size, exposure=self.exposure)
        require_broadcast("NegativeBinomial", counts=self.counts, size=self.size, exposure=self.exposure)

    def __repr__(self) -> str:
        return f"NegativeBinomial({self._seen.sum()} counts)"

    def __call__(self, eta: Array) -> Terms:
        # With t = log(μ / r), log p = log C(y + r − 1, y) − y log(1 + e⁻ᵗ) − r log(1 + eᵗ).
        eta = _predictor("NegativeBinomial", eta, self.counts)
        xp, y = array_namespace(eta), constant_like(eta, self.counts)
        size = _like(eta, self.size)
        t = eta + xp.log(_like(eta, self.exposure)) - xp.log(size)
        chance, total = _logistic(t), y + size
        log_prob = _log_choose(y, size) - y * softplus(-t) - size * softplus(t)
        return _seen(self._seen, log_prob, y - total * chance, total * chance * _logistic(-t))


class Normal:
    """Numbers y ~ N(η, variance), for which the Laplace approximation is exact; NaN is missing."""

    def __init__(self, values: npt.ArrayLike, variance: Any) -> None:
        (values,) = constants("Normal", values=values)
        self._seen = ~np.isnan(values)
        self.values = np.where(self._seen, values, 0.0)
        (self.variance,) = parameters("Normal", variance=variance)
        require_positive("Normal", variance=self.variance)
        require_broadcast("Normal", values=self.values, variance=self.variance)

    def __repr__(self) -> str:
        return f"Normal({self._seen.sum()} values)"

    def __call__(self, eta: Array) -> Terms:
        eta = _predictor("Normal", eta, self.values)
        xp, variance = array_namespace(eta), _like(eta, self.variance)
        error = constant_like(eta, self.values) - eta
        log_prob = -0.5 * (error**2 / variance + xp.log(2 * math.pi * variance))
        return _seen(self._seen, log_prob, error / variance, 1 / variance + 0 * eta)


class CustomLikelihood:
    """A log-likelihood of one's own.

    Args:
        log_prob: function of η (..., k) that gives log p(y_i | η_i), (..., k), each of its own η_i alone.
        gradient, curvature: its derivative by η_i, and minus the second, functions alike. None: for tensors torch
            finds both, and each call tests that no term depends on another's η. Arrays need both.
    """

    def __init__(
        self,
        log_prob: Callable[[Array], Array],
        gradient: Callable[[Array], Array] | None = None,
        curvature: Callable[[Array], Array] | None = None,
    ) -> None:
        if (gradient is None) != (curvature is None):
            raise TypeError("CustomLikelihood: needs gradient and curvature, or neither.")
        self._log_prob, self._gradient, self._curvature = log_prob, gradient, curvature

    def __repr__(self) -> str:
        return f"CustomLikelihood({getattr(self._log_prob, '__name__', self._log_prob)!s})"

    def __call__(self, eta: Array) -> Terms:
        if self._gradient is None or self._curvature is None:
            return self._differentiated(eta)
        terms = Terms(self._log_prob(eta), self._gradient(eta), self._curvature(eta))
        for name, term in terms._asdict().items():
            self._require_shape(name, term, eta)
        return terms

    def _differentiated(self, eta: Array) -> Terms:
        if not is_tensor(eta):
            raise TypeError(
                "CustomLikelihood: arrays need gradient= and curvature=. Give them, or a prior of sparseggm.torch."
            )
        torch = array_namespace(eta)
        differentiates = torch.is_grad_enabled()
        with torch.enable_grad():
            at = eta if differentiates and eta.requires_grad else eta.detach().requires_grad_()
            log_prob = self._log_prob(at)
            self._require_shape("log_prob", log_prob, eta)
            if not getattr(log_prob, "requires_grad", False):
                raise TypeError(
                    "CustomLikelihood: log_prob must be differentiable, got a result that does not depend on η. Write "
                    "it in operations of torch, or give gradient= and curvature=."
                )
            (gradient,) = torch.autograd.grad(log_prob.sum(), at, create_graph=True)
            curvature = torch.zeros_like(at)
            if gradient.requires_grad:
                (curvature,) = torch.autograd.grad(-gradient.sum(), at, create_graph=True, materialize_grads=True)
            self._require_apart(torch, eta.detach())
        terms = Terms(log_prob, gradient, curvature)
        return terms if differentiates else Terms(*(term.detach() for term in terms))

    def _require_shape(self, name: str, term: Array, eta: Array) -> None:
        shape = tuple(getattr(term, "shape", ()))
        if shape[-1:] != tuple(eta.shape[-1:]):
            raise ShapeError(
                f"CustomLikelihood: {name} must give (..., {eta.shape[-1]}), a number for each observation, got shape "
                f"{shape}."
            )

    def _require_apart(self, torch: Any, eta: Array) -> None:
        """d/dη_i Σ_j w_j ℓ_j = w_i ℓ_i' for terms of their own η alone; beside η, where derivatives may vanish."""
        weights = torch.linspace(1.0, 2.0, eta.shape[-1], dtype=eta.dtype)
        at = (eta + 0.1 * weights * torch.cos(7.0 * weights)).requires_grad_()
        log_prob = self._log_prob(at)
        plain, weighted = (torch.autograd.grad((w * log_prob).sum(), at, retain_graph=True)[0] for w in (1.0, weights))
        difference, scale = abs(weights * plain - weighted), abs(plain) + abs(weighted)
        if bool((difference > 1e-6 * scale.amax()).any()):
            raise ValueError(
                "CustomLikelihood: each log p(y_i | η_i) must depend on its own η_i alone, got one that depends on "
                "others. Move what they share into the matrix of the observations."
            )


def _seen(seen: npt.NDArray[np.bool_], *terms: Array) -> Terms:
    """The terms; zero where the observation is missing."""
    if seen.all():
        return Terms(*terms)
    present = constant_like(terms[0], seen)
    return Terms(*(array_namespace(term).where(present > 0, term, 0 * present) for term in terms))


def _counts(function: str, name: str, values: npt.ArrayLike) -> tuple[FloatArray, npt.NDArray[np.bool_]]:
    """Counts in float64, zero where they are missing, and where they are not."""
    (counts,) = constants(function, **{name: values})
    seen = ~np.isnan(counts)
    counts = np.where(seen, counts, 0.0)
    bad = ~((counts >= 0) & (counts == np.floor(counts)) & np.isfinite(counts))
    if bad.any():
        k = tuple(int(axis) for axis in np.argwhere(bad)[0])
        error = ValueError if np.isfinite(counts[k]) else NonFiniteError
        raise error(f"{function}: {name} must be nonnegative integers, or NaN, got {counts[k]:g} at {k}.")
    return counts, seen


def _predictor(function: str, eta: Array, observed: FloatArray) -> Array:
    """η in floating-point numbers. Raises unless there is one for each observation."""
    (eta,) = parameters(function, eta=eta)
    if observed.ndim == 0 or tuple(eta.shape[-1:]) != observed.shape[-1:]:
        raise ShapeError(
            f"{function}: needs an observation for each η, of shape (..., k), got {observed.shape} for η of "
            f"{tuple(eta.shape)}. NaN is a missing one."
        )
    return eta


def _like(eta: Array, parameter: Array) -> Array:
    """A parameter, of the kind of η."""
    if is_tensor(parameter) and not is_tensor(eta):
        raise DTypeError(
            "laplace: the likelihood has a tensor as a parameter, but the prior is of arrays. Give the prior's model a "
            "tensor too, as prior(torch.tensor(1.0), …)."
        )
    return constant_like(eta, parameter)


def _logistic(x: Array) -> Array:
    """1 / (1 + e^−x)."""
    return array_namespace(x).exp(-softplus(-x))


LARGE = 16.0
"""Stirling's series of four terms has log Γ(x) to 1e-15 from here on."""


def _log_choose(y: Array, r: Array) -> Array:
    """log C(y + r − 1, y) = log Γ(y + r) − log Γ(r) − log Γ(y + 1), of which the two largest are not subtracted."""
    xp = array_namespace(y)
    large, small = xp.maximum(y + 1, r), xp.minimum(y + 1, r)
    x, move = xp.where(large > LARGE, large, LARGE + 0 * large), small - 1
    far = move * xp.log(x) + (x + move - 0.5) * xp.log1p(move / x) - move + _stirling(x + move) - _stirling(x)
    return xp.where(large > LARGE, far, _gammaln(y + r) - _gammaln(large)) - _gammaln(small)


def _stirling(x: Array) -> Array:
    """log Γ(x) − (x − ½) log x + x − ½ log 2π, for x ≥ 15."""
    s = (1 / x) ** 2
    return (1 / 12 - s * (1 / 360 - s * (1 / 1260 - s / 1680))) / x


def _gammaln(x: Array) -> Array:
    return array_namespace(x).lgamma(x) if is_tensor(x) else scipy.special.gammaln(x)
