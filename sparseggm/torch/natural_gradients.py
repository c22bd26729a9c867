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
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from sparseggm import linalg
from sparseggm.errors import PatternError, ShapeError
from sparseggm.graph.pattern import IntArray, Pattern
from sparseggm.torch import ops
from sparseggm.torch.border import as_tensors, common_batch, tells
from sparseggm.torch.distribution import GaussianGraphicalModel
from sparseggm.torch.operators.numbering import reordered
from sparseggm.torch.operators.registration import array, index

LogJoint = Callable[[Tensor], Tensor]

_known_parents: WeakKeyDictionary[Pattern, tuple[Tensor, Tensor]] = WeakKeyDictionary()


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
    q, noise = q._beside("elbo_gradient", noise=noise)
    pattern, order = q.factor_pattern, q._order
    with torch.no_grad():
        z, log_q = q.rsample_and_log_prob(noise=noise)
    with torch.enable_grad():
        log_p = log_joint(z.requires_grad_())
        (slope,) = torch.autograd.grad(log_p.sum(), z)
    with torch.no_grad():
        slope = (slope + q._in_elimination_order(ops.matmul, noise)) / len(noise)
        # z = loc + L⁻ᵀ ε has L̄ = −(z − loc) (L⁻¹ z̄)ᵀ on the pattern: docs/math.md, eq. 7.
        white = ops.solve(pattern, q.factor, reordered(slope, order))
        factor_gradient = -ops.outer(pattern, reordered(z - q.loc, order), white, tuple(q.batch_shape))
        return log_p.detach() - log_q, slope.sum(0), factor_gradient


@tells("loc_gradient", "factor_gradient")
def fisher_solve(q: GaussianGraphicalModel, loc_gradient: Any, factor_gradient: Any) -> tuple[Tensor, Tensor]:
    """F⁻¹ g: the natural gradient in (loc, L), for the gradient g of a function of them.

    Args:
        q: the Gaussians, on a factor-free topology.
        loc_gradient: (..., n), in the caller's numbering.
        factor_gradient: (..., nnz) on `q.factor_pattern`.
    Returns:
        both, of the same shapes.
    Raises:
        PatternError: the topology is not factor-free, so that L has fewer degrees of freedom than entries.
    Cost: one `solve`, one `solve_t`, one selected inverse, and Σ_j |R_j|³ / 3 flops.
    """
    q, loc, factor = _beside("fisher_solve", q, loc_gradient, factor_gradient)
    return _covariance_matmul(q, loc), _natural_factor(q, factor)


@tells("loc_gradient", "factor_gradient")
def natural_step(
    q: GaussianGraphicalModel, loc_gradient: Any, factor_gradient: Any, rate: Any = 1.0
) -> tuple[GaussianGraphicalModel, Tensor]:
    """One step up a natural gradient, straight in natural parameters where no fill leaves the pattern of L.

        P ← P + ρ (L dLᵀ + dL Lᵀ) ,    loc ← loc + ρ P⁻¹ g_loc with the new P ,    dL = F⁻¹ g of `fisher_solve`.

    Where g is that of E_q[f(z)] + entropy and f a quadratic function whose Hessian is on the graph, and L closed under
    elimination, the step of rate 1 from any q gives the maximum, exp(f) normalised. Of the new factor, entries off the
    pattern of L are left out; they are O(ρ²).

    Args:
        q: the Gaussians, on a factor-free topology.
        loc_gradient, factor_gradient: see `fisher_solve`.
        rate: ρ, broadcast against the batch axes.
    Returns:
        the Gaussians, and for each whether it is new: q itself where the new P would not be positive definite.
    Raises:
        PatternError: the topology is not factor-free.
    Cost: `fisher_solve`, and one factorisation on the fill of L. Not differentiable.
    """
    q, loc, factor = _beside("natural_step", q, loc_gradient, factor_gradient)
    pattern, rates = q.factor_pattern, torch.as_tensor(rate, dtype=loc.dtype, device=loc.device).unsqueeze(-1)
    with torch.no_grad():
        half = 0.5 * q.factor + rates * _natural_factor(q, factor)
        wide, is_made = linalg.attempt_cholesky(pattern.gram(), array(ops.gram_jvp(pattern, q.factor, half)))
        made = torch.from_numpy(is_made).unsqueeze(-1)
        narrow = ops.restrict(pattern, pattern.filled(), torch.from_numpy(wide))
        new = q._with("natural_step", q.loc, torch.where(made, narrow, q.factor), False)
        step = torch.where(made, rates * _covariance_matmul(new, loc), 0.0)
        return new.moved_to(q.loc + step), made.squeeze(-1)


def _beside(
    function: str, q: GaussianGraphicalModel, loc_gradient: Any, factor_gradient: Any
) -> tuple[GaussianGraphicalModel, Tensor, Tensor]:
    """The Gaussians and a gradient in one dtype, on the same batch axes, if their sizes fit."""
    if q.factor_pattern.gram() is not q.graph.precision_pattern:
        raise PatternError(f"{function}: needs a factor-free topology, got {q.topology}.")
    given = {"loc_gradient": loc_gradient, "factor_gradient": factor_gradient}
    own, loc, factor = as_tensors(function, own=q.loc, **given)
    if (loc.shape[-1:], factor.shape[-1:]) != (q.event_shape, q.factor.shape[-1:]):
        raise ShapeError(
            f"{function}: on {q.topology} loc_gradient must end in {q.topology.n} and factor_gradient in "
            f"{q.factor_pattern.nnz}, got shapes {tuple(loc.shape)} and {tuple(factor.shape)}."
        )
    shape = common_batch(function, own=own, loc_gradient=loc, factor_gradient=factor)
    return q._in(own.dtype).expand(shape), loc.expand(*shape, -1), factor.expand(*shape, -1)


def _covariance_matmul(q: GaussianGraphicalModel, x: Tensor) -> Tensor:
    """Σ x."""
    return q.colorize(q._in_elimination_order(ops.solve, x))


def _natural_factor(q: GaussianGraphicalModel, gradient: Tensor) -> Tensor:
    """½ L_Sj L_Sjᵀ g_S + 0 ⊕ Σ_RR⁻¹ g_R for every column, (..., nnz)."""
    pattern, factor = q.factor_pattern, q.factor
    cols, products = index(pattern.cols, factor), factor * gradient
    along = products.new_zeros((*products.shape[:-1], pattern.n)).index_add(-1, cols, products)
    return 0.5 * factor * along.index_select(-1, cols) + _parents_solved(
        pattern, ops.selected_inverse(pattern, factor), gradient
    )


def _parents_solved(pattern: Pattern, sigma: Tensor, gradient: Tensor) -> Tensor:
    """Σ_RR⁻¹ g_R for every column, (..., nnz), zero on the diagonal; Σ is on `pattern.filled()`."""
    places, pairs = _parents_of(pattern)
    blocks = torch.nn.functional.pad(sigma, (0, 2))
    blocks[..., -1] = 1.0
    padded = torch.nn.functional.pad(gradient, (0, 1))
    solved = torch.linalg.solve(blocks[..., pairs], padded[..., places])
    return torch.zeros_like(padded).index_copy(-1, places.flatten(), solved.flatten(-2))[..., :-1]


def _parents_of(pattern: Pattern) -> tuple[Tensor, Tensor]:
    """`_parents`, found once for a pattern."""
    known = _known_parents.get(pattern)
    if known is None:
        places, pairs = _parents(pattern)
        known = _known_parents[pattern] = index(places), index(pairs)
    return known


def _parents(pattern: Pattern) -> tuple[IntArray, IntArray]:
    """For every column the places of g_R, (n, k) on the pattern, and of Σ_RR, (n, k, k) on its fill.

    Columns with fewer than k = |R| entries are padded: with 0, which follows the last value, and in Σ_RR with the
    identity, whose 1 follows that 0.
    """
    fill, number = pattern.filled(), np.arange(pattern.longest_column - 1)
    is_there = number < np.diff(pattern.indptr)[:, None] - 1
    places = np.where(is_there, pattern.indptr[:-1, None] + 1 + number, pattern.nnz)
    rows = np.append(pattern.rows, 0)[places]
    below, above = np.maximum(rows[:, :, None], rows[:, None, :]), np.minimum(rows[:, :, None], rows[:, None, :])
    pairs = fill.positions_of(below.ravel(), above.ravel()).reshape(below.shape)
    both = is_there[:, :, None] & is_there[:, None, :]
    return places, np.where(both, pairs, fill.nnz + np.eye(len(number), dtype=np.int64))
