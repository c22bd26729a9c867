"""What torch tests must not leave behind."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from torch.distributions import Distribution


@pytest.fixture(autouse=True)
def _distributions_validate() -> Iterator[None]:
    """The first torch.compile of a process turns the validation of all distributions off."""
    yield
    Distribution.set_default_validate_args(True)
