"""What a long computation tells while it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


def _nothing(*_: object) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class Listener:
    """Two functions that a long computation calls.

    Attributes:
        say: of a line that stays on the screen: a stage that begins, a result.
        update: of (fraction, line): how much of the current stage is done, from 0 to 1, None where
            nobody can know; the line replaces the one before.

    >>> Listener(print).say("round 1 of 3")
    round 1 of 3
    """

    say: Callable[[str], None] = _nothing
    update: Callable[[float | None, str], None] = _nothing


SILENT = Listener()
