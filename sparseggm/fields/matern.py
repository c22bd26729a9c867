"""Matérn fields by finite elements [Lindgren, Rue & Lindström 2011], on a mesh of triangles or a regular lattice.

(κ² − Δ)^{α/2} x = white noise / τ has the Matérn covariance of smoothness ν = α − d/2 in d dimensions. With mass C and
stiffness G of `elements` its precision is, for α = 1 and 2,

    P = τ² (κ² C + G),    P = τ² (κ⁴ C + 2 κ² G + G C⁻¹ G).

    range = √(8ν) / κ, where the correlation is near 0.14;    sd² = Γ(ν) / (Γ(α) (4π)^{d/2} κ^{2ν} τ²)

The standard deviation is that of a field without an end: within about a range of the boundary it is larger, by up to √2
at an edge, since boundaries are free. Extend the mesh by a range beyond the data.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse

from sparseggm.fields.elements import Domain, Lattice
from sparseggm.fields.parameters import (
    combined,
    common_batch,
    gaussian_about,
    parameters,
    representable_precision,
    require_positive,
)
from sparseggm.graph.graphs import Graph, Grid
from sparseggm.graph.pattern import FloatArray
from sparseggm.graph.topology import Topology
from sparseggm.positivity.namespace import Array


class Matern:
    """A Matérn field on a `Mesh` or a `Lattice`: node i is the field's value at point i.

    The graph and the packed matrices are made once; values are a differentiable function of the parameters, which may
    be numbers, arrays with batch axes, or tensors.

    Args:
        domain: a `Mesh`, or a `Lattice`.
        alpha: 1 or 2. Smoothness α − d/2: on a line ½ and 3/2, in the plane 0 and 1.
    """

    topology: Topology

    def __init__(self, domain: Domain, alpha: int = 2) -> None:
        if not isinstance(alpha, int | np.integer) or alpha not in (1, 2):
            raise ValueError(f"Matern: alpha must be 1 or 2, got {alpha!r}.")
        if not hasattr(domain, "elements"):
            raise TypeError(f"Matern: domain must be a Mesh or a Lattice, got {type(domain).__name__}.")
        self.domain, self.alpha = domain, int(alpha)
        self.smoothness = alpha - domain.dimension / 2
        mass, stiffness = domain.elements()
        matrices = [scipy.sparse.csr_array(scipy.sparse.diags_array(mass)), stiffness]
        if alpha == 2:
            matrices.append(scipy.sparse.csr_array(stiffness @ scipy.sparse.diags_array(1 / mass) @ stiffness))
        halves = [scipy.sparse.tril(matrix, format="csr") for matrix in matrices]  # symmetric to rounding
        on_grid = alpha == 1 and isinstance(domain, Lattice)
        self.topology = Grid(*domain.shape) if on_grid else _graph_of(sum(map(abs, halves[1:])))  # type: ignore[attr-defined]
        self._packed = [_values_on(self.topology, half) for half in halves]

    def __repr__(self) -> str:
        return f"Matern({self.domain}, alpha={self.alpha})"

    def precision(self, range: Any, sd: Any) -> Array:
        """P (..., nnz) on `topology.precision_pattern`, of a field with this range and standard deviation.

        Raises:
            ValueError: α ≤ d/2, of which no field with a variance exists: see `precision_of`.
            NonPositiveError: a parameter is not positive and finite.
        """
        function, nu, d = "Matern.precision", self.smoothness, self.domain.dimension
        if nu <= 0:
            raise ValueError(
                f"{function}: alpha must exceed half of the dimension {d}, got {self.alpha}: the field has no "
                f"variance. Use {'alpha=2, or ' if d < 4 else ''}precision_of(kappa, tau)."
            )
        range, sd = parameters(function, range=range, sd=sd)
        require_positive(function, range=range, sd=sd)
        common_batch(function, range=range.shape, sd=sd.shape)
        kappa = math.sqrt(8 * nu) / range
        gammas = math.gamma(nu) / (math.gamma(self.alpha) * (4 * math.pi) ** (d / 2))
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):  # tested below
            return self._precision(function, kappa, gammas / (kappa ** (2 * nu) * sd**2))

    def precision_of(self, kappa: Any, tau: Any) -> Array:
        """P (..., nnz) in the parameters of the equation."""
        function = "Matern.precision_of"
        kappa, tau = parameters(function, kappa=kappa, tau=tau)
        require_positive(function, kappa=kappa, tau=tau)
        common_batch(function, kappa=kappa.shape, tau=tau.shape)
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            return self._precision(function, kappa, tau**2)

    def prior(self, range: Any, sd: Any, loc: Any = 0.0) -> Any:
        """The Gaussian of the field, in NumPy, or in torch if a parameter is a tensor; loc a number or (..., n).

        Cost: one factorisation on the graph.
        """
        return gaussian_about(self.precision(range, sd), loc, self.topology, "Matern.prior")

    def projector(self, places: npt.ArrayLike) -> Any:
        """A of A z, the field at other points: (k, n) scipy.sparse, of linear interpolation."""
        return self.domain.projector(places)

    def _precision(self, function: str, kappa: Array, scale: Array) -> Array:
        squared = kappa**2
        coefficients = [scale * squared**2, 2 * scale * squared, scale + 0 * squared]
        if self.alpha == 1:
            coefficients = [scale * squared, scale + 0 * squared]
        values = combined(coefficients, self._packed)
        return representable_precision(function, values)


def _graph_of(half: Any) -> Topology:
    """The graph of a matrix that is ≥ 0, by its lower triangle."""
    entries = half.tocoo()
    joined = (entries.data > 0) & (entries.coords[0] != entries.coords[1])
    return Graph(half.shape[0], np.stack([axis[joined] for axis in entries.coords], axis=-1))


def _values_on(topology: Topology, half: Any) -> FloatArray:
    """As `topology.pack`, of a symmetric matrix by its lower triangle, which is on the graph by construction."""
    entries = half.tocoo()
    stored = entries.data != 0
    i, j = (topology.inverse_order[axis[stored]] for axis in entries.coords)
    pattern = topology.precision_pattern
    values = np.zeros(pattern.nnz)
    values[pattern.positions_between(i, j)] = entries.data[stored]
    return values
