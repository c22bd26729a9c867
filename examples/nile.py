"""The level of the Nile with two gaps in the record: local level by maximum likelihood, smoothed, with its evidence.

    python -m examples.nile --out docs/images               # seconds; writes nile.png and nile.json

Annual flow at Aswan in 10⁸ m³, 1871 to 1970 [Cobb 1978]; the gaps, 1891–1910 and 1931–1950, are those of [Durbin &
Koopman 2012, §2.7].
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

import sparseggm as sg
import sparseggm.torch

# fmt: off
NILE = np.array([
    1120, 1160, 963, 1210, 1160, 1160, 813, 1230, 1370, 1140, 995, 935, 1110, 994, 1020, 960, 1180, 799, 958, 1140,
    1100, 1210, 1150, 1250, 1260, 1220, 1030, 1100, 774, 840, 874, 694, 940, 833, 701, 916, 692, 1020, 1050, 969,
    831, 726, 456, 824, 702, 1120, 1100, 832, 764, 821, 768, 845, 864, 862, 698, 845, 744, 796, 1040, 759,
    781, 865, 845, 944, 984, 897, 822, 1010, 771, 676, 649, 846, 812, 742, 801, 1040, 860, 874, 848, 890,
    744, 749, 838, 1050, 918, 986, 797, 923, 975, 815, 1020, 906, 901, 1170, 912, 746, 919, 718, 714, 740,
], dtype=np.float64)
# fmt: on
FIRST_YEAR, DIFFUSE = 1871, 1e10
GAPS = slice(20, 40), slice(60, 80)


def with_gaps() -> Any:
    """The flow, NaN in the gaps."""
    y = NILE.copy()
    for gap in GAPS:
        y[gap] = np.nan
    return y


class Level:
    """The level of a record y, with the plan of its observations."""

    def __init__(self, y: Any) -> None:
        self.y, self.missing = np.nan_to_num(y), np.isnan(y)
        self.model = sg.fields.StateSpace(len(y), 1)
        self.plan = sg.fields.LinearObservation(self.model.topology, self.model.observation([1.0]))

    def prior(self, step: Any) -> Any:
        """Random walk of the level, variance `step` a year."""
        level = sg.fields.local_level(step)
        return self.model.prior(level.transition, level.noise, 0.0, DIFFUSE)

    def log_evidence(self, noise: Any, step: Any) -> Any:
        return self.plan.log_evidence(self.prior(step), self.y, noise, missing=self.missing)

    def posterior(self, noise: Any, step: Any) -> Any:
        return self.plan.posterior(self.prior(step), self.y, noise, missing=self.missing)

    def most_likely(self) -> tuple[float, float]:
        """Variances of noise and step of greatest evidence, by gradients of its logarithm in log variances."""
        logs = torch.tensor(np.log([10_000.0, 1_000.0]), requires_grad=True)
        optimiser = torch.optim.LBFGS([logs], max_iter=100, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

        def loss() -> Any:
            optimiser.zero_grad()
            value = -self.log_evidence(*logs.exp())
            value.backward()
            return value

        optimiser.step(loss)  # type: ignore[no-untyped-call]
        noise, step = logs.detach().exp().tolist()
        return noise, step


def run(out: Path) -> dict[str, Any]:
    """Fit the whole record, smooth the one with gaps, and write picture and numbers."""
    noise, step = Level(NILE).most_likely()
    gaps = Level(with_gaps())
    posterior = gaps.posterior(noise, step)
    mean, deviation = posterior.loc, np.sqrt(posterior.variance)
    result = {
        "variance of the noise": noise,
        "variance of a year's step": step,
        "log evidence, nats": float(Level(NILE).log_evidence(noise, step)),
        "log evidence with gaps, nats": float(gaps.log_evidence(noise, step)),
        "largest deviation of the level": float(deviation.max()),
        "versions": {"sparseggm": sg.__version__},
    }
    out.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes, year = figure.subplots(), FIRST_YEAR + np.arange(len(NILE))
    for gap in GAPS:
        axes.axvspan(year[gap][0] - 0.5, year[gap][-1] + 0.5, color="0.93", lw=0)
        axes.plot(year[gap], NILE[gap], "o", ms=3, mfc="none", color="0.6")
    axes.fill_between(year, mean - 2 * deviation, mean + 2 * deviation, color="#0072B2", alpha=0.2, lw=0)
    axes.plot(year, mean, color="#0072B2", label="level, ± 2 standard deviations")
    axes.plot(year, with_gaps(), "o", ms=3, color="k", label="observed (open: held back)")
    axes.set(xlabel="year", ylabel="flow at Aswan, 10⁸ m³", xlim=(year[0] - 1, year[-1] + 1))
    axes.legend(frameon=False, loc="upper right")
    figure.savefig(out / "nile.png", dpi=120)
    (out / "nile.json").write_text(json.dumps(result, indent=1) + "\n")
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    print(json.dumps(run(parser.parse_args().out), indent=1))
