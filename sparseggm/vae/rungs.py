"""Stochastic layers: the prior of a layer given those above, and the posterior made from it.

The posterior is a `Residual` of the prior, its product with a potential, or its own: `Config.head`. The top layer has a
Gaussian prior, or the mixture of posteriors of images that are learnt.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import kl_divergence

from sparseggm.positivity import families
from sparseggm.positivity.families import FactorFamily
from sparseggm.torch import GaussianGraphicalModel, PotentialHead, ResidualHead, kl_terms
from sparseggm.torch.heads import GaussianHead
from sparseggm.torch.operators.registration import have_values, index
from sparseggm.vae.config import PIXELS, Config
from sparseggm.vae.latents import Layer
from sparseggm.vae.networks import CentredGaussian, gaussian_head, hidden_layers


class Posterior(Protocol):
    """q of a layer beside its p: a `Residual`, `Beside` or `Sampled`."""

    @property
    def p(self) -> GaussianGraphicalModel | Mixture:
        """The prior."""
        ...

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


@dataclass(frozen=True)
class Mixture:
    """The mixture of M Gaussians (M, n) in equal parts."""

    parts: GaussianGraphicalModel

    def log_prob(self, z: Tensor) -> Tensor:
        """(...) of z (..., n), nats.

        log N(z; loc_m, P_m⁻¹) = h_mᵀ z − ½ zᵀ P_m z − A_m is linear in the products z_i z_j on the graph and in z, so
        those of all samples under all parts are one product of matrices, in float64, as its terms cancel.

        Cost: M (nnz(P) + n) a sample.
        Error: 1e-16 Σ_ij |z_i P_ij z_j|, and the same of the means: about 1e-10 nats at hundreds of scales of a part.
        Raises: as `log_prob` of the parts.
        """
        parts, x = self.parts._in_dtype(torch.float64), z.double()
        pattern, order = parts.graph.precision_pattern, parts.graph.order
        i, j = order[pattern.rows], order[pattern.cols]
        products = x[..., index(i, z)] * x[..., index(j, z)]
        times = torch.as_tensor(np.where(i == j, -0.5, -1.0), device=z.device)
        halves = (times * parts.precision, parts.information_vector)
        natural = torch.cat([half.expand(*parts.batch_shape, -1) for half in halves], -1)
        each = torch.cat([products, x], -1) @ natural.mT - parts.log_normaliser()
        if have_values(each) and not each.isfinite().all():
            each = self.parts.log_prob(z.unsqueeze(-2))  # part by part, which says what is wrong
        return (each.logsumexp(-1) - math.log(len(natural))).to(z.dtype)

    def draw(self, eps: Tensor) -> Tensor:
        """z (..., n) of white noise: its k-th row, in order, comes from part k modulo M."""
        (count,), n = self.parts.batch_shape, eps.shape[-1]
        rows = eps.reshape(-1, n)
        whole = nn.functional.pad(rows, (0, 0, 0, -len(rows) % count)).reshape(-1, count, n)
        return (self.parts.loc + self.parts.colorize(whole)).reshape(-1, n)[: len(rows)].reshape(eps.shape)


@dataclass(frozen=True)
class Sampled:
    """q beside a p to which its KL has no closed form: one term, log q − log p at the sample, whose mean is ≥ 0."""

    q: GaussianGraphicalModel
    made: Callable[[], Mixture]

    @property
    def p(self) -> Mixture:
        """Made where it is asked for: its parts are posteriors of M images."""
        return self.made()

    def gaussian(self) -> GaussianGraphicalModel:
        return self.q

    def sample_and_kl_terms(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        z, log_q = self.q.rsample_and_log_prob(noise=noise)
        return z, (log_q - self.p.log_prob(z)).unsqueeze(-1)


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
    def prior(self, above: Tensor) -> GaussianGraphicalModel | Mixture:
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
    """The top layer, whose prior is N(0, I) or a learnt Gaussian."""

    def __init__(self, config: Config, layer: Layer) -> None:
        super().__init__(config.head, config.encoder_width, layer)
        self.learnt = CentredGaussian(layer.topology, _of_prior(layer))
        self.learnt.requires_grad_(config.prior not in ("standard", "vamp"))

    def prior(self, above: Tensor) -> GaussianGraphicalModel | Mixture:
        p: GaussianGraphicalModel = self.learnt()
        return p

    def forward(self, features: Tensor, above: Tensor) -> Posterior:
        return self._beside(features, self.learnt())


class Vamp(Top):
    """The top layer, whose prior is the mixture of its posteriors of M images that are learnt [Tomczak & Welling 2018].

    Args:
        config: `pseudo_inputs`, M.
        layer: size and graph.
        encoder: what makes features of images; it is the model's, and so are its weights.
        mean_intensity: (784,) about which the images start.
    """

    def __init__(self, config: Config, layer: Layer, encoder: nn.Module, mean_intensity: Tensor) -> None:
        super().__init__(config, layer)
        start = torch.logit(mean_intensity.clamp(0.02, 0.98))
        self.pseudo_inputs = nn.Parameter(start + torch.randn(config.pseudo_inputs, PIXELS, device="cpu"))
        self.features = encoder.forward  # no submodule: the encoder is the model's already

    def prior(self, above: Tensor) -> Mixture:
        return Mixture(self._moved(self.features(self.pseudo_inputs.sigmoid())).gaussian())

    def forward(self, features: Tensor, above: Tensor) -> Posterior:
        return Sampled(self._moved(features).gaussian(), partial(self.prior, above))

    def _moved(self, features: Tensor) -> Posterior:
        """The posterior, made from N(0, I) as the head makes it."""
        return self._beside(features, self.learnt())


class Lower(Rung):
    """A layer below others. A network makes a context of these, which its prior and its posterior share."""

    def __init__(self, config: Config, layer: Layer, above: int) -> None:
        super().__init__(config.head, config.encoder_width, layer)
        width, hidden = config.encoder_width, config.hidden
        self.context = hidden_layers(above, hidden)
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
