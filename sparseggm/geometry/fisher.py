"""Products with the Fisher matrix of a Gaussian, and with its inverse, in four systems of coordinates.

    factor       loc, and L on the factor pattern
    regression   loc, and log σ_j = −log L_jj on the diagonal, β_ij = −L_ij / L_jj below, on the factor pattern
    natural      P loc, and P on the graph
    expectation  E z, and E z zᵀ on the graph

In the first two the matrix is P for loc, and a block for each column of L: docs/math.md, section 10. In the last two,
which need a chordal graph in its order, derivatives go to the coordinates "factor" and back: section 13.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from sparseggm import linalg
from sparseggm.errors import NonFiniteError, PatternError, ShapeError
from sparseggm.gaussian.fitting import columns_alike
from sparseggm.gaussian.model import GaussianGraphicalModel, require_gaussians
from sparseggm.graph.pattern import FloatArray, Pattern
from sparseggm.linalg import calculus, checks

Coordinates = Literal["factor", "regression", "natural", "expectation"]


class Tangent(NamedTuple):
    """A change of the coordinates of a Gaussian, or the gradient of a function of them."""

    vector: FloatArray
    """(..., n) of the mean, or of P loc, in the caller's numbering."""
    values: FloatArray
    """(..., nnz) of the rest, on the factor pattern or, as packed values, on that of P; the two are one if chordal."""


def fisher_matmul(
    g: GaussianGraphicalModel, vector: npt.ArrayLike, values: npt.ArrayLike, coordinates: Coordinates = "factor"
) -> Tangent:
    """F v: the gradient that a change v of the coordinates has in the metric of Fisher.

    F is the Hessian of KL(g ‖ g + v), and of KL(g + v ‖ g), at v = 0.

    Args:
        g: Gaussians, on a factor-free topology.
        vector, values: v, see `Tangent`; batch axes broadcast.
    Raises:
        PatternError: the topology is not factor-free; or, for "natural" and "expectation", not chordal in its order.
    Cost: one selected inverse, Σ_j |S_j|² products, and two products with L; a few times that for the last two.
    """
    return _applied("fisher_matmul", g, vector, values, coordinates, False)


def fisher_solve(
    g: GaussianGraphicalModel, vector: npt.ArrayLike, values: npt.ArrayLike, coordinates: Coordinates = "factor"
) -> Tangent:
    """F⁻¹ u: the natural gradient, for the gradient u of a function of the coordinates.

    Arguments, errors: as `fisher_matmul`.
    Cost: one selected inverse, one `solve`, one `solve_t`, and Σ_j |S_j|³ / 3 flops; more for the last two.
    Source: docs/math.md, section 10; [Tan 2021] for a full or banded L.
    """
    return _applied("fisher_solve", g, vector, values, coordinates, True)


def _applied(
    function: str,
    g: GaussianGraphicalModel,
    vector: npt.ArrayLike,
    values: npt.ArrayLike,
    coordinates: Coordinates,
    inverse: bool,
) -> Tangent:
    """F or its inverse: everything below is in the order of elimination."""
    if coordinates not in ("factor", "regression", "natural", "expectation"):
        names = '"factor", "regression", "natural" or "expectation"'
        raise ValueError(f"{function}: coordinates must be {names}, got {coordinates!r}.")
    require_gaussians(function, g)
    g, (v, V) = g._beside(function, vector=vector, values=values)
    pattern, order = g.factor_pattern, g.topology.order
    if pattern.gram() is not g.graph.precision_pattern:
        raise PatternError(f"{function}: needs an L that is free on its pattern, got one with fill on {g.topology}.")
    is_curved = coordinates in ("natural", "expectation")
    if is_curved and not pattern.is_closed:
        raise PatternError(
            f'{function}: "{coordinates}" needs a graph that is chordal in its order, got {g.topology}. Use "factor".'
        )
    if (v.shape[-1:], V.shape[-1:]) != ((g.n,), (pattern.nnz,)):
        raise ShapeError(
            f"{function}: on {g.topology} vector must end in {g.n} and values in {pattern.nnz}, got shapes {v.shape} "
            f"and {V.shape}."
        )
    checks.broadcast(function, vector=v.shape[:-1], values=V.shape[:-1], gaussian=g.batch_shape)
    checks.require_finite(function, "vector", None, v)
    checks.require_finite(function, "values", pattern, V, g.topology)
    natural, back = g.topology.is_naturally_ordered, g.topology.inverse_order
    loc, v = (g.loc, v) if natural else (g.loc.take(order, axis=-1), v.take(order, axis=-1))
    fisher = _Fisher(pattern, g.factor, loc)
    with checks.non_finite_passes():  # tested below
        result = (fisher.curved if is_curved else fisher.flat)(coordinates, Tangent(v, V), inverse)
    if not all(np.isfinite(part).all() for part in result):
        raise NonFiniteError(
            f"{function}: the arguments are finite but the result overflows {g.dtype}. {checks.REMEDY}"
        )
    return result if natural else Tangent(result.vector.take(back, axis=-1), result.values)


class _Fisher:
    """The Fisher matrix of N(loc, (L Lᵀ)⁻¹), L on a pattern."""

    def __init__(self, pattern: Pattern, factor: FloatArray, loc: FloatArray) -> None:
        self.pattern, self.factor, self.loc = pattern, factor, loc
        self.pivots = factor.take(pattern.diagonal, axis=-1)
        self.diagonal, self.cols = pattern.diagonal, pattern.cols

    def flat(self, coordinates: str, v: Tangent, inverse: bool) -> Tangent:
        """In "factor" or "regression"."""
        by_column = {
            ("factor", False): self._factor_matmul,
            ("factor", True): self._factor_solve,
            ("regression", False): self._regression_matmul,
            ("regression", True): self._regression_solve,
        }[coordinates, inverse]
        return Tangent((self._sigma if inverse else self._precision)(v.vector), by_column(v.values))

    def curved(self, coordinates: str, v: Tangent, inverse: bool) -> Tangent:
        """In "natural" or "expectation".

        With K the derivative of (h, P) by (loc, L), F = K⁻ᵀ F_L K⁻¹ and F⁻¹ = K F_L⁻¹ Kᵀ in natural parameters. The
        gradient of the log normaliser is (E z, W E z zᵀ), W = −½ on the diagonal and −1 below; so F is W F_h⁻¹ W in
        expectation parameters.
        """
        weight = -0.5 * self.pattern.multiplicity.astype(self.factor.dtype)
        if coordinates == "expectation":
            scale = 1 / weight if inverse else weight
            made = self.curved("natural", Tangent(v.vector, scale * v.values), not inverse)
            return Tangent(made.vector, scale * made.values)
        if inverse:
            return self._push(self.flat("factor", self._pull(v), True))
        return self._pull_back(self.flat("factor", self._push_back(v), False))

    # ------------------------------------------------------------------ K, Kᵀ and their inverses

    def _push(self, v: Tangent) -> Tangent:
        """K: dP = L dLᵀ + dL Lᵀ, dh = P dloc + dP loc."""
        change = calculus.gram_jvp(self.pattern, self.factor, v.values)
        return Tangent(self._precision(v.vector) + self._times(change, self.loc), change)

    def _push_back(self, v: Tangent) -> Tangent:
        """K⁻¹."""
        change = calculus.cholesky_jvp(self.pattern, self.factor, v.values)
        return Tangent(self._sigma(v.vector - self._times(v.values, self.loc)), change)

    def _pull(self, u: Tangent) -> Tangent:
        """Kᵀ."""
        back = u.values + self._outer(u.vector)
        return Tangent(self._precision(u.vector), calculus.gram_vjp(self.pattern, self.factor, back))

    def _pull_back(self, u: Tangent) -> Tangent:
        """K⁻ᵀ."""
        vector = self._sigma(u.vector)
        values = calculus.cholesky_vjp(self.pattern, self.factor, u.values)
        return Tangent(vector, values - self._outer(vector))

    def _outer(self, x: FloatArray) -> FloatArray:
        """The gradient of xᵀ V loc by the stored entries of a symmetric V."""
        i, j, loc = self.pattern.rows, self.cols, self.loc
        both = x[..., i] * loc[..., j] + x[..., j] * loc[..., i]
        return np.asarray(np.where(i == j, both / 2, both))

    # ------------------------------------------------------------------ blocks of columns

    def _factor_matmul(self, v: FloatArray) -> FloatArray:
        """Σ_SS v_S + e₁ v_jj / L_jj²."""
        result: FloatArray = self._covariance_times(v)
        result[..., self.diagonal] += v.take(self.diagonal, axis=-1) / self.pivots**2
        return result

    def _regression_matmul(self, v: FloatArray) -> FloatArray:
        """2 for log σ_j, Σ_RR / σ_j² for β_j."""
        weights = v * (self.pattern.rows != self.cols)
        result: FloatArray = self._covariance_times(weights) * (self.pivots**2).take(self.cols, axis=-1)
        result[..., self.diagonal] = 2 * v.take(self.diagonal, axis=-1)
        return result

    def _factor_solve(self, u: FloatArray) -> FloatArray:
        """½ L_Sj L_Sjᵀ u_S + 0 ⊕ Σ_RR⁻¹ u_R."""
        ones = np.ones(self.pattern.n, self.factor.dtype)
        along = linalg.matmul_t(self.pattern, self.factor * u, ones)
        return np.asarray(0.5 * self.factor * along.take(self.cols, axis=-1) + self._parents_solved(u))

    def _regression_solve(self, u: FloatArray) -> FloatArray:
        """½ for log σ_j, σ_j² Σ_RR⁻¹ for β_j."""
        result: FloatArray = self._parents_solved(u) / (self.pivots**2).take(self.cols, axis=-1)
        result[..., self.diagonal] = 0.5 * u.take(self.diagonal, axis=-1)
        return result

    def _covariance_times(self, v: FloatArray) -> FloatArray:
        """Σ_SS v_S for every column."""
        gram, fill, sigma = self.pattern.gram(), self.pattern.filled(), self._selected_inverse()
        if gram is not fill:
            sigma = sigma.take(gram.positions_in(fill), axis=-1)
        sigma[..., gram.diagonal] *= 0.5
        return calculus.gram_vjp(self.pattern, v, sigma)

    def _parents_solved(self, u: FloatArray) -> FloatArray:
        """Σ_RR⁻¹ u_R for every column, zero on the diagonal."""
        pattern, fill, sigma = self.pattern, self.pattern.filled(), self._selected_inverse()
        result = np.zeros((*np.broadcast_shapes(u.shape[:-1], sigma.shape[:-1]), pattern.nnz), u.dtype)
        single = pattern.indptr[:-1][np.diff(pattern.indptr) == 2] + 1  # one parent: a division, without blocks
        result[..., single] = u[..., single] / sigma[..., fill.diagonal[pattern.rows[single]]]
        batch = math.prod(result.shape[:-1])
        for _, positions, pairs in columns_alike(pattern, fill, batch, least=3):
            blocks, given = sigma[..., pairs[:, 1:, 1:]], u[..., positions[:, 1:], None]
            result[..., positions[:, 1:]] = np.linalg.solve(blocks, given)[..., 0]
        return result

    def _selected_inverse(self) -> FloatArray:
        return linalg.selected_inverse(self.pattern, self.factor)

    # ------------------------------------------------------------------ whole matrices

    def _precision(self, x: FloatArray) -> FloatArray:
        return linalg.matmul(self.pattern, self.factor, linalg.matmul_t(self.pattern, self.factor, x))

    def _sigma(self, x: FloatArray) -> FloatArray:
        half = linalg.solve(self.pattern, self.factor, x)
        return linalg.solve_t(self.pattern, self.factor, half, out=half)

    def _times(self, change: FloatArray, x: FloatArray) -> FloatArray:
        """V x for a symmetric V on the pattern."""
        return linalg.symmetric_matmul(self.pattern, change, x)
