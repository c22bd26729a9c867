"""Engines, and the choice among them: `engine_for` decides by pattern, batch and dtype which code serves a call.

Nothing else makes this choice. To add an engine, write a class with the methods of `primitives.Engine`, and give it a
place in `ENGINES`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sparseggm import threads
from sparseggm.graph.pattern import FloatArray, IndexArray, IntArray, Pattern
from sparseggm.kernels.chain import step as chain_step
from sparseggm.kernels.chain.natural import natural_gradient
from sparseggm.kernels.chain.recurrences import SMALL_PIVOT
from sparseggm.kernels.fronts import assembly
from sparseggm.kernels.sparse.cholesky import log_determinants_of_factors
from sparseggm.linalg import checks, long_chain
from sparseggm.linalg.primitives import ALL, Engine, Gaussians, Shared, Step, rows_at
from sparseggm.linalg.sparse import Sparse, judge_small_pivots

LEAST_FRONTS = 128
"""Nodes from which on it is asked whether a matrix has fronts that are faster than its columns."""


class Fronts(Sparse):
    """Large matrices, factorised and inverted in dense fronts where `Pattern.fronts` has found these faster.

    Whatever the batch, so that results do not depend on it, although a full block of lanes may be faster.
    """

    def serves(self, pattern: Pattern, batch: int, dtype: np.dtype[Any]) -> bool:
        return pattern.n >= LEAST_FRONTS and not pattern.is_chain

    def cholesky(self, pattern: Pattern, precision: FloatArray, factor: FloatArray, columns: IntArray) -> int:
        filled = pattern.filled()
        if filled.fronts is None:
            return super().cholesky(pattern, precision, factor, columns)
        arguments = *pattern.structure, *filled.structure, filled.fronts, precision, factor, columns
        threads.over_batch(assembly.cholesky, filled.column_pairs(filled), *arguments, batch=len(precision))
        for r in np.flatnonzero(columns >= 0):  # a front that fails does not say in which column the matrix does
            row = slice(r, r + 1)
            super().cholesky(pattern, precision[row], factor[row], columns[row])
        return int((columns != -1).any())

    def precision_logdet(self, pattern: Pattern, precision: FloatArray, sums: FloatArray) -> int:
        filled = pattern.filled()
        if filled.fronts is None:
            return super().precision_logdet(pattern, precision, sums)
        chunk = threads.get_num_threads()
        factor, columns = np.empty((chunk, filled.nnz), precision.dtype), np.empty(chunk, np.int64)
        for start in range(0, len(sums), chunk):
            some = precision[start : start + chunk]
            count, rows = len(some), factor[: len(some)]
            if self.cholesky(pattern, some, rows, columns[:count]):
                judge_small_pivots(filled, rows, columns)
            if (columns[:count] >= 0).any():
                return 1
            arguments = filled.structure[0], rows, sums[start : start + count]
            threads.over_batch(log_determinants_of_factors, 20 * filled.n, *arguments, batch=count)
        return 0

    def sweep(
        self,
        verb: str,
        pattern: Pattern,
        wide: Pattern,
        a: FloatArray,
        b: FloatArray,
        values: FloatArray,
        chosen: IndexArray = ALL,
    ) -> int:
        of_inverse, on_its_fill = verb in ("selected_inverse", "marginal_variances", "cholesky_vjp"), wide is pattern
        if not of_inverse or not on_its_fill or pattern.fronts is None:
            return super().sweep(verb, pattern, wide, a, b, values, chosen)
        what = verb != "cholesky_vjp", verb == "marginal_variances"
        arguments = *what, *pattern.structure, pattern.fronts, chosen, a, b, values
        return threads.over_batch(assembly.sweep, 2 * pattern.column_pairs(pattern), *arguments, batch=len(a))


class Chain(Sparse):
    """Chains, whose kernels need no index arrays."""

    is_chain = True

    def serves(self, pattern: Pattern, batch: int, dtype: np.dtype[Any]) -> bool:
        return pattern.is_chain

    def natural_gradient(self, pattern: Pattern, *arrays: Any) -> int:
        batch = len(arrays[0])
        return threads.over_batch(natural_gradient, 8 * pattern.n, pattern.structure[0], *arrays, batch=batch)

    def sample_and_kl(self, pattern: Pattern, task: Step) -> int:
        arguments = task.like, task.batch, pattern.n, pattern.structure[0], *task.addresses
        return threads.over_batch(chain_step.sample_and_kl, 6 * pattern.n, *arguments, batch=task.batch)

    def sample_and_kl_vjp(self, pattern: Pattern, task: Step) -> int:
        arguments = task.like, task.batch, pattern.n, *task.addresses
        return threads.over_batch(chain_step.sample_and_kl_vjp, 8 * pattern.n, *arguments, batch=task.batch)


class LongChain(Chain):
    """Few long chains, one after the other, each in strips that threads share: see `long_chain`."""

    fuses = False

    def serves(self, pattern: Pattern, batch: int, dtype: np.dtype[Any]) -> bool:
        return pattern.is_chain and pattern.n >= long_chain.LONG and batch < 2 * threads.LANES

    def product(self, verb: str, pattern: Pattern, matrices: Shared, x: FloatArray, y: FloatArray) -> int:
        each = [(matrices.rows[owner], *pair) for owner, *pair in zip(matrices.owner, x, y, strict=True)]
        if verb == "solve":
            return sum(long_chain.solve(*row) for row in each)
        if verb == "solve_t":
            return sum(long_chain.solve_t(pattern, *row) for row in each)
        return super().product(verb, pattern, matrices, x, y)

    def cholesky(self, pattern: Pattern, precision: FloatArray, factor: FloatArray, columns: IntArray) -> int:
        statuses = [long_chain.cholesky(P, L) for P, L in zip(precision, factor, strict=True)]
        if 1 in statuses:  # in strips a failure has no column
            return super().cholesky(pattern, precision, factor, columns)
        columns[:] = [SMALL_PIVOT if status else -1 for status in statuses]
        return max(statuses, default=0)

    def precision_logdet(self, pattern: Pattern, precision: FloatArray, sums: FloatArray) -> int:
        nothing, each_its_own = precision[:, :0], Shared(precision, np.arange(len(precision)))
        return self.precision_solve(pattern, each_its_own, nothing, nothing, sums)

    def precision_solve(
        self, pattern: Pattern, precision: Shared, rhs: FloatArray, x: FloatArray, sums: FloatArray
    ) -> int:
        for owner, *system in zip(precision.owner, rhs, x, strict=True):
            status, sums[owner] = long_chain.solve_precision(pattern, precision.rows[owner], *system)
            if status:
                return status
        return 0

    def sweep(
        self,
        verb: str,
        pattern: Pattern,
        wide: Pattern,
        a: FloatArray,
        b: FloatArray,
        values: FloatArray,
        chosen: IndexArray = ALL,
    ) -> int:
        if verb == "marginal_variances":
            return sum(long_chain.marginal_variances(pattern, L, v) for L, v in zip(a, values, strict=True))
        return super().sweep(verb, pattern, wide, a, b, values, chosen)

    def natural_gradient(self, pattern: Pattern, *arrays: Any) -> int:
        factor, half, values, by_regression, x, natural = arrays
        rows = zip(factor, half, values, len(factor) * [by_regression], x, natural, strict=True)
        return sum(long_chain.natural_gradient(pattern, *row) for row in rows)

    def sample_and_kl(self, pattern: Pattern, task: Step) -> int:
        n, nnz, total = pattern.n, pattern.nnz, 0
        for row in zip(*rows_at(task, (n, nnz, n), (n, 1)), strict=True):
            status, states = long_chain.sample_and_kl(pattern, *row)
            total += status
            if task.seam_states is not None:
                task.seam_states.append(states)
        return total

    def sample_and_kl_vjp(self, pattern: Pattern, task: Step) -> int:
        n, nnz = pattern.n, pattern.nnz
        rows = zip(*rows_at(task, (n, nnz, n, n, 1), (n, nnz, n)), strict=True)
        each = zip(task.seam_states or task.batch * [None], rows, strict=True)
        return sum(long_chain.sample_and_kl_vjp(pattern, states, *row) for states, row in each)

    def sample_and_log_prob(
        self,
        pattern: Pattern,
        nodes: IntArray,
        gaussians: Gaussians,
        noise: FloatArray,
        z: FloatArray,
        log_prob: FloatArray,
    ) -> int:
        x, status = np.empty(pattern.n, noise.dtype), 0
        for r, eps in enumerate(noise):
            k = r % len(gaussians.at_mean)
            L, loc = gaussians.factor[gaussians.factor_owner[k]], gaussians.loc[gaussians.loc_owner[k]]
            status += long_chain.solve_t(pattern, L, checks.read_only_view(eps[nodes]), x)
            z[r, nodes] = x
            z[r] += loc
            log_prob[r] = gaussians.at_mean[k, 0] - 0.5 * np.square(eps, dtype=np.float64).sum()
        return status + (not np.isfinite(z).all())


ENGINES: list[Engine] = [LongChain(), Chain(), Fronts(), Sparse()]
"""In order of preference: the first engine whose `serves` is true does the call."""


def engine_for(pattern: Pattern, batch: int, dtype: np.dtype[Any]) -> Engine:
    """The engine for a batch of this many rows."""
    for engine in ENGINES:
        if engine.serves(pattern, batch, dtype):
            return engine
    raise LookupError(f"engine_for: no engine serves {batch} rows of {dtype} on {pattern}. Add one to ENGINES.")


def engine_of(pattern: Pattern, task: Step) -> Engine:
    """The engine for a step."""
    return engine_for(pattern, task.batch, task.like.dtype)
