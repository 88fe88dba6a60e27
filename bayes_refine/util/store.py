"""A sequence of objects on disk, for runs that memory cannot hold, read by any process."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from . import array_file
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
    """Dataclasses of arrays, put once each and read as often as needed, one at a time in memory.

    Each lies in an HDF5 file of its own (``array_file``), which is complete or absent.  A pickled
    store stands for the same folder.

    Args:
        size: number of objects.
        folder: made if absent, and kept until :meth:`delete`; by default a temporary one (in
            ``TMPDIR``) that goes when the store goes.
        made_of: what the objects depend on, as attributes of every file.
    """

    _field = ""
    _owner: Store[Any] | None = None  # of a temporary folder, which is there for as long

    def __init__(
        self, size: int, folder: Path | None = None, made_of: Mapping[str, str] | None = None
    ) -> None:
        with _room(folder):
            if folder is None:
                self.folder = Path(tempfile.mkdtemp(prefix="bayes-refine-"))
                weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
            else:
                folder.mkdir(parents=True, exist_ok=True)
                self.folder = folder
        self._size, self._given, self._made_of = size, folder, dict(made_of or {})

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_owner": None}

    def put(self, index: int, item: T) -> None:
        """Write one object.

        Raises:
            InputError: the folder is full.
        """
        path = self._path(index)
        _MEMORY.forget(path)
        with _room(self._given):
            path.parent.mkdir(exist_ok=True)
            size = array_file.write(path, item, self._made_of)
        _MEMORY.keep((path, ""), item, size)

    def of(self, field: str) -> Store[Any]:
        """One field of every object, itself a dataclass, which is read alone."""
        view = copy(self)
        view._field, view._owner = field, self._owner or self
        return view

    def find(self, index: int) -> T | None:
        """An object that an earlier process put; None where there is none, or a damaged one."""
        try:
            return array_file.read(self._path(index), self._made_of, self._field)
        except (FileNotFoundError, array_file.Damaged):
            return None

    def delete(self) -> None:
        """Remove all objects from the disk."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index):  # type: ignore[override]
        if isinstance(index, slice):
            raise TypeError("a store is read one object at a time")
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        path = self._path(index % len(self))
        item = _MEMORY.find(path, self._field)
        if item is None:
            try:
                item = array_file.read(path, self._made_of, self._field)
            except (FileNotFoundError, array_file.Damaged) as error:
                raise InputError(
                    f"{path}: what was measured is gone or damaged ({error}); "
                    "run the fit again with --resume"
                ) from None
            _MEMORY.keep((path, self._field), item, path.stat().st_size)
        return item

    def _path(self, index: int) -> Path:
        return self.folder / f"{index // 1000:03d}" / f"{index:06d}.h5"


class _Memory:
    """Objects of stores by file and field, the last ones used, up to a number of bytes."""

    def __init__(self) -> None:
        self.limit = self._held = 0
        self._items: OrderedDict[tuple[Path, str], tuple[Any, int]] = OrderedDict()

    def keep(self, key: tuple[Path, str], item: Any, size: int) -> None:
        if size > self.limit:
            return
        self._items[key] = item, size
        self._held += size
        while self._held > self.limit:
            self._held -= self._items.popitem(last=False)[1][1]

    def find(self, path: Path, field: str) -> Any:
        if (path, field) in self._items:
            self._items.move_to_end((path, field))
            return self._items[path, field][0]
        if field and (path, "") in self._items:
            return getattr(self.find(path, ""), field)
        return None

    def forget(self, path: Path) -> None:
        for key in [key for key in self._items if key[0] == path]:
            self._held -= self._items.pop(key)[1]


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
