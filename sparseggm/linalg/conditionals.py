"""KL between Gaussians whose factors are on one pattern, node by node, and its gradients, on arrays, in one pass."""

from __future__ import annotations

from sparseggm import threads
from sparseggm.graph.pattern import FloatArray, Pattern
from sparseggm.linalg import checks, memory
from sparseggm.linalg.engines import engine_of
from sparseggm.linalg.primitives import Step
from sparseggm.linalg.step import LIKE, require_one_batch

_MANY = 1 << 10
"""Entries of L beyond which lanes without a row cost more than the calls of single verbs."""


def is_faster(pattern: Pattern, factors: int, batch: int) -> bool:
    """Whether one pass is faster than its composition of verbs.

    Not for a few rows of many entries, because a pass computes whole blocks of lanes, and a verb a row at a time where
    there are few; nor where rows share a factor, of which it would form Σ for each.

    Args:
        factors, batch: how many L there are, and how many rows.
    """
    return factors == batch and (2 * batch >= threads.LANES or pattern.nnz <= _MANY)


def kl_terms(pattern: Pattern, d: FloatArray, factor: FloatArray, prior: FloatArray) -> FloatArray:
    """KL(q ‖ p) in nats, split into a term ≥ 0 a node, for q with the factor L and p with the factor M.

        t_j = ½ (e^{2δ_j} − 1) − δ_j + ½ a_j² + ½ M_jj² Δ_jᵀ Σ_RR Δ_j,   Σ = (L Lᵀ)⁻¹,  R = S_j without j
        a = Mᵀ d,   δ_j = log M_jj/L_jj,   Δ_ij = M_ij/M_jj − L_ij/L_jj

    t_j is the mean over q of the divergence of the conditional of node j given the later nodes.

    Args:
        pattern: of L and M, whose numbering all arguments follow.
        d: (..., n) loc_q − loc_p.
        factor, prior: (..., nnz) L and M; all arguments have one batch shape.
    Returns:
        (..., n), each 0 exactly where d = 0 and L = M.
    Raises:
        ShapeError: batch shapes that differ; NonPositiveError: a diagonal entry of L or M is ≤ 0; the common errors of
        `linalg`, also where a term is beyond the dtype.
    Cost: Σ on the fill and Σ_j |S_j|² products; each byte moved once.
    Error: Σ as `selected_inverse` of L; a and Δ are formed in float64, and rounded; a term γ_{c+4} of its absolute
        terms, c the longest column. Nearly equal pivots keep their digits; a square that rounding made negative is 0.
    Reference: `reference.gaussian.kl_terms`.
    """
    verb, given = "kl_terms", {"d": d, "factor": factor, "prior": prior}
    checks.check(verb, pattern, packed={"factor": factor, "prior": prior}, d=d)
    require_one_batch(verb, **given)
    terms = memory.empty(d.shape, d.dtype)
    _run(verb, pattern, given, (terms,))
    return terms


def kl_terms_vjp(
    pattern: Pattern, d: FloatArray, factor: FloatArray, prior: FloatArray, terms_bar: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """The cotangents of d, L and M for that of the terms.

    The equations stand in `kernels.sparse.conditionals`, their derivation in docs/math.md.
    Raises: as `kl_terms`. Cost: Σ is computed again rather than stored: three times the forward.
    """
    verb, given = "kl_terms_vjp", {"d": d, "factor": factor, "prior": prior, "terms_bar": terms_bar}
    checks.check(verb, pattern, packed={"factor": factor, "prior": prior}, d=d, terms_bar=terms_bar)
    require_one_batch(verb, **given)
    d_bar, factor_bar, prior_bar = (memory.empty(array.shape, array.dtype) for array in (d, factor, prior))
    _run(verb, pattern, given, (d_bar, factor_bar, prior_bar))
    return d_bar, factor_bar, prior_bar


def _run(verb: str, pattern: Pattern, given: dict[str, FloatArray], results: tuple[FloatArray, ...]) -> None:
    """The primitive of the verb on arrays of one batch shape, or the cause of its failure."""
    d = given["d"]
    rows = [checks.as_rows(array, d.shape[:-1]) for array in given.values()]
    task = Step(LIKE[d.dtype], len(rows[0]), [array.ctypes.data for array in (*rows, *results)])
    primitive = getattr(engine_of(pattern, task), verb)
    if task.batch and primitive(pattern, task):
        packed = ("factor", "prior")
        checks.raise_cause(verb, {name: (pattern if name in packed else None, array) for name, array in given.items()})
