"""Ctrl-C, SIGTERM and similar signals, as a flag that a loop tests between two steps."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType

# SIGHUP: the terminal was closed. SIGUSR1: a scheduler announces that the time of a job is up. Windows has neither.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name))


class StopRequest:
    """While entered, the first signal only sets `signal`; a second one has its former effect.

    A signal that is ignored, as SIGHUP under `nohup`, stays ignored.

    Attributes:
        signal: number of the signal that came, or None.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopRequest:
        # Python lets only the main thread set handlers; elsewhere signals keep their meaning.
        if threading.current_thread() is threading.main_thread():
            heeded = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
            self._previous = {number: signal.signal(number, self._note) for number in heeded}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # the value that signal.signal returned
        self._previous = {}
