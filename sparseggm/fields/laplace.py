"""The Laplace approximation: a Gaussian field z observed through log-likelihoods of η = A z that are not Gaussian.

    q(z) = N(ẑ, (P + Aᵀ W A)⁻¹),    ẑ the mode of f(z) = Σ_i log p(y_i | η_i) + log p(z),    W = −∂²/∂η² at ẑ
    log p(y) ≈ f(ẑ) − log q(ẑ)

Newton's method finds the mode: H move = ∇f, H = P + Aᵀ W A, with a line search. In torch the mode is a function of
the hyperparameters by ∇f(ẑ, θ) = 0. Its derivatives up to the k-th are those of k more steps at fixed H: where θ is off
by δ, ẑ is off by O(δ), and each such step makes that smaller by another factor O(δ), as I + H⁻¹ ∂²f is.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse

from sparseggm.errors import DTypeError, NonFiniteError, NotConvergedError, NotPositiveDefiniteError, ShapeError
from sparseggm.fields.areal import Improper
from sparseggm.fields.intrinsic import IntrinsicGaussian
from sparseggm.fields.likelihoods import Likelihood, Terms
from sparseggm.fields.parameters import (
    common_batch,
    expanded,
    gaussian_of_precision,
    is_tensor,
    parameters,
    precision_matmul,
)
from sparseggm.gaussian.linear import LinearObservation
from sparseggm.graph.edges import require_at_least
from sparseggm.graph.topology import Topology
from sparseggm.kernels.sparse.density import LOG_2PI
from sparseggm.linalg import checks
from sparseggm.positivity.namespace import Array, array_namespace, as_array, in_float64, refuse_transforms, total

TOLERANCE = 1e-10
"""Newton decrement ∇fᵀ H⁻¹ ∇f below which one more step ends: the mode is then 10⁻⁵ deviations away, and after it some
10⁻¹⁰."""

STALLED = 1e-6
"""Decrement that is accepted where rounding lets steps gain no more: 10⁻³ deviations, 5e-7 nats."""

SETTLED = 1e-4
"""Change of log det H in a step below which one more step ends. Down a slope without an end, as that of e^η at a count
of 0, the decrement becomes as small as one likes, but log det H falls by 1 a step."""

DERIVATIVES = 2
"""Order up to which derivatives of the mode are right."""

MOST_STEPS, MOST_HALVINGS = 100, 60
ENOUGH = 1e-4
"""A step must gain this part of what the gradient promises [Nocedal & Wright 2006, §3.1]."""


class Laplace(NamedTuple):
    """A Laplace approximation."""

    posterior: Any
    """The Gaussian q of z, on `observation.topology`; of tensors if the prior is."""
    log_evidence: Array
    """(...) log p(y), approximately, nats, float64."""
    observation: LinearObservation
    """Of A: `observation.predictive(posterior)` has means and variances of η."""
    steps: int
    """Newton steps."""


def laplace(
    prior: Any,
    likelihood: Likelihood,
    observation: LinearObservation | None = None,
    *,
    start: Any | None = None,
    max_steps: int = MOST_STEPS,
) -> Laplace:
    """The Laplace approximation of a Gaussian field and its evidence, in float64; exact for `Normal`.

    Args:
        prior: a GaussianGraphicalModel, of arrays or tensors; an `IntrinsicGaussian`, whose density is that of its
            `log_prob`, with no factor for its null space: its own `log_evidence` is ½ (d log 2π + log det VᵀV) less;
            or an `Improper` density, as of `BYM2`.
        likelihood: of η: `Poisson`, `Binomial`, `NegativeBinomial`, `Normal`, or a `CustomLikelihood`. It need not be
            log-concave: steps leave out negative weights, the result does not.
        observation: of A on the graph of the prior; None: one observation a node, η = z.
        start: (..., n) where to begin; None: the mean of the prior.
        max_steps: Newton steps at most.
    Returns:
        a `Laplace`. Of tensors posterior and evidence have first and second derivatives with respect to everything that
        the prior and the likelihood were made of; third ones would lack terms.
    Raises:
        NotConvergedError: no mode in `max_steps`, or a step that gains nothing; it says how far it came.
        NonFiniteError: log p(y | η) is not finite at the start.
        NotPositiveDefiniteError: P + Aᵀ W A is not positive definite: no mode, or an improper prior that the data do
            not settle, as counts that are all 0.
    Cost: a factorisation and two solves a step, some five to ten; one factorisation more for the result.
    Source: [Tierney & Kadane 1986; Rue, Martino & Chopin 2009].
    """
    require_at_least(0, "laplace", max_steps=max_steps)
    problem = _Problem.of(prior, likelihood, observation)
    with problem.without_gradients():
        z, steps = _mode(problem, problem.started(start), max_steps)
    return problem.approximation(z, steps)


class _Problem(NamedTuple):
    """f(z) = Σ log p(y_i | η_i) + c − ½ (z − loc)ᵀ P (z − loc)."""

    graph: Topology
    precision: Array
    loc: Array
    constant: Array
    likelihood: Likelihood
    plan: LinearObservation

    @classmethod
    def of(cls, prior: Any, likelihood: Likelihood, plan: LinearObservation | None) -> _Problem:
        if isinstance(prior, Improper):
            graph, constant = prior.topology, prior.log_constant
        elif isinstance(prior, IntrinsicGaussian):
            graph, constant = prior.graph, prior._log_at_mode()
        elif checks.is_gaussian(prior):
            prior = prior._in_dtype(in_float64(prior.loc).dtype)  # in a wider dtype it is that of its L
            graph = prior.graph
            constant = 0.5 * (prior._logdet() - graph.n * LOG_2PI)
        else:
            raise TypeError(
                "laplace: prior must be a GaussianGraphicalModel, an IntrinsicGaussian or Improper, got "
                f"{type(prior).__name__}."
            )
        refuse_transforms("laplace", prior.loc)
        if not callable(likelihood):
            raise TypeError(
                f"laplace: likelihood must be a function of η, as Poisson, got {type(likelihood).__name__}."
            )
        plan = LinearObservation(graph, scipy.sparse.eye_array(graph.n)) if plan is None else plan
        if not isinstance(plan, LinearObservation) or plan.noise is not None:
            raise TypeError(
                f"laplace: observation must be a LinearObservation without noise=, got {plan!r}. The likelihood has "
                "the noise."
            )
        if plan.shape[1] != graph.n:
            raise ShapeError(f"laplace: observation must be of {graph.n} nodes, as the prior, got {plan}.")
        return cls(graph, in_float64(prior.precision), in_float64(prior.loc), in_float64(constant), likelihood, plan)

    def without_gradients(self) -> AbstractContextManager[Any]:
        return array_namespace(self.loc).no_grad() if is_tensor(self.loc) else nullcontext()

    def started(self, start: Any | None) -> Array:
        """(batch, n), in the batch axes of f."""
        if start is None:
            z = self.loc
        else:
            z, _ = parameters("laplace", start=start, loc=self.loc)
        if is_tensor(z) and not is_tensor(self.loc):
            raise DTypeError("laplace: start is a tensor, but the prior is of arrays. Give start= as an array.")
        if not as_array(array_namespace(z).isfinite(z)).all():
            raise NonFiniteError("laplace: start must be finite, got NaN or infinity.")
        if tuple(z.shape[-1:]) != (self.graph.n,):
            raise ShapeError(f"laplace: start must end in {self.graph.n}, got shape {tuple(z.shape)}.")
        batch = common_batch("laplace", start=z.shape[:-1], prior=self.precision.shape[:-1])
        terms = self.terms(z)
        if not isinstance(terms, Terms):
            raise TypeError(f"laplace: likelihood must give Terms, got {type(terms).__name__}. See CustomLikelihood.")
        batch = common_batch("laplace", start=batch, likelihood=terms.log_prob.shape[:-1])
        return expanded(z, (*batch, self.graph.n))

    def terms(self, z: Array) -> Terms:
        with np.errstate(over="ignore", invalid="ignore"):  # the line search tests for infinity
            return self.likelihood(self.plan.matmul(z))

    def value(self, z: Array) -> Array:
        with np.errstate(over="ignore", invalid="ignore"):
            return total(self.terms(z).log_prob) + self.log_prior(z)

    def log_prior(self, z: Array) -> Array:
        shift = z - self.loc
        return self.constant - 0.5 * total(shift * precision_matmul(self.precision, self.graph, shift))

    def gradient(self, z: Array, terms: Terms) -> Array:
        """∇f = Aᵀ ∂ log p / ∂η − P (z − loc)."""
        return self.plan.matmul_t(terms.gradient) - precision_matmul(self.precision, self.graph, z - self.loc)

    def gaussian(self, z: Array, curvature: Array) -> Any:
        """N(z, (P + Aᵀ W A)⁻¹)."""
        precision = self.plan._sum(self.graph, self.precision, self.plan.gram(curvature))
        try:
            return gaussian_of_precision(precision, z, self.plan.topology)
        except NotPositiveDefiniteError as failure:
            node = self.plan.topology.describe(int(self.plan.topology.order[failure.column]))
            raise failure.saying(
                f"laplace: P + Aᵀ W A must be positive definite, got pivot {failure.pivot:.3g} at {node}"
                f"{checks.in_batch(failure.batch_index)}. Use a proper prior where the data say nothing, or pull "
                "without an end, as counts that are all 0."
            ) from None

    def approximation(self, z: Array, steps: int) -> Laplace:
        if is_tensor(z) and array_namespace(z).is_grad_enabled():
            with self.without_gradients():
                fixed = self.gaussian(z, self.terms(z).curvature)
            for _ in range(DERIVATIVES):
                z = z + fixed.covariance_matmul(self.gradient(z, self.terms(z)))
        terms = self.terms(z)
        q = self.gaussian(z, terms.curvature)
        at_mode = 0.5 * (q._logdet() - self.graph.n * LOG_2PI)
        return Laplace(q, total(terms.log_prob) + self.log_prior(z) - at_mode, self.plan, steps)


def _mode(problem: _Problem, z: Array, max_steps: int) -> tuple[Array, int]:
    """Where ∇f = 0, and the number of steps."""
    xp, value = array_namespace(z), problem.value(z)
    finite = as_array(xp.isfinite(value))
    if not finite.all():
        index = tuple(int(axis) for axis in np.argwhere(~finite)[0])
        raise NonFiniteError(
            f"laplace: the log-likelihood must be finite at the start, got {float(as_array(value)[index])}"
            f"{checks.in_batch(index)}. Give start=, or centre the prior nearer to the data."
        )
    decrement = volume = xp.full_like(value, math.inf)
    done = ~xp.isfinite(value)
    for step in range(max_steps):
        terms = problem.terms(z)
        pull = problem.gradient(z, terms)
        curvature = xp.where(terms.curvature > 0, terms.curvature, 0 * terms.curvature)
        q = problem.gaussian(z, curvature)
        move = q.covariance_matmul(pull)
        with np.errstate(over="ignore", invalid="ignore"):  # an infinite decrement gains nothing
            before, decrement = decrement, total(pull * move)
        other, volume = volume, q._logdet()
        is_stalled = (decrement <= STALLED) & (decrement > before / 4)
        done = done | ((decrement <= TOLERANCE) | is_stalled) & (abs(volume - other) <= SETTLED)
        if bool(done.all()):
            return z + move, step + 1
        z, value = _searched(problem, z, move, value, decrement, done, step)
    raise _not_converged(f"in {max_steps} steps", decrement, value, "Raise max_steps, or give start=.")


def _searched(
    problem: _Problem, z: Array, move: Array, value: Array, decrement: Array, done: Array, step: int
) -> tuple[Array, Array]:
    """z + s · move with the largest s = 1, ½, ¼, … that gains enough; s = 1 for elements of the batch that are done."""
    xp = array_namespace(z)
    size = xp.ones_like(value)
    rounding = 1e3 * np.finfo(np.float64).eps * (1 + abs(value))
    slack = xp.where(ENOUGH * decrement < rounding, rounding, 0 * rounding)  # a gain that rounding may hide
    for _ in range(MOST_HALVINGS):
        trial = z + size[..., None] * move
        found = problem.value(trial)
        gains = done | (found - value >= ENOUGH * size * decrement - slack)
        if bool(gains.all()):
            return trial, found
        size = xp.where(gains, size, size / 2)
    remedy = "The derivatives of the log-likelihood may not be its own."
    raise _not_converged(f"since step {step + 1} gains nothing", decrement, value, remedy)


def _not_converged(why: str, decrement: Array, value: Array, remedy: str) -> NotConvergedError:
    left, reached = as_array(decrement), as_array(value)
    worst = np.unravel_index(np.argmax(left), left.shape)
    index = tuple(int(axis) for axis in worst)
    below = f"about {float(left[index]) / 2:.3g} nats below it, where {TOLERANCE / 2:.0e} are allowed"
    if not math.isfinite(left[index]):
        below = "from where a step is beyond the range of numbers"
    return NotConvergedError(
        f"laplace: the mode was not reached {why}: log-density {float(reached[index]):.6g}, {below}"
        f"{checks.in_batch(index)}. {remedy}"
    )
