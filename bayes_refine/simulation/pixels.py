"""From spots to the counts of a detector, by quadrature of the exact ray geometry."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..geometry.detector import Beam, Detector
from .errors import with_errors
from .spots import N_WIDTHS, Spots, SpotsOf, predict_spots
from .truth import SimulatedTruth, Simulation

N_NODES = 5  # Gauss–Legendre nodes across a pixel


def spot_photons(detector: Detector, beam: Beam, spots: Spots) -> np.ndarray:
    """Expected photons of all spots, (P, height, width), no background.

    J ∫ exp(−(u_1² − 2ρ u_1 u_2 + u_2²)/(1 − ρ²))/(π R1_1 R1_2 √(1 − ρ²)) dε_1 dε_2 over each pixel,
    u_i = (ε_i − <ε_i>)/R1_i, by Gauss–Legendre quadrature of the exact ray geometry: ε_i =
    e_i·q_p = e_i·x̂/λ, and
    dε_1 dε_2 = (x̂·ŝ)/λ² dΩ, dΩ = |x·n|/|x|³ dA.  What falls off a panel is lost.
    """
    photons = np.zeros((detector.n_panels, *detector.shape[0]))
    height, width = detector.shape[0]
    for p in range(detector.n_panels):
        for part, ix, iy in _boxes(detector, p, beam, spots):
            rows, columns = np.broadcast_arrays(iy[:, :, None], ix[:, None, :])
            on = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
            share = _pixel_shares(detector, p, beam, spots, part, ix, iy)
            share *= spots.J[part, None, None]
            np.add.at(photons[p], (rows[on], columns[on]), share[on])
    return photons


def _boxes(
    detector: Detector, p: int, beam: Beam, spots: Spots, chunk: int = 256
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Spots that touch panel p, some at a time: which (n,), their pixels ix, iy (n, box)."""
    axes = np.stack([detector.fast[p], detector.slow[p], detector.origin_mm[p]])
    size, shape = detector.pixel_size_mm[p], detector.shape[p]
    away = np.einsum("na,nai->ni", spots.center, spots.frame[:, 1:])
    ray = spots.frame[:, 0] + beam.wavelength * away
    v = ray @ np.linalg.inv(axes)  # the ray meets the panel's plane at ray/v[2]
    with np.errstate(divide="ignore", invalid="ignore"):
        xy = v[:, :2] / v[:, 2:] / size
        pixel = size.min() * np.abs(ray @ detector.normal[p]) * v[:, 2] / beam.wavelength  # Å⁻¹
        reach = N_WIDTHS * spots.width.max(axis=1, keepdims=True) / pixel[:, None]
        touches = np.all((xy > -reach) & (xy < shape[::-1] + reach), axis=1)
    hits = np.flatnonzero((v[:, 2] > 0) & touches)
    for part in np.array_split(hits, -(-len(hits) // chunk)) if len(hits) else ():
        half = int(np.ceil(reach[part].max()))
        corner = np.floor(xy[part]).astype(int)[:, :, None] + np.arange(-half, half + 1)
        yield part, corner[:, 0], corner[:, 1]


def _pixel_shares(
    detector: Detector,
    p: int,
    beam: Beam,
    spots: Spots,
    part: np.ndarray,
    ix: np.ndarray,
    iy: np.ndarray,
) -> np.ndarray:
    """Share of each spot's photons in each pixel of its box, (n, box, box), slow then fast."""
    fast, slow, origin = detector.fast[p], detector.slow[p], detector.origin_mm[p]
    size, wavelength = detector.pixel_size_mm[p], beam.wavelength
    nodes, weights = np.polynomial.legendre.leggauss(N_NODES)
    n, box = ix.shape
    x, y = (  # mm, (n, box·nodes)
        ((pixel[:, :, None] + (1 + nodes) / 2) * mm).reshape(n, -1)
        for pixel, mm in ((ix, size[0]), (iy, size[1]))
    )

    def along(direction: np.ndarray) -> np.ndarray:
        """Lab position of the nodes along unit vectors (n, 3), mm: (n, slow, fast)."""
        of_x, of_y = x * (direction @ fast)[:, None], y * (direction @ slow)[:, None]
        return (direction @ origin)[:, None, None] + of_y[:, :, None] + of_x[:, None, :]

    x_s, x_1, x_2 = (along(spots.frame[part, i]) for i in range(3))
    r = np.sqrt(x_s**2 + x_1**2 + x_2**2)
    center_1, center_2 = spots.center[part, :, None, None].swapaxes(0, 1)
    width_1, width_2 = spots.width[part, :, None, None].swapaxes(0, 1)
    rho = spots.correlation[part, None, None]
    u_1 = (x_1 / (r * wavelength) - center_1) / width_1
    u_2 = (x_2 / (r * wavelength) - center_2) / width_2
    density = np.exp(-(u_1**2 - 2 * rho * u_1 * u_2 + u_2**2) / (1 - rho**2))
    density /= np.pi * width_1 * width_2 * np.sqrt(1 - rho**2)
    density *= x_s * np.abs(origin @ detector.normal[p]) / (wavelength**2 * r**4)
    density = density.reshape(n, box, N_NODES, box, N_NODES)
    return np.einsum("nisjt,s,t->nij", density, weights, weights) * size.prod() / 4


def background_photons(simulation: Simulation, detector: Detector) -> np.ndarray:
    """Expected background, (P, height, width), photons a pixel."""
    height, width = detector.shape[0]
    x, y = np.arange(width) + 0.5, np.arange(height) + 0.5
    x_mm = detector.origin_mm[:, 0, None, None] + x * simulation.pixel_size_mm
    y_mm = detector.origin_mm[:, 1, None, None] + y[:, None] * simulation.pixel_size_mm
    r_2 = (x_mm**2 + y_mm**2) / (2 * simulation.background_radius_mm**2)
    return simulation.background_photons * np.exp(-r_2)


def simulate_image(
    simulation: Simulation,
    truth: SimulatedTruth,
    image: int,
    spots_of: SpotsOf = predict_spots,
    *,
    rng: np.random.Generator,
) -> tuple[np.ndarray, Spots]:
    """One still: Poisson photons of background and spots, then gain and read-out noise.

    Args:
        spots_of: what is on an image, for physics other than ``predict_spots``.

    Returns:
        counts: (P, height, width) of ``simulation.dtype``; bad pixels hold its largest value.
        spots: what was put on it.
    """
    spots = with_errors(simulation, spots_of(simulation, truth, image), rng=rng)
    expected = background_photons(simulation, truth.detector)
    expected = expected + spot_photons(truth.detector, truth.beam, spots)
    counts = simulation.gain * rng.poisson(expected)
    counts = counts + simulation.read_noise * rng.standard_normal(counts.shape)
    counts = np.minimum(np.rint(counts), simulation.saturation).astype(simulation.dtype)
    return np.where(truth.bad, np.iinfo(simulation.dtype).max, counts), spots
