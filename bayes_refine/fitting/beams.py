"""The wavelength of each shot, from image files where an experiment list has one for all."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..geometry.experiments import Still
from ..io.hdf5_beam import FileBeam
from ..io.images import read_beams
from ..util.errors import InputError

_ALIKE = 0.05  # largest relative difference between wavelengths of file and list that is believed


def beams_of(stills: Sequence[Still]) -> list[FileBeam]:
    """The beam of each still as its image file states it; empty if the file cannot be read."""

    # of an image that cannot be read its own status will say so
    found = read_beams(stills)
    return [FileBeam() if isinstance(beam, InputError) else beam for beam in found]


def with_own_wavelengths(stills: Sequence[Still], said: Sequence[FileBeam]) -> list[Still]:
    """The stills, each with the wavelength of its shot in its image file.

    A still changes only if the experiment list has one wavelength for all images of the file, and
    the wavelengths in the file are within 5 % of it.  The crystal is scaled with the wavelength,
    A' = A·λ/λ', so that every spot stays where indexing found it.  The cell changes, since indexing
    with one wavelength had stretched it.
    """
    by_file: dict[Path, list[int]] = defaultdict(list)
    for k, still in enumerate(stills):
        by_file[still.image_path].append(k)
    out = list(stills)
    for rows in by_file.values():
        own = [said[k].wavelength for k in rows]
        given = stills[rows[0]].beam.wavelength
        if None in own or any(stills[k].beam.wavelength != given for k in rows):
            continue
        ratio = np.array(own, float) / given
        if np.max(np.abs(ratio - 1)) > _ALIKE:
            continue
        for k, factor in zip(rows, ratio, strict=True):
            out[k] = rescaled(stills[k], float(factor))
    return out


def rescaled(still: Still, factor: float) -> Still:
    """A still with ``factor`` times the wavelength, and every spot at its old place."""
    beam = replace(still.beam, wavelength=still.beam.wavelength * factor)
    crystal = replace(still.crystal, A=still.crystal.A / factor)
    return replace(still, beam=beam, crystal=crystal)


def of_one_cell(stills: Sequence[Still]) -> tuple[Still, ...]:
    """The stills with cells of one volume, the median, and every spot at its old place.

    Indexing with one wavelength puts the jitter of the shots' wavelengths into their cells; here it
    goes back into the wavelengths.  ``Still.stated_wavelength`` keeps those of the files.
    """
    size = np.array([still.crystal.cell.volume for still in stills]) ** (1 / 3)
    factor = np.median(size) / size

    def one(still: Still, f: float) -> Still:
        return replace(rescaled(still, float(f)), stated_wavelength=still.beam.wavelength)

    return tuple(map(one, stills, factor))
