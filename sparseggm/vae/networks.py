"""Encoder and decoders: two hidden layers of exponential linear units, as on the poster, or transposed convolutions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparseggm.graph.topology import Topology
from sparseggm.positivity.families import FactorFamily, Family, RegressionFamily, regression
from sparseggm.torch import ConvHead, FactorHead, GaussianGraphicalModel, PrecisionHead
from sparseggm.torch.heads import GaussianHead, gaussian_of
from sparseggm.vae.config import PIXELS, SIDE, Config

CHANNELS = 32


def hidden_layers(inputs: int, hidden: int) -> nn.Sequential:
    """inputs → hidden → hidden."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ELU(), nn.Linear(hidden, hidden), nn.ELU())


def gaussian_head(width: int, topology: Topology, family: Family) -> GaussianHead:
    """`width` features → the mean, and the factor or the precision, whichever the family gives."""
    if isinstance(family, FactorFamily):
        return FactorHead(width, topology, family)
    return PrecisionHead(width, topology, family)


def decoder(config: Config, mean_intensity: Tensor) -> nn.Sequential:
    """Latent variables → 784 logits of independent pixels; of a grey image, the Gaussian of its logits.

    Args:
        config: its `decoder`, sizes, and for grey images `pixels` and `structure`.
        mean_intensity: (784,) in [0, 1]; a dense decoder's logits start at those of the mean image.
    """
    width = CHANNELS // 2 if config.decoder == "convolutional" else config.hidden
    if config.is_grey:
        body, logits = _body(config), _logits(config, width)
    else:  # in the order of earlier versions, so that a seed gives the same weights
        logits, body = _logits(config, width), _body(config)
    last = _grey(config, width, logits) if config.is_grey else logits
    if config.decoder == "dense":
        linear = next(module for module in last.modules() if isinstance(module, nn.Linear))
        with torch.no_grad():
            # Without the clamp, a pixel that is never on would start at −∞.
            linear.bias[:PIXELS] = torch.logit(mean_intensity.clamp(1e-3, 1.0 - 1e-3))
    return nn.Sequential(*body, last)


def _grey(config: Config, width: int, logits: nn.Module) -> nn.Module:
    """The last layer, which makes a Gaussian of `width` features."""
    family = RegressionFamily(config.least_scale)
    if config.structure == "global":
        return SharedFactorHead(logits, config.pixel_topology, family)
    if config.decoder == "convolutional" and config.pixels == "diagonal":
        return GaussianHead(_maps(width, 2), config.pixel_topology, family)  # maps of loc and of scales
    if config.decoder == "convolutional":
        return ConvHead(width, config.pixel_topology, kernel_size=3, family=family)
    return FactorHead(width, config.pixel_topology, family)


class SharedFactorHead(nn.Module):
    """Features → N(loc, (L Lᵀ)⁻¹), where a layer emits loc, and L is a parameter that all features share.

    Args:
        layer: features → (..., n).
        topology: factor-free.
        family: makes L of the parameter.
    """

    def __init__(self, layer: nn.Module, topology: Topology, family: FactorFamily) -> None:
        super().__init__()
        self.layer, self.topology, self.family = layer, topology, family
        self.inputs = nn.Parameter(torch.zeros(family.num_inputs(topology), device="cpu"))

    def forward(self, features: Tensor) -> GaussianGraphicalModel:
        return gaussian_of(self.layer(features), self.family(self.topology, self.inputs), self.topology, self.family)


class CentredGaussian(nn.Module):
    """() → N(0, P⁻¹), where the inputs of a family are a parameter: N(0, I) at first.

    As a prior of latent variables it needs no mean: the first layer of the decoder and the head of the encoder add
    biases, which undo every shift of z.

    Args:
        topology: the graph.
        family: makes L or P of the parameter.
    """

    def __init__(self, topology: Topology, family: Family = regression) -> None:
        super().__init__()
        self.topology, self.family = topology, family
        self.inputs = nn.Parameter(torch.zeros(family.num_inputs(topology), device="cpu"))

    def forward(self) -> GaussianGraphicalModel:
        loc, values = self.inputs.new_zeros(self.topology.n), self.family(self.topology, self.inputs)
        return gaussian_of(loc, values, self.topology, self.family)


def _body(config: Config) -> nn.Sequential:
    if config.decoder == "convolutional":
        return _convolutional_body(config.latents)
    return hidden_layers(config.latents, config.hidden)


def _logits(config: Config, width: int) -> nn.Module:
    return _maps(width, 1) if config.decoder == "convolutional" else nn.Linear(width, PIXELS)


class _Images(nn.Sequential):
    """Modules of inputs with one batch axis, for inputs with any; each input has `axes` of its own."""

    def __init__(self, axes: int, *modules: nn.Module) -> None:
        super().__init__(*modules)
        self.axes = axes

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = inputs.reshape(-1, *inputs.shape[-self.axes :])
        for module in self:
            outputs = module(outputs)
        return outputs.reshape(*inputs.shape[: -self.axes], *outputs.shape[1:])


def _maps(width: int, count: int) -> nn.Module:
    """(..., width, 28, 28) features → `count` numbers for each pixel, (..., count · 784), map by map."""
    return _Images(3, nn.Conv2d(width, count, 3, padding=1), nn.Flatten())


def _convolutional_body(latent: int) -> nn.Sequential:
    """Latent variables → (..., 16, 28, 28) features, by two transposed convolutions that double the sides."""
    side = SIDE // 4
    images = _Images(
        1,
        nn.Linear(latent, CHANNELS * side * side),
        nn.ELU(),
        nn.Unflatten(-1, (CHANNELS, side, side)),
        nn.ConvTranspose2d(CHANNELS, CHANNELS, 4, stride=2, padding=1),
        nn.ELU(),
        nn.ConvTranspose2d(CHANNELS, CHANNELS // 2, 4, stride=2, padding=1),
        nn.ELU(),
    )
    return nn.Sequential(images)
