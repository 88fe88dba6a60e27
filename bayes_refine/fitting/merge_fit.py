"""True intensities at the end of a fit, from the fit's J, scales and expected variances."""

from __future__ import annotations

import gemmi
import jax.numpy as jnp
import numpy as np

from ..geometry.miller import pack_hkl, resolution, unique_hkl
from ..geometry.symmetry import asu_map, epsilon_centric
from ..merging.amplitude_prior import fit_prior
from ..merging.latent import Measured
from ..merging.mates import apart
from ..merging.merged_intensities import Intensities, together
from ..merging.reference_scale import amplitudes_of
from ..physics.reference import Reference
from .reflections import Reflections


def observed_rows(
    r: Reflections, rows: np.ndarray, space_group: gemmi.SpaceGroup, anomalous: bool = False
) -> np.ndarray:
    """The reflections ``rows`` of a fit in the order of :func:`measured_of`."""
    hkl = asu_map(r.hkl[rows], space_group, anomalous)[0]
    return rows[np.argsort(pack_hkl(hkl), kind="stable")]


def measured_of(
    r: Reflections,
    rows: np.ndarray,
    space_group: gemmi.SpaceGroup,
    scale_sd: np.ndarray | float,
    nu: float,
    anomalous: bool = False,
) -> Measured:
    """The reflections ``rows`` of a fit, sorted by unique reflection.

    Variances, as functions of I, are those of counting and of the model.  The uncertainty of the
    scale g (``scale_sd``, fractional, (N,) or a number) is added to the model's fractional error.

    Args:
        nu: degrees of freedom of the residuals, ``state.tails``.
        anomalous: Friedel mates apart, I− at −h.
    """
    rows = observed_rows(r, rows, space_group, anomalous)
    hkl = asu_map(r.hkl[rows], space_group, anomalous)[0]
    first, code = unique_hkl(hkl)
    sd = np.broadcast_to(scale_sd, len(r))[rows]
    columns = {
        "intensity": r.J[rows],
        "scale": r.scale[rows],
        "variance": r.variance_background[rows],
        "per_photon": r.variance_signal[rows],
        "fraction": np.sqrt(r.relative_variance[rows] + sd**2),
        "weight": np.ones(len(rows)),
    }
    return Measured(
        **{name: jnp.asarray(values, float) for name, values in columns.items()},
        nu=nu,
        code=jnp.asarray(code),
        image=jnp.asarray(r.image[rows]),
        hkl=jnp.asarray(hkl[first]),
    )


def intensities_of_fit(
    measured: Measured,
    cell: gemmi.UnitCell,
    space_group: gemmi.SpaceGroup,
    reference: Reference | None,
    free_fraction: float,
    seed: int,
    anomalous: bool = False,
) -> Intensities:
    """Likelihood-only and posterior intensities at a fit's scales.

    Without a reference the prior is Wilson's; with one it is the double-Wilson prior, except in the
    free set.  The prior's own numbers have the greatest marginal likelihood.  With ``anomalous``,
    for which ``measured`` has the mates apart, it is the bivariate Wilson prior of Friedel mates.
    """
    hkl = np.asarray(measured.hkl)
    d = resolution(hkl, cell)
    informing = None if anomalous else reference
    amplitudes = amplitudes_of(informing, hkl, d, cell, free_fraction, seed)
    prior = fit_prior(measured, d, *epsilon_centric(hkl, space_group), amplitudes)
    estimate = apart if anomalous else together
    return estimate(measured, prior, cell, space_group, seed)
