"""What a run is made of: stills, each an image with its beam, detector and crystal."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .crystal import Crystal
from .detector import Beam, Detector


@dataclass(frozen=True)
class InSweep:
    """The place of a frame among those of one turning crystal, a sweep; S sweeps are in the run.

    Attributes:
        member: (S,) 1 for the frame's sweep, else 0; all are 0 of a frame that is in none.
        smooth: (r,) weights of r numbers in a quantity that varies smoothly along each sweep: its
            value at the first knot, and its changes from knot to knot.
        starts: (r,) 1 for values at a first knot, 0 for changes.
        turned: (3, 3) rotation of the crystal since the first frame of the sweep.
    """

    member: np.ndarray
    smooth: np.ndarray
    starts: np.ndarray
    turned: np.ndarray


@dataclass(frozen=True)
class Still:
    """One crystal on one image.

    Attributes:
        identifier: name of the experiment, unique in a run.
        image_path: the file that holds the image.
        frame: index of the image within that file, from 0.
        beam, detector, crystal: geometry as indexed; of a turning crystal in mid-exposure.
        turn_mrad: (3,) rotation of the crystal during the exposure, lab axes; None for a still.
        stated_wavelength: Å, wavelength in the file if the fit refines it for each shot; else None.
        log_pulse_energy: ln of the shot's energy over the run's median; NaN where unknown.
        order: place in the run, from 0 to 1; NaN where nothing depends on it.
        dataset: path of the images in an HDF5 file; "" where the file itself says.
        sweep: place among frames of one turning crystal; None where no image has one.
    """

    identifier: str
    image_path: Path
    frame: int
    beam: Beam
    detector: Detector
    crystal: Crystal
    turn_mrad: np.ndarray | None = None
    stated_wavelength: float | None = None
    log_pulse_energy: float = math.nan
    order: float = math.nan
    dataset: str = ""
    sweep: InSweep | None = None


@dataclass(frozen=True)
class Experiments:
    """The stills of one ``.expt`` file.

    Attributes:
        stills: in the file's order.
        path: the file that was read.
        document: the parsed JSON, kept so that writing the experiments back loses nothing.
        left_out: for each experiment without a usable still, a sentence that says why.
    """

    stills: tuple[Still, ...]
    path: Path
    document: dict[str, Any] = field(repr=False)
    left_out: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.stills)
