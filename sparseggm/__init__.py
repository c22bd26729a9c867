"""Gaussian graphical models: Gaussians with a sparse precision matrix P = L Lᵀ, exact and fast on a CPU.

sg.linalg       the verbs: solves, factorisation, log det, selected inverse, on packed values
sg.adjoints     their derivatives
sg.stochastic   traces and variances from random probes, each with its standard error
sg.gershgorin   sufficient conditions for P ≻ 0; sg.parametrize: P ≻ 0 by construction
sg.fields       observations through a matrix, evidence, predictions
sg.geometry     projections on graphs, geodesics, Fisher–Rao bounds, the Fisher matrix
sg.spectral     the largest eigenvalue of a sparse matrix, with a certificate
sparseggm.torch, sparseggm.vae      with the extras `torch` and `train`; never imported from here
"""

import sys

from sparseggm import fields, geometry, linalg, stochastic
from sparseggm.errors import (
    DTypeError,
    ImproperError,
    NonFiniteError,
    NonPositiveError,
    NotConvergedError,
    NotPositiveDefiniteError,
    PatternError,
    ShapeError,
)
from sparseggm.gaussian.model import GaussianGraphicalModel
from sparseggm.gaussian.observed import GreyLevels, LogitNormal
from sparseggm.gaussian.potentials import Potential
from sparseggm.gaussian.storage import load, save
from sparseggm.graph.colouring import distance_colouring
from sparseggm.graph.families import Band, BlockChain, Chain, Diagonal, ExtendedGrid, Stencil
from sparseggm.graph.graphs import Cycle, Graph, Grid, Star, Torus, Tree, from_networkx, from_scipy, union
from sparseggm.graph.pattern import Pattern
from sparseggm.graph.topology import Topology
from sparseggm.linalg import calculus as adjoints
from sparseggm.linalg.memory import release_memory
from sparseggm.positivity import families as parametrize
from sparseggm.positivity import gershgorin, spectral
from sparseggm.threads import get_num_threads, set_num_threads

__version__ = "0.1.0"

# The modules stand in packages by subject; `import sparseggm.adjoints` finds them under their public names too.
for _name in ("adjoints", "gershgorin", "parametrize", "spectral"):
    sys.modules[f"{__name__}.{_name}"] = globals()[_name]

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
    "GreyLevels",
    "Grid",
    "ImproperError",
    "LogitNormal",
    "NonFiniteError",
    "NonPositiveError",
    "NotConvergedError",
    "NotPositiveDefiniteError",
    "Pattern",
    "PatternError",
    "Potential",
    "ShapeError",
    "Star",
    "Stencil",
    "Topology",
    "Torus",
    "Tree",
    "adjoints",
    "distance_colouring",
    "fields",
    "from_networkx",
    "from_scipy",
    "geometry",
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
