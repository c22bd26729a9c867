"""Seeds and generators: every function with an argument `rng` accepts the same kinds [Scientific Python SPEC 7]."""

from __future__ import annotations

import numpy as np

Seed = int | np.integer | np.random.SeedSequence | np.random.Generator | None
"""A generator, whose state moves on; a seed, whose numbers repeat; None: a fresh, unseeded generator."""


def generator(function: str, rng: Seed) -> np.random.Generator:
    """`numpy.random.default_rng(rng)`.

    Raises:
        TypeError, ValueError: `rng` is not a seed, or a negative one.
    """
    try:
        return np.random.default_rng(rng)
    except (TypeError, ValueError) as error:
        raise type(error)(
            f"{function}: rng must be a numpy.random.Generator, a nonnegative integer, a SeedSequence or None, "
            f"got {rng!r}."
        ) from None
