"""ELBO and log p(x) of held-out images by importance sampling from the posterior.

log p(x) is estimated from below by log (1/K) Σ_k w_k for each image, in float64 by a running log-sum-exp. The bias of
the estimate is about −Var(w) / (2K E[w]²), so the effective sample size (Σ w)² / Σ w² is reported beside it. All models
get the same binarised or dequantised images and the same noise, so that differences between models are paired. Grey
images have bits per dimension too, which compare with every model of grey levels.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sparseggm.errors import NonFiniteError, NonPositiveError
from sparseggm.files import write_atomically, write_json
from sparseggm.gaussian.observed import bits_per_dimension
from sparseggm.torch import sample_and_kl
from sparseggm.vae.config import PIXELS, Config, require_count
from sparseggm.vae.data import load_images
from sparseggm.vae.errors import CheckpointError, ConfigError, DivergedError, NotWrittenError
from sparseggm.vae.files import checkpoint
from sparseggm.vae.likelihoods import BINARIZATION_SEED, held_out
from sparseggm.vae.model import VAE, untrained
from sparseggm.vae.randomness import generator
from sparseggm.vae.train import progress_bar

# 64 images × 16 samples: their logits, 3 MB, stay in cache.
IMAGES_AT_ONCE = 64
SAMPLES_AT_ONCE = 16
PARTS = ("test", "validation")
HIDDEN = {"nothing": None, "upper": torch.arange(PIXELS, device="cpu") < PIXELS // 2}
"""What may be hidden of an image. Upper rows come first in elimination, so that levels are sampled given all others."""

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Evaluation:
    """Per-image results, each (N,) float64: nats, except `effective_samples`.

    `log_p_hidden` is log p(hidden half | the other half), where it was asked for: a difference of two estimates from
    the same samples of z.
    """

    elbo: FloatArray
    kl: FloatArray
    log_p: FloatArray
    effective_samples: FloatArray
    log_p_hidden: FloatArray | None = None

    def columns(self) -> dict[str, Any]:
        """The results by name."""
        return {name: values for name, values in vars(self).items() if values is not None}

    def summary(self) -> dict[str, float]:
        """Means over images, their standard errors, and the least effective sample size."""
        hidden = (
            {}
            if self.log_p_hidden is None
            else {
                "log_p_hidden": float(self.log_p_hidden.mean()),
                "log_p_hidden_standard_error": standard_error(self.log_p_hidden),
            }
        )
        return hidden | {
            "elbo": float(self.elbo.mean()),
            "elbo_standard_error": standard_error(self.elbo),
            "log_p": float(self.log_p.mean()),
            "log_p_standard_error": standard_error(self.log_p),
            "kl": float(self.kl.mean()),
            "effective_samples_mean": float(self.effective_samples.mean()),
            "effective_samples_min": float(self.effective_samples.min()),
        }

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
    vae: VAE,
    images: Tensor,
    samples: int,
    seed: int = 0,
    advance: Callable[[int], object] = lambda images: None,
    hidden: Tensor | None = None,
) -> Evaluation:
    """Estimate the bounds of every image.

    Args:
        vae: a trained model.
        images: (N, 784) as `vae.likelihood` observes them.
        samples: K, importance samples an image.
        seed: of the noise.
        advance: called with the number of images that were just finished.
        hidden: (784,) booleans, the pixels of `log_p_hidden`; None: no such result.
    """
    results: list[dict[str, Tensor]] = []
    with torch.inference_mode():
        for start in range(0, len(images), IMAGES_AT_ONCE):
            x = images[start : start + IMAGES_AT_ONCE]
            results.append(_bounds(vae, x, samples, (seed, start), hidden))
            advance(len(x))
    return Evaluation(**{name: torch.cat([each[name] for each in results]).numpy() for name in results[0]})


def _bounds(vae: VAE, x: Tensor, samples: int, purpose: tuple[int, int], hidden: Tensor | None) -> dict[str, Tensor]:
    """The results of a chunk of images, whose noise is that of a purpose."""
    q, p, whole, seen = vae.posterior(x), vae.prior(), RunningWeights(len(x)), RunningWeights(len(x))
    reconstruction = torch.zeros(len(x), dtype=torch.float64, device="cpu")
    seed, start = purpose
    for first in range(0, samples, SAMPLES_AT_ONCE):
        count = min(SAMPLES_AT_ONCE, samples - first)
        source = generator(seed, "evaluate", start, first)
        noise = torch.randn(count, *q.loc.shape, generator=source, device="cpu").to(q.loc)
        z, log_ratio = sample_and_kl(q, p, noise, kl="sampled")
        decoded = vae.decoder(z)
        log_likelihood = vae.likelihood.log_prob(decoded, x, generator(seed, "pixels", start, first))
        reconstruction += log_likelihood.sum(0, dtype=torch.float64)
        whole.add(log_likelihood - log_ratio)
        if hidden is not None:  # by the same samples of the pixels
            of_seen = vae.likelihood.log_prob(decoded, x, generator(seed, "pixels", start, first), hidden)
            seen.add(of_seen - log_ratio)
    kl = sample_and_kl(q, p, torch.zeros_like(q.loc))[1].double()  # exact, whatever the noise
    bounds = {
        "elbo": reconstruction / samples - kl,
        "kl": kl,
        "log_p": whole.log_mean(),
        "effective_samples": whole.effective_samples(),
    }
    return bounds if hidden is None else bounds | {"log_p_hidden": whole.log_mean() - seen.log_mean()}


def evaluate(
    run: Path, samples: int = 500, part: str = "test", data: Path | None = None, *, hide: str = "nothing"
) -> dict[str, Any]:
    """Evaluate a run, print its figures, and write `evaluation.json` and per-image `evaluation.npz` into it.

    Args:
        run: directory that was given to `sparseggm train` as --out.
        samples: importance samples an image.
        part: "test" or "validation".
        data: directory of the images; None: see `sparseggm.vae.data` for the places that are searched.
        hide: "upper" estimates log p(upper half | lower half) too; "nothing" does not.
    Returns:
        The summary, as in the JSON file.
    Raises:
        CheckpointError: there is no usable checkpoint, or it was trained on other images than were found.
        ConfigError: there is no such part, or it is empty; a density of which half is hidden.
        DivergedError: the weights are so large that a bound is not finite.
        NotWrittenError: the result could not be written; the error carries it.
    """
    require_count("samples", samples)
    if part not in PARTS:
        raise ConfigError(f"unknown part {part!r}; one of: {', '.join(PARTS)}.")
    config, vae, state = load_run(run)
    require_hideable(hide, config)
    found = load_images(data, config.split)
    if found.name != state["identity"]["data"]:
        raise CheckpointError(f"{run}: trained on {state['identity']['data']}, found {found.name}. {found.notice}")
    images = held_out(vae.likelihood, found, part)
    if not len(images):
        raise ConfigError(f"the split {config.split} has no validation images; evaluate the test images.")

    began = time.perf_counter()
    with progress_bar("evaluate", len(images)) as bar:
        evaluation = _finite(
            run, lambda: evaluate_images(vae, images, samples, advance=bar.update, hidden=HIDDEN[hide])
        )
    result: dict[str, Any] = {
        **evaluation.summary(),
        **(evaluation.in_bits() if config.is_grey else {}),
        "unit": "nats an image",
        "part": part,
        "images": len(images),
        "samples": samples,
        "hidden": hide,
        "seconds": round(time.perf_counter() - began, 3),
        "epochs_trained": state["epoch"],
        "binarization_seed": BINARIZATION_SEED,
        "run": state["identity"],
        "versions": checkpoint.versions(),
    }
    try:
        write_json(run / "evaluation.json", result)
        write_atomically(run / "evaluation.npz", lambda file: np.savez(file, **evaluation.columns()))
    except OSError as error:
        raise NotWrittenError(error, result) from error
    return result


def require_hideable(hide: str, config: Config) -> None:
    """Raise a ConfigError unless this may be hidden of images under this likelihood."""
    if hide not in HIDDEN:
        raise ConfigError(f"unknown hide {hide!r}; one of: {', '.join(HIDDEN)}.")
    if hide != "nothing" and config.likelihood == "logit-normal":
        raise ConfigError(f"hide {hide} needs likelihood bernoulli or levels, got likelihood logit-normal.")


def _finite(run: Path, evaluated: Callable[[], Evaluation]) -> Evaluation:
    try:
        evaluation = evaluated()
    except (NonFiniteError, NonPositiveError) as error:  # the Gaussian raises before the bounds are formed
        raise DivergedError(f"{run}: its weights are too large for its arithmetic ({error})") from error
    bad = [name for name, values in evaluation.columns().items() if not np.isfinite(values).all()]
    if bad:
        raise DivergedError(f"{run}: its weights are too large for its arithmetic ({', '.join(bad)} not finite).")
    return evaluation


def report(result: dict[str, Any]) -> str:
    """Lines that show the result of `evaluate`."""
    run = result["run"]
    bits = {name: _in_bits(result, name) if "elbo_bits" in result else "" for name in ("elbo", "log_p")}
    hidden = ""
    if "log_p_hidden" in result:
        value, error = result["log_p_hidden"], result["log_p_hidden_standard_error"]
        hidden = f"log p({result['hidden']} half | the other)  {value:8.3f} ± {error:.3f} nats an image\n"
    return (
        f"{run['data']}, {run['posterior']} posterior, {_pixels(run)}seed {run['seed']}, "
        f"{result['epochs_trained']} epochs; "
        f"{result['images']:,} {result['part']} images, {result['samples']} samples\n"
        f"ELBO      {result['elbo']:8.3f} ± {result['elbo_standard_error']:.3f} nats an image{bits['elbo']}\n"
        f"log p(x)  {result['log_p']:8.3f} ± {result['log_p_standard_error']:.3f} nats an image{bits['log_p']}\n"
        f"{hidden}"
        f"effective samples: mean {result['effective_samples_mean']:.1f}, least {result['effective_samples_min']:.1f}; "
        f"{result['seconds']:.1f} s"
    )


def _in_bits(result: dict[str, Any], name: str) -> str:
    return f", {result[f'{name}_bits']:.4f} ± {result[f'{name}_bits_standard_error']:.4f} bits per dimension"


def _pixels(run: dict[str, Any]) -> str:
    """Of the identity of a run, what concerns the pixels of grey images."""
    if "likelihood" not in run:
        return ""
    names = (run["likelihood"], run.get("pixels", Config.pixels), run.get("structure", Config.structure))
    alpha = f", alpha {run.get('alpha', Config.alpha)}" if run["likelihood"] == "logit-normal" else ""
    return f"{' '.join(names)} pixels{alpha}, "


def load_run(run: Path) -> tuple[Config, VAE, dict[str, Any]]:
    """Configuration, trained model and whole checkpoint of a run.

    Raises:
        CheckpointError: no usable checkpoint there.
    """
    path = run / checkpoint.CHECKPOINT
    state = checkpoint.load(path)
    names = {field.name for field in fields(Config)}
    with checkpoint.restoring(path):
        config = Config(**{name: value for name, value in state["identity"].items() if name in names})
        checkpoint.continued(path, state, config.identity(state["identity"]["data"]))
        checkpoint.require_history(path, state, config)
        vae = untrained(config)
        vae.load_state_dict(state["model"])
    return config, vae.eval(), state
