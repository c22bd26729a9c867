"""`GaussianGraphicalModel` as a `torch.distributions.Distribution`.

The NumPy class for tensors: the same names and meanings, differentiable with respect to loc and the factor, or the
precision. Samples and means are in the caller's numbering of nodes; packed values in the topology's order of
elimination. What it is made of is in `factored`, its divergences in `divergences`.
"""

from __future__ import annotations

import math
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sparseggm import checks, conditioning
from sparseggm.errors import PatternError, ShapeError
from sparseggm.factored import covariance_positions
from sparseggm.pattern import DENSE_LIMIT, IntArray, as_pairs
from sparseggm.torch import ops, samples
from sparseggm.torch.factored import FactoredDistribution, factorised
from sparseggm.torch.registration import are_readable, are_transformed, array, index

LOG_2PI = math.log(2.0 * math.pi)


class GaussianGraphicalModel(FactoredDistribution):
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

    # ------------------------------------------------------------------ torch's protocol

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008  torch's own signature
        """loc + L⁻ᵀ ε, differentiable: sample_shape + batch_shape + (n,), with ε as `torch.randn` of that shape gives.

        Memory: the sample's own; so has its gradient, which is formed in blocks.
        """
        shape = self._extended_shape(sample_shape)
        if are_transformed():  # how vmap's elements share a draw is for torch.randn to know
            return self.loc + self.colorize(torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device))
        return samples.draw(self.factor_pattern, self.loc, self._factor, self._order, shape[:-1])

    def rsample_and_log_prob(
        self,
        sample_shape: Any = torch.Size(),  # noqa: B008  torch's own signature
        noise: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """z = loc + L⁻ᵀ ε and log q(z) = ½ [log det P − ‖ε‖² − n log 2π], nats: no second pass over L.

        What importance weights need. The gradient of log q(z) is the whole one, along z(θ) too: only log det P varies.

        Args:
            sample_shape: of independent draws of the whole batch.
            noise: ε, (..., n) with the batch axes last; None: drawn, sample_shape + batch_shape + (n,).
        """
        if noise is None:
            noise = torch.randn(self._extended_shape(sample_shape), dtype=self.loc.dtype, device=self.loc.device)
        self._check_event("rsample_and_log_prob", noise=noise)
        peak = 0.5 * (self._logdet() - self.topology.n * LOG_2PI)
        return samples.draw_and_log_prob(self.factor_pattern, self.loc, self._factor, self._order, peak, noise)

    def _log_prob_of_noise(self, noise: Tensor) -> Tensor:
        """log q(loc + L⁻ᵀ ε), in float64."""
        return 0.5 * (self._logdet() - samples.square_norm(noise) - self.topology.n * LOG_2PI)

    def log_prob(self, value: Tensor) -> Tensor:
        """½ [log det P − ‖Lᵀ(x − loc)‖² − n log 2π], nats; batch axes of x (..., n) broadcast.

        Raises:
            NonFiniteError: a value is NaN or infinite, tested as it is loaded, whatever `validate_args`.
        """
        log_prob = 0.5 * (self._logdet() - self._square_distance("log_prob", value) - self.topology.n * LOG_2PI)
        return log_prob.to(self.loc.dtype)

    def entropy(self) -> Tensor:
        """½ [n (1 + log 2π) − log det P], nats, shape batch_shape."""
        entropy = 0.5 * (self.topology.n * (1.0 + LOG_2PI) - self._logdet())
        return entropy.to(self.loc.dtype).expand(self.batch_shape)

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def mode(self) -> Tensor:
        return self.loc

    @property
    def variance(self) -> Tensor:
        """diag Σ, (batch_shape, n), exact; computed at each access."""
        return self._variances().expand(*self.batch_shape, -1)

    # ------------------------------------------------------------------ second moments

    def trace_covariance(self) -> Tensor:
        """tr Σ, shape batch_shape, exact."""
        return self._variances().sum(-1, dtype=torch.float64).to(self.loc.dtype).expand(self.batch_shape)

    def covariance_on(self, edges: npt.ArrayLike) -> Tensor:
        """Σ_ij for each of the (m, 2) pairs, batch_shape + (m,); exact. Pairs need not be edges, and i = j is allowed.

        Cost: one selected inverse on (S ∪ pairs).filled(): cheap on the graph, dearer with distant pairs.
        """
        return self._covariance_at(edges)[1].expand(*self.batch_shape, -1)

    def correlation_on(self, edges: npt.ArrayLike) -> Tensor:
        """Σ_ij / √(Σ_ii Σ_jj) for each of the (m, 2) pairs, batch_shape + (m,); cost as `covariance_on`."""
        pairs = as_pairs("correlation_on", edges)
        variances, covariances = self._covariance_at(pairs)
        deviation = variances.sqrt()  # roots first: a product of variances could leave the range
        first, second = (deviation.index_select(-1, index(ends)) for ends in pairs.T)
        return (covariances / first / second).expand(*self.batch_shape, -1)

    @property
    def precision_matrix(self) -> Tensor:
        """P, dense and symmetric, (batch_shape, n, n), in the caller's numbering. Above 20,000 nodes it is refused."""
        n, graph = self._require_small("precision_matrix", "precision"), self.graph
        on = graph.precision_pattern
        i, j = graph.order[on.rows], graph.order[on.cols]
        off_diagonal = np.flatnonzero(i != j)
        places = index(np.concatenate([i * n + j, (j * n + i)[off_diagonal]]))
        values = self.precision.index_select(-1, index(np.concatenate([np.arange(on.nnz), off_diagonal])))
        dense = values.new_zeros((*values.shape[:-1], n * n)).index_copy(-1, places, values)
        return dense.reshape(*values.shape[:-1], n, n).expand(*self.batch_shape, n, n)

    @property
    def covariance_matrix(self) -> Tensor:
        """Σ, dense, (batch_shape, n, n), in the caller's numbering. Above 20,000 nodes it is refused.

        Cost: n solves with L and a dense product, O(n³); `covariance_on` has single entries.
        """
        n = self._require_small("covariance_matrix", "covariance_on")
        root = self._colorize_rows(torch.eye(n, dtype=self.loc.dtype, device=self.loc.device))
        with torch.autocast(root.device.type, enabled=False):
            return (root.mT @ root).expand(*self.batch_shape, n, n)

    def _covariance_at(self, edges: npt.ArrayLike) -> tuple[Tensor, Tensor]:
        """Σ_ii of every node, and Σ_ij of every pair, on the batch axes of the factor."""
        fill, nodes, pairs = covariance_positions(self.topology, self.factor_pattern, edges)
        sigma = ops.selected_inverse(self.factor_pattern, self._factor, on=fill)
        return sigma.index_select(-1, index(nodes)), sigma.index_select(-1, index(pairs))

    def _require_small(self, name: str, instead: str) -> int:
        n = self.topology.n
        if n > DENSE_LIMIT:
            gigabytes = self.loc.itemsize * n**2 / 1e9
            raise ShapeError(f"{name}: {n} nodes would take {gigabytes:.1f} GB a matrix. Use {instead}.")
        return n

    # ------------------------------------------------------------------ inference

    def condition(self, nodes: npt.ArrayLike, values: Any) -> Self:
        """The Gaussian of the other nodes, ascending, given z[nodes] = values: on `Graph(n − k, induced edges)`.

        Args:
            nodes: k distinct nodes, fewer than n.
            values: (..., k) in the order of `nodes`; batch axes broadcast.
        Cost: one factorisation of the induced graph, whatever the number of values.
        """
        observed = conditioning.distinct_nodes("condition", self.topology, nodes)
        kept = np.setdiff1d(np.arange(self.topology.n), observed)
        if not kept.size:
            raise PatternError(
                f"condition: all {self.topology.n} nodes are given, so nothing is left. Leave at least one."
            )
        shift = self._shift_at("condition", observed, torch.as_tensor(values, dtype=self.loc.dtype))
        pull = self._in_elimination_order(ops.matmul, self.whiten(shift)).index_select(-1, index(kept))
        graph, gather = conditioning.induced(self.graph, kept)
        precision = self.precision.index_select(-1, index(gather))
        centred = type(self).from_information(-pull, precision=precision, topology=graph, validate_args=False)
        return centred.moved_to(self.loc.index_select(-1, index(kept)) + centred.loc)

    def marginal(self, nodes: npt.ArrayLike, force: bool = False) -> Self:
        """The Gaussian of some nodes alone, numbered as in `nodes`, on their graph with its Schur fill.

        Raises:
            PatternError: no nodes, or a fill of more than 10⁷ entries a batch element, unless `force`.
            NotPositiveDefiniteError: P = L Lᵀ is not positive definite to working precision.
        Cost: one factorisation in which the other nodes go first.
        """
        chosen = conditioning.distinct_nodes("marginal", self.topology, nodes)
        schur = conditioning.schur_complement(self.graph, chosen, force)
        precision = self.precision.index_select(-1, index(schur.gather))
        factor = schur.factor_of(factorised(schur.pattern, precision, schur.named_by_node))
        return type(self)(self.loc.index_select(-1, index(chosen)), factor=factor, topology=schur.graph)

    def _shift_at(self, function: str, nodes: IntArray, values: Tensor) -> Tensor:
        """values − loc at the nodes, zero elsewhere: (..., n)."""
        if values.shape[-1:] != nodes.shape:
            raise ShapeError(
                f"{function}: values must end in {len(nodes)}, the nodes, got shape {tuple(values.shape)}."
            )
        if are_readable(values):
            checks.require_finite(function, "values", None, array(values))
        shift = values - self.loc.index_select(-1, index(nodes))
        return shift.new_zeros((*shift.shape[:-1], self.topology.n)).index_copy(-1, index(nodes), shift)

    # ------------------------------------------------------------------ what the divergences need

    def _logdet(self) -> Tensor:
        """log det P in float64, on the batch axes of the factor."""
        return ops.logdet(self.factor_pattern, self._factor, in_float64=True)

    def _variances(self) -> Tensor:
        """diag Σ in the caller's numbering, on the batch axes of the factor."""
        return self._to_caller(ops.marginal_variances(self.factor_pattern, self._factor))

    def _square_distance(self, function: str, x: Tensor) -> Tensor:
        """(x − loc)ᵀ P (x − loc) in float64."""
        self._check_event(function, value=x)
        if are_transformed():
            return self.whiten(x - self.loc).double().square().sum(-1)
        return samples.square_distance(self.factor_pattern, self.loc, self._factor, self._order, x)

    def _whiten_rows(self, d: Tensor) -> Tensor:
        """Lᵀ d for each row of d (..., k, n), nodes of the result in the order of elimination."""
        return ops.matmul_t(self.factor_pattern, self._factor.unsqueeze(-2), samples.reordered(d, self._order))

    def _colorize_rows(self, eps: Tensor) -> Tensor:
        """L⁻ᵀ ε for each row of ε (..., k, n), nodes of ε in the order of elimination."""
        return self._to_caller(ops.solve_t(self.factor_pattern, self._factor.unsqueeze(-2), eps))
