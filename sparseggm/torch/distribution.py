"""`GaussianGraphicalModel` as a `torch.distributions.Distribution`.

The NumPy class for tensors: the same names and meanings, differentiable with respect to loc and the factor, or the
precision. Samples and means are in the caller's numbering of nodes; packed values in the topology's order of
elimination. Values may be tensors, arrays, lists or numbers of any real dtype: `border` says what is made of them. What
it is made of is in `factored`, its divergences in `divergences`.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, Self, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sparseggm.errors import PatternError, ShapeError
from sparseggm.gaussian import conditioning
from sparseggm.gaussian.covariance import covariance_positions, require_normal_variances
from sparseggm.gaussian.linear import observation_of
from sparseggm.graph.exchange import DENSE_LIMIT
from sparseggm.graph.pattern import IntArray, as_pairs
from sparseggm.graph.topology import Topology, require_topology
from sparseggm.kernels.sparse.density import LOG_2PI
from sparseggm.torch import ops
from sparseggm.torch.border import as_tensors, common_batch, rounded, tells
from sparseggm.torch.estimation import EstimatedDistribution
from sparseggm.torch.factored import factorised
from sparseggm.torch.operators import density, distances, joint, samples
from sparseggm.torch.operators.numbering import reordered
from sparseggm.torch.operators.registration import array, have_values, index, inside_functorch
from sparseggm.torch.operators.tracing import untraced

_covariance_positions, _observation_of = untraced(covariance_positions), untraced(observation_of)
_distinct_nodes, _induced = untraced(conditioning.distinct_nodes), untraced(conditioning.induced)
_schur_complement = untraced(conditioning.schur_complement)


class GaussianGraphicalModel(EstimatedDistribution):
    """N(loc, P⁻¹) with P = L Lᵀ sparse, given by the factor L; or by P, see `from_precision`.

    Args:
        loc: (..., n) mean, in the caller's numbering.
        factor: (..., nnz) values of L on `topology.factor_pattern`, diagonal positive.
        topology: the graph. Keyword-only, as `factor` is: bare values of P and of L can have equal lengths.
        validate_args: as in torch; O(nnz), never a factorisation. None under torch.compile and `torch.func`.
    Raises:
        ShapeError, DTypeError, ValueError: sizes, dtypes or devices that do not fit.
        NonFiniteError, NonPositiveError: a value of loc or factor, by batch index and node; with `validate_args`.
    The factor is kept unbroadcast: many samples, or `expand`, copy no factor. Sums are formed in float64.
    """

    def __init__(self, loc: Any, *, factor: Any, topology: Topology, validate_args: bool | None = None) -> None:
        name = type(self).__name__
        require_topology(name, topology)
        loc, factor = as_tensors(name, loc=loc, factor=factor)
        self.is_on_topology = topology.is_factor_free
        self._set(name, loc, factor, topology, topology.factor_pattern, validate_args)

    # ------------------------------------------------------------------ torch's protocol

    @tells()
    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008  torch's own signature
        """`rsample` without gradients."""
        with torch.no_grad():
            return self.rsample(sample_shape)

    @tells()
    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008  torch's own signature
        """loc + L⁻ᵀ ε, differentiable: sample_shape + batch_shape + (n,), with ε as `torch.randn` of that shape gives.

        Memory: the sample's own; so has its gradient, which is formed in blocks.
        """
        shape = self._extended_shape(sample_shape)
        if inside_functorch():  # how vmap's elements share a sample is for torch.randn to know
            return self.loc + self.colorize(torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device))
        z, pending = joint.sample(self.factor_pattern, self.loc, self._factor, self._order, shape[:-1])
        if pending is not None:
            self._pending = pending
        return z

    @tells("noise")
    def rsample_and_log_prob(
        self,
        sample_shape: Any = torch.Size(),  # noqa: B008  torch's own signature
        noise: Any = None,
    ) -> tuple[Tensor, Tensor]:
        """z = loc + L⁻ᵀ ε and log q(z) = ½ [log det P − ‖ε‖² − n log 2π], nats: no second pass over L.

        What importance weights need. The gradient of log q(z) is the whole one, along z(θ) too: only log det P varies.

        Args:
            sample_shape: of independent samples of the whole batch.
            noise: ε, (..., n) with the batch axes last; None: as torch.randn gives, sample_shape + batch_shape + (n,).
        """
        if noise is None:
            noise = torch.randn(self._extended_shape(sample_shape), dtype=self.loc.dtype, device=self.loc.device)
        elif tuple(sample_shape):
            raise ShapeError("rsample_and_log_prob: give sample_shape or noise, whose leading axes are the samples.")
        own, eps = self._beside("rsample_and_log_prob", noise=noise)
        at_mean = 0.5 * (own._logdet() - self.topology.n * LOG_2PI)
        z, log_prob = samples.sample_and_log_prob(self.factor_pattern, own.loc, own._factor, self._order, at_mean, eps)
        return z, rounded(log_prob, z.dtype)

    def _log_prob_of_noise(self, noise: Tensor) -> Tensor:
        """log q(loc + L⁻ᵀ ε), in float64."""
        return 0.5 * (self._logdet() - distances.square_norm(noise) - self.topology.n * LOG_2PI)

    @tells("value")
    def log_prob(self, value: Any) -> Tensor:
        """½ [log det P − ‖Lᵀ(x − loc)‖² − n log 2π], nats; batch axes of x (..., n) broadcast.

        Raises:
            NonFiniteError: a value is NaN or infinite, tested as it is loaded, whatever `validate_args`; or the result
                is beyond the dtype, unless values cannot be read (torch.compile, `torch.func`): it is −∞ then.
        """
        own, x = self._beside("log_prob", value=value)
        return density.log_prob(self.factor_pattern, own.loc, own._factor, self._order, x)

    @tells()
    def entropy(self) -> Tensor:
        """½ [n (1 + log 2π) − log det P], nats, shape batch_shape."""
        entropy = density.entropy(self.factor_pattern, self._factor)
        return entropy if entropy.shape == self.batch_shape else entropy.expand(self.batch_shape)

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def mode(self) -> Tensor:
        return self.loc

    @property
    @tells()
    def variance(self) -> Tensor:
        """diag Σ, (batch_shape, n), exact; computed at each access."""
        return self._variances().expand(*self.batch_shape, -1)

    # ------------------------------------------------------------------ second moments

    @tells()
    def trace_covariance(self) -> Tensor:
        """tr Σ, shape batch_shape, exact."""
        trace = self._variances().sum(-1, dtype=torch.float64)
        return rounded(trace, self.loc.dtype).expand(self.batch_shape)

    @tells()
    def covariance_on(self, edges: npt.ArrayLike) -> Tensor:
        """Σ_ij for each of the (m, 2) pairs, batch_shape + (m,); exact. Pairs need not be edges, and i = j is allowed.

        Cost: one selected inverse on (S ∪ pairs).filled(): cheap on the graph, dearer with distant pairs.
        """
        return self._covariance_at(edges)[1].expand(*self.batch_shape, -1)

    @tells()
    def correlation_on(self, edges: npt.ArrayLike) -> Tensor:
        """Σ_ij / √(Σ_ii Σ_jj) for each of the (m, 2) pairs, batch_shape + (m,); cost as `covariance_on`.

        At most 1 in absolute value, and 1 for i = j, whatever the rounding; the gradient is that of the quotient.
        """
        pairs = as_pairs("correlation_on", edges)
        variances, covariances = self._covariance_at(pairs, "correlation_on")
        if have_values(variances):
            require_normal_variances("correlation_on", array(variances))
        deviation = variances.sqrt()  # roots first: a product of variances could leave the range
        first, second = (deviation.index_select(-1, index(ends, deviation)) for ends in pairs.T)
        correlation = covariances / first / second
        same = torch.as_tensor(pairs[:, 0] == pairs[:, 1], device=correlation.device)
        within = correlation.detach().clamp(-1.0, 1.0).masked_fill(same, 1.0)
        return (correlation + (within - correlation.detach())).expand(*self.batch_shape, -1)

    @property
    @tells()
    def precision_matrix(self) -> Tensor:
        """P, dense and symmetric, (batch_shape, n, n), in the caller's numbering. Above 20,000 nodes it is refused."""
        n, graph = self._require_small("precision_matrix", "precision"), self.graph
        on = graph.precision_pattern
        i, j = graph.order[on.rows], graph.order[on.cols]
        off_diagonal = np.flatnonzero(i != j)
        places = index(np.concatenate([i * n + j, (j * n + i)[off_diagonal]]), self.loc)
        values = self.precision.index_select(-1, index(np.concatenate([np.arange(on.nnz), off_diagonal]), self.loc))
        dense = values.new_zeros((*values.shape[:-1], n * n)).index_copy(-1, places, values)
        return dense.reshape(*values.shape[:-1], n, n).expand(*self.batch_shape, n, n)

    @property
    @tells()
    def covariance_matrix(self) -> Tensor:
        """Σ, dense, (batch_shape, n, n), in the caller's numbering. Above 20,000 nodes it is refused.

        Cost: n solves with L and a dense product, O(n³); `covariance_on` has single entries.
        """
        n = self._require_small("covariance_matrix", "covariance_on")
        root = self._colorize_rows(torch.eye(n, dtype=self.loc.dtype, device=self.loc.device))
        with nullcontext() if root.is_meta else torch.autocast(root.device.type, enabled=False):
            return rounded(root.mT @ root, root.dtype).expand(*self.batch_shape, n, n)

    def _covariance_at(self, pairs: npt.ArrayLike, function: str = "covariance_on") -> tuple[Tensor, Tensor]:
        """Σ_ii of every node, and Σ_ij of every pair, on the batch axes of the factor."""
        fill, nodes, pairs = _covariance_positions(self.topology, self.factor_pattern, pairs, function)
        sigma = ops.selected_inverse(self.factor_pattern, self._factor, on=fill)
        return tuple(sigma.index_select(-1, index(places, sigma)) for places in (nodes, pairs))  # type: ignore[return-value]

    def _require_small(self, name: str, instead: str) -> int:
        n = self.topology.n
        if n > DENSE_LIMIT:
            gigabytes = self.loc.itemsize * n**2 / 1e9
            raise ShapeError(f"{name}: {n} nodes would take {gigabytes:.1f} GB a matrix. Use {instead}.")
        return n

    @tells("x")
    def covariance_matmul(self, x: Any) -> Tensor:
        """Σ x for vectors x (..., n): P⁻¹ x, by two solves with L."""
        own, vectors = self._beside("covariance_matmul", x=x)
        return own.colorize(own._in_elimination_order(ops.solve, vectors))

    # ------------------------------------------------------------------ inference

    @tells("values")
    def condition(self, nodes: npt.ArrayLike, values: Any) -> Self:
        """The Gaussian of the other nodes, ascending, given z[nodes] = values: on `Graph(n − k, induced edges)`.

        Args:
            nodes: k distinct nodes, fewer than n.
            values: (..., k) in the order of `nodes`; batch axes broadcast.
        Cost: one factorisation of the induced graph, whatever the number of values.
        """
        observed = _distinct_nodes("condition", self.topology, nodes)
        kept = np.setdiff1d(np.arange(self.topology.n), observed)
        if not kept.size:
            raise PatternError(
                f"condition: all {self.topology.n} nodes are given, so nothing is left. Leave at least one."
            )
        loc, given = as_tensors("condition", loc=self.loc, values=values)
        own, remaining = self._in_dtype(loc.dtype), index(kept, loc)
        shift = own._shift_at("condition", observed, given)
        pull = own._in_elimination_order(ops.matmul, own.whiten(shift)).index_select(-1, remaining)
        graph, gather = _induced(self.graph, kept)
        precision = own.precision.index_select(-1, index(gather, loc))
        centred = type(self).from_information(-pull, precision=precision, topology=graph, validate_args=False)
        made = centred.moved_to(own.loc.index_select(-1, remaining) + centred.loc)._numbered(self.nodes[kept])
        made._validate_args = self._validate_args
        return made

    @tells()
    def observe(self, nodes: Any, values: Any, variance: Any) -> Self:
        """The posterior of all nodes after y = z[nodes] + N(0, variance), or y = A z + N(0, variance). Differentiable.

        Args:
            nodes: k distinct nodes, or a mask (n,) of them; or A, (k, n) of scipy.sparse or a `LinearObservation`,
                which should be made once if more observations follow.
            values, variance: broadcast to (..., k); variances are positive. An infinite variance marks a missing
                observation, whose value may be NaN.
        Cost: one factorisation, on the same graph for nodes, on a union of graphs for A.
        """
        return cast(Self, _observation_of("observe", self, nodes).updated("observe", self, values, variance))

    @tells()
    def log_evidence(self, nodes: Any, values: Any, variance: Any) -> Tensor:
        """log p(y) of what `observe` takes, nats: exact, see `fields.LinearObservation.log_evidence`."""
        return cast(
            Tensor, _observation_of("log_evidence", self, nodes).evidence("log_evidence", self, values, variance)
        )

    @tells()
    def log_normaliser(self) -> Tensor:
        """log ∫ exp(hᵀ z − ½ zᵀ P z) dz = ½ [n log 2π − log det P + hᵀ P⁻¹ h], nats, with h = P loc."""
        total = 0.5 * (self.topology.n * LOG_2PI - self._logdet() + self._square_of(self.loc))
        return rounded(total, self.loc.dtype)

    @tells()
    def marginal(self, nodes: npt.ArrayLike, force: bool = False) -> Self:
        """The Gaussian of some nodes alone, numbered as in `nodes`, on their graph with its Schur fill.

        Raises:
            PatternError: no nodes, or a fill of more than 10⁷ entries a batch element, unless `force`.
            NotPositiveDefiniteError: P = L Lᵀ is not positive definite to working precision.
        Cost: one factorisation in which the other nodes go first.
        """
        chosen = _distinct_nodes("marginal", self.topology, nodes)
        schur = _schur_complement(self.graph, chosen, force)
        precision = self.precision.index_select(-1, index(schur.gather, self.loc))
        factor = schur.factor_of(factorised(schur.pattern, precision, schur.named_by_node))
        loc = self.loc.index_select(-1, index(chosen, self.loc))
        made = type(self)(loc, factor=factor, topology=schur.graph, validate_args=self._validate_args)
        return made._numbered(self.nodes[chosen])

    def _shift_at(self, function: str, nodes: IntArray, values: Tensor) -> Tensor:
        """values − loc at the nodes, zero elsewhere: (..., n)."""
        if values.shape[-1:] != nodes.shape:
            raise ShapeError(
                f"{function}: values must end in {len(nodes)}, the nodes, got shape {tuple(values.shape)}."
            )
        places = index(nodes, self.loc)
        mean = self.loc.index_select(-1, places)
        common_batch(function, loc=mean, values=values)
        shift = values - mean
        return shift.new_zeros((*shift.shape[:-1], self.topology.n)).index_copy(-1, places, shift)

    # ------------------------------------------------------------------ what the divergences need

    def _square_of(self, d: Tensor) -> Tensor:
        """dᵀ P d in float64."""
        return self._in_elimination_order(ops.matmul_t, d).double().square().sum(-1)

    def _logdet(self) -> Tensor:
        """log det P in float64, on the batch axes of the factor."""
        return ops.logdet(self.factor_pattern, self._factor, in_float64=True)

    def _variances(self) -> Tensor:
        """diag Σ in the caller's numbering, on the batch axes of the factor."""
        return self._to_caller(ops.marginal_variances(self.factor_pattern, self._factor))

    def _square_distance(self, x: Tensor) -> Tensor:
        """(x − loc)ᵀ P (x − loc) in float64."""
        if inside_functorch():
            return self.whiten(x - self.loc).double().square().sum(-1)
        return distances.square_distance(self.factor_pattern, self.loc, self._factor, self._order, x)

    def _whiten_rows(self, d: Tensor) -> Tensor:
        """Lᵀ d for each row of d (..., k, n), nodes of the result in the order of elimination."""
        return ops.matmul_t(self.factor_pattern, self._factor.unsqueeze(-2), reordered(d, self._order))

    def _colorize_rows(self, eps: Tensor) -> Tensor:
        """L⁻ᵀ ε for each row of ε (..., k, n), nodes of ε in the order of elimination."""
        return self._to_caller(ops.solve_t(self.factor_pattern, self._factor.unsqueeze(-2), eps))
