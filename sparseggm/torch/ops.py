"""The verbs of `sparseggm.linalg` and `sparseggm.adjoints` as torch operators, with autograd.

Same names, arguments and conventions; tensors on the CPU instead of arrays. All can be differentiated to every order,
under `torch.func`, mapped by `vmap` and traced by `torch.compile`: docs/torch-support.md.
"""

from sparseggm.torch.operators.algebra import (
    cholesky,
    cholesky_jvp,
    cholesky_vjp,
    gram,
    gram_jvp,
    gram_vjp,
    logdet,
    matmul,
    matmul_t,
    outer,
    solve,
    solve_t,
    symmetric_matmul,
)
from sparseggm.torch.operators.embedding import diagonal, extend, on_diagonal, restrict
from sparseggm.torch.operators.second_moments import (
    marginal_variances,
    marginal_variances_vjp,
    precision_logdet,
    precision_solve,
    selected_inverse,
    selected_inverse_vjp,
    trace_inverse,
)

__all__ = [
    "cholesky",
    "cholesky_jvp",
    "cholesky_vjp",
    "diagonal",
    "extend",
    "gram",
    "gram_jvp",
    "gram_vjp",
    "logdet",
    "marginal_variances",
    "marginal_variances_vjp",
    "matmul",
    "matmul_t",
    "on_diagonal",
    "outer",
    "precision_logdet",
    "precision_solve",
    "restrict",
    "selected_inverse",
    "selected_inverse_vjp",
    "solve",
    "solve_t",
    "symmetric_matmul",
    "trace_inverse",
]
