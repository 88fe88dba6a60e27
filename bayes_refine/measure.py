"""Shoebox → background → statistics with their variance pieces (SPEC sections 3 and 4).

At the pilot state every reflection has a template P, its derivatives along the centre and the
shape, and an expected variance v.  Each statistic is linear in the pixels with frozen weights,
T_k = Σ_p a_kp (I_p − Bg), so that for any later state of the model

    E[T_k]   = J·(r_k0 + Σ_j r_kj η_j),
    Var[T_k] = V_bg,k + J·V_sig,k,

with η the displacement and the change of second moment of the profile in units of the pilot
width ρ.  The inner loop of a fit never touches a pixel.

The six statistics are, in order: total, centroid 1 (radial), centroid 2 (tangential), spread
(half the trace), and the two quadrupoles plus (half the difference) and cross.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

STATISTICS = ("intensity", "centroid_radial", "centroid_tangential", "spread", "plus", "cross")
_CHUNK = 1024  # reflections per compiled call: bounds memory, one compilation for all runs

Weights = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]


@dataclass(frozen=True)
class Shoebox:
    """Pixel geometry of a measurement, px.

    Attributes:
        half_width: the box has (2·half_width + 1)² pixels.
        signal_radius: pixels nearer to the predicted centre carry the spot.
        ring_inner, ring_outer: pixels between these radii carry the background.
    """

    half_width: int
    signal_radius: float
    ring_inner: float
    ring_outer: float

    @property
    def offsets(self) -> np.ndarray:
        """(K, 2) pixel offsets (x, y) from the central pixel."""
        axis = np.arange(-self.half_width, self.half_width + 1)
        y, x = np.meshgrid(axis, axis, indexing="ij")
        return np.stack([x.ravel(), y.ravel()], axis=1)


def shoebox_for_width(R1_px: float) -> Shoebox:
    """A shoebox for spots of width R1 (px, exp(−r²/R1²)), in whole steps of a pixel.

    2.5 R1 holds 99.8 % of a Gaussian spot; a pixel is added for the centre's uncertainty.
    The ring has at least 80 pixels.
    """
    radius = float(np.clip(np.ceil(2.5 * R1_px) + 1, 3, 12))
    inner = radius + 1
    outer = float(np.ceil(np.sqrt(inner**2 + 120 / np.pi)))
    return Shoebox(int(outer), radius, inner, outer)


@dataclass(frozen=True)
class Statistics:
    """The frozen statistics of n reflections.

    Attributes:
        value: (n, 6) T_k, photons (order: ``STATISTICS``).
        response: (n, 6, 6) r_kj: column 0 the total, columns 1..5 η = (δ_1, δ_2)/ρ and
            (spread, plus, cross)/ρ².
        variance_background, variance_signal: (n, 6) V_bg and V_sig.
        background: (n,) photons per pixel; background_variance: (n,) of that mean.
        width: (n,) ρ, Å⁻¹: pilot R1, ρ² = trace of the second moment of the template.
        covered: (n,) fraction of the template on valid, uncontested pixels.
        contested: (n,) fraction of the template on pixels claimed by a neighbour.
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


def concatenate(parts: list[Statistics]) -> Statistics:
    """One flat set from several, in order."""
    return Statistics(
        *(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Statistics))
    )


def cut_shoeboxes(image, mask, panel, xy_px, claimed, shoebox: Shoebox):
    """Pixels of the shoeboxes of one image.

    Args:
        image, mask: (P, ny, nx) photons and validity.
        panel: (n,); xy_px: (n, 2) predicted centres.
        claimed: (n,) bool, reflections bright enough to spoil a neighbour.

    Returns:
        pixels (n, K) photons (0 where invalid), valid (n, K), contested (n, K): pixels inside
        another claimed spot's signal radius, and centre (n, 2) of the predicted centre from
        the centre of the box's middle pixel.
    """
    n_panels, height, width = image.shape
    middle = np.floor(xy_px).astype(int)
    centre = xy_px - middle - 0.5
    offsets = shoebox.offsets
    x = middle[:, :1] + offsets[:, 0]
    y = middle[:, 1:] + offsets[:, 1]
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    flat = (panel[:, None] * height + np.clip(y, 0, height - 1)) * width + np.clip(x, 0, width - 1)
    valid = inside & mask.reshape(-1)[flat]
    pixels = np.where(valid, image.reshape(-1)[flat], 0.0)

    distance2 = np.sum((offsets[None] - centre[:, None]) ** 2, axis=2)
    core = distance2 < shoebox.signal_radius**2
    claims = np.bincount(flat[core & inside & claimed[:, None]], minlength=image.size)
    own = core & claimed[:, None]
    contested = claims[flat] > own
    return pixels, valid, contested, centre


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
    lower = jnp.linalg.cholesky(correlation + 1e-6 * jnp.eye(6))
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

    P_p = ∫_pixel N(ε; 0, M) dε with second moment M; 3×3 Gauss–Legendre nodes a pixel, which
    is exact to 1e-3 of the peak for R1 ≥ 0.5 px.  Along the centre ∂P/∂δ = M⁻¹ε P, along the
    shape ∂P/∂M = ½(M⁻¹εεᵀM⁻¹ − M⁻¹)P; by the heat equation the latter also is half the
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
    nodes, node_weights = np.polynomial.legendre.leggauss(3)
    template, gradient = 0.0, 0.0
    for node_x, weight_x in zip(nodes / 2, node_weights / 2, strict=True):
        for node_y, weight_y in zip(nodes / 2, node_weights / 2, strict=True):
            at = offsets[None] + jnp.array([node_x, node_y]) - centre[:, None]
            u1, u2 = jnp.einsum("nab,nkb->ank", frame / width[:, None, None], at)
            a1, a2 = i11 * u1 + i12 * u2, i12 * u1 + i22 * u2
            p = weight_x * weight_y * norm * jnp.exp(-0.5 * (u1 * a1 + u2 * a2))
            d11, d22, d12 = 0.5 * (a1 * a1 - i11), 0.5 * (a2 * a2 - i22), a1 * a2 - i12
            template += p
            gradient += p[:, None] * jnp.stack([a1, a2, d11 + d22, d11 - d22, d12], axis=1)
    at = offsets[None] - centre[:, None]
    u1, u2 = jnp.einsum("nab,nkb->ank", frame / width[:, None, None], at)
    moments = jnp.stack([u1, u2, (u1**2 + u2**2) / 2, (u1**2 - u2**2) / 2, u1 * u2], axis=1)
    return template, gradient, moments


def ring_background(pixels, usable, read_variance):
    """Clipped mean of the ring, its variance and the pixels' expected variance.

    Pixels further than 3.5 expected sd from the running mean go out, five times over; the
    expected sd is that of the mean itself, √(Bg + σ_read²), never of the pixel.

    Args:
        pixels: (n, K); usable: (n, K) valid ring pixels; read_variance: photons².

    Returns:
        background (n,), variance of it (n,), variance of one background pixel (n,).
    """

    def mean(keep):
        count = jnp.maximum(jnp.sum(keep, axis=1), 1)
        return jnp.sum(jnp.where(keep, pixels, 0.0), axis=1) / count, count

    def pixel_variance(background, count):
        return jnp.maximum(background, 1.0 / count) + read_variance

    # start from the median, which half the ring would have to be junk to move
    background = jnp.nanmedian(jnp.where(usable, pixels, jnp.nan), axis=1)
    background = jnp.where(jnp.isfinite(background), background, 0.0)
    count = jnp.sum(usable, axis=1)
    keep = usable
    for _ in range(5):
        sd = jnp.sqrt(pixel_variance(background, jnp.maximum(count, 1)))
        keep = usable & (jnp.abs(pixels - background[:, None]) < 3.5 * sd[:, None] + 1.0)
        background, count = mean(keep)
    variance = pixel_variance(background, count)
    enough = jnp.sum(keep, axis=1) >= 10
    return background, jnp.where(enough, variance / count, jnp.inf), variance


@partial(jax.jit, static_argnames=("shoebox", "weights"))
def _statistics(pixels, valid, contested, centre, frame, moment, expected, read_variance, *,
                shoebox: Shoebox, weights: Weights):
    offsets = jnp.asarray(shoebox.offsets, pixels.dtype)
    width = jnp.sqrt(moment[:, 0] + moment[:, 1])
    template, gradient, moments = template_and_gradient(centre, frame, moment, width, offsets)
    distance = jnp.linalg.norm(offsets[None] - centre[:, None], axis=2)
    free = valid & ~contested
    ring = free & (distance >= shoebox.ring_inner) & (distance <= shoebox.ring_outer)
    background, mean_variance, pixel_variance = ring_background(pixels, ring, read_variance)

    signal = free & (distance < shoebox.signal_radius)
    variance = pixel_variance[:, None] + expected[:, None] * template
    a = weights(template, gradient, moments, jnp.where(signal, variance, jnp.inf))
    value = jnp.einsum("nak,nk->na", a, jnp.where(signal, pixels - background[:, None], 0.0))
    derivative = jnp.concatenate([template[:, None], gradient], axis=1)
    response = jnp.einsum("nak,nbk->nab", a, derivative)
    finite_mean = jnp.where(jnp.isfinite(mean_variance), mean_variance, 0.0)
    v_background = jnp.sum(a**2, axis=2) * pixel_variance[:, None]
    v_background += jnp.sum(a, axis=2) ** 2 * finite_mean[:, None]
    v_signal = jnp.einsum("nak,nk->na", a**2, template)
    covered = jnp.sum(jnp.where(signal, template, 0.0), axis=1)
    lost = jnp.sum(jnp.where(valid & contested & (distance < shoebox.signal_radius), template, 0.0),
                   axis=1)
    covered = jnp.where(jnp.isfinite(mean_variance), covered, 0.0)
    return value, response, v_background, v_signal, background, mean_variance, width, covered, lost


def measure(pixels, valid, contested, centre, frame, moment, expected, shoebox: Shoebox,
            read_noise: float = 0.0, weights: Weights = score_weights) -> Statistics:
    """The frozen statistics of n shoeboxes at the pilot state.

    Args:
        pixels, valid, contested, centre: from :func:`cut_shoeboxes`.
        frame: (n, 2, 2) Å⁻¹/px; moment: (n, 3) pilot second moment (M11, M22, M12), Å⁻²;
        expected: (n,) J_model at the pilot, photons (never the observed one);
        read_noise: photons rms a pixel.
        weights: :func:`score_weights` or :func:`moment_weights`.
    """
    n = len(pixels)
    padded = -(-max(n, 1) // _CHUNK) * _CHUNK
    fill = np.concatenate([np.arange(n), np.zeros(padded - n, int)]) if n else None
    if fill is None:
        raise ValueError("measure: no shoeboxes")
    arguments = (pixels, valid, contested, centre, frame, moment, np.maximum(expected, 0.0))
    parts = []
    for start in range(0, padded, _CHUNK):
        rows = fill[start : start + _CHUNK]
        chunk = [jnp.asarray(np.asarray(a)[rows]) for a in arguments]
        parts.append(_statistics(*chunk, read_noise**2, shoebox=shoebox, weights=weights))
    return Statistics(*(np.concatenate([np.asarray(x) for x in c])[:n] for c in zip(*parts, strict=True)))
