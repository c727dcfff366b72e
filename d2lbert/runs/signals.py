"""Stopping a training by Ctrl-C or SIGTERM, between two steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
Handler = Callable[[int, Any], Any]


class StopSignals:
    """Inside its `with` block a first signal only sets `received`.

    The second one ends the process at once, as if nobody handled it; so
    does not a second Ctrl-C where Python's own handler was in place: a
    notebook is to survive it. Ignored signals stay ignored. In other
    threads than the main one nothing is changed.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self.before = replace_handlers(self._receive)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: object) -> None:
        self.received = number
        for other, handler in self.before.items():
            ours = handler is not signal.default_int_handler
            signal.signal(other, signal.SIG_DFL if ours else handler)


def replace_handlers(handler: Handler) -> dict[int, Any]:
    """Handle the signals that are not ignored; return who did before."""
    return {
        number: signal.signal(number, handler)
        for number in STOP_SIGNALS
        if signal.getsignal(number) != signal.SIG_IGN
    }
