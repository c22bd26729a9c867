"""State-space models as Gaussians of all states, by their factor: nothing is multiplied out, nothing factorised.

    x_1 ~ N(m, V),    x_{t+1} = F_t x_t + c_t + w_t,    w_t ~ N(0, Q_t),    y_t = H_t x_t + e_t

With Q_t = C Cᵀ and W_t = C⁻¹ lower triangular, R x is white for the rows W_t (x_{t+1} − F_t x_t) of R. Eliminated
backwards in time Rᵀ is lower triangular, hence L itself, and log det P keeps every digit of a nearly diffuse V: see
docs/math.md, section 7. Observations, with missing ones, are those of `LinearObservation`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.linalg
import scipy.sparse

from sparseggm.errors import NonFiniteError, NonPositiveError, PatternError, ShapeError
from sparseggm.fields.parameters import (
    common_batch,
    constants,
    expanded,
    gaussian_of_factor,
    parameters,
    require_positive,
)
from sparseggm.graph.edges import require_positive as require_sizes
from sparseggm.graph.families import BlockChain
from sparseggm.graph.pattern import FloatArray, IntArray
from sparseggm.linalg import checks
from sparseggm.positivity.namespace import (
    Array,
    array_namespace,
    as_array,
    constant_like,
    known_to_fail,
    take,
    unit_roundoff,
)


class StateSpace:
    """States of `size` = b numbers at `steps` = T times; node t · b + i is number i of state t.

    Args:
        steps: T.
        size: b.
    `topology` is `BlockChain(T, b)` with the nodes in the order of time, eliminated backwards.
    """

    def __init__(self, steps: int, size: int) -> None:
        require_sizes("StateSpace", steps=steps, size=size)
        self.steps, self.size = int(steps), int(size)
        self.topology = BlockChain(steps, size, order=range(steps * size)[::-1])

    def __repr__(self) -> str:
        return f"StateSpace(steps={self.steps}, size={self.size})"

    def prior(self, transition: Any, noise: Any, mean: Any, covariance: Any, drift: Any = 0.0) -> Any:
        """The Gaussian of all states, in NumPy, or in torch if a parameter is a tensor.

        Args:
            transition: F, (..., b, b), or one for each step, (..., T − 1, b, b). So the third axis from the end, where
                there is one, is time: it is T − 1 or 1 long, and batch axes come before it.
            noise: Q, of the same form, symmetric positive definite; or a number, for that multiple of I.
            mean: m of the first state, (..., b), or a number for all of its parts.
            covariance: V of the first state, (..., b, b), or a number as for the noise.
            drift: c, (b,), or one for each step, (..., T − 1, b), where the second axis from the end is time, T − 1 or
                1 long; or a number.
        Raises:
            NonPositiveError: Q or V is singular to working precision. A state without noise of its own has no density:
                see `Autoregression`, and `seasonal`.
            ShapeError: sizes that do not fit.
            PatternError, NonFiniteError: Q or V is not symmetric, or a number is not finite.
        Cost: O(T b³) for roots of the noise, O(T b²) for all else.
        """
        function = "StateSpace.prior"
        transition, noise, mean, covariance, drift = parameters(
            function, transition=transition, noise=noise, mean=mean, covariance=covariance, drift=drift
        )
        first = _whitening(function, "covariance", self._matrix(function, "covariance", covariance))[..., None, :, :]
        later = _whitening(function, "noise", self._by_step(function, "noise", self._matrix(function, "noise", noise)))
        transition = self._by_step(function, "transition", self._matrix(function, "transition", transition))
        for name, x in (("mean", mean), ("drift", drift), ("transition", transition)):
            if known_to_fail(array_namespace(x).isfinite(x)):
                raise NonFiniteError(f"{function}: {name} must be finite, got NaN or infinity.")
        factor = self._factor(function, first, later, transition)
        mean, drift = (self._vector(function, name, x) for name, x in (("mean", mean), ("drift", drift)))
        return self._with_mean(function, factor, first, later, mean[..., None, :], drift)

    def observation(self, matrix: npt.ArrayLike) -> Any:
        """A of y = A z + e, scipy.sparse of shape (T p, T b): row t · p + j is number j of H_t x_t.

        Args:
            matrix: H, (p, b) or (T, p, b); (b,) stands for one number a time.
        """
        (H,) = constants("StateSpace.observation", matrix=matrix)
        H = H[None, :] if H.ndim == 1 else H
        if H.shape[-1:] != (self.size,) or H.ndim > 3 or (H.ndim == 3 and len(H) != self.steps):
            raise ShapeError(
                f"StateSpace.observation: matrix must be (p, {self.size}) or ({self.steps}, p, {self.size}), "
                f"got shape {np.shape(matrix)}."
            )
        checks.require_finite("StateSpace.observation", "matrix", None, H)
        blocks = np.broadcast_to(H, (self.steps, *H.shape[-2:]))
        A = scipy.sparse.csr_array(scipy.sparse.block_diag(list(blocks)))
        A.eliminate_zeros()
        return A

    # ------------------------------------------------------------------ the factor

    def _factor(self, function: str, first: Array, later: Array, transition: Array) -> Array:
        """L = Rᵀ: the roots W on the diagonal blocks, −W F beside them."""
        xp, b = array_namespace(first), self.size
        off = -(later @ transition)
        shapes = {"covariance": first.shape[:-3], "noise": later.shape[:-3], "transition": off.shape[:-3]}
        batch = common_batch(function, **shapes)
        low = np.flatnonzero(np.tri(b).ravel())
        parts = []
        for blocks, count, entries in (
            (first, 1, low),
            (later, self.steps - 1, low),
            (off, self.steps - 1, np.arange(b * b)),
        ):
            flat = expanded(blocks, (*batch, count, b, b)).reshape(*batch, count, b * b)
            parts.append(take(flat, entries).reshape(*batch, count * len(entries)))
        return take(xp.concatenate(parts, -1), np.argsort(self._positions))

    @property
    def _positions(self) -> IntArray:
        """Packed position on the factor pattern of each of: W of the first state, W of the later ones, −W F."""
        T, b = self.steps, self.size
        i, j = np.nonzero(np.tri(b))
        rows, cols = (axis.ravel() for axis in np.mgrid[:b, :b])
        later = b * np.arange(1, T)[:, None]
        equations = np.concatenate([i, (later + i).ravel(), (later + rows).ravel()])
        states = np.concatenate([j, (later + j).ravel(), (later - b + cols).ravel()])
        last = T * b - 1
        return self.topology.factor_pattern.positions_of(last - states, last - equations)

    def _with_mean(self, function: str, factor: Array, first: Array, later: Array, mean: Array, drift: Array) -> Any:
        """R loc is W m for the first state and W c for the later ones: loc = L⁻ᵀ of that."""
        xp, T, b = array_namespace(factor), self.steps, self.size
        drift = self._by_step(function, "drift", drift, axes=1)
        parts = [(first @ mean[..., None])[..., 0], (later @ drift[..., None])[..., 0]]
        batch = common_batch(function, mean=parts[0].shape[:-2], drift=parts[1].shape[:-2])
        parts = [expanded(part, (*batch, count, b)) for part, count in zip(parts, (1, T - 1), strict=True)]
        white = xp.concatenate(parts, -2).reshape(*batch, T * b)
        centred = gaussian_of_factor(factor, constant_like(factor, np.zeros(T * b)), self.topology)
        return centred.moved_to(centred.colorize(white))

    # ------------------------------------------------------------------ shapes

    def _matrix(self, function: str, name: str, value: Array) -> Array:
        """(..., b, b); a number as that multiple of I."""
        if value.ndim == 0:
            with np.errstate(invalid="ignore"):  # of infinity; the factor is tested
                return value * constant_like(value, np.eye(self.size))
        if tuple(value.shape[-2:]) != (self.size, self.size):
            raise ShapeError(
                f"{function}: {name} must be a number or end in ({self.size}, {self.size}), "
                f"got shape {tuple(value.shape)}."
            )
        return value

    def _vector(self, function: str, name: str, value: Array) -> Array:
        """(..., b); a number for all parts."""
        if value.ndim == 0:
            return value * constant_like(value, np.ones(self.size))
        if tuple(value.shape[-1:]) != (self.size,):
            raise ShapeError(
                f"{function}: {name} must be a number or end in {self.size}, got shape {tuple(value.shape)}."
            )
        return value

    def _by_step(self, function: str, name: str, value: Array, axes: int = 2) -> Array:
        """(..., T − 1 or 1, b, b), or with one axis (..., T − 1 or 1, b): an axis of time is added."""
        if value.ndim == axes:
            return value[None]
        if value.shape[-axes - 1] not in (1, self.steps - 1):
            raise ShapeError(
                f"{function}: axis {-axes - 1} of {name} is time, and must be {self.steps - 1} or 1 long, got shape "
                f"{tuple(value.shape)}. Put batch axes before it."
            )
        return value


def _whitening(function: str, name: str, matrix: Array) -> Array:
    """W = C⁻¹, lower triangular with Wᵀ W = M⁻¹, for M = C Cᵀ.

    Raises:
        PatternError: M is not symmetric.
        NonPositiveError: a pivot of M is within its rounding error of zero, or below.
    """
    xp, size = array_namespace(matrix), matrix.shape[-1]
    if known_to_fail(xp.isfinite(matrix)):
        raise NonFiniteError(
            f"{function}: {name} must be finite, got NaN or infinity. A large number is nearly diffuse."
        )
    diagonal = xp.diagonal(matrix, 0, -2, -1)
    scale = xp.sqrt(xp.abs(diagonal))
    rounding = 8 * unit_roundoff(matrix) * scale[..., :, None] * scale[..., None, :]
    if known_to_fail(xp.abs(matrix - xp.swapaxes(matrix, -1, -2)) <= rounding):
        raise PatternError(f"{function}: {name} must be symmetric. (Q + Q.T) / 2 cures what rounding made differ.")
    try:
        root = xp.linalg.cholesky(matrix)
    except xp.linalg.LinAlgError:
        raise _singular(function, name, matrix) from None
    if known_to_fail(xp.diagonal(root, 0, -2, -1) ** 2 > (size + 1) * unit_roundoff(matrix) * diagonal):
        raise _singular(function, name, matrix)
    return xp.linalg.inv(root)


def _singular(function: str, name: str, matrix: Array) -> NonPositiveError:
    found = as_array(matrix)
    least = np.linalg.eigvalsh(found)[..., 0] if np.isfinite(found).all() else np.full(found.shape[:-2], np.nan)
    index = tuple(int(axis) for axis in np.unravel_index(np.argmin(least), least.shape))
    return NonPositiveError(
        f"{function}: {name} must be positive definite, got least eigenvalue {least[index]:.3g}"
        f"{checks.in_batch(index)}. A state without noise of its own has no density: write the model of the series "
        "itself, as Autoregression, or seasonal, whose states all have noise."
    )


# ---------------------------------------------------------------------- models by name


class Component(NamedTuple):
    """One part of a structural model: F, the variances of the steps of its states, and its row of H."""

    transition: FloatArray
    """(b, b)."""
    variances: Array
    """(..., b), positive."""
    observation: FloatArray
    """(b,)."""

    @property
    def size(self) -> int:
        """b."""
        return len(self.transition)

    @property
    def noise(self) -> Array:
        """Q = diag(variances), (b, b); of a batch (..., 1, b, b), whose axis of time is that of `StateSpace.prior`."""
        variances = self.variances if self.variances.ndim == 1 else self.variances[..., None, :]
        return variances[..., None] * constant_like(variances, np.eye(self.size))


def local_level(variance: Any) -> Component:
    """A random walk: level_{t+1} = level_t + w, w ~ N(0, variance)."""
    (variance,) = parameters("local_level", variance=variance)
    require_positive("local_level", variance=variance)
    return Component(np.eye(1), variance[..., None], np.ones(1))


def local_linear_trend(level: Any, slope: Any) -> Component:
    """level_{t+1} = level_t + slope_t + w, slope_{t+1} = slope_t + v, of variances `level` of w and `slope` of v."""
    function = "local_linear_trend"
    level, slope = parameters(function, level=level, slope=slope)
    require_positive(function, level=level, slope=slope)
    shape = common_batch(function, level=level.shape, slope=slope.shape)
    variances = array_namespace(level).stack([expanded(each, shape) for each in (level, slope)], -1)
    return Component(np.array([[1.0, 1.0], [0.0, 1.0]]), variances, np.array([1.0, 0.0]))


def seasonal(period: int, variance: Any) -> Component:
    """A season in its trigonometric form: `period` − 1 states, each with steps of one variance [Harvey 1989, §2.3.4].

    Harmonic k = 1, …, turns two states by 2π k / period a step; of an even period the last has one state, which
    changes its sign. The season is the sum of the first states of the harmonics.
    """
    function = "seasonal"
    require_sizes(function, period=period)
    if period < 2:
        raise PatternError(f"{function}: period must be at least 2, got {period}.")
    (variance,) = parameters(function, variance=variance)
    require_positive(function, variance=variance)
    blocks, row = [], []
    for k in range(1, (period - 1) // 2 + 1):
        c, s = np.cos(2 * np.pi * k / period), np.sin(2 * np.pi * k / period)
        blocks.append([[c, s], [-s, c]])
        row += [1.0, 0.0]
    if period % 2 == 0:
        blocks.append([[-1.0]])
        row.append(1.0)
    ones = constant_like(variance, np.ones(period - 1))
    return Component(scipy.linalg.block_diag(*blocks), variance[..., None] * ones, np.array(row))


def structural(*components: Component) -> Component:
    """The sum of independent components, as a trend and a season: their states side by side."""
    if not components or not all(isinstance(component, Component) for component in components):
        raise TypeError(f"structural: needs components, as local_level(1.0), got {components!r}.")
    names = {f"component {k}": component.variances for k, component in enumerate(components)}
    variances = parameters("structural", **names)
    batch = common_batch("structural", **{name: v.shape[:-1] for name, v in zip(names, variances, strict=True)})
    side_by_side = [expanded(v, (*batch, v.shape[-1])) for v in variances]
    return Component(
        scipy.linalg.block_diag(*(component.transition for component in components)),
        array_namespace(variances[0]).concatenate(side_by_side, -1),
        np.concatenate([component.observation for component in components]),
    )
