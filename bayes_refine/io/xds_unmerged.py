"""Read integrated reflections of XDS and nXDS (``XDS_ASCII.HKL``, ``INTEGRATE.HKL``)."""

from __future__ import annotations

from pathlib import Path

import gemmi
import numpy as np

from ..util.errors import InputError
from .unmerged import Unmerged

FIRST_WORDS = (b"!FORMAT=XDS_ASCII", b"!OUTPUT_FILE=")


def is_xds(path: Path) -> bool:
    """Whether a file begins as files of XDS do."""
    try:
        with path.open("rb") as file:
            return file.read(64).startswith(FIRST_WORDS)
    except OSError:
        return False


def unmerged_of_xds(
    path: str | Path,
    space_group: gemmi.SpaceGroup | None = None,
    cell: gemmi.UnitCell | None = None,
) -> Unmerged:
    """Read the observations of an XDS file; the number of an image is the whole part of ZD.

    The file has no Ewald offset.  XDS marks misfits by a negative sigma; they are left out.

    Args:
        space_group, cell: replace those of the file.

    Raises:
        InputError: gemmi cannot read the file, it is merged, or it has no space group.
    """
    try:
        xds = gemmi.read_xds_ascii(str(path))
    except (RuntimeError, ValueError, OSError) as error:
        raise InputError(f"{path}: not a file of XDS that gemmi can read ({error})") from None
    group = space_group or gemmi.find_spacegroup_by_number(xds.spacegroup_number)
    if group is None or (xds.spacegroup_number == 0 and space_group is None):
        raise InputError(f"{path}: no space group in this file; give --space-group")
    sigma, zd = np.array(xds.sigma_array, float), np.array(xds.zd_array, float)
    positive = np.isfinite(sigma) & (sigma > 0)
    keep = positive & (np.abs(zd) < 2.0**31)  # False for NaN
    if not keep.any():
        raise InputError(f"{path}: no reflection with a positive sigma and an image")
    hkl = np.array(xds.miller_array, np.int32)[keep]
    frame = np.floor(zd[keep]).astype(int)
    if (frame == frame[0]).all() and len(np.unique(hkl, axis=0)) == len(hkl):
        raise InputError(f"{path}: merged intensities (MERGE=TRUE); give the unmerged ones")
    dataset = np.array(xds.iset_array, int)[keep]  # nXDS, XSCALE: a number each
    _, image = np.unique(np.stack([dataset, frame], 1), axis=0, return_inverse=True)
    return Unmerged.observed(
        hkl=hkl,
        J=np.array(xds.iobs_array, float)[keep],
        sigma=sigma[keep],
        batch=image.ravel() + 1,
        excitation_error=None,
        xy_px=np.stack([np.array(xds.xd_array), np.array(xds.yd_array)], 1)[keep],
        cell=cell or gemmi.UnitCell(*xds.cell_constants),
        space_group=group,
        source=str(path),
        wavelength=float(xds.wavelength),
        left_out={"without an image": n} if (n := int((positive & ~keep).sum())) else {},
    )
