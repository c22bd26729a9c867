"""The geometry of sparse Gaussians: projections, geodesics, distances, and the Fisher matrix: docs/math.md, section 13.

A Gaussian on a graph is an exponential family. Its natural parameters are (P loc, P on the graph), its expectation
parameters (E z, E z zᵀ on the graph). Results are in nats, or square roots of them. `sparseggm.torch.geometry` has the
same functions for tensors.
"""

from sparseggm.geometry.centroids import centroid
from sparseggm.geometry.conversions import Point, from_coordinates, to_coordinates
from sparseggm.geometry.distances import Bounds, fisher_length, fisher_rao_bounds, jeffreys
from sparseggm.geometry.fisher import Tangent, fisher_matmul, fisher_solve
from sparseggm.geometry.mixtures import e_geodesic, m_geodesic
from sparseggm.geometry.projection import Moments, moments_on, project
from sparseggm.geometry.transport import coupled_distance, wasserstein

__all__ = [
    "Bounds",
    "Moments",
    "Point",
    "Tangent",
    "centroid",
    "coupled_distance",
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
    "wasserstein",
]
