"""SuiteSparse's CHOLMOD under JAX, by sparsax: log det, its gradient, and the selected inverse of a batch.

sparsax caches its symbolic analysis, as we do. It also skips a factorisation when the values are those of the last
call, which does not happen in a real loop; so calls alternate between two batches.
"""

from __future__ import annotations

from itertools import cycle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import sparsax

from benchmarks.contest import Contestant
from benchmarks.problems import Array
from sparseggm import Pattern

jax.config.update("jax_enable_x64", True)  # CHOLMOD under sparsax is float64 only


def logdet(pattern: Pattern, precision: Array) -> Contestant:
    """log det P of each batch element."""
    return _of(pattern, precision, lambda i, j, values: sparsax.logdet(i, j, values, pattern.n))


def logdet_with_gradient(pattern: Pattern, precision: Array) -> Contestant:
    """log det P, and its gradient with respect to the stored values."""
    return _of(pattern, precision, lambda i, j, values: jax.value_and_grad(sparsax.logdet, 2)(i, j, values, pattern.n))


def selected_inverse(pattern: Pattern, precision: Array) -> Contestant:
    """Σ on the pattern of P."""
    return _of(pattern, precision, lambda i, j, values: sparsax.selinv(i, j, values, pattern.n))


def _of(pattern: Pattern, precision: Array, function: Any) -> Contestant:
    """`function` jit-compiled and mapped over the batch; it reads the upper triangle."""
    rows, cols = jnp.asarray(pattern.cols, jnp.int32), jnp.asarray(pattern.rows, jnp.int32)
    mapped = jax.jit(jax.vmap(lambda values: function(rows, cols, values)))
    batches = cycle([jnp.asarray(precision), jnp.asarray(precision * (1.0 + 1e-12))])

    def call() -> Any:
        before = sparsax.factorization_count()
        result = jax.block_until_ready(mapped(next(batches)))
        assert sparsax.factorization_count() - before >= len(precision)
        return result

    return Contestant(call, lambda result: [np.asarray(array) for array in jax.tree.leaves(result)])
