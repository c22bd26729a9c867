"""`LinearObservation`: observations y = A z + e of a Gaussian z: posterior, evidence and prediction, A sparse.

With P the precision of z and W that of the noise, the posterior has the precision P + Aᵀ W A on the union of the graph
of P and that of Aᵀ W A: docs/math.md, section 14. One implementation serves arrays and tensors, and so Gaussians of
`sparseggm` and of `sparseggm.torch`: it asks of them only what both have. The module is longer than others: it is one
class, whose three answers share their checks.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.sparse

from sparseggm.errors import NonFiniteError, NonPositiveError, PatternError, ShapeError, in_batch
from sparseggm.gaussian.conditioning import distinct_nodes
from sparseggm.gaussian.designs import Products, rows_of_identity
from sparseggm.gaussian.grams import Gram
from sparseggm.gaussian.potentials import gathered
from sparseggm.graph.derived import derived
from sparseggm.graph.joint import joint_graph
from sparseggm.graph.pattern import as_pairs
from sparseggm.kernels.sparse.density import LOG_2PI
from sparseggm.linalg import checks
from sparseggm.positivity.namespace import (
    Array,
    array_namespace,
    constant_like,
    in_dtype_of,
    in_float64,
    known_to_fail,
    mask,
    segment_sum,
    take,
    total,
)
from sparseggm.promotion import as_numbers

Gaussian = Any  # a GaussianGraphicalModel, of arrays or of tensors


class Prediction(NamedTuple):
    """Means and variances of A z, without noise."""

    mean: Array
    """(..., k)"""
    variance: Array
    """(..., k)"""


class _Given(NamedTuple):
    """What was observed, in one dtype, and what the noise makes of it."""

    prior: Gaussian
    entries: Array
    residual: Array
    """(..., k) y − A loc − E e, zero where y is missing."""
    weights: Array
    """(..., nnz) the precision of the noise; zero for a missing observation."""
    logdet: Array
    """(...) log det of that precision, of what is there, in float64."""
    count: Array
    """(...) how many are there."""


class LinearObservation(Gram):
    """Observations y = A z + e of a Gaussian z on a graph: A is a sparse (k, n) matrix, e Gaussian noise.

    It analyses A once: the graph of the posterior, and where each product of entries belongs. All numbers, those of A
    too, are arguments of the methods; arrays and tensors alike, and batch axes broadcast.

    Args:
        topology: the graph of z.
        matrix: A, of scipy.sparse or a dense array; columns are nodes in the caller's numbering. Stored zeros of a
            sparse A belong to its pattern.
        noise: None, independent noise; or a graph of the k observations, on which the noise has a sparse precision.
        force: accept more than 10⁷ products of entries of rows with more than 100.
    Raises:
        ShapeError, DTypeError, NonFiniteError: a matrix that does not fit the graph, or is not of finite real numbers.
        PatternError: rows of more than 100 entries with more than 10⁷ products in all, and no `force`.
    Cost: Σ_r c_r² products for rows of c_r entries; and the order of the union of graphs, unless the graph of z joins
        the nodes of every row already.
    """

    # ------------------------------------------------------------------ posterior and evidence

    def posterior(
        self,
        prior: Gaussian,
        values: Any,
        variance: Any,
        *,
        missing: Any | None = None,
        entries: Any | None = None,
    ) -> Gaussian:
        """The Gaussian of z given y: P + Aᵀ W A on `topology`, mean loc + (P + Aᵀ W A)⁻¹ Aᵀ W (y − A loc).

        Args:
            prior: of z, on `prior_topology` or a graph with no other edges than those of `topology`.
            values: y, broadcast to (..., k).
            variance: of independent noise, positive, broadcast to (..., k); of correlated noise the Gaussian of e, on
                `noise`. An infinite variance marks a missing observation, whose value may be NaN.
            missing: (..., k) booleans, another way to say so: value and variance there may be anything. Of independent
                noise: beside correlated noise, leave out their rows and take `marginal` of the noise of the others.
            entries: (..., nnz) values of A in place of its own.
        Raises:
            NonPositiveError: a variance is not positive, or its inverse is beyond the dtype.
            NonFiniteError: a value is not finite, and not missing.
            ValueError: `missing` beside correlated noise.
            PatternError: the prior joins nodes that `topology` does not.
            NotPositiveDefiniteError: P + Aᵀ W A is not positive definite to working precision.
        Cost: `gram`, and one factorisation.
        """
        return self.updated("LinearObservation.posterior", prior, values, variance, missing, entries)

    def log_evidence(
        self,
        prior: Gaussian,
        values: Any,
        variance: Any,
        *,
        missing: Any | None = None,
        entries: Any | None = None,
    ) -> Array:
        """log N(y; A loc, A Σ Aᵀ + W⁻¹), nats, of the observations that are there; exact. Arguments as `posterior`.

            ½ [log det W + log det P − log det (P + Aᵀ W A) − rᵀ W r − mᵀ P m − k log 2π] ,

        with m the move of the mean and r = y − A (loc + m). Nothing is subtracted in the quadratic form, and since m
        makes it least, an error of m enters squared.

        Cost: `posterior`, and log det P.
        Error: half of the sum of those of the three log determinants and of the two squares, each summed in float64:
            docs/errors-and-bounds.md. Where the prior is nearly diffuse, log det P keeps more digits in an order that
            begins with what is determined best: docs/limits.md.
        """
        return self.evidence("LinearObservation.log_evidence", prior, values, variance, missing, entries)

    def updated(
        self, function: str, prior: Gaussian, values: Any, variance: Any, missing: Any = None, entries: Any = None
    ) -> Gaussian:
        """`posterior` for a function, which its errors name."""
        return self._update(function, self._given(function, prior, values, variance, missing, entries))[0]

    def evidence(
        self, function: str, prior: Gaussian, values: Any, variance: Any, missing: Any = None, entries: Any = None
    ) -> Array:
        """`log_evidence` for a function, which its errors name."""
        given = self._given(function, prior, values, variance, missing, entries)
        prior = given.prior
        posterior, move = self._update(function, given)
        misfit = given.residual - self._design.matmul(given.entries, move)
        square = total(misfit * self._noise_matmul(given.weights, misfit)) + prior._square_of(move)
        logdets = given.logdet + prior._logdet() - posterior._logdet()
        return rounded(function, 0.5 * (logdets - square - given.count * LOG_2PI), prior.loc)

    def _update(self, function: str, given: _Given) -> tuple[Gaussian, Array]:
        """The posterior, and how far its mean has moved."""
        prior = given.prior
        pull = self._design.matmul_t(given.entries, self._noise_matmul(given.weights, given.residual))
        precision = self._sum(prior.graph, prior.precision, self._gram(given.weights, given.entries))
        return prior._updated(function, pull, precision, self.topology)  # type: ignore[no-any-return]

    # ------------------------------------------------------------------ prediction

    def predictive(self, g: Gaussian, *, entries: Any | None = None) -> Prediction:
        """Mean A loc and variances a_rᵀ Σ a_r of A z for a Gaussian z, prior or posterior; add those of the noise.

        Cost: one selected inverse, on the pattern of L with the nodes of each row joined: those of a posterior are.
        Error: that of the selected inverse, and γ_{c²+2} |a_r|ᵀ |Σ| |a_r| for a row of c entries: a difference of
            nearly equal nodes has no more digits than that.
        """
        function = "LinearObservation.predictive"
        g, a = self._entries_beside(function, g, entries)
        with np.errstate(over="ignore", invalid="ignore"):  # tested below
            parts = self._design.matmul(a, g.loc), self._covariance(g, a, self._row_products)
        return Prediction(*(representable(function, part) for part in parts))

    def predictive_covariance(
        self, g: Gaussian, pairs: npt.ArrayLike, *, entries: Any | None = None, force: bool = False
    ) -> Array:
        """a_rᵀ Σ a_s of A z for each of the (m, 2) pairs of observations, batch_shape + (m,); r = s is allowed.

        Cost: one selected inverse on the pattern of L with the nodes of both rows joined: dear for distant ones.
        """
        function = "LinearObservation.predictive_covariance"
        chosen = as_pairs(function, pairs)
        if chosen.size and (chosen.min() < 0 or chosen.max() >= self.shape[0]):
            raise PatternError(
                f"{function}: pairs must be of observations 0 … {self.shape[0] - 1}, got {chosen.min()} … "
                f"{chosen.max()}."
            )
        g, a = self._entries_beside(function, g, entries)
        products = self._design.products(function, chosen, force)
        with np.errstate(over="ignore", invalid="ignore"):  # tested below
            covariance = self._covariance(g, a, products, len(chosen))
        return representable(function, covariance)

    @derived
    def _row_products(self) -> Products:
        if self.noise is None:
            return self._products
        own = np.arange(self.shape[0])
        return self._design.products("LinearObservation.predictive", np.stack([own, own], axis=-1), force=True)

    def _covariance(self, g: Gaussian, a: Array, products: Products, size: int | None = None) -> Array:
        sigma = take(g.covariance_on(products.nodes), products.pair)
        terms = constant_like(a, products.times) * take(a, products.first) * take(a, products.second) * sigma
        return segment_sum(terms, products.of, self.shape[0] if size is None else size)

    # ------------------------------------------------------------------ arguments

    def _given(
        self, function: str, prior: Gaussian, values: Any, variance: Any, missing: Any | None, entries: Any | None
    ) -> _Given:
        self._require_gaussian(function, "prior", prior, self.shape[1])
        given = {"values": values, "entries": self.entries if entries is None else entries}
        if self.noise is None:
            prior, (y, a, v) = prior._promoted(function, **given, variance=variance)
            v = self._for_each(function, "variance", v)
            beside = {"variance": v}
        else:
            self._require_gaussian(function, "variance", variance, self.shape[0])
            prior, (y, a, noise_loc) = prior._promoted(function, **given, noise=variance.loc)
            variance, _ = variance._promoted(function, noise=noise_loc)  # in a wider dtype it is that of its L
            beside = {"noise": noise_loc}
        self._require_entries(function, a)
        y = self._for_each(function, "values", y)
        _require_common_batch(function, prior, values=y, entries=a, **beside)
        if self.noise is None:
            y, weights, logdet, count = _independent(function, y, v, missing)
            _require_common_batch(function, prior, observations=y, entries=a)
        else:
            if missing is not None:
                raise ValueError(
                    f"{function}: beside correlated noise missing= is not known. Leave out the rows of the matrix, and "
                    "give noise.marginal of the others."
                )
            y, count = y - noise_loc, self.shape[0]
            weights = self._noise_precision(function, variance, y)
            logdet = variance._logdet()
        remedy = "Give it an infinite variance, or missing=, where there is none."
        if self.noise is not None:
            remedy = "Where there is none, leave out the row of the matrix, and give noise.marginal of the others."
        _require_finite(function, "values", y, remedy)
        return _Given(prior, a, y - self._design.matmul(a, prior.loc), weights, logdet, count)

    def _noise_precision(self, function: str, noise: Gaussian, like: Array) -> Array:
        graph, _, gather = joint_graph(self._noise, noise.graph)
        if graph is not self._noise:
            raise PatternError(f"{function}: variance must be a Gaussian on {self._noise}, got one on {noise.graph}.")
        return in_dtype_of(gathered(noise.precision, gather), like)

    def _entries_beside(self, function: str, g: Gaussian, entries: Any | None) -> tuple[Gaussian, Array]:
        self._require_gaussian(function, "g", g, self.shape[1])
        g, (a,) = g._promoted(function, entries=self.entries if entries is None else entries)
        self._require_entries(function, a)
        _require_common_batch(function, g, entries=a)
        return g, a

    def _require_gaussian(self, function: str, name: str, g: Any, n: int) -> None:
        if not (name == "prior" and hasattr(g, "_updated")):
            checks.require_gaussian(function, name, g)
        if g.topology.n != n:
            raise ShapeError(f"{function}: {name} must be a Gaussian of {n} nodes, got {g}.")

    def _for_each(self, function: str, name: str, x: Array) -> Array:
        """(..., k)."""
        k = self.shape[0]
        if tuple(x.shape[-1:]) not in ((), (1,), (k,)):
            raise ShapeError(
                f"{function}: {name} must broadcast to (..., {k}), one for each row of the matrix, got shape "
                f"{tuple(x.shape)}."
            )
        return array_namespace(x).broadcast_to(x, (*x.shape[:-1], k))


def observation_of(function: str, g: Gaussian, observed: Any) -> LinearObservation:
    """The observations that a short form means: a `LinearObservation`, a matrix of scipy.sparse, or nodes of g."""
    if isinstance(observed, LinearObservation):
        return observed
    if is_linear(observed):
        return LinearObservation(g.graph, observed)
    nodes = distinct_nodes(function, g.topology, observed)
    if not nodes.size:
        raise ShapeError(
            f"{function}: needs a node or more, got none. An infinite variance marks a missing observation."
        )
    return LinearObservation(g.graph, rows_of_identity(nodes, g.topology.n))


def is_linear(observed: Any) -> bool:
    """Whether that is no list of nodes."""
    return isinstance(observed, LinearObservation) or scipy.sparse.issparse(observed)


def _require_common_batch(function: str, g: Gaussian, **arrays: Array) -> None:
    shapes = {name: tuple(array.shape[:-1]) for name, array in arrays.items()}
    checks.broadcast(function, **shapes, gaussian=tuple(g.batch_shape))


def _independent(function: str, y: Array, variance: Array, missing: Any | None) -> tuple[Array, Array, Array, Array]:
    """Values, weights 1/variance, the sum of their logarithms, and their number: of what is there."""
    xp = array_namespace(y)
    if missing is not None:
        absent = missing if hasattr(missing, "index_select") else mask(y, as_numbers(function, "missing", missing)[0])
        if str(absent.dtype) not in ("bool", "torch.bool") or tuple(absent.shape[-1:]) != tuple(y.shape[-1:]):
            raise ShapeError(
                f"{function}: missing must be booleans that end in {y.shape[-1]}, got {absent.dtype} of shape "
                f"{tuple(absent.shape)}."
            )
        shapes = {"values": y.shape[:-1], "variance": variance.shape[:-1], "missing": absent.shape[:-1]}
        checks.broadcast(function, **{name: tuple(shape) for name, shape in shapes.items()})
        y, variance = xp.where(absent, 0.0, y), xp.where(absent, math.inf, variance)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        weights = 1.0 / variance
    fits = (variance > 0) & xp.isfinite(weights)
    if known_to_fail(fits):
        found = variance[~fits].ravel()[0]
        raise NonPositiveError(
            f"{function}: variance must be positive, and 1/variance in the range of {variance.dtype}, got "
            f"{float(found)}. Use fields.constrain for exact values."
        )
    absent = weights == 0
    y = xp.where(absent & xp.isnan(y), 0.0, y)
    logs = xp.log(in_float64(xp.where(absent, 1.0, weights)))
    return y, weights, logs.sum(-1), in_float64(~absent).sum(-1)


def _require_finite(function: str, name: str, values: Array, remedy: str) -> None:
    fits = array_namespace(values).isfinite(values)
    if known_to_fail(fits):
        *batch, k = (int(axis[0]) for axis in np.nonzero(~np.asarray(fits)))
        raise NonFiniteError(
            f"{function}: {name} must be finite, got {float(values[(*batch, k)])} at observation {k}"
            f"{in_batch(tuple(batch))}. {remedy}"
        )


def rounded(function: str, value: Array, like: Array) -> Array:
    """A float64 number in the dtype of a Gaussian."""
    return representable(function, in_dtype_of(value, like))


def representable(function: str, result: Array, given: str = "arguments", made: str = "result") -> Array:
    """The result of what was given, which is finite. Raises where it is known to be beyond its dtype."""
    if known_to_fail(array_namespace(result).isfinite(result)):
        raise checks.overflow(function, result.dtype, given, made)
    return result
