"""Files of results: tables as CSV, strictly valid JSON, versions of packages."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import platform
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from .text import printable

_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # at the start of a cell, to a spreadsheet
PACKAGES = ("bayes-refine", "numpy", "jax", "numpyro", "arviz", "gemmi", "h5py", "hdf5plugin")


def write_summary(path: Path, summary: Mapping[str, Any]) -> None:
    """Write ``summary.json``; the values are what :func:`jsonable` returns."""
    text = json.dumps(summary, indent=1, allow_nan=False, ensure_ascii=False)
    # UTF-8 cannot hold a lone surrogate, which a file's name may contain: JSON's own escape can
    path.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")


def write_table(path: Path, table: Mapping[str, np.ndarray]) -> None:
    """Write columns as a CSV file; a number that is not finite becomes an empty cell.

    Text that a spreadsheet would run as a formula gets a ' before it.
    """
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(table)
        for row in zip(*table.values(), strict=True):
            writer.writerow([_csv_value(value) for value in row])


def _csv_value(value: Any) -> Any:
    if isinstance(value, float):  # np.float64 is one
        return f"{value:.7g}" if math.isfinite(value) else ""
    if isinstance(value, str):
        return f"'{printable(value)}" if value.startswith(_FORMULA) else printable(value)
    return value


def versions() -> dict[str, str]:
    """Versions of Python, of the platform and of the packages that results depend on."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    return found | {package: _version(package) for package in PACKAGES}


@cache
def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a checkout
        return "not installed"


def jsonable(value: Any) -> Any:
    """The same value in plain JSON types; None for numbers that are not finite."""
    if isinstance(value, dict):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def digest(*values: Any) -> str:
    """SHA-256 of numbers, strings and arrays, and of mappings and sequences of these, exactly."""
    found = hashlib.sha256()

    def add(value: Any) -> None:
        if not isinstance(value, np.ndarray) and hasattr(value, "__array__"):
            value = np.asarray(value)
        if isinstance(value, Mapping):
            for name in sorted(value, key=str):
                add((str(name), value[name]))
        elif isinstance(value, list | tuple):
            found.update(f"({len(value)}".encode())
            for each in value:
                add(each)
        elif isinstance(value, np.ndarray) and value.dtype != object:
            found.update(f"{value.dtype}{value.shape}".encode() + value.tobytes())
        elif isinstance(value, np.ndarray):
            add(value.tolist())
        else:
            found.update(f"{type(value).__name__}:{value!r}".encode())

    add(values)
    return found.hexdigest()
