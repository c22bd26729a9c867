"""Fields of districts: conditional autoregressions, and the model of Besag, York & Mollié in its scaled form, BYM2."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.sparse
from scipy.sparse.csgraph import connected_components

from sparseggm.errors import NonPositiveError, PatternError, ShapeError
from sparseggm.fields.parameters import (
    common_batch,
    constants,
    expanded,
    gaussian_about,
    parameters,
    representable_precision,
    require_between,
    require_positive,
)
from sparseggm.gaussian.model import GaussianGraphicalModel
from sparseggm.graph.graphs import Graph
from sparseggm.graph.pattern import FloatArray
from sparseggm.graph.topology import Topology, require_topology
from sparseggm.kernels.sparse.density import LOG_2PI
from sparseggm.linalg import checks
from sparseggm.positivity.namespace import Array, array_namespace, constant_like


class Improper(NamedTuple):
    """A density exp(c − ½ (z − loc)ᵀ P (z − loc)) that P ⪰ 0 leaves flat in some directions: a prior of `laplace`."""

    loc: Array
    """(..., n)."""
    precision: Array
    """(..., nnz) on `topology.precision_pattern`; may be singular."""
    topology: Topology
    log_constant: Array
    """(...) c, nats."""


class CAR:
    """The proper conditional autoregression: P = τ (D − ρ W), D = diag(Σ_j w_ij) [Besag 1974].

    Given all others z_i has mean ρ Σ_j w_ij z_j / D_ii and variance 1 / (τ D_ii).

    Args:
        topology: which districts are neighbours.
        weights: (m,) positive, one for each row of `topology.edges`; None: all 1.
    Raises:
        PatternError: a district has no neighbours.
    """

    def __init__(self, topology: Topology, weights: npt.ArrayLike | None = None) -> None:
        self._weights, self._degrees = _checked_weights("CAR", topology, weights)
        if not self._degrees.all():
            raise PatternError(f"CAR: every district must have a neighbour, got none of {np.argmin(self._degrees)}.")
        self.topology = topology

    def __repr__(self) -> str:
        return f"CAR({self.topology})"

    def precision(self, tau: Any, rho: Any) -> Array:
        """P (..., nnz); τ > 0, and ρ in (−1, 1), where P is diagonally dominant."""
        tau, rho = parameters("CAR.precision", tau=tau, rho=rho)
        require_positive("CAR.precision", tau=tau)
        require_between("CAR.precision", "rho", rho, -1.0, 1.0)
        batch = common_batch("CAR.precision", tau=tau.shape, rho=rho.shape)
        with np.errstate(over="ignore"):  # tested below
            diagonal = tau[..., None] * constant_like(tau, self._degrees)
            couplings = -(tau * rho)[..., None] * constant_like(tau, self._weights)
        diagonal, couplings = (expanded(part, (*batch, part.shape[-1])) for part in (diagonal, couplings))
        return representable_precision("CAR.precision", self.topology.pack((diagonal, couplings)))

    def prior(self, tau: Any, rho: Any, loc: Any = 0.0) -> Any:
        """The Gaussian, in NumPy, or in torch if a parameter is a tensor; loc a number or (..., n)."""
        return gaussian_about(self.precision(tau, rho), loc, self.topology, "CAR.prior")


class BYM2:
    """η = β₀ + X β + sd (√(1 − mix) ε + √mix u): BYM2 [Riebler et al. 2016] with fixed effects of flat priors.

    ε is white and u the intrinsic autoregression with precision s (D − W) and Σ u = 0, where s makes the geometric mean
    of its variances 1: then `mix` is the share of the variance that is spatial, and `sd` means the same on any graph.

    A flat intercept and the constraint Σ u = 0 are the same as neither: u + c for every c, with β₀ = sd √mix c. So the
    nodes are x = β₀ + sd (…), then u + c, then β; the precision is sparse, and singular in one direction, which data
    settle. `log_constant` makes the evidence that of the model above, with density 1 of β₀ and of β.

    Args:
        topology: which of the n districts are neighbours; connected.
        covariates: X, (n, p), without a constant column; None: p = 0.
        weights: as those of `CAR`.
    Raises:
        PatternError: the graph is not connected.
    """

    def __init__(
        self, topology: Topology, covariates: npt.ArrayLike | None = None, weights: npt.ArrayLike | None = None
    ) -> None:
        self._weights, self._degrees = _checked_weights("BYM2", topology, weights)
        _require_connected(topology)
        self.districts = topology
        n = topology.n
        (X,) = constants("BYM2", covariates=np.zeros((n, 0)) if covariates is None else covariates)
        if X.ndim != 2 or len(X) != n:
            raise ShapeError(f"BYM2: covariates must be ({n}, p), got shape {X.shape}.")
        checks.require_finite("BYM2", "covariates", None, X)
        constant = np.ptp(X, axis=0) == 0
        if constant.any():
            raise ValueError(f"BYM2: column {np.argmax(constant)} of covariates is constant. The intercept is there.")
        self.scale, self._logdet = _scaling(topology, self._weights, self._degrees)
        self.covariates = X
        self.topology = Graph(
            2 * n + X.shape[1],
            np.concatenate([np.stack([np.arange(n, 2 * n), np.arange(n)], axis=-1), topology.edges + n]),
        )
        self.matrix = scipy.sparse.csr_array(
            scipy.sparse.hstack([scipy.sparse.eye_array(n), scipy.sparse.csr_array((n, n)), scipy.sparse.csr_array(X)])
        )
        """A of η = A z, (n, 2n + p)."""

    def __repr__(self) -> str:
        return f"BYM2({self.districts}, {self.covariates.shape[1]} covariates)"

    def prior(self, sd: Any, mix: Any) -> Improper:
        """The improper density of z = (x, u, β), sd > 0 and mix in (0, 1)."""
        function, n = "BYM2.prior", self.districts.n
        sd, mix = parameters(function, sd=sd, mix=mix)
        require_positive(function, sd=sd)
        require_between(function, "mix", mix, 0.0, 1.0)
        xp, shape = array_namespace(sd), common_batch(function, sd=sd.shape, mix=mix.shape)
        with np.errstate(over="ignore", divide="ignore"):  # the precision is tested below
            own, pull = 1 / (sd**2 * (1 - mix)), -xp.sqrt(mix) / (sd * (1 - mix))
        spatial = expanded(mix / (1 - mix), shape)

        def on_each(coefficient: Array, facts: FloatArray) -> Array:
            return expanded(coefficient, shape)[..., None] * constant_like(own, facts)

        ones, one = np.ones(n), xp.ones_like(own)
        structure = on_each(one, self.scale * self._degrees) + on_each(spatial, ones)
        flat = on_each(one, np.zeros(self.covariates.shape[1]))
        diagonal = xp.concatenate([on_each(own, ones), structure, flat], -1)
        couplings = xp.concatenate([on_each(pull, ones), on_each(one, -self.scale * self._weights)], -1)
        precision = representable_precision(function, self.topology.pack((diagonal, couplings)))
        constant = xp.log(sd) + 0.5 * xp.log(mix) + 0.5 * n * xp.log(own)
        constant = constant + 0.5 * (self._logdet + (n - 1) * math.log(self.scale) - (2 * n - 1) * LOG_2PI)
        loc = constant_like(own, np.zeros(self.topology.n))
        return Improper(loc, precision, self.topology, constant)


def _scaling(topology: Topology, weights: FloatArray, degrees: FloatArray) -> tuple[float, float]:
    """s = exp(mean log diag Q⁻) of Q = D − W, and log det (Q + e₀ e₀ᵀ).

    (Q + e₀ e₀ᵀ)⁻¹ is Q⁻ but for the means of its rows and columns, which centring removes.
    """
    grounded = degrees.copy()
    grounded[0] += 1.0
    g = GaussianGraphicalModel.from_precision(
        np.zeros(topology.n), precision=topology.arranged(grounded, -weights), topology=topology
    )
    means = g.covariance_matmul(np.full(topology.n, 1 / topology.n))
    return float(np.exp(np.log(g.variance - 2 * means + means.mean()).mean())), float(g._logdet())


def _checked_weights(function: str, topology: Topology, weights: npt.ArrayLike | None) -> tuple[FloatArray, FloatArray]:
    """Weights of the edges, and their sums over the neighbours of each district."""
    require_topology(function, topology)
    edges = topology.edges
    (w,) = constants(function, weights=np.ones(len(edges)) if weights is None else weights)
    if w.shape != (len(edges),):
        raise ShapeError(f"{function}: weights must be ({len(edges)},), one for each edge, got shape {w.shape}.")
    if not ((w > 0) & np.isfinite(w)).all():
        raise NonPositiveError(
            f"{function}: weights must be positive and finite, got {w[~((w > 0) & (w < np.inf))][0]}."
        )
    degrees = np.bincount(edges.ravel(), np.repeat(w, 2), topology.n)
    return w, degrees


def _require_connected(topology: Topology) -> None:
    ends = tuple(topology.edges.T)
    graph = scipy.sparse.coo_array((np.ones(len(topology.edges)), ends), (topology.n, topology.n))
    count, label = connected_components(graph, directed=False)
    if count > 1 or topology.n == 1:
        apart = f"; district {np.argmax(label != label[0])} cannot be reached from 0" if count > 1 else ""
        raise PatternError(
            f"BYM2: topology must join at least two districts, all of them, got {topology} in {count} parts{apart}. "
            "Join the parts, or model each alone."
        )
