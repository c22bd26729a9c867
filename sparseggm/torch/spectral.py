"""The largest eigenvalue of a sparse symmetric matrix for tensors: see `sparseggm.spectral`."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from sparseggm import spectral
from sparseggm.pattern import Pattern
from sparseggm.torch.algebra import diagonal_halved, outer
from sparseggm.torch.registration import array, key_of, pattern_of, register


def largest_eigenvalue(pattern: Pattern, values: Tensor) -> Tensor:
    """ρ with ρ ≤ λ_max(R) ≤ (1 + ROOM) ρ; see `spectral.largest_eigenvalue`."""
    return spectral.largest_eigenvalue(pattern, values)  # type: ignore[no-any-return]


@spectral.rules.register(Tensor)
def _of_tensor(values: Tensor, pattern: Pattern) -> Tensor:
    spectral.require_zero_diagonal("largest_eigenvalue", pattern, values)
    if pattern.n <= spectral.DENSE_NODES:
        return spectral.by_dense_matrix(pattern, values)  # type: ignore[no-any-return]
    key = key_of(pattern, "largest_eigenvalue", values)
    return torch.ops.sparseggm.leading_eigenpair(key, values.double())[0]  # type: ignore[no-any-return]


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


register("leading_eigenpair(str key, Tensor values) -> (Tensor, Tensor)", _run, _fake, _setup, _vjp)
