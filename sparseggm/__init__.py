"""Gaussian graphical models: Gaussians with a sparse precision matrix P = L Lᵀ, exact and fast on a CPU.

sg.linalg       the verbs: solves, factorisation, log det, selected inverse, on packed values
sg.adjoints     their derivatives
sg.stochastic   traces and variances from random probes, each with its standard error
sg.gershgorin   sufficient conditions for P ≻ 0; sg.parametrize: P ≻ 0 by construction
sg.spectral     the largest eigenvalue of a sparse matrix, with a certificate
sparseggm.torch, sparseggm.vae      with the extras `torch` and `train`; never imported from here
"""

from sparseggm import adjoints, gershgorin, linalg, parametrize, spectral, stochastic
from sparseggm.colouring import distance_colouring
from sparseggm.errors import (
    DTypeError,
    NonFiniteError,
    NonPositiveError,
    NotPositiveDefiniteError,
    PatternError,
    ShapeError,
)
from sparseggm.gaussian import GaussianGraphicalModel
from sparseggm.graphs import Cycle, Graph, Grid, Star, Torus, Tree, from_networkx, from_scipy, union
from sparseggm.memory import release_memory
from sparseggm.pattern import Pattern
from sparseggm.storage import load, save
from sparseggm.threads import get_num_threads, set_num_threads
from sparseggm.topology import Band, BlockChain, Chain, Diagonal, ExtendedGrid, Stencil, Topology

__version__ = "0.1.0"

__all__ = [
    "Band",
    "BlockChain",
    "Chain",
    "Cycle",
    "DTypeError",
    "Diagonal",
    "ExtendedGrid",
    "GaussianGraphicalModel",
    "Graph",
    "Grid",
    "NonFiniteError",
    "NonPositiveError",
    "NotPositiveDefiniteError",
    "Pattern",
    "PatternError",
    "ShapeError",
    "Star",
    "Stencil",
    "Topology",
    "Torus",
    "Tree",
    "adjoints",
    "distance_colouring",
    "from_networkx",
    "from_scipy",
    "gershgorin",
    "get_num_threads",
    "linalg",
    "load",
    "parametrize",
    "release_memory",
    "save",
    "set_num_threads",
    "spectral",
    "stochastic",
    "union",
]
