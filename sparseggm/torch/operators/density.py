"""KL to and from independent normals, and log-densities: each one operator, and one kernel each way.

Means, points and their cotangents are in the caller's numbering, factors in that of their pattern; `order` (n,) is
between them, None if the two agree. Kernels serve tensors of one batch shape, of which `mean` and `scale` may also be
single rows; where batch axes broadcast, the same is composed of verbs. Sums over the nodes are formed in float64. A
result beyond the dtype raises if values can be read, and is infinite else.

The module is longer than others: the three densities are read side by side, in arrays, gradients and verbs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparseggm import linalg
from sparseggm.graph.pattern import FloatArray, Pattern
from sparseggm.kernels.sparse.density import LOG_2PI
from sparseggm.linalg import calculus, checks, density
from sparseggm.torch.operators import algebra, distances, second_moments
from sparseggm.torch.operators.addresses import new, run_at, stride_of, takes_addresses
from sparseggm.torch.operators.blocks import add_logdet_vjp, sum_in_float64
from sparseggm.torch.operators.embedding import diagonal, on_diagonal
from sparseggm.torch.operators.numbering import inverse_of, reordered, taker
from sparseggm.torch.operators.registration import (
    array,
    batch_of,
    have_values,
    index,
    key_of,
    may_skip_dispatcher,
    pattern_of,
    register,
    vjp,
)


@dataclass(frozen=True)
class Density:
    """An operator of loc, L, the order and one or two vectors, one number a batch element; called with a pattern first.

    Args:
        name: of the operator; of its kernels in `linalg.density`, forward and for the cotangents.
        others: the vectors: a point or mean, whose cotangent is −loc̄ before sums, and perhaps scales.
        by_verbs: of the pattern and arrays; in float64.
        vjp_by_verbs: of the same and the cotangent: those of loc, L and the others.
        in_verbs: of the pattern, the order and tensors; differentiable to every order.
    """

    name: str
    others: tuple[str, ...]
    by_verbs: Callable[..., FloatArray]
    vjp_by_verbs: Callable[..., tuple[FloatArray, ...]]
    in_verbs: Callable[..., Tensor]

    def __call__(self, pattern: Pattern, loc: Tensor, factor: Tensor, order: Tensor | None, *others: Tensor) -> Tensor:
        if may_skip_dispatcher(loc, factor, *others):
            checks.require_pattern(self.name, pattern)
            return _Eager.apply(self, pattern, loc, factor, order, *others)  # type: ignore[no-any-return]
        key = key_of(pattern, self.name, loc, factor, *others)
        result: Tensor = getattr(torch.ops.sparseggm, self.name)(key, loc, factor, order, *others)
        if have_values(result):
            checks.require_representable(self.name, array(result), array(result).dtype)
        return result

    def run(
        self,
        pattern: Pattern,
        loc: Tensor,
        factor: Tensor,
        order: Tensor | None,
        *others: Tensor,
    ) -> tuple[Tensor, bool]:
        """The value, by its kernel or by verbs, and whether it is known to be finite."""
        stride = stride_of(loc, *others)
        if stride is not None and takes_addresses(pattern, loc, factor):
            result = loc.new_empty(loc.shape[:-1])
            if run_at(self.name, pattern, order, (loc, factor, *others), (result,), stride):
                return result, True
        with np.errstate(all="ignore"):
            value = self.by_verbs(pattern, array(loc), array(factor), order, *map(array, others))
            return torch.from_numpy(np.array(value, array(loc).dtype, order="C")), False

    def bars(
        self, pattern: Pattern, loc: Tensor, factor: Tensor, order: Tensor | None, others: Any, bar: Tensor, needs: bool
    ) -> tuple[Tensor | None, ...]:
        """The cotangents of loc, L and the others; None in place of these unless needed."""
        if torch.is_grad_enabled():  # the gradient is to be differentiated: write it in verbs that can be
            with checks.non_finite_passes():
                found = vjp(partial(self.in_verbs, pattern, order), (loc, factor, *others), bar)
        elif may_skip_dispatcher(loc, bar):
            return self._bars(pattern, loc, factor, order, others, bar, needs)
        else:
            key, backward = key_of(pattern, f"{self.name}_vjp", loc), getattr(torch.ops.sparseggm, f"{self.name}_vjp")
            found = backward(key, loc, factor, order, *others, bar, needs)
        return *found[:2], *(found[2:] if needs else [None] * len(others))

    def _bars(
        self, pattern: Pattern, loc: Tensor, factor: Tensor, order: Tensor | None, others: Any, bar: Tensor, needs: bool
    ) -> tuple[Tensor | None, ...]:
        """`bars` by the kernel, or by verbs of arrays."""
        stride, has_scale = stride_of(loc, *others), len(others) == 2
        bar = bar.resolve_neg()
        if stride is not None and bar.dtype is loc.dtype and takes_addresses(pattern, loc, factor):
            loc_bar, factor_bar, scale_bar = new(loc), new(factor), new(loc) if needs and has_scale else None
            results = (loc_bar, factor_bar, scale_bar) if has_scale else (loc_bar, factor_bar)
            if run_at(f"{self.name}_vjp", pattern, order, (loc, factor, *others, bar), results, stride):
                return loc_bar, factor_bar, *_of_others(loc_bar, scale_bar, others, needs)
        with checks.non_finite_passes(), np.errstate(all="ignore"):
            arrays = array(loc), array(factor), order, *map(array, others), array(bar)
            found = self.vjp_by_verbs(pattern, *arrays)
            tensors = [torch.from_numpy(np.array(one, arrays[0].dtype, order="C", copy=None)) for one in found]
        return *tensors[:2], *(tensors[2:] if needs else [None] * len(others))

    def rule(self, ctx: Any, bar: Tensor) -> tuple[Any, ...]:
        """The cotangents of pattern, loc, L, order and the others."""
        loc, factor, order, *others = ctx.saved_tensors
        needs = any(ctx.needs_input_grad[-len(others) :])
        loc_bar, factor_bar, *of_others = self.bars(ctx.pattern, loc, factor, order, others, bar, needs)
        return None, loc_bar, factor_bar, None, *of_others

    def register(self) -> Density:
        """Define both operators."""
        others = "".join(f", Tensor {other}" for other in self.others)
        arguments = f"str key, Tensor loc, Tensor factor, Tensor? order{others}"
        register(
            f"{self.name}({arguments}) -> Tensor",
            {"CPU": lambda key, *tensors: self.run(pattern_of(key), *tensors)[0]},
            lambda key, loc, factor, order, *others: loc.new_empty(batch_of(*others, loc, factor)),
            _setup,
            self.rule,
        )
        results = ", ".join(["Tensor"] * (2 + len(self.others)))
        register(
            f"{self.name}_vjp({arguments}, Tensor bar, bool needs_others) -> ({results})",
            {"CPU": self._run_vjp},
            _fake_vjp,
            loops=True,
        )
        return self

    def _run_vjp(self, key: str, loc: Tensor, factor: Tensor, order: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
        """An operator has no optional results: those that are not wanted have no entries."""
        *others, bar, needs = rest
        found = self._bars(pattern_of(key), loc, factor, order, others, bar, needs)
        return tuple(loc.new_empty(0) if one is None else one for one in found)


class _Eager(torch.autograd.Function):
    """The operator without the dispatcher, whose layers cost as much as the arithmetic of few numbers."""

    @staticmethod
    def forward(ctx: Any, own: Density, pattern: Pattern, *tensors: Any) -> Tensor:
        ctx.own, ctx.pattern = own, pattern
        ctx.save_for_backward(*tensors)
        result, is_finite = own.run(pattern, *tensors)
        if not is_finite:
            checks.require_representable(own.name, array(result), array(result).dtype)
        return result

    @staticmethod
    def backward(ctx: Any, bar: Tensor) -> Any:
        with checks.non_finite_passes():
            return None, *ctx.own.rule(ctx, bar)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.pattern = pattern_of(inputs[0])
    ctx.save_for_backward(*inputs[1:])


def _fake_vjp(key: str, loc: Tensor, factor: Tensor, order: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
    *others, _, needs = rest
    of_others = [other.new_empty(other.shape if needs else 0) for other in others]
    return loc.new_empty(loc.shape), factor.new_empty(factor.shape), *of_others


def _of_others(
    loc_bar: Tensor, scale_bar: Tensor | None, others: list[Tensor], needs: bool
) -> tuple[Tensor | None, ...]:
    """The cotangents of a mean and perhaps a scale, each summed over the rows that shared it."""
    if not needs:
        return (None,) * len(others)
    bars = (-loc_bar, scale_bar)
    return tuple(_summed(bar, like) for bar, like in zip(bars, others, strict=False))


def _summed(bar: Tensor | None, like: Tensor) -> Tensor | None:
    if bar is None or bar.shape == like.shape:
        return bar
    return torch.from_numpy(sum_in_float64(array(bar), tuple(like.shape)).astype(array(bar).dtype))


# ---------------------------------------------------------------------- KL to independent normals


def _to_normal_by_verbs(
    pattern: Pattern, loc: FloatArray, factor: FloatArray, order: Any, mean: FloatArray, scale: FloatArray
) -> FloatArray:
    d, s, v = _offset(order, loc, mean), taker(order)(scale.astype(np.float64)), _variances(pattern, factor)
    terms = (v + d * d) / (s * s) + 2.0 * np.log(s)
    return 0.5 * (terms.sum(-1) - pattern.n + linalg.logdet(pattern, factor, np.float64))  # type: ignore[no-any-return]


def _to_normal_vjp_by_verbs(
    pattern: Pattern,
    loc: FloatArray,
    factor: FloatArray,
    order: Any,
    mean: FloatArray,
    scale: FloatArray,
    bar: FloatArray,
) -> tuple[FloatArray, ...]:
    back = taker(inverse_of(order))
    k, batch = bar.astype(np.float64)[..., None], factor.shape[:-1]
    d, s, v = _offset(order, loc, mean), taker(order)(scale.astype(np.float64)), _variances(pattern, factor)
    pull = k / (s * s)
    own = sum_in_float64(0.5 * pull, (*batch, pattern.n)).astype(factor.dtype)
    factor_bar = calculus.marginal_variances_vjp(pattern, factor, own)
    add_logdet_vjp(factor_bar, pattern, factor, bar)
    loc_bar, scale_bar = back(pull * d), back((k - (v + d * d) * pull) / s)
    shapes = loc.shape, mean.shape, scale.shape
    found = [sum_in_float64(each, shape) for each, shape in zip((loc_bar, -loc_bar, scale_bar), shapes, strict=True)]
    return found[0], factor_bar, *found[1:]


def _to_normal_in_verbs(
    pattern: Pattern, order: Tensor | None, loc: Tensor, factor: Tensor, mean: Tensor, scale: Tensor
) -> Tensor:
    d, s = reordered((loc.double() - mean.double()), order), reordered(scale.double(), order)
    v = second_moments.marginal_variances(pattern, factor).double()
    terms = (v + d.square()) / s.square() + 2.0 * s.log()
    kl = 0.5 * (terms.sum(-1) - pattern.n + algebra.logdet(pattern, factor, in_float64=True))
    return kl.to(loc.dtype)


kl_to_normal = Density(
    "kl_to_normal", ("mean", "scale"), _to_normal_by_verbs, _to_normal_vjp_by_verbs, _to_normal_in_verbs
).register()
"""KL(N(loc, P⁻¹) ‖ N(mean, diag scale²)) in nats; batch axes broadcast."""


# ---------------------------------------------------------------------- log-densities


def _log_prob_by_verbs(pattern: Pattern, loc: FloatArray, factor: FloatArray, order: Any, x: FloatArray) -> FloatArray:
    square = distances.square_distances(pattern, loc, factor, order, x)
    return 0.5 * (linalg.logdet(pattern, factor, np.float64) - square - pattern.n * LOG_2PI)


def _log_prob_vjp_by_verbs(
    pattern: Pattern, loc: FloatArray, factor: FloatArray, order: Any, x: FloatArray, bar: FloatArray
) -> tuple[FloatArray, ...]:
    loc_bar, factor_bar, x_bar = distances.square_distances_vjp(pattern, loc, factor, order, x, -0.5 * bar)
    add_logdet_vjp(factor_bar, pattern, factor, bar)
    return loc_bar, factor_bar, x_bar


def _log_prob_in_verbs(pattern: Pattern, order: Tensor | None, loc: Tensor, factor: Tensor, x: Tensor) -> Tensor:
    white = algebra.matmul_t(pattern, factor, reordered(x - loc, order))
    logdet = algebra.logdet(pattern, factor, in_float64=True)
    return (0.5 * (logdet - white.double().square().sum(-1) - pattern.n * LOG_2PI)).to(loc.dtype)


log_prob = Density("log_prob", ("x",), _log_prob_by_verbs, _log_prob_vjp_by_verbs, _log_prob_in_verbs).register()
"""log N(x; loc, P⁻¹); batch axes broadcast."""


# ---------------------------------------------------------------------- KL from independent normals


def _from_normal_by_verbs(
    pattern: Pattern, loc: FloatArray, factor: FloatArray, order: Any, mean: FloatArray, scale: FloatArray
) -> FloatArray:
    s = taker(order)(scale.astype(np.float64))
    square = distances.square_distances(pattern, loc, factor, order, mean)
    trace = np.square(factor * s[..., pattern.rows]).sum(-1)
    total = trace + square - 2.0 * np.log(s).sum(-1) - pattern.n - linalg.logdet(pattern, factor, np.float64)
    return 0.5 * total  # type: ignore[no-any-return]


def _from_normal_vjp_by_verbs(
    pattern: Pattern,
    loc: FloatArray,
    factor: FloatArray,
    order: Any,
    mean: FloatArray,
    scale: FloatArray,
    bar: FloatArray,
) -> tuple[FloatArray, ...]:
    shared = np.broadcast_shapes(loc.shape[:-1], factor.shape[:-1], mean.shape[:-1])
    half = 0.5 * sum_in_float64(bar[..., None], (*shared, 1))[..., 0]
    loc_bar, factor_bar, mean_bar = distances.square_distances_vjp(pattern, loc, factor, order, mean, half)
    k, s = bar.astype(np.float64)[..., None], taker(order)(scale.astype(np.float64))
    factor_bar += sum_in_float64(k * np.square(s)[..., pattern.rows], factor.shape) * factor
    add_logdet_vjp(factor_bar, pattern, factor, -bar)
    squares = linalg.matmul(pattern, np.square(factor, dtype=np.float64), np.ones(pattern.n))
    scale_bar = taker(inverse_of(order))(k * (s * squares - 1.0 / s))
    return loc_bar, factor_bar, mean_bar, sum_in_float64(scale_bar, scale.shape)


def _from_normal_in_verbs(
    pattern: Pattern, order: Tensor | None, loc: Tensor, factor: Tensor, mean: Tensor, scale: Tensor
) -> Tensor:
    s = reordered(scale.double(), order)
    white = algebra.matmul_t(pattern, factor, reordered(mean - loc, order))
    trace = (factor.double() * s.index_select(-1, index(pattern.rows, s))).square().sum(-1)
    total = trace + white.double().square().sum(-1) - 2.0 * s.log().sum(-1) - pattern.n
    return (0.5 * (total - algebra.logdet(pattern, factor, in_float64=True))).to(loc.dtype)


kl_from_normal = Density(
    "kl_from_normal", ("mean", "scale"), _from_normal_by_verbs, _from_normal_vjp_by_verbs, _from_normal_in_verbs
).register()
"""KL(N(mean, diag scale²) ‖ N(loc, P⁻¹)) in nats; batch axes broadcast."""


# ---------------------------------------------------------------------- entropy


def entropy(pattern: Pattern, factor: Tensor) -> Tensor:
    """½ [n (1 + log 2π) − log det P] in nats, on the batch axes of the factor."""
    if may_skip_dispatcher(factor):
        return _EagerEntropy.apply(pattern, factor)  # type: ignore[no-any-return]
    return torch.ops.sparseggm.entropy(key_of(pattern, "entropy", factor), factor)  # type: ignore[no-any-return]


def _entropy(pattern: Pattern, factor: Tensor) -> Tensor:
    return torch.from_numpy(np.asarray(density.entropy(pattern, array(factor))))


# H = const − Σ log L_jj  ⇒  L̄ = −H̄ diag(1/L_jj)
def _entropy_rule(ctx: Any, bar: Tensor) -> tuple[None, Tensor]:
    pattern, (factor,) = ctx.pattern, ctx.saved_tensors
    if not torch.is_grad_enabled() and may_skip_dispatcher(factor, bar):
        return None, torch.from_numpy(density.entropy_vjp(pattern, array(factor), array(bar)))
    return None, on_diagonal(pattern, -bar[..., None] / diagonal(pattern, factor))


class _EagerEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pattern: Pattern, factor: Tensor) -> Tensor:
        ctx.pattern = pattern
        ctx.save_for_backward(factor)
        return _entropy(pattern, factor)

    @staticmethod
    def backward(ctx: Any, bar: Tensor) -> Any:
        with checks.non_finite_passes():
            return _entropy_rule(ctx, bar)


register(
    "entropy(str key, Tensor factor) -> Tensor",
    {"CPU": lambda key, factor: _entropy(pattern_of(key), factor)},
    lambda key, factor: factor.new_empty(factor.shape[:-1]),
    _setup,
    _entropy_rule,
)


# ---------------------------------------------------------------------- small words


def _offset(order: Tensor | None, loc: FloatArray, mean: FloatArray) -> FloatArray:
    """loc − mean in float64, in the order of elimination."""
    return taker(order)(loc.astype(np.float64) - mean)


def _variances(pattern: Pattern, factor: FloatArray) -> FloatArray:
    return linalg.marginal_variances(pattern, factor).astype(np.float64)
