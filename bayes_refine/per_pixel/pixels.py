"""The pixels of shoeboxes as the data of a model; factored statistics come from the same pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
import numpy as np

from ..fitting.measure_batch import Batch, cut, shoebox_for
from ..fitting.measure_run import MeasuredRun
from ..fitting.problem import Run
from ..fitting.state import State, partiality_width
from ..fitting.statistics_of_images import stills_at
from ..geometry.experiments import Still
from ..measuring.shoebox import Shoebox
from ..physics.observations import SpotStatistics
from ..physics.priors import Priors
from ..physics.spot import Spot
from ..util.kept_programs import kept
from . import profile

Array = jax.Array | np.ndarray
MIN_BACKGROUND = 0.01  # photons a pixel: of a hundred ring pixels one photon, or none


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Pixels:
    """Shoeboxes of n images, up to m reflections each, of K pixels each, padded.

    Attributes:
        reflections: geometry, I_ref and which reflections inform the fit; the statistics in it
            are not used.
        photons: (n, K, m); usable: (n, K, m) bool, valid, no neighbour's, of a reflection that
            informs.
        variance: (n, K, m) photons², frozen: see :func:`frozen`.
        background: (n, K, m) photons, the plane through the ring.
        centre: (n, 2, m) centre at the current state less the box's middle pixel's middle, px.
        to_pixel: (n, 2, 2, m) d(x, y)/d(ε_1, ε_2), px per Å⁻¹.
        offsets: (K, 2) px. read_variance: photons² a pixel.
        nodes: of the quadrature across a pixel.
    """

    reflections: SpotStatistics
    photons: Array
    usable: Array
    variance: Array
    background: Array
    centre: Array
    to_pixel: Array
    offsets: Array
    read_variance: Array
    nodes: int = field(metadata={"static": True}, default=4)

    def spots(self, spot: Spot, J: Array) -> Array:
        """(n, 6, m) J, centre and second moment on the pixels (``profile``), JAX.

        c = c_now + T(δ_1, δ_2), C = T M Tᵀ, T = d(x, y)/d(ε_1, ε_2).
        """
        t = self.to_pixel
        x, y = (
            self.centre[:, k] + t[:, k, 0] * spot.shift_1 + t[:, k, 1] * spot.shift_2
            for k in (0, 1)
        )

        def moment(i, j):
            return (
                t[:, i, 0] * t[:, j, 0] * spot.m11
                + t[:, i, 1] * t[:, j, 1] * spot.m22
                + (t[:, i, 0] * t[:, j, 1] + t[:, i, 1] * t[:, j, 0]) * spot.m12
            )

        return jnp.stack([J, x, y, moment(0, 0), moment(1, 1), moment(0, 1)], axis=1)

    def expected(self, spots: Array) -> Array:
        """(n, K, m) photons of spots (n, 6, m)."""
        return profile.photons(self.offsets, spots, self.background, self.nodes)


def pixels_of(run: Run, measurements: MeasuredRun, state: State, priors: Priors) -> Pixels:
    """The pixels of the same shoeboxes as the statistics of a round.

    Their variance is that of the background until it is :func:`frozen`.

    Args:
        measurements: what ``measure_run`` found at ``state`` with ``priors``.
    """
    batches, first = list(measurements.batches), measurements.observations.parts[0]
    moment = batches[0].where.flat(first.template_moment)
    shoebox = shoebox_for(batches[0].predictions.frame, moment)
    assert shoebox is not None, "a round measures something"
    width, n = partiality_width(state, priors), len(run.stills)
    parts = [
        _of_batch(run, batch, stills_at(run, state, batch.images), width, shoebox)
        for batch in batches
    ]
    photons, usable, background, centre, to_pixel = (
        np.concatenate(arrays)[:n] for arrays in zip(*parts, strict=True)
    )
    whole = measurements.observations.whole()
    empty = np.abs(np.linalg.det(np.moveaxis(to_pixel, -1, 1))) == 0
    square = np.eye(2)[None, :, :, None] / np.asarray(whole.pixel_inv_angstrom)
    to_pixel = np.where(empty[:, None, None], square, to_pixel)
    area = np.abs(np.linalg.det(np.moveaxis(to_pixel, -1, 1)))
    R1_px = np.sqrt(np.asarray(whole.template_moment[:, 0] + whole.template_moment[:, 1]) * area)
    read_variance = run.settings.read_noise**2
    return Pixels(
        reflections=whole,
        photons=photons,
        usable=usable,
        variance=np.maximum(background, 1.0) + read_variance,
        background=background,
        centre=centre,
        to_pixel=to_pixel,
        offsets=shoebox.signal_offsets.astype(float),
        read_variance=np.array(read_variance),
        nodes=profile.nodes_for_width(float(np.percentile(R1_px[np.asarray(whole.fit)], 5))),
    )


def frozen(pixels: Pixels, spots: Array) -> Pixels:
    """The same with the variance Bg + J P + σ_read² expected of ``spots`` (n, 6, m), single
    precision: a least-squares step has no −ln σ term, so σ must not move with it.
    """
    variance = np.asarray(_expected(pixels, spots)) + pixels.read_variance
    return replace(pixels, variance=variance.astype(np.float32))


_expected = kept(Pixels.expected)


def _of_batch(run: Run, batch: Batch, stills: Sequence[Still], width, shoebox: Shoebox):
    """Photons, which of them are usable, background, centre and d(x, y)/d(ε_1, ε_2), padded."""
    p, informs, pad = batch.predictions, batch.informs, batch.where.pad
    bounds = np.searchsorted(p.image, np.arange(len(stills) + 1))
    shape = len(p), len(shoebox.signal_offsets)
    photons, usable = np.zeros(shape, np.float32), np.zeros(shape, bool)
    for i, still in enumerate(stills):
        rows = slice(*bounds[i : i + 2])
        if informs[rows].any():
            image, mask = run.reader.read(still)
            boxes = cut(image, mask, still, p, rows, width, shoebox)
            photons[rows], usable[rows] = boxes.signal, boxes.usable & informs[rows, None]
    s, centre = batch.statistics, p.xy_px - np.floor(p.xy_px) - 0.5
    away = shoebox.signal_offsets - centre[:, None]
    background = s.background[:, None] + np.einsum("nka,na->nk", away, s.slope)
    return (
        pad(np.where(usable, photons, 0)),
        pad(usable),
        pad(np.maximum(background, MIN_BACKGROUND).astype(np.float32), 1.0),
        pad(centre),
        pad(np.linalg.inv(p.frame)),
    )
