"""The geometry of Gaussians from dense matrices: covariance selection, the metric of Fisher, distances."""

from __future__ import annotations

import numpy as np

from reference.gaussian import covariance
from reference.linalg import Array, matmul, transpose
from reference.topology import Edges


def selection(edges: Edges, moments: Array, sweeps: int) -> Array:
    """P on a graph whose inverse has the given moments there: P_ee += S_ee⁻¹ − Σ_ee⁻¹, edge by edge, in sweeps.

    The iterative proportional scaling of [Speed & Kiiveri 1986], in float64.
    """
    P = np.diag(1 / np.diag(moments))
    for i, j in edges * sweeps:
        block = np.ix_([i, j], [i, j])
        P[block] += np.linalg.inv(moments[block]) - np.linalg.inv(np.linalg.inv(P)[block])
    return P


def metric(precision: Array, first: tuple[Array, Array], second: tuple[Array, Array]) -> Array:
    """The inner product of two changes (dloc, dP) of a Gaussian: dlocᵀ P dloc' + ½ tr(Σ dP Σ dP')."""
    sigma = covariance(precision)
    along = (first[0] * matmul(precision, second[0])).sum(axis=-1)
    return np.asarray(along + np.trace(sigma @ first[1] @ sigma @ second[1], axis1=-2, axis2=-1) / 2)


def change_of_precision(coordinates: str, factor: Array, loc: Array, v: tuple[Array, Array]) -> tuple[Array, Array]:
    """(dloc, dP) for a change of the coordinates of N(loc, (L Lᵀ)⁻¹), whose matrix is lower triangular.

    "factor": (dloc, dL). "regression": (dloc, d log σ on the diagonal and dβ below), L_jj = 1/σ_j, L_ij = −β_ij/σ_j.
    "natural": (d(P loc), dP).
    """
    vector, matrix = v
    if coordinates == "natural":
        change = matrix + transpose(np.tril(matrix, -1))
        return matmul(covariance(factor @ transpose(factor)), vector - matmul(change, loc)), change
    if coordinates == "regression":
        diagonal = np.diagonal(matrix, axis1=-2, axis2=-1)
        pivots = np.diagonal(factor, axis1=-2, axis2=-1)
        matrix = -factor * diagonal[..., None, :] - np.tril(matrix, -1) * pivots[..., None, :]
    change = matrix @ transpose(factor)
    return vector, change + transpose(change)


def normal_distance(loc_q: Array, scale_q: Array, loc_p: Array, scale_p: Array) -> Array:
    """The Fisher–Rao distance of two normal distributions of one variable: 2√2 artanh δ, δ their Möbius distance."""
    move = (loc_q - loc_p) ** 2
    ratio = (move + 2 * (scale_q - scale_p) ** 2) / (move + 2 * (scale_q + scale_p) ** 2)
    return np.asarray(2 * np.sqrt(2) * np.arctanh(np.sqrt(ratio)))
