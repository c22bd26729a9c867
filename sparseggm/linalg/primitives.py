"""The primitives of an engine, from which `linalg`, `calculus`, `step` and `sampling` make every verb.

Primitives work on rows: C-contiguous 2-D arrays, one batch element a row; arguments are read-only, results are
overwritten. They check nothing, and return 0 or a nonzero status, after which the verb looks for the cause.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from sparseggm.graph.pattern import FloatArray, IndexArray, IntArray, Pattern
from sparseggm.kernels.sparse.levels import Observed
from sparseggm.linalg import checks

ALL: IndexArray = checks.read_only_view(np.empty(0, np.int32))
"""For `Engine.sweep`: no choice among the entries of its result."""


class Shared(NamedTuple):
    """Matrices that rows of a batch share: row r has rows[owner[r]]."""

    rows: FloatArray
    owner: IntArray
    repeat: int = 0
    """`owner` repeats after this many rows."""


class Step(NamedTuple):
    """A fused call, by the addresses of contiguous rows: passing arrays would cost a small call as much again."""

    like: Any
    """Any number of the dtype of the rows."""
    batch: int
    addresses: Sequence[int]
    """Arguments, then results, in the order of the verb; 0 for a result that is not wanted. See `rows_at`."""
    seam_states: list[FloatArray] | None = None
    """Numbers that the gradient of a long chain would otherwise compute again: see `step`."""
    order: IntArray | None = None
    """The caller's node of each column, for vectors in the caller's numbering. None: the two numberings agree."""
    stride: int = 0
    """Numbers from one row to the next of means and scales; 0 where all share one row."""


class Gaussians(NamedTuple):
    """Factors, means and log-densities at the means of m Gaussians. Row r of the noise belongs to Gaussian r mod m."""

    factor_owner: IntArray
    factor: FloatArray
    loc_owner: IntArray
    loc: FloatArray
    at_mean: FloatArray
    """(m, 1), float64."""


class Engine(Protocol):
    """Code that serves every verb."""

    fuses: bool
    """Whether `density` moves each number once; if false, its verbs are as fast when composed of others."""

    def serves(self, pattern: Pattern, batch: int, dtype: np.dtype[Any]) -> bool:
        """Whether this engine does such calls."""

    def product(self, verb: str, pattern: Pattern, matrices: Shared, x: FloatArray, y: FloatArray) -> int:
        """y = verb(matrix, x) for solve, solve_t, matmul, matmul_t, symmetric_matmul. For the solves, y may be x."""

    def outer(self, pattern: Pattern, terms: IntArray, x: FloatArray, y: FloatArray, values: FloatArray) -> int:
        """values[g] = Σ_r x_r y_rᵀ on the pattern, over the rows r = terms[g], summed in float64."""

    def cholesky(self, pattern: Pattern, precision: FloatArray, factor: FloatArray, columns: IntArray) -> int:
        """L on `pattern.filled()`. For row r, columns[r] is −1, `SMALL_PIVOT`, or the column that failed, whose pivot
        is left on the diagonal."""

    def logdet(self, pattern: Pattern, factor: FloatArray, sums: FloatArray) -> int:
        """sums = 2 Σ log L_jj in float64."""

    def precision_logdet(self, pattern: Pattern, precision: FloatArray, sums: FloatArray) -> int:
        """sums = log det P in float64. Nonzero status: the verb must compute the factor instead."""

    def precision_solve(
        self, pattern: Pattern, precision: Shared, rhs: FloatArray, x: FloatArray, sums: FloatArray
    ) -> int:
        """x = P⁻¹ rhs, and sums = log det P for each row of P. Nonzero status as `precision_logdet`."""

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
        """values = verb(a, b) on `pattern` and a wide pattern: `pattern.gram()`, or a closed one that holds `pattern`.

        For gram_jvp, gram_vjp, cholesky_vjp, selected_inverse, marginal_variances and the adjoints of these two. For a
        verb of one argument, b is empty. If `chosen` is not empty, cholesky_vjp gives only those entries.
        """

    def cholesky_jvp(self, pattern: Pattern, factor: FloatArray, v: FloatArray, values: FloatArray) -> int:
        """values = X with X Lᵀ + L Xᵀ = V on a closed pattern."""

    def sample_and_kl(self, pattern: Pattern, task: Step) -> int:
        """z and KL from loc, factor, noise."""

    def sample_and_kl_vjp(self, pattern: Pattern, task: Step) -> int:
        """The cotangents of loc, factor and noise, given these three, z̄ and k̄."""

    def sample_and_kl_terms(self, pattern: Pattern, task: Step) -> int:
        """z and the terms of KL from loc, factor, shift, moves, noise: see `residual`."""

    def sample_and_kl_terms_vjp(self, pattern: Pattern, task: Step) -> int:
        """The cotangents of factor, shift, moves and noise, given these four, z̄ and t̄."""

    def kl_terms(self, pattern: Pattern, task: Step) -> int:
        """The terms of KL from d, factor, prior: see `conditionals`."""

    def kl_terms_vjp(self, pattern: Pattern, task: Step) -> int:
        """The cotangents of d, factor and prior, given these three and t̄."""

    def density(self, verb: str, pattern: Pattern, task: Step) -> int:
        """A verb of `linalg.density`: sample, kl_to_normal, kl_from_normal, log_prob, or one of their …_vjp;
        or `sample_and_kl_to_normal_vjp`.

        Vectors are in the caller's numbering, `task.order`. The samples overwrite the noise.
        """

    def sample_and_log_prob(
        self,
        pattern: Pattern,
        nodes: IntArray,
        gaussians: Gaussians,
        noise: FloatArray,
        z: FloatArray,
        log_prob: FloatArray,
    ) -> int:
        """z and log q(z) of rows of noise, in the caller's numbering: nodes[j] is the node of column j."""

    def levels_log_prob(self, pattern: Pattern, observed: Observed, log_prob: FloatArray, z: FloatArray) -> int:
        """`levels.sample_in_levels` for each row of uniform numbers; z without rows is not wanted."""

    def levels_log_prob_and_gradients(
        self,
        pattern: Pattern,
        observed: Observed,
        log_prob: FloatArray,
        by_loc: FloatArray,
        by_factor: FloatArray,
    ) -> int:
        """For each row log_prob, and a row of its gradients with respect to loc and factor."""


class ChainEngine(Engine, Protocol):
    """What an engine that is chosen for a chain can do beside."""

    def natural_gradient(
        self,
        pattern: Pattern,
        factor: FloatArray,
        half: FloatArray,
        values: FloatArray,
        by_regression: bool,
        x: FloatArray,
        natural: FloatArray,
    ) -> int:
        """x = L⁻ᵀ half, and F_j⁻¹ of the values of each column: see `natural`. Rows of no entries: no half, no x."""


def rows_at(task: Step, arguments: tuple[int, ...], results: tuple[int, ...]) -> list[FloatArray]:
    """The rows of a step as arrays, given the length of each; at the address 0, an array without entries."""
    arrays = []
    for number, (address, size) in enumerate(zip(task.addresses, (*arguments, *results), strict=True)):
        shape = task.batch, size if address else 0
        array = np.empty(shape, task.like.dtype)
        if array.size:
            memory: Any = (ctypes.c_char * array.nbytes).from_address(address)
            array = np.frombuffer(memory, task.like.dtype).reshape(shape)
        arrays.append(checks.read_only_view(array) if number < len(arguments) else array)
    return arrays
