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
class Still:
    """One crystal on one image.

    Attributes:
        identifier: name of the experiment, unique in a run.
        image_path: the file that holds the image.
        frame: index of the image within that file, from 0.
        beam, detector, crystal: geometry as indexed, of a turning crystal in the middle of the
            exposure.
        turn_mrad: (3,) rotation of the crystal during the exposure, lab axes; None of a still.
        stated_wavelength: Å, that of the beam before it became an unknown of the shot; else None.
        log_pulse_energy: ln of the shot's energy over the run's median; NaN where unknown.
        order: place in the run, from 0 to 1; NaN where nothing depends on it.
        dataset: where an HDF5 file has the images, "" where the file itself says.
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


@dataclass(frozen=True)
class Experiments:
    """The stills of one ``.expt`` file.

    Attributes:
        stills: in the file's order.
        path: where they were read from.
        document: the parsed JSON, kept so that what is written back loses nothing.
        left_out: a sentence for each experiment of the file that has no still.
    """

    stills: tuple[Still, ...]
    path: Path
    document: dict[str, Any] = field(repr=False)
    left_out: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.stills)
