"""How a command ends: with one sentence and an exit status, whatever happens."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import jax
import numpy as np

from ..loading import place_in_model
from ..util.errors import InputError

UNUSABLE, NO_MEMORY = 2, 3
AGAIN = 0.01  # s, after which an exception that was lost is raised again
STOPPED = 128  # plus the number of the signal: 130 for Ctrl-C, 143 for SIGTERM


class Stopped(BaseException):
    """A signal asked the program to end; this is no ``Exception``, so no handler catches it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def stoppable() -> Iterator[None]:
    """Let SIGINT and SIGTERM raise ``Stopped``, so that files are closed as at any other end.

    A second signal ends the program at once.  Where Python cannot let an exception through (in a
    callback for an object that goes), ``Stopped`` is raised again a moment later.
    """
    if threading.current_thread() is not threading.main_thread():  # gets no signals
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}
    hook = sys.unraisablehook

    def stop(number, _frame):
        for each in numbers:
            signal.signal(each, signal.SIG_DFL)
        raise Stopped(number)

    def unraisable(lost):
        if not isinstance(lost.exc_value, Stopped):
            return hook(lost)
        number = lost.exc_value.number
        signal.signal(number, stop)
        threading.Timer(AGAIN, os.kill, (os.getpid(), number)).start()

    for number in numbers:
        signal.signal(number, stop)
    sys.unraisablehook = unraisable
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)


def sentence_of(error: BaseException) -> tuple[str, int] | None:
    """Sentence and exit status for an exception; None for an exception that is a bug."""
    if isinstance(error, InputError):
        return str(error), UNUSABLE
    if isinstance(error, Stopped):
        return f"stopped by {signal.Signals(error.number).name}", STOPPED + error.number
    if isinstance(error, np.linalg.LinAlgError):
        return (
            f"a matrix of the fit has no inverse ({error}); check the units of images and "
            "reference, or leave out images (--images)",
            UNUSABLE,
        )
    exhausted = isinstance(error, jax.errors.JaxRuntimeError) and any(
        word in str(error) for word in ("RESOURCE_EXHAUSTED", "Out of memory")
    )
    if isinstance(error, MemoryError) or exhausted:
        why = " ".join(str(error).split())[:200]
        what = f"not enough memory ({why})" if why else "not enough memory"
        return f"{what}; take fewer --images, a larger --d-min, or more memory", NO_MEMORY
    where = place_in_model(error)
    if where is not None:
        said = " ".join(str(error).split())[:200]
        return f"{where}: the model fails, {type(error).__name__}: {said}", UNUSABLE
    return None
