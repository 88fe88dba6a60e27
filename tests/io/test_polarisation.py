"""CrystFEL's words for a polarisation, against its own correction (``libcrystfel/geometry.c``)."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from bayes_refine.geometry.detector import Beam
from bayes_refine.geometry.experiments import Experiments, Still
from bayes_refine.io.polarisation import parse_polarisation, with_polarisation
from bayes_refine.util.errors import InputError


@pytest.mark.parametrize(
    ("text", "degrees", "fraction"),
    [
        ("horiz", 0, 1),
        ("vert", 90, 1),
        ("horiz98", 0, 0.98),
        ("45deg90", 45, 0.9),
        ("10deg", 10, 1),
    ],
)
def test_words(text, degrees, fraction):
    angle, found = parse_polarisation(text)
    assert (np.rad2deg(angle), found) == pytest.approx((degrees, fraction))


@pytest.mark.parametrize("text", ["none", "horizontal", "45", "45deg101", "", "-10deg"])
def test_what_is_none(text):
    with pytest.raises(InputError, match="--polarisation"):
        parse_polarisation(text)


@pytest.mark.parametrize("text", ["horiz", "vert90", "30deg80"])
@pytest.mark.parametrize("turn", [np.eye(3), np.diag([-1.0, 1.0, -1.0])])
def test_the_correction_is_that_of_crystfel(text, turn):
    """pol = P(1 − cos²(φ − angle)·sin²2θ) + (1 − P)(1 − sin²(φ − angle)·sin²2θ), φ in CrystFEL's
    frame; ``turn`` takes that frame to the experiment's.
    """
    before = Beam(1.0, turn @ np.array([0.0, 0, 1]), np.array([0.0, 1, 0]))
    still = Still("a", Path("a.h5"), 0, before, SimpleNamespace(), SimpleNamespace())
    document = {"beam": [{"wavelength": 1.0, "polarization_fraction": 0.5}]}
    found = with_polarisation(Experiments((still,), Path("a.expt"), document), text)
    beam = found.stills[0].beam
    assert found.document["beam"][0]["polarization_fraction"] == beam.polarization_fraction
    assert document["beam"][0]["polarization_fraction"] == 0.5
    s = np.random.default_rng(0).normal([0, 0, 1.5], 0.5, (50, 3))
    s /= np.linalg.norm(s, axis=1)[:, None]
    angle, P = parse_polarisation(text)
    phi, sine2 = np.arctan2(s[:, 1], s[:, 0]) - angle, 1 - s[:, 2] ** 2
    expected = P * (1 - np.cos(phi) ** 2 * sine2) + (1 - P) * (1 - np.sin(phi) ** 2 * sine2)
    f, n = beam.polarization_fraction, beam.polarization_normal
    ours = (1 - 2 * f) * (1 - (s @ turn.T @ n) ** 2) + f * (1 + s[:, 2] ** 2)
    np.testing.assert_allclose(ours, expected, atol=1e-12)
