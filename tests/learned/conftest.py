"""Statistics drawn from the model itself with pieces of one's own: truth that can be chosen."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import gemmi
import numpy as np
import pytest

from bayes_refine.fitting import padding
from bayes_refine.fitting.state import Geometry
from bayes_refine.geometry import predict
from bayes_refine.geometry.crystal import Crystal
from bayes_refine.geometry.detector import Beam
from bayes_refine.geometry.experiments import Still
from bayes_refine.infer import predictive_draws
from bayes_refine.loading import load_file
from bayes_refine.physics.observations import STATISTICS
from bayes_refine.physics.priors import Priors
from bayes_refine.simulation.truth import Simulation, random_rotations, square_detector

# Gaussian residuals, and errors of the model that are small and known: what a piece does is seen.
PRIORS = Priors(
    R0_inv_angstrom=5e-4,
    log_R0_sd=0.3,
    mosaic_spread_mrad=1.0,
    log_mosaic_spread_sd=0.3,
    rotation_sd_mrad=1.0,
    log_G_sd=1.0,
    B_sd=5.0,
    student_t_nu=np.inf,
)
RUN = Simulation(n_pixels=320, d_min=3.2, mosaic_rad=1e-3)
SLOTS, FAR = 256, 3.5  # reflections of an image; |ε_r| in R0_eff
# Ideal Gaussian template without background: a photon's information on place and shape.
PER_PHOTON = np.array([1.0, 0.5, 0.5, 0.25, 0.25, 0.25])
MEAN_PHOTONS, BACKGROUND = 600.0, 40.0


@pytest.fixture(scope="session")
def material():
    """``material(n, seed, **pieces)``: (model, observations, priors, true values) of n images."""
    return _material


def _material(n: int, seed: int = 0, **pieces):
    rng = np.random.default_rng(seed)
    obs, q = _geometry(n, rng)
    intensity = MEAN_PHOTONS * rng.exponential(size=q.shape) * np.exp(-5.0 * q**2)
    obs = replace(
        obs,
        response=np.broadcast_to(np.eye(6)[None, :, :, None], (n, 6, 6, SLOTS)).copy(),
        variance_background=np.broadcast_to((BACKGROUND * PER_PHOTON)[:, None], (n, 6, SLOTS)),
        variance_signal=np.broadcast_to(PER_PHOTON[:, None], (n, 6, SLOTS)),
        width=np.full((n, SLOTS), 8e-4 * np.sqrt(1.2)),
        template_moment=np.tile(np.array([0.6, 0.6, 0.0])[:, None] * 64e-8, (n, 1, SLOTS)),
        intensity_reference=intensity,
    )
    still = load_file("still")
    values = {
        "log_R0": np.log(5e-4),
        "log_bandwidth": np.log(1e-3),
        "log_mosaic_mrad": np.log(1.0),
        "detector_shift_mm": np.zeros(3),
        "log_G": 0.4 * rng.standard_normal((n, 1)),
        "B": 2.0 * rng.standard_normal((n, 1)),
        "rotation_mrad": 0.2 * rng.standard_normal((n, 1, 3)),
        "strain": 2e-4 * rng.standard_normal((n, 1, 2)),
        "log_mosaic_image_mrad": np.zeros((n, 1)),
        "mosaic_shape": np.zeros((n, 1, 5)),
        "log_R1": np.full((n, 1), np.log(8e-4)),
    }
    true = partial(still.model, errors=still.perfect, **pieces)
    once = {k: np.asarray(v)[None] for k, v in values.items()}
    (drawn,) = predictive_draws(true, once, obs, PRIORS, rng=rng)
    found = [drawn[name][1] for name in STATISTICS[:4]]
    shape = np.zeros((n, 2, SLOTS))
    obs = replace(obs, statistics=np.concatenate([np.stack(found, 1), shape], 1))
    return still.model, obs, PRIORS, values


def _geometry(n: int, rng):
    """Observations of crystals in random orientations, and 1/d."""
    hall, cell = "P 4nw 2abw", gemmi.UnitCell(*RUN.cell)
    turned = random_rotations(n, rng=rng) @ np.array(cell.frac.mat.tolist()).T
    detector = square_detector(RUN, RUN.distance_mm, RUN.beam_center_px)
    z, y = np.array([0.0, 0.0, 1.0]), np.array([0.0, 1.0, 0.0])
    beam = Beam(RUN.wavelength, z, y, RUN.polarization_fraction, RUN.bandwidth)
    stills = [
        Still(str(i), None, i, beam, detector, Crystal(A, hall), order=(i + 0.5) / n)
        for i, A in enumerate(turned)
    ]
    hkl = predict.candidate_indices(cell, stills[0].crystal.space_group, RUN.d_min)

    def near(d):
        return FAR * np.sqrt(RUN.R0**2 + (RUN.mosaic_rad / d) ** 2)

    found = [predict.predict(s, hkl, RUN.d_min, near, i) for i, s in enumerate(stills)]
    found = [p.select(np.sort(rng.permutation(len(p))[:SLOTS])) for p in found]
    p = predict.concatenate(found)
    where = padding.layout(p.image, n, SLOTS)
    geometry = Geometry(np.zeros((n, 3)), np.zeros((n, 2)), np.zeros(3))
    obs = padding.geometry_observations(stills, p, where, geometry, 1.5e-3)
    metadata = padding.metadata(stills, p, where)
    obs = replace(obs, fit=where.pad(np.ones(len(p), bool)), metadata=metadata)
    return replace(obs, bandwidth=np.array(1e-3)), np.asarray(obs.norm_q)
