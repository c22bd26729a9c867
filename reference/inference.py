"""Conditional, marginal and posterior Gaussians, and maximum likelihood, from dense matrices and the textbook.

Conditioning and marginals are written with covariances, while the library works with precisions. Nodes are lists of
numbers; A are the nodes that are kept, B the others.
"""

from __future__ import annotations

import numpy as np

from reference.gaussian import covariance
from reference.linalg import Array, cholesky, inverse, logdet, matmul, transpose
from reference.topology import Edges, Mask, neighbours_of

Nodes = list[int]


def block(matrix: Array, rows: Nodes, cols: Nodes) -> Array:
    """The rows and columns of these nodes, in their order."""
    return matrix[..., rows, :][..., cols]


def others(n: int, nodes: Nodes) -> Nodes:
    """The nodes that are not listed, ascending."""
    return [node for node in range(n) if node not in nodes]


def marginal(precision: Array, nodes: Nodes) -> Array:
    """The precision of z_A: the inverse of Σ_AA."""
    return covariance(block(covariance(precision), nodes, nodes))


def condition(loc: Array, precision: Array, nodes: Nodes, values: Array) -> tuple[Array, Array]:
    """Mean and covariance of the others: loc_A + Σ_AB Σ_BB⁻¹ (v − loc_B) and Σ_AA − Σ_AB Σ_BB⁻¹ Σ_BA."""
    sigma, kept = covariance(precision), others(precision.shape[-1], nodes)
    across = block(sigma, kept, nodes)
    gain = across @ covariance(block(sigma, nodes, nodes))
    mean = loc[..., kept] + matmul(gain, values - loc[..., nodes])
    return mean, block(sigma, kept, kept) - gain @ transpose(across)


def observe(loc: Array, precision: Array, nodes: Nodes, values: Array, variance: Array) -> tuple[Array, Array]:
    """Mean and covariance after y = z_B + noise, by Bayes: the exponents −½ (y − z_B)² / variance and −½ dᵀ P d add.

    The gain Σ_:B (Σ_BB + R)⁻¹ is not used, because it cancels where the variance is small.
    """
    shape = np.broadcast_shapes(values.shape, variance.shape, loc[..., nodes].shape)
    weight = np.zeros((*variance.shape[:-1], precision.shape[-1]), precision.dtype)
    pull = np.zeros((*shape[:-1], precision.shape[-1]), precision.dtype)
    weight[..., nodes] = 1 / variance
    pull[..., nodes] = (values - loc[..., nodes]) / variance
    sigma = covariance(precision + weight[..., None] * np.eye(precision.shape[-1], dtype=precision.dtype))
    return loc + matmul(sigma, pull), sigma


def product(loc: Array, precision: Array, information: Array, more: Array) -> tuple[Array, Array]:
    """Mean and covariance of the density ∝ N(loc, P⁻¹) exp(hᵀ z − ½ zᵀ Λ z): Σ = (P + Λ)⁻¹ and Σ (P loc + h)."""
    sigma = covariance(precision + more)
    return matmul(sigma, matmul(precision, loc) + information), sigma


# ---------------------------------------------------------------------- maximum likelihood


def moments(samples: Array) -> tuple[Array, Array]:
    """Mean and covariance of samples (..., N, n), with weights 1/N."""
    loc = samples.mean(axis=-2)
    centred = samples - loc[..., None, :]
    return loc, transpose(centred) @ centred / samples.shape[-2]


def log_likelihood(factor: Array, covariance: Array) -> Array:
    """A sample's mean log density at the sample mean, less its constant: ½ [log det P − tr(Lᵀ C L)]."""
    spread = np.trace(transpose(factor) @ covariance @ factor, axis1=-2, axis2=-1)
    return np.asarray((logdet(factor) - spread) / 2)


def fit_factor(mask: Mask, covariance: Array) -> Array:
    """The most likely L on a pattern: each column C_SS⁻¹ e₁ / √(e₁ᵀ C_SS⁻¹ e₁) on its rows S, by dense inverses."""
    factor = np.zeros_like(covariance)
    for j in range(len(mask)):
        rows = [j, *(i for i in range(j + 1, len(mask)) if mask[i, j])]
        first = inverse(cholesky(block(covariance, rows, rows)))[..., 0]
        factor[..., rows, j] = first / np.sqrt(first[..., :1])
    return factor


def fit_precision(edges: Edges, order: Nodes, covariance: Array) -> Array:
    """The most likely P of a chordal graph: Σ [C_cliques⁻¹] − Σ [C_separators⁻¹] [Lauritzen 1996, Prop. 5.9].

    In a perfect order, the clique of a node is the node and its later neighbours; its separator, the latter alone.
    """
    n = covariance.shape[-1]
    neighbours, place = neighbours_of(n, edges), {node: k for k, node in enumerate(order)}
    precision = np.zeros_like(covariance)
    for v in order:
        separator = sorted(u for u in neighbours[v] if place[u] > place[v])
        for nodes, sign in (([v, *separator], 1), (separator, -1)):
            if nodes:
                inside, at = inverse(cholesky(block(covariance, nodes, nodes))), np.array(nodes)
                precision[..., at[:, None], at] += sign * inside
    return precision
