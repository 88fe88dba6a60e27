"""Pixels from known truth: stills of a crystal whose every parameter is written down.

The reciprocal-lattice point (relp) is a three-dimensional Gaussian exp(−Δᵀ Σ⁻¹ Δ), variance
Σ/2.  Its frame is (ŝ, e1, e2): ŝ along s0 + q; e1 in the plane of s0 and ŝ, normal to ŝ,
towards larger 2θ; e2 = ŝ × e1.  On the Ewald sphere Δ = (−ε_r, ε_1, ε_2), for a relp outside
the sphere (ε_r > 0) has the sphere on its −ŝ side.  With θ the Bragg angle,

    q̂ = (sin θ, cos θ, 0),    m̂ = (−cos θ, sin θ, 0),    ê2 = (0, 0, 1).

Three things widen the relp, and their Σ add up:

- the crystal itself: diag(R0², a·R1², R1²/a), a the aspect ratio of the spot;
- mosaic rotations, of variance η²/2 about each axis, move it normal to q:
  (η|q|)² (m̂m̂ᵀ + ê2ê2ᵀ); with a covariance C/2 of their own, by (q×a)ᵀC(q×b) along axes a and b;
- a wavelength λ(1 + u) looks with the pixel at x̂ at q_p/(1 + u), as if the relp were at
  (1 + u)q: along q, with <u²> = b²: 2(b|q|)² q̂q̂ᵀ.

Hence, with no further approximation,

    R0_eff² = Σ_rr = R0² + (η|q| cos θ)² + R_bw²,    R_bw² = 2(b|q| sin θ)² = (bλ)²/(2d⁴)
    p       = (R0/R0_eff) exp(−ε_r²/R0_eff²)                       the volume is conserved
    <ε_1>   = k ε_r,  k = −Σ_r1/Σ_rr = |q|² sin θ cos θ (η² − 2b²)/R0_eff²
    R1_1²   = Σ_11 − Σ_r1²/Σ_rr,  Σ_11 = a R1² + (η|q| sin θ)² + 2(b|q| cos θ)²
    R1_2²   = Σ_22 = R1²/a + (η|q|)²

and with a shape of the spread <ε_2> and the correlation of ε_1 and ε_2 in the same way.

Mosaic spread moves a spot outwards when its relp is outside the sphere (k → tan θ), bandwidth
inwards (k → −cot θ).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import gemmi
import numpy as np

from .crystal import Crystal, space_group_from_hall, strain_basis
from .detector import Beam, Detector
from .errors import InputError

N_NODES = 5  # Gauss–Legendre nodes across a pixel
N_WIDTHS = 4.0  # relps and pixels further than this many R0_eff, R1 are left out: exp(−16)


@dataclass(frozen=True)
class Simulation:
    """What is simulated: the crystal, the beam, the detector and the errors of indexing.

    Attributes:
        n_images, seed: images in the run, and the seed of every random number in it.
        cell, hall: Å and degrees; Hall symbol.
        wavelength: Å.
        bandwidth: rms Δλ/λ, a fraction.
        polarization_fraction: fraction of the intensity in the horizontal plane.
        distance_mm, n_pixels, pixel_size_mm: a square detector normal to the beam.
        beam_offset_px: beam centre (x, y) less the middle of the detector.
        n_panels, panel_gap_px: 1, or 4 for 2×2 tiles with a gap between them.
        d_min: Å; there are no reflections beyond.
        R0, R1: widths of the relp along ŝ and across, Å⁻¹, exp(−x²/R²).
        aspect_ratio: of the spot, radial over tangential width.
        mosaic_rad: η, exp(−φ²/η²) about each axis, rad.
        mosaic_shape: of the spread about the three axes, ``forward.mosaic_covariance``'s numbers.
        mean_photons: expected I_ref averaged over the unique reflections, photons.
        wilson_B: fall-off of I_ref, exp(−B/(2d²)), Å².
        ln_G_sd, B_mean, B_sd: ln G ~ N(0, sd); B ~ N(mean, sd), Å².
        background_photons, background_radius_mm: per pixel b·exp(−r²/(2·radius²)), r from the
            beam centre; an infinite radius is a flat background.
        gain, read_noise: counts per photon; counts rms a pixel.
        bad_fraction: fraction of masked pixels.
        rotation_error_deg: rms angle between true and indexed orientation.
        cell_error: rms of each strain that keeps the crystal system, a fraction.
        distance_error_mm, beam_center_error_px: indexed less true.
    """

    n_images: int = 12
    seed: int = 1
    cell: tuple[float, float, float, float, float, float] = (79.3, 79.3, 37.8, 90.0, 90.0, 90.0)
    hall: str = "P 4nw 2abw"
    wavelength: float = 1.0
    bandwidth: float = 1e-3
    polarization_fraction: float = 0.99
    distance_mm: float = 110.0
    n_pixels: int = 480
    pixel_size_mm: float = 0.172
    beam_offset_px: tuple[float, float] = (0.0, 0.0)
    n_panels: int = 1
    panel_gap_px: int = 8
    d_min: float = 2.3
    R0: float = 5e-4
    R1: float = 8e-4
    aspect_ratio: float = 1.0
    mosaic_rad: float = 0.0
    mosaic_shape: tuple[float, ...] = (0.0,) * 5
    mean_photons: float = 400.0
    wilson_B: float = 15.0
    ln_G_sd: float = 0.5
    B_mean: float = 10.0
    B_sd: float = 4.0
    background_photons: float = 6.0
    background_radius_mm: float = np.inf
    gain: float = 1.0
    read_noise: float = 0.0
    bad_fraction: float = 0.0
    rotation_error_deg: float = 0.05
    cell_error: float = 1e-3
    distance_error_mm: float = 0.1
    beam_center_error_px: tuple[float, float] = (0.3, -0.2)

    @property
    def beam_center_px(self) -> np.ndarray:
        """(2,) true beam centre x, y, px from the corner of the whole detector."""
        return self.n_pixels / 2 + np.asarray(self.beam_offset_px, float)

    @property
    def dtype(self) -> np.dtype:
        """Of the counts: uint16 of a counting detector, int32 where they may be negative."""
        counting = self.gain == 1 and self.read_noise == 0
        return np.dtype(np.uint16 if counting else np.int32)

    @property
    def saturation(self) -> int:
        """Largest trusted count; the next, the largest of the type, marks a bad pixel."""
        return int(np.iinfo(self.dtype).max) - 1


@dataclass(frozen=True)
class Reference:
    """Intensities of reflections: ``hkl`` (m, 3) and ``intensity`` (m,), photons."""

    hkl: np.ndarray
    intensity: np.ndarray


@dataclass(frozen=True)
class Truth:
    """What is true of a simulated run of N images.

    Attributes:
        A: (N, 3, 3) Å⁻¹, columns a*, b*, c* in the lab.
        G, B: (N,) scale, and Debye–Waller B in Å².
        rotation_mrad, strain: (N, 3), (N, K): the error of indexing, indexed from true, as
            :func:`~bayes_refine.crystal.refined_crystal` applies them.
        beam, detector: as they are, not as indexed.
        reference, sphere: unique reflections; all their equivalents and Friedel mates.
        bad: (P, height, width) masked pixels.
    """

    A: np.ndarray
    G: np.ndarray
    B: np.ndarray
    rotation_mrad: np.ndarray
    strain: np.ndarray
    beam: Beam
    detector: Detector
    reference: Reference
    sphere: Reference
    bad: np.ndarray


@dataclass(frozen=True)
class Spots:
    """The n reflections on one image.

    Attributes:
        hkl, q: (n, 3) indices; Å⁻¹.
        frame: (n, 3, 3) rows ŝ, e1, e2.
        epsilon_r, partiality, J: (n,) Å⁻¹; 0..1; photons in the whole spot.
        center: (n, 2) mean of ε_1 and ε_2, Å⁻¹.
        width: (n, 2) R1_1 and R1_2, Å⁻¹; correlation: (n,) of ε_1 and ε_2.
    """

    hkl: np.ndarray
    q: np.ndarray
    frame: np.ndarray
    epsilon_r: np.ndarray
    partiality: np.ndarray
    J: np.ndarray
    center: np.ndarray
    width: np.ndarray
    correlation: np.ndarray


# ---------------------------------------------------------------------------------- truth


def reference_intensities(simulation: Simulation, rng: np.random.Generator) -> Reference:
    """Wilson's statistics: acentric exponential, centric χ²₁, mean ∝ ε·exp(−B/(2d²)).

    ε counts the symmetry operations that leave hkl alone; absent reflections are left out.
    The scale makes the expected mean over the unique reflections ``mean_photons``.
    """
    group = space_group_from_hall(simulation.hall)
    operations = group.operations()
    cell = gemmi.UnitCell(*simulation.cell)
    hkl = gemmi.make_miller_array(cell, group, simulation.d_min)
    centric = operations.centric_flag_array(hkl)
    epsilon = operations.epsilon_factor_without_centering_array(hkl)
    mean = epsilon * np.exp(-simulation.wilson_B * cell.calculate_1_d2_array(hkl) / 2)
    mean *= simulation.mean_photons / mean.mean()
    unit = np.where(centric, rng.chisquare(1, len(hkl)), rng.exponential(size=len(hkl)))
    return Reference(hkl=hkl, intensity=mean * unit)


def whole_sphere(hall: str, reference: Reference) -> Reference:
    """All equivalents and Friedel mates, each once, of unique reflections."""
    operations = space_group_from_hall(hall).operations().derive_symmorphic()
    rotations = np.array([op.rot for op in operations]) // gemmi.Op.DEN
    mates = np.concatenate([rotations, -rotations])
    equivalents = np.einsum("mi,rij->mrj", reference.hkl, mates).reshape(-1, 3)
    hkl, first = np.unique(equivalents, axis=0, return_index=True)
    return Reference(hkl=hkl, intensity=reference.intensity[first // len(mates)])


def square_detector(
    simulation: Simulation, distance_mm: float, beam_center_px: np.ndarray
) -> Detector:
    """One panel, or 2×2 tiles with a gap, normal to a beam along +z; x right, y down.

    Raises:
        InputError: a number of panels other than 1 and 4.
    """
    n = simulation.n_pixels
    if simulation.n_panels not in (1, 4):
        raise InputError(f"n_panels must be 1 or 4 (2×2 tiles), not {simulation.n_panels}")
    side = n if simulation.n_panels == 1 else (n - simulation.panel_gap_px) // 2
    starts = [0] if simulation.n_panels == 1 else [0, n - side]
    corners = np.array([(x, y) for y in starts for x in starts], float) - beam_center_px
    origin = np.column_stack(
        [corners * simulation.pixel_size_mm, np.full(len(corners), distance_mm)]
    )
    panels = len(corners)
    lowest = -1.0 - 10 * simulation.read_noise
    return Detector(
        origin_mm=origin,
        fast=np.tile([1.0, 0.0, 0.0], (panels, 1)),
        slow=np.tile([0.0, 1.0, 0.0], (panels, 1)),
        pixel_size_mm=np.full((panels, 2), simulation.pixel_size_mm),
        shape=np.full((panels, 2), side),
        trusted_range=np.tile([lowest, float(simulation.saturation)], (panels, 1)),
        gain=np.full(panels, simulation.gain),
        pedestal=np.zeros(panels),
        thickness_mm=np.zeros(panels),
        mu_per_mm=np.zeros(panels),
        untrusted=((),) * panels,
    )


def draw_truth(simulation: Simulation, rng: np.random.Generator) -> Truth:
    """Crystals in random orientations, their scales, and the errors of indexing them."""
    n = simulation.n_images
    B_matrix = np.array(gemmi.UnitCell(*simulation.cell).frac.mat.tolist()).T
    A = random_rotations(rng, n) @ B_matrix
    n_strains = len(strain_basis(Crystal(A=B_matrix, hall=simulation.hall)))
    detector = square_detector(simulation, simulation.distance_mm, simulation.beam_center_px)
    reference = reference_intensities(simulation, rng)
    rotation_sd_mrad = np.radians(simulation.rotation_error_deg) * 1e3 / np.sqrt(3)
    return Truth(
        A=A,
        G=np.exp(simulation.ln_G_sd * rng.standard_normal(n)),
        B=simulation.B_mean + simulation.B_sd * rng.standard_normal(n),
        rotation_mrad=rotation_sd_mrad * rng.standard_normal((n, 3)),
        strain=simulation.cell_error * rng.standard_normal((n, n_strains)),
        beam=Beam(
            wavelength=simulation.wavelength,
            s0_direction=np.array([0.0, 0.0, 1.0]),
            polarization_normal=np.array([0.0, 1.0, 0.0]),
            polarization_fraction=simulation.polarization_fraction,
            bandwidth=simulation.bandwidth,
        ),
        detector=detector,
        reference=reference,
        sphere=whole_sphere(simulation.hall, reference),
        bad=rng.random((detector.n_panels, *detector.shape[0])) < simulation.bad_fraction,
    )


def random_rotations(rng: np.random.Generator, n: int) -> np.ndarray:
    """(n, 3, 3) rotations, uniform over orientations (from unit quaternions)."""
    w, x, y, z = (quaternion := rng.standard_normal((4, n))) / np.linalg.norm(quaternion, axis=0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.moveaxis(np.array(rows), -1, 0)


# ------------------------------------------------------------------------ truth to pixels


def diffraction_frame(s0: np.ndarray, s: np.ndarray) -> np.ndarray:
    """(n, 3, 3) rows ŝ, e1, e2 of scattered wavevectors ``s`` (n, 3); see the module."""
    s_hat = s / np.linalg.norm(s, axis=1, keepdims=True)
    along = s0 / np.linalg.norm(s0)
    e1 = (s_hat @ along)[:, None] * s_hat - along
    e1 /= np.linalg.norm(e1, axis=1, keepdims=True)
    return np.stack([s_hat, e1, np.cross(s_hat, e1)], axis=1)


def relp_covariance(simulation: Simulation, q: np.ndarray, frame: np.ndarray) -> np.ndarray:
    """Σ of relps, (n, 3, 3) in Å⁻², in the frame (ŝ, e1, e2); see the module.

    Args:
        q: (n, 3) Å⁻¹; frame: (n, 3, 3), :func:`diffraction_frame`.
    """
    a, eta, b = simulation.aspect_ratio, simulation.mosaic_rad, simulation.bandwidth
    d1, d2, *below = simulation.mosaic_shape
    lower = np.diag(np.exp([d1, d2, -d1 - d2]))
    lower[[1, 2, 2], [0, 0, 1]] = np.sqrt(2) * np.array(below)
    turned = eta * np.cross(q[:, None], frame) @ lower
    norm_q = np.linalg.norm(q, axis=1)
    sine = simulation.wavelength * norm_q / 2
    along = norm_q[:, None] * np.stack([sine, np.sqrt(1 - sine**2), 0 * sine], axis=1)
    return (
        np.diag([simulation.R0**2, a * simulation.R1**2, simulation.R1**2 / a])
        + turned @ np.swapaxes(turned, 1, 2)
        + 2 * b**2 * along[:, :, None] * along[:, None, :]
    )


def predict_spots(simulation: Simulation, truth: Truth, image: int) -> Spots:
    """The reflections with |ε_r| < 4 R0_eff, J = G·B_term·p·pol·I_ref (SPEC section 2)."""
    beam, s0 = truth.beam, truth.beam.s0
    q = truth.sphere.hkl @ truth.A[image].T
    epsilon_r = np.linalg.norm(s0 + q, axis=1) - 1 / beam.wavelength
    frame = diffraction_frame(s0, s0 + q)
    sigma = relp_covariance(simulation, q, frame)
    near = epsilon_r**2 < N_WIDTHS**2 * sigma[:, 0, 0]
    q, epsilon_r, frame, sigma = q[near], epsilon_r[near], frame[near], sigma[near]
    R0_eff_2 = sigma[:, 0, 0]
    partiality = simulation.R0 / np.sqrt(R0_eff_2) * np.exp(-(epsilon_r**2) / R0_eff_2)
    B_term = np.exp(-truth.B[image] * np.sum(q**2, axis=1) / 4)
    square = sigma[:, [1, 2], [1, 2]] - sigma[:, 0, 1:] ** 2 / R0_eff_2[:, None]
    f, s_hat = beam.polarization_fraction, frame[:, 0]
    cos_2theta_2 = (s_hat @ beam.s0_direction) ** 2
    normal_2 = (s_hat @ beam.polarization_normal) ** 2
    pol = (1 - 2 * f) * (1 - normal_2) + f * (1 + cos_2theta_2)
    return Spots(
        hkl=truth.sphere.hkl[near],
        q=q,
        frame=frame,
        epsilon_r=epsilon_r,
        partiality=partiality,
        J=truth.G[image] * B_term * partiality * pol * truth.sphere.intensity[near],
        center=-sigma[:, 0, 1:] * (epsilon_r / R0_eff_2)[:, None],
        width=np.sqrt(square),
        correlation=(sigma[:, 1, 2] - sigma[:, 0, 1] * sigma[:, 0, 2] / R0_eff_2)
        / np.sqrt(square[:, 0] * square[:, 1]),
    )


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
    simulation: Simulation, rng: np.random.Generator, truth: Truth, image: int
) -> tuple[np.ndarray, Spots]:
    """One still: Poisson photons of background and spots, then gain and read-out noise.

    Returns:
        counts: (P, height, width) of ``simulation.dtype``; bad pixels hold its largest value.
        spots: what was put on it.
    """
    spots = predict_spots(simulation, truth, image)
    expected = background_photons(simulation, truth.detector)
    expected = expected + spot_photons(truth.detector, truth.beam, spots)
    counts = simulation.gain * rng.poisson(expected)
    counts = counts + simulation.read_noise * rng.standard_normal(counts.shape)
    counts = np.minimum(np.rint(counts), simulation.saturation).astype(simulation.dtype)
    return np.where(truth.bad, np.iinfo(simulation.dtype).max, counts), spots
