"""Bayesian logistic regression: sparse Gaussian posteriors beside a dense one and Hamiltonian Monte Carlo.

    python -m examples.logistic_regression --out docs/images       # a minute; writes logistic_regression.png and .json

The data are the breast cancer features that scikit-learn carries (pip install 'sparseggm[dev]'). Weights have the prior
N(0, I), features are standardised. Natural-gradient variational inference maximises the ELBO of a Gaussian on a graph:
none, the tree or the strongest edges of the Hessian's partial correlations, every edge. E log p(y | xᵀw) is an integral
over the normal number xᵀw, by Gauss and Hermite's rule, so that nothing is random but the Monte Carlo.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import log_expit
from torch import Tensor
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence
from torch.nn.functional import logsigmoid

import sparseggm as sg
from sparseggm.torch import GaussianGraphicalModel, NaturalGradient, ops

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Settings:
    """What the numbers depend on."""

    seed: int = 0
    features: int = 30
    train: int = 400
    edges_a_node: int = 2
    steps: int = 400
    rate: float = 0.1
    adam_steps: int = 2000
    chains: int = 8
    draws: int = 2000
    warm_up: int = 300


@dataclass(frozen=True)
class Data:
    """Rows x signed by their class, −x or x, with an intercept: p(y | x, w) = 1/(1 + exp(−rowᵀ w))."""

    train: Array
    test: Array


@dataclass(frozen=True)
class Posterior:
    """One approximation: moments of the weights, and what it predicts."""

    mean: Array
    stddev: Array
    log_predictive: float
    """Mean over the test rows of log p(y | x, training rows), nats."""
    elbo: float | None = None
    seconds: float = 0.0
    edges: int | None = None


def load(settings: Settings) -> Data:
    """Training and test rows, standardised by the former."""
    from sklearn.datasets import load_breast_cancer

    source = load_breast_cancer()
    rows, signs = source.data[:, : settings.features], 2.0 * source.target - 1.0
    order = np.random.default_rng(settings.seed).permutation(len(rows))
    rows, signs = rows[order], signs[order]
    first = rows[: settings.train]
    rows = np.column_stack([(rows - first.mean(axis=0)) / first.std(axis=0), np.ones(len(rows))]) * signs[:, None]
    return Data(rows[: settings.train], rows[settings.train :])


def gradient(rows: Array, w: Array) -> Array:
    """∇ log p(y, w) for weights (..., n)."""
    return np.asarray(np.exp(log_expit(-w @ rows.T)) @ rows - w)


def laplace(rows: Array) -> tuple[Array, Array]:
    """The most probable weights, and the Hessian of −log p(y, w) there, by Newton's method."""
    w, hessian = np.zeros(rows.shape[1]), np.eye(rows.shape[1])
    for _ in range(50):
        p = np.exp(log_expit(rows @ w))
        hessian = (rows * (p * (1 - p))[:, None]).T @ rows + np.eye(len(w))
        w = w + np.linalg.solve(hessian, gradient(rows, w))
    return w, hessian


# ---------------------------------------------------------------------- graphs


def graphs(hessian: Array, edges_a_node: int) -> dict[str, sg.Topology]:
    """Of the weights: no edges, a tree and the strongest edges by partial correlation, every edge; factor-free."""
    n, scale = len(hessian), np.sqrt(np.diag(hessian))
    strength = abs(hessian / scale / scale[:, None])
    pairs = np.argwhere(np.tril(np.ones((n, n)), -1))
    strongest = pairs[np.argsort(-strength[*pairs.T])]
    found = sg.Graph(n, strongest[: edges_a_node * n])
    fill = found.precision_pattern.filled()
    filled = found.order[np.stack([fill.rows, fill.cols], axis=-1)[fill.rows != fill.cols]]
    return {
        "diagonal": sg.Diagonal(n),
        "tree": sg.Graph(n, spanning_tree(strongest, n)),
        "graph": sg.Graph(n, filled, found.order),
        "full": sg.Band(n, max(1, n - 1)),
    }


def spanning_tree(strongest: npt.NDArray[Any], n: int) -> list[tuple[int, int]]:
    """Kruskal's: each edge, from the strongest on, that joins two parts."""
    part, tree = list(range(n)), []
    for i, j in strongest.tolist():
        if part[i] != part[j]:
            tree.append((i, j))
            part = [part[i] if label == part[j] else label for label in part]
    return tree


# ---------------------------------------------------------------------- variational inference

NODES, WEIGHTS = (torch.from_numpy(x) for x in np.polynomial.hermite_e.hermegauss(32))
WEIGHTS = WEIGHTS / WEIGHTS.sum()


def expected(value: Callable[[Tensor], Tensor], mean: Tensor, variance: Tensor) -> Tensor:
    """E f(N(mean, variance)) of every row."""
    return (value(mean[..., None] + variance.sqrt()[..., None] * NODES) * WEIGHTS).sum(-1)


def of_rows(q: GaussianGraphicalModel, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of xᵀw: xᵀΣx = ‖L⁻¹ x‖²."""
    in_order = rows[:, torch.from_numpy(q.topology.order.copy())]
    return rows @ q.loc, ops.solve(q.factor_pattern, q.factor, in_order).square().sum(-1)


def elbo(q: Any, moments: tuple[Tensor, Tensor]) -> Tensor:
    n = q.event_shape[0]
    prior = Independent(Normal(torch.zeros(n).double(), torch.ones(n).double()), 1)
    kl = kl_divergence(q, prior if isinstance(q, GaussianGraphicalModel) else of_standard(n))
    return expected(logsigmoid, *moments).sum() - kl


def of_standard(n: int) -> MultivariateNormal:
    return MultivariateNormal(torch.zeros(n).double(), torch.eye(n).double())


def variational(data: Data, topology: sg.Topology, settings: Settings) -> Posterior:
    """The Gaussian on a graph with the largest ELBO, by natural-gradient steps from N(0, I)."""
    start, rows = time.perf_counter(), torch.from_numpy(data.train)
    pattern = topology.factor_pattern
    loc = torch.zeros(topology.n, dtype=torch.float64, requires_grad=True)
    factor = torch.from_numpy((pattern.rows == pattern.cols).astype(np.float64)).requires_grad_()
    optimiser = NaturalGradient(loc, factor, topology, lr=settings.rate)
    for _ in range(settings.steps):
        optimiser.zero_grad()
        q = GaussianGraphicalModel(loc, factor=factor, topology=topology)
        (-elbo(q, of_rows(q, rows))).backward()
        optimiser.step()
    seconds = time.perf_counter() - start
    with torch.no_grad():
        q = GaussianGraphicalModel(loc, factor=factor, topology=topology)
        value, predicted = elbo(q, of_rows(q, rows)), of_rows(q, torch.from_numpy(data.test))
        stddev = q.stddev.numpy()
    return Posterior(
        loc.detach().numpy(), stddev, log_predictive(*predicted), float(value), seconds, len(topology.edges)
    )


def dense(data: Data, settings: Settings) -> Posterior:
    """torch's MultivariateNormal with the largest ELBO, by Adam."""
    start, rows = time.perf_counter(), torch.from_numpy(data.train)
    n = rows.shape[1]
    loc = torch.zeros(n, dtype=torch.float64, requires_grad=True)
    raw = torch.zeros(n, n, dtype=torch.float64, requires_grad=True)

    def posterior() -> MultivariateNormal:
        return MultivariateNormal(loc, scale_tril=raw.tril(-1) + raw.diagonal().exp().diag())

    def moments(q: MultivariateNormal, x: Tensor) -> tuple[Tensor, Tensor]:
        return x @ q.loc, (x @ q.scale_tril).square().sum(-1)

    optimiser = torch.optim.Adam([loc, raw], 0.02)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, settings.adam_steps)
    for _ in range(settings.adam_steps):
        optimiser.zero_grad()
        q = posterior()
        (-elbo(q, moments(q, rows))).backward()
        optimiser.step()
        scheduler.step()
    seconds = time.perf_counter() - start
    with torch.no_grad():
        q = posterior()
        value, predicted = elbo(q, moments(q, rows)), moments(q, torch.from_numpy(data.test))
        return Posterior(
            loc.numpy(), q.stddev.numpy(), log_predictive(*predicted), float(value), seconds, n * (n - 1) // 2
        )


def log_predictive(mean: Tensor, variance: Tensor) -> float:
    return float(expected(torch.sigmoid, mean, variance).log().mean())


# ---------------------------------------------------------------------- Hamiltonian Monte Carlo


def hmc(data: Data, settings: Settings) -> tuple[Posterior, float]:
    """Draws from the posterior, and the largest R̂ of the weights [Gelman et al. 2013]; all chains at once.

    Leapfrog steps in the coordinates whitened by the Hessian at the mode, of a length drawn anew for each trajectory.
    """
    start, rng = time.perf_counter(), np.random.default_rng(settings.seed)
    mode, hessian = laplace(data.train)
    root = np.linalg.inv(np.linalg.cholesky(hessian)).T  # w = mode + root u
    u = rng.standard_normal((settings.chains, len(mode)))
    kept = []

    def log_p(u: Array) -> Array:
        w = mode + u @ root.T
        return np.asarray(log_expit(w @ data.train.T).sum(axis=-1) - 0.5 * (w**2).sum(axis=-1))

    def slope(u: Array) -> Array:
        return np.asarray(gradient(data.train, mode + u @ root.T) @ root)

    for draw in range(settings.warm_up + settings.draws):
        size, momentum = rng.uniform(0.15, 0.3), rng.standard_normal(u.shape)
        moved, p = u, momentum + 0.5 * size * slope(u)
        for step in range(8):
            moved = moved + size * p
            p = p + (size if step < 7 else 0.5 * size) * slope(moved)
        change = log_p(moved) - log_p(u) + 0.5 * (momentum**2 - p**2).sum(axis=-1)
        u = np.where((np.log(rng.uniform(size=len(u))) < change)[:, None], moved, u)
        if draw >= settings.warm_up:
            kept.append(mode + u @ root.T)
    draws = np.stack(kept, axis=1)  # (chains, draws, n)
    seconds, flat = time.perf_counter() - start, draws.reshape(-1, len(mode))
    predicted = np.exp(log_expit(flat @ data.test.T)).mean(axis=0)
    found = Posterior(flat.mean(axis=0), flat.std(axis=0), float(np.log(predicted).mean()), seconds=seconds)
    return found, potential_scale_reduction(draws)


def potential_scale_reduction(draws: Array) -> float:
    """The largest R̂ over the weights: the root of (pooled variance) over (variance within a chain)."""
    within, count = draws.var(axis=1, ddof=1).mean(axis=0), draws.shape[1]
    between = draws.mean(axis=1).var(axis=0, ddof=1)
    return float(np.sqrt((count - 1) / count + between / within).max())


# ---------------------------------------------------------------------- the experiment


def run(settings: Settings, out: Path) -> dict[str, Any]:
    """Measure, and write figure and numbers."""
    torch.manual_seed(settings.seed)
    data = load(settings)
    posteriors = {
        name: variational(data, topology, settings)
        for name, topology in graphs(laplace(data.train)[1], settings.edges_a_node).items()
    }
    posteriors["full, Adam"] = dense(data, settings)
    exact, reduction = hmc(data, settings)
    result = {
        "settings": asdict(settings),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "sparseggm": sg.__version__},
        "HMC": {"log predictive": exact.log_predictive, "R̂": reduction, "seconds": exact.seconds},
        "posteriors": {name: beside(each, exact) for name, each in posteriors.items()},
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "logistic_regression.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    plot(posteriors, exact, out / "logistic_regression.png")
    return result


def beside(found: Posterior, exact: Posterior) -> dict[str, Any]:
    """What the JSON file holds of one posterior; errors in units of HMC's standard deviations."""
    return {
        "edges": found.edges,
        "ELBO, nats": found.elbo,
        "log predictive": found.log_predictive,
        "seconds": found.seconds,
        "error of means": float(np.sqrt((((found.mean - exact.mean) / exact.stddev) ** 2).mean())),
        "standard deviations over HMC's": float(np.exp(np.log(found.stddev / exact.stddev).mean())),
    }


def plot(posteriors: dict[str, Posterior], exact: Posterior, path: Path) -> None:
    """The figure: means and standard deviations beside those of HMC."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 4.0), dpi=160, layout="constrained")
    means, deviations = figure.subplots(1, 2)
    styles = zip(posteriors, ("#000000", "#E69F00", "#0072B2", "#009E73", "#CC79A7"), "osD^v", strict=False)
    for name, colour, marker in styles:
        options = {"color": colour, "marker": marker, "linestyle": "", "markersize": 4.5, "alpha": 0.8}
        means.plot(exact.mean, posteriors[name].mean, label=name, **options)
        deviations.plot(exact.stddev, posteriors[name].stddev, label=name, **options)
    for axes, title in ((means, "mean"), (deviations, "standard deviation")):
        ends = np.array(axes.get_xlim())
        axes.plot(ends, ends, color="#888888", linewidth=0.8, zorder=0)
        axes.set(xlabel=f"posterior {title} of a weight, HMC", ylabel=f"posterior {title}, Gaussian")
        axes.spines[["top", "right"]].set_visible(False)
    means.legend(frameon=False)
    figure.savefig(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    for name, row in run(Settings(), parser.parse_args().out)["posteriors"].items():
        numbers = "  ".join(f"{key} {value:.4g}" for key, value in row.items() if value is not None)
        print(f"{name:12} {numbers}")
