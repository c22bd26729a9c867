"""log p(x | z) of an image, and the image x that each likelihood observes; in nats, of all pixels.

Every likelihood takes the 256 grey levels of an image, (..., 784) uint8, and what its decoder made of z: the logits of
independent pixels, or the Gaussian of the logits of grey levels. The three numbers are logarithms of probabilities of
what is observed. That of `levels` and that of `logit-normal` are comparable: both bound the log-probability of the
grey levels, the density after adding log of the bins' width, (1 − 2α)/256 a pixel.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from sparseggm.kernels.sparse.density import LOG_2PI
from sparseggm.torch import GaussianGraphicalModel, GreyLevels, LogitNormal
from sparseggm.vae.config import PIXELS, Config
from sparseggm.vae.data import Images
from sparseggm.vae.randomness import binarize, dequantized, generator

LEVELS = 256
# Without it, weights that are wrong at first may let a black region grow blacker from pixel to pixel, to −10³⁰.
LIMIT = 30.0
# One binarisation, or dequantisation, of validation and test images for every run, so that differences are paired.
BINARIZATION_SEED = 1


class Likelihood(Protocol):
    """What training, evaluation and pictures ask of a likelihood."""

    def observe(self, images: Tensor, rng: torch.Generator) -> Tensor:
        """x of images (..., 784) uint8, with the noise that it needs: binarised, dequantised, or as they are."""
        ...

    def encoded(self, x: Tensor) -> Tensor:
        """x as the encoder sees it: floats in [0, 1]."""
        ...

    def log_prob(self, decoded: Any, x: Tensor, rng: torch.Generator, missing: Tensor | None = None) -> Tensor:
        """log p(x | z), or an unbiased estimate of p(x | z) in its logarithm; batch axes broadcast.

        With `missing` (784,) booleans that of the other pixels.
        """
        ...

    def intensities(self, decoded: Any) -> Tensor:
        """The most plausible image, (..., 784) in [0, 1]: means of pixels, or the numbers at the mean logits."""
        ...


class Bernoulli:
    """Independent pixels, each on with the probability sigmoid(a) of its logit a."""

    def observe(self, images: Tensor, rng: torch.Generator) -> Tensor:
        return binarize(images, rng)

    def encoded(self, x: Tensor) -> Tensor:
        return x

    def log_prob(self, decoded: Tensor, x: Tensor, rng: torch.Generator, missing: Tensor | None = None) -> Tensor:
        seen = slice(None) if missing is None else ~missing
        return bernoulli_log_likelihood(decoded[..., seen], x[..., seen])

    def intensities(self, decoded: Tensor) -> Tensor:
        return decoded.sigmoid()


class LogitNormalPixels:
    """The density of dequantised grey levels y = α + (1 − 2α)(k + u)/256 whose logits are Gaussian."""

    def __init__(self, alpha: float) -> None:
        self.alpha = alpha

    def observe(self, images: Tensor, rng: torch.Generator) -> Tensor:
        return dequantized(images, rng, self.alpha)

    def encoded(self, x: Tensor) -> Tensor:
        return x

    def log_prob(
        self, decoded: GaussianGraphicalModel, x: Tensor, rng: torch.Generator, missing: Tensor | None = None
    ) -> Tensor:
        log_width = math.log1p(-2.0 * self.alpha) - math.log(LEVELS)
        x = x.to(decoded.loc)
        if missing is None:
            return LogitNormal(decoded, validate_args=False).log_prob(x) + PIXELS * log_width
        return _marginal_log_density(decoded, x, ~missing) + (~missing).sum() * log_width

    def intensities(self, decoded: GaussianGraphicalModel) -> Tensor:
        return decoded.loc.sigmoid()


class LevelPixels:
    """The probability of the grey levels, all logits within ∓30, by one sequential truncated sample.

    Exact where pixels are independent.
    """

    def observe(self, images: Tensor, rng: torch.Generator) -> Tensor:
        return images

    def encoded(self, x: Tensor) -> Tensor:
        return x / (LEVELS - 1)

    def log_prob(
        self, decoded: GaussianGraphicalModel, x: Tensor, rng: torch.Generator, missing: Tensor | None = None
    ) -> Tensor:
        return GreyLevels(decoded, LEVELS, LIMIT, validate_args=False).log_prob(x, generator=rng, missing=missing)

    def intensities(self, decoded: GaussianGraphicalModel) -> Tensor:
        return decoded.loc.sigmoid()


def _marginal_log_density(g: GaussianGraphicalModel, x: Tensor, seen: Tensor) -> Tensor:
    """log p of the pixels `seen` (784,) of x, whose logits are g, where all others come before them in elimination.

    log p(x) = Σ_j log p(x_j | later pixels), so those that come first are integrated out by leaving out their terms.
    """
    pattern = g.factor_pattern
    if (seen[pattern.cols.copy()] & ~seen[pattern.rows.copy()]).any():
        raise ValueError("logit-normal: a missing pixel comes after one that is seen, which depends on it. Use levels.")
    white = g.whiten(torch.logit(x) - g.loc)
    log_pivots = g.factor[..., pattern.diagonal.copy()].log()
    terms = log_pivots - 0.5 * (white.square() + LOG_2PI) - x.log() - torch.log1p(-x)
    return terms[..., seen].sum(-1, dtype=torch.float64).to(x)


def likelihood_of(config: Config) -> Likelihood:
    """The likelihood of a recipe."""
    if config.likelihood == "levels":
        return LevelPixels()
    return LogitNormalPixels(config.alpha) if config.likelihood == "logit-normal" else Bernoulli()


def held_out(likelihood: Likelihood, images: Images, part: str) -> Tensor:
    """The "test" or "validation" images as a likelihood observes them: the same at every call."""
    return likelihood.observe(images.part(part), generator(BINARIZATION_SEED, part))


def bernoulli_log_likelihood(logits: Tensor, x: Tensor) -> Tensor:
    """log p(x | z) = −Σ_i softplus((1 − 2 x_i) a_i) over the last axis; `x` in {0, 1} broadcasts against the logits a.

    It equals Σ x a − softplus(a), but its gradient takes half the passes.
    """
    return -F.softplus(torch.rsub(x, 1.0, alpha=2.0) * logits).sum(-1)
