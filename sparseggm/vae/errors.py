"""Exceptions of a training run and its files; the command line prints them as one line and exits.

Each message names the file or option, the need, the value found, and a remedy. Errors of the algebra
(shapes, patterns, non-finite values) keep the types of `sparseggm.errors`.
"""

from __future__ import annotations

from typing import Any


class DataError(ValueError):
    """A data file is missing, truncated or not the one that was expected."""


class ConfigError(ValueError):
    """An option has a value that no run could use."""


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged, or belongs to another configuration."""


class BusyError(RuntimeError):
    """Another process works in the same directory of results."""


class NotWrittenError(OSError):
    """A result was computed but could not be written.

    Attributes:
        result: the summary that `evaluate` returns.
    """

    def __init__(self, cause: OSError, result: dict[str, Any]) -> None:
        super().__init__(cause.errno, cause.strerror, cause.filename)
        self.result = result


class FailedRunError(RuntimeError):
    """A run of an experiment ended in an error in its own process."""


class DivergedError(ArithmeticError):
    """A loss or a bound is no longer finite; the last good checkpoint is kept."""


class Interrupted(Exception):
    """A signal asked the run to stop; its state was saved first.

    Attributes:
        signal: number of the signal, for the shell's exit status 128 + signal.
    """

    def __init__(self, message: str, *, signal: int) -> None:
        super().__init__(message)
        self.signal = signal


MISTAKES = (DataError, ConfigError, CheckpointError, BusyError, DivergedError, FailedRunError)
"""What the command line answers with one line and status 2, beside errors of the system."""
