"""Kullback–Leibler divergences: those registered with `torch.distributions.kl_divergence`, and that of a sample.

    KL(q ‖ p) = ½ [tr(P_p Σ_q) + (loc_p − loc_q)ᵀ P_p (loc_p − loc_q) − n + log det P_q − log det P_p]

in nats, of the shape of the batch axes broadcast, summed in float64, differentiable with respect to both arguments.
Between Gaussian graphical models nothing dense is formed; a `MultivariateNormal` is dense, and so is its divergence.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal, kl_divergence
from torch.distributions.kl import register_kl

from sparseggm.errors import NonFiniteError, ShapeError
from sparseggm.gaussian.covariance import trace_positions
from sparseggm.gaussian.regression import is_one_pass, on_one_pattern, require_one_pattern
from sparseggm.kernels.sparse.density import LOG_2PI
from sparseggm.linalg import checks
from sparseggm.torch import ops
from sparseggm.torch.border import are_uniform, as_tensors, common_batch, rounded, tells
from sparseggm.torch.distribution import GaussianGraphicalModel
from sparseggm.torch.operators import conditionals, density, step
from sparseggm.torch.operators.distances import square_norm
from sparseggm.torch.operators.numbering import reordered
from sparseggm.torch.operators.registration import index
from sparseggm.torch.operators.tracing import untraced

_positions = untraced(trace_positions)


@tells("noise")
def sample_and_kl(
    q: GaussianGraphicalModel,
    p: Distribution | None = None,
    noise: Any = None,
    kl: str = "exact",
) -> tuple[Tensor, Tensor]:
    """A reparametrised sample z = loc + L⁻ᵀ ε of q, and KL(q ‖ p) in nats: the training step.

    Args:
        q: the posterior.
        p: the prior; None: N(0, I), for which the sample and the exact KL are one operator.
        noise: ε (..., n), whose batch axes end in q's; None: drawn from torch's generator, shape of q.loc.
        kl: "exact", by what is registered for the pair; or log q(z) − log p(z) of each sample, which is unbiased, and
            so is its gradient: "sampled", the plain pathwise one, through z in log p(z), and through log det P, ε held
            fixed, where log q(z) = ½ [log det P − ‖ε‖² − n log 2π] needs no second pass over L; or "path", through z
            alone, with the parameters in log q held fixed, which is zero at every sample where q = p, as in an ELBO
            where q is the exact posterior [Roeder, Wu & Duvenaud 2017].
    Returns:
        z, of the shape of noise; KL on the batch axes of q and p, and of noise too unless exact.
    Raises:
        NonFiniteError, NonPositiveError: a value of loc, factor or noise, tested as it is loaded.
        ShapeError: p is on other nodes, or on single ones, as an unwrapped `Normal` is.
        NotImplementedError: no exact KL is registered for the pair.
    Cost: one triangular solve; exact, to N(0, I), the marginal variances: a chain O(n), an extended grid O(n · cols).
    """
    if kl not in ("exact", "sampled", "path"):
        raise ValueError(f"sample_and_kl: kl must be 'exact', 'sampled' or 'path', got {kl!r}.")
    if p is not None and not isinstance(p, Distribution):
        raise TypeError(
            f"sample_and_kl: p must be a torch distribution, got {type(p).__name__}. Noise is given as noise=…."
        )
    checks.require_gaussian("sample_and_kl", "q", q, GaussianGraphicalModel)
    if p is not None and p.event_shape != q.event_shape:
        raise ShapeError(
            f"sample_and_kl: p must have the event shape of q, {tuple(q.event_shape)}, got {tuple(p.event_shape)}. "
            "Wrap a density of single nodes: Independent(p, 1)."
        )
    q, noise = q._beside("sample_and_kl", noise=torch.randn_like(q.loc) if noise is None else noise)
    if kl != "exact":
        z = q.loc + q.colorize(noise)
        log_p = _log_of_standard_normal(z) if p is None else p.log_prob(z)
        log_q = q._log_prob_of_noise(noise) if kl == "sampled" else q.detach().log_prob(z)
        dtype = z.dtype if p is None else torch.promote_types(z.dtype, log_p.dtype)
        return z, rounded(log_q - log_p, dtype)
    if p is None:
        order = q._order
        loc, eps = reordered(q.loc, order), reordered(noise, order)
        z, divergence = step.sample_and_kl(q.factor_pattern, loc, q._factor, eps)
        return q._to_caller(z), divergence
    return q.loc + q.colorize(noise), kl_divergence(q, p)


@tells(function="kl_terms")
def kl_terms(q: GaussianGraphicalModel, p: GaussianGraphicalModel | None = None) -> Tensor:
    """KL(q ‖ p), exact, in nats, as a sum of a term ≥ 0 for each node: (..., n), in the caller's numbering.

    Terms are those of the chain rule in the order of elimination: E_q of the divergence of the conditionals of a node
    given the nodes after it; see `sparseggm.GaussianGraphicalModel.kl_terms`. Differentiable to every order.

    Args:
        q: the Gaussians.
        p: others; None is N(0, I).
    Raises:
        PatternError: the two factors are on different patterns, or in different orders of elimination.
    Cost: Σ on the fill, and Σ_j |S_j|² products; one operator, unless rows are few and large, or share a factor.
    """
    for name, given in {"q": q, "p": q if p is None else p}.items():
        checks.require_gaussian("kl_terms", name, given, GaussianGraphicalModel)
    if p is None:
        p = q._with("kl_terms", torch.zeros_like(q.loc), _identity(q), None, False)
    require_one_pattern("kl_terms", q, p)
    loc, _ = as_tensors("kl_terms", q=q.loc, p=p.loc)
    common_batch("kl_terms", q=q.loc, p=p.loc)
    q, p = q._in_dtype(loc.dtype), p._in_dtype(loc.dtype)
    return q._to_caller(_terms(q, p, _apart(q, p)))


def _apart(q: GaussianGraphicalModel, p: GaussianGraphicalModel) -> Tensor:
    """The difference of the means, in the order of elimination of q."""
    return reordered(q.loc - p.loc, q._order)


def _terms(q: GaussianGraphicalModel, p: GaussianGraphicalModel, d: Tensor) -> Tensor:
    """In the order of elimination, of two Gaussians of one dtype whose means are d apart."""
    try:
        return conditionals.kl_terms(q.factor_pattern, d, q._factor, p._factor)
    except NonFiniteError as caught:  # of d it knows, and the caller does not; what the caller gave is looked at next
        raise checks.overflow("kl_terms", d.dtype) from caught


def _identity(q: GaussianGraphicalModel) -> Tensor:
    """I on the pattern of L."""
    return ops.on_diagonal(q.factor_pattern, q.loc.new_ones(q.topology.n))


def _log_of_standard_normal(z: Tensor) -> Tensor:
    """log N(z; 0, I) in float64."""
    return -0.5 * (square_norm(z) + z.shape[-1] * LOG_2PI)


# ---------------------------------------------------------------------- registered


@register_kl(GaussianGraphicalModel, GaussianGraphicalModel)
@tells(function="kl_divergence")
def _kl(q: GaussianGraphicalModel, p: GaussianGraphicalModel) -> Tensor:
    """Topologies may differ: P_p is brought into q's order, Σ_q computed only on F = (S_q ∪ pattern of P_p).filled().

    Cost: one selected inverse on F.
    """
    q, other = _in_one_space(q, p, loc=p.loc)
    p = p._in_dtype(other["loc"].dtype)
    if on_one_pattern(q, p):
        d = _apart(q, p)
        if is_one_pass(q.factor_pattern, d, q._factor, p._factor):
            return rounded(_terms(q, p, d).double().sum(-1), q.loc.dtype)
    fill, positions = _positions(q.topology, q.factor_pattern, p.graph)
    sigma = ops.selected_inverse(q.factor_pattern, q._factor, on=fill)
    values, own = p.precision.double(), sigma.index_select(-1, index(positions, sigma)).double()
    weights = torch.from_numpy(p.graph.precision_pattern.multiplicity.copy()).to(values.device)
    trace = (values * weights * own).sum(-1)
    return _half(q, trace + p._square_distance(q.loc) + q._logdet() - p._logdet())


@register_kl(GaussianGraphicalModel, Independent)
@tells(function="kl_divergence")
def _kl_to_independent(q: GaussianGraphicalModel, p: Independent[Normal]) -> Tensor:
    """KL(q ‖ N(m, diag s²)) = ½ [Σ (Σ_ii + (loc_i − m_i)²) / s_i² − n + log det P_q + 2 Σ log s_i]."""
    q, loc, scale = _beside_normal(q, p)
    given = q.factor_pattern, q.loc, q._factor, q._order, loc, scale
    pending = _pending_of(q)
    kl = None if pending is None else pending.kl_to_normal(*given)
    return density.kl_to_normal(*given) if kl is None else kl


def _pending_of(q: GaussianGraphicalModel) -> Any:
    """What a sample has left for the KL that follows it, once; None in compiled code, and within a checkpoint.

    That computes again what it did not save, and must do so in the same way.
    """
    if torch.compiler.is_compiling() or torch._C._autograd._top_saved_tensors_default_hooks(True) is not None:
        return None
    return q.__dict__.pop("_pending", None)


@register_kl(Independent, GaussianGraphicalModel)
@tells(function="kl_divergence")
def _kl_from_independent(q: Independent[Normal], p: GaussianGraphicalModel) -> Tensor:
    """KL(N(m, diag s²) ‖ p) = ½ [Σ L_ij² s_i² + ‖Lᵀ (m − loc)‖² − n − 2 Σ log s_i − log det P_p], L that of p."""
    p, loc, scale = _beside_normal(p, q)
    return density.kl_from_normal(p.factor_pattern, p.loc, p._factor, p._order, loc, scale)


@register_kl(GaussianGraphicalModel, Normal)
@register_kl(Normal, GaussianGraphicalModel)
def _kl_beside_single_nodes(one: Distribution, other: Distribution) -> Tensor:
    """None: torch says no more than that, where the remedy is a word."""
    raise NotImplementedError(
        f"kl_divergence: of {one} and {other} is not defined: a Normal is of single nodes. Wrap it: Independent(p, 1)."
    )


@register_kl(GaussianGraphicalModel, MultivariateNormal)
@tells(function="kl_divergence")
def _kl_to_dense(q: GaussianGraphicalModel, p: MultivariateNormal) -> Tensor:
    """With Σ_p = T Tᵀ: tr(P_p Σ_q) = ‖T⁻¹ L_q⁻ᵀ‖². Dense: O(n³) a batch element."""
    q, other = _in_one_space(q, p, loc=p.loc, scale_tril=p._unbroadcasted_scale_tril)
    lower = other["scale_tril"]
    root = q._colorize_rows(torch.eye(q.topology.n, dtype=q.loc.dtype, device=q.loc.device)).mT
    trace = torch.linalg.solve_triangular(lower, root, upper=False).double().square().sum((-2, -1))
    white = torch.linalg.solve_triangular(lower, (q.loc - other["loc"]).unsqueeze(-1), upper=False)
    return _half(q, trace + white.double().square().sum((-2, -1)) + q._logdet() + _logdet_of_square(lower))


@register_kl(MultivariateNormal, GaussianGraphicalModel)
@tells(function="kl_divergence")
def _kl_from_dense(q: MultivariateNormal, p: GaussianGraphicalModel) -> Tensor:
    """With Σ_q = T Tᵀ: tr(P_p Σ_q) = ‖L_pᵀ T‖². O(n nnz(L_p)) a batch element."""
    p, other = _in_one_space(p, q, loc=q.loc, scale_tril=q._unbroadcasted_scale_tril)
    lower = other["scale_tril"]
    trace = p._whiten_rows(lower.mT).double().square().sum((-2, -1))
    square = p._square_distance(other["loc"])
    return _half(p, trace + square - p._logdet() - _logdet_of_square(lower))


def _half(own: GaussianGraphicalModel, terms: Tensor) -> Tensor:
    """½ [terms − n], in the dtype."""
    return rounded(0.5 * (terms - own.topology.n), own.loc.dtype)


def _logdet_of_square(lower: Tensor) -> Tensor:
    """log det T Tᵀ in float64."""
    return 2.0 * lower.diagonal(dim1=-2, dim2=-1).double().log().sum(-1)


def _beside_normal(
    own: GaussianGraphicalModel, other: Independent[Normal]
) -> tuple[GaussianGraphicalModel, Tensor, Tensor]:
    """The Gaussians, and loc and scale of the independent normals, if they are on the same nodes."""
    normal = other.base_dist
    if not isinstance(normal, Normal) or other.reinterpreted_batch_ndims != 1:
        raise NotImplementedError(
            f"kl_divergence: of a GaussianGraphicalModel and {other} is not defined: needs Independent(Normal, 1)."
        )
    own, tensors = _in_one_space(own, other, loc=normal.loc, scale=normal.scale)
    return own, tensors["loc"], tensors["scale"]


def _in_one_space(
    own: GaussianGraphicalModel, other: Distribution, **parameters: Tensor
) -> tuple[GaussianGraphicalModel, dict[str, Tensor]]:
    """The Gaussians and another distribution's parameters in one dtype, if its nodes, device and batch axes fit."""
    rows = all(tensor.shape == own.event_shape for tensor in parameters.values())
    if rows and are_uniform((own.loc, *parameters.values())):  # as it mostly is: nothing to convert or to refuse
        return own, parameters
    if other.event_shape != own.event_shape:
        raise ShapeError(
            f"kl_divergence: needs two distributions of {own.topology.n} nodes, got event shape "
            f"{tuple(other.event_shape)} beside {own}."
        )
    loc, *tensors = as_tensors("kl_divergence", own=own.loc, **parameters)
    if tensors[0].shape != own.event_shape:
        common_batch("kl_divergence", one=own.loc, other=tensors[0])
    return own._in_dtype(loc.dtype), dict(zip(parameters, tensors, strict=True))
