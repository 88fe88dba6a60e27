"""A dataclass of arrays as an HDF5 file, which any program can read.

A dataclass or a dictionary becomes a group, and an array a data set.  Everything else (numbers,
strings, slices, None) becomes JSON in the group's attribute ``values``.  The group's attribute
``class`` names the class; ``crc32`` is JSON with the CRC-32 of the data sets and of ``values``.
Texts have a fixed length: HDF5 has no checksum for texts of variable length, and can hang at a
damaged one.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import h5py
import numpy as np

VERSION = 2
_PACKAGE = __name__.split(".")[0]


class Damaged(Exception):
    """The file differs from what this module wrote."""


class _Layout(NamedTuple):
    """Where the arrays of a group are in a file, and what else is in it.

    Attributes:
        kind, values: the group's attributes ``class`` and ``values``.
        arrays: (name, offset, dtype, shape) of each. groups: (name, layout) of each.
    """

    kind: str
    values: str
    arrays: tuple[tuple[str, int, np.dtype, tuple[int, ...]], ...]
    groups: tuple[tuple[str, _Layout], ...]


class _Checked(NamedTuple):
    """A file as it was when its data were checked: time and size, attributes, layout."""

    time_ns: int
    size: int
    attributes: dict[str, str]
    layout: _Layout


_checked: dict[tuple[Path, str], _Checked] = {}  # by path and field
_layouts: dict[_Layout, _Layout] = {}  # most files of a run have the same


def write(path: Path, item: Any, attributes: Mapping[str, str]) -> int:
    """Write a dataclass, completely or not at all; return the size of the file in bytes.

    Args:
        attributes: of the file; they say what made it.

    Raises:
        OSError: the folder cannot be written.
    """
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        # in memory first: on a full disk HDF5 fails in a way that Python cannot catch
        with h5py.File(part, "w", driver="core", backing_store=False, libver="latest") as file:
            file.attrs["version"] = VERSION
            for name, value in {"format": _PACKAGE, **attributes}.items():
                _put_text(file, name, value)
            _put(file, item)
            file.flush()
            content = file.id.get_file_image()
        part.write_bytes(content)
        os.replace(part, path)
        return len(content)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def read(path: Path, attributes: Mapping[str, str] | None = None, field: str = "") -> Any:
    """Read the dataclass in a file.

    Args:
        attributes: what the file's attributes must be.
        field: name of one field, itself a dataclass; only this field is read.

    Raises:
        FileNotFoundError: there is no such file.
        Damaged: the file is incomplete, was changed, or has other attributes.
    """
    wanted, key = {"format": _PACKAGE, **(attributes or {})}, (path, field)
    with path.open("rb", buffering=0) as plain:
        found = os.fstat(plain.fileno())
        known, now = _checked.get(key), (found.st_mtime_ns, found.st_size)
        try:
            if known and (known.time_ns, known.size, known.attributes) == (*now, wanted):
                return _made(known.layout, plain)  # by far faster than by HDF5
            layout, sums = _found(path, wanted, field)
            item = _made(layout, plain, sums)
        except Damaged:
            raise
        except Exception as error:  # HDF5 and damaged values can raise anything
            raise Damaged(f"{path}: {error}") from None
    _checked[key] = _Checked(*now, wanted, _layouts.setdefault(layout, layout))
    return item


def _found(path: Path, wanted: Mapping[str, str], field: str) -> tuple[_Layout, Iterator[int]]:
    """Layout of a file or of one of its fields, and the CRC-32 of its arrays."""
    with h5py.File(path, "r") as file:
        other = [name for name, value in wanted.items() if _text(file, name) != value]
        if other or file.attrs.get("version") != VERSION:
            raise Damaged(f"{path}: its {', '.join(other) or 'version'} is another")
        sums: list[int] = []
        return _layout(file[field] if field else file, sums), iter(sums)


def _put(group: h5py.Group, item: Any) -> None:
    kind = type(item)
    of = "dict" if kind is dict else f"{kind.__module__}:{kind.__qualname__}"
    _put_text(group, "class", of)
    values = item if kind is dict else {f.name: getattr(item, f.name) for f in fields(item)}
    others, checks = {}, {}
    for name, value in values.items():
        if isinstance(value, dict) or is_dataclass(value):
            _put(group.create_group(name), value)
        elif isinstance(value, np.ndarray | np.generic) or hasattr(value, "__array__"):
            array = np.asarray(value)
            group.create_dataset(name, data=array)
            checks[name] = crc32(array.tobytes())
        else:
            others[name] = _plain(value)
    text = json.dumps(others)
    _put_text(group, "values", text)
    _put_text(group, "crc32", json.dumps({"values": crc32(text.encode()), "data": checks}))


def _put_text(group: h5py.Group, name: str, text: str) -> None:
    data = text.encode()
    group.attrs.create(name, data, dtype=h5py.string_dtype("utf-8", max(len(data), 1)))


def _text(group: h5py.Group, name: str) -> str:
    found = group.attrs.get(name, b"")
    return found.decode() if isinstance(found, bytes) else str(found)


def _plain(value: Any) -> Any:
    if isinstance(value, slice):
        return {"slice": [value.start, value.stop, value.step]}
    if isinstance(value, tuple):
        return {"tuple": [_plain(x) for x in value]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{type(value).__name__}: this type cannot be written")


def _layout(group: h5py.Group, sums: list[int]) -> _Layout:
    """Layout of a group; the CRC-32 of each array is added to ``sums``, as :func:`_made` reads."""
    text, checks = _text(group, "values"), json.loads(_text(group, "crc32"))
    if crc32(text.encode()) != checks["values"]:
        raise ValueError(f"the values of {group.name} were changed")
    children = dict(group.items())
    groups = [(k, _layout(x, sums)) for k, x in children.items() if isinstance(x, h5py.Group)]
    arrays = []
    for name, child in children.items():
        if isinstance(child, h5py.Dataset):
            sums.append(checks["data"].pop(name))
            offset = child.id.get_offset() if child.size else 0
            arrays.append((name, offset, child.dtype, child.shape))
    if checks["data"]:
        raise ValueError(f"{', '.join(checks['data'])} of {group.name} is gone")
    return _Layout(_text(group, "class"), text, tuple(arrays), tuple(groups))


def _made(layout: _Layout, file: FileIO, sums: Iterator[int] | None = None) -> Any:
    """The dataclass of a layout in a file; its arrays are checked where ``sums`` are given."""
    values = {name: _lively(value) for name, value in json.loads(layout.values).items()}
    for name, group in layout.groups:
        values[name] = _made(group, file, sums)
    for name, offset, dtype, shape in layout.arrays:
        array = np.empty(shape, dtype)
        content = array.reshape(-1).view(np.uint8).data
        file.seek(offset)
        if file.readinto(content) != array.nbytes:
            raise ValueError(f"{name} ends early")
        if sums is not None and crc32(content) != next(sums):
            raise ValueError(f"{name} was changed")
        values[name] = array[()]  # a number, where there are no axes
    if layout.kind == "dict":
        return values
    module, name = layout.kind.split(":")
    if module.split(".")[0] != _PACKAGE:
        raise ValueError(f"{module} is not of {_PACKAGE}")
    return getattr(importlib.import_module(module), name)(**values)


def _lively(value: Any) -> Any:
    if isinstance(value, dict) and "slice" in value:
        return slice(*value["slice"])
    if isinstance(value, dict) and "tuple" in value:
        return tuple(_lively(x) for x in value["tuple"])
    return value
