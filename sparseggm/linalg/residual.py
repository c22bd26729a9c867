"""The residual posterior on arrays: a sample, its KL to the prior node by node, and their gradients, in one pass.

The posterior q is a prior p moved in its regression coordinates. With M, L the factors of p and q, a column j of M
gives the conditional N(loc_j + Σ_i β_ij (z_i − loc_i), σ_j²) of node j given its parents i, the later nodes in the
column: σ_j = 1/M_jj, β_ij = −M_ij/M_jj. The moves are log σ_q = log σ_p + δ, β_q = β_p + Δ.
"""

from __future__ import annotations

from sparseggm.graph.pattern import FloatArray, Pattern
from sparseggm.linalg import checks, memory
from sparseggm.linalg.engines import engine_of
from sparseggm.linalg.primitives import Step
from sparseggm.linalg.step import LIKE, require_one_batch


def sample_and_kl_terms(
    pattern: Pattern,
    loc: FloatArray,
    factor: FloatArray,
    shift: FloatArray,
    moves: FloatArray,
    noise: FloatArray,
) -> tuple[FloatArray, FloatArray]:
    """z ~ q, and KL(q ‖ p) in nats, split into a term ≥ 0 a node, for the prior p = N(loc, (M Mᵀ)⁻¹).

        L_jj = M_jj e^{−δ_j},   L_ij = e^{−δ_j} (M_ij − Δ_ij M_jj),   z = loc + M⁻ᵀ a + L⁻ᵀ ε
        t_j = ½ (e^{2δ_j} − 1) − δ_j + ½ a_j² + ½ M_jj² Δ_jᵀ Σ_RR Δ_j,   Σ = (L Lᵀ)⁻¹,  R = S_j without j

    t_j is the mean over q of the divergence of the conditional of node j given the later nodes.

    Args:
        pattern: of M and L, whose numbering all arguments follow.
        loc, factor: (..., n) mean and (..., nnz) factor M of p.
        shift: (..., n) a, white.
        moves: (..., nnz) δ on the diagonal, Δ below it.
        noise: (..., n) ε; all arguments have one batch shape.
    Returns:
        z and the terms, (..., n) both. Zero shift and moves give z = loc + M⁻ᵀ ε and terms 0 exactly.
    Raises:
        ShapeError: batch shapes that differ; NonPositiveError: a diagonal entry of M is ≤ 0; the common errors of
        `linalg`, also where e^{2δ} or e^{−δ} is beyond the dtype.
    Cost: two solves, Σ on the fill and Σ_j |S_j|² products; each byte moved once.
    Error: L within γ_8 e^{−δ} (|M| + |Δ| M_jj), Σ as `selected_inverse` of that L, a term γ_{c+4} of its absolute
        terms, c the longest column. Small δ keep their digits; a square that rounding made negative is zero.
    Reference: `reference.gaussian.kl_terms`.
    """
    verb, given = "sample_and_kl_terms", {"factor": factor, "shift": shift, "moves": moves, "noise": noise}
    checks.check(verb, pattern, packed={"factor": factor, "moves": moves}, loc=loc, shift=shift, noise=noise)
    require_one_batch(verb, loc=loc, **given)
    z, terms = memory.empty(loc.shape, loc.dtype), memory.empty(loc.shape, loc.dtype)
    _run(verb, pattern, {"loc": loc, **given}, (z, terms))
    return z, terms


def sample_and_kl_terms_vjp(
    pattern: Pattern,
    factor: FloatArray,
    shift: FloatArray,
    moves: FloatArray,
    noise: FloatArray,
    z_bar: FloatArray,
    terms_bar: FloatArray,
    noise_too: bool = True,
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray | None]:
    """The cotangents of factor, shift, moves and noise for those of z and of the terms; the last None unless wanted.

    That of loc is z̄. The equations stand in `kernels.sparse.residual`, their derivation in docs/math.md.
    Raises: as `sample_and_kl_terms`. Cost: y and Σ are computed again rather than stored: three times the forward.
    """
    verb, given = "sample_and_kl_terms_vjp", {"factor": factor, "shift": shift, "moves": moves, "noise": noise}
    cotangents = {"z_bar": z_bar, "terms_bar": terms_bar}
    checks.check(verb, pattern, packed={"factor": factor, "moves": moves}, shift=shift, noise=noise, **cotangents)
    require_one_batch(verb, **given, **cotangents)
    bars = [memory.empty(array.shape, array.dtype) for array in (factor, shift, moves)]
    noise_bar = memory.empty(noise.shape, noise.dtype) if noise_too else None
    _run(verb, pattern, given | cotangents, (*bars, noise_bar))
    return bars[0], bars[1], bars[2], noise_bar


def _run(verb: str, pattern: Pattern, given: dict[str, FloatArray], results: tuple[FloatArray | None, ...]) -> None:
    """The primitive of the verb on arrays of one batch shape, or the cause of its failure."""
    factor = given["factor"]
    rows = [checks.as_rows(array, factor.shape[:-1]) for array in given.values()]
    addresses = [0 if array is None else array.ctypes.data for array in (*rows, *results)]
    task = Step(LIKE[factor.dtype], len(rows[0]), addresses)
    primitive = getattr(engine_of(pattern, task), verb)
    if task.batch and primitive(pattern, task):
        packed = ("factor", "moves")
        checks.raise_cause(verb, {name: (pattern if name in packed else None, array) for name, array in given.items()})
