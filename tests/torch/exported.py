"""Modules around heads that the tests export: `python -m tests.torch.exported FOLDER` runs what is there, and no more.

A fresh process that builds no topology, as a server would be.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

FEATURES = torch.linspace(-1.0, 1.0, 24).reshape(3, 8)


class Wrapped(nn.Module):
    """Tensors of the Gaussian that a head makes."""

    def __init__(self, head: nn.Module, of: Callable[[Any], tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.head, self.of = head, of

    def forward(self, features: Tensor) -> tuple[Tensor, ...]:
        return self.of(self.head(features))


def run(folder: Path) -> None:
    import sparseggm.torch  # noqa: F401  the operators

    for program in sorted(folder.glob("*.pt2")):
        results = torch.export.load(program).module()(FEATURES)
        torch.save(results, program.with_suffix(".results"))


if __name__ == "__main__":
    run(Path(sys.argv[1]))
