"""Matérn fields on triangulations of random points, seen through a matrix: analysis, evidence, gradients, a fit."""

from __future__ import annotations

import numpy as np
import torch
from scipy.spatial import Delaunay

import sparseggm as sg
import sparseggm.torch
from benchmarks.contest import Ratio, Result, Setting
from benchmarks.problems import Array
from benchmarks.timing import Call, interleaved

ANALYSIS = "elements, graph, order, fill and the matrix"
START = (-2.0, 0.0, -1.0)
"""Logarithms of range, standard deviation and noise variance."""


class Observed:
    """A field on n random points of the unit square, and 600 numbers that a matrix makes of it, with noise."""

    def __init__(self, points: Array, triangles: Array) -> None:
        rng = np.random.default_rng(1)
        self.matern = sg.fields.Matern(sg.fields.Mesh(points, triangles))
        places = 0.1 + 0.8 * rng.random((600, 2))
        self.plan = sg.fields.LinearObservation(self.matern.topology, self.matern.projector(places))
        self.matern.topology.precision_pattern.filled()
        self.y = self.plan.matmul(np.sin(9 * points.sum(axis=1))) + 0.3 * rng.standard_normal(600)

    def evidence(self) -> Array:
        """log p(y), of arrays."""
        return self.plan.log_evidence(self.matern.prior(*np.exp(START[:2])), self.y, np.exp(START[2]))

    def loss(self, logs: torch.Tensor) -> torch.Tensor:
        """−log p(y), of tensors, with its gradient added to that of `logs`."""
        range, sd, variance = logs.exp()
        loss: torch.Tensor = -self.plan.log_evidence(self.matern.prior(range, sd), self.y, variance)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    def fit(self) -> torch.Tensor:
        """The logarithms of greatest evidence, by L-BFGS."""
        logs = _logs()
        optimiser = torch.optim.LBFGS([logs], max_iter=60, tolerance_grad=1e-4, line_search_fn="strong_wolfe")

        def loss() -> torch.Tensor:
            optimiser.zero_grad()
            return self.loss(logs)

        optimiser.step(loss)  # type: ignore[no-untyped-call]
        return logs.detach()


def _logs() -> torch.Tensor:
    return torch.tensor(START, dtype=torch.float64, requires_grad=True)


def _mesh(setting: Setting, nodes: int, goals: dict[str, float | None]) -> Result:
    """Seconds of the parts of an analysis and of an inference, beside their goals."""
    points = np.random.default_rng(0).random((setting.size(nodes, 50), 2))
    points[:4] = [(0, 0), (0, 1), (1, 0), (1, 1)]  # so that every observation lies in a triangle
    triangles = Delaunay(points).simplices
    observed = Observed(points, triangles)
    calls: dict[str, Call] = {
        ANALYSIS: lambda: Observed(points, triangles).plan,
        "evidence, of arrays": observed.evidence,
        "evidence and gradient, of tensors": lambda: observed.loss(_logs()),
        "fit of three parameters": observed.fit,
    }
    seconds = interleaved({name: calls[name] for name in goals}, setting.rounds, setting.seconds)
    ratios = [Ratio(name, seconds[name], goal, "≤", "s") for name, goal in goals.items()]
    return Result(f"Matérn field on a mesh of {len(points)} nodes, 600 observations, float64", seconds, ratios)


def small_mesh(setting: Setting) -> Result:
    """2,000 nodes."""
    goals: dict[str, float | None] = {
        ANALYSIS: None,
        "evidence, of arrays": None,
        "evidence and gradient, of tensors": 0.02,
        "fit of three parameters": 0.5,
    }
    return _mesh(setting, 2_000, goals)


def large_mesh(setting: Setting) -> Result:
    """60,000 nodes."""
    goals = {
        ANALYSIS: 1.0,
        "evidence, of arrays": None,
        "evidence and gradient, of tensors": 3.0,
    }
    return _mesh(setting, 60_000, goals)


ROWS = {"mesh-field-2000": small_mesh, "mesh-field-60000": large_mesh}
