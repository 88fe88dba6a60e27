"""Read integrated stills of any program, for ``merge``; the content of a file tells its format."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import gemmi
import numpy as np

from ..util.errors import InputError
from ..util.large_arrays import joined
from .boundary import refusing
from .crystfel_unmerged import unmerged_of_stream
from .dials_reflections import unmerged_of_dials
from .jungfraujoch import Names, is_jungfraujoch, unmerged_of_jungfraujoch
from .recognise import Kind, expanded, kind_of
from .reference import Given
from .unmerged import Unmerged
from .unmerged_mtz import Columns, read_unmerged
from .xds_unmerged import unmerged_of_xds

# the last two only where all files have them
COLUMNS = ("hkl", "hkl_asu", "isym", "J", "sigma", "excitation_error", "xy_px")


def open_unmerged(
    paths: Sequence[str | Path],
    space_group: gemmi.SpaceGroup | None = None,
    cell: gemmi.UnitCell | None = None,
    labels: Columns | None = None,
    names: Names | None = None,
) -> Unmerged:
    """Read the integrated stills of files, patterns or lists of files.

    The formats are MTZ, CrystFEL streams, Jungfraujoch and XDS files, and DIALS ``.expt`` with the
    ``.refl`` of the same name beside it (either may be given).  Images are numbered in the order of
    the files.

    Args:
        space_group, cell: replace those of the files; a stream does not state a space group.
        labels: of columns in an MTZ whose labels are not the usual ones.
        names: of data sets in Jungfraujoch files, ``jungfraujoch.read_names``.

    Raises:
        InputError: a file has none of these formats, or the files do not belong together.
    """
    files = list(dict.fromkeys(expanded(paths)))
    kinds = {file: kind_of(file) for file in files}
    parts = []
    if pairs := _dials_pairs(files, kinds):
        with refusing(pairs[0][1], Kind.REFLECTIONS.value):
            parts.append(unmerged_of_dials(pairs, space_group, cell))
    for file, kind in kinds.items():
        if kind not in (Kind.EXPERIMENTS, Kind.REFLECTIONS):
            with refusing(file, kind.value):
                parts.append(_open(file, kind, Given(cell, space_group), labels, names))
    return parts[0] if len(parts) == 1 else _together(parts)


def _open(
    file: Path, kind: Kind, given: Given, labels: Columns | None, names: Names | None
) -> Unmerged:
    """The observations in a file of any program but DIALS."""
    if kind is Kind.MTZ:
        return read_unmerged(file, given.space_group, given.cell, labels)
    if kind is Kind.XDS:
        return unmerged_of_xds(file, given.space_group, given.cell)
    if kind is Kind.STREAM:
        if given.space_group is None:
            raise InputError(
                f"{file}: a stream has no space group; give --space-group (a point group such as"
                " 4/mmm is enough)"
            )
        return unmerged_of_stream(file, given.space_group, given.cell)
    if kind is Kind.HDF5 and is_jungfraujoch(file, names):
        return unmerged_of_jungfraujoch(file, given.space_group, given.cell, names)
    raise InputError(
        f"{file}: {kind.value}, and no integrated stills; give an MTZ, a .stream, an XDS"
        " file, or .expt with .refl (--names says where a Jungfraujoch file has them)"
    )


def _dials_pairs(files: Sequence[Path], kinds: dict[Path, Kind]) -> list[tuple[Path, Path]]:
    """Pairs of ``.expt`` and ``.refl`` with the same name, in the given order."""
    pairs = []
    for file in files:
        if kinds[file] not in (Kind.EXPERIMENTS, Kind.REFLECTIONS):
            continue
        pair = file.with_suffix(".expt"), file.with_suffix(".refl")
        if kinds[file] is Kind.EXPERIMENTS and file.suffix != ".expt":
            pair = file, pair[1]
        elif kinds[file] is Kind.REFLECTIONS and file.suffix != ".refl":
            pair = pair[0], file
        for other in pair:
            if not other.is_file():
                raise InputError(f"{file}: needs {other.name} beside it, which does not exist")
        if pair not in pairs:
            pairs.append(pair)
    return pairs


def _together(parts: Sequence[Unmerged]) -> Unmerged:
    """Several runs as one, with their images numbered one after the other."""
    first = parts[0]
    for part in parts[1:]:
        if part.space_group.hm != first.space_group.hm:
            raise InputError(
                f"{part.source}: space group {part.space_group.hm}, but {first.source} has"
                f" {first.space_group.hm}; give --space-group or merge them apart"
            )
    counts = [int(part.image.max()) + 1 for part in parts]
    starts = np.cumsum([0, *counts[:-1]])
    there = [name for name in COLUMNS if all(getattr(part, name) is not None for part in parts)]
    rows = dict(
        zip(there, joined([getattr(p, name) for name in there] for p in parts), strict=True)
    )
    image, batch = joined(
        [part.image + int(s), part.image + int(s) + 1]
        for part, s in zip(parts, starts, strict=True)
    )
    weights = np.array(counts) / sum(counts)
    cells = np.array([p.cell.parameters for p in parts])
    left_out: Counter[str] = Counter()
    names: dict[int, str] = {}
    for part, start in zip(parts, starts, strict=True):
        left_out.update(part.left_out)
        used = np.unique(part.batch)  # images in the order of their numbers
        names |= {start + n + 1: f"{part.source} {part.name(b)}" for n, b in enumerate(used)}
    return Unmerged(
        hkl=rows["hkl"],
        hkl_asu=rows["hkl_asu"],
        isym=rows["isym"],
        J=rows["J"],
        sigma=rows["sigma"],
        batch=batch,
        image=image,
        excitation_error=rows.get("excitation_error"),
        xy_px=rows.get("xy_px"),
        cell=gemmi.UnitCell(*(weights @ cells)),
        space_group=first.space_group,
        source=f"{first.source} and {len(parts) - 1} more",
        wavelength=float(weights @ [p.wavelength for p in parts]),
        left_out=dict(left_out),
        names=names,
        unread=tuple(sentence for part in parts for sentence in part.unread),
    )
