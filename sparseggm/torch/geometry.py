"""The geometry of sparse Gaussians for tensors: the functions of `sparseggm.geometry`, differentiable and batched.

The same code serves arrays and tensors; here are the names that have derivatives. `project`, `m_geodesic`, the
"m" `centroid` and `from_coordinates` of "expectation" are in closed form, hence differentiable, where the graph is
chordal in its order, and raise elsewhere. Derivatives are those of the formulas, to every order; they cost what two or
three evaluations do. Under `torch.func` and in compiled code nothing is validated.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparseggm import geometry
from sparseggm.errors import PatternError
from sparseggm.gaussian import selection
from sparseggm.gaussian.fitting import Words, columns_of_factor
from sparseggm.geometry import Bounds, Moments, Point, Tangent, kinds
from sparseggm.graph.pattern import Pattern
from sparseggm.graph.topology import Topology
from sparseggm.positivity.namespace import readable
from sparseggm.torch import ops
from sparseggm.torch.border import as_tensors, rounded, tells
from sparseggm.torch.distribution import GaussianGraphicalModel
from sparseggm.torch.potentials import joint

__all__ = [
    "Bounds",
    "Moments",
    "Point",
    "Tangent",
    "centroid",
    "e_geodesic",
    "fisher_length",
    "fisher_matmul",
    "fisher_rao_bounds",
    "fisher_solve",
    "from_coordinates",
    "jeffreys",
    "m_geodesic",
    "moments_on",
    "project",
    "to_coordinates",
]

centroid = tells()(geometry.centroid)
e_geodesic = tells()(geometry.e_geodesic)
fisher_length = tells()(geometry.fisher_length)
fisher_matmul = tells("vector", "values")(geometry.fisher_matmul)
fisher_rao_bounds = tells()(geometry.fisher_rao_bounds)
fisher_solve = tells("vector", "values")(geometry.fisher_solve)
from_coordinates = tells()(geometry.from_coordinates)
jeffreys = tells()(geometry.jeffreys)
m_geodesic = tells()(geometry.m_geodesic)
moments_on = tells()(geometry.moments_on)
project = tells()(geometry.project)
to_coordinates = tells()(geometry.to_coordinates)


class _Tensors:
    """Gaussians of tensors: see `geometry.kinds.Kind`."""

    verbs = ops
    gaussian = GaussianGraphicalModel
    joint_graph = staticmethod(joint)

    def numbers(self, function: str, like: Tensor | None, **values: Any) -> list[Tensor]:
        if like is None:
            return [*as_tensors(function, **values)]
        return [*as_tensors(function, own=like, **values)[1:]]

    def rounded(self, function: str, total: Tensor, like: Tensor) -> Tensor:
        return rounded(total, like.dtype)

    def factor(self, g: GaussianGraphicalModel) -> Tensor:
        return g._factor

    def selected_inverse(self, function: str, g: GaussianGraphicalModel, on: Pattern) -> Tensor:
        return ops.selected_inverse(g.factor_pattern, g._factor, on=on)

    def square_distance(self, function: str, g: GaussianGraphicalModel, loc: Tensor) -> Tensor:
        return g._square_distance(loc)

    def gradient_at(self, function: str, g: GaussianGraphicalModel, loc: Tensor) -> Tensor:
        return g._gradient_at(loc)

    def of_information(
        self, function: str, vector: Tensor, precision: Tensor, graph: Topology, loc: Tensor
    ) -> GaussianGraphicalModel:
        centred = GaussianGraphicalModel._of_precision(function, vector, precision, graph, False)
        return centred.moved_to(loc + centred._solved())

    def of_factor(
        self, function: str, loc: Tensor, factor: Tensor, graph: Topology, pattern: Pattern
    ) -> GaussianGraphicalModel:
        return GaussianGraphicalModel._of(function, loc, factor, graph, pattern, False, is_on_topology=True)

    def factor_of_moments(self, topology: Topology, covariance: Tensor, words: Words) -> Tensor:
        pattern = topology.precision_pattern
        if not pattern.is_closed:
            raise PatternError(
                f"{words.function}: of tensors, needs a graph that is chordal in its order, got {topology}. "
                "sparseggm.geometry takes any graph, without gradients."
            )
        values = readable(covariance)
        if values is not None:
            selection.require_correlations(topology, values, words)
        factor: Tensor = columns_of_factor(topology, covariance, words, pattern)
        return factor


_TENSORS = _Tensors()


@kinds.kind_of.register(Tensor)
def _kind_of_tensors(values: torch.Tensor) -> kinds.Kind:
    return _TENSORS
