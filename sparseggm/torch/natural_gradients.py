"""Gradients of the ELBO with respect to a Gaussian, natural ones, and steps along them.

In the coordinates (loc, L) the Fisher matrix of N(loc, (L Lᵀ)⁻¹) is P for loc, and one block for each column of L.
With S the rows of column j and R = S without j,

    F_j = Σ_SS + e₁ e₁ᵀ / L_jj² ,        F_j⁻¹ = ½ L_Sj L_Sjᵀ + 0 ⊕ Σ_RR⁻¹ ,

from Σ_SS L_Sj = e₁ / L_jj and the formula of Sherman and Morrison. By regression coordinates, log σ_j = −log L_jj and
β_j = −L_Rj / L_jj, the blocks are 2 and Σ_RR / σ_j² [Tan 2021, arXiv 2109.00375, for a full or banded L].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sparseggm import linalg
from sparseggm.errors import NonFiniteError, ShapeError
from sparseggm.geometry.fisher import Fisher
from sparseggm.geometry.kinds import require_free_factor
from sparseggm.linalg import checks
from sparseggm.positivity.namespace import refuse_transforms
from sparseggm.torch import ops
from sparseggm.torch.border import as_tensors, common_batch, tells
from sparseggm.torch.distribution import GaussianGraphicalModel
from sparseggm.torch.operators.numbering import reordered
from sparseggm.torch.operators.registration import array

LogJoint = Callable[[Tensor], Tensor]


def elbo_gradient(q: GaussianGraphicalModel, log_joint: LogJoint, noise: Any) -> tuple[Tensor, Tensor, Tensor]:
    """log p(z) − log q(z) of samples z = loc + L⁻ᵀ ε, and the gradient of their mean, an estimate of that of the ELBO.

    The gradient is that along z alone, with ∇_z log q = −L ε. The score of q, whose mean is zero, is left out; what
    remains vanishes with every sample where q is exp(log p) normalised ["sticking the landing": Roeder, Wu & Duvenaud
    2017].

    Args:
        q: the Gaussians, of batch axes (…).
        log_joint: z (K, ..., n) → (K, ...), as log p(x, z); differentiable.
        noise: ε (K, ..., n).
    Returns:
        (K, ...) without gradients; (..., n) with respect to loc, in the caller's numbering; (..., nnz) to L.
    Cost: one `solve`, one `solve_t` and two products a sample, and what log p and its gradient cost.
    """
    function = "elbo_gradient"
    require_tensors(function, q)
    q, noise = q._beside(function, noise=noise)
    if noise.ndim != q.loc.ndim + 1 or not len(noise):
        raise ShapeError(
            f"{function}: noise must be (K, ..., {q.topology.n}), K ≥ 1 samples of batch axes {tuple(q.batch_shape)}, "
            f"got shape {tuple(noise.shape)}."
        )
    pattern, order = q.factor_pattern, q._order
    with torch.no_grad():
        z, log_q = q.rsample_and_log_prob(noise=noise)
    with torch.enable_grad():
        log_p = log_joint(z.requires_grad_())
        require_joint(function, log_p, log_q)
        (slope,) = torch.autograd.grad(log_p.sum(), z)
    with torch.no_grad():
        slope = (slope + q._in_elimination_order(ops.matmul, noise)) / len(noise)
        # z = loc + L⁻ᵀ ε has L̄ = −(z − loc) (L⁻¹ z̄)ᵀ on the pattern: docs/math.md, eq. 7.
        white = ops.solve(pattern, q.factor, reordered(slope, order))
        factor_gradient = -ops.outer(pattern, reordered(z - q.loc, order), white, tuple(q.batch_shape))
        return log_p.detach() - log_q, slope.sum(0), factor_gradient


@tells("loc_gradient", "factor_gradient")
def natural_step(
    q: GaussianGraphicalModel, loc_gradient: Any, factor_gradient: Any, rate: Any = 1.0
) -> tuple[GaussianGraphicalModel, Tensor]:
    """One step up a natural gradient, straight in natural parameters where no fill leaves the pattern of L.

        P ← P + ρ (L dLᵀ + dL Lᵀ) ,    loc ← loc + ρ P⁻¹ g_loc with the new P ,    dL of `geometry.fisher_solve`.

    Where g is that of E_q[f(z)] + entropy and f a quadratic function whose Hessian is on the graph, and L closed under
    elimination, the step of rate 1 from any q gives the maximum, exp(f) normalised. Of the new factor, entries off the
    pattern of L are left out; they are O(ρ²).

    Args:
        q: the Gaussians, whose L is free on its pattern.
        loc_gradient: (..., n), in the caller's numbering.
        factor_gradient: (..., nnz) on `q.factor_pattern`.
        rate: ρ, broadcast against the batch axes.
    Returns:
        the Gaussians, and for each whether it is new: q itself where the new P would not be positive definite.
    Raises:
        PatternError: L is not free on its pattern, see `geometry.fisher_matmul`.
    Cost: `fisher_solve`, and one factorisation on the fill of L. Not differentiable.
    """
    q, loc, factor = _beside("natural_step", q, loc_gradient, factor_gradient)
    pattern, rates = q.factor_pattern, torch.as_tensor(rate, dtype=loc.dtype, device=loc.device).unsqueeze(-1)
    if not _broadcasts_to(rates.shape[:-1], q.batch_shape):
        shape = tuple(rates.shape[:-1])
        raise ShapeError(f"natural_step: rate must broadcast to {tuple(q.batch_shape)}, got shape {shape}.")
    if not rates.isfinite().all():
        raise NonFiniteError(f"natural_step: rate must be finite, got {rate}.")
    with torch.no_grad():
        half = 0.5 * q.factor + rates * _fisher(q).factor_solve(factor)
        wide, is_made = linalg.attempt_cholesky(pattern.gram(), array(ops.gram_jvp(pattern, q.factor, half)))
        made = torch.from_numpy(is_made).unsqueeze(-1)
        narrow = ops.restrict(pattern, pattern.filled(), torch.from_numpy(wide))
        new = q._with("natural_step", q.loc, torch.where(made, narrow, q.factor), None, False)
        step = torch.where(made, rates * new.covariance_matmul(loc), 0.0)
        return new.moved_to(q.loc + step), made.squeeze(-1)


def _broadcasts_to(shape: torch.Size, target: torch.Size) -> bool:
    return len(shape) <= len(target) and all(
        one in (1, other) for one, other in zip(shape[::-1], target[::-1], strict=False)
    )


def precondition(q: GaussianGraphicalModel) -> GaussianGraphicalModel:
    """The same Gaussians, whose backward pass multiplies the gradients of (loc, L) by the inverse Fisher matrix.

    So a loss of the result gives what made q, such as an encoder, the natural gradient F⁻¹ g of each Gaussian of the
    batch in place of g. Of any loss that is a sum, or a mean, over the batch: F is that of one Gaussian. The step that
    the encoder then takes in (loc, L) is, to first order, one of `natural_step`.

    Args:
        q: the Gaussians, whose L is free on its pattern.
    Raises:
        PatternError: L is not free on its pattern, see `geometry.fisher_matmul`.
    Cost: forward nothing; backward `fisher_solve`. Differentiable once. Gradients that are not finite pass.
    """
    _require_free("precondition", q)
    loc, factor = _Precondition.apply(q.loc, q.factor, q)
    return q._with("precondition", loc, factor, None, False)


class _Precondition(torch.autograd.Function):
    """(loc, L) ↦ (loc, L), with (ḡ_loc, ḡ_L) ↦ F⁻¹ (ḡ_loc, ḡ_L)."""

    @staticmethod
    def forward(ctx: Any, loc: Tensor, factor: Tensor, q: GaussianGraphicalModel) -> tuple[Tensor, Tensor]:
        ctx.q = q.detach()
        return loc.view_as(loc), factor.view_as(factor)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, loc_bar: Tensor, factor_bar: Tensor) -> tuple[Tensor, Tensor, None]:
        with checks.non_finite_passes():
            return ctx.q.covariance_matmul(loc_bar), _fisher(ctx.q).factor_solve(factor_bar), None


def require_tensors(function: str, q: object) -> None:
    """Raise a TypeError unless it is a Gaussian of tensors, and their numbers can be read."""
    if not isinstance(q, GaussianGraphicalModel):
        raise TypeError(f"{function}: needs a GaussianGraphicalModel of sparseggm.torch, got {type(q)!r}.")
    refuse_transforms(function, q.loc)


def require_joint(function: str, log_p: object, like: Tensor) -> None:
    """Raise unless log p(x, z) is differentiable, and a number for each sample: a sum of them would broadcast."""
    if not isinstance(log_p, Tensor) or not log_p.requires_grad:
        raise TypeError(f"{function}: log_joint must give a tensor that depends on z, differentiably.")
    if log_p.shape != like.shape:
        raise ShapeError(
            f"{function}: log_joint must give {tuple(like.shape)}, a number for each sample, got shape "
            f"{tuple(log_p.shape)}."
        )


def _require_free(function: str, q: GaussianGraphicalModel) -> None:
    require_tensors(function, q)
    require_free_factor(function, q)


def _fisher(q: GaussianGraphicalModel) -> Fisher:
    """The Fisher matrix in (loc, L), its loc in the order of elimination."""
    return Fisher(q.factor_pattern, q.factor, reordered(q.loc, q._order))


def _beside(
    function: str, q: GaussianGraphicalModel, loc_gradient: Any, factor_gradient: Any
) -> tuple[GaussianGraphicalModel, Tensor, Tensor]:
    """The Gaussians and a gradient in one dtype, on the same batch axes, if their sizes fit."""
    _require_free(function, q)
    given = {"loc_gradient": loc_gradient, "factor_gradient": factor_gradient}
    own, loc, factor = as_tensors(function, own=q.loc, **given)
    if (loc.shape[-1:], factor.shape[-1:]) != (q.event_shape, q.factor.shape[-1:]):
        raise ShapeError(
            f"{function}: on {q.topology} loc_gradient must end in {q.topology.n} and factor_gradient in "
            f"{q.factor_pattern.nnz}, got shapes {tuple(loc.shape)} and {tuple(factor.shape)}."
        )
    shape = common_batch(function, own=own, loc_gradient=loc, factor_gradient=factor)
    return q._in_dtype(own.dtype).expand(shape), loc.expand(*shape, -1), factor.expand(*shape, -1)
