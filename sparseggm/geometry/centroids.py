"""The Gaussian nearest to several, in either direction of KL or in both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from sparseggm.errors import NonPositiveError, ShapeError
from sparseggm.gaussian.model import require_arrays
from sparseggm.geometry.kinds import Gaussian, kind_of, require_finite, together
from sparseggm.geometry.mixtures import of_expectation, of_natural
from sparseggm.geometry.symmetric import jeffreys_centroid
from sparseggm.positivity.namespace import Array, in_dtype_of


def centroid(
    gaussians: Sequence[Gaussian], weights: npt.ArrayLike | None = None, kind: Literal["e", "m", "jeffreys"] = "e"
) -> Gaussian:
    """The Gaussian c on the union of the graphs that is nearest to several.

    "e" minimises Σ_k w_k KL(c ‖ p_k): the mean of natural parameters. "m" minimises Σ_k w_k KL(p_k ‖ c): the mean of
    expectation parameters, projected. "jeffreys" minimises Σ_k w_k J(c, p_k), between the other two [Nielsen & Nock
    2009], by natural-gradient steps of which each descends.

    Args:
        gaussians: one or more, on the same nodes; batch axes broadcast.
        weights: (K,), not negative, of which the sum is made 1; None: equal ones.
    Raises:
        NonPositiveError: a weight is negative, or none is positive.
        ValueError: another kind. ShapeError: no Gaussians.
        PatternError: "jeffreys" on a union of graphs that is not chordal in its order.
        TypeError: "jeffreys" of tensors, of which it is no closed form.
    Cost: "e" a Gram product for each and one factorisation; "m" a selected inverse for each and one `project`;
        "jeffreys" both, and ten to thirty steps of some ten selected inverses.
    """
    function = "centroid"
    if kind not in ("e", "m", "jeffreys"):
        raise ValueError(f'{function}: kind must be "e", "m" or "jeffreys", got {kind!r}.')
    if not isinstance(gaussians, Sequence) or not gaussians:
        raise ShapeError(f"{function}: needs a list of Gaussians, one or more, got {gaussians!r}.")
    parts = together(function, *gaussians)
    shares = [*in_dtype_of(_shares(function, parts, weights), parts[0].loc)]
    if kind == "e":
        return of_natural(function, parts, shares)  # type: ignore[no-any-return]
    if kind == "m":
        return of_expectation(function, parts, shares)  # type: ignore[no-any-return]
    require_arrays(function, *parts)
    return jeffreys_centroid(function, of_natural(function, parts, shares), of_expectation(function, parts, shares))  # type: ignore[return-value]


def _shares(function: str, gaussians: list[Any], weights: npt.ArrayLike | None) -> Array:
    """The weights divided by their sum."""
    count, like = len(gaussians), gaussians[0].loc
    (shares,) = kind_of(like).numbers(function, like, weights=np.ones(count) if weights is None else weights)
    if shares.shape != (count,):
        shape = tuple(shares.shape)
        raise ShapeError(f"{function}: weights must be ({count},), one for each Gaussian, got shape {shape}.")
    require_finite(function, "weights", shares)
    if not (shares >= 0).all() or not shares.any():
        raise NonPositiveError(f"{function}: weights must be ≥ 0, and one of them positive, got {shares}.")
    shares = shares / shares.max()  # whose sum is finite
    return shares / shares.sum()
