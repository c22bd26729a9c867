"""A variational autoencoder of several stochastic layers, a Gaussian graphical model in each.

With layers z_1 … z_L from the image upwards,

    p(x, z) = p(z_L) p(z_{L−1} | z_L) … p(x | z_1, …, z_L) ,    q(z | x) = q(z_L | x) q(z_{L−1} | x, z_L) … ,

each layer conditioned on all above it, and the posterior of a layer made from its prior: see `rungs`. The bound is that
of one layer, with one KL for each. All lists are from the top, and z is the layers one after the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim.swa_utils import AveragedModel

from sparseggm.torch import GaussianGraphicalModel
from sparseggm.vae import processes
from sparseggm.vae.config import PIXELS, Config
from sparseggm.vae.model import DTYPES, VAE, ImageModel, Inference, named, seeded
from sparseggm.vae.objective import importance_weighted_loss
from sparseggm.vae.rungs import Lower, Mixture, Rung, Top, Vamp

Weights = tuple[Tensor, ...] | list[Tensor]


class LadderVAE(ImageModel):
    """Layers `config.latent_layers`, p(x | z) by `config.likelihood`."""

    def __init__(self, config: Config, mean_intensity: Tensor) -> None:
        with seeded(config.seed):
            super().__init__(config, mean_intensity)
            top, *lower = config.latent_layers
            is_mixture = config.prior == "vamp"
            first = Vamp(config, top, self.encoder, mean_intensity) if is_mixture else Top(config, top)
            self.rungs = nn.ModuleList([first])
            for number, layer in enumerate(lower, 1):
                self.rungs.append(Lower(config, layer, sum(each.size for each in config.latent_layers[:number])))
        self.sizes, self.free_bits = [layer.size for layer in config.latent_layers], config.free_bits

    def infer(self, x: Tensor) -> Inference:
        return Layers(self, self.features(x))

    def latents(self, noise: Tensor) -> Tensor:
        above = noise.new_empty((*noise.shape[:-1], 0), dtype=self.dtype)
        for rung, eps in self.by_rung(noise):
            p = rung.prior(above)
            z = p.draw(eps) if isinstance(p, Mixture) else p.loc + p.colorize(eps)
            above = torch.cat([above, z], -1)
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
            drawn, of_nodes = rung(features, z).sample_and_kl_terms(eps)
            z = torch.cat([z, drawn], -1)
            kls.append(of_nodes.sum(-1))
            cost = cost + _above_floor(of_nodes, self.free_bits / of_nodes.shape[-1])
        reconstruction, kl = self.log_likelihood(z, x, rng), torch.stack(kls).sum(0)
        bound = (reconstruction - kl).detach()
        terms = {"reconstruction": reconstruction, "kl": kl, "bound": bound}
        return kl_weight * cost - reconstruction, terms | _numbered(kls)

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
        groups = self.groups_of(objective)
        found = importance_weighted_loss(reconstruction, ratio, each, groups=groups, kl_weight=kl_weight)
        loss, terms = named(*found)
        return loss, terms | _numbered([each.detach().mean(0) for each in ratios])


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
            posterior = rung(self.features, z)
            drawn, log_q = posterior.gaussian().rsample_and_log_prob(noise=eps)
            ratios.append(log_q - posterior.p.log_prob(drawn))
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
