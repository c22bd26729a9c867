"""The peers, each written as its own users would. A peer's package is imported when a row needs it.

pytorch     dense algebra, a loop over nodes, torch.distributions
jax_scan    a jit-compiled scan over the nodes of a chain
lapack      SciPy's banded and tridiagonal routines, threads over the batch
special     SciPy's normal distribution, a loop over the nodes
cholmod     SuiteSparse's CHOLMOD through sparsax
gabp        gabp-sparse-inv
gradutils   torchsparsegradutils
metis       pymetis, of orders alone
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

INSTALL = {
    "jax": "pip install jax",
    "sparsax": "pip install --no-deps --only-binary :all: sparsax",
    "gabp_sparse_inv": "pip install --no-deps --ignore-requires-python gabp-sparse-inv",
    "pymetis": "pip install --no-deps --only-binary :all: pymetis",
    "torchsparsegradutils": "pip install --no-deps torchsparsegradutils",
}
"""The command that installs each package without replacing torch or NumPy; see docs/benchmarks.md."""


class MissingPeerError(ImportError):
    """A peer is not installed; `install` is the command that installs it."""

    def __init__(self, package: str) -> None:
        self.install = INSTALL[package]
        super().__init__(f"{package} is not installed; {self.install}")


def peer_module(name: str, *packages: str) -> ModuleType:
    """The module `benchmarks.peers.<name>`, after a check that the packages it needs are installed.

    Raises:
        MissingPeerError: one of the packages is not installed.
    """
    for package in packages:
        if find_spec(package) is None:
            raise MissingPeerError(package)
    return import_module(f"benchmarks.peers.{name}")
