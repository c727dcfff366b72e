"""What the command prints, and the streams that it prints to.

Paths, words of a corpus and answers of a server are printed. A terminal
would obey the control characters in them, so they become escapes.
"""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import (
    contextmanager,
    redirect_stderr,
    redirect_stdout,
    suppress,
)
from typing import Any

from d2lbert.data.files import describe_error
from d2lbert.errors import RunError

#: What a terminal obeys, and what changes the direction of text. Lines and
#: tabs stay, and the carriage return of a progress bar.
CONTROLS = re.compile(
    r'[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]'
)


class Terminal:
    """A text stream that escapes control characters.

    After the first error it writes to nowhere. `required`: what is printed
    is asked for, so that each call raises this error.
    """

    def __init__(self, stream: Any, required: bool) -> None:
        # None is a stream that the parent process has closed
        self.stream = io.StringIO() if stream is None else stream
        self.required = required
        self.failure: Exception | None = None
        if isinstance(stream, io.TextIOWrapper):
            # Also for a character that the terminal cannot show
            stream.reconfigure(errors='backslashreplace')

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write text, with escapes for control characters."""
        self._try(self.stream.write, CONTROLS.sub(_escape, text))
        return len(text)

    def flush(self) -> None:
        """Flush the stream."""
        self._try(self.stream.flush)

    def _try(self, function: Callable[..., Any], *arguments: str) -> None:
        try:
            function(*arguments)
        except OSError as error:
            self.failure = failure_of(error)
            with suppress(OSError, ValueError):
                # What is left in the buffer would fail again at the end
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self.stream.fileno())
                os.close(nowhere)
        if self.failure and self.required:
            raise self.failure


def failure_of(error: OSError) -> Exception:
    """Return what to raise where the results cannot be printed."""
    if isinstance(error, BrokenPipeError):
        return error  # nobody misses the rest
    return RunError(
        f'the results cannot be printed ({describe_error(error)}): direct '
        'the output to where there is room. Files that were written are whole'
    )


@contextmanager
def terminal() -> Iterator[None]:
    """Print to `Terminal`s in the `with` block."""
    # Else the next file that is opened takes the place of a closed stream,
    # and gets what a library prints
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    with (
        redirect_stdout(Terminal(sys.stdout, required=True)),
        redirect_stderr(Terminal(sys.stderr, required=False)),
    ):
        yield


def say(message: object) -> None:
    """Print one line to stderr, whatever is in the message."""
    line = re.sub('[\n\r\t]', _escape, str(message))
    print(f'd2lbert: {line}', file=sys.stderr)


def _escape(found: re.Match[str]) -> str:
    return found[0].encode('unicode_escape').decode()
