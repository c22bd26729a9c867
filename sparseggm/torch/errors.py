"""Exceptions that torch's users catch by torch's names."""

from __future__ import annotations

import torch

from sparseggm import errors

_LinAlgError: type[RuntimeError] = torch.linalg.LinAlgError  # type: ignore[attr-defined]


class NotPositiveDefiniteError(errors.NotPositiveDefiniteError, _LinAlgError):  # type: ignore[misc, valid-type]
    """A Cholesky pivot was not positive: the NumPy exception, and a `torch.linalg.LinAlgError`."""

    @classmethod
    def of(cls, failure: errors.NotPositiveDefiniteError) -> NotPositiveDefiniteError:
        """The same failure."""
        return cls(str(failure), batch_index=failure.batch_index, column=failure.column, pivot=failure.pivot)
