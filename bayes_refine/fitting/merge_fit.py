"""True intensities at the end of a fit, from the fit's J, scales and expected variances."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import gemmi
import numpy as np

from ..geometry.experiments import Still
from ..geometry.miller import pack_hkl, resolution
from ..geometry.symmetry import asu_map, epsilon_centric
from ..merging.amplitude_prior import fit_prior
from ..merging.latent import Measured
from ..merging.mates import apart
from ..merging.merged_intensities import Intensities, together
from ..merging.observations import in_order
from ..merging.reference_scale import amplitudes_of
from ..physics.reference import Reference
from ..util.large_arrays import room, slices, taken
from .partial_sums import Partials, partials_of
from .reflections import Reflections


def observed_rows(
    r: Reflections, rows: np.ndarray, space_group: gemmi.SpaceGroup, anomalous: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The reflections ``rows`` of a fit in the order of :func:`measured_of`.

    Returns:
        rows: (n,). code: (n,) unique reflection of each. hkl: (m, 3) of these, ascending.
    """

    def keys() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for part in slices(len(rows), rows, r.hkl):
            hkl = asu_map(r.hkl[rows[part]], space_group, anomalous)[0]
            yield rows[part], pack_hkl(hkl)

    return in_order(keys)


def measured_of(
    r: Reflections,
    rows: np.ndarray,
    space_group: gemmi.SpaceGroup,
    scale_sd: np.ndarray | float,
    nu: float,
    anomalous: bool = False,
    stills: Sequence[Still] = (),
    common_sd: np.ndarray | float = 0.0,
) -> Measured:
    """The reflections ``rows`` of a fit, sorted by unique reflection.

    Variances, as functions of I, are those of counting and of the model.  The uncertainty of the
    scale g (``scale_sd``, fractional, (N,) or a number) is added to the model's fractional error.
    Frames of one crossing of the sphere are one sum, in which that error is the same for all and
    the errors of scales are independent, but for the part ``common_sd`` of ``scale_sd``.

    Args:
        nu: degrees of freedom of the residuals, ``state.tails``.
        anomalous: Friedel mates apart, I− at −h.
        stills: of the run, whose frames of a turning crystal are summed (``partial_sums``).
    """
    rows, code, hkl = observed_rows(r, rows, space_group, anomalous)
    sd = taken(np.broadcast_to(scale_sd, len(r)), rows)
    columns = {
        "J": taken(r.J, rows),
        "scale": taken(r.scale, rows),
        "variance": taken(r.variance_background, rows),
        "per_photon": taken(r.variance_signal, rows),
        "weight": np.broadcast_to(1.0, len(rows)),
    }
    fraction2 = taken(r.relative_variance, rows)
    image = taken(r.image, rows)
    if (partials := partials_of(r, rows, code, stills)) is not None:
        columns = _summed(columns, partials)
        fraction2 = partials.mean(np.sqrt(fraction2)) ** 2
        common = np.minimum(np.broadcast_to(common_sd, len(r))[rows], sd)
        own2 = partials.total(partials.share**2 * (sd**2 - common**2))
        sd = np.sqrt(own2 + partials.mean(common) ** 2)
        start = np.unique(partials.group, return_index=True)[1]
        code, image = code[start], image[start]
    fraction = room(len(code))
    for part in slices(len(code), fraction, fraction2, sd):
        fraction[part] = np.sqrt(fraction2[part] + sd[part] ** 2)
    return Measured(
        **{name: _double(values) for name, values in columns.items()},
        fraction=fraction,
        nu=nu,
        code=code,
        image=image,
        hkl=hkl,
    )


def _double(values: np.ndarray) -> np.ndarray:
    """The same numbers in double precision; in a file if they are many."""
    found = room(len(values))
    for part in slices(len(values), found, values):
        found[part] = values[part]
    return found


def _summed(columns: dict[str, np.ndarray], partials: Partials) -> dict[str, np.ndarray]:
    """Columns of the sums Σ w J; the counting variance of a sum is that of its partials, added."""
    w = partials.weight
    return {
        "J": partials.total(w * columns["J"]),
        "scale": partials.total(w * columns["scale"]),
        "variance": partials.total(w**2 * columns["variance"]),
        "per_photon": partials.mean(w * columns["per_photon"]),
        "weight": np.ones(partials.group.max() + 1),
    }


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
