"""A Matérn field on an irregular mesh: range, standard deviation and noise learnt by gradients of the evidence.

python -m examples.mesh_field --out docs/images         # seconds; writes mesh_field.png and mesh_field.json
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.spatial import Delaunay

import sparseggm as sg
import sparseggm.torch


@dataclass(frozen=True)
class Settings:
    """What is simulated: a field on [0, 1]², observed inside of triangles."""

    nodes: int = 2_000
    observations: int = 600
    range: float = 0.25
    sd: float = 1.0
    noise: float = 0.15
    margin: float = 0.2
    """How far the mesh reaches beyond the data, since a field is wider near its boundary."""
    seed: int = 0


class Field:
    """A simulated field, its observations and the mesh on which it is estimated."""

    def __init__(self, settings: Settings) -> None:
        rng = np.random.default_rng(settings.seed)
        m = settings.margin
        sides = np.linspace(-m, 1 + m, 41)
        border = np.array([(a, b) for a in sides for b in sides if {a, b} & {-m, 1 + m}])
        points = np.concatenate([border, rng.uniform(-m, 1 + m, (settings.nodes - len(border), 2))])
        self.mesh = sg.fields.Mesh(points, Delaunay(points).simplices)
        self.matern = sg.fields.Matern(self.mesh)
        self.places = rng.uniform(size=(settings.observations, 2))
        self.plan = sg.fields.LinearObservation(self.matern.topology, self.matern.projector(self.places))
        self.truth = self.matern.prior(settings.range, settings.sd).sample(rng=rng)
        errors = settings.noise * rng.standard_normal(settings.observations)
        self.y = self.plan.matmul(self.truth) + errors

    def log_evidence(self, range: Any, sd: Any, noise: Any) -> Any:
        return self.plan.log_evidence(self.matern.prior(range, sd), self.y, noise**2)

    def most_likely(self) -> list[float]:
        """Range, sd and noise of greatest evidence."""
        logs = torch.tensor(np.log([0.1, 0.5, 0.5]), requires_grad=True)
        optimiser = torch.optim.LBFGS([logs], max_iter=60, tolerance_grad=1e-4, line_search_fn="strong_wolfe")

        def loss() -> Any:
            optimiser.zero_grad()
            value = -self.log_evidence(*logs.exp())
            value.backward()
            return value

        optimiser.step(loss)  # type: ignore[no-untyped-call]
        found: list[float] = logs.detach().exp().tolist()
        return found


def run(settings: Settings, out: Path) -> dict[str, Any]:
    """Simulate, learn, predict, and write picture and numbers."""
    field = Field(settings)
    range, sd, noise = field.most_likely()
    posterior = field.plan.posterior(field.matern.prior(range, sd), field.y, noise**2)
    deviation = np.sqrt(posterior.variance)
    inside = ((field.mesh.points >= 0) & (field.mesh.points <= 1)).all(axis=1)
    within = abs(field.truth - posterior.loc) <= 1.96 * deviation
    result = {
        "settings": asdict(settings),
        "range": range,
        "sd": sd,
        "noise": noise,
        "log evidence, nats": float(field.log_evidence(range, sd, noise)),
        "part of the field within 95 % intervals": float(within[inside].mean()),
        "versions": {"sparseggm": sg.__version__},
    }
    out.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(13, 3.9), layout="constrained")
    limit = abs(field.truth).max()
    panels = [
        ("the field", field.truth, -limit, limit, "RdBu_r"),
        ("posterior mean", posterior.loc, -limit, limit, "RdBu_r"),
        ("posterior standard deviation", deviation, 0.0, float(deviation.max()), "viridis"),
    ]
    for axes, (title, values, low, high, colours) in zip(figure.subplots(1, 3), panels, strict=True):
        corners = *field.mesh.points.T, field.mesh.triangles
        picture = axes.tripcolor(*corners, values, shading="gouraud", vmin=low, vmax=high, cmap=colours)
        if title == "the field":
            axes.triplot(*corners, color="k", lw=0.15)
        else:
            axes.plot(*field.places.T, "k.", ms=1)
        axes.set(title=title, xticks=[], yticks=[], aspect="equal")
        figure.colorbar(picture, ax=axes, shrink=0.8)
    figure.savefig(out / "mesh_field.png", dpi=90)
    (out / "mesh_field.json").write_text(json.dumps(result, indent=1) + "\n")
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    print(json.dumps(run(Settings(), parser.parse_args().out), indent=1))
