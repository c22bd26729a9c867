"""How much of the positive-definite cone the families of `parametrize` reach, in nats.

A model is P = I − f R / λ_max(R) on a grid: R has standard normal weights on the edges, f < 1 is the distance from
the centre (f = 0) to the border (f = 1) of the positive-definite matrices. A family that P is not in has to give
something up:

* shrinking: all couplings times the largest τ ≤ 1 with diag P + τ (P − diag P) in the family (its closure);
* projection: the diagonally dominant Q, diagonal free, that is nearest: in KL(p ‖ q) a convex problem; in KL(q ‖ p),
  which a variational posterior q minimises and the figure shows, not a convex one: the best of two starts.

    python -m examples.cone --out docs/images        # a minute on one core

writes cone.png and cone.json.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import scipy
import scipy.optimize

import sparseggm as sg
from sparseggm.positivity.spectral import largest_eigenvalue

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = npt.NDArray[Any]

WAYS = ("dominant, shrunk", "dominant, projected", "scaled or edge, shrunk", "spectral")
COLOURS = dict(zip(WAYS, ("#D55E00", "#E69F00", "#0072B2", "#009E73"), strict=True))  # Okabe & Ito
MARKS = dict(zip(WAYS, ("o", "s", "^", "D"), strict=True))


@dataclass(frozen=True)
class Settings:
    """Of one measurement: grid side, models a fraction, fractions f of the positive-definite limit, seed."""

    side: int = 4
    models: int = 200
    fractions: tuple[float, ...] = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95)
    shown: float = 0.9
    seed: int = 0


@dataclass(frozen=True)
class Losses:
    """Nats lost by one way at one fraction, a number a model, in both directions; and the share of models inside."""

    to_model: Array
    """KL(p ‖ q), p the model."""
    from_model: Array
    """KL(q ‖ p)."""
    inside: float


def measure(settings: Settings) -> dict[float, dict[str, Losses]]:
    """Losses by fraction and way. The same R at every fraction."""
    topology = sg.Grid(settings.side, settings.side)
    rng = np.random.default_rng(settings.seed)
    weights = rng.standard_normal((settings.models, len(topology.edges)))
    top = largest_eigenvalue(topology.precision_pattern, packed(topology, 0.0, weights))
    return {f: measure_at(topology, f * weights / top[:, None]) for f in settings.fractions}


def measure_at(topology: sg.Topology, s: Array) -> dict[str, Losses]:
    """Losses by way for the models P = I − S, S (models, m) on the edges."""
    models = packed(topology, 1.0, -s)
    limits = shrinkage_limits(topology, s)
    losses = {}
    for way, family in (
        ("dominant, shrunk", "dominant"),
        ("scaled or edge, shrunk", "scaled"),
        ("spectral", "spectral"),
    ):
        shrunk = packed(topology, 1.0, -np.minimum(limits[family], 1.0)[:, None] * s)
        inside = float((limits[family] > 1.0).mean())
        losses[way] = Losses(kl(topology, models, shrunk), kl(topology, shrunk, models), inside)
    nearest = [
        np.stack([project(topology, model, direction) for model in models]) for direction in (to_model, from_model)
    ]
    losses["dominant, projected"] = Losses(
        kl(topology, models, nearest[0]), kl(topology, nearest[1], models), losses["dominant, shrunk"].inside
    )
    return losses


def shrinkage_limits(topology: sg.Topology, s: Array) -> dict[str, Array]:
    """The largest τ, a number a model, with I − τ S in the closure of each family."""
    pattern = topology.precision_pattern
    radii = sg.gershgorin.discs(pattern, packed(topology, 1.0, s))[1]
    return {
        "dominant": 1.0 / radii.max(axis=-1),
        "scaled": 1.0 / largest_eigenvalue(pattern, packed(topology, 0.0, abs(s))),  # walk-summable: ρ(|S|) < 1
        "spectral": 1.0 / largest_eigenvalue(pattern, packed(topology, 0.0, s)),
    }


def packed(topology: sg.Topology, diagonal: float, couplings: Array) -> Array:
    """Values (..., nnz) with one number on the diagonal."""
    return np.asarray(topology.pack((np.full((*couplings.shape[:-1], topology.n), diagonal), couplings)))


def kl(topology: sg.Topology, first: Array, second: Array) -> Array:
    """KL(N(0, first⁻¹) ‖ N(0, second⁻¹)), nats, (models,)."""
    zero = np.zeros(topology.n)
    p, q = (sg.GaussianGraphicalModel.from_precision(zero, precision=P, topology=topology) for P in (first, second))
    return np.maximum(p.kl_divergence(q), 0.0)


# ---------------------------------------------------------------------- projection


def to_model(model: Array, q: Array) -> tuple[float, Array]:
    """KL(p ‖ q) = ½ [tr(Q Σ_p) − log det Q] + …, and its gradient ½ (Σ_p − Σ_q) with respect to Q, all dense."""
    sigma = np.linalg.inv(model)
    return 0.5 * float((q * sigma).sum() - np.linalg.slogdet(q)[1]), 0.5 * (sigma - np.linalg.inv(q))


def from_model(model: Array, q: Array) -> tuple[float, Array]:
    """KL(q ‖ p) = ½ [tr(P Σ_q) + log det Q] + …, and its gradient ½ (Σ_q − Σ_q P Σ_q) with respect to Q."""
    sigma = np.linalg.inv(q)
    return 0.5 * float((model * sigma).sum() + np.linalg.slogdet(q)[1]), 0.5 * (sigma - sigma @ model @ sigma)


def project(topology: sg.Topology, model: Array, divergence: Callable[[Array, Array], tuple[float, Array]]) -> Array:
    """The diagonally dominant precision nearest to one model, packed.

    Q = diag(s) + Σ_e [a_e (u + v)(u + v)ᵀ + b_e (u − v)(u − v)ᵀ], u, v the unit vectors of the ends of e: linear in
    s, a, b ≥ 0, which together give exactly the diagonally dominant Q; so KL(p ‖ q) is convex in them.
    """
    n, (i, j) = topology.n, topology.edges.T
    dense = topology.precision_pattern.to_dense(model, symmetric=True)[
        np.ix_(topology.inverse_order, topology.inverse_order)
    ]

    def precision(x: Array) -> Array:
        s, a, b = np.split(x, [n, n + len(i)])
        q = np.diag(s + np.bincount(i, a + b, n) + np.bincount(j, a + b, n))
        q[i, j] = q[j, i] = a - b
        return q

    def objective(x: Array) -> tuple[float, Array]:
        value, bar = divergence(dense, precision(x))
        ends, both = bar[i, i] + bar[j, j], 2.0 * bar[i, j]
        return value, np.concatenate([np.diagonal(bar), ends + both, ends - both])

    couplings = dense[i, j]
    starts = [
        np.concatenate([np.ones(n), np.maximum(t * couplings, 0), np.maximum(-t * couplings, 0)]) for t in (0.1, 1.0)
    ]
    bounds = [(1e-6, None)] * n + [(0.0, None)] * (2 * len(i))
    options = {"maxiter": 2000, "maxfun": 20_000, "ftol": 1e-13, "gtol": 1e-7}
    found = [
        scipy.optimize.minimize(objective, x, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
        for x in starts
    ]
    return np.asarray(topology.pack(precision(min(found, key=lambda result: float(result.fun)).x)))


# ---------------------------------------------------------------------- what is written


def summary(settings: Settings, losses: dict[float, dict[str, Losses]]) -> dict[str, Any]:
    """Means and standard errors, settings and versions: what the JSON file holds."""
    rows = [
        {
            "fraction": f,
            "way": way,
            "share of models inside": loss.inside,
            **{
                f"{name}, nats": {
                    "mean": float(nats.mean()),
                    "standard error": float(nats.std(ddof=1) / np.sqrt(len(nats))),
                }
                for name, nats in (("KL(p||q)", loss.to_model), ("KL(q||p)", loss.from_model))
            },
        }
        for f, by_way in losses.items()
        for way, loss in by_way.items()
    ]
    versions = {"python": platform.python_version(), "numpy": np.__version__, "scipy": scipy.__version__}
    return {"settings": asdict(settings), "versions": versions | {"sparseggm": sg.__version__}, "losses": rows}


def plot(settings: Settings, losses: dict[float, dict[str, Losses]], path: Path) -> None:
    """The figure: mean loss over the fraction, and every model at one fraction."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 3.9), dpi=160, layout="constrained")
    over, at = figure.subplots(1, 2, width_ratios=(1.15, 1.0))
    plot_over_fractions(over, losses)
    plot_models(at, losses[settings.shown], settings)
    figure.savefig(path, metadata={"Software": None})


def plot_over_fractions(axes: Axes, losses: dict[float, dict[str, Losses]]) -> None:
    fractions = np.array(list(losses))
    for way in WAYS:
        mean = np.array([losses[f][way].from_model.mean() for f in losses])
        axes.plot(100 * fractions, mean, color=COLOURS[way], marker=MARKS[way], ms=5, lw=1.8, label=way)
    axes.set(
        xlabel="couplings, % of the positive-definite limit",
        ylabel="mean KL(q‖p), nats",
        title="Nearer the border, more is lost",
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#DDDDDD", lw=0.6)
    axes.legend(frameon=False)


def plot_models(axes: Axes, losses: dict[str, Losses], settings: Settings) -> None:
    rng = np.random.default_rng(0)
    for place, way in enumerate(WAYS):
        nats = losses[way].from_model
        axes.scatter(place + rng.uniform(-0.25, 0.25, len(nats)), nats, s=9, color=COLOURS[way], alpha=0.5, lw=0)
        axes.hlines(nats.mean(), place - 0.35, place + 0.35, color="black", lw=1.5)
        text = f"mean {nats.mean():.3f}\n{100 * losses[way].inside:.0f} % inside"
        axes.annotate(text, (place, nats.max()), (0, 6), textcoords="offset points", ha="center", fontsize=8)
    axes.set(
        xticks=range(len(WAYS)),
        xticklabels=[way.replace(", ", ",\n").replace(" or", "\nor") for way in WAYS],
        ylabel="KL(q‖p), nats",
    )
    axes.set(title=f"{settings.models} models at {100 * settings.shown:.0f} % of the limit")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#DDDDDD", lw=0.6)
    axes.set_axisbelow(True)
    axes.margins(y=0.15)


def run(settings: Settings, out: Path) -> dict[str, Any]:
    """Measure, write cone.png and cone.json to `out`, return what the JSON holds."""
    losses = measure(settings)
    result = summary(settings, losses)
    out.mkdir(parents=True, exist_ok=True)
    plot(settings, losses, out / "cone.png")
    (out / "cone.json").write_text(json.dumps(result, indent=1) + "\n")
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="KL lost by each family of sparseggm.parametrize.")
    parser.add_argument("--out", type=Path, default=Path("runs/cone"))
    parser.add_argument("--models", type=int, default=Settings.models)
    parser.add_argument("--seed", type=int, default=Settings.seed)
    chosen = parser.parse_args(arguments)
    for row in run(Settings(models=chosen.models, seed=chosen.seed), chosen.out)["losses"]:
        means = (f"{name} {row[f'{name}, nats']['mean']:.4f}" for name in ("KL(p||q)", "KL(q||p)"))
        inside = f"{100 * row['share of models inside']:3.0f} % inside"
        print(f"{row['fraction']:.2f} of the limit  {row['way']:<22}", *means, "nats ", inside)


if __name__ == "__main__":
    main()
