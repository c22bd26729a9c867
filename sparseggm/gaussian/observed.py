"""Gaussian graphical models of observed numbers: logit-normal densities on (0, 1), and grey levels.

Both are made from a `GaussianGraphicalModel` of the logits z, of any batch; their pixels are its nodes.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import expit, logit, ndtr

from sparseggm.errors import DTypeError, ShapeError
from sparseggm.gaussian.model import GaussianGraphicalModel
from sparseggm.graph.families import Diagonal
from sparseggm.graph.pattern import FloatArray
from sparseggm.linalg import checks
from sparseggm.linalg.checks import Shape
from sparseggm.linalg.levels import sample_in_levels
from sparseggm.positivity.namespace import array_namespace
from sparseggm.promotion import plain, promoted
from sparseggm.stochastic.estimators import Estimate
from sparseggm.stochastic.randomness import Seed, generator

LOG_2 = math.log(2.0)


def squeezed(x: npt.ArrayLike, alpha: float) -> FloatArray:
    """α + (1 − 2α) x, which moves [0, 1] into (0, 1): 0 < α < ½.

    A density of the squeezed numbers is one of x after adding n log(1 − 2α): see `bits_per_dimension`.
    """
    if not 0.0 < alpha < 0.5:
        raise ValueError(f"squeezed: alpha must be in (0, ½), got {alpha!r}.")
    return np.asarray(alpha + (1.0 - 2.0 * alpha) * np.asarray(x))


def bits_per_dimension(log_prob: npt.ArrayLike, n: int, levels: int = 256, alpha: float | None = None) -> FloatArray:
    """−log₂ of a probability a pixel: of grey levels themselves; or, given α, of a density of squeezed numbers.

    The density of x is (1 − 2α)ⁿ times that of y = α + (1 − 2α) x; of levels k, x = (k + u)/levels, another levels⁻ⁿ.
    """
    scale = 0.0 if alpha is None else math.log(levels) - math.log1p(-2.0 * alpha)
    return np.asarray((scale - np.asarray(log_prob, np.float64) / n) / LOG_2)


def require_num_samples(function: str, num_samples: Any) -> None:
    """Raise a ValueError unless this is a number of samples."""
    if isinstance(num_samples, bool) or not hasattr(num_samples, "__index__") or num_samples < 1:
        raise ValueError(f"{function}: num_samples must be an integer of at least 1, got {num_samples!r}.")


def levels_at(numbers: Any, levels: int) -> Any:
    """k of numbers in [k/K, (k + 1)/K), K − 1 of 1, of arrays and tensors. Their product with K could round past k."""
    xp = array_namespace(numbers)
    found = xp.floor(numbers * levels)
    found = xp.where((found + 1.0) / levels <= numbers, found + 1.0, found)
    found = xp.where(found / levels > numbers, found - 1.0, found)
    return xp.where(found >= levels, levels - 1.0, found)


def require_levels(levels: Any, limit: Any) -> None:
    """Raise a ValueError unless `GreyLevels` can have this many levels within this limit."""
    if isinstance(levels, bool) or not hasattr(levels, "__index__") or levels < 2:
        raise ValueError(f"GreyLevels: levels must be an integer of at least 2, got {levels!r}.")
    is_number = isinstance(limit, int | float | np.integer | np.floating)
    if not (is_number and limit > math.log(levels - 1)):
        raise ValueError(
            f"GreyLevels: limit must be above {math.log(levels - 1):.4g}, where the last of {levels} levels begins, "
            f"got {limit!r}."
        )


class LogitNormal:
    """Numbers x in (0, 1)ⁿ whose logits log x − log(1 − x) are Gaussian.

    Args:
        gaussian: of the logits.
    """

    def __init__(self, gaussian: GaussianGraphicalModel) -> None:
        checks.require_gaussian("LogitNormal", "gaussian", gaussian, GaussianGraphicalModel)
        self.gaussian = gaussian

    def __repr__(self) -> str:
        return f"LogitNormal({self.gaussian!r})"

    def log_prob(self, x: npt.ArrayLike) -> FloatArray:
        """log N(logit x; loc, P⁻¹) − Σ log x (1 − x), nats; batch axes of x (..., n) broadcast.

        Raises:
            ValueError: a number outside (0, 1). At 0 and 1 the density is 0 or undefined: move them inside, `squeezed`.
        """
        z = self._logits("log_prob", x)
        wide = z.astype(np.float64)
        jacobian = (np.logaddexp(0.0, wide) + np.logaddexp(0.0, -wide)).sum(axis=-1)  # −log x − log(1 − x)
        log_prob = self.gaussian.log_prob(z).astype(np.float64) + jacobian
        return checks.require_representable("log_prob", log_prob, z.dtype)

    def sample(self, size: int | Shape = (), rng: Seed = None) -> FloatArray:
        """Samples of shape size + batch_shape + (n,). Rounding leaves none at 0 or 1."""
        limits = np.finfo(self.gaussian.dtype)
        return np.asarray(np.clip(expit(self.gaussian.sample(size, rng)), limits.tiny, 1.0 - limits.eps / 2))

    def condition(self, nodes: npt.ArrayLike, values: npt.ArrayLike) -> LogitNormal:
        """Of the other pixels, ascending, given x[nodes] = values: see `GaussianGraphicalModel.condition`."""
        return LogitNormal(self.gaussian.condition(nodes, self._logits("condition", values)))

    def _logits(self, function: str, x: npt.ArrayLike) -> FloatArray:
        (x,) = promoted(f"LogitNormal.{function}", self.gaussian.dtype, x=x)
        inside = (x > 0) & (x < 1)
        if not inside.all():
            raise ValueError(
                f"LogitNormal.{function}: numbers must be in (0, 1), got {x[~inside].flat[0]}. Move 0 and 1 inside, "
                "for example to 1e-6 + (1 - 2e-6) * x."
            )
        return np.asarray(logit(x))


class GreyLevels:
    """Levels 0 … K − 1 of n pixels: level k where the logit-normal number is in [k/K, (k + 1)/K).

    Args:
        gaussian: of the logits.
        levels: K, at least 2.
        limit: where the first and the last level end, as logits ∓limit. Less than ∞, probabilities are those of the
            levels and of all logits within the limit: lower bounds, whose samples cannot run away.
    A probability, so that its logarithm is at most 0, and comparable with every model of levels.
    """

    def __init__(self, gaussian: GaussianGraphicalModel, levels: int = 256, limit: float = math.inf) -> None:
        checks.require_gaussian("GreyLevels", "gaussian", gaussian, GaussianGraphicalModel)
        require_levels(levels, limit)
        self.gaussian, self.levels, self.limit = gaussian, int(levels), float(limit)
        self.edges = np.clip(self.edges_of(self.levels), -limit, limit)
        self._edges = np.append(self.edges, [-np.inf, np.inf])  # level K + 1 is the whole line: a missing pixel

    @staticmethod
    def edges_of(levels: int) -> FloatArray:
        """(levels + 1,) logits of k / levels, from −∞ to ∞."""
        return np.asarray(logit(np.arange(levels + 1) / levels))

    def __repr__(self) -> str:
        limit = "" if math.isinf(self.limit) else f", limit={self.limit}"
        return f"GreyLevels({self.gaussian!r}, levels={self.levels}{limit})"

    def log_prob(
        self, x: npt.ArrayLike, num_samples: int = 1, rng: Seed = None, missing: npt.ArrayLike | None = None
    ) -> FloatArray:
        """log of an unbiased estimate of P(levels = x), nats: a lower bound in expectation; exact on `Diagonal`.

        Args:
            x: (..., n) integers of 0 … levels − 1; batch axes broadcast.
            num_samples: sequential samples whose weights are averaged.
            rng: of their uniform numbers.
            missing: (..., n) booleans, where the level is unknown: the probability is that of the others. The samples
                are best where the missing pixels come first in the order of elimination, such as the upper rows.
        Cost: O(nnz(L) + n) a sample, see `linalg.levels.levels_log_prob`.
        """
        return self._estimate("GreyLevels.log_prob", x, num_samples, rng, missing).value

    def estimate_log_prob(
        self, x: npt.ArrayLike, num_samples: int = 1, rng: Seed = None, missing: npt.ArrayLike | None = None
    ) -> Estimate:
        """`log_prob` and its standard error, σ(w) / (w̄ √N) for weights w: of one sample NaN, on `Diagonal` 0."""
        return self._estimate("GreyLevels.estimate_log_prob", x, num_samples, rng, missing)

    def _estimate(
        self, function: str, x: npt.ArrayLike, num_samples: int, rng: Seed, missing: npt.ArrayLike | None
    ) -> Estimate:
        require_num_samples(function, num_samples)
        if isinstance(self.gaussian.topology, Diagonal):
            exact = self._sample(function, x, missing, (), np.random.default_rng(0))[1]
            return Estimate(exact, np.zeros_like(exact))
        log_weights = self._sample(function, x, missing, (num_samples,), generator(function, rng))[1]
        largest = log_weights.max(axis=0)
        weights = np.exp(log_weights - largest)
        mean = weights.mean(axis=0)
        deviation = weights.std(axis=0, ddof=1) if num_samples > 1 else np.full_like(mean, np.nan)
        return Estimate(largest + np.log(mean), deviation / (mean * math.sqrt(num_samples)))

    def sample(self, size: int | Shape = (), rng: Seed = None) -> npt.NDArray[np.int64]:
        """Levels of shape size + batch_shape + (n,)."""
        return self.levels_of(expit(self.gaussian.sample(size, rng).astype(np.float64)))

    def levels_of(self, x: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """The levels of numbers in [0, 1]. Raises ValueError for others."""
        (numbers,) = promoted("GreyLevels.levels_of", np.dtype(np.float64), x=x)
        inside = (numbers >= 0) & (numbers <= 1)
        if not inside.all():
            raise ValueError(f"GreyLevels.levels_of: numbers must be in [0, 1], got {numbers[~inside].flat[0]}.")
        found: npt.NDArray[np.int64] = levels_at(numbers, self.levels).astype(np.int64)
        return found

    def mean(self) -> FloatArray:
        """The expected level of each pixel, batch_shape + (n,), float64: Σ_k P(level ≥ k), from exact variances."""
        g = self.gaussian
        deviation = np.sqrt(g.variance.astype(np.float64))
        total = np.zeros((*g.batch_shape, g.n))
        for edge in self.edges[1:-1]:
            total += ndtr((g.loc - edge) / deviation)
        return total

    def sample_logits(
        self, x: npt.ArrayLike, rng: Seed = None, missing: npt.ArrayLike | None = None
    ) -> tuple[FloatArray, FloatArray]:
        """z (..., n), sampled one after another in the intervals of levels x, and the logarithms of their weights.

        A missing pixel is sampled from the whole line, given those after it in the order of elimination: this fills in
        an image. Weighted by exp(log weight), z is a sample given the levels of the others.
        """
        function = "GreyLevels.sample_logits"
        return self._sample(function, x, missing, (), generator(function, rng))

    def _sample(
        self,
        function: str,
        x: npt.ArrayLike,
        missing: npt.ArrayLike | None,
        size: Shape,
        rng: np.random.Generator,
    ) -> tuple[FloatArray, FloatArray]:
        x, g = self._checked_levels(function, _whole(function, "x", x), missing), self.gaussian
        batch = checks.broadcast(function, x=x.shape[:-1], gaussian=g.batch_shape)
        uniform = rng.uniform(2.0**-54, 1.0, (*size, *batch, g.n)).astype(g.dtype, copy=False)
        np.clip(uniform, None, np.nextafter(g.dtype.type(1), g.dtype.type(0)), out=uniform)
        order, natural = g.topology.order, g.topology.is_naturally_ordered
        loc, levels = (g.loc, x) if natural else (g.loc.take(order, axis=-1), x.take(order, axis=-1))
        z, log_prob = sample_in_levels(g.factor_pattern, loc, g.factor, levels, self._edges, uniform)
        return (z if natural else z.take(g.topology.inverse_order, axis=-1)), log_prob

    def _checked_levels(
        self, function: str, x: npt.NDArray[Any], missing: npt.ArrayLike | None
    ) -> npt.NDArray[np.integer]:
        """x, where missing pixels have the level of the whole line."""
        if not np.issubdtype(x.dtype, np.integer):
            raise DTypeError(
                f"{function}: levels must be integers, got {x.dtype}. Convert them with levels_of or astype."
            )
        if x.shape[-1:] != (self.gaussian.n,):
            raise ShapeError(
                f"{function}: x must end in {self.gaussian.n}, the pixels of {self.gaussian.topology}, "
                f"got shape {x.shape}."
            )
        if missing is not None:
            absent = _whole(function, "missing", missing)
            if absent.dtype != np.bool_ or absent.shape[-1:] != x.shape[-1:]:
                raise ShapeError(
                    f"{function}: missing must be booleans that end in {self.gaussian.n}, the pixels, "
                    f"got {absent.dtype} of shape {absent.shape}."
                )
            checks.broadcast(function, x=x.shape[:-1], missing=absent.shape[:-1])
            x = np.where(absent, 0, x)
        if x.size and (x.min() < 0 or x.max() >= self.levels):
            raise ValueError(f"{function}: levels must be in 0 … {self.levels - 1}, got {x.min()} … {x.max()}.")
        return x if missing is None else np.where(absent, self.levels + 1, x.astype(np.int32))


def _whole(function: str, name: str, values: npt.ArrayLike) -> npt.NDArray[Any]:
    """An array without hidden entries."""
    return plain(function, name, values if isinstance(values, np.ndarray) else np.asarray(values))
