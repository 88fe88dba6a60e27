"""Turn the values of options into arguments of the library."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import gemmi
import numpy as np

from ..geometry.experiments import Experiments, Still
from ..io.boundary import refusing, regular_file
from ..io.crystfel_experiments import usable_of_stream
from ..io.crystfel_stream import is_stream
from ..io.crystfel_unmerged import cell_of_header
from ..io.gemmi_files import cell_of, space_group_of
from ..io.jungfraujoch import read_names
from ..io.open_experiments import open_experiments
from ..io.pixel_maps import mask_files, read_mask, read_pixel_map
from ..io.reference import Given, read_reference
from ..physics.priors import AnyPriors, read_priors
from ..physics.reference import Reference, check_usable
from ..util.errors import InputError
from .app import err_console


def usable_experiments(
    paths: Sequence[Path],
    space_group: gemmi.SpaceGroup | None = None,
    geometry: Path | None = None,
    names: Path | None = None,
    growing: bool = False,
) -> Experiments:
    """Read the experiments of files; print how many are left out, and why the first is."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* the mask file ")  # `mask_for` reads the mask
        table = None if names is None else read_names(names)
        experiments = open_experiments(paths, space_group, geometry, table, growing)
    path = experiments.path
    if (n := len(experiments.left_out)) > 0:
        which = "one experiment is" if n == 1 else f"{n} experiments are"
        first = experiments.left_out[0].removeprefix(f"{path}, ")
        err_console.print(
            f"{path}: {which} left out of {n + len(experiments)}; the first, {first}",
            markup=False,
            soft_wrap=True,
        )
    return experiments


def mask_for(
    experiments: Experiments, given: Path | None, geometry: Path | None = None
) -> np.ndarray | None:
    """Usable pixels (P, ny, nx) from ``--mask``, or from the one mask that the ``.expt`` names.

    Of a stream, the masks and bad regions of the geometry count too.
    """
    found = _given_mask(experiments, given)
    if not is_stream(experiments.path):
        return found
    own = usable_of_stream(experiments, geometry)
    return own if found is None else found if own is None else found & own


def _given_mask(experiments: Experiments, given: Path | None) -> np.ndarray | None:
    files = [given] if given is not None else mask_files(experiments)
    if len(files) > 1:
        raise InputError(
            f"{experiments.path} names {len(files)} mask files; join them to one and give --mask"
        )
    return read_mask(files[0], experiments.stills[0].detector) if files else None


def maps_for(
    stills: Sequence[Still], gain: Path | None, pedestal: Path | None
) -> dict[str, np.ndarray | None]:
    """``--gain-map`` and ``--pedestal-map`` as arguments of the image reader."""
    detector = stills[0].detector
    return {
        "gain_map": None if gain is None else read_pixel_map(gain, detector, positive=True),
        "pedestal_map": None if pedestal is None else read_pixel_map(pedestal, detector),
    }


def in_order(experiments: Experiments) -> Experiments:
    """Sort the stills by image file and frame, and several on one image by identifier.

    A fit then does not depend on the order of the experiment list.
    """

    def key(still: Still) -> tuple:
        parts = re.split(r"(\d+)", str(still.image_path))
        name = [(int(part), part) if k % 2 else (0, part) for k, part in enumerate(parts)]
        return name, still.frame, still.identifier

    return replace(experiments, stills=tuple(sorted(experiments.stills, key=key)))


def some_images(experiments: Experiments, chosen: str | None) -> Experiments:
    """The experiments in a range ``a:b``; all of them without a range."""
    n = len(experiments)
    if chosen is None:
        return experiments
    try:
        start, stop = (int(part) if part.strip() else None for part in chosen.split(":"))
    except ValueError:
        raise InputError(f"--images {chosen}: give a range a:b, such as 0:12") from None
    stills = experiments.stills[start:stop]
    if not stills:
        raise InputError(
            f"--images {chosen}: no such images; {experiments.path} has {n}, 0 to {n - 1}"
        )
    return replace(experiments, stills=stills)


def priors_from(path: Path | None, defaults: AnyPriors) -> AnyPriors:
    """The priors in a TOML file, or the defaults without a file."""
    return defaults if path is None else read_priors(path, defaults)


def resolution_limit(
    d_min: float | None, reference: Reference | None, stills: Sequence[Still]
) -> float:
    """Resolution limit, Å: ``d_min``, else that of the reference, at least half a wavelength.

    Raises:
        InputError: there is neither ``d_min`` nor a reference, or no reflection has such a d.
    """
    if reference is None and d_min is None:
        raise InputError("without --reference, give the resolution limit --d-min, in Å")
    least = min(still.beam.wavelength for still in stills) / 2
    if d_min is None:
        assert reference is not None
        return max(float(reference.d.min()), least)
    if d_min < least:
        raise InputError(
            f"--d-min {d_min:g}: no reflection has d below half the wavelength, {least:.3f} Å"
        )
    reciprocal = stills[0].crystal.cell.reciprocal()
    if d_min > 1 / min(reciprocal.a, reciprocal.b, reciprocal.c):
        raise InputError(f"--d-min {d_min:g}: no reflection of this cell has so large a d")
    return d_min


def given_from(space_group: str | None, cell: str | None) -> Given:
    """The values of ``--space-group`` and ``--cell``."""
    return Given(
        None if cell is None else _cell(cell),
        None if space_group is None else space_group_of(space_group),
    )


def _cell(text: str) -> gemmi.UnitCell:
    """The cell of six numbers, or in a CrystFEL unit-cell file."""
    file = Path(text)
    if not regular_file(file):
        return cell_of(text)
    with refusing(file, "a CrystFEL unit cell file"):
        found = cell_of_header(file.read_text(encoding="utf-8", errors="replace"))
    if found is None:
        raise InputError(f"--cell {text}: no CrystFEL unit cell file; write six numbers")
    return found


def reference_from(
    path: Path, column: str | None, d_min: float | None, given: Given | None = None
) -> Reference:
    """Read reference intensities, to 3 % beyond ``d_min`` since the cells of stills differ.

    One line is printed that says which reference was read; a file that cannot be a reference raises
    an InputError.
    """
    found = read_reference(path, column, 0.97 * d_min if d_min else None, given)
    check_usable(found)
    err_console.print(f"reference {found.describe()}", markup=False, soft_wrap=True)
    return found
