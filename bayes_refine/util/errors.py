"""The one exception a user is meant to read."""

from __future__ import annotations


class InputError(ValueError):
    """Input that cannot be used: one sentence that names the file and what to do.

    The command line prints it and exits with status 2.
    """
