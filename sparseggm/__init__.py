"""Gaussian graphical models: Gaussians with a sparse precision matrix P = L Lᵀ, exact and fast on a CPU.

sg.linalg       the verbs: solves, factorisation, log det, selected inverse, on packed values
sg.adjoints     their derivatives
sg.gershgorin   sufficient conditions for P ≻ 0; sg.parametrize: P ≻ 0 by construction
sparseggm.torch, sparseggm.vae      with the extras `torch` and `train`; never imported from here
"""

from sparseggm import adjoints, gershgorin, linalg, parametrize
from sparseggm.errors import (
    DTypeError,
    NonFiniteError,
    NonPositiveError,
    NotPositiveDefiniteError,
    PatternError,
    ShapeError,
)
from sparseggm.gaussian import GaussianGraphicalModel
from sparseggm.pattern import Pattern
from sparseggm.threads import get_num_threads, set_num_threads
from sparseggm.topology import BlockChain, Chain, Diagonal, ExtendedGrid, Grid, Topology

__version__ = "0.1.0"

__all__ = [
    "BlockChain",
    "Chain",
    "DTypeError",
    "Diagonal",
    "ExtendedGrid",
    "GaussianGraphicalModel",
    "Grid",
    "NonFiniteError",
    "NonPositiveError",
    "NotPositiveDefiniteError",
    "Pattern",
    "PatternError",
    "ShapeError",
    "Topology",
    "adjoints",
    "gershgorin",
    "get_num_threads",
    "linalg",
    "parametrize",
    "set_num_threads",
]
