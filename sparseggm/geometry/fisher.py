"""Products with the Fisher matrix of a Gaussian, and with its inverse, in four systems of coordinates.

    factor       loc, and L on the factor pattern
    regression   loc, and log σ_j = −log L_jj on the diagonal, β_ij = −L_ij / L_jj below, on the factor pattern
    natural      P loc, and P on the graph
    expectation  E z, and E z zᵀ on the graph

In the first two the matrix is P for loc, and a block for each column of L: docs/math.md, section 10. In the last two,
which need a chordal graph in its order, derivatives go to the coordinates "factor" and back: section 13. Gaussians,
and all values, may be of arrays or of tensors.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from sparseggm.errors import PatternError, ShapeError
from sparseggm.gaussian.fitting import columns_alike
from sparseggm.gaussian.linear import representable
from sparseggm.geometry import chains
from sparseggm.geometry.kinds import (
    is_surely_finite,
    kind_of,
    require_finite,
    require_free_factor,
    require_gaussians,
)
from sparseggm.graph.pattern import IntArray, Pattern
from sparseggm.linalg import checks
from sparseggm.linalg.natural import natural_gradient
from sparseggm.positivity.namespace import Array, array_namespace, take, where_diagonal

Coordinates = Literal["factor", "regression", "natural", "expectation"]

_known_parents: WeakKeyDictionary[Pattern, tuple[IntArray, IntArray]] = WeakKeyDictionary()


class Tangent(NamedTuple):
    """A change of the coordinates of a Gaussian, or the gradient of a function of them."""

    vector: Array
    """(..., n) of the mean, or of P loc, in the caller's numbering."""
    values: Array
    """(..., nnz) of the rest, on the factor pattern or, as packed values, on that of P; the two are one if chordal."""


def fisher_matmul(g: Any, vector: npt.ArrayLike, values: npt.ArrayLike, coordinates: Coordinates = "factor") -> Tangent:
    """F v: the gradient that a change v of the coordinates has in the metric of Fisher.

    F is the Hessian of KL(g ‖ g + v), and of KL(g + v ‖ g), at v = 0.

    Args:
        g: Gaussians, whose L is free on its pattern: given as L, or as P on a graph without fill.
        vector, values: v, see `Tangent`; batch axes broadcast.
    Raises:
        PatternError: L, made of P, has fill; or, for "natural" and "expectation", not chordal in its order.
    Cost: one selected inverse, Σ_j |S_j|² products, and two products with L; a few times that for the last two.
    """
    return _applied("fisher_matmul", g, vector, values, coordinates, False)


def fisher_solve(g: Any, vector: npt.ArrayLike, values: npt.ArrayLike, coordinates: Coordinates = "factor") -> Tangent:
    """F⁻¹ u: the natural gradient, for the gradient u of a function of the coordinates.

    Arguments, errors: as `fisher_matmul`.
    Cost: one selected inverse, one `solve`, one `solve_t`, and Σ_j |S_j|³ / 3 flops; more for the last two.
    Source: docs/math.md, section 10; [Tan 2021] for a full or banded L.
    """
    return _applied("fisher_solve", g, vector, values, coordinates, True)


def _applied(
    function: str, g: Any, vector: npt.ArrayLike, values: npt.ArrayLike, coordinates: Coordinates, inverse: bool
) -> Tangent:
    """F or its inverse: everything below is in the order of elimination."""
    require_gaussians(function, g)
    _require_fisher_matrix(function, g, coordinates)
    kind, topology = kind_of(g.loc), g.topology
    v, V = kind.numbers(function, g.loc, vector=vector, values=values)
    g, pattern = g._in_dtype(v.dtype), g.factor_pattern
    if (v.shape[-1:], V.shape[-1:]) != ((topology.n,), (pattern.nnz,)):
        raise ShapeError(
            f"{function}: on {topology} vector must end in {topology.n} and values in {pattern.nnz}, got shapes "
            f"{tuple(v.shape)} and {tuple(V.shape)}."
        )
    batches = {"vector": v.shape[:-1], "values": V.shape[:-1], "gaussian": g.batch_shape}
    checks.broadcast(function, **{name: tuple(shape) for name, shape in batches.items()})
    natural = topology.is_naturally_ordered
    loc, x = (g.loc, v) if natural else (take(g.loc, topology.order), take(v, topology.order))
    fisher = Fisher(pattern, kind.factor(g), loc)
    with checks.non_finite_passes():  # tested below: NaN and infinity reach the result
        result, is_finite = fisher.applied(coordinates, Tangent(x, V), inverse)
    for part in () if is_finite else result:
        if not is_surely_finite(part):
            require_finite(function, "vector", v)
            require_finite(function, "values", V, pattern, topology)
            representable(function, part)
    return result if natural else Tangent(take(result.vector, topology.inverse_order), result.values)


def require_coordinates_known(function: str, coordinates: str) -> None:
    """Raise unless there are coordinates of this name."""
    if coordinates not in ("factor", "regression", "natural", "expectation"):
        names = '"factor", "regression", "natural" or "expectation"'
        raise ValueError(f"{function}: coordinates must be {names}, got {coordinates!r}.")


def _require_fisher_matrix(function: str, g: Any, coordinates: str) -> None:
    """Raise unless a Gaussian has a Fisher matrix in these coordinates."""
    require_coordinates_known(function, coordinates)
    require_free_factor(function, g)
    if coordinates in ("natural", "expectation") and not g.factor_pattern.is_closed:
        raise PatternError(
            f'{function}: "{coordinates}" needs a graph that is chordal in its order, got {g.topology}. Use "factor".'
        )


class Fisher:
    """The Fisher matrix of N(loc, (L Lᵀ)⁻¹), L on a pattern; everything is in the order of elimination."""

    def __init__(self, pattern: Pattern, factor: Array, loc: Array) -> None:
        self.pattern, self.factor, self.loc = pattern, factor, loc
        self.verbs, self.xp = kind_of(factor).verbs, array_namespace(factor)
        self.is_chain_of_arrays = pattern.is_chain and self.xp is np

    @property
    def pivots(self) -> Array:
        """L_jj."""
        return take(self.factor, self.pattern.diagonal)

    def applied(self, coordinates: str, v: Tangent, inverse: bool) -> tuple[Tangent, bool]:
        """F v or F⁻¹ v, and whether it is known to be finite."""
        if coordinates in ("factor", "regression"):
            return self._flat(coordinates, v, inverse)
        return self._curved(coordinates, v, inverse), False

    def _flat(self, coordinates: str, v: Tangent, inverse: bool) -> tuple[Tangent, bool]:
        """In "factor" or "regression"."""
        if inverse and self.is_chain_of_arrays:
            return self._solved_on_chain(coordinates == "regression", v)
        by_column = {
            ("factor", False): self._factor_matmul,
            ("factor", True): self.factor_solve,
            ("regression", False): self._regression_matmul,
            ("regression", True): self._regression_solve,
        }[coordinates, inverse]
        return Tangent((self.sigma if inverse else self._precision)(v.vector), by_column(v.values)), False

    def _solved_on_chain(self, by_regression: bool, u: Tangent) -> tuple[Tangent, bool]:
        own = self.factor.shape[:-1]
        together = np.broadcast_shapes(own, u.vector.shape[:-1]) == np.broadcast_shapes(own, u.values.shape[:-1])
        vector = u.vector if together else None
        x, values, is_finite = natural_gradient(self.pattern, self.factor, vector, u.values, by_regression)
        return Tangent(self.sigma(u.vector) if x is None else x, values), is_finite and together

    def _curved(self, coordinates: str, v: Tangent, inverse: bool) -> Tangent:
        """In "natural" or "expectation".

        With K the derivative of (h, P) by (loc, L), F = K⁻ᵀ F_L K⁻¹ and F⁻¹ = K F_L⁻¹ Kᵀ in natural parameters. The
        gradient of the log normaliser is (E z, W E z zᵀ), W = −½ on the diagonal and −1 below; so F is W F_h⁻¹ W in
        expectation parameters.
        """
        if coordinates == "expectation":
            on_diagonal = -2.0 if inverse else -0.5
            made = self._curved("natural", Tangent(v.vector, self._weighted(on_diagonal, v.values)), not inverse)
            return Tangent(made.vector, self._weighted(on_diagonal, made.values))
        if inverse:
            return self._push(self._flat("factor", self._pull(v), True)[0])
        return self._pull_back(self._flat("factor", self._push_back(v), False)[0])

    def _weighted(self, on_diagonal: float, values: Array) -> Array:
        """W V, or W⁻¹ V."""
        return where_diagonal(self.pattern, on_diagonal * values, -values)

    # ------------------------------------------------------------------ K, Kᵀ and their inverses

    def _push(self, v: Tangent) -> Tangent:
        """K: dP = L dLᵀ + dL Lᵀ, dh = P dloc + dP loc."""
        change = self.verbs.gram_jvp(self.pattern, self.factor, v.values)
        return Tangent(self._precision(v.vector) + self._times(change, self.loc), change)

    def _push_back(self, v: Tangent) -> Tangent:
        """K⁻¹."""
        change = self.verbs.cholesky_jvp(self.pattern, self.factor, v.values)
        return Tangent(self.sigma(v.vector - self._times(v.values, self.loc)), change)

    def _pull(self, u: Tangent) -> Tangent:
        """Kᵀ."""
        back = u.values + self._outer(u.vector)
        return Tangent(self._precision(u.vector), self.verbs.gram_vjp(self.pattern, self.factor, back))

    def _pull_back(self, u: Tangent) -> Tangent:
        """K⁻ᵀ."""
        vector = self.sigma(u.vector)
        values = self.verbs.cholesky_vjp(self.pattern, self.factor, u.values)
        return Tangent(vector, values - self._outer(vector))

    def _outer(self, x: Array) -> Array:
        """The gradient of xᵀ V loc by the stored entries of a symmetric V."""
        i, j, loc = self.pattern.rows, self.pattern.cols, self.loc
        both = take(x, i) * take(loc, j) + take(x, j) * take(loc, i)
        return where_diagonal(self.pattern, both / 2, both)

    # ------------------------------------------------------------------ blocks of columns

    def _factor_matmul(self, v: Array) -> Array:
        """Σ_SS v_S + e₁ v_jj / L_jj²."""
        if self.is_chain_of_arrays:
            return chains.factor_matmul(self.factor, v, self._variances())
        own = take(v, self.pattern.diagonal) / self.pivots**2
        return self._covariance_times(v) + self.verbs.on_diagonal(self.pattern, own)

    def _regression_matmul(self, v: Array) -> Array:
        """2 for log σ_j, Σ_RR / σ_j² for β_j."""
        if self.is_chain_of_arrays:
            return chains.regression_matmul(self.factor, v, self._variances())
        times = self._covariance_times(where_diagonal(self.pattern, 0.0 * v, v))
        return where_diagonal(self.pattern, 2 * v, times * self._by_column(self.pivots**2))

    def factor_solve(self, u: Array) -> Array:
        """½ L_Sj L_Sjᵀ u_S + 0 ⊕ Σ_RR⁻¹ u_R."""
        along = self.verbs.matmul_t(self.pattern, self.factor * u, self.xp.ones_like(self.pivots))
        return 0.5 * self.factor * self._by_column(along) + self._parents_solved(u)

    def _regression_solve(self, u: Array) -> Array:
        """½ for log σ_j, σ_j² Σ_RR⁻¹ for β_j."""
        return where_diagonal(self.pattern, 0.5 * u, self._parents_solved(u) / self._by_column(self.pivots**2))

    def _covariance_times(self, v: Array) -> Array:
        """Σ_SS v_S for every column."""
        gram, fill, sigma = self.pattern.gram(), self.pattern.filled(), self._selected_inverse()
        if gram is not fill:
            sigma = take(sigma, gram.positions_in(fill))
        halves = self.verbs.on_diagonal(gram, 0.5 * self.verbs.diagonal(gram, sigma))
        return self.verbs.gram_vjp(self.pattern, v, sigma - halves)

    def _parents_solved(self, u: Array) -> Array:
        """Σ_RR⁻¹ u_R for every column, zero on the diagonal."""
        pattern, fill, xp = self.pattern, self.pattern.filled(), self.xp
        single, gather = _parents(pattern)
        if pattern.longest_column <= 2:
            quotient = take(u, single) / take(self._variances(), pattern.rows[single])
            return take(xp.concatenate([quotient, xp.zeros_like(u[..., :1] + self.pivots[..., :1])], -1), gather)
        sigma = self._selected_inverse()
        batch = np.broadcast_shapes(tuple(u.shape[:-1]), tuple(sigma.shape[:-1]))
        parts = [take(u, single) / take(sigma, fill.diagonal[pattern.rows[single]])]
        for _, positions, pairs in columns_alike(pattern, fill, math.prod(batch), least=3):
            solved = xp.linalg.solve(take(sigma, pairs[:, 1:, 1:]), take(u, positions[:, 1:])[..., None])[..., 0]
            parts.append(solved.reshape(*batch, solved.shape[-2] * solved.shape[-1]))
        zero = xp.zeros_like(u[..., :1] + sigma[..., :1])
        return take(xp.concatenate([*parts, zero], -1), gather)

    def _variances(self) -> Array:
        return self.verbs.marginal_variances(self.pattern, self.factor)

    def _selected_inverse(self) -> Array:
        return self.verbs.selected_inverse(self.pattern, self.factor)

    # ------------------------------------------------------------------ whole matrices

    def sigma(self, x: Array) -> Array:
        """Σ x."""
        half = self.verbs.solve(self.pattern, self.factor, x)
        in_place = {"out": half} if self.xp is np else {}
        return self.verbs.solve_t(self.pattern, self.factor, half, **in_place)

    def _precision(self, x: Array) -> Array:
        return self.verbs.matmul(self.pattern, self.factor, self.verbs.matmul_t(self.pattern, self.factor, x))

    def _times(self, change: Array, x: Array) -> Array:
        """V x for a symmetric V on the pattern."""
        return self.verbs.symmetric_matmul(self.pattern, change, x)

    def _by_column(self, numbers: Array) -> Array:
        """(..., nnz) the number of each entry's column."""
        return take(numbers, self.pattern.cols)


def _parents(pattern: Pattern) -> tuple[IntArray, IntArray]:
    """The places of the parents of columns with one, and for every entry its place among all parents and a zero.

    Parents stand column by column, those of columns with one first, then by the number of them: as `columns_alike`.
    """
    known = _known_parents.get(pattern)
    if known is None:
        single = np.asarray(pattern.indptr[:-1][np.diff(pattern.indptr) == 2] + 1, np.int64)
        several = [positions[:, 1:].ravel() for _, positions, _ in columns_alike(pattern, pattern.filled(), 1, least=3)]
        places = np.concatenate([single, *several])
        gather = np.full(pattern.nnz, len(places))
        gather[places] = np.arange(len(places))
        known = _known_parents[pattern] = single, gather
    return known
