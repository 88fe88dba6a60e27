"""A sequence of objects on disk, for runs that memory cannot hold."""

from __future__ import annotations

import os
import pickle
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Generic, TypeVar

from .errors import InputError

T = TypeVar("T")


@contextmanager
def _room() -> Iterator[None]:
    """A full disk, or none, is a sentence that says what to set."""
    try:
        yield
    except OSError as error:
        folder = os.environ.get("TMPDIR") or tempfile.gettempdir()
        raise InputError(
            f"{folder}: what was measured cannot be written there ({error.strerror or error}); "
            "set TMPDIR to a folder with more room"
        ) from None


class Store(Sequence[T], Generic[T]):
    """Objects appended once and read as often as needed, one at a time in memory.

    They lie in an unnamed temporary file (in ``TMPDIR``) that goes when the store goes.
    """

    def __init__(self) -> None:
        with _room():
            self._file = tempfile.TemporaryFile(prefix="bayes-refine-")
        weakref.finalize(self, self._file.close)
        self._offsets: list[int] = []

    def append(self, item: T) -> None:
        """Add one object; it must be picklable.

        Raises:
            InputError: the folder of temporary files is full.
        """
        with _room():
            self._offsets.append(self._file.seek(0, 2))
            pickle.dump(item, self._file, protocol=5)
            self._file.flush()

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, index):  # type: ignore[override]
        if isinstance(index, slice):
            raise TypeError("a store is read one object at a time")
        self._file.seek(self._offsets[index])
        return pickle.load(self._file)
