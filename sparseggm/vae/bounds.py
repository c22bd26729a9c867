"""ELBO and log p(x) of held-out images by importance sampling from the posterior.

log p(x) is estimated from below by log (1/K) Σ_k w_k for each image, in float64 by a running log-sum-exp. The bias of
the estimate is about −Var(w) / (2K E[w]²), so the effective sample size (Σ w)² / Σ w² is reported beside it, and the
shape k̂ of the tail of the weights. All models get the same binarised or dequantised images and the same noise, so that
differences between models are paired. Grey images have bits per dimension too, which compare with every model of grey
levels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import stdtrit
from torch import Tensor

from sparseggm.gaussian.observed import bits_per_dimension
from sparseggm.vae.config import PIXELS
from sparseggm.vae.diagnostics import PosteriorSpread, RunningSpread, RunningTail, stacked, tail_summary
from sparseggm.vae.model import ImageModel, Inference
from sparseggm.vae.objective import LogLikelihood
from sparseggm.vae.randomness import generator
from sparseggm.vae.refinement import refined

CONFIDENCE = 0.95
# 64 images × 16 samples: their logits, 3 MB, stay in cache.
IMAGES_AT_ONCE = 64
SAMPLES_AT_ONCE = 16
FEW = 200

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Evaluation:
    """Results of K importance samples an image, each (N,) float64 nats, except `effective_samples` and `pareto_k`.

    Args:
        samples: K.
        log_p_200: log p(x) from the first 200 samples, where there are more: estimates from equally many compare.
        kl: of all layers; `kl_by_layer` has it for each, from the top, (N, layers).
        pareto_k: the shape of the tail of the weights, from 21 samples on.
        log_p_hidden: log p(hidden half | the other half), where it was asked for: a difference of two estimates from
            the same samples of z.
        spreads: how the posteriors of each layer differ from image to image; those of lower layers at the posterior
            means of the layers above.
    """

    samples: int
    elbo: FloatArray
    kl: FloatArray
    log_p: FloatArray
    effective_samples: FloatArray
    kl_by_layer: FloatArray
    spreads: tuple[PosteriorSpread, ...]
    log_p_200: FloatArray | None = None
    pareto_k: FloatArray | None = None
    log_p_hidden: FloatArray | None = None

    def columns(self) -> dict[str, Any]:
        """The arrays by name."""
        found = vars(self) | stacked(self.spreads)
        return {name: values for name, values in found.items() if name != "spreads" and np.ndim(values)}

    def summary(self) -> dict[str, float]:
        """Means over images, their standard errors, and the diagnostics."""
        means = {"elbo": self.elbo, "log_p": self.log_p, "gap": self.log_p - self.elbo}
        means |= {"log_p_200": self.log_p_200} if self.log_p_200 is not None else {}
        means |= {"log_p_hidden": self.log_p_hidden} if self.log_p_hidden is not None else {}
        return {
            **{name: float(values.mean()) for name, values in means.items()},
            **{f"{name}_standard_error": standard_error(values) for name, values in means.items()},
            "kl": float(self.kl.mean()),
            "effective_samples_mean": float(self.effective_samples.mean()),
            "effective_samples_min": float(self.effective_samples.min()),
            **({} if self.pareto_k is None else tail_summary(self.pareto_k, self.samples)),
            **self._by_layer(),
        }

    def _by_layer(self) -> dict[str, Any]:
        """Diagnostics of the posteriors, over all layers, and of several layers for each."""
        of_each = [spread.summary() for spread in self.spreads]
        if len(of_each) == 1:
            return of_each[0]
        means = self.kl_by_layer.mean(0)
        layers = [summary | {"kl": float(kl)} for summary, kl in zip(of_each, means, strict=True)]
        return {"active_units": sum(each["active_units"] for each in layers), "layers": layers}

    def in_bits(self) -> dict[str, float]:
        """The two bounds in bits per dimension, with standard errors."""
        bits = {
            "elbo_bits": bits_per_dimension(self.elbo, PIXELS),
            "log_p_bits": bits_per_dimension(self.log_p, PIXELS),
        }
        errors = {f"{name}_standard_error": standard_error(values) for name, values in bits.items()}
        return {name: float(values.mean()) for name, values in bits.items()} | errors


def standard_error(values: FloatArray) -> float:
    """Standard error of the mean of independent values; 0 for a single value, where it has no meaning."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else 0.0


def interval(values: FloatArray) -> tuple[float, float]:
    """Mean of independent values, and half its 95 % interval by Student's t; 0 for a single one."""
    quantile = float(stdtrit(len(values) - 1, (1.0 + CONFIDENCE) / 2.0)) if len(values) > 1 else 0.0
    return float(values.mean()), quantile * standard_error(values)


class RunningWeights:
    """Σ w and Σ w² of log weights that arrive in chunks, relative to the largest seen so far."""

    def __init__(self, images: int) -> None:
        self.largest = torch.full((images,), -math.inf, dtype=torch.float64, device="cpu")
        self.sum = torch.zeros(images, dtype=torch.float64, device="cpu")
        self.sum_of_squares = torch.zeros(images, dtype=torch.float64, device="cpu")
        self.count = 0

    def add(self, log_weights: Tensor) -> None:
        """Add (K, images) log weights to the sums."""
        log_weights = log_weights.double().cpu()
        largest = torch.maximum(self.largest, log_weights.amax(0))
        shrink = (self.largest - largest).exp()
        weights = (log_weights - largest).exp()
        self.sum = self.sum * shrink + weights.sum(0)
        self.sum_of_squares = self.sum_of_squares * shrink.square() + weights.square().sum(0)
        self.largest, self.count = largest, self.count + len(log_weights)

    def log_mean(self) -> Tensor:
        """log (1/K) Σ w, (images,)."""
        return self.largest + self.sum.log() - math.log(self.count)

    def effective_samples(self) -> Tensor:
        """(Σ w)² / Σ w², between 1 and K, (images,)."""
        return self.sum.square() / self.sum_of_squares


def evaluate_images(
    vae: ImageModel,
    images: Tensor,
    samples: int,
    seed: int = 0,
    advance: Callable[[int], object] = lambda images: None,
    hidden: Tensor | None = None,
    refine: int = 0,
) -> Evaluation:
    """Estimate the bounds of every image.

    Args:
        vae: a trained model.
        images: (N, 784) as `vae.likelihood` observes them.
        samples: K, importance samples an image.
        seed: of the noise.
        advance: called with the number of images that were just finished.
        hidden: (784,) booleans, the pixels of `log_p_hidden`; None: no such result.
        refine: steps of `refinement.refined` on each posterior.
    """
    results: list[dict[str, Tensor]] = []
    spreads: list[RunningSpread] = []
    for start in range(0, len(images), IMAGES_AT_ONCE):
        x, purpose = images[start : start + IMAGES_AT_ONCE], (seed, start)
        inferred = refined(vae, x, refine, purpose)
        with torch.inference_mode():
            gaussians = inferred.gaussians
            spreads = spreads or [RunningSpread() for _ in gaussians]
            for spread, q in zip(spreads, gaussians, strict=True):
                spread.add(q)
            results.append(_bounds(vae, inferred, x, samples, purpose, hidden))
        advance(len(x))
    per_image = {name: torch.cat([each[name] for each in results]).numpy() for name in results[0]}
    return Evaluation(samples=samples, spreads=tuple(spread.result() for spread in spreads), **per_image)


def _bounds(
    vae: ImageModel, q: Inference, x: Tensor, samples: int, purpose: tuple[int, int], hidden: Tensor | None
) -> dict[str, Tensor]:
    """The results of a chunk of images, whose noise is that of a purpose."""
    missing = (None,) if hidden is None else (None, hidden)
    whole, *seen = (RunningWeights(len(x)) for _ in missing)
    few, tail = RunningWeights(len(x)), RunningTail(len(x), samples)
    reconstruction = torch.zeros(len(x), dtype=torch.float64, device="cpu")
    ratios, (seed, start) = torch.zeros((), dtype=torch.float64, device="cpu"), purpose
    for first in range(0, samples, SAMPLES_AT_ONCE):
        count = min(SAMPLES_AT_ONCE, samples - first)
        source = generator(seed, "evaluate", start, first)
        noise = torch.randn(count, len(x), vae.latent_variables, generator=source, device="cpu").to(vae.dtype)
        z, log_ratios = q.sample_and_log_ratios(noise)
        reconstructions = _log_likelihoods(vae, x, missing, (seed, "pixels", start, first))(z)
        log_weights = reconstructions - log_ratios.sum(0)
        ratios = ratios + log_ratios.sum(1, dtype=torch.float64)
        reconstruction += reconstructions[0].sum(0, dtype=torch.float64)
        for running, added in zip((whole, *seen), log_weights, strict=True):
            running.add(added)
        if first < FEW:
            few.add(log_weights[0, : FEW - first])
        tail.add(log_weights[0])
    kls = q.kl()
    kls = ratios / samples if kls is None else kls
    bounds = {
        "elbo": reconstruction / samples - kls.sum(0),
        "kl": kls.sum(0),
        "kl_by_layer": kls.T,
        "log_p": whole.log_mean(),
        "effective_samples": whole.effective_samples(),
    }
    if samples > FEW:
        bounds["log_p_200"] = few.log_mean()
    if tail.has_shape:
        bounds["pareto_k"] = tail.shape()
    for running in seen:
        bounds["log_p_hidden"] = whole.log_mean() - running.log_mean()
    return bounds


def _log_likelihoods(
    vae: ImageModel, x: Tensor, missing: tuple[Tensor | None, ...], purpose: tuple[int | str, ...]
) -> LogLikelihood:
    """z (K, B, n) → log p(x | z) without each of the missing pixels, (len(missing), K, B), by the same samples."""

    def log_likelihoods(z: Tensor) -> Tensor:
        decoded = vae.decoder(z)
        each = [vae.likelihood.log_prob(decoded, x, generator(*purpose), pixels) for pixels in missing]
        return torch.stack(each)

    return log_likelihoods
