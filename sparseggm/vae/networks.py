"""Encoder and decoder bodies: two hidden layers of exponential linear units, as on the poster."""

from __future__ import annotations

import torch
from torch import Tensor, nn

PIXELS = 784


def encoder_body(hidden: int) -> nn.Sequential:
    """784 → hidden → hidden; a `FactorHead` follows."""
    return nn.Sequential(nn.Linear(PIXELS, hidden), nn.ELU(), nn.Linear(hidden, hidden), nn.ELU())


def decoder(latent: int, hidden: int, mean_intensity: Tensor) -> nn.Sequential:
    """latent → hidden → hidden → 784 logits, whose bias starts at the logit of the mean digit.

    Args:
        mean_intensity: (784,) in [0, 1].
    """
    logits = nn.Linear(hidden, PIXELS)
    with torch.no_grad():
        # Without the clamp, a pixel that is never on would start at −∞.
        logits.bias.copy_(torch.logit(mean_intensity.clamp(1e-3, 1.0 - 1e-3)))
    return nn.Sequential(nn.Linear(latent, hidden), nn.ELU(), nn.Linear(hidden, hidden), nn.ELU(), logits)
