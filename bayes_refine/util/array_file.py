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
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import h5py
import numpy as np

VERSION = 2
# time and size of files as they were when their data were last checked, by path and field
_checked: dict[tuple[Path, str], tuple[int, int]] = {}
_PACKAGE = __name__.split(".")[0]


class Damaged(Exception):
    """The file differs from what this module wrote."""


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
    found = path.stat()
    state, key = (found.st_mtime_ns, found.st_size), (path, field)
    is_known = _checked.get(key) == state
    try:
        with h5py.File(path, "r") as file:
            wanted = {"format": _PACKAGE, **(attributes or {})}
            other = [name for name, value in wanted.items() if _text(file, name) != value]
            if other or file.attrs.get("version") != VERSION:
                raise Damaged(f"{path}: its {', '.join(other) or 'version'} is another")
            item = _get(file[field] if field else file, is_known)
            _checked[key] = state
            return item
    except Damaged:
        raise
    except Exception as error:  # HDF5 and a class that is given damaged values can raise anything
        raise Damaged(f"{path}: {error}") from None


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


def _get(group: h5py.Group, is_known: bool) -> Any:
    """The dataclass in a group; data that are known to be as they were written are not checked."""
    text, checks = _text(group, "values"), json.loads(_text(group, "crc32"))
    if crc32(text.encode()) != checks["values"]:
        raise ValueError(f"the values of {group.name} were changed")
    values = {name: _lively(value) for name, value in json.loads(text).items()}
    for name, child in group.items():
        if isinstance(child, h5py.Group):
            values[name] = _get(child, is_known)
            continue
        values[name], check = child[()], checks["data"].pop(name)
        if not is_known and crc32(values[name].tobytes()) != check:
            raise ValueError(f"{child.name} was changed")
    if checks["data"]:
        raise ValueError(f"{', '.join(checks['data'])} of {group.name} is gone")
    if _text(group, "class") == "dict":
        return values
    module, name = _text(group, "class").split(":")
    if module.split(".")[0] != _PACKAGE:
        raise ValueError(f"{module} is not of {_PACKAGE}")
    return getattr(importlib.import_module(module), name)(**values)


def _lively(value: Any) -> Any:
    if isinstance(value, dict) and "slice" in value:
        return slice(*value["slice"])
    if isinstance(value, dict) and "tuple" in value:
        return tuple(_lively(x) for x in value["tuple"])
    return value
