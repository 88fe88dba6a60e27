"""A sequence of objects on disk, for runs larger than memory; any process can read it."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from typing import Any, Generic, TypeVar

from . import array_file
from .errors import InputError

T = TypeVar("T")
_Key = tuple[Path, str, tuple[tuple[str, str], ...]]  # file, field, what it was made of
HELD = 2**27  # bytes of objects that stay in memory: those of some 500 images


@contextmanager
def _room(folder: Path | None) -> Iterator[None]:
    """Turn a full or unwritable disk into an InputError that says which option to set."""
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
    """Dataclasses of arrays on disk: each is written once and read as often as needed.

    Each object has an HDF5 file of its own (``array_file``), which is complete or absent.  As many
    objects as ``hold_in_memory`` allows also stay in memory, and must not be changed.  A store that
    was pickled refers to the same folder.

    Args:
        size: number of objects.
        folder: made if absent, and kept until :meth:`delete`; by default a temporary folder (in
            ``TMPDIR``), which is removed with the store.
        made_of: what the objects depend on; every file has it as attributes.
    """

    _field = ""
    _owner: Store[Any] | None = None  # keeps a temporary folder alive

    def __init__(
        self, size: int, folder: Path | None = None, made_of: Mapping[str, str] | None = None
    ) -> None:
        with _room(folder):
            if folder is None:
                self.folder = Path(tempfile.mkdtemp(prefix="bayes-refine-"))
                weakref.finalize(self, _remove, self.folder)
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
        _MEMORY.keep(self._key(path), item, size)

    def of(self, field: str) -> Store[Any]:
        """A view of the store that reads one field of each object only, itself a dataclass."""
        view = copy(self)
        view._field, view._owner = field, self._owner or self
        return view

    def find(self, index: int) -> T | None:
        """The object that an earlier process wrote; None if it is absent or damaged."""
        try:
            return array_file.read(self._path(index), self._made_of, self._field)
        except (FileNotFoundError, array_file.Damaged):
            return None

    def has(self, index: int) -> bool:
        """Whether there is a file of an object."""
        return self._path(index).exists()

    def remove(self, index: int) -> None:
        """Remove one object from the disk, and the folder after the last one."""
        path = self._path(index)
        _MEMORY.forget(path)
        path.unlink(missing_ok=True)
        for folder in (path.parent, self.folder):
            with suppress(OSError):  # there are others
                folder.rmdir()

    def delete(self) -> None:
        """Remove all objects from disk and memory."""
        _remove(self.folder)

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index):  # type: ignore[override]
        if isinstance(index, slice):
            raise TypeError("a store is read one object at a time")
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        path = self._path(index % len(self))
        item = _MEMORY.find(self._key(path), self._field)
        if item is None:
            try:
                item = array_file.read(path, self._made_of, self._field)
            except (FileNotFoundError, array_file.Damaged) as error:
                raise InputError(
                    f"{path}: what was measured is gone or damaged ({error}); "
                    "run the fit again with --resume"
                ) from None
            _MEMORY.keep(self._key(path, self._field), item, path.stat().st_size)
        return item

    def _key(self, path: Path, field: str = "") -> _Key:
        return path, field, tuple(self._made_of.items())

    def _path(self, index: int) -> Path:
        return self.folder / f"{index // 1000:03d}" / f"{index:06d}.h5"


class _Memory:
    """Objects of all stores, by file and field, up to a number of bytes.

    Where there is no room, objects of other folders go, those first that were used longest ago.
    Objects of the same folder stay: they are read in turn, again and again, so that each one would
    go just before it is read.
    """

    def __init__(self, limit: int = 0) -> None:
        self.limit, self._held = limit, 0
        self._items: OrderedDict[_Key, tuple[Any, int]] = OrderedDict()
        self._lock = RLock()

    def keep(self, key: _Key, item: Any, size: int) -> None:
        with self._lock:
            self._drop([k for k in self._items if k == key])
            folder = key[0].parent.parent
            others = [k for k in self._items if k[0].parent.parent != folder]
            while self._held + size > self.limit and others:
                self._drop([others.pop(0)])
            if self._held + size <= self.limit:
                self._items[key] = item, size
                self._held += size

    def find(self, whole: _Key, field: str) -> Any:
        """A field of an object, ``whole`` being the object's key; "" for the object."""
        key = (whole[0], field, whole[2])
        with self._lock:
            if key in self._items:
                self._items.move_to_end(key)
                return self._items[key][0]
            return getattr(self.find(whole, ""), field) if field and whole in self._items else None

    def forget(self, path: Path) -> None:
        """Objects of a file, or of a folder of files."""
        with self._lock:
            self._drop([k for k in self._items if path == k[0] or path in k[0].parents])

    def _drop(self, keys: list[_Key]) -> None:
        for key in keys:
            self._held -= self._items.pop(key)[1]


_MEMORY = _Memory(HELD)


def hold_in_memory(limit: int) -> None:
    """Keep recently used objects of stores in this process's memory, up to ``limit`` bytes."""
    _MEMORY.limit = limit


def _remove(folder: Path) -> None:
    _MEMORY.forget(folder)
    shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class Place(Generic[T]):
    """Where an object lies: a place in a store, or the object itself."""

    store: Sequence[T]
    index: int

    def get(self) -> T:
        """The object, read now."""
        return self.store[self.index]

    def is_there(self) -> bool:
        """Whether the object is where it should be; one on disk may be gone."""
        return not isinstance(self.store, Store) or self.store.has(self.index)


class Joined(Sequence[T], Generic[T]):
    """Objects that lie in several stores, as one sequence."""

    def __init__(self, where: Sequence[Place[T]]) -> None:
        self.places = list(where)

    def of(self, field: str) -> Joined[Any]:
        """One field of every object, as ``Store.of``."""
        assert all(isinstance(place.store, Store) for place in self.places)
        return Joined([Place(p.store.of(field), p.index) for p in self.places])  # type: ignore[attr-defined]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index):  # type: ignore[override]
        if isinstance(index, slice):
            raise TypeError("a store is read one object at a time")
        return self.places[index].get()


def places(objects: Sequence[T]) -> list[Place[T]]:
    """The place of each object; a place in a store takes a few bytes when sent to a process."""
    if isinstance(objects, Joined):
        return objects.places
    if isinstance(objects, Store):
        return [Place(objects, k) for k in range(len(objects))]
    return [Place((x,), 0) for x in objects]
