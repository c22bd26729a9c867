"""Lip cancer in the 56 districts of Scotland: Poisson counts and BYM2, hyperparameters of greatest posterior density.

    python -m examples.lip_cancer --out docs/images         # seconds; writes lip_cancer.png and lip_cancer.json

Cases of men, 1975 to 1980, with those expected by age, and the percentage of people in agriculture, fishing and
forestry [Clayton & Kaldor 1987, Biometrics 43, 671–681]; neighbours as in the case studies of Stan and PyMC, in which
the islands are joined to the mainland.
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
COUNTS = np.array([
    9, 39, 11, 9, 15, 8, 26, 7, 6, 20, 13, 5, 3, 8, 17, 9, 2, 7, 9, 7, 16, 31, 11, 7, 19, 15, 7, 10,
    16, 11, 5, 3, 7, 8, 11, 9, 11, 8, 6, 4, 10, 8, 2, 6, 19, 3, 2, 3, 28, 6, 1, 1, 1, 1, 0, 0,
])
EXPECTED = np.array([
    1.4, 8.7, 3.0, 2.5, 4.3, 2.4, 8.1, 2.3, 2.0, 6.6, 4.4, 1.8, 1.1, 3.3, 7.8, 4.6, 1.1, 4.2, 5.5, 4.4, 10.5, 22.7, 8.8,
    5.6, 15.5, 12.5, 6.0, 9.0, 14.4, 10.2, 4.8, 2.9, 7.0, 8.5, 12.3, 10.1, 12.7, 9.4, 7.2, 5.3, 18.8, 15.8, 4.3, 14.6,
    50.7, 8.2, 5.6, 9.3, 88.7, 19.6, 3.4, 3.6, 5.7, 7.0, 4.2, 1.8,
])
OUTDOORS = np.array([
    16, 16, 10, 24, 10, 24, 10, 7, 7, 16, 7, 16, 10, 24, 7, 16, 10, 7, 7, 10, 7, 16, 10, 7, 1, 1, 7, 7,
    10, 10, 7, 24, 10, 7, 7, 0, 10, 1, 16, 0, 1, 16, 16, 0, 1, 7, 1, 1, 0, 1, 1, 0, 1, 1, 16, 10,
])
"""Percent in agriculture, fishing and forestry."""
NEIGHBOURS = [
    [5, 9, 11, 19], [7, 10], [6, 12], [18, 20, 28], [1, 11, 12, 13, 19], [3, 8], [2, 10, 13, 16, 17], [6],
    [1, 11, 17, 19, 23, 29], [2, 7, 16, 22], [1, 5, 9, 12], [3, 5, 11], [5, 7, 17, 19], [31, 32, 35], [25, 29, 50],
    [7, 10, 17, 21, 22, 29], [7, 9, 13, 16, 19, 29], [4, 20, 28, 33, 55, 56], [1, 5, 9, 13, 17], [4, 18, 55],
    [16, 29, 50], [10, 16], [9, 29, 34, 36, 37, 39], [27, 30, 31, 44, 47, 48, 55, 56], [15, 26, 29], [25, 29, 42, 43],
    [24, 31, 32, 55], [4, 18, 33, 45], [9, 15, 16, 17, 21, 23, 25, 26, 34, 43, 50], [24, 38, 42, 44, 45, 56],
    [14, 24, 27, 32, 35, 46, 47], [14, 27, 31, 35], [18, 28, 45, 56], [23, 29, 39, 40, 42, 43, 51, 52, 54],
    [14, 31, 32, 37, 46], [23, 37, 39, 41], [23, 35, 36, 41, 46], [30, 42, 44, 49, 51, 54], [23, 34, 36, 40, 41],
    [34, 39, 41, 49, 52], [36, 37, 39, 40, 46, 49, 53], [26, 30, 34, 38, 43, 51], [26, 29, 34, 42],
    [24, 30, 38, 48, 49], [28, 30, 33, 56], [31, 35, 37, 41, 47, 53], [24, 31, 46, 48, 49, 53], [24, 44, 47, 49],
    [38, 40, 41, 44, 47, 48, 52, 53, 54], [15, 21, 29], [34, 38, 42, 54], [34, 40, 49, 54], [41, 46, 47, 49],
    [34, 38, 49, 51, 52], [18, 20, 24, 27, 56], [18, 24, 30, 33, 45, 55],
]
"""Numbers of districts begin at 1."""
# fmt: on


def districts() -> sg.Graph:
    """The graph of neighbours."""
    pairs = {(max(i, j - 1), min(i, j - 1)) for i, near in enumerate(NEIGHBOURS) for j in near}
    return sg.Graph(len(COUNTS), sorted(pairs))


class Risks:
    """log risk = β₀ + β · outdoors / 10 + BYM2, with counts that are Poisson about expected times risk."""

    def __init__(self) -> None:
        self.model = sg.fields.BYM2(districts(), OUTDOORS[:, None] / 10)
        self.plan = sg.fields.LinearObservation(self.model.topology, self.model.matrix)
        self.likelihood = sg.fields.Poisson(COUNTS, EXPECTED)

    def fitted(self, sd: Any, mix: Any) -> sg.fields.Laplace:
        return sg.fields.laplace(self.model.prior(sd, mix), self.likelihood, self.plan)

    def most_likely(self) -> tuple[float, float]:
        """sd and mix of greatest posterior density in (log sd, logit mix), by gradients.

        Priors are half-normal(1) of sd and Beta(½, ½) of mix [Morris et al. 2019]: the evidence alone is greatest at
        mix = 1, where no variance is left that is not spatial.
        """
        theta = torch.zeros(2, dtype=torch.float64, requires_grad=True)
        optimiser = torch.optim.LBFGS([theta], max_iter=60, tolerance_grad=1e-6, line_search_fn="strong_wolfe")

        def loss() -> Any:
            optimiser.zero_grad()
            sd, mix = theta[0].exp(), theta[1].sigmoid()
            log_prior = theta[0] - sd**2 / 2 + 0.5 * (mix * (1 - mix)).log()
            value = -self.fitted(sd, mix).log_evidence - log_prior
            value.backward()
            return value

        optimiser.step(loss)  # type: ignore[no-untyped-call]
        return theta[0].exp().item(), theta[1].sigmoid().item()


def run(out: Path) -> dict[str, Any]:
    """Fit, and write picture and numbers."""
    risks = Risks()
    sd, mix = risks.most_likely()
    found = risks.fitted(sd, mix)
    q = found.posterior
    eta = found.observation.predictive(q)
    risk, low, high = (np.exp(eta.mean + z * np.sqrt(eta.variance)) for z in (0.0, -1.96, 1.96))
    result = {
        "sd": sd,
        "mix": mix,
        "log evidence, nats": float(found.log_evidence),
        "effect of 10 % outdoors": float(q.loc[-1]),
        "its standard deviation": float(np.sqrt(q.variance[-1])),
        "districts whose risk is above 1": int((low > 1).sum()),
        "districts whose risk is below 1": int((high < 1).sum()),
        "Newton steps": found.steps,
        "versions": {"sparseggm": sg.__version__},
    }
    out.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.5, 1))
    order = np.argsort(risk)
    left.vlines(np.arange(len(risk)), low[order], high[order], color="#0072B2", alpha=0.5)
    left.plot(risk[order], "o", ms=4, color="#0072B2", label="BYM2, 95 % intervals")
    left.plot((COUNTS / EXPECTED)[order], "x", ms=4, color="#D55E00", label="cases / expected")
    left.axhline(1, color="0.7", lw=0.8, zorder=0)
    left.set(xlabel="districts, by risk", ylabel="relative risk", ylim=(0, 7))
    left.legend(frameon=False)
    risks.model.districts.plot(right, node_values=eta.mean)
    right.set_title("log risk on the graph of neighbours", fontsize=10)
    figure.savefig(out / "lip_cancer.png", dpi=120)
    (out / "lip_cancer.json").write_text(json.dumps(result, indent=1) + "\n")
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    print(json.dumps(run(parser.parse_args().out), indent=1))
