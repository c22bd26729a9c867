"""The residual posterior: a prior p moved in its regression coordinates, so that q = p where a network emits zeros.

    log σ_q = log σ_p + δ,   β_q = β_p + Δ,   loc_q = loc_p + L_p⁻ᵀ a

with σ_j = 1/L_jj and β_ij = −L_ij/L_jj. KL(q ‖ p) is a sum of one term ≥ 0 a node, see `Residual`. For hierarchies of
latents whose layers have graphs: the terms may be clamped one by one, or in groups, as free bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparseggm.errors import NonFiniteError, NonPositiveError, PatternError, ShapeError
from sparseggm.gaussian.regression import moved
from sparseggm.graph.topology import Topology, require_topology
from sparseggm.linalg import checks
from sparseggm.positivity.families import bounded
from sparseggm.positivity.namespace import where_diagonal
from sparseggm.torch.border import (
    as_tensors,
    common_batch,
    require_valid,
)
from sparseggm.torch.distribution import GaussianGraphicalModel
from sparseggm.torch.heads import Head, silence
from sparseggm.torch.operators import residual
from sparseggm.torch.operators.numbering import reordered
from sparseggm.torch.operators.registration import array, have_values


@dataclass(frozen=True)
class Residual:
    """The Gaussians q that are the priors p, moved.

    Args:
        p: the priors, on a factor-free topology; their batch axes broadcast against those of shift and moves.
        shift: a (..., n), white, in the caller's numbering, as `p.whiten` gives: loc_q = loc_p + L_p⁻ᵀ a.
        moves: (..., nnz) on `p.factor_pattern`: δ on the diagonal, Δ below it. Zero moves and shift give q = p.
    Raises:
        PatternError: p is not on the factor pattern of a factor-free topology.
        ShapeError: last axes that do not fit p, or batch axes that do not broadcast.
    """

    p: GaussianGraphicalModel
    shift: Tensor
    moves: Tensor

    def __post_init__(self) -> None:
        checks.require_gaussian("Residual", "p", self.p, GaussianGraphicalModel)
        topology, pattern = self.p.topology, self.p.factor_pattern
        if not topology.is_factor_free or pattern is not topology.factor_pattern:
            raise PatternError(
                f"Residual: needs a p with its factor on the pattern of a factor-free topology, got {pattern!r} of "
                f"{topology}."
            )
        as_tensors("Residual", loc=self.p.loc, shift=self.shift, moves=self.moves)
        if self.shift.shape[-1:] != (topology.n,) or self.moves.shape[-1:] != (pattern.nnz,):
            raise ShapeError(
                f"Residual: on {topology} shift must end in {topology.n} and moves in {pattern.nnz}, got shapes "
                f"{tuple(self.shift.shape)} and {tuple(self.moves.shape)}."
            )
        common_batch("Residual", p=self.p.loc, shift=self.shift, moves=self.moves)

    def gaussian(self) -> GaussianGraphicalModel:
        """q itself, differentiable with respect to p, shift and moves; not validated."""
        p, shift, moves = self._in_one_dtype()
        factor = moved(p.factor_pattern, p._factor, moves)
        return GaussianGraphicalModel(
            p.loc + p.colorize(shift), factor=factor, topology=p.topology, validate_args=False
        )

    def sample_and_kl_terms(self, noise: Any = None) -> tuple[Tensor, Tensor]:
        """z ~ q, reparametrised, and KL(q ‖ p) in nats split into a term ≥ 0 a node: the training step.

            z = loc_q + L_q⁻ᵀ ε,   t_j = ½ (e^{2δ_j} − 1) − δ_j + ½ a_j² + ½ Δ_jᵀ Σ_q Δ_j / σ_p,j²

        Terms are those of the chain rule in the order of elimination, see `kl_terms`.

        Args:
            noise: ε (..., n), whose batch axes end in q's; None: as torch.randn gives, of q's shape.
        Returns:
            z, of the shape of the noise, and terms (..., n) on the batch axes of q; in the caller's numbering.
        Raises:
            NonFiniteError, NonPositiveError: a value of p, shift, moves or noise, by node; or an overflow.
        Cost: two solves and Σ_q on the fill; one operator, unless the noise has more batch axes than q.
        """
        own, shift, moves = self._in_one_dtype()
        batch = common_batch("sample_and_kl_terms", p=own.loc, shift=shift, moves=moves)
        if noise is None:
            noise = torch.randn((*batch, own.topology.n), dtype=shift.dtype, device=shift.device)
        p, noise = own._beside("sample_and_kl_terms", noise=noise)
        try:
            return _sample_and_kl_terms(p, shift.to(noise.dtype), moves.to(noise.dtype), noise, batch)
        except (NonFiniteError, NonPositiveError) as caught:
            failure = caught
        _explain(p, shift, moves, noise)
        raise failure

    def _in_one_dtype(self) -> tuple[GaussianGraphicalModel, Tensor, Tensor]:
        loc, shift, moves = as_tensors("Residual", loc=self.p.loc, shift=self.shift, moves=self.moves)
        return self.p._in_dtype(loc.dtype), shift, moves


def _sample_and_kl_terms(
    p: GaussianGraphicalModel, shift: Tensor, moves: Tensor, noise: Tensor, batch: torch.Size
) -> tuple[Tensor, Tensor]:
    pattern, order = p.factor_pattern, p._order
    loc, white, eps = (reordered(x, order) for x in (p.loc, shift, noise))
    if common_batch("sample_and_kl_terms", noise=noise, q=shift.expand(*batch, -1)) == batch:
        z, terms = residual.sample_and_kl_terms(pattern, loc, p._factor, white, moves, eps)
        return p._to_caller(z), p._to_caller(terms)
    centre = torch.zeros(p.topology.n, dtype=noise.dtype, device=noise.device)
    mean, terms = residual.sample_and_kl_terms(pattern, loc, p._factor, white, moves, centre)
    q = GaussianGraphicalModel(
        p._to_caller(mean), factor=moved(pattern, p._factor, moves), topology=p.topology, validate_args=False
    )
    return q.loc + q.colorize(noise), p._to_caller(terms)


def _explain(p: GaussianGraphicalModel, shift: Tensor, moves: Tensor, noise: Tensor) -> None:
    """Raise what was wrong with the arguments, in the caller's words; return if that is none, or cannot be read."""
    function, topology = "sample_and_kl_terms", p.topology
    if have_values(p.loc, p._factor, shift, moves, noise):
        require_valid(function, topology, p.factor_pattern, array(p.loc), array(p._factor))
        for name, vector in {"shift": shift, "noise": noise}.items():
            checks.require_finite(function, name, None, array(vector), topology)
        checks.require_finite(function, "moves", p.factor_pattern, array(moves), topology)


class ResidualHead(Head):
    """Features (..., in_features) and priors p → `Residual`: one linear layer emits shift and moves.

    At first q has the precision of p whatever the features, as a `FactorHead` has the identity, and a mean that depends
    on them: a layer of a hierarchy whose posterior starts at its prior is used late. The moves δ of log-scales are
    bounded (`parametrize`): |δ| < 5.

    Args:
        in_features: size of the last axis of the input.
        topology: of p; with `is_factor_free`.
    """

    def __init__(self, in_features: int, topology: Topology) -> None:
        require_topology("ResidualHead", topology)
        if not topology.is_factor_free:
            raise PatternError(
                f"ResidualHead: {topology} is not factor-free: a moved L would have entries of L Lᵀ off its graph."
            )
        layer = nn.Linear(in_features, topology.n + topology.factor_pattern.nnz)
        super().__init__(layer, topology)
        silence(layer.weight[topology.n :], layer.bias, topology.n)
        with torch.no_grad():
            outputs = torch.zeros(1, layer.out_features, device="cpu")
            p = GaussianGraphicalModel(
                outputs[:, : topology.n], factor=outputs[:, topology.n :].exp(), topology=topology, validate_args=False
            )
            q = self._residual(outputs, p).gaussian()  # derives what the topology needs: torch.compile then meets
            q.colorize(q.loc)  # constants

    def forward(self, features: Tensor, p: GaussianGraphicalModel) -> Residual:
        return self._residual(self._outputs(features), p)

    def _residual(self, outputs: Tensor, p: GaussianGraphicalModel) -> Residual:
        checks.require_gaussian("ResidualHead", "p", p, GaussianGraphicalModel)
        if p.topology is not self.topology and p.topology != self.topology:
            raise PatternError(f"ResidualHead: p must be on {self.topology}, got one on {p.topology}.")
        pattern = self.topology.factor_pattern
        shift, moves = outputs.split([self.topology.n, pattern.nnz], dim=-1)
        return Residual(p, shift, where_diagonal(pattern, bounded(moves), moves))

    def _made_of(self) -> str:
        return "residual"
