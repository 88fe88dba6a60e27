"""``fit --resume`` and ``--add``: find the first command, and check that it still holds."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..fitting.checkpoint import STATE, read_record
from ..geometry.experiments import Still
from ..util.errors import InputError
from ..util.folder import CHECKPOINT, KEPT, WORK
from ..util.output import versions
from . import place

RESUME, ADD, COMMAND, FOLDER = "--resume", "--add", "the command", "the working folder"
TALK = ("--quiet", "-q", "--verbose", "-v")  # no result depends on what is shown


def expanded(command: Sequence[str]) -> tuple[list[str], list[str]]:
    """The command as it was first given, and the arguments to run now.

    ``fit --resume --out DIR`` stands for the command that was stopped in DIR, and is run in the
    folder where that command was given, since its paths may be relative to this folder.  Options
    that say which processes work and what is printed may be given anew.

    Raises:
        InputError: DIR has no stopped fit.
    """
    if command[1:2] == ["fit"] and ADD in command:
        return _added(command)
    first = [word for word in command if word != RESUME]
    if len(first) == len(command) or first[1:2] != ["fit"]:
        return list(command), list(command[1:])
    out, shown = folder_of(first), [word for word in first if word in TALK]
    bare = place.without([word for word in first if word not in TALK])
    if out is not None and len(bare) <= 4:
        record = read_record(out / WORK / CHECKPOINT)
        if record is None:
            raise InputError(f"{out}: no stopped fit to continue; give the whole command")
        more = place.chosen(first)
        with suppress(OSError):  # the folder may be gone, and all paths absolute
            os.chdir(record["made_of"][FOLDER])
        first = [*map(str, record["made_of"][COMMAND]), *more, *shown]
    return first, [*first[1:], RESUME]


def _added(command: Sequence[str]) -> tuple[list[str], list[str]]:
    """The command of the kept fit with more files, and the arguments to run now.

    Raises:
        InputError: ``--out`` has no kept fit, or one of a range of images, or the command has
            options of a fit.
    """
    out, shown = folder_of(command), [word for word in command if word in TALK]
    record = None if out is None else read_record(out / WORK / KEPT)
    if record is None:
        where = "--add: give --out" if out is None else f"{out}: no fit was kept there"
        raise InputError(f"{where}; images can be added to a fit that had --keep")
    files = place.without([word for word in command[2:] if word not in (*TALK, ADD)])
    at = next(k for k, word in enumerate(files) if word.split("=")[0] == "--out")
    del files[at : at + (1 if "=" in files[at] else 2)]
    if options := [word for word in files if word.startswith("-")]:
        raise InputError(
            f"{options[0]} with --add: the options are those of the fit that images are added to"
        )
    known = list(map(str, record["made_of"][COMMAND]))
    images = _value(known, "--images")
    if images is not None and not images.endswith(":"):
        raise InputError(
            f"{out}: its fit has --images {images}, which leaves out the images of any other file; "
            "images can be added to a fit of whole files"
        )
    first = [*known, *(word for word in files if word not in known)]
    return [*first, *place.chosen(command), *shown], [
        *first[1:],
        *place.chosen(command),
        *shown,
        ADD,
    ]


def folder_of(command: Sequence[str]) -> Path | None:
    """The value of ``--out``."""
    out = _value(command, "--out")
    return None if out is None else Path(out)


def _value(command: Sequence[str], option: str) -> str | None:
    for k, word in enumerate(command):
        if word == option and k + 1 < len(command):
            return command[k + 1]
        if word.startswith(f"{option}="):
            return word.removeprefix(f"{option}=")
    return None


def stopped_in(command: Sequence[str]) -> Path | None:
    """The folder of a stopped fit with a finished round, from which it can go on; else None."""
    out = folder_of(command) if command[1:2] == ["fit"] else None
    if out is None or not any((out / WORK / CHECKPOINT).glob(STATE.format("*"))):
        return None
    return out


def made_of(command: Sequence[str], stills: Iterable[Still]) -> dict[str, Any]:
    """The things that a fit depends on: command, folder, size and time of its files, versions."""
    files = {Path(word) for word in command[2:]} | {still.image_path for still in stills}
    return {
        COMMAND: place.without([word for word in command if word not in TALK]),
        FOLDER: os.getcwd(),
        "an input file": {str(p): _mark(p) for p in sorted(files) if p.is_file()},
        "a version": versions(),
    }


def same_place() -> dict[str, Any]:
    """The part of :func:`made_of` that an addition shares with the fit to which it adds."""
    return {FOLDER: os.getcwd(), "a version": versions()}


def _mark(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]
