"""How a long computation reports its progress."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass


def _nothing(*_: object) -> None:
    """Report to nobody."""


@dataclass(frozen=True)
class Listener:
    """Two functions that a long computation calls to report its progress.

    Attributes:
        say: takes a line that stays on the screen: a stage begins, a result is there.
        update: takes (fraction, line): the done fraction of the current stage, from 0 to 1, or None
            where it cannot be known, and a line that replaces the one before.

    >>> Listener(print).say("round 1 of 3")
    round 1 of 3
    """

    say: Callable[[str], None] = _nothing
    update: Callable[[float | None, str], None] = _nothing


SILENT = Listener()


class Pace:
    """How fast a stage goes, and how long it still takes, for as many images as it has.

    Args:
        what: that happens to the images, a verb. n: images. listener: told each time.
        place: where the work is done, in words.
        clock: s.
    """

    def __init__(
        self,
        what: str,
        n: int,
        listener: Listener,
        place: Callable[[], str] = lambda: "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._what, self._n, self._listener, self._place = what, n, listener, place
        self._clock, self._started = clock, clock()

    def done(self, images: int) -> None:
        """So many images are done.

        >>> times = iter([0.0, 2.0])
        >>> listener = Listener(update=lambda fraction, line: print(line))
        >>> Pace("measured", 100, listener, clock=lambda: next(times)).done(40)
        measured 40 of 100 images; 20 a second, 3 s left
        """
        seconds = max(self._clock() - self._started, 1e-6)
        left = seconds * (self._n - images) / max(images, 1)
        line = f"{self._what} {images} of {self._n} images; {images / seconds:.3g} a second, "
        where = self._place()
        self._listener.update(
            images / self._n, f"{line}{left:.0f} s left{'; ' if where else ''}{where}"
        )


def peak_memory() -> float:
    """The most memory that this process has had, GiB."""
    unit = 2**30 if sys.platform == "darwin" else 2**20  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
