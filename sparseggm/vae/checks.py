"""Tests of the user's choices, which raise a ConfigError."""

from __future__ import annotations

from sparseggm.vae.errors import ConfigError

LARGEST_COUNT = 2**31 - 1


def require_count(name: str, value: int) -> None:
    """Raise unless the value is a positive count."""
    require_integer(name, value, 1, LARGEST_COUNT)


def require_integer(name: str, value: object, least: int, most: int) -> None:
    """Raise unless the value is an integer from `least` to `most`."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ConfigError(f"{name} must be an integer from {least} to {most:,}, got {value}.")


def require_one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    """Raise unless the value is known."""
    if value not in known:
        raise ConfigError(f"unknown {name} {value!r}; one of: {', '.join(known)}.")
