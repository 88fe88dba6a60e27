"""The observations of a scaling model, integrated stills by unique reflection, and its priors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import jax
import numpy as np
from jax import Array

from ..geometry.miller import pack_hkl, resolution, unpack_hkl
from ..geometry.symmetry import asu_map, epsilon_centric
from ..io.unmerged import Unmerged
from ..physics.priors import number
from ..physics.reference import Reference, wilson_mean
from ..physics.true_intensities import Nodes
from ..util.errors import InputError
from ..util.large_arrays import release, room, slices, stored, taken, trim
from . import reference_scale
from .amplitude_prior import LOG_BETA_MEAN, LOG_BETA_SD, N_KNOTS, knot_weights
from .pieces import OBSERVED, rows_of_images
from .reference_scale import ReferenceAmplitudes, amplitudes_of

# Of 40 reflections with 200 Student-t observations (ν = 3), the worst ln Z is off by 2e-3 while
# scales move; with normal residuals by far less.
FIT_NODES, FIT_DROP = 16, 8.0
ENOUGH = 1 << 20  # observations for first estimates
MEAN_PARTIALITY = 0.3  # a guess, for a first Σ from the mean observation


@dataclass(frozen=True)
class ScalingPriors:
    """Priors of the scales of integrated stills; ``log`` priors are normal in ln.

    Each field states the range of values that ``physics.priors.check`` accepts.

    Attributes:
        R0_inv_angstrom, log_R0_sd: width of the partiality curve at low resolution, Å⁻¹.
        mosaic_spread_mrad, log_mosaic_spread_sd: η, its growth with |q|.
        dispersion_angstrom, log_dispersion_sd: bλ/√2 for the rms bandwidth b, growth with |q|².
        log_width_image_sd: of ln of the width from image to image.
        log_G_sd: ln G of an image about its mean intensity. B_sd: of B about the mean B, Å².
        model_error, log_model_error_sd: fractional error of g·I.
        sigma_factor, log_sigma_factor_sd: factor on the file's sigmas.
        student_t_nu, log_student_t_nu_sd: degrees of freedom of the residuals.
        log_Sigma_sd: ln Σ(d) about the mean observed intensity, each knot.
        log_beta_mean, log_beta_sd: of ln β(d) about the same, each knot (model latent_reference:
            the variance of F about α·F_ref).
        reference_log_k_sd, reference_B_sd, reference_direction_sd: of α (B in Å²), as in
            ``reference_scale``.
        reference_anisotropy_sd, solvent_sd, solvent_B, log_solvent_B_sd: of α (anisotropy and B in
            Å²), as in ``reference_scale``.
    """

    R0_inv_angstrom: float = number(1e-4, 1e-7, 0.1, "Å⁻¹")
    log_R0_sd: float = number(1.5, 1e-4, 20)
    mosaic_spread_mrad: float = number(0.5, 1e-4, 1e3, "mrad")
    log_mosaic_spread_sd: float = number(1.5, 1e-4, 20)
    dispersion_angstrom: float = number(1.5e-3, 1e-8, 1, "Å")
    log_dispersion_sd: float = number(1.5, 1e-4, 20)
    log_width_image_sd: float = number(0.3, 1e-4, 20)
    log_G_sd: float = number(2.0, 1e-4, 20)
    B_sd: float = number(20.0, 0.001, 1e4, "Å²")
    model_error: float = number(0.3, 1e-5, 10)
    log_model_error_sd: float = number(1.0, 1e-4, 20)
    sigma_factor: float = number(1.5, 0.001, 1e3)
    log_sigma_factor_sd: float = number(1.0, 1e-4, 20)
    student_t_nu: float = number(5.0, 0.5, 1e6)
    log_student_t_nu_sd: float = number(0.5, 1e-4, 20)
    log_Sigma_sd: float = number(5.0, 1e-4, 20)
    log_beta_mean: float = number(LOG_BETA_MEAN, -20, 20)
    log_beta_sd: float = number(LOG_BETA_SD, 1e-4, 20)
    reference_log_k_sd: float = number(reference_scale.LOG_K_SD, 1e-4, 20)
    reference_B_sd: float = number(reference_scale.B_SD, 1e-3, 1e4, "Å²")
    reference_direction_sd: float = number(reference_scale.DIRECTION_SD, 1e-4, 20)
    reference_anisotropy_sd: float = number(reference_scale.ANISOTROPY_SD, 1e-3, 1e4, "Å²")
    solvent_sd: float = number(reference_scale.SOLVENT_SD, 1e-4, 20)
    solvent_B: float = number(reference_scale.SOLVENT_B, 1, 1e4, "Å²")
    log_solvent_B_sd: float = number(reference_scale.LOG_SOLVENT_B_SD, 1e-4, 20)


@dataclass(frozen=True)
class IntegratedObservations:
    """The observations of a scaling model: n observations of m reflections, by reflection.

    Attributes:
        J, sigma, weight: (n,) on the file's scale; weight 0 for rows that are left out.
        image, code: (n,) int, the image and the unique reflection (ascending).
        norm_q, excitation_error: (n,) Å⁻¹.
        hkl: (m, 3) int32. norm_q_unique: (m,) Å⁻¹. log_epsilon: (m,). centric: (m,) bool.
        reference: reference amplitudes of the m reflections.
        knot_weight: (m, K) ln Σ(d) = knot_weight @ ln Σ at K knots, linear in 1/d² between.
        departure_sd: (K,) of ln Σ at knots where no reference informs.
        log_G0: (n_images,) and log_Sigma0 (K,), first estimates.
        follows: (m,) w, by how much the posterior of F follows the prior's scale: 1 where the data
            say nothing, 0 where they determine F.
        nodes: of the quadrature, over F·(ε·Σ(d))^(−w/2), so that the nodes of F move with their
            posterior as Σ(d) changes; renewed, with w, as scales change.
        n_images: static.
    """

    J: Array
    sigma: Array
    weight: Array
    image: Array
    code: Array
    norm_q: Array
    excitation_error: Array
    hkl: Array
    norm_q_unique: Array
    log_epsilon: Array
    centric: Array
    reference: ReferenceAmplitudes
    knot_weight: Array
    departure_sd: Array
    log_G0: Array
    log_Sigma0: Array
    follows: Array
    nodes: Nodes
    n_images: int


for _cls, _meta in ((ScalingPriors, ()), (IntegratedObservations, ("n_images",))):
    jax.tree_util.register_dataclass(
        _cls, [f.name for f in fields(_cls) if f.name not in _meta], list(_meta)
    )


def prepare(
    data: Unmerged,
    d_min: float = 0.0,
    reference: Reference | None = None,
    free_fraction: float = 0.05,
    seed: int = 0,
    n_knots: int = N_KNOTS,
    anomalous: bool = False,
) -> IntegratedObservations:
    """Sort a run's observations by unique reflection, and look up the reference of each.

    Where the file has no excitation errors they are taken as zero, so that p depends on resolution
    alone.  The free set is chosen without looking at data or reference.

    Args:
        d_min: Å; observations beyond are left out.
        reference: for the model ``latent_reference``; its scale is fitted.
        n_knots: of ln Σ(d).
        anomalous: Friedel mates are reflections of their own, I− at −h (``symmetry.asu_map``).

    Raises:
        InputError: no observation is within the resolution limit.
    """
    rows, code, hkl = by_reflection(data, d_min, anomalous)
    if not len(rows):
        best = resolution(data.hkl_asu, data.cell).min()
        raise InputError(f"{data.source}: no reflection to {d_min:g} Å; the best is {best:.2f}")
    d = resolution(hkl, data.cell)
    q2 = 1 / d**2
    epsilon, centric = epsilon_centric(hkl, data.space_group)
    knot_weight, knots = knot_weights(q2**-0.5, n_knots)
    J, image = taken(data.J, rows), taken(data.image, rows)
    some = slice(None, None, max(1, len(J) // ENOUGH))
    mean_J = wilson_mean(d[code[some]], J[some] / epsilon[code[some]], np.r_[d, knots])
    at_knots = mean_J[len(d) :]
    n_images = int(data.image.max()) + 1
    share = _over_expected((J, image, code), mean_J[: len(d)] * epsilon, n_images)
    log_Sigma0 = np.log(at_knots / MEAN_PARTIALITY)
    amplitudes = amplitudes_of(reference, hkl, q2**-0.5, data.cell, free_fraction, seed)
    amplitudes = amplitudes.starting_from(log_Sigma0, knots)
    empty: Any = np.zeros((len(hkl), FIT_NODES))
    arrays: dict[str, Any] = dict(
        J=J,
        sigma=taken(data.sigma, rows),
        weight=stored(np.ones(len(rows))),
        image=image,
        code=code,
        norm_q=taken(np.sqrt(q2), code),
        excitation_error=room(len(rows))
        if data.excitation_error is None
        else taken(data.excitation_error, rows),
        hkl=hkl,
        norm_q_unique=np.sqrt(q2),
        log_epsilon=np.log(epsilon),
        centric=centric,
        knot_weight=knot_weight,
        departure_sd=amplitudes.departure_sd(knot_weight),
        log_G0=np.log(np.maximum(share, 0.05)),
        log_Sigma0=log_Sigma0,
        follows=np.ones(len(hkl)),
        nodes=Nodes(empty, empty),
    )
    trim()
    return IntegratedObservations(**arrays, reference=amplitudes, n_images=n_images)


def _over_expected(
    observed: tuple[np.ndarray, np.ndarray, np.ndarray], expected: np.ndarray, n_images: int
) -> np.ndarray:
    """(n_images,) sum of J over the sum of what is expected (m,) of the same reflections.

    Args:
        observed: J, image and reflection of each observation, (n,).
    """
    J, image, code = observed
    found = np.zeros((2, n_images))
    for part in slices(len(J), *observed):
        for k, values in enumerate((J[part], expected[code[part]])):
            found[k] += np.bincount(image[part], values, n_images)
    return found[0] / np.maximum(found[1], 1e-30)


def of_images(obs: IntegratedObservations, images: np.ndarray) -> IntegratedObservations:
    """The observations of some images (k,), ascending, with all reflections."""
    place = np.full(obs.n_images, -1)
    place[images] = np.arange(len(images))
    rows = rows_of_images(np.asarray(obs.image), place >= 0)
    columns: dict[str, Any] = {
        name: taken(np.asarray(getattr(obs, name)), rows) for name in OBSERVED
    }
    columns["image"] = stored(place[columns["image"]])
    return replace(
        obs,
        **columns,
        log_G0=np.asarray(obs.log_G0)[images],
        n_images=len(images),
    )


def by_reflection(
    data: Unmerged, d_min: float = 0.0, anomalous: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of ``data`` to d_min (Å) in the order of :class:`IntegratedObservations`, as
    :func:`in_order`."""
    return in_order(lambda: _keys(data, d_min, anomalous))


def in_order(
    parts: Callable[[], Iterator[tuple[np.ndarray, np.ndarray]]],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sort rows by reflection, a slice at a time.

    Counts the rows of each reflection, and puts slices of rows where they belong.

    Args:
        parts: called twice for slices of rows: their numbers and the keys of their reflections
            (``miller.pack_hkl``).

    Returns:
        rows: (n,) those of a reflection in the order of the slices.
        code: (n,) reflection of each. hkl: (m, 3) of the reflections, ascending.
    """
    known = [np.unique(keys, return_counts=True) for _, keys in parts()]
    all_keys, place = np.unique(np.concatenate([keys for keys, _ in known]), return_inverse=True)
    counts = np.bincount(place, np.concatenate([count for _, count in known]), len(all_keys))
    ends = np.cumsum(counts.astype(int))
    n = int(ends[-1]) if len(ends) else 0
    rows, code, begin = room(n, int), room(n, int), np.r_[0, ends[:-1]]
    for mine, keys in parts():
        order = np.argsort(keys, kind="stable")
        of = np.searchsorted(all_keys, keys[order])
        here = np.bincount(of, minlength=len(all_keys))
        before = np.cumsum(here) - here
        rows[np.arange(len(of)) + (begin - before)[of]] = mine[order]
        begin += here
        release(rows)
    for part in slices(n, code):
        code[part] = np.searchsorted(ends, np.arange(part.start, part.stop), side="right")
    return rows, code, unpack_hkl(all_keys)


def _keys(data: Unmerged, d_min: float, anomalous: bool) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Slices of rows to d_min (Å), and the keys of their reflections.

    With ``anomalous``, Friedel mates are reflections of their own.
    """
    for part in slices(len(data), data.hkl, data.hkl_asu):
        hkl = data.hkl_asu[part]
        near = np.flatnonzero(resolution(hkl, data.cell) >= d_min * (1 - 1e-6))
        if anomalous:
            hkl = asu_map(data.hkl[part], data.space_group, True)[0]
        yield part.start + near, pack_hkl(hkl[near])
