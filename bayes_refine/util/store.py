"""A sequence of objects on disk, for runs that memory cannot hold."""

from __future__ import annotations

import pickle
import tempfile
import weakref
from collections.abc import Sequence
from typing import Generic, TypeVar

T = TypeVar("T")


class Store(Sequence[T], Generic[T]):
    """Objects appended once and read as often as needed, one at a time in memory.

    They lie in an unnamed temporary file (in ``TMPDIR``) that goes when the store goes.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="bayes-refine-")
        weakref.finalize(self, self._file.close)
        self._offsets: list[int] = []

    def append(self, item: T) -> None:
        """Add one object; it must be picklable."""
        self._offsets.append(self._file.seek(0, 2))
        pickle.dump(item, self._file, protocol=5)

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, index):  # type: ignore[override]
        if isinstance(index, slice):
            raise TypeError("a store is read one object at a time")
        self._file.seek(self._offsets[index])
        return pickle.load(self._file)
