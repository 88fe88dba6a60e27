"""Shoebox → background → statistics with their variance pieces (SPEC sections 3 and 4).

At the pilot state every reflection has a template P, its derivatives along the centre and the
shape, and an expected variance v.  Each statistic is linear in the pixels with frozen weights,
T_k = Σ_p a_kp (I_p − Bg), so that for any later state of the model

    E[T_k]   = J·(r_k0 + Σ_j r_kj η_j),
    Var[T_k] = V_bg,k + J·V_sig,k,

with η the displacement and the change of second moment of the profile in units of the pilot
width ρ; the spread's own response, the largest change in a fit, is r_33 η/(1 + cη), good to
second order.  The inner loop of a fit never touches a pixel.

The six statistics are, in order: total, centroid 1 (radial), centroid 2 (tangential), spread
(half the trace), and the two quadrupoles plus (half the difference) and cross.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

STATISTICS = ("intensity", "centroid_radial", "centroid_tangential", "spread", "plus", "cross")
MIN_RING = 10  # pixels of background, or a spot is not measured
MAX_SATURATION = 1.9  # below 2: the spread's response stays positive down to points, η = −½
_CHUNK = 1024  # reflections per compiled call: bounds memory, one compilation for all runs

Weights = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]


@dataclass(frozen=True)
class Shoebox:
    """Pixel geometry of a measurement, px.

    Attributes:
        signal_radius: pixels nearer to the predicted centre are measured.
        ring_inner, ring_outer: pixels between these radii carry the background.
        spot_radius: pixels nearer than this a bright spot takes from its neighbours.
    """

    signal_radius: float
    ring_inner: float
    ring_outer: float
    spot_radius: float

    @cached_property
    def signal_offsets(self) -> np.ndarray:
        """(K, 2) offsets (x, y) from the central pixel of all pixels that may carry the spot."""
        return _disc(0.0, self.signal_radius)

    @cached_property
    def ring_offsets(self) -> np.ndarray:
        """(L, 2) offsets of all pixels that may carry the background."""
        return _disc(self.ring_inner, self.ring_outer)


def _disc(inner: float, outer: float) -> np.ndarray:
    """Offsets between two radii of any point of the central pixel."""
    half = int(np.ceil(outer + 0.5))
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    r = np.hypot(x, y)
    slack = np.sqrt(0.5)
    keep = (r < outer + slack) & (r > inner - slack)
    return np.stack([x[keep], y[keep]], axis=1)


def shoebox_for_width(R1_px: float) -> Shoebox:
    """A shoebox for spots of width R1 (px, exp(−r²/R1²)), in whole steps of a pixel.

    2.5 R1 holds 99.8 % of a Gaussian spot; a pixel is added for the centre's uncertainty.
    The ring has at least 80 pixels.
    """
    radius = float(np.clip(np.ceil(2.5 * R1_px) + 1, 3, 12))
    inner = radius + 1
    outer = float(np.ceil(np.sqrt(inner**2 + 120 / np.pi)))
    return Shoebox(radius, inner, outer, spot_radius=radius)


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
        width: (n,) ρ, Å⁻¹: pilot R1, ρ² = trace of the second moment of the template.
        covered: (n,) fraction of the template on valid, uncontested pixels.
        contested: (n,) fraction of the template on pixels claimed by a neighbour.
        saturation: (n,) c of the spread's own response r_33 η/(1 + cη): 0 where the spot's own
            photons are the noise, up to 1.8 on a background that drowns them.
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

    def select(self, keep: np.ndarray) -> Statistics:
        """Those of a boolean mask or an index array."""
        return Statistics(*(getattr(self, f.name)[keep] for f in fields(self)))

    @classmethod
    def none(cls) -> Statistics:
        """Of no reflection."""
        shapes = [(6,), (6, 6), (6,), (6,), *[()] * 6, (2,)]
        return cls(*(np.zeros((0, *shape)) for shape in shapes))


class Boxes(NamedTuple):
    """Pixels of n shoeboxes: K of signal and L of background.

    Attributes:
        centre: (n, 2) predicted centre from the centre of the box's middle pixel, px.
        signal: (n, K) photons; usable (n, K): valid and in no neighbour's spot; contested
            (n, K): in a neighbour's.
        ring: (n, L) photons, NaN where not usable.
    """

    centre: np.ndarray | jax.Array
    signal: np.ndarray | jax.Array
    usable: np.ndarray | jax.Array
    contested: np.ndarray | jax.Array
    ring: np.ndarray | jax.Array


def cut_shoeboxes(image, mask, panel, xy_px, claimed, shoebox: Shoebox) -> Boxes:
    """Pixels of the shoeboxes of one image.

    Args:
        image, mask: (P, ny, nx) photons and validity.
        panel: (n,); xy_px: (n, 2) predicted centres.
        claimed: (n,) bool, reflections bright enough to spoil a neighbour.
    """
    _, height, width = image.shape
    middle = np.floor(xy_px).astype(int)
    centre = xy_px - middle - 0.5

    def gather(offsets):
        x, y = middle[:, :1] + offsets[:, 0], middle[:, 1:] + offsets[:, 1]
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        row = panel[:, None] * height + np.clip(y, 0, height - 1)
        flat = row * width + np.clip(x, 0, width - 1)
        r2 = np.sum((offsets[None] - centre[:, None]) ** 2, axis=2)
        return flat, inside & mask.reshape(-1)[flat], inside, r2

    flat, valid, inside, r2 = gather(shoebox.signal_offsets)
    core = (r2 < shoebox.signal_radius**2) & inside
    own = (r2 < shoebox.spot_radius**2) & inside & claimed[:, None]
    claims = np.bincount(flat[own], minlength=image.size)
    contested = core & valid & (claims[flat] > own)
    signal = np.where(valid & core, image.reshape(-1)[flat], 0.0)
    usable = valid & core & ~contested

    flat, valid, _, r2 = gather(shoebox.ring_offsets)
    valid &= (r2 >= shoebox.ring_inner**2) & (r2 <= shoebox.ring_outer**2) & (claims[flat] == 0)
    ring = np.where(valid, image.reshape(-1)[flat], np.nan)
    return Boxes(centre, signal, usable, contested, ring)


def score_weights(template, gradient, moments, variance):
    """Efficient weights: scores of a Gaussian likelihood with expected variance, decorrelated.

    With g_k = ∂_k P/v and Fisher matrix F = Σ ∂_k P ∂_l P/v = L·Lᵀ, the rows of L⁻¹g are
    exactly uncorrelated at the pilot, the total first: row 0 is the profile-fitted
    J = Σ(P/v)(I − Bg)/Σ(P²/v), and no later statistic shares noise with it.

    Args:
        template: (n, K); gradient: (n, 5, K) of the template along η; moments: (n, 5, K),
        unused; variance: (n, K) expected variance, infinite on pixels not to be used.

    Returns:
        (n, 6, K) weights a_kp.
    """
    derivative = jnp.concatenate([template[:, None], gradient], axis=1)
    score = derivative / variance[:, None]
    fisher = jnp.einsum("nak,nbk->nab", derivative, score)
    scale = jnp.sqrt(jnp.maximum(jnp.diagonal(fisher, axis1=1, axis2=2), 1e-30))
    correlation = fisher / (scale[:, :, None] * scale[:, None])
    lower = jnp.linalg.cholesky(correlation + 1e-5 * jnp.eye(6, dtype=correlation.dtype))
    whitened = jax.lax.linalg.triangular_solve(
        lower, score / scale[:, :, None], left_side=True, lower=True
    )
    diagonal = jnp.diagonal(lower, axis1=1, axis2=2) * scale
    return whitened / diagonal[:, :, None]


def moment_weights(template, gradient, moments, variance):
    """Textbook weights: profile-fitted total, plain first and second moments over the signal.

    The second moments are taken about their expectation M2_model, so that with w = 1/v in the
    total they do not share noise with it (SPEC section 4, "ratios").  Same arguments and
    result as :func:`score_weights`.
    """
    used = jnp.isfinite(variance)
    weight = template / variance
    total = weight / jnp.maximum(jnp.sum(weight * template, axis=1, keepdims=True), 1e-30)
    plain = jnp.where(used[:, None], moments, 0.0)
    on_spot = jnp.sum(template * used, axis=1)[:, None]
    expected = jnp.sum(plain * template[:, None], axis=2) / jnp.maximum(on_spot, 1e-30)
    centred = jnp.where(used[:, None], plain - expected[:, :, None], 0.0)
    return jnp.concatenate([total[:, None], centred], axis=1)


def template_and_gradient(centre, frame, moment, width, offsets):
    """Pixel-integrated Gaussian template, its derivatives along η, and the plain moments.

    P_p = ∫_pixel N(ε; 0, M) dε with second moment M; 4×4 Gauss–Legendre nodes a pixel, good to
    1e-3 of the peak down to R1 = 0.45 px (2 % at 0.3 px).  Along the centre ∂P/∂δ = M⁻¹ε P,
    along the shape ∂P/∂M = ½(M⁻¹εεᵀM⁻¹ − M⁻¹)P; by the heat equation the latter also is half the
    second derivative along the centre.

    Args:
        centre: (n, 2) px; frame: (n, 2, 2) Å⁻¹/px; moment: (n, 3) M11, M22, M12, Å⁻²;
        width: (n,) ρ, Å⁻¹; offsets: (K, 2) px.

    Returns:
        template (n, K), gradient (n, 5, K), moments (n, 5, K): ε_1, ε_2 in ρ and
        spread, plus, cross in ρ².
    """
    m11, m22, m12 = (moment / width[:, None] ** 2).T[..., None]
    det = m11 * m22 - m12**2
    i11, i22, i12 = m22 / det, m11 / det, -m12 / det
    jacobian = jnp.abs(jnp.linalg.det(frame / width[:, None, None]))[:, None]
    norm = jacobian / (2 * jnp.pi * jnp.sqrt(det))
    nodes, node_weights = np.polynomial.legendre.leggauss(4)
    template = jnp.zeros((len(centre), len(offsets)), frame.dtype)
    gradient = jnp.zeros((len(centre), 5, len(offsets)), frame.dtype)
    for node_x, weight_x in zip(nodes / 2, node_weights / 2, strict=True):
        for node_y, weight_y in zip(nodes / 2, node_weights / 2, strict=True):
            at = offsets[None] + jnp.array([node_x, node_y], frame.dtype) - centre[:, None]
            u1, u2 = _in_widths(frame, width, at)
            a1, a2 = i11 * u1 + i12 * u2, i12 * u1 + i22 * u2
            p = float(weight_x * weight_y) * norm * jnp.exp(-0.5 * (u1 * a1 + u2 * a2))
            d11, d22, d12 = 0.5 * (a1 * a1 - i11), 0.5 * (a2 * a2 - i22), a1 * a2 - i12
            template += p
            gradient += p[:, None] * jnp.stack([a1, a2, d11 + d22, d11 - d22, d12], axis=1)
    at = offsets[None] - centre[:, None]
    u1, u2 = _in_widths(frame, width, at)
    moments = jnp.stack([u1, u2, (u1**2 + u2**2) / 2, (u1**2 - u2**2) / 2, u1 * u2], axis=1)
    return template, gradient, moments


def _in_widths(frame, width, at):
    """Components of ε/ρ, (n, K) each, of pixel offsets ``at`` (n, K, 2)."""
    f = (frame / width[:, None, None])[:, :, :, None]
    x, y = at[..., 0], at[..., 1]
    return f[:, 0, 0] * x + f[:, 0, 1] * y, f[:, 1, 0] * x + f[:, 1, 1] * y


def ring_background(ring, start, read_variance):
    """Clipped mean of the ring, the pixels it is of, and their expected variance.

    Pixels further than 3.5 expected sd from the running mean go out, five times over; the
    expected sd is that of the mean itself, √(Bg + σ_read²), never of the pixel.

    Args:
        ring: (n, L) photons, NaN where not usable; start: (n,) median, which half the ring
            would have to be junk to move; read_variance: photons².

    Returns:
        background (n,), kept (n, L) bool, and variance of one background pixel (n,).
    """
    usable = jnp.isfinite(ring)
    pixels = jnp.where(usable, ring, 0.0)

    def pixel_variance(background, count):
        return jnp.maximum(background, 1.0 / count) + read_variance

    background, count, keep = start, jnp.maximum(jnp.sum(usable, axis=1), 1), usable
    for _ in range(5):
        reach = 3.5 * jnp.sqrt(pixel_variance(background, count)) + 1.0
        keep = usable & (jnp.abs(pixels - background[:, None]) < reach[:, None])
        count = jnp.maximum(jnp.sum(keep, axis=1), 1)
        background = jnp.sum(jnp.where(keep, pixels, 0.0), axis=1) / count
    return background, keep, pixel_variance(background, count)


def ring_slope(ring, background, keep, offsets):
    """Slope of the background across the ring, by least squares about its mean.

    A ring-shaped halo of the solvent falls across a shoebox, and shifts the centroid of a spot
    by slope/J: of weak spots most, and of all towards the beam.

    Args:
        ring: (n, L) photons; background: (n,) mean of the pixels kept (n, L); offsets: (L, 2) px.

    Returns:
        slope (n, 2) photons/px, middle (n, 2) px of the pixels kept, and the inverse (n, 2, 2),
        px⁻², of their scatter: the slope's covariance over the variance of a pixel.
    """
    count = jnp.maximum(jnp.sum(keep, axis=1), 1)[:, None]
    middle = keep @ offsets / count
    away = jnp.where(keep[:, :, None], offsets - middle[:, None], 0.0)
    scatter = jnp.einsum("nla,nlb->nab", away, away) + jnp.eye(2, dtype=away.dtype)
    inverse = jnp.linalg.inv(scatter)
    excess = jnp.where(keep, ring - background[:, None], 0.0)
    return jnp.einsum("nab,nlb,nl->na", inverse, away, excess), middle, inverse


@partial(jax.jit, static_argnames=("shoebox", "weights"))
def _statistics(
    boxes, start, frame, moment, expected, read_variance, *, shoebox: Shoebox, weights: Weights
):
    offsets = jnp.asarray(shoebox.signal_offsets, frame.dtype)
    width = jnp.sqrt(moment[:, 0] + moment[:, 1])
    wider = width[:, None] ** 2 * jnp.array([1.0, 1.0, 0.0], frame.dtype)  # of moment by spread

    def at(moment):
        return template_and_gradient(boxes.centre, frame, moment, width, offsets)

    (template, gradient, moments), (_, bend, _) = jax.jvp(at, (moment,), (wider,))
    background, keep, pixel_variance = ring_background(boxes.ring, start, read_variance)
    count = jnp.sum(keep, axis=1)
    enough = count >= MIN_RING
    mean_variance = jnp.where(enough, pixel_variance / jnp.maximum(count, 1), jnp.inf)
    ring_offsets = jnp.asarray(shoebox.ring_offsets, frame.dtype)
    slope, middle, inverse = ring_slope(boxes.ring, background, keep, ring_offsets)
    away = offsets - middle[:, None]  # (n, K, 2)
    variance = pixel_variance[:, None] + expected[:, None] * template
    a = weights(template, gradient, moments, jnp.where(boxes.usable, variance, jnp.inf))
    plane = background[:, None] + jnp.einsum("nka,na->nk", away, slope)
    excess = jnp.where(boxes.usable, boxes.signal - plane, 0.0)
    value = jnp.sum(a * excess[:, None], axis=2)
    derivative = jnp.concatenate([template[:, None], gradient], axis=1)
    response = jnp.einsum("nak,nbk->nab", a, derivative)
    finite_mean = jnp.where(enough, mean_variance, 0.0)
    lever = jnp.einsum("nak,nkb->nab", a, away)
    curvature = 0.5 * jnp.sum(a[:, 3] * bend[:, 2], axis=1)
    saturation = jnp.clip(-curvature / jnp.maximum(response[:, 3, 3], 1e-6), 0.0, MAX_SATURATION)
    v_background = jnp.sum(a**2, axis=2) * pixel_variance[:, None]
    v_background += jnp.sum(a, axis=2) ** 2 * finite_mean[:, None]
    v_background += jnp.einsum("nab,nbc,nac->na", lever, inverse, lever) * pixel_variance[:, None]
    v_signal = jnp.sum(a**2 * template[:, None], axis=2)
    covered = jnp.sum(jnp.where(boxes.usable, template, 0.0), axis=1)
    covered = jnp.where(enough, covered, 0.0)
    lost = jnp.sum(jnp.where(boxes.contested, template, 0.0), axis=1)
    at_centre = background + jnp.sum((boxes.centre - middle) * slope, axis=1)
    rest = at_centre, mean_variance, width, covered, lost, saturation, slope
    return value, response, v_background, v_signal, *rest


def measure(
    boxes: Boxes,
    frame: np.ndarray,
    moment: np.ndarray,
    expected: np.ndarray,
    shoebox: Shoebox,
    read_noise: float = 0.0,
    weights: Weights = score_weights,
) -> Statistics:
    """The frozen statistics of n shoeboxes at the pilot state, in single precision.

    Args:
        boxes: :func:`cut_shoeboxes`.
        frame: (n, 2, 2) Å⁻¹/px; moment: (n, 3) pilot second moment (M11, M22, M12), Å⁻²;
        expected: (n,) J_model at the pilot, photons (never the observed one);
        read_noise: photons rms a pixel.
        weights: :func:`score_weights` or :func:`moment_weights`.
    """
    n = len(boxes.centre)
    # Å⁻² of a spot are below what single precision squares safely: work in 1e-3 Å⁻¹
    ring = np.asarray(boxes.ring)
    numbers = (_median(ring), frame * 1e3, moment * 1e6, np.maximum(expected, 0.0))
    parts = []
    for first in range(0, n, _CHUNK):
        rows = np.minimum(np.arange(first, first + _CHUNK), n - 1)
        chunk = Boxes(*(_single(np.asarray(a)[rows]) for a in boxes))
        rest = [_single(a[rows]) for a in numbers]
        parts.append(_statistics(chunk, *rest, read_noise**2, shoebox=shoebox, weights=weights))
    arrays = [np.concatenate(p)[:n].astype(float) for p in zip(*parts, strict=True)]
    return replace(Statistics(*arrays), width=arrays[6] * 1e-3)


def _single(array: np.ndarray) -> jax.Array:
    return jnp.asarray(array if array.dtype == bool else array.astype(np.float32))


def _median(ring: np.ndarray) -> np.ndarray:
    """(n,) median of the finite values of (n, L); 0 where there is none."""
    count = np.sum(np.isfinite(ring), axis=1)
    ordered = np.sort(ring, axis=1)  # NaN last
    middle = np.take_along_axis(ordered, np.maximum(count - 1, 0)[:, None] // 2, axis=1)[:, 0]
    return np.where(count > 0, middle, 0.0)
