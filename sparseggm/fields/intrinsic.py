"""`IntrinsicGaussian`: priors with a singular precision, flat along its null space: random walks, ICAR, diffuse states.

exp(−½ zᵀ P z) says nothing of the directions v with P v = 0, as of the level of a random walk. Observations that
determine them make a proper posterior: docs/math.md, section 14.
"""

from __future__ import annotations

from copy import copy
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.linalg
import scipy.sparse
from scipy.sparse.csgraph import connected_components

from sparseggm import linalg
from sparseggm.errors import DTypeError, ImproperError, NotPositiveDefiniteError, PatternError, ShapeError, in_batch
from sparseggm.gaussian import conditioning
from sparseggm.gaussian.linear import observation_of, rounded
from sparseggm.gaussian.model import GaussianGraphicalModel
from sparseggm.geometry.kinds import require_finite
from sparseggm.graph.pattern import FloatArray, IntArray, Pattern
from sparseggm.graph.topology import Topology, require_topology
from sparseggm.kernels.sparse.density import LOG_2PI
from sparseggm.linalg import checks
from sparseggm.linalg.checks import Shape
from sparseggm.positivity.namespace import constant_like, in_float64, take
from sparseggm.promotion import constant, promoted


class IntrinsicGaussian:
    """Densities ∝ exp(−½ zᵀ P z) with P ⪰ 0 singular on a graph, flat along its null space.

    Args:
        precision: (..., nnz) values of P on `topology.precision_pattern`, see `topology.pack`.
        topology: the graph. Keyword-only, as `null` is.
        null: (n, d) a basis of all v with P v = 0, in the caller's numbering; None: the constants of each part of the
            graph that nothing joins to another, as a Laplacian has. Coefficients of this basis are the diffuse
            quantities of `log_evidence`.
    Raises:
        ShapeError, DTypeError, NonFiniteError: sizes or numbers that do not fit.
        PatternError: P v is not zero to rounding, |P v| ≤ γ_{c+2} |P| |v| with c entries a row; dependent columns.
        NotPositiveDefiniteError: P is not positive definite but for these directions: more of them, or P is indefinite.
    Cost: one factorisation of P without d nodes.
    """

    def __init__(self, precision: npt.ArrayLike, *, topology: Topology, null: npt.ArrayLike | None = None) -> None:
        function = type(self).__name__
        require_topology(function, topology)
        if hasattr(precision, "requires_grad"):
            raise DTypeError(f"{function}: needs arrays, got a tensor. Use sparseggm.torch.fields.{function}.")
        [precision] = promoted(function, precision=precision)
        [basis] = promoted(function, np.dtype(np.float64), null=parts_of(topology) if null is None else null)
        pattern = topology.precision_pattern
        checks.check(function, pattern, packed={"precision": precision})
        checks.require_finite(function, "precision", pattern, precision, topology)
        if basis.ndim != 2 or basis.shape[0] != topology.n or not 0 < basis.shape[1] <= topology.n:
            raise ShapeError(
                f"{function}: null must be ({topology.n}, d), a column for each direction, got shape {basis.shape}."
            )
        checks.require_finite(function, "null", None, basis)
        self.topology, self.precision, self.null = topology, constant(precision), constant(basis)
        self._rounding = float(np.finfo(precision.dtype).eps) / 2  # of P as it was given, in whatever dtype it is used
        self._require_null(function)
        self._kept, self._null_logdet = self._grounded(function)
        self._logdeterminant = self._relative_logdet(function)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.topology}, {self.null.shape[1]} null directions)"

    @property
    def n(self) -> int:
        """Number of nodes."""
        return self.topology.n

    @property
    def graph(self) -> Topology:
        """The graph of P: `topology`."""
        return self.topology

    @property
    def batch_shape(self) -> Shape:
        """Batch axes of P."""
        return self.precision.shape[:-1]

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32 or float64."""
        return self.precision.dtype

    @property
    def loc(self) -> Any:
        """(n,) zero, a mode, as all of the null space is."""
        return np.zeros(self.n, self.dtype)

    def log_prob(self, x: Any) -> Any:
        """½ [log det⁺ P − xᵀ P x − (n − d) log 2π], nats: a density by volume across the null space, flat along it.

        det⁺ is the product of the positive eigenvalues [Rue & Held 2005, §3.2]: so the density integrates to 1 over
        the x that are orthogonal to the null space, and does not change along it. x is (..., n).
        """
        g, (x,) = self._promoted("log_prob", x=x)
        if x.shape[-1:] != (self.n,):
            raise ShapeError(f"log_prob: x must end in {self.n}, got shape {tuple(x.shape)}.")
        require_finite("log_prob", "x", x)
        return rounded("log_prob", g._log_at_mode() - 0.5 * g._square_of(x), x)

    def _log_at_mode(self) -> Any:
        """log p(z) on the null space, where it is largest, in float64."""
        volume = 2.0 * float(np.log(abs(np.diagonal(np.linalg.qr(self.null, mode="r")))).sum())
        return 0.5 * (self._logdet() + volume - (self.n - self.null.shape[1]) * LOG_2PI)

    def observe(self, nodes: Any, values: Any, variance: Any) -> Any:
        """The posterior after what `GaussianGraphicalModel.observe` takes: a proper Gaussian.

        Raises:
            ImproperError: nothing determines some direction of the null space, which the message names.
        """
        return observation_of("observe", self, nodes).updated("observe", self, values, variance)

    def log_evidence(self, nodes: Any, values: Any, variance: Any) -> Any:
        """The exact diffuse log-likelihood of what `observe` takes, nats.

        It is the limit κ → ∞ of log p(y) + ½ d log κ for z = u + V β, β ~ N(0, κ I) the coefficients of `null`: that of
        [Durbin & Koopman 2012, §7.2.2], and of statsmodels, if `null` is the identity on the first state. It serves to
        compare models with the same null space, in the same basis.
        """
        return observation_of("log_evidence", self, nodes).evidence("log_evidence", self, values, variance)

    # ------------------------------------------------------------------ what `LinearObservation` asks of a prior

    def _promoted(self, function: str, **values: Any) -> tuple[IntrinsicGaussian, list[Any]]:
        arrays = promoted(function, self.dtype, **values)
        if arrays[0].dtype == self.dtype:
            return self, arrays
        return self._with_precision(self.precision.astype(arrays[0].dtype)), arrays

    def _with_precision(self, precision: Any) -> IntrinsicGaussian:
        """The same numbers in another dtype."""
        wider = copy(self)
        wider.precision = precision
        return wider

    def _updated(self, function: str, pull: Any, precision: Any, graph: Topology) -> tuple[Any, Any]:
        self._require_proper(function, precision, graph)
        posterior = GaussianGraphicalModel._from_information(function, pull, precision, graph)
        return posterior, posterior.loc

    def _logdet(self) -> Any:
        """log (det⁺ P / det VᵀV) in float64, which no choice of nodes changes: log det P_AA − 2 log |det V_B|."""
        return self._logdeterminant

    def _square_of(self, d: Any) -> Any:
        """dᵀ P d in float64, for the part of d that is orthogonal to the null space: large levels cost no digits."""
        d = in_float64(d)
        basis = constant_like(d, np.linalg.qr(self.null)[0])
        across = take(d - (d @ basis) @ basis.T, self.topology.order)
        return (across * self._precision_matmul(across)).sum(-1)

    def _precision_matmul(self, x: Any) -> Any:
        """P x in float64, nodes in the order of elimination."""
        return linalg.symmetric_matmul(self.topology.precision_pattern, in_float64(self.precision), x)

    # ------------------------------------------------------------------ the null space

    def _products(self, precision: FloatArray, graph: Topology, null: FloatArray) -> tuple[FloatArray, FloatArray]:
        """P V and |P| |V| for a basis V of the null space, (..., d, n), nodes in the order of elimination."""
        rows = np.ascontiguousarray(null.T[:, graph.order])
        pattern = graph.precision_pattern
        values = precision[..., None, :].astype(np.float64)
        return (
            linalg.symmetric_matmul(pattern, values, rows),
            linalg.symmetric_matmul(pattern, abs(values), abs(rows)),
        )

    def _require_null(self, function: str) -> None:
        pattern, topology = self.topology.precision_pattern, self.topology
        image, size = self._products(self.precision, topology, self.null)
        k = pattern.longest_row + pattern.longest_column + 1
        off = abs(image) > k * self._rounding / (1 - k * self._rounding) * size
        if off.any():
            *batch, direction, place = (int(axis) for axis in np.argwhere(off)[0])
            found = image[(*batch, direction, place)]
            raise PatternError(
                f"{function}: P v must be zero for each column v of null, got {found:.3g} at "
                f"{topology.describe(int(topology.order[place]))}, column {direction}{in_batch(tuple(batch))}. "
                "Give null= a basis of the directions with P v = 0."
            )

    def _grounded(self, function: str) -> tuple[IntArray, float]:
        """The nodes A, and 2 log |det V_B|, where B are the d other nodes, of which V is farthest from singular."""
        d = self.null.shape[1]
        _, r, pivots = scipy.linalg.qr(self.null.T, pivoting=True, mode="economic")
        diagonal = abs(np.diagonal(r))
        if diagonal[-1] <= self.n * np.finfo(np.float64).eps * diagonal[0]:
            raise PatternError(f"{function}: the columns of null must be linearly independent, got rank below {d}.")
        return np.setdiff1d(np.arange(self.n), pivots[:d]), 2.0 * float(np.log(diagonal).sum())

    def _relative_logdet(self, function: str) -> Any:
        """log det P_AA − 2 log |det V_B|, in float64."""
        if not self._kept.size:
            return in_float64(0 * self.precision.sum(-1)) - self._null_logdet
        graph, gather = conditioning.induced(self.topology, self._kept)
        values = in_float64(take(self.precision, gather))
        try:
            return self._precision_logdet(graph.precision_pattern, values) - self._null_logdet
        except NotPositiveDefiniteError as failure:
            node = int(self._kept[graph.order[failure.column]])
            raise failure.saying(
                f"{function}: P must be positive definite but for the {self.null.shape[1]} directions of null: pivot "
                f"{failure.pivot:.3g} at {self.topology.describe(node)}{in_batch(failure.batch_index)}. Give null= all "
                "directions with P v = 0."
            ) from None

    def _precision_logdet(self, pattern: Pattern, values: Any) -> Any:
        return linalg.precision_logdet(pattern, values)

    def _require_proper(self, function: str, precision: FloatArray, graph: Topology) -> None:
        """Raise unless vᵀ (P + Aᵀ W A) v > 0 beyond rounding for all v of the null space."""
        null = self.null / abs(self.null).max(axis=0)  # its products neither overflow nor underflow
        image, size = self._products(precision, graph, null)
        rows = null.T[:, graph.order]
        information, rounding = (np.asarray(part @ other.T) for part, other in ((image, rows), (size, abs(rows))))
        scale = np.sqrt(np.diagonal(rounding, axis1=-2, axis2=-1))
        scale = np.where(scale > 0, scale, 1.0)
        level = 4 * (self.n + 2) * len(rows) * self._rounding
        eigenvalues, vectors = np.linalg.eigh(information / scale[..., :, None] / scale[..., None, :])
        bad = eigenvalues[..., 0] <= level
        if bad.any():
            batch = tuple(int(axis) for axis in np.argwhere(bad)[0])
            direction = null @ (vectors[batch][:, 0] / scale[batch])
            raise ImproperError(
                f"{function}: nothing determines {self._in_words(direction)}{in_batch(batch)}. Observe a node there, "
                "or use a proper prior."
            )

    def _in_words(self, direction: FloatArray) -> str:
        """The direction by its largest components."""
        largest = direction[np.argmax(abs(direction))]
        nodes = np.flatnonzero(abs(direction) > 1e-6 * abs(largest))
        named = ", ".join(f"{direction[node] / largest:.3g} at node {node}" for node in nodes[:4])
        return f"the direction {named}{', …' if len(nodes) > 4 else ''}"


def parts_of(topology: Topology) -> FloatArray:
    """(n, d) for each part of a graph that nothing joins to another, a column of ones at its nodes and zeros else."""
    i, j = topology.edges.T
    adjacency = scipy.sparse.coo_array((np.ones(len(i), np.int8), (i, j)), (topology.n, topology.n))
    count, label = connected_components(adjacency, directed=False)
    return np.asarray(label[:, None] == np.arange(count), np.float64)
