"""Diagnostics of posteriors and of importance sampling from them: how far the figures of an evaluation can be trusted.

* active units: latent variables whose posterior mean differs from image to image, Var_x E_q[z_j] > 0.01 [Burda, Grosse
  & Salakhutdinov 2016];
* correlations of q(z | x) on each edge of the graph: their mean and standard deviation over images;
* k̂, the shape of the tail of the importance weights [Vehtari et al. 2024]: above 0.7 their mean cannot be trusted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sparseggm.torch import GaussianGraphicalModel

ACTIVE = 0.01
LEAST_TAIL = 5
"""Weights that a tail needs, to have a shape."""

FloatArray = npt.NDArray[np.float64]


class RunningMoments:
    """Mean and variance over images of numbers that arrive in chunks, in float64 [Chan, Golub & LeVeque 1983]."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = self.squares = torch.zeros((), dtype=torch.float64, device="cpu")

    def add(self, values: Tensor) -> None:
        """Add (images, m) numbers."""
        values = values.double().cpu()
        count, mean = len(values), values.mean(0)
        shift, total = mean - self.mean, self.count + len(values)
        self.squares = self.squares + (values - mean).square().sum(0) + shift.square() * (self.count * count / total)
        self.mean, self.count = self.mean + shift * (count / total), total

    def variance(self) -> Tensor:
        """(m,) of the images themselves, not an estimate for others."""
        return self.squares / self.count


@dataclass(frozen=True)
class PosteriorSpread:
    """How the posteriors of images differ, each float64.

    Args:
        variance_of_means: (n,) Var_x E_q[z_j].
        edges: (m, 2) of the graph of P.
        correlation: (m,) mean over images of the correlation of z_i and z_j under q(z | x).
        correlation_deviation: (m,) its standard deviation over images.
    """

    variance_of_means: FloatArray
    edges: npt.NDArray[np.int64]
    correlation: FloatArray
    correlation_deviation: FloatArray

    def summary(self) -> dict[str, Any]:
        """The number of active units, and root mean squares over edges, 0 without edges."""
        return {
            "units": len(self.variance_of_means),
            "active_units": int((self.variance_of_means > ACTIVE).sum()),
            "correlation_rms": _root_mean_square(self.correlation),
            "correlation_deviation_rms": _root_mean_square(self.correlation_deviation),
        }


def stacked(spreads: Sequence[PosteriorSpread]) -> dict[str, Any]:
    """The arrays of layers by name, one layer after the other; nodes are numbered through."""
    starts = np.cumsum([0, *(len(spread.variance_of_means) for spread in spreads)])
    arrays = [
        vars(spread) | {"edges": spread.edges + start} for spread, start in zip(spreads, starts[:-1], strict=True)
    ]
    return {name: np.concatenate([each[name] for each in arrays]) for name in arrays[0]}


class RunningSpread:
    """`PosteriorSpread` of posteriors that arrive in chunks."""

    def __init__(self) -> None:
        self.means, self.correlations = RunningMoments(), RunningMoments()
        self.edges: npt.NDArray[np.int64] = np.empty((0, 2), np.int64)

    def add(self, q: GaussianGraphicalModel) -> None:
        """Add posteriors (images, n)."""
        self.edges = q.graph.edges
        self.means.add(q.loc)
        self.correlations.add(q.correlation_on(self.edges))

    def result(self) -> PosteriorSpread:
        return PosteriorSpread(
            variance_of_means=self.means.variance().numpy(),
            edges=self.edges,
            correlation=self.correlations.mean.numpy(),
            correlation_deviation=self.correlations.variance().sqrt().numpy(),
        )


class RunningTail:
    """The largest of K log weights an image that arrive in chunks, and the shape of their tail.

    The tail is the largest min(K/5, 3√K), rounded up [Vehtari et al. 2024]; one more is kept, their threshold.
    """

    def __init__(self, images: int, samples: int) -> None:
        self.size = tail_size(samples)
        self.largest = torch.empty(0, images, dtype=torch.float64, device="cpu")

    def add(self, log_weights: Tensor) -> None:
        """Add (k, images) log weights."""
        both = torch.cat([self.largest, log_weights.double().cpu()])
        self.largest = both.topk(min(self.size + 1, len(both)), dim=0).values

    @property
    def has_shape(self) -> bool:
        """Whether there are enough samples."""
        return self.size >= LEAST_TAIL

    def shape(self) -> Tensor:
        """k̂, (images,)."""
        excess = (self.largest - self.largest[0]).exp()
        return pareto_shape((excess[:-1] - excess[-1]).T)


def tail_size(samples: int) -> int:
    """How many of the largest weights make the tail."""
    return math.ceil(min(samples / 5, 3.0 * math.sqrt(samples)))


def largest_shape(samples: int) -> float:
    """Up to which k̂ the mean of that many weights can be trusted [Vehtari et al. 2024]."""
    return min(1.0 - 1.0 / math.log10(samples), 0.7)


def tail_summary(shapes: FloatArray, samples: int) -> dict[str, float]:
    """Mean and largest k̂ of images, and the share of them whose weights can be trusted."""
    return {
        "pareto_k_mean": float(shapes.mean()),
        "pareto_k_max": float(shapes.max()),
        "pareto_k_trusted": float((shapes <= largest_shape(samples)).mean()),
    }


def pareto_shape(excess: Tensor) -> Tensor:
    """k̂ of the generalised Pareto distribution of M numbers (..., M) over their threshold, all ≥ 0.

    With k(θ) = mean log(1 − θ x), θ = −k/σ, and the profile likelihood exp(M (log(−θ/k) − k)): k at the mean of θ over
    a grid, weighted by the likelihood [Zhang & Stephens 2009], moved towards ½ as by ten more numbers [Vehtari et al.
    2024]. Numbers that are all equal have no tail, and k̂ is far below zero.

    Returns:
        (...), float64.
    """
    x = excess.double().sort(-1).values
    x = torch.where(x[..., -1:] > 0.0, x / x[..., -1:], 1.0)  # k has no unit
    size, points = x.shape[-1], 30 + math.isqrt(x.shape[-1])
    quartile = x[..., int(size / 4 + 0.5) - 1].clamp(min=torch.finfo(x.dtype).eps)
    numbers = torch.arange(1, points + 1, dtype=x.dtype, device=x.device)
    thetas = 1.0 + (1.0 - (points / (numbers - 0.5)).sqrt()) / (3.0 * quartile[..., None])
    k = torch.stack([_mean_log(theta, x) for theta in thetas.unbind(-1)], -1)
    weights = (size * ((-thetas / k).log() - k)).softmax(-1)
    shape = _mean_log((weights * thetas).sum(-1), x)
    return (size * shape + 10.0 * 0.5) / (size + 10.0)


def _mean_log(theta: Tensor, x: Tensor) -> Tensor:
    return torch.log1p(-theta[..., None] * x).mean(-1)


def _root_mean_square(values: FloatArray) -> float:
    return float(np.sqrt(np.mean(values**2))) if len(values) else 0.0
