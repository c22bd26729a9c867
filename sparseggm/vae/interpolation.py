"""The command `interpolate`: Gaussians between the posteriors of two images along three lines, scored by the decoder.

The lines are straight in (loc, L), straight in natural parameters (the e-geodesic) and straight in expectation
parameters (the m-geodesic): docs/geometry.md. A Gaussian g at t between the posteriors of x_a and x_b has two scores.

    between:   E_g[(1 − t) log p(x_a | z) + t log p(x_b | z)] − KL(g ‖ p), nats,

a bound on (1 − t) log p(x_a) + t log p(x_b), which the e-geodesic of exact posteriors maximises; and

    decoded:   the ELBO of the images that the decoder makes of z ~ g, rounded to black and white, nats.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import sparseggm.torch as sgt
from sparseggm import geometry
from sparseggm.files import write_atomically, write_json
from sparseggm.gaussian.model import GaussianGraphicalModel
from sparseggm.graph.plotting import Array
from sparseggm.vae.bounds import interval, standard_error
from sparseggm.vae.checks import require_count
from sparseggm.vae.errors import ConfigError
from sparseggm.vae.evaluate import images_of, load_run
from sparseggm.vae.files import checkpoint
from sparseggm.vae.model import VAE
from sparseggm.vae.randomness import generator

PLACES = (0.25, 0.5, 0.75)
SCORES = ("between", "decoded")
PAIRS_AT_ONCE = 50

Line = Callable[[GaussianGraphicalModel, GaussianGraphicalModel, float], GaussianGraphicalModel]


def straight_line(q: GaussianGraphicalModel, p: GaussianGraphicalModel, t: float) -> GaussianGraphicalModel:
    """The Gaussian at t of the line that is straight in (loc, L), of two on one pattern."""
    loc, factor = ((1.0 - t) * one + t * two for one, two in ((q.loc, p.loc), (q.factor, p.factor)))
    return GaussianGraphicalModel.from_factor(loc, factor=factor, topology=q.topology, pattern=q.factor_pattern)


LINES: dict[str, Line] = {"straight": straight_line, "e": geometry.e_geodesic, "m": geometry.m_geodesic}
"""The first is the base line."""


def interpolate(run: Path, pairs: int = 500, samples: int = 16, data: Path | None = None) -> dict[str, Any]:
    """Score the lines between random pairs of test images, and write `interpolation.json` and `.npz` into the run.

    Args:
        run: directory that was given to `sparseggm train` as --out; of one layer, with the likelihood bernoulli.
        pairs: of test images, disjoint.
        samples: of each Gaussian; their noise is the same on all lines.
        data: directory of the images; None: see `sparseggm.vae.data` for the places that are searched.
    Returns:
        The summary, as in the JSON file: of each line and score the mean, and of each line but the first the mean
        difference to the first, its standard error over pairs and half its 95 % interval, and the share of pairs with a
        higher score.
    Raises:
        CheckpointError: there is no usable checkpoint, or it was trained on other images than were found.
        ConfigError: several layers, grey images, or more pairs than the images form.
    """
    require_count("pairs", pairs)
    require_count("samples", samples)
    config, vae, state = load_run(run)
    if not isinstance(vae, VAE) or config.is_grey:
        raise ConfigError(
            f"needs one layer and likelihood bernoulli, got {config.latents_in_words}, likelihood {config.likelihood}."
        )
    images = images_of(run, state, config, vae, "test", data)
    if 2 * pairs > len(images):
        raise ConfigError(f"pairs must be at most {len(images) // 2:,}, half the images, got {pairs:,}.")
    chosen = torch.randperm(len(images), generator=generator(config.seed, "pairs"))[: 2 * pairs].reshape(2, pairs)
    scored = [
        _scores(vae, images[chosen[:, start : start + PAIRS_AT_ONCE]], samples, (config.seed, start))
        for start in range(0, pairs, PAIRS_AT_ONCE)
    ]
    scores: dict[str, Any] = {name: np.concatenate([each[name] for each in scored]) for name in scored[0]}
    result = {
        **_summary(scores),
        "unit": "nats",
        "pairs": pairs,
        "samples": samples,
        "places": PLACES,
        "epochs_trained": state["epoch"],
        "run": state["identity"],
        "versions": checkpoint.versions(),
    }
    write_json(run / "interpolation.json", result)
    write_atomically(run / "interpolation.npz", lambda file: np.savez(file, **scores))
    return result


def report_of_lines(result: dict[str, Any]) -> str:
    """The lines that show a result of `interpolate`."""
    head = f"{result['pairs']} pairs, {result['samples']} samples, t = {', '.join(map(str, result['places']))}; nats"
    rows = [f"{'score':<10}{'line':<10}{'mean':>10}{'gain':>18}{'pairs with a gain':>20}"]
    for score in SCORES:
        for line in LINES:
            found = result[f"{line} {score}"]
            gain = f"{found['gain']:+.3f} ± {found['gain_interval']:.3f}" if "gain" in found else ""
            share = f"{100.0 * found['share_higher']:.1f} %" if gain else ""
            rows.append(f"{score:<10}{line:<10}{found['mean']:>10.3f}{gain:>18}{share:>20}")
    return "\n".join([head, *(row.rstrip() for row in rows)])


@dataclass(frozen=True)
class Ends:
    """Two batches of images (B, 784) as the likelihood observes them, and their posteriors."""

    images: tuple[Tensor, Tensor]
    posteriors: tuple[GaussianGraphicalModel, GaussianGraphicalModel]

    @classmethod
    def of(cls, vae: VAE, images: Tensor) -> Ends:
        """Of (2, B, 784) images."""
        with torch.inference_mode():
            one, two = (in_numpy(vae.posterior(x)) for x in images)
        return cls((images[0], images[1]), (one, two))

    def at(self, line: str, t: float) -> GaussianGraphicalModel:
        """The Gaussians at t of a line between the posteriors."""
        return LINES[line](*self.posteriors, t)


def in_numpy(q: sgt.GaussianGraphicalModel) -> GaussianGraphicalModel:
    """The same Gaussians in float64, where m-geodesics have digits to spare."""
    g = q.numpy()
    loc, factor = g.loc.astype(np.float64), g.factor.astype(np.float64)
    return GaussianGraphicalModel.from_factor(loc, factor=factor, topology=g.topology, pattern=g.factor_pattern)


def samples_of(g: GaussianGraphicalModel, noise: Array, dtype: torch.dtype) -> Tensor:
    """z = loc + L⁻ᵀ ε for white noise (..., B, n)."""
    return torch.from_numpy(g.loc + g.colorize(noise)).to(dtype)


def _scores(vae: VAE, images: Tensor, samples: int, purpose: tuple[int, int]) -> dict[str, Array]:
    """The scores of one batch of pairs (2, B, 784), by "line score", each (B, places)."""
    ends, (seed, start) = Ends.of(vae, images), purpose
    rng = generator(seed, "interpolate", start)
    noise = torch.randn(samples, *ends.posteriors[0].loc.shape, generator=rng, device="cpu").double().numpy()
    found: dict[str, list[Array]] = {f"{line} {score}": [] for line in LINES for score in SCORES}
    for line in LINES:
        for t in PLACES:
            g = ends.at(line, t)
            z = samples_of(g, noise, vae.dtype)
            with torch.inference_mode():
                found[f"{line} between"].append(_between(vae, ends, t, z) - _kl(vae, g))
                found[f"{line} decoded"].append(_decoded(vae, z, purpose))
    return {name: np.stack(columns, axis=-1) for name, columns in found.items()}


def _between(vae: VAE, ends: Ends, t: float, z: Tensor) -> Array:
    """E_g[(1 − t) log p(x_a | z) + t log p(x_b | z)] of each pair, (B,), from samples (K, B, n)."""
    logits = vae.decoder(z)
    near, far = (vae.likelihood.log_prob(logits, x, torch.Generator()).double().mean(0) for x in ends.images)
    return ((1.0 - t) * near + t * far).numpy()


def _kl(vae: VAE, g: GaussianGraphicalModel) -> Array:
    """KL(g ‖ p) of each, (B,)."""
    p = vae.prior()
    return np.asarray(g.kl_divergence(None if p is None else in_numpy(p)))


def _decoded(vae: VAE, z: Tensor, purpose: tuple[int, int]) -> Array:
    """The mean ELBO of the images that are decoded from samples (K, B, n), (B,)."""
    x = (vae.likelihood.intensities(vae.decoder(z)) > 0.5).to(z.dtype)
    rng = generator(purpose[0], "interpolate decoded", purpose[1])
    noise = torch.randn(z.flatten(0, 1).shape, generator=rng, device="cpu").to(z)
    terms = vae(x.flatten(0, 1), noise, rng)[1]
    bounds = (terms["reconstruction"] - terms["kl"]).double().reshape(z.shape[:2])
    return np.asarray(bounds.mean(0))


def _summary(scores: dict[str, Array]) -> dict[str, Any]:
    """Of each line and score the mean over pairs and places, and how it compares with the first line."""
    summary: dict[str, Any] = {}
    base, *others = LINES
    for score in SCORES:
        of_base = scores[f"{base} {score}"].mean(-1)
        summary[f"{base} {score}"] = {"mean": float(of_base.mean())}
        for line in others:
            gain = scores[f"{line} {score}"].mean(-1) - of_base
            mean, half = interval(gain)
            summary[f"{line} {score}"] = {
                "mean": float((of_base + gain).mean()),
                "gain": mean,
                "gain_standard_error": standard_error(gain),
                "gain_interval": half,
                "share_higher": float((gain > 0.0).mean()),
            }
    return summary
