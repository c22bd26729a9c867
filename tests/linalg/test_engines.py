"""A third engine, dense and made of the reference, serves every verb by one line; and each verb asks for one."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

import reference
import reference.gaussian
import reference.levels
from sparseggm import Chain, ExtendedGrid, Grid, Pattern
from sparseggm.kernels.sparse.levels import Observed
from sparseggm.linalg import engines, long_chain
from sparseggm.linalg.natural import natural_gradient
from sparseggm.linalg.primitives import ALL, Gaussians, Shared, Step, rows_at
from tests.numerics import Array
from tests.verbs import VERBS, Verb, arguments


class Dense:
    """Every primitive by its definition on dense matrices."""

    fuses = True

    def serves(self, pattern: Pattern, batch: int, dtype: np.dtype[Any]) -> bool:
        return True

    def product(self, verb: str, pattern: Pattern, matrices: Shared, x: Array, y: Array) -> int:
        dense = pattern.to_dense(matrices.rows, symmetric=verb == "symmetric_matmul")[matrices.owner]
        y[...] = getattr(reference.linalg, verb)(dense, x)
        return 0

    def outer(self, pattern: Pattern, terms: Array, x: Array, y: Array, values: Array) -> int:
        values[...] = packed(pattern, reference.linalg.outer(x[terms], y[terms]).sum(axis=1))
        return 0

    def cholesky(self, pattern: Pattern, precision: Array, factor: Array, columns: Array) -> int:
        dense = pattern.to_dense(precision, symmetric=True)
        factor[...] = packed(pattern.filled(), reference.linalg.cholesky(dense))
        columns[...] = -1
        return 0

    def logdet(self, pattern: Pattern, factor: Array, sums: Array) -> int:
        sums[...] = reference.linalg.logdet(pattern.to_dense(factor))
        return 0

    def precision_logdet(self, pattern: Pattern, precision: Array, sums: Array) -> int:
        sums[...] = reference.linalg.precision_logdet(pattern.to_dense(precision, symmetric=True))
        return 0

    def precision_solve(self, pattern: Pattern, precision: Shared, rhs: Array, x: Array, sums: Array) -> int:
        dense = pattern.to_dense(precision.rows, symmetric=True)
        x[...], _ = reference.linalg.precision_solve(dense[precision.owner], rhs)
        return self.precision_logdet(pattern, precision.rows, sums)

    def sweep(
        self, verb: str, pattern: Pattern, wide: Pattern, a: Array, b: Array, values: Array, chosen: Array = ALL
    ) -> int:
        given = [pattern.to_dense(a)] if verb != "cholesky_vjp" else [wide.to_dense(a)]
        if b.shape[1]:
            on = {"gram_jvp": pattern, "marginal_variances_vjp": None}.get(verb, wide)
            given.append(b if on is None else on.to_dense(b))
        result = getattr(reference.linalg, verb)(*given)
        if verb != "marginal_variances":
            result = packed(pattern if verb.endswith("_vjp") else wide, result)
        values[...] = result[:, chosen] if chosen.size else result
        return 0

    def cholesky_jvp(self, pattern: Pattern, factor: Array, v: Array, values: Array) -> int:
        values[...] = packed(pattern, reference.linalg.cholesky_jvp(pattern.to_dense(factor), pattern.to_dense(v)))
        return 0

    def natural_gradient(
        self, pattern: Pattern, factor: Array, half: Array, values: Array, by_regression: bool, x: Array, natural: Array
    ) -> int:
        L = pattern.to_dense(factor)
        x[...], covariance = reference.linalg.solve_t(L, half), reference.gaussian.covariance(reference.linalg.gram(L))
        for j, (p, end) in enumerate(pairwise(pattern.indptr)):
            S = pattern.rows[p:end]
            block = covariance[:, S[:, None], S]
            block[:, 0, 0] += 1.0 / L[:, j, j] ** 2
            if by_regression:  # dL = (−L_jj dlog σ_j, −L_jj dβ_j − L_Rj dlog σ_j)
                change = -L[:, j, j, None, None] * np.eye(len(S))
                change[:, :, 0] = -L[:, S, j]
                block = np.swapaxes(change, -1, -2) @ block @ change
            natural[:, p:end] = np.linalg.solve(block, values[:, p:end, None])[..., 0]
        return 0

    def sample_and_kl(self, pattern: Pattern, task: Step) -> int:
        loc, factor, noise, z, kl = rows_at(task, (pattern.n, pattern.nnz, pattern.n), (pattern.n, 1))
        L = pattern.to_dense(factor)
        z[...] = loc + reference.linalg.solve_t(L, noise)
        trace, square = reference.linalg.trace_inverse(L), (loc**2).sum(axis=-1)
        kl[:, 0] = 0.5 * (trace + square - pattern.n + reference.linalg.logdet(L))
        return 0

    def sample_and_kl_vjp(self, pattern: Pattern, task: Step) -> int:
        n, nnz = pattern.n, pattern.nnz
        loc, factor, noise, z_bar, k_bar, loc_bar, factor_bar, noise_bar = rows_at(task, (n, nnz, n, n, 1), (n, nnz, n))
        L = pattern.to_dense(factor)
        noise_bar[...] = reference.linalg.solve(L, z_bar)
        loc_bar[...] = z_bar + k_bar * loc
        trace_bar = reference.linalg.marginal_variances_vjp(L, np.tile(0.5 * k_bar, (1, n)))
        pivots_bar = np.eye(n) * (k_bar / reference.linalg.diagonal(L))[..., None]
        sample_bar = -reference.linalg.outer(reference.linalg.solve_t(L, noise), noise_bar)
        factor_bar[...] = packed(pattern, trace_bar + pivots_bar + sample_bar)
        return 0

    def sample_and_kl_terms(self, pattern: Pattern, task: Step) -> int:
        n, nnz, ref = pattern.n, pattern.nnz, reference.linalg
        loc, factor, shift, moves, noise, z, terms = rows_at(task, (n, nnz, n, nnz, n), (n, n))
        M = pattern.to_dense(factor)
        L = ref.moved(M, pattern.to_dense(moves))
        mean = loc + ref.solve_t(M, shift)
        z[...] = mean + ref.solve_t(L, noise)
        terms[...] = reference.gaussian.kl_terms(mean, ref.gram(L), loc, ref.gram(M))
        return 0

    def sample_and_kl_terms_vjp(self, pattern: Pattern, task: Step) -> int:
        """The definition differentiated along every stored number in turn: by the complex step, exact to rounding."""
        n, nnz = pattern.n, pattern.nnz
        *given, z_bar, t_bar, factor_bar, shift_bar, moves_bar, noise_bar = rows_at(
            task, (nnz, n, nnz, n, n, n), (nnz, n, nnz, n)
        )
        bars = factor_bar, shift_bar, moves_bar, noise_bar
        for number, bar in enumerate(bars):
            for p in range(bar.shape[1]):
                step = [array.astype(complex) for array in given]
                step[number][:, p] += 1e-30j
                z, terms = residual_by_definition(pattern, *step)
                bar[:, p] = ((z * z_bar).sum(-1) + (terms * t_bar).sum(-1)).imag / 1e-30
        return 0

    def kl_terms(self, pattern: Pattern, task: Step) -> int:
        n, nnz = pattern.n, pattern.nnz
        *given, terms = rows_at(task, (n, nnz, nnz), (n,))
        terms[...] = compared_by_definition(pattern, *given)
        return 0

    def kl_terms_vjp(self, pattern: Pattern, task: Step) -> int:
        n, nnz = pattern.n, pattern.nnz
        *given, t_bar, d_bar, factor_bar, prior_bar = rows_at(task, (n, nnz, nnz, n), (n, nnz, nnz))
        for number, bar in enumerate((d_bar, factor_bar, prior_bar)):
            for p in range(bar.shape[1]):
                step = [array.astype(complex) for array in given]
                step[number][:, p] += 1e-30j
                bar[:, p] = (compared_by_definition(pattern, *step) * t_bar).sum(-1).imag / 1e-30
        return 0

    def density(self, verb: str, pattern: Pattern, task: Step) -> int:
        n, nnz, ref = pattern.n, pattern.nnz, reference.linalg
        given = {
            "sample": (n, nnz),
            "sample_vjp": (n, nnz, n, n),
            "log_prob": (n, nnz, n),
            "log_prob_vjp": (n, nnz, n, 1),
            "sample_and_kl_to_normal_vjp": (n, nnz, n, n, n, n, 1),
        }
        bars = {"sample": (n,), "sample_vjp": (nnz,), "log_prob_vjp": (n, nnz)}
        bars["sample_and_kl_to_normal_vjp"] = n, nnz
        sizes = given.get(verb, (n, nnz, n, n) + (1,) * verb.endswith("_vjp"))
        results = bars.get(verb, (n, nnz, n) if verb.endswith("_vjp") else (1,))
        loc, factor, *others = rows_at(task, sizes, results)
        L, nodes = pattern.to_dense(factor), np.arange(n) if task.order is None else task.order
        if verb == "sample":
            others[0][:, nodes] = loc[:, nodes] + ref.solve_t(L, others[0][:, nodes])
        elif verb == "sample_vjp":
            z, z_bar, out = others
            out[...] = packed(pattern, -ref.outer((z - loc)[:, nodes], ref.solve(L, z_bar[:, nodes])))
        elif verb == "sample_and_kl_to_normal_vjp":
            m, s, z, z_bar, k, loc_bar, factor_bar = others
            of_normals("kl_to_normal_vjp", pattern, nodes, L, loc, [m, s, k, loc_bar, factor_bar])
            loc_bar += z_bar
            factor_bar -= packed(pattern, ref.outer((z - loc)[:, nodes], ref.solve(L, z_bar[:, nodes])))
        else:
            of_normals(verb, pattern, nodes, L, loc, others)
        return 0

    def sample_and_log_prob(
        self, pattern: Pattern, nodes: Array, gaussians: Gaussians, noise: Array, z: Array, log_prob: Array
    ) -> int:
        k = np.arange(len(noise)) % len(gaussians.at_mean)
        L = pattern.to_dense(gaussians.factor)[gaussians.factor_owner][k]
        z[:, nodes] = reference.linalg.solve_t(L, noise[:, nodes])
        z += gaussians.loc[gaussians.loc_owner][k]
        log_prob[...] = gaussians.at_mean[k, 0] - 0.5 * (noise**2).sum(axis=-1)
        return 0

    def levels_log_prob(self, pattern: Pattern, observed: Observed, log_prob: Array, z: Array) -> int:
        for r in range(len(log_prob)):
            sample, log_prob[r] = reference.levels.sequential(*dense_levels(pattern, observed, r))
            if len(z):
                z[r] = sample
        return 0

    def levels_log_prob_and_gradients(
        self, pattern: Pattern, observed: Observed, log_prob: Array, by_loc: Array, by_factor: Array
    ) -> int:
        for r in range(len(log_prob)):
            L_bar, by_loc[r] = reference.levels.gradients(*dense_levels(pattern, observed, r))
            by_factor[r] = packed(pattern, L_bar)
        return self.levels_log_prob(pattern, observed, log_prob, by_loc[:0])


def dense_levels(pattern: Pattern, observed: Observed, r: int) -> tuple[Array, ...]:
    """L, loc, the ends of the levels and the uniform numbers of a row."""
    L, level = pattern.to_dense(observed.factor[observed.factor_row[r]]), observed.levels[observed.levels_row[r]]
    ends = observed.edges[level], observed.edges[level + 1]
    return L, observed.loc[observed.loc_row[r]], *ends, observed.uniform[r]


def residual_by_definition(pattern: Pattern, factor: Array, shift: Array, moves: Array, noise: Array) -> Any:
    """z − loc and the terms, by functions that are analytic in every argument."""
    ref = reference.linalg
    M = pattern.to_dense(factor)
    L = ref.moved(M, pattern.to_dense(moves))
    d = ref.solve_t(M, shift)
    return d + ref.solve_t(L, noise), reference.gaussian.kl_terms(d, ref.gram(L), 0 * d, ref.gram(M))


def compared_by_definition(pattern: Pattern, d: Array, factor: Array, prior: Array) -> Any:
    """The terms of KL, by functions that are analytic in every argument."""
    P, Q = (reference.linalg.gram(pattern.to_dense(each)) for each in (factor, prior))
    return reference.gaussian.kl_terms(d, P, 0 * d, Q)


def of_normals(verb: str, pattern: Pattern, nodes: Array, L: Array, loc: Array, others: list[Array]) -> None:
    """log q(m), and KL to and from N(m, s²), by their formulas."""
    ref, n, (m, *rest) = reference.linalg, pattern.n, others
    s = np.ones_like(m) if verb.startswith("log_prob") else rest.pop(0)
    k, out = (rest.pop(0), rest) if verb.endswith("_vjp") else (None, rest)
    logdet, reciprocal = ref.logdet(L)[:, None], np.eye(n) / ref.diagonal(L)[:, None]
    if verb.startswith("kl_to_normal"):
        v = np.empty_like(loc)
        v[:, nodes] = ref.marginal_variances(L)
        if k is None:
            out[0][...] = 0.5 * (((v + (loc - m) ** 2) / s**2 + 2 * np.log(s)).sum(-1, keepdims=True) - n + logdet)
            return
        pull = ref.marginal_variances_vjp(L, (0.5 * k / s**2)[:, nodes]) + k[..., None] * reciprocal
        bars = k * (loc - m) / s**2, packed(pattern, pull), k * (1 / s - (v + (loc - m) ** 2) / s**3)
    else:
        d, point = (m - loc)[:, nodes], verb.startswith("log_prob")
        white, scaled = ref.matmul_t(L, d), L * s[:, nodes, None]
        total = (white**2).sum(-1, keepdims=True) - logdet
        if k is None:
            rest_of = (scaled**2).sum((1, 2))[:, None] - 2 * np.log(s).sum(-1, keepdims=True) - n
            out[0][...] = -0.5 * (total + n * np.log(2 * np.pi)) if point else 0.5 * (total + rest_of)
            return
        k = -k if point else k
        pull = ref.outer(d, white) - reciprocal + (0.0 if point else scaled * s[:, nodes, None])
        loc_bar, s_bar = np.empty_like(loc), np.empty_like(loc)
        loc_bar[:, nodes] = -k * ref.matmul(L, white)
        s_bar[:, nodes] = k * (s[:, nodes] * (L**2).sum(-1) - 1 / s[:, nodes])
        bars = loc_bar, packed(pattern, k[..., None] * pull), s_bar
    for result, bar in zip(out, bars, strict=False):
        result[...] = bar


def packed(pattern: Pattern, dense: Array) -> Array:
    return dense[..., pattern.rows, pattern.cols]


each_verb = pytest.mark.parametrize("verb", VERBS.values(), ids=str)


@pytest.mark.parametrize("topology", [Chain(5), ExtendedGrid(3, 3), Grid(3, 3)], ids=str)
@each_verb
def test_a_new_engine_serves_every_verb_by_its_place_in_the_list(
    verb: Verb, topology: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pattern = verb.on(topology.factor_pattern)
    given = arguments(verb, pattern, 1, (2, 3), (3,))
    expected = verb(pattern, given)
    monkeypatch.setattr(engines, "ENGINES", [Dense()])  # none is left that could take its place
    np.testing.assert_allclose(verb(pattern, given), expected, rtol=1e-10, atol=1e-10)


@each_verb
def test_a_verb_without_an_engine_has_no_code_of_its_own(verb: Verb, monkeypatch: pytest.MonkeyPatch) -> None:
    pattern = verb.on(Chain(4).factor_pattern)
    given = arguments(verb, pattern, 1, (2,))
    monkeypatch.setattr(engines, "ENGINES", [])
    with pytest.raises(LookupError, match="no engine serves"):
        verb(pattern, given)


@pytest.mark.parametrize("by_regression", [False, True])
@pytest.mark.parametrize("n", [1, 2, 5])
def test_a_new_engine_serves_natural_gradients_of_chains(
    n: int, by_regression: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pattern, rng = Chain(n).factor_pattern, np.random.default_rng(0)
    factor, x, u = (rng.standard_normal(shape) for shape in ((3, 2 * n - 1), (2, 1, n), (3, 2 * n - 1)))
    factor[..., pattern.diagonal] = 1.0 + rng.random((3, n))
    expected = natural_gradient(pattern, factor, x, u, by_regression)
    monkeypatch.setattr(engines, "ENGINES", [Dense()])
    for found, other in zip(natural_gradient(pattern, factor, x, u, by_regression)[:2], expected[:2], strict=True):
        np.testing.assert_allclose(found, other, rtol=1e-10, atol=1e-10)


def test_long_chains_chains_and_other_patterns_have_engines_of_their_own() -> None:
    dtype, long = np.dtype("float32"), Chain(long_chain.LONG).factor_pattern
    chosen = [
        type(engines.engine_for(pattern, batch, dtype))
        for pattern, batch in ((long, 1), (long, 500), (Chain(5).factor_pattern, 1), (Grid(3, 3).factor_pattern, 1))
    ]
    assert chosen == [engines.LongChain, engines.Chain, engines.Chain, engines.Sparse]
