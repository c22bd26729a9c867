"""PyTorch alone: dense algebra, a loop over the nodes, and its own distributions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

from benchmarks.contest import Contestant
from benchmarks.problems import Array, Step, interleave
from sparseggm import Pattern

# ---------------------------------------------------------------------- a chain's training step

SampleAndKL = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def loop_over_nodes(loc: Tensor, pivots: Tensor, couplings: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Back substitution and the recurrence of the variances, node by node, vectorised over the batch."""
    n = loc.shape[-1]
    a, b, eps = pivots.unbind(-1), couplings.unbind(-1), noise.unbind(-1)
    offsets, variances = [eps[-1] / a[-1]], [a[-1] ** -2]
    for i in range(n - 2, -1, -1):
        offsets.append((eps[i] - b[i] * offsets[-1]) / a[i])
        variances.append((1.0 + b[i] ** 2 * variances[-1]) / a[i] ** 2)
    trace = torch.stack(variances, -1).sum(-1)
    return loc + torch.stack(offsets[::-1], -1), _kl(trace, loc, pivots)


def dense(loc: Tensor, pivots: Tensor, couplings: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Dense triangular solves with Lᵀ for the sample, and with L for tr Σ = ‖L⁻¹‖²."""
    factor = torch.diag_embed(pivots) + torch.diag_embed(couplings, -1)
    offset = torch.linalg.solve_triangular(factor.mT, noise[..., None], upper=True)[..., 0]
    identity = torch.eye(loc.shape[-1], dtype=loc.dtype)
    inverse = torch.linalg.solve_triangular(factor, identity, upper=False)
    return loc + offset, _kl(inverse.square().sum((-2, -1)), loc, pivots)


def multivariate_normal(loc: Tensor, pivots: Tensor, couplings: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """torch's own distribution, which samples its own noise and uses another factor of Σ."""
    factor = torch.diag_embed(pivots) + torch.diag_embed(couplings, -1)
    q = MultivariateNormal(loc, precision_matrix=factor @ factor.mT, validate_args=False)
    n = loc.shape[-1]
    p = MultivariateNormal(torch.zeros(n, dtype=loc.dtype), torch.eye(n, dtype=loc.dtype), validate_args=False)
    return q.rsample(), kl_divergence(q, p)


def _kl(trace: Tensor, loc: Tensor, pivots: Tensor) -> Tensor:
    return 0.5 * (trace + loc.square().sum(-1) - loc.shape[-1]) + pivots.log().sum(-1)


def chain_step(problem: Step, sample_and_kl: SampleAndKL, same_draw: bool = True) -> Contestant:
    """The step of a chain by one of the three functions above, with its gradients; `same_draw`: it uses our noise."""
    arrays = (problem.loc, problem.pivots, problem.couplings)
    leaves = [torch.from_numpy(array).requires_grad_() for array in arrays]
    noise, z_bar, kl_bar = (torch.from_numpy(array) for array in (problem.noise, problem.z_bar, problem.kl_bar))

    def call() -> Any:
        z, kl = sample_and_kl(*leaves, noise)
        return z, kl, *torch.autograd.grad((z, kl), leaves, (z_bar, kl_bar))

    def answer(result: Any) -> list[Array | None]:
        z, kl, loc_bar, pivots_bar, couplings_bar = (tensor.detach().numpy() for tensor in result)
        if not same_draw:
            return [None, kl, loc_bar, None]
        return [z, kl, loc_bar, interleave(pivots_bar, couplings_bar)]

    return Contestant(call, answer)


def independent_normal(problem: Step) -> Contestant:
    """The same step for torch's Normal, which has no structure: another model with the same mean and noise."""
    loc, scale = torch.from_numpy(problem.loc), torch.from_numpy(problem.pivots)
    noise, z_bar, kl_bar = (torch.from_numpy(array) for array in (problem.noise, problem.z_bar, problem.kl_bar))
    loc.requires_grad_()
    scale.requires_grad_()
    standard = Independent(Normal(torch.zeros_like(loc[0]), 1.0), 1)

    def call() -> Any:
        q = Independent(Normal(loc, scale, validate_args=False), 1, validate_args=False)
        z = loc + noise * scale  # what rsample does with its own noise
        kl = kl_divergence(q, standard)
        return torch.autograd.grad((z, kl), (loc, scale), (z_bar, kl_bar))

    return Contestant(call, None)


def normal_idiom(problem: Step) -> Contestant:
    """rsample + kl_divergence of torch's Normal, from constructor to gradients; arguments are validated."""
    leaves = [torch.from_numpy(array).requires_grad_() for array in (problem.loc, problem.pivots)]
    bars = torch.from_numpy(problem.z_bar), torch.from_numpy(problem.kl_bar)
    n = problem.topology.n
    prior = Independent(Normal(torch.zeros(n), torch.ones(n)), 1)

    def call() -> Any:
        q = Independent(Normal(*leaves), 1)
        return torch.autograd.grad((q.rsample(), kl_divergence(q, prior)), leaves, bars)

    return Contestant(call, None)


# ---------------------------------------------------------------------- dense algebra on any pattern


def solve_t(pattern: Pattern, factor: Array, noise: Array) -> Contestant:
    """Lᵀ x = ε with a dense L that is transposed beforehand."""
    upper = torch.from_numpy(pattern.to_dense(factor)).mT.contiguous()
    column = torch.from_numpy(noise)[..., None]
    return Contestant(lambda: torch.linalg.solve_triangular(upper, column, upper=True), lambda x: [x[..., 0].numpy()])


def variances_with_gradient(pattern: Pattern, factor: Array, bar: Array) -> Contestant:
    """diag Σ = column sums of (L⁻¹)², and the gradient of L, whose stored entries are gathered from a dense one."""
    lower = torch.from_numpy(pattern.to_dense(factor)).requires_grad_()
    identity, cotangent = torch.eye(pattern.n, dtype=lower.dtype), torch.from_numpy(bar)
    rows, cols = torch.tensor(pattern.rows.astype(int)), torch.tensor(pattern.cols.astype(int))

    def call() -> Any:
        inverse = torch.linalg.solve_triangular(lower, identity, upper=False)
        variances = inverse.square().sum(-2)
        return variances, torch.autograd.grad(variances, lower, cotangent)[0][..., rows, cols]

    return Contestant(call, lambda result: [tensor.detach().numpy() for tensor in result])


def logdet(pattern: Pattern, precision: Array) -> Contestant:
    """log det P by a dense Cholesky factorisation."""
    matrix = torch.from_numpy(pattern.to_dense(precision, symmetric=True))
    return Contestant(
        lambda: 2.0 * torch.linalg.cholesky(matrix).diagonal(dim1=-2, dim2=-1).log().sum(-1), lambda x: [x.numpy()]
    )


# ---------------------------------------------------------------------- importance weighting


def draws_by_solve(pattern: Pattern, loc: Array, factor: Array, noise: Array) -> Contestant:
    """Many samples of each Gaussian by one triangular solve a factor; log q(z) from the noise itself."""
    upper = torch.from_numpy(pattern.to_dense(factor)).mT.contiguous()

    def sample(eps: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(upper, eps, upper=True)

    return _draws(sample, upper, loc, noise)


def draws_by_inverse(pattern: Pattern, loc: Array, factor: Array, noise: Array) -> Contestant:
    """The same by a product with the dense inverse of each small factor."""
    upper = torch.from_numpy(pattern.to_dense(factor)).mT.contiguous()
    identity = torch.eye(pattern.n, dtype=upper.dtype)

    def sample(eps: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(upper, identity, upper=True) @ eps

    return _draws(sample, upper, loc, noise)


def _draws(sample: Callable[[Tensor], Tensor], upper: Tensor, loc: Array, noise: Array) -> Contestant:
    """z (batch, n, samples) and log q(z) (batch, samples), in the layout that suits dense algebra."""
    mean = torch.from_numpy(loc)[..., None]
    eps = torch.from_numpy(noise).permute(1, 2, 0).contiguous()
    distribution = MultivariateNormal(torch.zeros(len(loc[0])), torch.eye(len(loc[0])))
    constant = distribution.log_prob(distribution.mean)  # −½ n log 2π

    def call() -> Any:
        z = sample(eps) + mean
        logdet = upper.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return z, (constant + logdet)[:, None] - 0.5 * eps.square().sum(1)

    return Contestant(call, lambda result: [result[0].permute(2, 0, 1).numpy(), result[1].T.numpy()])
