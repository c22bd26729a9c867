"""Network heads: the last layer of an encoder or decoder, from features to a Gaussian or to a potential.

Every head of a Gaussian emits N(loc, I) at first whatever the features, and one of a potential the same Λ, log 2 · I
or (log 2)² I: the weights that feed L, P or Λ start at next to nothing, where gradients are alive. Log-scales are
bounded (`parametrize`). The layer may run in a lower precision, under autocast or by its own dtype; loc or h and the
inputs of the family are float32 from there on. The order of elimination is part of the state dict: weights for another
topology, order or family do not load.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import is_dataclass
from typing import Any, Generic, Self, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from sparseggm.errors import PatternError, ShapeError
from sparseggm.graph.families import ExtendedGrid, Stencil
from sparseggm.graph.graphs import Grid, Torus
from sparseggm.graph.pattern import IntArray, Pattern
from sparseggm.graph.topology import Topology, require_topology
from sparseggm.positivity import families
from sparseggm.positivity.families import DominantFamily, FactorFamily, Family, SpectralFamily
from sparseggm.torch.distribution import GaussianGraphicalModel
from sparseggm.torch.operators.registration import index
from sparseggm.torch.potentials import Potential

Emitted = TypeVar("Emitted")

SILENCE = 2.0**-60
"""How much of their usual start the weights that feed a family have. Nothing beside one, in float32 and float64; but a
direction, without which `weight_norm` divides by zero. In float16 it is zero."""


class Head(nn.Module, ABC):
    """What all heads share: a layer, a graph, and a state dict that knows what its weights are for."""

    def __init__(self, layer: nn.Module, topology: Topology) -> None:
        super().__init__()
        self.layer, self.topology = layer, topology

    def extra_repr(self) -> str:
        return f"{self.topology}, {self._made_of()}"

    def get_extra_state(self) -> Tensor:
        """Bytes of text, for what handles a state dict (safetensors, averages of weights) may know tensors alone."""
        return torch.tensor(list("\n".join(self._identity().values()).encode()), dtype=torch.uint8, device="cpu")

    def set_extra_state(self, state: Any) -> None:
        """Refuse weights that are for something else. An average of equal bytes is rounded to them."""
        if not isinstance(state, Tensor):
            raise PatternError(f"{type(self).__name__}: the saved weights are of another version of sparseggm.")
        saved = bytes(state.double().round().to(torch.uint8).tolist()).decode("latin-1").split("\n")
        for (name, own), other in zip(self._identity().items(), [*saved, *4 * [""]], strict=False):
            if own != other:
                raise PatternError(
                    f"{type(self).__name__}: the saved weights are for another {name} than that of {self.extra_repr()}."
                )

    def _identity(self) -> dict[str, str]:
        """What weights are for."""
        topology = self.topology
        return {
            "family": self._made_of(),
            "topology": _digest(np.append(topology.edges.ravel(), topology.n)),
            "order of elimination": _digest(topology.order),
            "pattern": self._pattern().key,
        }

    def _outputs(self, features: Tensor) -> Tensor:
        """What the layer emits, in float32 at least."""
        outputs: Tensor = self.layer(features)
        return outputs.float() if outputs.dtype in (torch.float16, torch.bfloat16) else outputs

    @abstractmethod
    def _made_of(self) -> str:
        """In a word, what is made of the layer's outputs."""

    def _pattern(self) -> Pattern:
        """On which that is."""
        return self.topology.factor_pattern


class FamilyHead(Head, Generic[Emitted]):
    """What heads with a family share: a layer that emits a vector over the nodes and the inputs of the family.

    Args:
        layer: features → (..., n + family.num_inputs(topology)), nodes first.
        topology: the graph.
        family: of `sparseggm.parametrize`.
    """

    def __init__(self, layer: nn.Module, topology: Topology, family: Family) -> None:
        super().__init__(layer, topology)
        self.family = family
        with torch.no_grad():  # derives what the topology needs: torch.compile then meets constants
            self._prepare(torch.zeros(1, topology.n + family.num_inputs(topology), device="cpu"))

    def forward(self, features: Tensor) -> Emitted:
        return self._emitted(self._outputs(features))

    def _emitted(self, outputs: Tensor) -> Emitted:
        vector, inputs = outputs.split([self.topology.n, outputs.shape[-1] - self.topology.n], dim=-1)
        return self._made(vector, self.family(self.topology, inputs))

    @abstractmethod
    def _made(self, vector: Tensor, values: Tensor) -> Emitted:
        """Of a vector (..., n) and the values of the family."""

    @abstractmethod
    def _prepare(self, outputs: Tensor) -> None:
        """Use once what is emitted, as a caller will."""

    def _made_of(self) -> str:
        return _name(self.family)

    def _pattern(self) -> Pattern:
        is_factor = isinstance(self.family, FactorFamily)
        return self.topology.factor_pattern if is_factor else self.topology.precision_pattern


def _name(family: Family) -> str:
    """The class of a family, with its settings where it has some."""
    return repr(family) if is_dataclass(family) else type(family).__name__


def _digest(numbers: IntArray) -> str:
    return hashlib.sha256(numbers.astype(np.int64).tobytes()).hexdigest()[:16]


def gaussian_of(loc: Tensor, values: Tensor, topology: Topology, family: Family) -> GaussianGraphicalModel:
    """N(loc, P⁻¹) for the values of a family: L, or P."""
    if isinstance(family, FactorFamily):
        return GaussianGraphicalModel(loc, factor=values, topology=topology, validate_args=False)
    return GaussianGraphicalModel.from_precision(loc, precision=values, topology=topology, validate_args=False)


class GaussianHead(FamilyHead[GaussianGraphicalModel]):
    """What the heads of Gaussians share: the vector is loc; a `FactorFamily` gives L, all others P."""

    def _made(self, vector: Tensor, values: Tensor) -> GaussianGraphicalModel:
        return gaussian_of(vector, values, self.topology, self.family)

    def _prepare(self, outputs: Tensor) -> None:
        q = self._emitted(outputs)
        q.colorize(q.loc)


class FactorHead(GaussianHead):
    """Features (..., in_features) → N(loc, (L Lᵀ)⁻¹): one linear layer emits loc and L, on any factor-free topology.

    Args:
        in_features: size of the last axis of the input.
        topology: `Diagonal`, `Chain`, `BlockChain`, `ExtendedGrid`, … with `is_factor_free`.
        family: `parametrize.factor`, or `regression`, whose weights do not depend on the scale of a node.
    """

    def __init__(self, in_features: int, topology: Topology, family: FactorFamily = families.factor) -> None:
        if not isinstance(family, FactorFamily):
            raise ValueError("FactorHead: the family must give a factor; for a precision use PrecisionHead.")
        require_topology("FactorHead", topology)
        if not topology.is_factor_free:
            raise PatternError(
                f"FactorHead: {topology} is not factor-free: L Lᵀ would have entries off its graph. Use PrecisionHead."
            )
        super().__init__(_linear(in_features, topology, family), topology, family)


class PrecisionHead(GaussianHead):
    """Features (..., in_features) → N(loc, P⁻¹): one linear layer emits loc and what a family makes a P ≻ 0 of.

    Args:
        in_features: size of the last axis of the input.
        topology: any graph; a `Grid` for instance, which is not factor-free.
        family: `parametrize.dominant` (the poster's Gershgorin), `scaled`, `edge` or `spectral`.
    Cost: one sparse Cholesky factorisation a batch element.
    """

    def __init__(self, in_features: int, topology: Topology, family: Family = families.dominant) -> None:
        _require_family("PrecisionHead", family)
        if isinstance(family, FactorFamily):
            raise ValueError("PrecisionHead: the family must give a precision; for L itself use FactorHead.")
        if isinstance(family, families.Semidefinite):
            raise ValueError("PrecisionHead: the family must give a P ≻ 0; for a Λ ⪰ 0 use PotentialHead.")
        super().__init__(_linear(in_features, topology, family), topology, family)


class PotentialHead(FamilyHead[Potential]):
    """Features (..., in_features) → a `Potential`: one linear layer emits h and what a family makes a Λ ⪰ 0 of.

    A product with a prior, `prior.product(head(features))`, is the posterior: its precision P + Λ is positive definite
    whatever the features, and never less than that of the prior.

    Args:
        in_features: size of the last axis of the input.
        topology: any graph; best that of the prior, as the same object.
        family: `parametrize.semidefinite_edge`, or on a factor-free topology `gram`; or a family of `PrecisionHead`,
            whose Λ ≻ 0 always says something about every node.
    """

    def __init__(self, in_features: int, topology: Topology, family: Family = families.semidefinite_edge) -> None:
        _require_family("PotentialHead", family)
        if isinstance(family, FactorFamily):
            raise ValueError("PotentialHead: the family must give Λ, as parametrize.gram does, which makes it of L.")
        super().__init__(_linear(in_features, topology, family), topology, family)

    def _made(self, vector: Tensor, values: Tensor) -> Potential:
        return Potential(vector, precision=values, topology=self.topology)

    def _prepare(self, outputs: Tensor) -> None:
        potential, unit = self._emitted(outputs), families.dominant
        precision = unit(self.topology, outputs.new_zeros(unit.num_inputs(self.topology)))
        prior = GaussianGraphicalModel.from_precision(
            potential.information, precision=precision, topology=self.topology
        )
        prior.product(potential)

    def _identity(self) -> dict[str, str]:
        return {**super()._identity(), "family": f"{_name(self.family)} of a potential"}


class ConvHead(GaussianHead):
    """Features (..., C, H, W) → a Gaussian over the H × W pixels, by one convolution that shares its weights.

    The convolution emits for every pixel its loc, its log-scale, and one number for each kind of edge: an edge is read
    at its first pixel, in row-major order, from the channel of its offset to the second. So away from borders the
    Gaussian moves with its features.

    Args:
        in_channels: C.
        topology: `ExtendedGrid(H, W)`, `Stencil(H, W, radius)` of one channel, `Grid(H, W)` or `Torus(H, W)`.
        kernel_size: odd; the convolution is padded to keep H and W.
        family: `parametrize.factor` or `regression` for L, or `dominant` or `spectral` for P.
    Raises:
        PatternError: another topology, or one without a factor where the family is `factor`.
        ShapeError: features of another size than H × W.
    """

    def __init__(
        self,
        in_channels: int,
        topology: Topology,
        kernel_size: int = 1,
        family: Family = families.factor,
    ) -> None:
        layer = _Convolution(in_channels, topology, kernel_size, family)
        super().__init__(layer, topology, family)


class _Convolution(nn.Module):
    """(..., C, H, W) → (..., n + num_inputs): a convolution, and the place of each input among its outputs."""

    places: Tensor

    def __init__(self, in_channels: int, topology: Topology, kernel_size: int, family: Family) -> None:
        super().__init__()
        shape = self.shape = _lattice_shape(topology)
        if not isinstance(family, FactorFamily | DominantFamily | SpectralFamily) or kernel_size % 2 == 0:
            raise ValueError(
                "ConvHead: needs the family factor, regression, dominant or spectral, and an odd kernel_size."
            )
        pairs = _input_pairs(topology, family)
        first, second = pairs.min(1), pairs.max(1)
        steps = np.stack([second // shape[1] - first // shape[1], second % shape[1] - first % shape[1]], axis=1)
        offsets, channels = np.unique(steps, axis=0, return_inverse=True)  # (0, 0), the log-scale's, is the least
        self._places = np.concatenate([np.arange(topology.n), (1 + channels.ravel()) * topology.n + first])
        self.convolution = nn.Conv2d(in_channels, 1 + len(offsets), kernel_size, padding=kernel_size // 2)
        silence(self.convolution.weight[1:], self.convolution.bias, 1)
        self.register_buffer("places", index(self._places), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Make `places` anew: after `to_empty` it would be what happens to be in memory."""
        super()._apply(fn, recurse)
        self.places = index(self._places)
        return self

    def forward(self, features: Tensor) -> Tensor:
        if tuple(features.shape[-2:]) != self.shape:
            raise ShapeError(
                f"ConvHead: features must be (…, C, {self.shape[0]}, {self.shape[1]}), got {tuple(features.shape)}."
            )
        maps: Tensor = self.convolution(features.reshape(-1, *features.shape[-3:]))
        maps = maps.reshape(*features.shape[:-3], *maps.shape[-3:])
        return maps.flatten(-3).index_select(-1, self.places.to(maps.device))


def _lattice_shape(topology: Topology) -> tuple[int, int]:
    """(H, W) of a topology whose nodes are the pixels of an image, row by row."""
    if isinstance(topology, Grid | Torus) and len(topology.shape) == 2:
        return topology.shape[0], topology.shape[1]
    if isinstance(topology, ExtendedGrid) or (isinstance(topology, Stencil) and topology.channels == 1):
        return topology.rows, topology.cols
    raise PatternError(
        "ConvHead: needs ExtendedGrid(H, W), Stencil(H, W, radius) of one channel, Grid(H, W) or Torus(H, W), "
        f"got {topology}."
    )


def _input_pairs(topology: Topology, family: Family) -> IntArray:
    """The two nodes that each input of a family stands for, (num_inputs, 2): a node twice for a log-scale."""
    if isinstance(family, FactorFamily):
        pattern = topology.factor_pattern
        return topology.order[np.stack([pattern.rows, pattern.cols], axis=1)]
    return np.concatenate([np.repeat(np.arange(topology.n)[:, None], 2, axis=1), topology.edges])


def _require_family(head: str, family: Any) -> None:
    """Raise where a name, or anything else, stands in the place of a family."""
    if not (callable(family) and hasattr(family, "num_inputs")):
        raise ValueError(f"{head}: the family must be one of sparseggm.parametrize, such as dominant, got {family!r}.")


def _linear(in_features: int, topology: Topology, family: Family) -> nn.Linear:
    """Nodes first, then the inputs of the family, which start at next to nothing."""
    layer = nn.Linear(in_features, topology.n + family.num_inputs(topology))
    silence(layer.weight[topology.n :], layer.bias, topology.n)
    return layer


def silence(weights: Tensor, bias: Tensor | None, start: int) -> None:
    """Next to nothing where the layer feeds a family."""
    with torch.no_grad():
        weights.mul_(SILENCE)
        if bias is not None:
            bias[start:].zero_()
