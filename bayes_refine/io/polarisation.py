"""The polarisation of the beam in CrystFEL's words, for files that say nothing of it."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np

from ..geometry.detector import Beam
from ..geometry.experiments import Experiments
from ..util.errors import InputError
from .crystfel_write import crystfel_frame

_ANGLES = {"horiz": 0.0, "vert": 90.0}
_FORM = re.compile(r"(?:(horiz|vert)|(\d{1,3})deg)(\d{1,3})?")


def parse_polarisation(text: str) -> tuple[float, float]:
    """(angle of the electric field, rad; fraction of the intensity in its plane) of CrystFEL's
    ``--polarisation``: ``horiz``, ``vert``, ``horiz98``, ``45deg90``; 50 % is unpolarised.

    The angle is clockwise from horizontal, seen along the beam.

    Raises:
        InputError: not of this form.
    """
    found = _FORM.fullmatch(text.strip())
    percent = int(found[3] or 100) if found else 101
    if found is None or percent > 100:
        raise InputError(
            f"--polarisation {text}: give horiz, vert or an angle such as 45deg, and a percentage "
            "after it where the beam is not fully polarised: horiz98"
        )
    degrees = _ANGLES[found[1]] if found[1] else float(found[2])
    return float(np.deg2rad(degrees)), percent / 100


def with_polarisation(experiments: Experiments, text: str) -> Experiments:
    """The experiments with this polarisation in place of their own, in the document too."""
    angle, fraction = parse_polarisation(text)

    def polarised(beam: Beam) -> Beam:
        # CrystFEL: z along the beam, y up, so that x is to the left seen along the beam
        normal = np.array([-np.sin(angle), np.cos(angle), 0.0]) @ crystfel_frame(beam)
        return replace(beam, polarization_normal=normal, polarization_fraction=fraction)

    stills = tuple(replace(still, beam=polarised(still.beam)) for still in experiments.stills)
    normal = stills[0].beam.polarization_normal.tolist() if stills else [0.0, 1.0, 0.0]
    said = {"polarization_normal": normal, "polarization_fraction": fraction}
    beams = [{**beam, **said} for beam in experiments.document.get("beam", [])]
    return replace(experiments, stills=stills, document={**experiments.document, "beam": beams})
