"""A field on a 512 × 512 lattice, observed with noise at one pixel of twenty: posterior mean and deviations, exact.

python -m examples.lattice_field --out docs/images      # two minutes; writes picture and numbers
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

import sparseggm as sg


@dataclass(frozen=True)
class Settings:
    """What is simulated; pixels are one apart."""

    side: int = 512
    range: float = 60.0
    sd: float = 1.0
    part: float = 0.05
    """Of the pixels, observed."""
    noise: float = 0.5
    seed: int = 0


def run(settings: Settings, out: Path) -> dict[str, Any]:
    """Simulate, observe, smooth, and write picture and numbers."""
    rng = np.random.default_rng(settings.seed)
    seconds, started = {}, time.perf_counter()

    def lap(name: str) -> None:
        nonlocal started
        seconds[name], started = time.perf_counter() - started, time.perf_counter()

    side = settings.side
    field = sg.fields.Matern(sg.fields.Lattice((side, side)))
    precision = field.precision(settings.range, settings.sd)
    entries = field.topology.factor_pattern.nnz
    lap("analysis")
    prior = sg.GaussianGraphicalModel.from_precision(np.zeros(side**2), precision=precision, topology=field.topology)
    truth = prior.sample(rng=rng)
    lap("factor and sample")
    seen = np.sort(rng.choice(side**2, int(settings.part * side**2), replace=False))
    y = truth[seen] + settings.noise * rng.standard_normal(len(seen))
    posterior = prior.observe(seen, y, settings.noise**2)
    lap("posterior")
    deviation = np.sqrt(posterior.variance)
    lap("variances")
    result = {
        "settings": asdict(settings),
        "entries of L": entries,
        "part of the field within 95 % intervals": float((abs(truth - posterior.loc) <= 1.96 * deviation).mean()),
        "versions": {"sparseggm": sg.__version__},
    }
    out.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(13, 3.9), layout="constrained")
    observed = np.full(side**2, np.nan)
    observed[seen] = y
    limit = float(np.quantile(abs(truth), 0.999))
    panels = [
        ("observed", observed, -limit, limit, "RdBu_r"),
        ("posterior mean", posterior.loc, -limit, limit, "RdBu_r"),
        ("posterior standard deviation", deviation, 0.0, float(deviation.max()), "viridis"),
    ]
    for axes, (title, values, low, high, colours) in zip(figure.subplots(1, 3), panels, strict=True):
        picture = axes.imshow(values.reshape(side, side), vmin=low, vmax=high, cmap=colours, interpolation="nearest")
        axes.set(title=title, xticks=[], yticks=[])
        figure.colorbar(picture, ax=axes, shrink=0.8)
    figure.savefig(out / "lattice_field.png", dpi=110)
    (out / "lattice_field.json").write_text(json.dumps(result, indent=1) + "\n")
    return {**result, "seconds": seconds}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    print(json.dumps(run(Settings(), parser.parse_args().out), indent=1))
