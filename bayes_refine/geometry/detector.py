"""A stack of flat panels: pixel ↔ lab ↔ q, and rigid shifts of the whole.

Pixel (0, 0) spans [0, 1) × [0, 1): its centre is (0.5, 0.5).  ``x`` runs along fast.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

FEW_PANELS, MOST_GROUPS = 16, 64  # that move each on its own; groups that may move


@dataclass(frozen=True)
class Beam:
    """The incident beam of one image.

    Attributes:
        wavelength: Å.
        s0_direction: (3,) unit vector along which the beam travels.
        polarization_normal: (3,) normal of the plane of polarisation.
        polarization_fraction: fraction of the intensity in that plane, 0..1.
        bandwidth: rms spread Δλ/λ, a fraction; 0 where it is not known.
    """

    wavelength: float
    s0_direction: np.ndarray
    polarization_normal: np.ndarray
    polarization_fraction: float = 1.0
    bandwidth: float = 0.0

    @property
    def s0(self) -> np.ndarray:
        """(3,) incident wavevector, Å⁻¹."""
        return self.s0_direction / self.wavelength


@dataclass(frozen=True)
class Detector:
    """A stack of P panels in the lab frame.

    Attributes:
        origin_mm: (P, 3) outer corner of pixel (0, 0).
        fast, slow: (P, 3) unit vectors.
        pixel_size_mm: (P, 2) along fast and slow.
        shape: (P, 2) pixels along slow and fast, the order of the image array's axes.
        trusted_range: (P, 2) counts; pixels outside are masked, both ends are trusted, as in dxtbx.
        gain: (P,) counts per photon; 1 for a counting detector.
        pedestal: (P,) counts.
        thickness_mm, mu_per_mm: (P,) sensor thickness and attenuation, 0 for no parallax.
        untrusted: for each panel, rectangles (x0, y0, x1, y1) of masked pixels.
        raw_image_offset: for each panel, (x, y) of its pixel (0, 0) in the image array where
            panels are tiles of one array; empty, or all 0, where the array has an axis of panels.
        groups: number of the group that each panel moves with; empty if each moves by itself.
    """

    origin_mm: np.ndarray
    fast: np.ndarray
    slow: np.ndarray
    pixel_size_mm: np.ndarray
    shape: np.ndarray
    trusted_range: np.ndarray
    gain: np.ndarray
    pedestal: np.ndarray
    thickness_mm: np.ndarray
    mu_per_mm: np.ndarray
    untrusted: tuple[tuple[tuple[int, int, int, int], ...], ...] = ()
    raw_image_offset: tuple[tuple[int, int], ...] = ()
    groups: tuple[int, ...] = ()

    @property
    def group(self) -> np.ndarray:
        """(P,) number of the group that each panel moves with, from 0."""
        return np.array(self.groups or range(self.n_panels))

    @classmethod
    def one_panel(
        cls,
        shape: tuple[int, int],
        pixel_size_mm: float,
        distance_mm: float,
        beam_center_px: tuple[float, float],
        trusted_range: tuple[float, float] = (-1.0, math.inf),
        gain: float = 1.0,
    ) -> Detector:
        """One photon-counting panel normal to a beam along +z, fast along x, slow along y.

        The sensor is taken as thin (no parallax).

            detector = br.Detector.one_panel((1062, 1028), 0.075, 110.0, (514.2, 530.8))

        Args:
            shape: pixels along slow and fast. beam_center_px: along fast and slow, from the corner.
        """
        x, y = (-pixel_size_mm * center for center in beam_center_px)
        return cls(
            origin_mm=np.array([[x, y, distance_mm]]),
            fast=np.array([[1.0, 0.0, 0.0]]),
            slow=np.array([[0.0, 1.0, 0.0]]),
            pixel_size_mm=np.full((1, 2), pixel_size_mm),
            shape=np.array([shape]),
            trusted_range=np.array([trusted_range], float),
            gain=np.array([gain]),
            pedestal=np.zeros(1),
            thickness_mm=np.zeros(1),
            mu_per_mm=np.zeros(1),
            untrusted=((),),
        )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(P, ny, nx) of an image on the panels; if sizes differ, ny and nx are the largest."""
        ny, nx = (int(n) for n in self.shape.max(axis=0))
        return self.n_panels, ny, nx

    @property
    def n_panels(self) -> int:
        """Number of panels."""
        return len(self.origin_mm)

    @cached_property
    def normal(self) -> np.ndarray:
        """(P, 3) unit normals fast × slow."""
        return np.cross(self.fast, self.slow)

    @cached_property
    def has_parallax(self) -> bool:
        """Whether any panel has a sensor of known thickness."""
        return bool(np.any((self.mu_per_mm > 0) & (self.thickness_mm > 0)))

    def shifted(self, shift_mm: np.ndarray) -> Detector:
        """The whole detector translated by ``shift_mm`` (3,), lab frame."""
        return replace(self, origin_mm=self.origin_mm + np.asarray(shift_mm, float))


def lies_ahead(detector: Detector, beam: Beam) -> bool:
    """Whether any corner of a panel is downstream of the sample, at 2θ < 90°."""
    size = (detector.shape[:, ::-1] * detector.pixel_size_mm)[:, :, None]
    edges = np.stack([detector.fast, detector.slow], axis=1) * size  # (P, 2, 3), mm
    corners = np.array([[0, 0], [0, 1], [1, 0], [1, 1]]) @ edges + detector.origin_mm[:, None]
    return bool(np.max(corners @ beam.s0_direction) > 0)


def beam_frame(beam: Beam, detector: Detector) -> np.ndarray:
    """Axes of a rigid shift of the detector, rows of (3, 3): beam centre x and y, distance.

    Rows 0 and 1 are the first panel's fast and slow made normal to the beam; row 2 is along
    the beam.  To move the beam centre by +1 mm along fast is to move the detector by −1 mm.
    """
    along = beam.s0_direction
    x = _across([detector.fast[0], detector.normal[0]], [along])
    y = _across([detector.slow[0], detector.normal[0]], [along, x])
    return np.stack([x, y, along])


def _across(axes: list[np.ndarray], others: list[np.ndarray]) -> np.ndarray:
    """Unit vector of the first of ``axes`` with a part normal to the orthonormal ``others``.

    A panel seen edge-on has an axis along the beam; the panel's normal then takes its place.
    """
    for axis in axes:
        part = axis - sum((axis @ other) * other for other in others)
        if (length := np.linalg.norm(part)) > 1e-3:
            return part / length
    raise AssertionError("two of three orthogonal axes have a part across the beam")


def parallax_mm(detector: Detector, panel: np.ndarray, s_hat: np.ndarray) -> np.ndarray:
    """Mean path of absorbed photons inside the sensor along ``s_hat``, (n,) mm.

    o = 1/μ − (t + 1/μ)·exp(−μt), t = thickness/cos(incidence).  dxtbx's
    ParallaxCorrectedPxMmStrategy has the same formula, so that refined geometries agree.
    """
    if not detector.has_parallax:
        return np.zeros(len(panel))
    mu, thickness = detector.mu_per_mm[panel], detector.thickness_mm[panel]
    cosine = np.abs(np.einsum("ni,ni->n", s_hat, detector.normal[panel]))
    with np.errstate(divide="ignore", invalid="ignore"):
        t = thickness / np.maximum(cosine, 1e-3)
        o = 1 / mu - (t + 1 / mu) * np.exp(-mu * t)
    return np.where((mu > 0) & (thickness > 0), o, 0.0)


def ray_to_pixel(detector: Detector, s_hat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where rays from the sample along ``s_hat`` (n, 3) meet the detector.

    Returns:
        panel: (n,) index of the panel, −1 where the ray meets none.
        xy_px: (n, 2) pixel coordinates along fast and slow, NaN where the ray meets no panel.
    """
    n = len(s_hat)
    panel = np.full(n, -1)
    xy = np.full((n, 2), np.nan)
    for p in range(detector.n_panels):  # a loop over panels is short: tens at most
        candidate = _ray_on_panel(detector, p, s_hat)
        height, width = detector.shape[p]
        with np.errstate(invalid="ignore"):
            inside = (
                (candidate[:, 0] >= 0)
                & (candidate[:, 0] < width)
                & (candidate[:, 1] >= 0)
                & (candidate[:, 1] < height)
                & (panel < 0)
            )
        panel[inside], xy[inside] = p, candidate[inside]
    return panel, xy


def _ray_on_panel(detector: Detector, p: int, s_hat: np.ndarray) -> np.ndarray:
    d = np.stack([detector.fast[p], detector.slow[p], detector.origin_mm[p]], axis=1)
    v = s_hat @ np.linalg.inv(d).T
    with np.errstate(divide="ignore", invalid="ignore"):
        mm = np.where(v[:, 2:] > 0, v[:, :2] / v[:, 2:], np.nan)
    path = parallax_mm(detector, np.full(len(s_hat), p), s_hat)
    mm = mm + path[:, None] * np.stack([s_hat @ detector.fast[p], s_hat @ detector.slow[p]], 1)
    return mm / detector.pixel_size_mm[p]


def pixel_to_lab(detector: Detector, panel: np.ndarray, xy_px: np.ndarray) -> np.ndarray:
    """Lab position (n, 3), mm, of pixel coordinates ``xy_px`` (n, 2) on ``panel`` (n,).

    It is the inverse of :func:`ray_to_pixel` along the ray.  Parallax is removed by one fixed-point
    step from the uncorrected direction, exact to 1e-3 of the correction.
    """
    origin, fast, slow = detector.origin_mm[panel], detector.fast[panel], detector.slow[panel]
    uncorrected = xy_px * detector.pixel_size_mm[panel]
    lab = origin + uncorrected[:, :1] * fast + uncorrected[:, 1:] * slow
    if not detector.has_parallax:
        return lab
    for _ in range(2):
        s_hat = lab / np.linalg.norm(lab, axis=1, keepdims=True)
        along = np.stack([np.einsum("ni,ni->n", s_hat, axis) for axis in (fast, slow)], axis=1)
        mm = uncorrected - parallax_mm(detector, panel, s_hat)[:, None] * along
        lab = origin + mm[:, :1] * fast + mm[:, 1:] * slow
    return lab


def pixel_to_q(detector: Detector, beam: Beam, panel: np.ndarray, xy_px: np.ndarray) -> np.ndarray:
    """q_p = x̂/λ − s0, (n, 3) in Å⁻¹, of pixel coordinates (docs/theory.md, Geometry)."""
    lab = pixel_to_lab(detector, panel, xy_px)
    return lab / np.linalg.norm(lab, axis=1, keepdims=True) / beam.wavelength - beam.s0
