"""Compute the frozen statistics of shoeboxes (docs/theory.md, Three statistics of a shoebox).

At the current state every reflection has a template P, derivatives of P along centre and shape, and
an expected variance v of each pixel.  Each statistic is linear in the pixels with frozen weights,
T_k = Σ_p a_kp (I_p − Bg), so that for any later state of the model

    E[T_k]   = J·(r_k0 + Σ_j r_kj η_j),
    Var[T_k] = V_bg,k + J·V_sig,k,

with η the displacement and the change of second moment of the profile in units of the template's
width ρ.  The spread's own response, the largest change in a fit, is r_33 η/(1 + cη), right to
second order.  The inner loop of a fit never reads a pixel.

The six statistics are, in order: total, centroid 1 (radial), centroid 2 (tangential), spread
(half the trace), and the two quadrupoles plus (half the difference) and cross.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..util.kept_programs import kept
from .background import ring_background, ring_slope
from .point_spread import Shares, spread_template
from .shoebox import Boxes, Shoebox
from .stray_pixels import conditional_variance, stray_pixels
from .template import template_gradient_bend
from .weights import Weights, score_weights

MIN_RING = 10  # pixels of background that a spot needs to be measured
LEAST_COVERED = 1e-3  # share of a template on usable pixels that a spot needs to be measured
SEEN = ("background", "contested", "slope")
ONES = ("variance_background", "width", "saturation")

MAX_SATURATION = 1.9  # below 2, so that the response is positive down to points, η = −½
_CHUNK = 256  # reflections per compiled call, which fit a cache; one compilation for all runs


@dataclass(frozen=True)
class Statistics:
    """The frozen statistics of n reflections.

    Attributes:
        value: (n, 6) T_k, photons (order: ``STATISTICS``).
        response: (n, 6, 6) r_kj: column 0 the total, columns 1..5 η = (δ_1, δ_2)/ρ and
            (spread, plus, cross)/ρ².
        variance_background, variance_signal: (n, 6) V_bg and V_sig.
        background: (n,) photons per pixel at the centre; background_variance: (n,) of the ring's
            mean; slope: (n, 2) of the background along x and y, photons per pixel and pixel.
        width: (n,) ρ of the template, Å⁻¹; ρ² is the trace of its second moment (R1² if round).
        covered: (n,) fraction of the template on pixels that are used: valid, uncontested, and
            not stray (``stray_pixels``); stray: (n,) number of stray pixels.
        contested: (n,) fraction of the template on pixels claimed by a neighbour.
        saturation: (n,) c of the spread's own response r_33 η/(1 + cη): 0 where the noise is of
            the spot's own photons, up to 1.8 where the background's noise is far larger.
    """

    value: np.ndarray
    response: np.ndarray
    variance_background: np.ndarray
    variance_signal: np.ndarray
    background: np.ndarray
    background_variance: np.ndarray
    width: np.ndarray
    covered: np.ndarray
    contested: np.ndarray
    saturation: np.ndarray
    slope: np.ndarray
    stray: np.ndarray

    def select(self, keep: np.ndarray) -> Statistics:
        """The statistics of some reflections, by a boolean mask or an index array."""
        return Statistics(*(getattr(self, f.name)[keep] for f in fields(self)))

    @classmethod
    def none(cls) -> Statistics:
        """Statistics of no reflection: arrays of length 0."""
        shapes = [(6,), (6, 6), (6,), (6,), *[()] * 6, (2,), ()]
        return cls(*(np.zeros((0, *shape)) for shape in shapes))


class _Spots(NamedTuple):
    """What is expected of n spots: ``measure``'s arguments."""

    frame: jax.Array
    moment: jax.Array
    expected: jax.Array
    spread: Shares | None


@partial(kept, static=("shoebox", "weights"))
def _statistics(boxes, start, spots: _Spots, read_variance, *, shoebox: Shoebox, weights: Weights):
    frame, moment, expected, spread = spots
    offsets = jnp.asarray(shoebox.signal_offsets, frame.dtype)
    width = jnp.sqrt(moment[:, 0] + moment[:, 1])
    at = boxes.centre, frame, moment, width
    if spread is None:
        template, gradient, moments, bend = template_gradient_bend(*at, offsets)
    else:
        whole = shoebox.signal_offsets
        shared = whole, spread.nodes, spread.shares
        template, gradient, moments, bend = spread_template(*at, *shared)
    background, keep, pixel_variance = ring_background(boxes.ring, start, read_variance)
    count = jnp.sum(keep, axis=1)
    enough = count >= MIN_RING
    mean_variance = jnp.where(enough, pixel_variance / jnp.maximum(count, 1), jnp.inf)
    ring_offsets = jnp.asarray(shoebox.ring_offsets, frame.dtype)
    slope, middle, inverse = ring_slope(boxes.ring, background, keep, ring_offsets)
    away = offsets - middle[:, None]  # (n, K, 2)
    variance = pixel_variance[:, None] + expected[:, None] * template
    plane = background[:, None] + jnp.einsum("nka,na->nk", away, slope)
    excess = boxes.signal - plane
    across = conditional_variance(frame, moment)
    stray = stray_pixels(
        excess, boxes.usable, template, gradient, across, pixel_variance, expected, shoebox
    )
    usable = boxes.usable & ~stray
    a = weights(template, gradient, moments, jnp.where(usable, variance, jnp.inf))
    excess = jnp.where(usable, excess, 0.0)
    value = jnp.sum(a * excess[:, None], axis=2)
    derivative = jnp.concatenate([template[:, None], gradient], axis=1)
    response = jnp.einsum("nak,nbk->nab", a, derivative)
    finite_mean = jnp.where(enough, mean_variance, 0.0)
    lever = jnp.einsum("nak,nkb->nab", a, away)
    curvature = 0.5 * jnp.sum(a[:, 3] * bend, axis=1)
    saturation = jnp.clip(-curvature / jnp.maximum(response[:, 3, 3], 1e-6), 0.0, MAX_SATURATION)
    v_background = jnp.sum(a**2, axis=2) * pixel_variance[:, None]
    v_background += jnp.sum(a, axis=2) ** 2 * finite_mean[:, None]
    v_background += jnp.einsum("nab,nbc,nac->na", lever, inverse, lever) * pixel_variance[:, None]
    v_signal = jnp.sum(a**2 * template[:, None], axis=2)
    covered = jnp.sum(jnp.where(usable, template, 0.0), axis=1)
    covered = jnp.where(enough, covered, 0.0)
    lost = jnp.sum(jnp.where(boxes.contested, template, 0.0), axis=1)
    at_centre = background + jnp.sum((boxes.centre - middle) * slope, axis=1)
    n_stray = jnp.sum(stray, axis=1)
    rest = at_centre, mean_variance, width, covered, lost, saturation, slope, n_stray
    return value, response, v_background, v_signal, *rest


def measure(
    boxes: Boxes,
    frame: np.ndarray,
    moment: np.ndarray,
    expected: np.ndarray,
    shoebox: Shoebox,
    read_noise: float = 0.0,
    weights: Weights = score_weights,
    spread: Shares | None = None,
) -> Statistics:
    """The frozen statistics of n shoeboxes at the current state, in single precision.

    Args:
        boxes: :func:`cut_shoeboxes`.
        frame: (n, 2, 2) Å⁻¹/px; moment: (n, 3) of the templates, M11, M22, M12, Å⁻².
        expected: (n,) J_model at the current state, photons (never the observed J).
        read_noise: photons rms a pixel.
        weights: :func:`score_weights` or :func:`moment_weights`.
        spread: of the photons of each spot over pixels beside it; None for Gaussian spots.
    """
    n = len(boxes.centre)
    # Squares of Å⁻² of a spot underflow in single precision: work in 1e-3 Å⁻¹
    ring = np.asarray(boxes.ring)
    numbers = (_median(ring), frame * 1e3, moment * 1e6, np.maximum(expected, 0.0))
    parts = []
    for first in range(0, n, _CHUNK):
        chunk = Boxes(*(_chunk(a, first) for a in boxes))
        start, *at = (_chunk(a, first) for a in numbers)
        some = spread and Shares(_chunk(spread.shares, first), spread.nodes)
        spots = _Spots(at[0], at[1], at[2], some)
        given = chunk, start, spots, read_noise**2
        parts.append(_statistics(*given, shoebox=shoebox, weights=weights))
    arrays = [np.concatenate(p)[:n].astype(float) for p in zip(*parts, strict=True)]
    return _bounded(replace(Statistics(*arrays), width=arrays[6] * 1e-3))


def _bounded(found: Statistics) -> Statistics:
    """Statistics of finite numbers, with variances above zero.

    Where next to nothing of a spot lies on usable pixels, variances underflow in single precision
    and weights overflow.  Such a spot counts as not covered; its statistics are zero with a
    variance of one.
    """
    columns = {f.name: getattr(found, f.name) for f in fields(found)}
    of_mean = columns.pop("background_variance")  # infinite where a ring has too few pixels
    good = (found.covered > LEAST_COVERED) & np.all(found.variance_background > 0, axis=1)
    for values in columns.values():
        good &= np.all(np.isfinite(values).reshape(len(good), -1), axis=1)
    for name, values in columns.items():
        # ring background and contested share are known without the spot
        kept = np.isfinite(values) if name in SEEN else good.reshape(-1, *[1] * (values.ndim - 1))
        columns[name] = np.where(kept, values, 1.0 if name in ONES else 0.0)
    of_mean = np.where(np.isnan(of_mean), np.inf, of_mean)
    return Statistics(**columns, background_variance=of_mean)


def _chunk(array: np.ndarray | jax.Array, first: int) -> jax.Array:
    """The rows of a chunk in single precision, the last one repeated where there are too few."""
    rows = np.asarray(array)[first : first + _CHUNK]
    if missing := _CHUNK - len(rows):
        rows = np.concatenate([rows, np.repeat(rows[-1:], missing, axis=0)])
    return jnp.asarray(rows if rows.dtype == bool else rows.astype(np.float32, copy=False))


def _median(ring: np.ndarray) -> np.ndarray:
    """(n,) median of the finite values of (n, L); 0 where there is none."""
    count = np.sum(np.isfinite(ring), axis=1)
    ordered = np.sort(ring, axis=1)  # NaN last
    middle = np.take_along_axis(ordered, np.maximum(count - 1, 0)[:, None] // 2, axis=1)[:, 0]
    return np.where(count > 0, middle, 0.0)
