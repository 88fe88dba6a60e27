"""A dataclass of arrays as an HDF5 file, which any program can read.

A dataclass or a dictionary becomes a group, and an array a data set with a checksum (Fletcher 32).
Everything else (numbers, strings, slices, None) becomes JSON in the group's attribute ``values``.
The group's attribute ``class`` names the class.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

VERSION = 1
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
            file.attrs["format"], file.attrs["version"] = _PACKAGE, VERSION
            file.attrs.update(attributes)
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
    if not path.exists():
        raise FileNotFoundError(path)
    try:
        with h5py.File(path, "r") as file:
            wanted = {"format": _PACKAGE, "version": VERSION, **(attributes or {})}
            if other := [name for name, value in wanted.items() if file.attrs.get(name) != value]:
                raise Damaged(f"{path}: its {', '.join(other)} is another")
            return _get(file[field] if field else file)
    except (OSError, KeyError, ValueError, TypeError, AttributeError, ImportError) as error:
        raise Damaged(f"{path}: {error}") from None


def _put(group: h5py.Group, item: Any) -> None:
    kind = type(item)
    group.attrs["class"] = "dict" if kind is dict else f"{kind.__module__}:{kind.__qualname__}"
    values = item if kind is dict else {f.name: getattr(item, f.name) for f in fields(item)}
    others = {}
    for name, value in values.items():
        if isinstance(value, dict) or is_dataclass(value):
            _put(group.create_group(name), value)
        elif isinstance(value, np.ndarray | np.generic) or hasattr(value, "__array__"):
            array = np.asarray(value)
            checked = {"fletcher32": True, "chunks": array.shape} if array.size > 1 else {}
            group.create_dataset(name, data=array, **checked)
        else:
            others[name] = _plain(value)
    group.attrs["values"] = json.dumps(others)


def _plain(value: Any) -> Any:
    if isinstance(value, slice):
        return {"slice": [value.start, value.stop, value.step]}
    if isinstance(value, tuple):
        return {"tuple": [_plain(x) for x in value]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{type(value).__name__}: this type cannot be written")


def _get(group: h5py.Group) -> Any:
    values = {name: _lively(value) for name, value in json.loads(group.attrs["values"]).items()}
    for name, child in group.items():
        values[name] = _get(child) if isinstance(child, h5py.Group) else child[()]
    if group.attrs["class"] == "dict":
        return values
    module, name = group.attrs["class"].split(":")
    if module.split(".")[0] != _PACKAGE:
        raise ValueError(f"{module} is not of {_PACKAGE}")
    return getattr(importlib.import_module(module), name)(**values)


def _lively(value: Any) -> Any:
    if isinstance(value, dict) and "slice" in value:
        return slice(*value["slice"])
    if isinstance(value, dict) and "tuple" in value:
        return tuple(_lively(x) for x in value["tuple"])
    return value
