"""Side by side with torch's dense `MultivariateNormal(precision_matrix=…)`: values and gradients, in float64.

    python -m tests.torch.side_by_side --cases 10000

Each case has two Gaussians, on topologies of up to 12 nodes, given by L or by P, and a point. Both sides compute
log p(x), entropy, diag Σ and KL, and the gradient of each (of a random combination of the variances) with respect to
loc, L or P, x, and the parameters of the second, on one side through torch's own dense algebra.

The bound. Both sides are backward stable: each works with a P whose relative error in norm is at most c₁ n u, c₁ a
small number of roundings an entry [Higham 2002, Thm 10.3 and 8.5]. To first order a P perturbed by a relative δ has

    |Δ log det P| ≤ n κ δ,   ‖ΔΣ‖ ≤ κ δ ‖Σ‖,   |Δ (dᵀ P d)| ≤ δ ‖P‖ ‖d‖²,

so a product of P, Σ, L and vectors is off by at most (number of its factors) κ δ times the product of their norms, κ
the larger condition number of the two P. Quantities and gradients are sums of such products; `Scales` has the sum of
the norms of their terms. A term has at most five factors, and a gradient goes through the dense side's Cholesky
factorisation and inverse and back, four factorisations or solves: C = 2 · 5 · 4, the 2 for two sides, and c₁ = 1.
So |ours − theirs| ≤ 40 n u κ (sum of norms), a worst case that first-order cancellations never reach.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

import sparseggm as sg
from sparseggm.torch import GaussianGraphicalModel

C = 40.0
U = 2.0**-53

Quantities = dict[str, Tensor]


def topology_of(rng: np.random.Generator, n: int) -> sg.Topology:
    """Any that has n nodes, or about."""
    rows = int(rng.integers(1, n + 1))
    cols = max(1, n // rows)
    pairs = np.argwhere(np.tril(rng.random((n, n)) < rng.uniform(0, 1), -1))
    choices = [
        lambda: sg.Diagonal(n),
        lambda: sg.Chain(n),
        lambda: sg.Band(n, int(rng.integers(1, n + 1))),
        lambda: sg.BlockChain(rows, cols),
        lambda: sg.ExtendedGrid(rows, cols),
        lambda: sg.Grid(rows, cols),
        lambda: sg.Star(n),
        lambda: sg.Cycle(max(n, 3)),
        lambda: sg.Graph(n, pairs),
    ]
    return choices[int(rng.integers(len(choices)))]()


@dataclass
class Side:
    """The parameters of one Gaussian, and its precision as a dense function of them."""

    topology: sg.Topology
    made_from: str
    loc: Tensor
    values: Tensor

    @staticmethod
    def draw(rng: np.random.Generator, topology: sg.Topology) -> Side:
        made_from, reach = str(rng.choice(["factor", "precision"])), 10.0 ** rng.uniform(-1.5, 0.3)
        if made_from == "factor":
            pattern = topology.factor_pattern
            values = reach * rng.standard_normal(pattern.nnz) / np.sqrt(pattern.longest_column)
            values[pattern.diagonal] = np.exp(0.5 * rng.standard_normal(topology.n))
        else:
            pattern = topology.precision_pattern
            values = reach * rng.standard_normal(pattern.nnz)
            slack = 10.0 ** rng.uniform(-3, 0.5, topology.n)
            values[pattern.diagonal] = sg.gershgorin.discs(pattern, values)[1] + slack
        loc = rng.standard_normal(topology.n)
        return Side(topology, made_from, *(torch.from_numpy(x).requires_grad_() for x in (loc, values)))

    def ours(self) -> GaussianGraphicalModel:
        if self.made_from == "factor":
            return GaussianGraphicalModel(self.loc, factor=self.values, topology=self.topology)
        return GaussianGraphicalModel.from_precision(self.loc, precision=self.values, topology=self.topology)

    def dense_precision(self) -> Tensor:
        """P in the caller's numbering, by dense algebra that torch differentiates."""
        factor, n = self.made_from == "factor", self.topology.n
        pattern = self.topology.factor_pattern if factor else self.topology.precision_pattern
        rows, cols, inverse = (
            torch.from_numpy(x.astype(np.int64)) for x in (pattern.rows, pattern.cols, self.topology.inverse_order)
        )
        lower = torch.zeros(n, n, dtype=torch.float64).index_put((rows, cols), self.values)
        full = lower @ lower.T if factor else lower + lower.tril(-1).T
        return full[inverse[:, None], inverse]

    def theirs(self) -> MultivariateNormal:
        return MultivariateNormal(self.loc, precision_matrix=self.dense_precision())


def quantities(q: torch.distributions.Distribution, p: torch.distributions.Distribution, x: Tensor) -> Quantities:
    return {"log_prob": q.log_prob(x), "entropy": q.entropy(), "variance": q.variance, "kl": kl_divergence(q, p)}


def with_gradients(values: Quantities, weights: Tensor, parameters: dict[str, Tensor]) -> Quantities:
    """The values, and the gradient of each with respect to each parameter."""
    found = dict(values)
    for name, value in values.items():
        scalar = (value * weights).sum() if name == "variance" else value
        bars = torch.autograd.grad(scalar, list(parameters.values()), retain_graph=True, materialize_grads=True)
        found |= {f"d {name} / d {parameter}": bar for parameter, bar in zip(parameters, bars, strict=True)}
    return {name: value.detach() for name, value in found.items()}


def norm(matrix: Tensor) -> float:
    return float(torch.linalg.matrix_norm(matrix, 2))


class Scales(dict[str, float]):
    """For each quantity and gradient, the sum over its terms of the products of the norms of their factors."""

    def __init__(self, q: Side, p: Side, x: Tensor, weights: Tensor) -> None:
        with torch.no_grad():
            P, Pp = q.dense_precision(), p.dense_precision()
        Σ, n = torch.linalg.inv(P), q.topology.n
        size, Σ_norm, p_norm = norm(P), norm(Σ), norm(Pp)
        self.condition = max(size * Σ_norm, p_norm * norm(torch.linalg.inv(Pp)))
        d, e = (float(torch.linalg.vector_norm((v - q.loc).detach())) for v in (x, p.loc))
        w = float(weights.abs().max())
        by_precision = {
            "log_prob": Σ_norm + d**2,
            "entropy": Σ_norm,
            "variance": w * Σ_norm**2,
            "kl": Σ_norm**2 * p_norm + Σ_norm,
        }
        own = {"factor": 2 * size**0.5, "precision": 2.0}[q.made_from]  # dP = dL Lᵀ + L dLᵀ; a stored pair counts twice
        other = {"factor": 2 * p_norm**0.5, "precision": 2.0}[p.made_from]
        logs = n + float(torch.linalg.slogdet(P)[1].abs())
        self["log_prob"] = logs + size * d**2
        self["entropy"] = logs
        self["variance"] = Σ_norm
        self["kl"] = logs + n * Σ_norm * p_norm + p_norm * e**2 + float(torch.linalg.slogdet(Pp)[1].abs())
        for name in by_precision:
            self[f"d {name} / d values"] = own * by_precision[name]
            self |= {f"d {name} / d {of}": 0.0 for of in ("loc", "x", "other loc", "other values")}
        self["d log_prob / d loc"] = self["d log_prob / d x"] = size * d
        self["d kl / d loc"] = self["d kl / d other loc"] = p_norm * e
        self["d kl / d other values"] = other * (Σ_norm + e**2 + self.condition / p_norm)


def compare(rng: np.random.Generator) -> dict[str, float]:
    """|ours − theirs| / bound of one case, for each quantity and gradient: the largest entry."""
    topology = topology_of(rng, int(rng.integers(1, 13)))
    q = Side.draw(rng, topology)
    p = Side.draw(rng, next(t for t in iter(lambda: topology_of(rng, topology.n), None) if t.n == topology.n))
    x, weights = (torch.from_numpy(rng.standard_normal(topology.n)) for _ in range(2))
    x.requires_grad_()
    parameters = {"loc": q.loc, "values": q.values, "x": x, "other loc": p.loc, "other values": p.values}
    ours = with_gradients(quantities(q.ours(), p.ours(), x), weights, parameters)
    theirs = with_gradients(quantities(q.theirs(), p.theirs(), x), weights, parameters)
    scales = Scales(q, p, x, weights)
    level = C * topology.n * U * scales.condition
    ratios = {}
    for name in ours:
        error, bound = float((ours[name] - theirs[name]).abs().max()), level * scales[name]
        ratios[name] = error / bound if bound else (0.0 if error == 0 else float("inf"))
    return ratios


def run(cases: int, seed: int) -> dict[str, float]:
    """The worst ratio of each quantity and gradient."""
    worst: dict[str, float] = {}
    for case in range(cases):
        for name, ratio in compare(np.random.default_rng([seed, case])).items():
            worst[name] = max(worst.get(name, 0.0), ratio)
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare with torch's dense MultivariateNormal.")
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    worst = run(options.cases, options.seed)
    for name, ratio in worst.items():
        print(f"{name:<28}{ratio:12.2e}")
    print(f"{options.cases} cases, worst |ours − theirs| / bound {max(worst.values()):.3f}")


if __name__ == "__main__":
    main()
