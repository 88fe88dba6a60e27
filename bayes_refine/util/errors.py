"""The one exception that a user is meant to read."""

from __future__ import annotations

from .text import printable


class InputError(ValueError):
    """Input that cannot be used: one sentence that names the file and says what to do.

    The command line prints the sentence and exits with status 2.  The sentence may quote names from
    files, so it is made :func:`printable`.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))
