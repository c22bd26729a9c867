"""A variational autoencoder of several stochastic layers, a Gaussian graphical model in each.

With layers z_1 … z_L from the image upwards,

    p(x, z) = p(z_L) p(z_{L−1} | z_L) … p(x | z_1, …, z_L) ,    q(z | x) = q(z_L | x) q(z_{L−1} | x, z_L) … ,

each layer conditioned on all above it, and the posterior of a layer made from its prior: see `Rung`. The bound is that
of one layer, with one KL for each. All lists are from the top, and z is the layers one after the other.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.distributions import kl_divergence
from torch.func import functional_call
from torch.optim.swa_utils import AveragedModel

from sparseggm.positivity import families
from sparseggm.positivity.families import FactorFamily
from sparseggm.torch import GaussianGraphicalModel, PotentialHead, ResidualHead, kl_terms
from sparseggm.torch.heads import GaussianHead
from sparseggm.vae import processes
from sparseggm.vae.config import PIXELS, Config
from sparseggm.vae.latents import Layer
from sparseggm.vae.model import DTYPES, VAE, ImageModel, Inference, seeded
from sparseggm.vae.networks import CentredGaussian, gaussian_head
from sparseggm.vae.objective import importance_weighted_loss

Weights = tuple[Tensor, ...] | list[Tensor]


class Posterior(Protocol):
    """q of a layer beside its p: a `Residual`, or `Beside`."""

    def gaussian(self) -> GaussianGraphicalModel:
        """q itself."""
        ...

    def sample_and_kl_terms(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """z (..., n), and KL(q ‖ p) as a sum of terms (..., m), each ≥ 0, nats."""
        ...


@dataclass(frozen=True)
class Beside:
    """q and p that are not made from each other in regression coordinates."""

    q: GaussianGraphicalModel
    p: GaussianGraphicalModel

    def gaussian(self) -> GaussianGraphicalModel:
        return self.q

    def sample_and_kl_terms(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """One term a node, where both factors have one pattern; else one for all."""
        z = self.q.loc + self.q.colorize(noise)
        if self.q.factor_pattern is self.p.factor_pattern:
            return z, kl_terms(self.q, self.p)
        return z, kl_divergence(self.q, self.p).unsqueeze(-1)


class Rung(nn.Module, ABC):
    """One stochastic layer: p(z | layers above), and q(z | x, layers above) made from it.

    Args:
        kind: see `Config.head`.
        width: of the features that the head of q takes.
        layer: size and graph.
    """

    def __init__(self, kind: str, width: int, layer: Layer) -> None:
        super().__init__()
        self.size, self.head = layer.size, _head(kind, width, layer)

    @abstractmethod
    def prior(self, above: Tensor) -> GaussianGraphicalModel:
        """p(z | above) for (..., m) latent variables above."""

    @abstractmethod
    def forward(self, features: Tensor, above: Tensor) -> Posterior:
        """q(z | x, above), for features of the images (B, width) and (..., B, m) latent variables above."""

    def _beside(self, features: Tensor, p: GaussianGraphicalModel) -> Posterior:
        if isinstance(self.head, ResidualHead):
            residual: Posterior = self.head(features, p)
            return residual
        emitted = self.head(features)
        return Beside(emitted if isinstance(emitted, GaussianGraphicalModel) else p.product(emitted), p)


def _head(kind: str, width: int, layer: Layer) -> ResidualHead | PotentialHead | GaussianHead:
    if kind == "residual":
        return ResidualHead(width, layer.topology)
    if kind == "potential":
        return PotentialHead(width, layer.topology)
    return gaussian_head(width, layer.topology, layer.family)


class Top(Rung):
    """The top layer, whose prior is N(0, I) or learnt."""

    def __init__(self, config: Config, layer: Layer) -> None:
        super().__init__(config.head, config.encoder_width, layer)
        self.learnt = CentredGaussian(layer.topology, _of_prior(layer))
        self.learnt.requires_grad_(config.prior != "standard")

    def prior(self, above: Tensor) -> GaussianGraphicalModel:
        p: GaussianGraphicalModel = self.learnt()
        return p

    def forward(self, features: Tensor, above: Tensor) -> Posterior:
        return self._beside(features, self.prior(above))


class Lower(Rung):
    """A layer below others. A network makes a context of these, which its prior and its posterior share."""

    def __init__(self, config: Config, layer: Layer, above: int) -> None:
        super().__init__(config.head, config.encoder_width, layer)
        width, hidden = config.encoder_width, config.hidden
        self.context = nn.Sequential(nn.Linear(above, hidden), nn.ELU(), nn.Linear(hidden, hidden), nn.ELU())
        self.prior_head = gaussian_head(hidden, layer.topology, _of_prior(layer))
        self.joint = nn.Sequential(nn.Linear(width + hidden, width), nn.ELU())

    def prior(self, above: Tensor) -> GaussianGraphicalModel:
        p: GaussianGraphicalModel = self.prior_head(self.context(above))
        return p

    def forward(self, features: Tensor, above: Tensor) -> Posterior:
        context = self.context(above)
        both = torch.cat([features.expand(*context.shape[:-1], -1), context], -1)
        return self._beside(self.joint(both), self.prior_head(context))


def _of_prior(layer: Layer) -> families.Family:
    """The family of a prior: regression coordinates, in which a residual moves it, where it is given by L."""
    return families.regression if isinstance(layer.family, FactorFamily) else layer.family


class LadderVAE(ImageModel):
    """Layers `config.latent_layers`, p(x | z) by `config.likelihood`."""

    def __init__(self, config: Config, mean_intensity: Tensor) -> None:
        with seeded(config.seed):
            super().__init__(config, mean_intensity)
            top, *lower = config.latent_layers
            self.rungs = nn.ModuleList([Top(config, top)])
            for number, layer in enumerate(lower, 1):
                self.rungs.append(Lower(config, layer, sum(each.size for each in config.latent_layers[:number])))
        self.sizes, self.free_bits = [layer.size for layer in config.latent_layers], config.free_bits

    def infer(self, x: Tensor) -> Inference:
        return Layers(self, self.features(x))

    def latents(self, noise: Tensor) -> Tensor:
        above = noise.new_empty((*noise.shape[:-1], 0), dtype=self.dtype)
        for rung, eps in self.by_rung(noise):
            p = rung.prior(above)
            above = torch.cat([above, p.loc + p.colorize(eps)], -1)
        return above

    def by_rung(self, noise: Tensor) -> Iterator[tuple[Rung, Tensor]]:
        """Each layer and its part of the noise, in the dtype of the weights."""
        return zip(cast(Iterable[Rung], self.rungs), torch.split(noise.to(self.dtype), self.sizes, -1), strict=True)

    def forward(
        self, x: Tensor, noise: Tensor, rng: torch.Generator, kl_weight: float = 1.0, objective: str = "elbo"
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of each image and its terms, see `ImageModel.forward`.

        A layer's terms of the KL have a floor, their share of `free_bits`, below which their means over the batch cost
        nothing [Kingma et al. 2016, there for a whole layer].
        """
        features = self.features(x)
        if objective != "elbo":
            return self._importance_weighted(x, features, noise, rng, kl_weight, objective)
        z, cost = noise.new_empty((*noise.shape[:-1], 0), dtype=self.dtype), torch.zeros((), device=noise.device)
        kls = []
        for rung, eps in self.by_rung(noise):
            drawn, terms = rung(features, z).sample_and_kl_terms(eps)
            z = torch.cat([z, drawn], -1)
            kls.append(terms.sum(-1))
            cost = cost + _above_floor(terms, self.free_bits / terms.shape[-1])
        reconstruction, kl = self.log_likelihood(z, x, rng), torch.stack(kls).sum(0)
        bound = (reconstruction - kl).detach()
        named = {"reconstruction": reconstruction, "kl": kl, "bound": bound, **_numbered(kls)}
        return kl_weight * cost - reconstruction, named

    def _importance_weighted(
        self, x: Tensor, features: Tensor, noise: Tensor, rng: torch.Generator, kl_weight: float, objective: str
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `objective.importance_weighted_terms`. The samples `drawn` reach the encoder.

        Densities are those of `scored`, the same numbers, at which the scale of the gradient is set once. A layer below
        is drawn from what was drawn above, so no gradient is scaled twice. In log q all weights are held fixed; the
        layers above, of which it is a function too, are not.
        """
        drawn = scored = noise.new_empty((*noise.shape[:-1], 0), dtype=self.dtype)
        fixed, ratios, each = features.detach(), [], []
        for rung, eps in self.by_rung(noise):
            q = rung(features, drawn).gaussian()
            z = q.loc + q.colorize(eps)
            each.append(z.view_as(z))
            weights = {name: weight.detach() for name, weight in rung.named_parameters()}
            log_q = functional_call(rung, weights, (fixed, scored)).gaussian().log_prob(each[-1])
            ratios.append(log_q - rung.prior(scored).log_prob(each[-1]))
            drawn, scored = torch.cat([drawn, z], -1), torch.cat([scored, each[-1]], -1)
        reconstruction, ratio = self.log_likelihood(scored, x, rng), torch.stack(ratios).sum(0)
        groups = self.groups if objective == "piwae" else 1
        loss, terms = importance_weighted_loss(reconstruction, ratio, each, groups=groups, kl_weight=kl_weight)
        named = dict(zip(("reconstruction", "kl", "bound"), terms, strict=True))
        return loss, named | _numbered([each.detach().mean(0) for each in ratios])


def _above_floor(terms: Tensor, floor: float) -> Tensor:
    """(B, m) terms of the KL, summed to (B,); those whose mean over the batch is below the floor are replaced by it."""
    if not floor:
        return terms.sum(-1)
    is_free = processes.mean_of_batch(terms.detach()) < floor
    return torch.where(is_free, floor, terms).sum(-1)


def _numbered(kls: Sequence[Tensor]) -> dict[str, Tensor]:
    """The KL of each layer by name, the number 1 nearest to the image."""
    return {f"kl_{len(kls) - index}": kl for index, kl in enumerate(kls)}


@dataclass(frozen=True)
class Layers:
    """`Inference` of several layers."""

    vae: LadderVAE
    features: Tensor

    @property
    def gaussians(self) -> tuple[GaussianGraphicalModel, ...]:
        found: list[GaussianGraphicalModel] = []
        above = self.features.new_empty((*self.features.shape[:-1], 0))
        for rung in cast(Iterable[Rung], self.vae.rungs):
            q = rung(self.features, above).gaussian()
            found.append(q)
            above = torch.cat([above, q.loc], -1)
        return tuple(found)

    def sample_and_log_ratios(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        z, ratios = noise.new_empty((*noise.shape[:-1], 0), dtype=self.vae.dtype), []
        for rung, eps in self.vae.by_rung(noise):
            p = rung.prior(z)
            drawn, log_q = rung(self.features, z).gaussian().rsample_and_log_prob(noise=eps)
            ratios.append(log_q - p.log_prob(drawn))
            z = torch.cat([z, drawn], -1)
        return z, torch.stack(ratios)

    def kl(self) -> None:
        return None


def model_of(config: Config, mean_intensity: Tensor) -> ImageModel:
    """The model of a recipe, its weights from the seed."""
    return (LadderVAE if config.layers else VAE)(config, mean_intensity)


def averaged(vae: nn.Module, decay: float) -> AveragedModel:
    """The model whose weights are the exponential average of those after each step [Polyak & Juditsky 1992].

    After t steps the decay is at most (1 + t) / (10 + t), so that the first weights do not linger.
    """

    def average(averages: Weights, weights: Weights, steps: Tensor | int) -> None:
        t = int(steps)
        torch._foreach_lerp_(averages, weights, 1.0 - min(decay, (1 + t) / (10 + t)))

    return AveragedModel(vae, multi_avg_fn=average)


def untrained(config: Config) -> ImageModel:
    """A model whose weights a checkpoint will overwrite."""
    return model_of(config, torch.full((PIXELS,), 0.5, device="cpu")).to(DTYPES[config.precision])
