"""The variational autoencoder: an encoder with a Gaussian graphical posterior, and a Bernoulli decoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparseggm.torch import FactorHead, GaussianGraphicalModel
from sparseggm.vae.config import Config
from sparseggm.vae.networks import PIXELS, decoder, encoder_body
from sparseggm.vae.objective import elbo_terms

DTYPES = {"32-true": torch.float32, "64-true": torch.float64}


class VAE(nn.Module):
    """q(z | x) on `config.topology`, p(x | z) Bernoulli, p(z) = N(0, I).

    Args:
        config: sizes, posterior and seed of the weights.
        mean_intensity: (784,) mean of the training digits in [0, 1], from which the decoder's bias starts.
    """

    def __init__(self, config: Config, mean_intensity: Tensor) -> None:
        super().__init__()
        self.kl = config.kl
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            # The head comes last: only the head differs between topologies, so a seed gives all the same bodies.
            self.encoder = encoder_body(config.hidden)
            self.decoder = decoder(config.latent, config.hidden, mean_intensity)
            self.head = FactorHead(config.hidden, config.topology)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return self.encoder[0].weight.dtype  # type: ignore[return-value]

    def posterior(self, x: Tensor) -> GaussianGraphicalModel:
        """q(z | x) for (B, 784) zeros and ones, in the dtype of the weights."""
        q: GaussianGraphicalModel = self.head(self.encoder(x.to(self.dtype)))
        return q

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstruction and KL of one sample an image, each (B,) nats; see `objective.elbo_terms`."""
        return elbo_terms(self.posterior(x), self.decoder, x, noise, self.kl)


def untrained(config: Config) -> VAE:
    """A model whose weights a checkpoint will overwrite."""
    return VAE(config, torch.full((PIXELS,), 0.5, device="cpu")).to(DTYPES[config.precision])
