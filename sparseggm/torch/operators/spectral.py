"""The largest eigenvalue of a sparse symmetric matrix for tensors: see `sparseggm.spectral`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sparseggm.graph.pattern import FloatArray, Pattern
from sparseggm.linalg import checks
from sparseggm.positivity import spectral
from sparseggm.torch.operators.algebra import diagonal_halved, outer
from sparseggm.torch.operators.registration import array, key_of, pattern_of, register


def largest_eigenvalue(pattern: Pattern, values: Tensor) -> Tensor:
    """ρ with ρ ≤ λ_max(R) ≤ (1 + ROOM) ρ; see `spectral.largest_eigenvalue`."""
    return spectral.largest_eigenvalue(pattern, values)  # type: ignore[no-any-return]


@spectral.rules.register(Tensor)
def _of_tensor(values: Tensor, pattern: Pattern) -> Tensor:
    spectral.require_zero_diagonal("largest_eigenvalue", pattern, values)
    key = key_of(pattern, "largest_eigenvalue", values)
    if pattern.n <= spectral.DENSE_NODES:
        dense = spectral.dense(pattern, values)
        return torch.ops.sparseggm.leading_projector(dense)[0]  # type: ignore[no-any-return]
    return torch.ops.sparseggm.leading_eigenpair(key, values.double())[0]  # type: ignore[no-any-return]


# ---------------------------------------------------------------------- from the dense matrix


def _of_arrays(function: Callable[[FloatArray], tuple[FloatArray, ...]]) -> Callable[[Tensor], tuple[Tensor, ...]]:
    def run(matrix: Tensor) -> tuple[Tensor, ...]:
        checks.require_finite("largest_eigenvalue", "values", None, array(matrix))
        return tuple(map(torch.from_numpy, function(array(matrix))))

    return run


def _projector_fake(matrix: Tensor) -> tuple[Tensor, Tensor]:
    return matrix.new_empty(matrix.shape[:-2]), matrix.new_empty(matrix.shape)


def _projector_setup(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs, output[1])


def _projector_vjp(ctx: Any, value_bar: Tensor | None, p_bar: Tensor | None) -> tuple[Tensor | None]:
    matrix, projector = ctx.saved_tensors
    bar = torch.zeros_like(projector)
    if p_bar is not None:  # in second derivatives, which need all of the eigenspaces
        bar = bar + _bar_of_projector(torch.ops.sparseggm.leading_eigenspace(matrix)[2], p_bar, projector)
    if value_bar is not None:
        bar = bar + _bar_of_value(value_bar, projector)
    return (bar,)


register(
    "leading_projector(Tensor matrix) -> (Tensor, Tensor)",
    {"CPU": _of_arrays(spectral.leading_projector)},
    _projector_fake,
    _projector_setup,
    _projector_vjp,
)


def _space_fake(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return matrix.new_empty(matrix.shape[:-2]), matrix.new_empty(matrix.shape), matrix.new_empty(matrix.shape)


def _space_setup(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output[1:])


# With Π of rank m, K = (ρ I − R)⁺ and D = dρ I − dR:
#     dρ = tr(Π dR) / m ,  dΠ = K dR Π + Π dR K ,  dK = −K D K + K² D Π + Π D K²
# where ρ is simple. Of m copies dρ and d²ρ are those of their mean, which is smooth.
def _space_vjp(ctx: Any, value_bar: Tensor | None, p_bar: Tensor | None, k_bar: Tensor | None) -> tuple[Tensor | None]:
    projector, k = ctx.saved_tensors
    bar = torch.zeros_like(k)
    if p_bar is not None:
        bar = bar + _bar_of_projector(k, p_bar, projector)
    if k_bar is not None:
        c = _symmetric(k_bar)
        d_bar = 2.0 * _symmetric(k @ k @ c @ projector) - k @ c @ k
        bar, value_bar = bar - d_bar, _trace(d_bar) if value_bar is None else value_bar + _trace(d_bar)
    if value_bar is not None:
        bar = bar + _bar_of_value(value_bar, projector)
    return (bar,)


def _bar_of_value(value_bar: Tensor, projector: Tensor) -> Tensor:
    copies = _trace(projector).detach().round()
    return (value_bar / copies)[..., None, None] * projector


def _bar_of_projector(k: Tensor, p_bar: Tensor, projector: Tensor) -> Tensor:
    return 2.0 * _symmetric(k @ _symmetric(p_bar) @ projector)


def _trace(matrix: Tensor) -> Tensor:
    return matrix.diagonal(dim1=-2, dim2=-1).sum(-1)


def _symmetric(matrix: Tensor) -> Tensor:
    return 0.5 * (matrix + matrix.mT)


register(
    "leading_eigenspace(Tensor matrix) -> (Tensor, Tensor, Tensor)",
    {"CPU": _of_arrays(spectral.leading_eigenspace)},
    _space_fake,
    _space_setup,
    _space_vjp,
)


# ---------------------------------------------------------------------- by sparse factorisations


def _setup(ctx: Any, inputs: tuple[str, Tensor], output: tuple[Tensor, Tensor]) -> None:
    ctx.pattern = pattern_of(inputs[0])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[1])


# dλ = vᵀ dR v  ⇒  R̄_ij = 2 λ̄ v_i v_j for a stored off-diagonal, λ̄ v_i² on the diagonal
def _vjp(ctx: Any, value_bar: Tensor | None, vector_bar: Tensor | None) -> tuple[None, Tensor | None]:
    if vector_bar is not None:
        raise NotImplementedError(
            f"largest_eigenvalue: beyond {spectral.DENSE_NODES} nodes it can be differentiated once; a second "
            "derivative needs that of the eigenvector. Use parametrize.scaled, or a smaller graph."
        )
    if value_bar is None:
        return None, None
    pattern, (v,) = ctx.pattern, ctx.saved_tensors
    return None, diagonal_halved(pattern, outer(pattern, 2.0 * value_bar[..., None] * v, v))


def _run(key: str, values: Tensor) -> tuple[Tensor, Tensor]:
    value, vector = spectral.leading_eigenpair(pattern_of(key), array(values))
    return torch.from_numpy(value), torch.from_numpy(vector)


def _fake(key: str, values: Tensor) -> tuple[Tensor, Tensor]:
    empty = partial(values.new_empty, dtype=torch.float64)
    return empty(values.shape[:-1]), empty((*values.shape[:-1], pattern_of(key).n))


register("leading_eigenpair(str key, Tensor values) -> (Tensor, Tensor)", {"CPU": _run}, _fake, _setup, _vjp)
