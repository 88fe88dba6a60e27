"""Follow links of HDF5 files, so that a message can name the file that is missing.

For a link to an absent file HDF5 reports that there is no such object, and it fills a part of a
virtual data set whose source is absent with zeros; in neither case it names the file.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ..util.errors import InputError
from .boundary import refusing, regular_file

_MOST_OBJECTS = 10_000  # objects that are looked at in a file of unknown layout
MOST_NUMBERS = 2**27  # of a data set that is read whole
DEEPEST = 8  # levels of virtual data sets made of virtual data sets


def open_hdf5(path: Path) -> h5py.File:
    """Open an HDF5 file.

    Raises:
        InputError: the file does not exist or is no HDF5 file.
    """
    if not regular_file(path):
        raise InputError(f"{path} does not exist; put it where the file that points to it expects")
    try:
        return h5py.File(path, "r")
    except Exception as error:
        said = " ".join(str(error).split())[:200]
        raise InputError(f"{path} is not a readable HDF5 file: {said}; copy it anew") from None


def locate(name: str, beside: Path) -> Path:
    """The file that HDF5 opens for a link in the file ``beside``, or where that file should be."""
    given = Path(name)
    places = [beside.parent / given, beside.parent / given.name, given]
    return next((place for place in places if regular_file(place)), places[0])


def child(group: h5py.Group, name: str, path: Path) -> Any:
    """The object ``name`` of ``group``, with links followed; None if there is none.

    Raises:
        InputError: a link points to a file or an object that does not exist; the message names it.
    """
    with refusing(path, "an HDF5 file"):
        link = group.get(name, getlink=True)
    if link is None:
        return None
    if isinstance(link, h5py.ExternalLink):
        target = locate(link.filename, path)
        if not regular_file(target):
            raise InputError(
                f"{path} points to {name} in {target}, which does not exist and cannot be opened; "
                "put it beside the master"
            )
    try:
        return group[name]
    except Exception as error:
        where = f" in {link.filename}" if isinstance(link, h5py.ExternalLink) else ""
        said = " ".join(str(error).split())[:200]
        raise InputError(
            f"{path} points to {name}{where}, which cannot be opened ({said}); copy it anew"
        ) from None


def follow(file: h5py.File, name: str, path: Path) -> Any:
    """The object at a path in a file; an InputError names an absent file that a link points to."""
    at: Any = file
    for part in (part for part in name.split("/") if part not in ("", ".")):
        if not isinstance(at, h5py.Group):
            return None
        at = child(at, part, Path(at.file.filename))
    return at


def data_sets(file: h5py.File, path: Path) -> Iterator[tuple[str, h5py.Dataset]]:
    """The data sets of a file, each once, with the names of links to them; skip absent ones."""
    seen: set[int] = set()
    waiting: list[h5py.Group] = [file]
    while waiting and len(seen) < _MOST_OBJECTS:
        group = waiting.pop()
        for key in group:
            try:
                thing = child(group, key, path)
            except InputError:
                continue
            if thing is None or hash(thing.id) in seen or len(seen) >= _MOST_OBJECTS:
                continue
            seen.add(hash(thing.id))
            if isinstance(thing, h5py.Group):
                waiting.append(thing)
            elif isinstance(thing, h5py.Dataset):
                yield key, thing


def text_of(value: Any) -> str:
    """An attribute as text; "" if it is no text."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value if isinstance(value, str) else ""


def attribute(thing: Any, name: str) -> str:
    """The text attribute ``name``; "" if it is absent, unreadable or no text."""
    try:
        return text_of(thing.attrs.get(name, ""))
    except Exception:  # an attribute of a type that h5py does not know
        return ""


def groups(parent: h5py.Group, nx_class: str, name: str) -> Iterator[h5py.Group]:
    """Children of ``parent`` of an NX class, or without a class and with a name that starts so.

    A link that cannot be followed is skipped.
    """
    for key in parent:
        try:
            group = child(parent, key, Path(parent.file.filename)) if _may(parent, key) else None
        except InputError:
            continue
        if isinstance(group, h5py.Group):
            given = attribute(group, "NX_class")
            if given == nx_class or (not given and key.startswith(name)):
                yield group


def _may(parent: h5py.Group, key: str) -> bool:
    """Whether ``key`` can be a group, found without opening it."""
    link = parent.get(key, getlink=True)
    return not isinstance(link, h5py.HardLink) or parent.get(key, getclass=True) is h5py.Group


def numbers(dataset: Any, path: Path, what: str) -> h5py.Dataset:
    """Return ``dataset`` if it holds real numbers.

    Raises:
        InputError: it is a group, or holds text, complex numbers, compounds or references.
    """
    if not isinstance(dataset, h5py.Dataset):
        raise InputError(f"{path}: {what} is a {type(dataset).__name__}, not numbers; copy it anew")
    with refusing(path):
        if dataset.dtype.kind not in "biuf" or dataset.shape is None:
            raise InputError(
                f"{path}: {what} holds {dataset.dtype}, not real numbers; copy it anew"
            )
    return dataset


def whole_numbers(dataset: Any, path: Path, what: str) -> h5py.Dataset:
    """Return ``dataset`` if it holds real numbers and all files with its data exist.

    Raises:
        InputError: as :func:`numbers`; or a virtual data set has an absent source, or is its own
            source, at which HDF5 would crash.
    """
    found = numbers(dataset, path, what)
    with refusing(path, what):
        _check_sources(found, path, what, 0)
    return found


def read_numbers(dataset: Any, path: Path, what: str, at: tuple[int, ...] = ()) -> np.ndarray:
    """All numbers of a data set, or those at an index of its first axes.

    Raises:
        InputError: as :func:`whole_numbers`, or these are more than 2²⁷ numbers, which is found
            before any is read.
    """
    found = whole_numbers(dataset, path, what)
    if (n := math.prod(found.shape[len(at) :])) > MOST_NUMBERS:
        raise InputError(f"{path}: {what} has {n} numbers, too many to be read; write it anew")
    with refusing(path, what):
        return np.asarray(found[at])


def _check_sources(dataset: h5py.Dataset, path: Path, what: str, depth: int) -> None:
    if not dataset.is_virtual:
        return
    if depth > DEEPEST:
        raise InputError(f"{path}: its virtual data sets go in a circle; write the file anew")
    beside = Path(dataset.file.filename)
    for file_name, name in {(s.file_name, s.dset_name) for s in dataset.virtual_sources()}:
        where = beside if file_name == "." else locate(file_name, beside)
        if not regular_file(where):
            raise InputError(
                f"{path}: {what} lies in {where}, which does not exist; put it beside it"
            )
        with open_hdf5(where) as file:
            source = follow(file, name, where)
            _check_sources(numbers(source, where, name), path, what, depth + 1)
