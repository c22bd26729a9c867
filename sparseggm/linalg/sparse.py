"""The engine for any pattern and any batch: each primitive is one kernel, shared among threads."""

from __future__ import annotations

from typing import Any

import numpy as np

from sparseggm import threads
from sparseggm.graph.pattern import FloatArray, IndexArray, IntArray, Pattern
from sparseggm.kernels.sparse import (
    cholesky,
    conditionals,
    density,
    divergence,
    inverse,
    levels,
    products,
    residual,
    sampling,
    step,
)
from sparseggm.linalg import checks
from sparseggm.linalg.primitives import ALL, Gaussians, Shared, Step

_SEGMENT = 1 << 16
"""Number of nodes whose logarithms one thread sums."""

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
        operands = tuple(given), (0, 0), (z, terms, 0, 0, 0, 0)
        return self._by_node(residual.sample_and_kl_terms, 1, pattern, task, operands)

    def sample_and_kl_terms_vjp(self, pattern: Pattern, task: Step) -> int:
        given, cotangents, bars = task.addresses[:4], task.addresses[4:6], task.addresses[6:]
        results = 0, 0, bars[1], bars[3], bars[0], bars[2]
        operands = (0, *given), tuple(cotangents), results
        return self._by_node(residual.sample_and_kl_terms, 2, pattern, task, operands)

    def kl_terms(self, pattern: Pattern, task: Step) -> int:
        *given, terms = task.addresses
        return self._by_node(conditionals.kl_terms, 1, pattern, task, (tuple(given), 0, (terms, 0, 0, 0)))

    def kl_terms_vjp(self, pattern: Pattern, task: Step) -> int:
        given, t_bar, bars = task.addresses[:3], task.addresses[3], task.addresses[4:]
        return self._by_node(conditionals.kl_terms, 2, pattern, task, (tuple(given), t_bar, (0, *bars)))

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
            work = 2 * pattern.n if self.is_chain else 4 * pattern.nnz + 2 * pattern.column_pairs(filled)
        else:
            kernel, work = density.cross_entropy_vjp if back else density.cross_entropy, pattern.nnz
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

    def _by_node(self, kernel: Any, passes: int, pattern: Pattern, task: Step, operands: tuple[Any, ...]) -> int:
        filled = pattern.filled()
        work = passes * (4 * pattern.nnz + 2 * pattern.column_pairs(filled))
        arguments = task.like, task.batch, pattern.structure, _fill(filled), *operands
        return threads.over_batch(kernel, work, *arguments, batch=task.batch)

    def _step(self, kernel: Any, passes: int, pattern: Pattern, task: Step) -> int:
        filled = pattern.filled()
        work = passes * (4 * pattern.nnz + 2 * pattern.column_pairs(filled))
        arguments = task.like, task.batch, *pattern.structure, _fill(filled), *task.addresses
        return threads.over_batch(kernel, work, *arguments, batch=task.batch)


def judge_small_pivots(filled: Pattern, factor: FloatArray, columns: IntArray) -> None:
    """After a factorisation, replace `SMALL_PIVOT` in `columns` by the column that rounding alone could have made."""
    arguments = *filled.structure, factor, columns
    threads.over_batch(cholesky.singular_columns, 2 * filled.nnz, *arguments, batch=len(factor))


def _rows(pattern: Pattern) -> cholesky.Rows:
    """The strictly lower entries of a closed pattern, row by row."""
    return cholesky.Rows(*pattern.row_structure, pattern.column_groups)


def _fill(pattern: Pattern) -> inverse.Fill:
    return inverse.Fill(*pattern.structure, *pattern.row_structure)
