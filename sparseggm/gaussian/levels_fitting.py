"""Fitting the Gaussian of the logits of grey images: a density in closed form, probabilities of levels by EM.

Images are read, and logits made, `IMAGES_AT_ONCE` at a time.

**Levels.** A sweep samples each image's logits z in the intervals of its levels, one node after another
(`GreyLevels.sample_logits`), and fits the Gaussian to them in closed form. The mean log weight of the samples is a
lower bound of the mean log-likelihood; a sweep is a step of EM for the distribution that it sampled from. On `Diagonal`
the bound is the likelihood, and its maximum is found directly, by `fit_independent`, where EM is slow to get there:
most pixels are black, and tell only a half-line. The same maximum is the start elsewhere.

**Prior.** A pixel that is black in every image would have its mean at −∞. All fits of levels count one image more,
`PRIOR_IMAGES`, whose pixels are independent and uniform in (0, 1): their logits have mean 0 and variance π²/3. The
likelihood is bounded with it, and no parameter has a floor. A fit of a density needs no prior.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
from scipy.special import log_ndtr, logit

from sparseggm.gaussian.fitting import SampleMoments, columns_of_factor, of_samples
from sparseggm.gaussian.model import GaussianGraphicalModel
from sparseggm.gaussian.observed import GreyLevels, squeezed
from sparseggm.graph.families import Diagonal
from sparseggm.graph.pattern import FloatArray
from sparseggm.graph.topology import Topology
from sparseggm.kernels.sparse.density import LOG_2PI

IMAGES_AT_ONCE = 1_000
PRIOR_IMAGES = 1.0
PRIOR_VARIANCE = math.pi**2 / 3  # of logit u, u uniform in (0, 1)
NEWTON_STEPS = 100

Levels = npt.NDArray[np.integer]


def dequantized(images: Levels, alpha: float, rng: np.random.Generator, levels: int = 256) -> FloatArray:
    """`squeezed` (k + u)/levels, u uniform in [0, 1), for grey levels k of any shape; float64."""
    return squeezed((images + rng.random(images.shape)) / levels, alpha)


def fit_density(
    images: Levels, topology: Topology, alpha: float, rng: np.random.Generator, levels: int = 256
) -> GaussianGraphicalModel:
    """The most likely Gaussian of the logits of `dequantized` images.

    Args:
        images: (N, n) levels 0 … levels − 1.
        topology: factor-free.
    Raises:
        NotPositiveDefiniteError: too few images for the columns of L.
    """
    moments = _density_moments(images, topology, alpha, rng, levels)
    return GaussianGraphicalModel(moments.mean, factor=moments.factor(), topology=topology)


def start_of_levels(
    images: Levels, topology: Topology, alpha: float, rng: np.random.Generator, levels: int = 256
) -> GaussianGraphicalModel:
    """A Gaussian with the moments of `fit_independent` and the correlations of `fit_density`: on `Diagonal` the fit."""
    loc, deviation = fit_independent(count_levels(images, levels), GreyLevels.edges_of(levels))
    if isinstance(topology, Diagonal):
        return GaussianGraphicalModel(loc, factor=1 / deviation, topology=topology)
    pattern, order = topology.precision_pattern, topology.order
    covariance = _density_moments(images, topology, alpha, rng, levels).covariance
    with np.errstate(divide="ignore", invalid="ignore"):  # of one image, whose variances are zero
        units = deviation.take(order) / np.sqrt(covariance[pattern.diagonal])
        covariance *= units[pattern.rows] * units[pattern.cols]
    factor = columns_of_factor(topology, covariance, of_samples(len(images)))
    return GaussianGraphicalModel(loc, factor=factor, topology=topology)


def em_sweep(
    gaussian: GaussianGraphicalModel,
    images: Levels,
    rng: np.random.Generator,
    levels: int = 256,
    advance: Callable[[int], object] = lambda count: None,
) -> tuple[GaussianGraphicalModel, float]:
    """One sweep of EM.

    Args:
        gaussian: without batch axes, on a factor-free topology.
        images: (N, n) levels 0 … levels − 1.
        rng: of the samples.
        advance: called with the number of images that were just read.
    Returns:
        The next Gaussian, and the bound of the given one: mean log weight, nats an image.
    Cost: Σ_j |S_j|² flops an image beside those of `sample_logits`, S_j the rows of column j.
    """
    observed, moments, log_weights = GreyLevels(gaussian, levels), SampleMoments(gaussian.topology, gaussian.loc), 0.0
    for chunk in _chunks(images):
        z, log_weight = observed.sample_logits(chunk, rng)
        moments.add(z)
        log_weights += float(log_weight.sum())
        advance(len(chunk))
    moments.add_independent(PRIOR_IMAGES, 0.0, PRIOR_VARIANCE)
    fitted = GaussianGraphicalModel(moments.mean, factor=moments.factor(), topology=gaussian.topology)
    return fitted, log_weights / len(images)


def count_levels(images: Levels, levels: int = 256) -> npt.NDArray[np.int64]:
    """(n, levels): the number of images in which a pixel has a level."""
    n = images.shape[-1]
    counts = np.zeros(n * levels, np.int64)
    for chunk in _chunks(images):
        counts += np.bincount((chunk + levels * np.arange(n)).ravel(), minlength=len(counts))
    return counts.reshape(n, levels)


def fit_independent(counts: npt.NDArray[np.int64], edges: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The most likely mean and deviation of each pixel, (n,) each, with the prior of the module; exact.

    With s = 1/σ and t = μ/σ, level k has probability D_k = Φ(b_k) − Φ(a_k), a_k = s e_k − t, b_k = s e_{k+1} − t. Its
    logarithm is concave in (s, t) [Prékopa 1973], and so is the prior's log s − ½ (s² π²/3 + t²): Newton's method with
    halved steps, all pixels at once, until a step promises less than 10⁻¹² nats an image.

    Args:
        counts: (n, K), see `count_levels`.
        edges: (K + 1,) increasing; the first and last are infinite.
    """
    objective = _Independent(counts, edges)
    s, t = np.full(len(counts), PRIOR_VARIANCE**-0.5), np.zeros(len(counts))
    for _ in range(NEWTON_STEPS):
        value, slope_s, slope_t, h_ss, h_st, h_tt = objective.derivatives(s, t)
        determinant = h_ss * h_tt - h_st**2  # of a negative definite matrix
        step_s = (h_st * slope_t - h_tt * slope_s) / determinant
        step_t = (h_st * slope_s - h_ss * slope_t) / determinant
        promised = slope_s * step_s + slope_t * step_t
        if (promised <= 1e-12 * objective.total).all():
            return t / s, 1 / s
        size = np.minimum(1.0, 0.9 * s / np.maximum(-step_s, 1e-300))  # s stays positive
        rises = promised <= 1e-12 * abs(value)  # rounding hides the rise: the step is taken as it is
        while not rises.all():
            trial = objective.value(s + size * step_s, t + size * step_t)
            rises |= trial >= value + 1e-4 * size * promised
            size = np.where(rises, size, size / 2)
        s, t = s + size * step_s, t + size * step_t
    raise ArithmeticError(f"fit_independent: no maximum after {NEWTON_STEPS} steps of Newton's method.")


class _Independent:
    """Σ_k c_k log D_k(s, t) + prior, of every pixel; sums run over the levels that occur."""

    def __init__(self, counts: npt.NDArray[np.int64], edges: FloatArray) -> None:
        self.total = counts.sum(axis=1) + PRIOR_IMAGES
        self._pixel, level = np.nonzero(counts)
        self._count = counts[self._pixel, level]
        self._low, self._high = edges[level], edges[level + 1]

    def value(self, s: FloatArray, t: FloatArray) -> FloatArray:
        """(n,), for s and t (n,)."""
        return self._value(s, t, _log_mass(*self._ends(s, t)))

    def derivatives(self, s: FloatArray, t: FloatArray) -> tuple[FloatArray, ...]:
        """Value, gradient (s, t) and Hessian (ss, st, tt), each (n,)."""
        a, b = self._ends(s, t)
        log_mass = _log_mass(a, b)
        rate_a, rate_b = (np.exp(-0.5 * (x**2 + LOG_2PI) - log_mass) for x in (a, b))  # φ(a)/D, φ(b)/D
        a, b, low, high = (np.where(np.isfinite(x), x, 0.0) for x in (a, b, self._low, self._high))  # where φ is 0
        # ∂ log D = rate_b ∂b − rate_a ∂a,  ∂(s e − t) = e ∂s − ∂t
        aa, ab, bb = a * rate_a - rate_a**2, rate_a * rate_b, -b * rate_b - rate_b**2
        return (
            self._value(s, t, log_mass),
            self._sum(high * rate_b - low * rate_a) + PRIOR_IMAGES * (1 / s - PRIOR_VARIANCE * s),
            self._sum(rate_a - rate_b) - PRIOR_IMAGES * t,
            self._sum(high**2 * bb + 2 * low * high * ab + low**2 * aa) - PRIOR_IMAGES * (1 / s**2 + PRIOR_VARIANCE),
            -self._sum(high * bb + (low + high) * ab + low * aa),
            self._sum(bb + 2 * ab + aa) - PRIOR_IMAGES,
        )

    def _ends(self, s: FloatArray, t: FloatArray) -> tuple[FloatArray, FloatArray]:
        s, t = s[self._pixel], t[self._pixel]
        return s * self._low - t, s * self._high - t

    def _sum(self, of: FloatArray) -> FloatArray:
        return np.bincount(self._pixel, self._count * of, len(self.total))

    def _value(self, s: FloatArray, t: FloatArray, log_mass: FloatArray) -> FloatArray:
        return np.asarray(self._sum(log_mass) + PRIOR_IMAGES * (np.log(s) - 0.5 * (PRIOR_VARIANCE * s**2 + t**2)))


def _log_mass(a: FloatArray, b: FloatArray) -> FloatArray:
    """log (Φ(b) − Φ(a)), a < b, without cancellation in either tail."""
    upper = a > 0
    low, high = log_ndtr(np.where(upper, -b, a)), log_ndtr(np.where(upper, -a, b))
    return np.asarray(high + np.log(-np.expm1(low - high)))


def _density_moments(
    images: Levels, topology: Topology, alpha: float, rng: np.random.Generator, levels: int
) -> SampleMoments:
    moments = SampleMoments(topology, logit(squeezed((images.mean(axis=0) + 0.5) / levels, alpha)))
    for chunk in _chunks(images):
        moments.add(logit(dequantized(chunk, alpha, rng, levels)))
    return moments


def _chunks(images: Levels) -> Iterator[Levels]:
    return (images[first : first + IMAGES_AT_ONCE] for first in range(0, len(images), IMAGES_AT_ONCE))
