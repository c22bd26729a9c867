"""The default variational autoencoder with a diagonal posterior, in PyTorch and nothing else: one epoch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PIXELS = 784


class BareLoop:
    """784-hidden-hidden-latent and back, ELU, Adam, a batch binarised afresh at each step.

    Args:
        images: (count, 784) uint8.
    """

    def __init__(self, images: Tensor, hidden: int = 200, latent: int = 16, batch: int = 128) -> None:
        self.images, self.batch, self.latent = images, batch, latent
        self.encoder = nn.Sequential(
            nn.Linear(PIXELS, hidden), nn.ELU(), nn.Linear(hidden, hidden), nn.ELU(), nn.Linear(hidden, 2 * latent)
        )
        self.decoder = nn.Sequential(
            nn.Linear(latent, hidden), nn.ELU(), nn.Linear(hidden, hidden), nn.ELU(), nn.Linear(hidden, PIXELS)
        )
        parameters = [*self.encoder.parameters(), *self.decoder.parameters()]
        self.optimizer = torch.optim.Adam(parameters, 1e-3, fused=True)

    def train_epoch(self) -> float:
        """One pass over the images; the mean ELBO, in nats an image."""
        total = torch.zeros(())
        for chosen in torch.randperm(len(self.images)).split(self.batch):
            intensities = self.images[chosen]
            x = (torch.rand(intensities.shape) * 255.0 < intensities).float()
            loc, log_scale = self.encoder(x).chunk(2, -1)
            z = loc + log_scale.exp() * torch.randn(len(x), self.latent)
            kl = 0.5 * ((2.0 * log_scale).exp() + loc.square() - 1.0).sum() - log_scale.sum()
            loss = F.binary_cross_entropy_with_logits(self.decoder(z), x, reduction="sum") + kl
            self.optimizer.zero_grad()
            (loss / len(x)).backward()
            self.optimizer.step()
            total -= loss.detach()
        return total.item() / len(self.images)
