"""Which reflections lie near the Ewald sphere, how far from it, and where they hit the detector."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import gemmi
import numpy as np

from ..util.errors import InputError
from .detector import Beam, pixel_to_lab, ray_to_pixel
from .experiments import Still

MAX_CANDIDATES = 2e7  # indices to try on each image; they take a second and a gigabyte

_MOST_IN_BOX = 2e8  # indices in the box from which the candidates are chosen


@dataclass(frozen=True)
class Predictions:
    """Predicted reflections, flat over images (n in all); docs/theory.md, Geometry.

    Attributes:
        image: (n,) index of the still in the run.
        hkl: (n, 3) indices as indexed, not reduced.
        q: (n, 3) reciprocal-lattice point, lab frame, Å⁻¹.
        excitation_error: (n,) ε_r = |s0 + q| − 1/λ, Å⁻¹.
        s_hat, e1, e2: (n, 3) unit vectors: diffracted ray; normal to it, e1 in the plane of s0
            and ŝ towards larger 2θ, e2 = ŝ × e1.
        sin_theta, cos_theta: (n,) of the Bragg angle.
        polarisation: (n,) polarisation factor.
        panel: (n,) index of the panel; xy_px: (n, 2) predicted centre on it.
        frame: (n, 2, 2) d(ε_1, ε_2)/d(x, y), Å⁻¹ per pixel, at the predicted centre.
        inv_range: (n,) 1/(λ|x|), Å⁻¹ per mm: how a detector shift moves ε_t.
    """

    image: np.ndarray
    hkl: np.ndarray
    q: np.ndarray
    excitation_error: np.ndarray
    s_hat: np.ndarray
    e1: np.ndarray
    e2: np.ndarray
    sin_theta: np.ndarray
    cos_theta: np.ndarray
    polarisation: np.ndarray
    panel: np.ndarray
    xy_px: np.ndarray
    frame: np.ndarray
    inv_range: np.ndarray

    def __len__(self) -> int:
        return len(self.image)

    @property
    def d(self) -> np.ndarray:
        """(n,) Bragg spacing, Å."""
        return 1 / np.linalg.norm(self.q, axis=1)

    def select(self, keep: np.ndarray) -> Predictions:
        """The reflections of a boolean mask or an index array."""
        return Predictions(*(getattr(self, f.name)[keep] for f in fields(self)))


def concatenate(parts: list[Predictions]) -> Predictions:
    """One flat set from several, in order."""
    return Predictions(
        *(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Predictions))
    )


def candidate_indices(cell: gemmi.UnitCell, space_group: gemmi.SpaceGroup, d_min: float):
    """All hkl with d ≥ 0.97·d_min that the lattice centring allows, shape (n, 3) int32.

    The 3 % beyond d_min lets one list serve all crystals of a run; :func:`predict` applies
    the limit with each crystal's own cell.

    Raises:
        InputError: there are more than 2·10⁷.
    """
    limit = 0.97 * d_min
    expected = 4 / 3 * np.pi * cell.volume / max(limit, 1e-6) ** 3
    top = [int(axis / max(limit, 1e-6)) for axis in (cell.a, cell.b, cell.c)]
    box = math.prod(2 * n + 1 for n in top)  # of an oblique cell it holds far more than the sphere
    if not (expected < MAX_CANDIDATES and box < _MOST_IN_BOX):
        raise InputError(
            f"d_min {d_min:g} Å: {expected:.1e} reflections of a cell of {cell.volume:.3g} Å³ are "
            "more than memory holds: give a larger --d-min"
        )
    k, l = np.meshgrid(*(np.arange(-n, n + 1, dtype=np.int32) for n in top[1:]), indexing="ij")  # noqa: E741
    parts = []
    for h in range(-top[0], top[0] + 1):  # plane by plane: a box holds twice as many as a sphere
        plane = np.stack([np.full(k.size, h, np.int32), k.ravel(), l.ravel()], axis=1)
        plane = plane[np.any(plane != 0, axis=1)]
        parts.append(plane[cell.calculate_d_array(plane) >= limit])
    hkl = np.concatenate(parts)
    centring = gemmi.GroupOps([gemmi.Op()])
    centring.cen_ops = space_group.operations().cen_ops
    return hkl[~np.asarray(centring.systematic_absences(hkl), bool)]


def near_sphere(
    still: Still, hkl: np.ndarray, d_min: float, excitation_max, d_max: float = 60.0
) -> np.ndarray:
    """Those of ``hkl`` (m, 3) that have d_min ≤ d ≤ d_max and come near the sphere.

    Near is |ε_r| < ``excitation_max``, a function of d in Å⁻¹, at some time of the exposure.
    """
    q = still.crystal.A @ np.ascontiguousarray(hkl.T, float)  # (3, m): three times as fast
    norm_q = np.sqrt(q[0] ** 2 + q[1] ** 2 + q[2] ** 2)
    x, y, z = still.beam.s0[:, None] + q
    nearest = np.abs(np.sqrt(x**2 + y**2 + z**2) - 1 / still.beam.wavelength)
    if still.turn_mrad is not None:
        nearest -= swept(still, q.T)
    with np.errstate(divide="ignore"):  # d of (0, 0, 0)
        near = nearest < excitation_max(1 / norm_q)
    return hkl[near & (norm_q <= 1 / d_min) & (norm_q >= 1 / d_max)]


def half_turn(still: Still, q: np.ndarray) -> np.ndarray:
    """(n, 3) path of reciprocal-lattice points ``q`` (n, 3) in half of the exposure, ½Δφ m×q, Å⁻¹.

    The axis m is in the lab frame; the path of a still is zero.
    """
    turn = np.zeros(3) if still.turn_mrad is None else still.turn_mrad
    return np.cross(5e-4 * turn, q)


def swept(still: Still, q: np.ndarray) -> np.ndarray:
    """(n,) half of the change of ε_r of points ``q`` (n, 3) during the exposure, Å⁻¹."""
    s = still.beam.s0 + q
    return np.abs(np.sum(s * half_turn(still, q), axis=1)) / np.linalg.norm(s, axis=1)


def predict(
    still: Still, hkl: np.ndarray, d_min: float, excitation_max, image: int = 0, d_max: float = 60.0
) -> Predictions:
    """Predict the reflections of one still that lie near the Ewald sphere and hit the detector.

    The predicted centre is where the ray along ŝ = (s0 + q)/|s0 + q| meets a panel.

    Args:
        hkl: (m, 3) candidates, :func:`candidate_indices`.
        d_min, d_max: resolution limits, Å.
        excitation_max: function of d (Å) that returns the limit on |ε_r|, Å⁻¹.
        image: value of ``Predictions.image``.
    """
    beam = still.beam
    hkl = near_sphere(still, hkl, d_min, excitation_max, d_max)
    q = hkl @ still.crystal.A.T
    s = beam.s0 + q
    length = np.linalg.norm(s, axis=1)
    s_hat, excitation = s / length[:, None], length - 1 / beam.wavelength
    panel, xy = ray_to_pixel(still.detector, s_hat)
    hit = panel >= 0
    hkl, q, s_hat, excitation = hkl[hit], q[hit], s_hat[hit], excitation[hit]
    panel, xy = panel[hit], xy[hit]

    e1 = -(beam.s0_direction - (s_hat @ beam.s0_direction)[:, None] * s_hat)
    sin_2theta = np.linalg.norm(e1, axis=1)
    e1 /= np.maximum(sin_2theta, 1e-12)[:, None]
    e2 = np.cross(s_hat, e1)
    theta = 0.5 * np.arctan2(sin_2theta, s_hat @ beam.s0_direction)
    frame, inv_range = _pixel_frame(still, panel, xy, e1, e2)
    return Predictions(
        image=np.full(len(hkl), image),
        hkl=hkl,
        q=q,
        excitation_error=excitation,
        s_hat=s_hat,
        e1=e1,
        e2=e2,
        sin_theta=np.sin(theta),
        cos_theta=np.cos(theta),
        polarisation=polarisation(beam, s_hat),
        panel=panel,
        xy_px=xy,
        frame=frame,
        inv_range=inv_range,
    )


def polarisation(beam: Beam, s_hat: np.ndarray) -> np.ndarray:
    """Polarisation factor (n,) of rays ``s_hat`` (n, 3).

    (1−2f)(1 − (n·ŝ)²) + f(1 + cos²2θ): f the fraction in the plane with normal n.
    """
    f = beam.polarization_fraction
    along_normal = s_hat @ beam.polarization_normal
    return (1 - 2 * f) * (1 - along_normal**2) + f * (1 + (s_hat @ beam.s0_direction) ** 2)


def _pixel_frame(still: Still, panel, xy, e1, e2):
    """d(ε_1, ε_2)/d(x, y) by central differences over one pixel, and 1/(λ|x|)."""
    wavelength, detector = still.beam.wavelength, still.detector

    def direction(dx, dy):
        lab = pixel_to_lab(detector, panel, xy + np.array([dx, dy]))
        return lab / np.linalg.norm(lab, axis=1, keepdims=True)

    columns = [
        (direction(0.5, 0) - direction(-0.5, 0)) / wavelength,
        (direction(0, 0.5) - direction(0, -0.5)) / wavelength,
    ]
    frame = np.stack(
        [np.stack([np.einsum("ni,ni->n", e, c) for c in columns], axis=1) for e in (e1, e2)], axis=1
    )
    lab = pixel_to_lab(detector, panel, xy)
    return frame, 1 / (wavelength * np.linalg.norm(lab, axis=1))
