"""Compile every kernel ahead of its first use: `python -m sparseggm.precompile`, once for an environment or an image.

Otherwise each kernel is compiled by the first call that needs it. Either way its code is kept on disk, in
NUMBA_CACHE_DIR if that is set, else beside the package, else in the user's cache, until the package, Numba or the
processor changes. Other users load the files beside the package, even if they may not write there.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import numpy.typing as npt

from sparseggm import linalg, threads
from sparseggm.graph import orders
from sparseggm.graph.colouring import distance_colouring
from sparseggm.graph.families import Chain, ExtendedGrid
from sparseggm.graph.graphs import Graph, Grid, Torus
from sparseggm.graph.pattern import Pattern
from sparseggm.linalg import calculus, conditionals, density, levels, long_chain, residual, sampling, step
from sparseggm.linalg.eigenpairs import leading_pairs
from sparseggm.linalg.natural import natural_gradient

_BATCH = threads.LANES


def compile_verbs(dtype: npt.DTypeLike) -> None:
    """Call each verb once on arrays of a dtype."""
    pattern = ExtendedGrid(2, 3).factor_pattern
    filled = pattern.filled()
    factor, closed = _identity(pattern, _BATCH, dtype), _identity(filled, _BATCH, dtype)
    x = np.ones((_BATCH, pattern.n), dtype)
    for product in (linalg.matmul, linalg.matmul_t, linalg.solve, linalg.solve_t):
        product(pattern, factor, x)
    linalg.symmetric_matmul(pattern, factor, x)
    linalg.outer(pattern, x, x)
    linalg.logdet(pattern, factor)
    linalg.selected_inverse(filled, linalg.cholesky(filled, linalg.gram(filled, closed)))
    linalg.attempt_cholesky(Chain(2).precision_pattern, np.array([1, 1, 1 + 2e-7], dtype))  # a small pivot
    linalg.precision_logdet(filled, closed[0])
    calculus.cholesky_jvp(filled, closed, closed)
    calculus.marginal_variances_vjp(pattern, factor, x)
    _compile_step(pattern, dtype)
    chain = Chain(3).factor_pattern
    _compile_step(chain, dtype)
    natural_gradient(chain, _identity(chain, _BATCH, dtype), x[:, :3], _identity(chain, _BATCH, dtype), False)
    residual.sample_and_kl_terms(pattern, x, factor, x, 0.0 * factor, x)  # as its adjoint
    conditionals.kl_terms(pattern, x, factor, factor)  # as its adjoint
    density.sample_vjp(pattern, None, x, factor, density.sample(pattern, None, x, factor, x), x)
    density.kl_to_normal(pattern, None, x, factor, x, x)  # as its adjoint
    density.kl_from_normal(pattern, None, x, factor, x, x)
    density.kl_from_normal_vjp(pattern, None, x, factor, x, x, x[:, 0])
    density.is_valid(pattern, x, factor)
    of_levels = x, factor, np.zeros_like(x, int), np.array([-1.0, 1.0]), 0.5 * x
    levels.levels_log_prob(pattern, *of_levels)
    levels.levels_log_prob_and_gradients(pattern, *of_levels)
    sampling.sample_and_log_prob(pattern, None, x, factor, np.zeros(_BATCH), x)
    _compile_fronts(dtype)
    _compile_long_chain(dtype)


def _compile_step(pattern: Pattern, dtype: npt.DTypeLike) -> None:
    factor, x = _identity(pattern, _BATCH, dtype), np.ones((_BATCH, pattern.n), dtype)
    step.sample_and_kl(pattern, x, factor, x)
    step.sample_and_kl_vjp(pattern, x, factor, x, x, x[:, 0])


def _compile_fronts(dtype: npt.DTypeLike) -> None:
    dense = Pattern.from_edges(192, np.stack(np.tril_indices(192), axis=-1))
    factor = linalg.cholesky(dense, _identity(dense, 1, dtype)[0])
    linalg.selected_inverse(dense, factor)


def _compile_long_chain(dtype: npt.DTypeLike) -> None:
    pattern = Chain(long_chain.LONG).factor_pattern
    factor, x = _identity(pattern, 1, dtype)[0], np.ones(pattern.n, dtype)
    linalg.solve(pattern, linalg.cholesky(pattern, factor), x)
    linalg.solve_t(pattern, factor, x)
    linalg.precision_solve(pattern, factor, x)
    natural_gradient(pattern, factor, x, factor, False)
    step.sample_and_kl_vjp(pattern, x, factor, x, x, np.ones((), dtype))


def compile_graphs() -> None:
    """Call the kernels that have no dtype: orders of elimination, colourings, and eigenvalues, always in float64."""
    leading_pairs(np.zeros((1, 2, 2)))
    ring = Graph(8, [(k, (k + 1) % 8) for k in range(8)])
    distance_colouring(ring.precision_pattern, 2)
    ring.precision_pattern.positions_in(ring.precision_pattern.filled())
    orders.graph_order(256, Torus(16, 16).edges)  # beyond the size of a leaf
    orders.grid_order((2, 2), Grid(2, 2).edges)


def _identity(pattern: Pattern, batch: int, dtype: npt.DTypeLike) -> npt.NDArray[np.floating]:
    values = np.zeros((batch, pattern.nnz), dtype)
    values[:, pattern.diagonal] = 1
    return values


def end_with_parent() -> None:
    """End this process when its parent ends, whatever it is at: a parent that is killed cannot say so."""

    def wait() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def main() -> None:
    """Compile for both dtypes at the same time, each in its own process; prints the seconds."""
    start = time.perf_counter()
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn"), end_with_parent) as pool:
        tasks = [pool.submit(compile_verbs, dtype) for dtype in ("float32", "float64")]
        compile_graphs()
        for task in tasks:
            task.result()
    print(f"sparseggm: every kernel is compiled, in {time.perf_counter() - start:.0f} s.")


if __name__ == "__main__":
    main()
