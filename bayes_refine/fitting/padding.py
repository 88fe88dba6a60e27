"""Turn flat predictions and statistics into a model's observations, padded by image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..geometry.crystal import rotation_matrix
from ..geometry.detector import beam_frame, pixel_to_lab
from ..geometry.experiments import Still
from ..geometry.panel_groups import centres, displacements, shifts_mm
from ..geometry.predict import Predictions
from ..measuring.statistics import Statistics
from ..physics.observations import Metadata, SpotStatistics
from .state import Geometry, wavelengths_of

WASTE = 10_000  # empty slots cost 3 s on two cores, a compilation 10 s
SPARED = 100_000  # empty slots from which on another shape of batches is worth its compilation


@dataclass(frozen=True)
class Layout:
    """The place of each of n flat reflections in padded (n_image, m) arrays.

    Attributes:
        image, slot: (n,); shape: (n_image, m).
    """

    image: np.ndarray
    slot: np.ndarray
    shape: tuple[int, int]

    def pad(self, values: np.ndarray, fill: float = 0.0) -> np.ndarray:
        """(n, ...) to (n_image, ..., m): reflections become the last axis."""
        values = np.asarray(values)
        out = np.full((*self.shape, *values.shape[1:]), fill, dtype=values.dtype)
        out[self.image, self.slot] = values
        return np.ascontiguousarray(np.moveaxis(out, 1, -1))

    def flat(self, padded: np.ndarray) -> np.ndarray:
        """(n_image, ..., m) to (n, ...)."""
        return np.moveaxis(np.asarray(padded), -1, 1)[self.image, self.slot]


def slots(counts: np.ndarray, at_least: int = 0, n_images: int | None = None) -> int:
    """Number of places for reflections in each image; image i has ``counts[i]`` reflections.

    A new shape must be compiled.  The number therefore grows in steps of 32, and stays at
    ``at_least``, that of the last round, if empty places cost less time than a compilation.

    Args:
        n_images: of this shape; the length of ``counts`` by default.
    """
    m = -(-int(np.max(counts, initial=1)) // 32) * 32
    n_images = len(counts) if n_images is None else n_images
    return max(m, at_least) if n_images * (at_least - m) < WASTE else m


def shapes(counts: Sequence[np.ndarray], size: int, most: int) -> tuple[int, ...]:
    """Slots of the batches of a run, ascending; a batch takes the first that holds it.

    The images with the most reflections of a large run have many more than others have.  A number
    is added, that which spares the most empty slots first, while it spares ``SPARED``.

    Args:
        counts: reflections of each image, batch by batch. size: images that a batch has room for.
        most: :func:`slots` of all images.
    """
    needed = np.array([np.max(of_batch, initial=0) for of_batch in counts])
    fewer = np.arange(32, most, 32)
    found, taken = [most], np.full(len(needed), most)
    while len(fewer):
        holds = needed <= fewer[:, None]
        spared = size * np.sum(holds * np.maximum(taken - fewer[:, None], 0), axis=1)
        best = np.argmax(spared)
        if spared[best] < SPARED:
            break
        found.append(int(fewer[best]))
        taken = np.where(holds[best], np.minimum(taken, fewer[best]), taken)
    return tuple(sorted(found))


def layout(image: np.ndarray, n_image: int, m: int) -> Layout:
    """The places of reflections sorted by image; ``image`` (n,) from 0."""
    start = np.searchsorted(image, np.arange(n_image))
    return Layout(image, np.arange(len(image)) - start[image], (n_image, m))


def geometry_observations(
    stills: list[Still],
    predictions: Predictions,
    where: Layout,
    geometry: Geometry,
    pixel_inv_angstrom: float,
) -> SpotStatistics:
    """Observations with the geometry filled in and the statistics still zero.

    Args:
        stills: as indexed, of one bandwidth; the last one also fills unused places.
        predictions: made at the current state.
        geometry: of the current state; with ``panels``, groups of panels are to be moved.
        pixel_inv_angstrom: of the run.
    """
    room, wavelength = where.shape[0] - len(stills), wavelengths_of(stills, geometry)
    stills = [*stills, *stills[-1:] * room]
    rotation_mrad, strain = (
        np.concatenate([x, np.repeat(x[-1:], room, axis=0)])
        for x in (geometry.rotation_mrad, geometry.strain)
    )
    basis = np.stack([still.crystal.strains for still in stills])
    stretch = np.eye(3) + np.einsum("nk,nkij->nij", strain, basis)
    axes = np.stack([beam_frame(s.beam, s.detector) for s in stills]) * np.array([[-1], [-1], [1]])
    p, image = predictions, predictions.image
    e12 = np.stack([p.e1, p.e2], axis=1)
    detector_axes = p.inv_range[:, None, None] * np.einsum("nai,nki->nak", e12, axes[image])
    column = np.linalg.inv(p.frame)
    column /= np.linalg.norm(column, axis=1, keepdims=True)
    q_indexed = np.einsum("nij,nj->ni", np.stack([s.crystal.A for s in stills])[image], p.hkl)
    pad = where.pad
    n, m = n_m = where.shape
    return SpotStatistics(
        fit=np.zeros(n_m, bool),
        statistics=np.zeros((n, 6, m)),
        response=np.zeros((n, 6, 6, m)),
        variance_background=np.ones((n, 6, m)),
        variance_signal=np.zeros((n, 6, m)),
        width=np.ones(n_m),
        saturation=np.ones(n_m),
        template_moment=np.zeros((n, 3, m)),
        intensity_reference=np.zeros(n_m),
        reference_error=np.zeros(n_m),
        norm_q=pad(np.linalg.norm(p.q, axis=1), 0.1),
        sin_theta=pad(p.sin_theta, 0.1),
        cos_theta=pad(p.cos_theta, 1.0),
        e1=pad(p.e1),
        e2=pad(p.e2),
        s_hat=pad(p.s_hat),
        q=pad(q_indexed),
        excitation_error=pad(p.excitation_error),
        detector_axes=pad(detector_axes),
        azimuth=pad(column[:, :, 0]),
        wavevector=1 / np.append(wavelength, [wavelength[-1]] * room)[:, None],
        bandwidth=np.array(stills[0].beam.bandwidth),
        strain_basis=basis,
        current_setting=rotation_matrix(rotation_mrad) @ stretch,
        current_shift=np.broadcast_to(geometry.shift_mm, (n, 3)),
        log_G0=np.array(0.0),
        pixel_inv_angstrom=np.array(pixel_inv_angstrom),
        half_turn=None if all(s.turn_mrad is None for s in stills) else pad(_half_turn(stills, p)),
        **_panels(stills, p, where, e12, geometry, geometry.shift_mm @ axes, wavelength),
    )


def metadata(stills: Sequence[Still], predictions: Predictions, where: Layout) -> Metadata:
    """The place of reflections on the detector, and of their images in the run.

    Args:
        stills: of the batch, at the current state.
    """
    xy_mm = positions_mm(stills, predictions)
    room = where.shape[0] - len(stills)
    columns = predictions.panel, *predictions.xy_px.T, *xy_mm.T
    order = np.array([still.order for still in [*stills, *[stills[-1]] * room]])
    panel, x_px, y_px, x_mm, y_mm = map(where.pad, columns)
    return Metadata(panel, x_px, y_px, x_mm, y_mm, order[:, None])


def positions_mm(stills: Sequence[Still], predictions: Predictions) -> np.ndarray:
    """(N, 2) predicted centres, x and y in the lab frame, mm."""
    xy_mm = np.zeros((len(predictions), 2))
    bounds = np.searchsorted(predictions.image, np.arange(len(stills) + 1))
    for still, k in zip(stills, map(slice, bounds[:-1], bounds[1:]), strict=True):
        here = predictions.panel[k], predictions.xy_px[k]
        xy_mm[k] = pixel_to_lab(still.detector, *here)[:, :2]
    return xy_mm


def _half_turn(stills: list[Still], p: Predictions) -> np.ndarray:
    """(n, 3) path of reciprocal-lattice points in half of the exposure, along ŝ, e1 and e2."""
    turn = np.array([np.zeros(3) if s.turn_mrad is None else s.turn_mrad for s in stills])
    path = np.cross(5e-4 * turn[p.image], p.q)
    return np.stack([np.sum(path * e, axis=1) for e in (p.s_hat, p.e1, p.e2)], axis=1)


def _panels(
    stills, p: Predictions, where: Layout, e12, geometry: Geometry, shift, wavelength
) -> dict:
    """The fields about groups of panels; none where panels stay in place.

    Args:
        e12: (N, 2, 3). shift: (n, 3) of the whole detectors, mm, in the laboratory.
        wavelength: (n,) Å.
    """
    if geometry.panels is None:
        return {}
    moves = np.zeros((len(p), 3, 3))
    group = np.zeros(len(p), np.int32)
    for i, still in enumerate(stills[: int(p.image.max(initial=-1)) + 1]):
        rows = np.flatnonzero(p.image == i)
        detector = still.detector
        lab = p.s_hat[rows] / (wavelength[i] * p.inv_range[rows, None])
        centre = centres(detector) + shifts_mm(detector, geometry.panels) + shift[i]
        moves[rows] = displacements(detector, p.panel[rows], lab, centre)
        group[rows] = detector.group[p.panel[rows]]
    return {
        "panel_group": where.pad(group),
        "panel_axes": where.pad(p.inv_range[:, None, None] * np.einsum("nai,nki->nak", e12, moves)),
        "current_panels": np.broadcast_to(
            geometry.panels, (where.shape[0], *geometry.panels.shape)
        ),
    }


def with_statistics(
    obs: SpotStatistics,
    where: Layout,
    statistics: Statistics,
    moment: np.ndarray,
    intensity_reference: np.ndarray,
    reference_error: np.ndarray,
    fit: np.ndarray,
    log_G0: float,
) -> SpotStatistics:
    """The observations after measuring.

    Args:
        moment: (n, 3) second moment of the templates, Å⁻².
        intensity_reference: (n,) polarisation × I_ref; reference_error: (n,) its relative sd.
        fit: (n,) bool.
    """
    pad = where.pad
    return replace(
        obs,
        fit=pad(fit),
        statistics=pad(statistics.value),
        response=pad(statistics.response),
        variance_background=pad(statistics.variance_background, 1.0),
        variance_signal=pad(statistics.variance_signal),
        width=pad(statistics.width, 1.0),
        saturation=pad(statistics.saturation, 1.0),
        template_moment=pad(moment),
        intensity_reference=pad(intensity_reference),
        reference_error=pad(reference_error),
        log_G0=np.array(log_G0),
    )
