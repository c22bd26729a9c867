"""The distance of Wasserstein between Gaussians, which is dense, and an upper bound of it in linear time."""

from __future__ import annotations

import numpy as np

from sparseggm.gaussian.model import GaussianGraphicalModel, require_arrays
from sparseggm.geometry.kinds import together
from sparseggm.graph.edges import require_at_least
from sparseggm.graph.pattern import FloatArray
from sparseggm.linalg import checks
from sparseggm.stochastic.estimators import Estimate
from sparseggm.stochastic.randomness import Seed, generator


def wasserstein(q: GaussianGraphicalModel, p: GaussianGraphicalModel) -> FloatArray:
    """W with W² = inf E |z_q − z_p|² over all couplings: in units of z, shape of the batch axes together.

        W² = |loc_q − loc_p|² + min ‖Uᵀ A_qᵀ − A_pᵀ‖_F²  over the orthogonal U,       Σ = A Aᵀ,  A = L⁻ᵀ.

    The best U is X Yᵀ of A_qᵀ A_p = X S Yᵀ. A sum of squares: near Gaussians keep their digits, which the equal form
    tr Σ_q + tr Σ_p − 2 tr (Σ_q^½ Σ_p Σ_q^½)^½ cancels.

    Raises:
        ShapeError: more than 20,000 nodes; `coupled_distance` is the linear-time bound.
    Cost: n solves with each L, two products and a singular value decomposition of n × n: O(n³).
    Source: [Olkin & Pukelsheim 1982; Bhatia, Jain & Lim 2019].
    """
    function = "wasserstein"
    require_arrays(function, q, p)
    q, p = together(function, q, p)
    one, other = (g._covariance_root(function, "coupled_distance").astype(np.float64) for g in (q, p))
    left, _, right = np.linalg.svd(one @ np.swapaxes(other, -1, -2))
    apart = np.swapaxes(left @ right, -1, -2) @ one - other
    square = _square_of_means(q, p) + (apart**2).sum(axis=(-1, -2))
    return checks.require_representable(function, np.sqrt(square), q.dtype)


def coupled_distance(
    q: GaussianGraphicalModel, p: GaussianGraphicalModel, *, num_probes: int = 32, rng: Seed = None
) -> Estimate:
    """√E |z_q − z_p|² of samples with common noise, z = loc + L⁻ᵀ ε: at least `wasserstein`, in units of z.

        E |z_q − z_p|² = |loc_q − loc_p|² + ‖L_q⁻ᵀ − L_p⁻ᵀ‖_F²,

    whose last term is estimated by random signs ε, unbiased. Nodes have the same noise in both, whatever their orders
    of elimination. The standard error is that of the square over twice the root.

    Args:
        num_probes: N, at least 2.
        rng: source of the signs, a generator or a seed; None: a fresh, unseeded one.
    Cost: N solves with each L; memory of one probe of the whole batch.
    """
    function = "coupled_distance"
    require_arrays(function, q, p)
    q, p = together(function, q, p)
    require_at_least(2, function, num_probes=num_probes)
    source, shape = generator(function, rng), (*np.broadcast_shapes(q.batch_shape, p.batch_shape), q.n)
    mean, scatter = np.zeros(shape[:-1]), np.zeros(shape[:-1])
    for count in range(1, num_probes + 1):  # Welford's update
        signs = 2.0 * source.integers(0, 2, shape) - 1.0
        noise = signs.astype(q.dtype)
        with checks.speaking_as(function, "colorize"):
            apart = q.colorize(noise).astype(np.float64) - p.colorize(noise)
        square = (apart**2).sum(axis=-1)
        change = square - mean
        mean = mean + change / count
        scatter = scatter + change * (square - mean)
    error = np.sqrt(scatter / (num_probes - 1) / num_probes)
    distance = np.sqrt(_square_of_means(q, p) + mean)
    relative = np.divide(error, 2.0 * distance, out=np.zeros_like(error), where=distance > 0.0)
    return Estimate(*(checks.require_representable(function, part, q.dtype) for part in (distance, relative)))


def _square_of_means(q: GaussianGraphicalModel, p: GaussianGraphicalModel) -> FloatArray:
    """|loc_q − loc_p|² in float64."""
    return np.asarray(((q.loc.astype(np.float64) - p.loc) ** 2).sum(axis=-1))
