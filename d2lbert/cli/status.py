"""Exit statuses, and what an error becomes: a line and a status."""

from __future__ import annotations

import re
import shlex
import sys

from d2lbert import errors
from d2lbert.errors import InputError

FAILED, BAD_INPUT = 1, 2
#: How the frameworks say that there is no memory.
NO_MEMORY = re.compile('alloc|out of memory', re.IGNORECASE)


def explain(error: Exception) -> tuple[str, int]:
    """Return the message of an error, and the exit status."""
    # `backends.load` raises the second with a cause where a framework is
    # not installed
    if isinstance(error, (InputError, errors.BackendsError)) or (
        isinstance(error, ModuleNotFoundError) and error.__cause__
    ):
        return str(error), BAD_INPUT
    if isinstance(error, errors.D2LBertError):
        return str(error), FAILED
    # A framework's message can have many lines, and MXNet's a traceback,
    # whose last line says what happened
    message = str(error)
    if message.startswith('Traceback'):
        *_, message = message.strip().splitlines()
    text = ' '.join(message.split())
    if isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and NO_MEMORY.search(text)
    ):
        return (
            f'there is not enough memory ({text}): give smaller numbers for '
            '--micro-batch, --batch-size or --max-len, or of hidden units '
            'and blocks; or --checkpoint-blocks',
            FAILED,
        )
    again = shlex.join(['d2lbert', '--debug', *sys.argv[1:]])
    name = type(error).__name__
    return f'unexpected {name}: {text}. To see where, run: {again}', FAILED
