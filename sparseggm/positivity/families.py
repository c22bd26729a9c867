"""Maps from unconstrained numbers, such as a network's outputs, to positive-definite matrices.

A family is a map `family(topology, inputs) → packed values` with `family.num_inputs(topology)` inputs, for NumPy
arrays and torch tensors, with batch axes in front. Zero inputs give the identity, so that a network starts at N(0, I).

| family     | inputs | covers                                            |                                    cost |
|------------|--------|---------------------------------------------------|-----------------------------------------|
| `factor`   | nnz(L) | every L of a factor-free pattern                  | O(nnz)                                  |
| `regression` | nnz(L) | the same, by regression coordinates             | O(nnz)                                  |
| `dominant` | n + m  | diagonally dominant P                             | O(nnz)                                  |
| `scaled`   | 2n + m | walk-summable P, those that scaling makes dominant| O(nnz)                                  |
| `edge`     | n + 2m | the same, without a shared scale                  | O(nnz)                                  |
| `spectral` | n + m  | every positive-definite P on the graph            | an eigenvalue: see `sparseggm.spectral` |

dominant ⊂ scaled = edge ⊂ spectral; on a tree the last two are equal. docs/positivity.md measures the differences.

Two families give a Λ ⪰ 0, for potentials. Low inputs give Λ = 0, zero inputs log 2 · I and (log 2)² I.

| family              | inputs | covers                                              |           cost |
|---------------------|--------|-----------------------------------------------------|----------------|
| `semidefinite_edge` | n + 2m | sums of semidefinite matrices of one or two nodes   | O(nnz)         |
| `gram`              | nnz(L) | W Wᵀ for every W of a factor-free pattern           | a Gram product |

Log-scales are bounded, here and nowhere else,

    bounded(d) = 5 tanh(d / 5),      slope 1 at 0,      e^±5 = 148, 0.0067 at the ends,

because an unbounded exponential turns one bad step into an overflow. "Covers" is up to these ends.

Derivatives are those of the formulas. |w| has derivative sign(w), hence 0 at w = 0: the symmetric subgradient. So the
diagonal does not depend on a coupling at zero, to first order, while P_ij has derivative ±1 with respect to w there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import singledispatch
from typing import Any, Protocol

from sparseggm import linalg
from sparseggm.errors import PatternError, ShapeError
from sparseggm.graph.pattern import Pattern
from sparseggm.graph.topology import Topology, require_topology
from sparseggm.positivity.namespace import (
    Array,
    array_namespace,
    constant_like,
    in_dtype_of,
    known,
    mask,
    scatter,
    segment_sum,
    softplus,
    take,
    where_diagonal,
)
from sparseggm.positivity.spectral import largest_eigenvalue

LOG_BOUND = 5.0
"""Largest |log-scale| that a family can give."""

SPECTRAL_MARGIN = math.exp(-2.0 * LOG_BOUND)
"""ε of `spectral`: I − R / (1 + (1 + ε) λ_max(R)) has no eigenvalue below ε / (1 + ε), however large R."""


class Family(Protocol):
    """A map from unconstrained inputs to packed values."""

    def num_inputs(self, topology: Topology) -> int:
        """Length of the last axis of `inputs`."""
        ...

    def __call__(self, topology: Topology, inputs: Array) -> Array:
        """Packed values (..., nnz) from inputs (..., num_inputs)."""
        ...


class FactorFamily:
    """L itself, on a factor-free topology: L_jj = exp(bounded(d_j)), L_ij = w_ij.

    Inputs (..., nnz(L)) are on `topology.factor_pattern`, each in the place of its value. Covers every L of that
    pattern with |log L_jj| < 5.
    """

    name = "factor"

    def num_inputs(self, topology: Topology) -> int:
        return _entries_of_factor(f"parametrize.{self.name}", topology, "parametrize.dominant")

    def __call__(self, topology: Topology, inputs: Array) -> Array:
        inputs = _checked_inputs("parametrize.factor", inputs, self.num_inputs(topology))
        pattern = topology.factor_pattern
        # exp of all inputs, then a choice: the bound keeps discarded values finite, so that their gradient is zero.
        return where_diagonal(pattern, array_namespace(inputs).exp(bounded(inputs)), inputs)


@dataclass(frozen=True)
class RegressionFamily(FactorFamily):
    """L by its regression coordinates: L_jj = exp(bounded(d_j)) = 1 / σ_j, L_ij = −β_ij L_jj.

    So z_j = loc_j + Σ_i β_ij (z_i − loc_i) + σ_j ε_j, over the parents i of j: later neighbours, by their entries in
    column j. The weights β are free of units: a change of σ_j leaves them. Inputs and cover are those of `factor`, β
    in the place of L_ij.

    Args:
        least_scale: every σ_j is above it, in [e⁻⁵, 1). For d > 0 the bound of log L_jj is −log least_scale in the
            place of 5, again with slope 1 at 0. A likelihood of data needs one: without, a node that hardly ever
            leaves its mean gets a σ so small that the first time it does costs more than all else.
    """

    least_scale: float = math.exp(-LOG_BOUND)

    name = "regression"

    def __post_init__(self) -> None:
        if not math.exp(-LOG_BOUND) <= self.least_scale < 1.0:
            raise ValueError(f"parametrize.regression: least_scale must be in [e^-5, 1), got {self.least_scale}.")

    def __call__(self, topology: Topology, inputs: Array) -> Array:
        inputs = _checked_inputs("parametrize.regression", inputs, self.num_inputs(topology))
        pattern = topology.factor_pattern
        weights = array_namespace(inputs).where(mask(inputs, pattern.rows == pattern.cols), -1.0, inputs)
        return weights * take(-self._pivots(take(inputs, pattern.diagonal)), pattern.cols)

    def _pivots(self, inputs: Array) -> Array:
        xp, bound = array_namespace(inputs), -math.log(self.least_scale)
        if bound >= LOG_BOUND:
            return xp.exp(bounded(inputs))
        bounds = xp.where(inputs > 0, *(constant_like(inputs, limit) for limit in (bound, LOG_BOUND)))
        return xp.exp(bounds * xp.tanh(inputs / bounds))


class DominantFamily:
    """The poster's Gershgorin family: P_ij = w_ij, P_ii = exp(bounded(d_i)) + Σ_j |w_ij|.

    Inputs (..., n + m): d by node, then w by row of `topology.edges`. Covers the strictly diagonally dominant P whose
    slack is within e^±5; λ_min(P) ≥ min_i exp(bounded(d_i)). Values are packed on `topology.precision_pattern`.
    """

    def num_inputs(self, topology: Topology) -> int:
        require_topology("parametrize.dominant", topology)
        return topology.n + len(topology.edges)

    def __call__(self, topology: Topology, inputs: Array) -> Array:
        inputs = _checked_inputs("parametrize.dominant", inputs, self.num_inputs(topology))
        return _packed(topology, *_dominant(topology, inputs))


class ScaledFamily:
    """D M D, D = diag(exp(bounded(s))), M of the dominant family: P_ij = w_ij D_i D_j, P_ii = M_ii D_i².

    Inputs (..., 2n + m): d by node and s by node, then w by row of `topology.edges`. Covers the walk-summable P: some
    D⁻¹ P D⁻¹ is strictly diagonally dominant with slack within e^±5 and D within e^±5. On trees, and for couplings
    that are all ≤ 0, that is every positive-definite P [Malioutov, Johnson & Willsky 2006]. Redundant: d and w can
    undo a small change of s. `gershgorin.slack` with weights D⁻¹ gives λ_min(P) ≥ min slack(M) D².
    Values are packed on `topology.precision_pattern`.
    """

    def num_inputs(self, topology: Topology) -> int:
        require_topology("parametrize.scaled", topology)
        return 2 * topology.n + len(topology.edges)

    def __call__(self, topology: Topology, inputs: Array) -> Array:
        inputs = _checked_inputs("parametrize.scaled", inputs, self.num_inputs(topology))
        xp, n = array_namespace(inputs), topology.n
        scales = xp.exp(bounded(inputs[..., n : 2 * n]))
        rest = xp.concatenate([inputs[..., :n], inputs[..., 2 * n :]], -1)
        return _packed(topology, *_congruent(topology, scales, *_dominant(topology, rest)))


class EdgeFamily:
    """diag(exp(bounded(d))) + Σ_e |w_e| [[e^{r_e}, sign w_e], [sign w_e, e^{−r_e}]], r bounded too: a sum over edges.

    So P_ij = w_e and P_ii = exp(d_i) + Σ_e |w_e| e^{±r_e}, with + for the first node i of the row (i, j) of
    `topology.edges` and − for the second: r_e divides the weight of an edge between its two nodes. Every summand is
    positive semidefinite, hence λ_min(P) ≥ min_i exp(bounded(d_i)). Inputs (..., n + 2m): d by node, then w and then r
    by row of `topology.edges`. Covers the walk-summable P with these slacks and shares within e^±5: the
    factor-width-two matrices [Boman et al. 2005]. At zero ∂P_ij/∂w_e = 1; a sum of squares u uᵀ would have no gradient
    there. r_e has no gradient while w_e = 0. Values are packed on `topology.precision_pattern`.
    """

    name = "edge"

    def num_inputs(self, topology: Topology) -> int:
        require_topology(f"parametrize.{self.name}", topology)
        return topology.n + 2 * len(topology.edges)

    def __call__(self, topology: Topology, inputs: Array) -> Array:
        inputs = _checked_inputs(f"parametrize.{self.name}", inputs, self.num_inputs(topology))
        xp, n, m = array_namespace(inputs), topology.n, len(topology.edges)
        couplings, shares = inputs[..., n : n + m], bounded(inputs[..., n + m :])
        magnitudes = xp.abs(couplings)
        terms = xp.concatenate([magnitudes * xp.exp(shares), magnitudes * xp.exp(-shares)], -1)
        diagonal = self._of_nodes(inputs[..., :n]) + segment_sum(terms, topology.edges.T.ravel(), n)
        return _packed(topology, diagonal, couplings)

    def _of_nodes(self, inputs: Array) -> Array:
        """The part of the diagonal that belongs to no edge."""
        return array_namespace(inputs).exp(bounded(inputs))


class SemidefiniteEdgeFamily(EdgeFamily):
    """diag(softplus(d)) + Σ_e |w_e| [[e^{r_e}, sign w_e], [sign w_e, e^{−r_e}]]: `edge` without its floor, Λ ⪰ 0.

    Inputs and gradients are those of `edge`. softplus(d) = log(1 + e^d) may be as near to zero as d is low.
    """

    name = "semidefinite_edge"

    def _of_nodes(self, inputs: Array) -> Array:
        return softplus(inputs)


class GramFamily:
    """Λ = W Wᵀ ⪰ 0 on a factor-free topology: W_jj = softplus(d_j), W_ij = w_ij.

    Inputs (..., nnz(L)) are on `topology.factor_pattern`, each in the place of its value in W; values are packed on
    `topology.precision_pattern`. W_jj > 0 loses nothing, as a column may change its sign. At zero ∂Λ_ij/∂w_ij = log 2.
    """

    def num_inputs(self, topology: Topology) -> int:
        return _entries_of_factor("parametrize.gram", topology, "parametrize.semidefinite_edge")

    def __call__(self, topology: Topology, inputs: Array) -> Array:
        inputs = _checked_inputs("parametrize.gram", inputs, self.num_inputs(topology))
        pattern = topology.factor_pattern
        return gram_rules(where_diagonal(pattern, softplus(inputs), inputs), pattern)


@singledispatch
def gram_rules(factor: Any, pattern: Pattern) -> Any:
    """L Lᵀ on `pattern.gram()`, of an array; `sparseggm.torch` adds the rule for tensors."""
    return linalg.gram(pattern, factor)


class SpectralFamily:
    """D (I − R / (1 + (1 + ε) λ_max(R))) D, D = diag(exp(bounded(d))), R = w on the edges and zero on the diagonal.

    So P_ii = D_i², and w_ij > 0 makes the partial correlation of i and j positive: P_ij = −D_i D_j w_ij / (1 + …).
    R has trace 0, so λ_max(R) ≥ 0. Inputs (..., n + m): d by node, then w by row of `topology.edges`. Covers every
    positive-definite P on the graph with √P_ii within e^±5 whose D⁻¹ P D⁻¹ has its least eigenvalue above
    ε / (1 + ε) = 4.5e-5: ε = e⁻¹⁰ keeps P away from singular however large w is, and leaves the room in which the
    eigenvalue is certified. `sparseggm.spectral` has the certificate and its cost.

    λ_max has the gradient 2 v_i v_j, v its unit eigenvector. Where λ_max is multiple, as at R = 0, its derivatives are
    those of the mean of its copies; the gradient of P at R = 0 is exact, because R multiplies that of λ_max. Values
    are packed on `topology.precision_pattern`.
    """

    def num_inputs(self, topology: Topology) -> int:
        require_topology("parametrize.spectral", topology)
        return topology.n + len(topology.edges)

    def __call__(self, topology: Topology, inputs: Array) -> Array:
        inputs = _checked_inputs("parametrize.spectral", inputs, self.num_inputs(topology))
        xp, n = array_namespace(inputs), topology.n
        scales, couplings = xp.exp(bounded(inputs[..., :n])), inputs[..., n:]
        ones = xp.ones_like(scales)
        top = largest_eigenvalue(topology.precision_pattern, _packed(topology, xp.zeros_like(scales), couplings))
        shrinkage = in_dtype_of(1 / (1 + (1 + SPECTRAL_MARGIN) * top), inputs)
        return _packed(topology, *_congruent(topology, scales, ones, -couplings * shrinkage[..., None]))


factor = FactorFamily()
regression = RegressionFamily()
dominant = DominantFamily()
scaled = ScaledFamily()
edge = EdgeFamily()
spectral = SpectralFamily()
semidefinite_edge = SemidefiniteEdgeFamily()
gram = GramFamily()

Semidefinite = SemidefiniteEdgeFamily | GramFamily
"""The families whose values may be singular: of a potential, not of a precision."""


def bounded(log_scale: Array) -> Array:
    """5 tanh(d / 5)."""
    return LOG_BOUND * array_namespace(log_scale).tanh(log_scale / LOG_BOUND)


def _dominant(topology: Topology, inputs: Array) -> tuple[Array, Array]:
    """Diagonal (..., n) and couplings (..., m) of the dominant family."""
    xp, n = array_namespace(inputs), topology.n
    couplings = inputs[..., n:]
    magnitudes = xp.abs(couplings)
    radii = segment_sum(xp.concatenate([magnitudes, magnitudes], -1), topology.edges.T.ravel(), n)
    return xp.exp(bounded(inputs[..., :n])) + radii, couplings


def _congruent(topology: Topology, scales: Array, diagonal: Array, couplings: Array) -> tuple[Array, Array]:
    """Diagonal and couplings of D M D, D = diag(scales)."""
    ends = topology.edges
    return diagonal * scales * scales, couplings * take(scales, ends[:, 0]) * take(scales, ends[:, 1])


def _packed(topology: Topology, diagonal: Array, couplings: Array) -> Array:
    """Values (..., nnz) on the precision pattern."""
    parts = [(topology.node_positions, diagonal), (topology.edge_positions, couplings)]
    return scatter(parts, topology.precision_pattern.nnz)


def _entries_of_factor(family: str, topology: Topology, instead: str) -> int:
    """nnz(L) of a factor-free topology."""
    require_topology(family, topology)
    if not topology.is_factor_free:
        raise PatternError(
            f"{family}: {topology} is not factor-free: L Lᵀ would have entries off its graph. "
            f"Give its precision instead, by {instead}."
        )
    return topology.factor_pattern.nnz


def _checked_inputs(family: str, inputs: Array, size: int) -> Array:
    inputs = known(family, "inputs", inputs)
    if tuple(inputs.shape[-1:]) != (size,):
        raise ShapeError(f"{family}: inputs must end in {size}, got shape {tuple(inputs.shape)}.")
    return inputs
