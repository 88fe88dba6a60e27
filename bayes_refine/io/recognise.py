"""Find the kind of a file from its content, never from its name."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Iterator
from enum import StrEnum
from pathlib import Path

from ..util.errors import InputError
from .boundary import refusing, regular_file
from .crystfel_stream import FIRST_LINE, is_stream
from .dials_reflections import is_refl
from .xds_unmerged import is_xds

HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
WILDCARDS = set("*?[")


class Kind(StrEnum):
    """Kinds of files; the value is what a message calls the kind."""

    EXPERIMENTS = "a DIALS experiment list"
    REFLECTIONS = "a DIALS reflection table"
    STREAM = "a CrystFEL stream"
    GEOMETRY = "a CrystFEL geometry file"
    MTZ = "an MTZ file"
    XDS = "integrated intensities of XDS"
    HDF5 = "an HDF5 file"
    CIF = "a CIF file"
    PDB = "a PDB file"
    LIST = "a list of files"
    UNKNOWN = "a file of no kind that this program knows"


def kind_of(path: str | Path) -> Kind:
    """The kind of a file.

    Raises:
        InputError: there is no such file, or it cannot be read.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise InputError(
                f"{path}: a folder; give a file in it, or a pattern such as '{path}/*'"
            )
        with path.open("rb") as file:
            start = file.read(4096)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        why = getattr(error, "strerror", None) or error
        raise InputError(f"{str(path)!r}: cannot be read ({why})") from None
    if start.startswith(HDF5_SIGNATURE):
        return Kind.HDF5
    if start.startswith(b"MTZ "):
        return Kind.MTZ
    if is_refl(path):
        return Kind.REFLECTIONS
    if is_xds(path):
        return Kind.XDS
    if start.startswith(FIRST_LINE.encode()) or is_stream(path):
        return Kind.STREAM
    return _kind_of_text(start.decode("utf-8", errors="replace"), path)


def _kind_of_text(text: str, path: Path) -> Kind:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if text.lstrip().startswith("{"):
        return Kind.EXPERIMENTS
    if any(line.startswith("data_") for line in lines[:200]):
        return Kind.CIF
    if any(line.startswith(("CRYST1", "ATOM  ", "HETATM", "HEADER")) for line in lines[:200]):
        return Kind.PDB
    code = [line.split(";")[0].strip() for line in lines]
    code = [line for line in code if line]
    names = [line.split("=")[0] for line in code if "=" in line]
    if len(names) > 0.9 * len(code) and any("/" in name for name in names):  # panel/key = value
        return Kind.GEOMETRY
    if code and "\0" not in text and regular_file(_listed(code[0], path)):
        return Kind.LIST
    return Kind.UNKNOWN


def _listed(line: str, path: Path) -> Path:
    """The first file that a line of a list names, relative to the folder of the list."""
    return path.parent / line.split()[0]


def _of_list(path: Path) -> Iterator[Path]:
    """The files that a list names.

    Raises:
        InputError: the list is no text, or a file does not exist.
    """
    with refusing(path, Kind.LIST.value):
        words = path.read_text(encoding="utf-8").split()
    for word in words:
        if not regular_file(path.parent / word):
            raise InputError(f"{path}: lists {word[:200]!r}, which does not exist")
        yield path.parent / word


def expanded(paths: Iterable[str | Path]) -> Iterator[Path]:
    """All files that ``paths`` stand for: patterns with ``*`` and lists of files are expanded.

    Raises:
        InputError: no file matches a pattern, or a listed file does not exist.
    """
    for path in paths:
        text = str(path)
        if WILDCARDS & set(text) and not regular_file(Path(text)):
            found = sorted(glob.glob(text))
            if not found:
                raise InputError(f"{text}: no file matches this pattern")
            yield from expanded(found)
        elif kind_of(text) is Kind.LIST:
            yield from _of_list(Path(text))
        else:
            yield Path(text)
