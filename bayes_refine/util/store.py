"""A sequence of objects on disk, for runs that memory cannot hold, read by any process."""

from __future__ import annotations

import os
import pickle
import shutil
import tempfile
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from .errors import InputError

T = TypeVar("T")


@contextmanager
def _room(folder: Path | None) -> Iterator[None]:
    """A full disk, or none, is a sentence that says what to set."""
    try:
        yield
    except OSError as error:
        where, what = folder, "give --work, a folder with more room"
        if folder is None:
            where = Path(os.environ.get("TMPDIR") or tempfile.gettempdir())
            what = "set TMPDIR to a folder with more room"
        why = error.strerror or error
        raise InputError(
            f"{where}: what was measured cannot be written there ({why}); {what}"
        ) from None


class Store(Sequence[T], Generic[T]):
    """Objects put once each and read as often as needed, one at a time in memory.

    Each lies in a file of its own, which is complete or absent.  The folder goes when the store
    goes; a pickled store stands for the same folder, and leaves it.

    Args:
        folder: made if absent; a temporary one (in ``TMPDIR``) if not given.
        size: number of objects.
    """

    def __init__(self, size: int, folder: Path | None = None) -> None:
        with _room(folder):
            if folder is None:
                self.folder = Path(tempfile.mkdtemp(prefix="bayes-refine-"))
            else:
                folder.mkdir(parents=True, exist_ok=True)
                self.folder = folder
        self._size, self._given = size, folder
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "_size": self._size, "_given": self._given}

    def put(self, index: int, item: T) -> None:
        """Write one object; it must be picklable.

        Raises:
            InputError: the folder is full.
        """
        path = self._path(index)
        _MEMORY.forget(path)
        with _room(self._given):
            path.parent.mkdir(exist_ok=True)
            part = path.with_suffix(f".{os.getpid()}.part")
            with part.open("wb") as file:
                pickle.dump(item, file, protocol=5)
                size = file.tell()
            os.replace(part, path)
        _MEMORY.keep(path, item, size)

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index):  # type: ignore[override]
        if isinstance(index, slice):
            raise TypeError("a store is read one object at a time")
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        path = self._path(index % len(self))
        item = _MEMORY.find(path)
        if item is None:
            with path.open("rb") as file:
                item = pickle.load(file)
                _MEMORY.keep(path, item, file.tell())
        return item

    def _path(self, index: int) -> Path:
        return self.folder / f"{index // 1000:03d}" / f"{index:06d}.pickle"


class _Memory:
    """Objects of stores by their files, the last ones used, up to a number of bytes."""

    def __init__(self) -> None:
        self.limit = self._held = 0
        self._items: OrderedDict[Path, tuple[Any, int]] = OrderedDict()

    def keep(self, path: Path, item: Any, size: int) -> None:
        if size > self.limit:
            return
        self._items[path] = item, size
        self._held += size
        while self._held > self.limit:
            self._held -= self._items.popitem(last=False)[1][1]

    def find(self, path: Path) -> Any:
        if path not in self._items:
            return None
        self._items.move_to_end(path)
        return self._items[path][0]

    def forget(self, path: Path) -> None:
        if path in self._items:
            self._held -= self._items.pop(path)[1]


_MEMORY = _Memory()


def hold_in_memory(limit: int) -> None:
    """From now on objects of stores stay in this process's memory, up to ``limit`` bytes."""
    _MEMORY.limit = limit


@dataclass(frozen=True)
class Place(Generic[T]):
    """Where an object lies: a place in a store, or the object itself."""

    store: Sequence[T]
    index: int

    def get(self) -> T:
        """The object, read now."""
        return self.store[self.index]


def places(objects: Sequence[T]) -> list[Place[T]]:
    """The place of each object; a place in a store is a few bytes, wherever it is sent."""
    if isinstance(objects, Store):
        return [Place(objects, k) for k in range(len(objects))]
    return [Place((x,), 0) for x in objects]
