"""Read indexed stills of any program, for ``fit``; the content of a file tells its format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import gemmi

from ..geometry.experiments import Experiments
from ..util.errors import InputError
from .boundary import refusing
from .crystfel_experiments import experiments_of_stream
from .expt import read_experiments
from .expt.foreign import as_experiments
from .jungfraujoch import Names, experiments_of_jungfraujoch, is_jungfraujoch
from .recognise import Kind, expanded, kind_of


def open_experiments(
    paths: str | Path | Sequence[str | Path],
    space_group: gemmi.SpaceGroup | None = None,
    geometry: str | Path | None = None,
    names: Names | None = None,
    growing: bool = False,
) -> Experiments:
    """Read the indexed stills of files, patterns or lists of files.

    The formats are DIALS ``.expt``, CrystFEL ``.stream`` (also ``.gz``) and Jungfraujoch
    ``_process.h5``.  Several files are one run, in the given order.

    Args:
        space_group: of streams, which do not state one; replaces that of Jungfraujoch
            files; an ``.expt`` must have the same one.
        geometry: a ``.geom`` file, which replaces the geometry in a stream.
        names: of data sets in Jungfraujoch files.
        growing: streams may still be written to; an incomplete last chunk is left out.

    Raises:
        InputError: a file has none of these formats, cannot be read, or needs one of the arguments.
    """
    listed = [paths] if isinstance(paths, str | Path) else list(paths)
    files = list(dict.fromkeys(expanded(listed)))
    kinds = [kind_of(file) for file in files]
    if geometry is not None and Kind.STREAM not in kinds:
        raise InputError(f"{geometry}: only a stream takes a geometry; {files[0]} has its own")
    read = read_experiments if len(files) == 1 else _read_again
    found = []
    for file, kind in zip(files, kinds, strict=True):
        with refusing(file, kind.value):
            found.append(
                _in_group(read(file), space_group)
                if kind is Kind.EXPERIMENTS
                else _open(file, kind, space_group, geometry, names, growing)
            )
    return found[0] if len(found) == 1 else _together(found)


def _read_again(file: Path) -> Experiments:
    """A list of experiments, which is read once by a process while it does not change: a run that
    is watched has the same files again and again.
    """
    found = file.stat()
    return _experiments(file, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=1 << 16)
def _experiments(file: Path, size: int, written: int) -> Experiments:
    return read_experiments(file)


def _open(
    file: Path,
    kind: Kind,
    space_group: gemmi.SpaceGroup | None,
    geometry: str | Path | None,
    names: Names | None,
    growing: bool,
) -> Experiments:
    if kind is Kind.STREAM:
        if space_group is None:
            raise InputError(
                f"{file}: a stream has no space group; give --space-group, such as 'P 43 21 2'"
            )
        return experiments_of_stream(file, space_group, geometry, growing)
    if kind is Kind.HDF5 and is_jungfraujoch(file, names):
        return experiments_of_jungfraujoch(file, space_group, names)
    hint = {
        Kind.HDF5: "images without orientations; index them, and give the .expt or .stream",
        Kind.REFLECTIONS: "reflections; give the .expt that belongs to it",
        Kind.MTZ: "integrated intensities without images; merge takes it",
        Kind.XDS: "integrated intensities without images; merge takes it",
        Kind.GEOMETRY: "a geometry; give the .stream, and this as --geometry",
    }.get(kind, f"{kind.value}; give a DIALS .expt, a CrystFEL .stream or a Jungfraujoch file")
    raise InputError(f"{file}: {hint}")


def _in_group(experiments: Experiments, given: gemmi.SpaceGroup | None) -> Experiments:
    """The experiments, whose own space group is the one given, if one is given."""
    for still in experiments.stills:
        own = still.crystal.space_group
        if given is not None and own.number != given.number:
            raise InputError(
                f"{experiments.path}: indexed in {own.hm}, not in {given.hm}; reindex it, or leave "
                "--space-group out"
            )
    return experiments


def _together(parts: Sequence[Experiments]) -> Experiments:
    """Several lists of experiments as one; names that occur in two files are made unique."""
    stills = []
    for part in parts:
        for still in part.stills:
            path = still.image_path
            stills.append(replace(still, image_path=path if path.is_absolute() else path.resolve()))
    left_out = tuple(sentence for part in parts for sentence in part.left_out)
    return as_experiments(stills, parts[0].path, left_out)
