"""The one exception that a user is meant to read."""

from __future__ import annotations

from .text import printable, shortened


class InputError(ValueError):
    """Input that cannot be used: one sentence that names the file and says what to do.

    The command line prints the sentence and exits with status 2.  The sentence may quote names from
    files, so it is made :func:`printable`, and of a very long one the middle is left out.
    """

    def __init__(self, message: str) -> None:
        super().__init__(shortened(printable(message)))
