"""The polarisation of the beam in CrystFEL's notation, for files that do not state it."""

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
    """Parse CrystFEL's ``--polarisation``: ``horiz``, ``vert``, ``horiz98``, ``45deg90``.

    Returns:
        The angle of the electric field, rad, clockwise from horizontal as seen along the beam, and
        the fraction of the beam polarised in its plane; 0.5 is unpolarised.

    Raises:
        InputError: the text is not of this form.
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
    """The experiments, and their document, with this polarisation instead of the stated one."""
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
