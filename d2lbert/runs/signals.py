"""Stopping a training by Ctrl-C or SIGTERM, between two steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import Any

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """Receives a first signal inside its `with` block, in `received`.

    A second signal ends the process at once, as if it had no handler. Where
    Python's own handler was in place, a second Ctrl-C raises
    `KeyboardInterrupt` instead, which a notebook survives. Ignored signals
    stay ignored. Outside of the main thread nothing is changed.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self.before = replace_handlers(self._receive)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: object) -> None:
        self.received = number
        for other, handler in self.before.items():
            is_python = handler is signal.default_int_handler
            signal.signal(other, handler if is_python else signal.SIG_DFL)


def replace_handlers(handler: Callable[[int, Any], Any]) -> dict[int, Any]:
    """Handle the signals that are not ignored; return the old handlers."""
    return {
        number: signal.signal(number, handler)
        for number in STOP_SIGNALS
        if signal.getsignal(number) != signal.SIG_IGN
    }
