"""The one exception a user is meant to read."""

from __future__ import annotations

from .text import printable


class InputError(ValueError):
    """Input that cannot be used: one sentence that names the file and what to do.

    The command line prints it and exits with status 2.  It is made :func:`printable`: it may
    quote names from files.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))
