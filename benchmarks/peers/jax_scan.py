"""A chain's training step in JAX: one jit-compiled `lax.scan` over the nodes, vectorised over the batch.

Arrays are (n, batch), so that the scan reads contiguous memory; the output of a network must be transposed first.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks.contest import Contestant
from benchmarks.problems import Step, interleave


@partial(jax.jit, static_argnames="unroll")
def sample_and_kl_with_gradients(
    loc: jax.Array,
    pivots: jax.Array,
    couplings: jax.Array,
    noise: jax.Array,
    z_bar: jax.Array,
    kl_bar: jax.Array,
    *,
    unroll: int,
) -> tuple[jax.Array, ...]:
    """z, KL, and the gradients of loc, pivots and couplings; the last coupling is zero."""

    def sample_and_kl(loc: jax.Array, pivots: jax.Array, couplings: jax.Array) -> tuple[jax.Array, jax.Array]:
        def node(carry: Any, inputs: Any) -> Any:  # a_i x_i + b_i x_{i+1} = ε_i, and the variance of both sides
            offset, variance, trace = carry
            a, b, eps = inputs
            offset = (eps - b * offset) / a
            variance = (1.0 + b * b * variance) / (a * a)
            return (offset, variance, trace + variance), offset

        zero = jnp.zeros_like(loc[0])
        start = (zero, zero, zero)
        (_, _, trace), offset = lax.scan(node, start, (pivots, couplings, noise), reverse=True, unroll=unroll)
        kl = 0.5 * (trace + (loc * loc).sum(0) - loc.shape[0]) + jnp.log(pivots).sum(0)
        return loc + offset, kl

    outputs, vjp = jax.vjp(sample_and_kl, loc, pivots, couplings)
    return (*outputs, *vjp((z_bar, kl_bar)))


def step(problem: Step, unroll: int = 1) -> Contestant:
    """The step of a chain."""
    couplings = np.pad(problem.couplings, ((0, 0), (0, 1)))
    by_node = [problem.loc, problem.pivots, couplings, problem.noise, problem.z_bar]
    arguments = [*(jnp.asarray(array.T) for array in by_node), jnp.asarray(problem.kl_bar)]

    def call() -> Any:
        return jax.block_until_ready(sample_and_kl_with_gradients(*arguments, unroll=unroll))

    def answer(result: Any) -> list[Any]:
        z, kl, loc_bar, pivots_bar, couplings_bar = (np.asarray(array).T for array in result)
        return [z, kl, loc_bar, interleave(pivots_bar, couplings_bar[:, :-1])]

    return Contestant(call, answer)
