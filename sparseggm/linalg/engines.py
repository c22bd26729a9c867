"""Engines, and the choice among them: `engine_for` decides by pattern, batch and dtype which code serves a call.

Nothing else makes this choice. To add an engine, write a class with the methods of `primitives.Engine`, and give it a
place in `ENGINES`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sparseggm.graph.pattern import FloatArray, IndexArray, IntArray, Pattern
from sparseggm.kernels.chain import step as chain_step
from sparseggm.kernels.chain.recurrences import SMALL_PIVOT
from sparseggm.kernels.fronts import assembly
from sparseggm.kernels.sparse import (
    cholesky,
    density,
    divergence,
    inverse,
    levels,
    products,
    residual,
    sampling,
    step,
)
from sparseggm.linalg import checks, long_chain, threads
from sparseggm.linalg.primitives import ALL, Engine, Gaussians, Shared, Step, rows_at

_SEGMENT = 1 << 16
"""Number of nodes whose logarithms one thread sums."""

LEAST_FRONTS = 128
"""Nodes from which on it is asked whether a matrix has fronts that are faster than its columns."""

LEVEL_WORK = 300
"""Multiply-adds that a truncated sample is worth."""

_CODES = {
    name.lower(): code
    for module in (products, inverse)
    for name, code in vars(module).items()
    if name.isupper() and isinstance(code, int)
}
"""The number by which kernels know a verb."""

_NO_SUMS: FloatArray = np.empty(0)

_NO_FILL = inverse.Fill(*5 * [checks.read_only_view(np.empty(0, np.int32))])
"""In the place of a chain's, which has none."""

_NATURAL: IntArray = checks.read_only_view(np.empty(0, np.int64))
"""No order: the caller's numbering is that of the pattern."""


class Sparse:
    """Any pattern, any batch."""

    is_chain, fuses = False, True

    def serves(self, pattern: Pattern, batch: int, dtype: np.dtype[Any]) -> bool:
        return True

    def product(self, verb: str, pattern: Pattern, matrices: Shared, x: FloatArray, y: FloatArray) -> int:
        code = _CODES[verb]
        arguments = code, self.is_chain, *pattern.structure, *matrices, x, y
        return threads.over_batch(products.product, pattern.nnz, *arguments, batch=len(x))

    def outer(self, pattern: Pattern, terms: IntArray, x: FloatArray, y: FloatArray, values: FloatArray) -> int:
        arguments = *pattern.structure, terms, x, y, values
        return threads.over_batch(products.outer, pattern.nnz * terms.shape[1], *arguments, batch=len(terms))

    def cholesky(self, pattern: Pattern, precision: FloatArray, factor: FloatArray, columns: IntArray) -> int:
        return self._factorise(pattern, precision, factor, columns, _NO_SUMS)

    def logdet(self, pattern: Pattern, factor: FloatArray, sums: FloatArray) -> int:
        segments = -(-pattern.n // _SEGMENT)
        parts, work = np.empty((len(factor), segments)), 20 * pattern.n // segments
        status = threads.over_batch(products.logdet, work, pattern.structure[0], factor, parts, batch=parts.size)
        sums[:] = 2.0 * parts.sum(axis=1)
        return status

    def precision_logdet(self, pattern: Pattern, precision: FloatArray, sums: FloatArray) -> int:
        if len(sums) < threads.LANES:
            return 1
        unwanted = np.empty((len(sums), 0), precision.dtype), np.empty(len(sums), np.int64)
        return self._factorise(pattern, precision, *unwanted, sums)

    def precision_solve(
        self, pattern: Pattern, precision: Shared, rhs: FloatArray, x: FloatArray, sums: FloatArray
    ) -> int:
        return 1

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
        work = pattern.column_pairs(pattern) if verb.startswith("gram") else 2 * pattern.column_pairs(wide)
        passes = 3 if verb in ("selected_inverse_vjp", "marginal_variances_vjp") else 1
        code = _CODES[verb]
        arguments = code, self.is_chain, *pattern.structure, _fill(wide), chosen, a, b, values
        return threads.over_batch(inverse.sweep, passes * work, *arguments, batch=len(a))

    def cholesky_jvp(self, pattern: Pattern, factor: FloatArray, v: FloatArray, values: FloatArray) -> int:
        arguments = *pattern.structure, *pattern.row_structure, factor, v, values
        work = 2 * pattern.column_pairs(pattern)
        return threads.over_batch(cholesky.cholesky_jvp, work, *arguments, batch=len(factor))

    def sample_and_kl(self, pattern: Pattern, task: Step) -> int:
        return self._step(step.sample_and_kl, 1, pattern, task)

    def sample_and_kl_vjp(self, pattern: Pattern, task: Step) -> int:
        return self._step(step.sample_and_kl_vjp, 3, pattern, task)

    def sample_and_kl_terms(self, pattern: Pattern, task: Step) -> int:
        *given, z, terms = task.addresses
        return self._residual(2, pattern, task, tuple(given), (0, 0), (z, terms, 0, 0, 0, 0))

    def sample_and_kl_terms_vjp(self, pattern: Pattern, task: Step) -> int:
        given, cotangents, bars = task.addresses[:4], task.addresses[4:6], task.addresses[6:]
        results = 0, 0, bars[1], bars[3], bars[0], bars[2]
        return self._residual(5, pattern, task, (0, *given), tuple(cotangents), results)

    def density(self, verb: str, pattern: Pattern, task: Step) -> int:
        order = _NATURAL if task.order is None else checks.read_only_view(np.ascontiguousarray(task.order, np.int64))
        name, back = verb.removesuffix("_vjp"), verb.endswith("_vjp")
        structure, addresses, passes = (*pattern.structure, order), list(task.addresses), 3 if back else 1
        if name == "sample":
            kernel = density.sample_vjp if back else density.sample
            arguments, work = (self.is_chain, structure, *addresses), pattern.nnz
        elif name in ("kl_to_normal", "sample_and_kl_to_normal"):
            kernel, filled = divergence.kl_to_normal, pattern if self.is_chain else pattern.filled()
            given, sampled, rest = tuple(addresses[:4]), (0, 0), addresses[4:]
            if name == "sample_and_kl_to_normal":  # of a prior without gradient
                sampled, rest = (rest[0], rest[1]), [*rest[2:], 0]
            bar, results = (rest[0], (0, *rest[1:])) if back else (0, (rest[0], 0, 0, 0))
            fill = _NO_FILL if self.is_chain else _fill(filled)
            arguments = self.is_chain, structure, fill, task.stride, given, sampled, bar, results
            work = 6 * pattern.n if self.is_chain else 4 * pattern.nnz + 2 * pattern.column_pairs(filled)
        else:
            kernel, work = density.cross_entropy_vjp if back else density.cross_entropy, 2 * pattern.nnz
            if name == "log_prob":  # at a point: no scale, and no cotangent of one
                addresses = [*addresses[:3], 0, *addresses[3:], *([0] if back else [])]
            arguments = structure, task.stride, *addresses
        return threads.over_batch(kernel, passes * work, task.like, task.batch, *arguments, batch=task.batch)

    def sample_and_log_prob(
        self,
        pattern: Pattern,
        nodes: IntArray,
        gaussians: Gaussians,
        noise: FloatArray,
        z: FloatArray,
        log_prob: FloatArray,
    ) -> int:
        structure = pattern.structure[0], checks.read_only_view(nodes[pattern.rows]), checks.read_only_view(nodes)
        arguments = *structure, *gaussians, noise, z, log_prob
        return threads.over_batch(sampling.sample_and_log_prob, pattern.nnz, *arguments, batch=len(noise))

    def levels_log_prob(self, pattern: Pattern, observed: levels.Observed, log_prob: FloatArray, z: FloatArray) -> int:
        arguments = *pattern.structure, observed, log_prob, z
        work = pattern.nnz + LEVEL_WORK * pattern.n
        return threads.over_batch(levels.levels_log_prob, work, *arguments, batch=len(log_prob))

    def levels_log_prob_and_gradients(
        self,
        pattern: Pattern,
        observed: levels.Observed,
        log_prob: FloatArray,
        by_loc: FloatArray,
        by_factor: FloatArray,
    ) -> int:
        arguments = *pattern.structure, observed, log_prob, by_loc, by_factor
        work = 3 * pattern.nnz + 2 * LEVEL_WORK * pattern.n
        return threads.over_batch(levels.levels_log_prob_and_gradients, work, *arguments, batch=len(log_prob))

    def _factorise(
        self, pattern: Pattern, precision: FloatArray, factor: FloatArray, columns: IntArray, sums: FloatArray
    ) -> int:
        filled = pattern.filled()
        structure = *filled.structure, _rows(filled), pattern.positions_in_fill
        arguments = self.is_chain, *structure, precision, factor, columns, sums
        return threads.over_batch(cholesky.cholesky, filled.column_pairs(filled), *arguments, batch=len(precision))

    def _residual(
        self,
        passes: int,
        pattern: Pattern,
        task: Step,
        given: tuple[int, ...],
        cotangents: tuple[int, ...],
        results: tuple[int, ...],
    ) -> int:
        filled = pattern.filled()
        work = passes * (4 * pattern.nnz + 2 * pattern.column_pairs(filled))
        arguments = task.like, task.batch, pattern.structure, _fill(filled), given, cotangents, results
        return threads.over_batch(residual.sample_and_kl_terms, work, *arguments, batch=task.batch)

    def _step(self, kernel: Any, passes: int, pattern: Pattern, task: Step) -> int:
        filled = pattern.filled()
        work = passes * (4 * pattern.nnz + 2 * pattern.column_pairs(filled))
        arguments = task.like, task.batch, *pattern.structure, _fill(filled), *task.addresses
        return threads.over_batch(kernel, work, *arguments, batch=task.batch)


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
        work = filled.column_pairs(filled)
        status = threads.over_batch(assembly.cholesky, work, *arguments, batch=len(precision))
        if (columns >= 0).any():  # a front that fails does not say in which column the matrix does
            return super().cholesky(pattern, precision, factor, columns)
        return status

    def precision_logdet(self, pattern: Pattern, precision: FloatArray, sums: FloatArray) -> int:
        filled = pattern.filled()
        if filled.fronts is None:
            return super().precision_logdet(pattern, precision, sums)
        factor, columns = np.empty((threads.LANES, filled.nnz), precision.dtype), np.empty(threads.LANES, np.int64)
        for start in range(0, len(sums), threads.LANES):
            some = precision[start : start + threads.LANES]
            if self.cholesky(pattern, some, factor[: len(some)], columns[: len(some)]):
                return 1
            arguments = filled.structure[0], factor[: len(some)], sums[start : start + len(some)]
            threads.over_batch(cholesky.log_determinants_of_factors, 20 * filled.n, *arguments, batch=len(some))
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
        of_inverse = verb in ("selected_inverse", "marginal_variances", "cholesky_vjp")
        if not of_inverse or wide is not pattern or pattern.fronts is None:
            return super().sweep(verb, pattern, wide, a, b, values, chosen)
        arguments = verb != "cholesky_vjp", *pattern.structure, pattern.fronts, chosen, a, b, values
        return threads.over_batch(assembly.sweep, 2 * pattern.column_pairs(pattern), *arguments, batch=len(a))


class Chain(Sparse):
    """Chains, whose kernels need no index arrays."""

    is_chain = True

    def serves(self, pattern: Pattern, batch: int, dtype: np.dtype[Any]) -> bool:
        return pattern.is_chain

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


def _rows(pattern: Pattern) -> cholesky.Rows:
    """The strictly lower entries of a closed pattern, row by row."""
    return cholesky.Rows(*pattern.row_structure, pattern.column_groups)


def _fill(pattern: Pattern) -> inverse.Fill:
    return inverse.Fill(*pattern.structure, *pattern.row_structure)
