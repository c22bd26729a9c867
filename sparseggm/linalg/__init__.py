"""The verbs of linear algebra on packed values: checks, memory, one kernel call, and the meaning of its status.

A verb knows a `Pattern` and nothing of topologies: all nodes are in the pattern's own numbering. Packed values are
(..., nnz) on it, see `sparseggm.graph.pattern`; leading axes are batch axes and broadcast. Arguments are float32 or
float64, of one dtype, and never modified; results are new memory of that dtype.

Errors common to all verbs, raised before any work unless they concern single values:
    ShapeError: a last axis does not fit the pattern, or batch axes do not broadcast.
    DTypeError: an array is not float32 or float64 in native byte order, or two arrays differ in dtype.
    NonFiniteError: NaN or infinity in an argument, or a result beyond the dtype.

Costs are for one batch element; c is the longest column of the pattern, S_j and F_j are column j of L and of its fill.
u is the unit roundoff, γ_k = k u / (1 − k u). docs/errors-and-bounds.md derives the bounds.
"""

from sparseggm.linalg.factorisation import attempt_cholesky, cholesky, gram, logdet, precision_logdet, precision_solve
from sparseggm.linalg.inverse import marginal_variances, selected_inverse, trace_inverse
from sparseggm.linalg.products import matmul, matmul_t, outer, solve, solve_t, symmetric_matmul

__all__ = [
    "attempt_cholesky",
    "cholesky",
    "gram",
    "logdet",
    "marginal_variances",
    "matmul",
    "matmul_t",
    "outer",
    "precision_logdet",
    "precision_solve",
    "selected_inverse",
    "solve",
    "solve_t",
    "symmetric_matmul",
    "trace_inverse",
]
