"""Forecast of the agreement by shell with more images, from the posterior.

Future images are drawn from the images so far, each with the scales g and the variances of its
observations, σ² = v₀ + v₁·gI + (v₂·gI)², but with a new orientation.  An observation then falls on
any reflection of its shell, also on one that was never seen, with this reflection's chance to be
hit.  The true intensity of a reflection is drawn from its posterior, and its future mean from the
normal law of its information, added to the observations so far.  The spread of a number over such
futures is its interval, which contains the uncertainty of intensities, images and orientations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import gemmi
import numpy as np

from ..geometry.miller import find, numbered
from ..geometry.symmetry import absent, asu_keys, epsilon_centric
from ..physics.variance_of_J import variance_of_J
from ..util.large_arrays import release, room, slices, stored, taken
from ..util.output import jsonable
from .agreement import mean_intensity, pearson, shell_index, signal_share
from .latent import Measured
from .merged_intensities import Intensities
from .pieces import whole_reflections

N_DRAWS = 60  # number of futures
MANY = 6  # largest mean number of observations of a reflection that are drawn one by one
NODES = 32  # number of intensities at which the information of a shell's observations is tabulated
AT_A_TIME = 8192  # observations whose information at the nodes is in memory, some 20 MB
INTERVAL = (0.05, 0.5, 0.95)
NUMBERS = ("completeness", "mean_i_over_sigma", "cc_half")
OF_MATES = ("anomalous_completeness", "anomalous_sigma")


@dataclass(frozen=True)
class SoFar:
    """Information of n images on the m possible reflections of a resolution range, seen or not.

    Attributes:
        shell: (m,) int; −1 for reflections outside all shells.
        chance: (m,) relative chance to be hit, the number of equivalents.
        draws: (D, m) posterior draws of I; prior draws for a reflection that was not seen.
        half_intensity, half_information: (m, 2) likelihood-only mean of each half of the images,
            and its 1/σ², which is 0 for reflections that the half has not seen; or those of the two
            Friedel mates.
        image, reflection: (k,) of the observations: image from 0, row of the reflection.
        scale, background, per_photon, fraction: (k,) g, v₀, v₁ and v₂.
        efficiency: information of an estimate over Σ g²/σ², less than 1 where residuals have tails.
    """

    shell: np.ndarray
    chance: np.ndarray
    draws: np.ndarray
    half_intensity: np.ndarray
    half_information: np.ndarray
    image: np.ndarray
    reflection: np.ndarray
    scale: np.ndarray
    background: np.ndarray
    per_photon: np.ndarray
    fraction: np.ndarray
    efficiency: float = 1.0

    def information(self, of: np.ndarray, intensity: np.ndarray) -> np.ndarray:
        """1/σ_I² that observations ``of`` would have of reflections with these true intensities.

        Shapes are those of one array or broadcast.
        """
        g = self.scale[of]
        polynomial = self.background[of], self.per_photon[of], self.fraction[of] ** 2
        return self.efficiency * g**2 / variance_of_J(g * intensity, *polynomial)

    @property
    def n_images(self) -> int:
        """Number of images with an observation."""
        return len(numbered(self.image)[0])


def forecast(
    seen: SoFar, images: Sequence[int], *, rng: np.random.Generator, mates: bool = False
) -> list[dict[str, Any]]:
    """Completeness, ⟨I/σ⟩ and CC½ by shell at larger numbers of images, with 90 % intervals.

        rng = np.random.default_rng(0)
        forecast(seen, [1000, 10000], rng=rng)[0]["cc_half"]  # [low, median, high]

    Args:
        images: total numbers of images, including those so far.
        mates: ``seen`` is of the Friedel mates.  The numbers are then the share of acentric
            reflections whose two mates are observed, and the mean σ of I₊ − I₋ over the mean
            intensity of the shell.

    Returns:
        JSON-ready rows: images, shell, and the 5, 50 and 95 % quantiles of each number over as
        many futures as there are draws.
    """
    shells = np.unique(seen.shell[seen.shell >= 0])
    names, numbers_of = (OF_MATES, _of_mates) if mates else (NUMBERS, _of_halves)
    rows, tables = [], {shell: _Table.of(seen, shell) for shell in shells}
    for n in images:
        more = max(n - seen.n_images, 0)
        new = _new_information(seen, more, tables, rng=rng)
        futures = [_future(seen, *drawn, rng=rng) for drawn in zip(seen.draws, new, strict=True)]
        for shell, table in tables.items():
            here = [[x[table.rows] for x in future] for future in futures]
            numbers = np.array([numbers_of(*of_shell) for of_shell in here])
            quantiles = np.full((len(INTERVAL), len(names)), np.nan)
            known = np.isfinite(numbers).all(axis=0)
            quantiles[:, known] = np.quantile(numbers[:, known], INTERVAL, axis=0)
            named = dict(zip(names, quantiles.T.tolist(), strict=True))
            rows.append({"images": int(n), "shell": int(shell), **named})
    return jsonable(rows)


@dataclass(frozen=True)
class _Table:
    """The k observations of a shell, and true intensities at which their information is tabulated.

    Attributes:
        rows: (r,) reflections of the shell; observed: (k,) its observations.
        intensity: (NODES,) true intensities, ascending.
    """

    rows: np.ndarray
    observed: np.ndarray
    intensity: np.ndarray

    @classmethod
    def of(cls, seen: SoFar, shell: int) -> _Table:
        rows = np.flatnonzero(seen.shell == shell)
        observed = [
            part.start + np.flatnonzero(seen.shell[seen.reflection[part]] == shell)
            for part in slices(len(seen.reflection), seen.reflection)
        ]
        most = float(np.max(seen.draws[:, rows], initial=0.0))
        intensity = most * np.linspace(0, 1, NODES) ** 3
        return cls(rows, stored(np.concatenate([rows[:0], *observed])), intensity)

    def moments(
        self, seen: SoFar, number: np.ndarray, times: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Number of observations (c,) in each of c cases, and mean and sd (c, NODES) of their
        information.

        Args:
            number: (n,) of the image of each observation. times: (c, n_images) how often each
                image occurs in each case.
        """
        columns = self.observed, seen.scale, seen.background, seen.per_photon, seen.fraction
        of_image = np.zeros(times.shape[1], int)
        for part in slices(len(self.observed), self.observed, number):
            of_image += np.bincount(number[self.observed[part]], minlength=len(of_image))
        total = np.array([case @ of_image for case in times])
        powers = np.zeros((len(times), 2 * NODES))  # of information, its first and its second
        for part in slices(len(self.observed), number, *columns, size=AT_A_TIME):
            observed = self.observed[part]
            at = seen.information(observed[:, None], self.intensity)
            share = times[:, number[observed]] / np.maximum(total, 1)[:, None]
            powers += share @ np.concatenate([at, at**2], axis=1)
        mean, square = np.split(powers, 2, axis=1)
        return total, mean, np.sqrt(np.maximum(square - mean**2, 0.0))


def _future(
    seen: SoFar, true: np.ndarray, new: np.ndarray, *, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Σ I/σ² and Σ 1/σ² (m, 2) of each half in one future, with information ``new`` (m, 2)."""
    total = seen.half_information * np.nan_to_num(seen.half_intensity)
    total = total + new * true[:, None] + np.sqrt(new) * rng.standard_normal((len(true), 2))
    return total, seen.half_information + new


def _mean_and_sigma(total: np.ndarray, information: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    with np.errstate(divide="ignore", invalid="ignore"):
        return total / information, information**-0.5


def _of_halves(total: np.ndarray, information: np.ndarray) -> tuple[float, float, float]:
    """``NUMBERS`` of one shell."""
    half, sigma_half = _mean_and_sigma(total, information)
    mean, sigma = _mean_and_sigma(total.sum(axis=1), information.sum(axis=1))
    seen = np.isfinite(sigma)
    S = mean_intensity(mean[seen], sigma[seen])
    both = np.isfinite(sigma_half).all(axis=1)
    weight = signal_share(np.sqrt((sigma_half[both] ** 2).mean(axis=1)), S)
    strength = np.mean(mean[seen] / sigma[seen]) if seen.any() else np.nan
    return float(seen.mean()), float(strength), pearson(half[both, 0], half[both, 1], weight)


def _of_mates(total: np.ndarray, information: np.ndarray) -> tuple[float, float]:
    """``OF_MATES`` of one shell."""
    mean, sigma = _mean_and_sigma(total.sum(axis=1), information.sum(axis=1))
    seen, both = np.isfinite(sigma), (information > 0).all(axis=1)
    S = mean_intensity(mean[seen], sigma[seen])
    of_difference = np.sqrt((1 / information[both]).sum(axis=1))
    return float(both.mean()), float(of_difference.mean() / S) if both.any() else np.nan


def _new_information(
    seen: SoFar, more: int, tables: dict[int, _Table], *, rng: np.random.Generator
) -> np.ndarray:
    """(D, m, 2) information that ``more`` images add to each half, in each of D futures.

    Where reflections have many observations, the sum of their information is normal.
    """
    D, m = seen.draws.shape
    new = np.zeros((D, m, 2))
    # Dirichlet weights of the images: the fewer images, the more uncertain is their distribution
    names, number = map(stored, numbered(seen.image))
    halves = np.zeros((D, 2, len(names)), np.int32)
    for future in range(D):
        times = rng.multinomial(more, rng.dirichlet(np.ones(len(names))))
        halves[future] = times - times // 2, times // 2
    for table in tables.values():
        rows, observed = table.rows, table.observed
        chance = seen.chance[rows] / seen.chance[rows].sum()
        total, mean, sd = table.moments(seen, number, halves.reshape(2 * D, -1))
        for future, half in np.ndindex(D, 2):
            true, k = seen.draws[future, rows], 2 * future + half
            if total[k] > MANY * len(rows):
                hits = rng.multinomial(total[k], chance)
                middle = hits * np.interp(true, table.intensity, mean[k])
                spread = np.sqrt(hits) * np.interp(true, table.intensity, sd[k])
                found = middle + spread * rng.standard_normal(len(rows))
                # a normal sum of few hits may be negative
                new[future, rows, half] = np.maximum(found, 0.1 * middle)
            else:
                of = np.repeat(observed, halves[future, half][number[observed]])
                hit = np.searchsorted(np.cumsum(chance), rng.random(len(of)))
                hit = np.minimum(hit, len(rows) - 1)
                information = seen.information(of, true[hit])
                new[future, rows, half] = np.bincount(hit, information, len(rows))
    return new


def so_far(
    found: Intensities,
    measured: Measured,
    cell: gemmi.UnitCell,
    space_group: gemmi.SpaceGroup,
    edges: np.ndarray,
    seed: int = 0,
    mates: bool = False,
) -> SoFar:
    """The information so far, from merged intensities.

    Args:
        measured: the observations that were merged, Friedel mates together.
        edges: of shells, Å (``agreement.shell_edges``).
        seed: of the draws.
        mates: the two mates of acentric reflections in place of the halves of the images; of
            ``found`` with mates apart.
    """
    possible = gemmi.make_miller_array(cell, space_group, float(edges[-1]) * (1 - 1e-9))
    possible = possible[~absent(possible, space_group)]
    epsilon, centric = epsilon_centric(possible, space_group)
    order = np.argsort(asu_keys(possible, space_group))
    possible, epsilon, centric = possible[order], epsilon[order], centric[order]
    key = asu_keys(possible, space_group)
    shell = shell_index(cell.calculate_d_array(possible), edges)
    merged, m = found.merged, len(possible)
    row, here = find(asu_keys(merged.hkl, space_group), key)

    def spread(values: np.ndarray) -> np.ndarray:
        whole = np.zeros((m, *values.shape[1:]))
        whole[row[here]] = np.nan_to_num(values[here])
        return whole

    # reflections that were not seen have Wilson's prior with the mean of their shell
    mean = np.ones(m)
    per_epsilon = found.prior_mean / epsilon_centric(merged.hkl, space_group)[0]
    of_shell = np.where(here, shell[row], -1)
    for k in np.unique(shell):
        if np.any(of_shell == k):
            mean[shell == k] = per_epsilon[of_shell == k].mean()
    rng = np.random.default_rng(seed)
    shape = np.where(centric, 0.5, 1.0)  # of the gamma distribution of I
    draws = rng.gamma(shape, epsilon * mean / shape, (N_DRAWS, m))
    known, posterior = find(asu_keys(found.latent_hkl, space_group), key)
    draws[:, known[posterior]] = found.latent.draws(N_DRAWS, seed=seed)[:, posterior] ** 2
    intensity, sigma_of = merged.half_intensity, merged.half_sigma
    if mates:
        assert found.mates is not None
        intensity, sigma_of = found.mates.intensity, found.mates.sigma
        shell = np.where(centric, -1, shell)
    with np.errstate(divide="ignore"):
        information = spread(sigma_of**-2.0)
    at, inside = find(asu_keys(np.asarray(measured.hkl), space_group), key)
    code = np.asarray(measured.code)
    of = room(int(np.bincount(code, minlength=len(at))[inside].sum()), int)
    reflection, k = room(len(of), int), 0
    for part in slices(len(code), code, of, reflection):
        rows = part.start + np.flatnonzero(inside[code[part]])
        of[k : k + len(rows)], reflection[k : k + len(rows)] = rows, at[code[rows]]
        k += len(rows)
    seen = SoFar(
        shell=shell,
        chance=2 * len(list(space_group.operations())) / (epsilon * np.where(centric, 2, 1)),
        draws=draws,
        half_intensity=spread(intensity),
        half_information=information,
        image=taken(np.asarray(measured.image), of),
        reflection=reflection,
        scale=taken(np.asarray(measured.scale), of),
        background=taken(np.asarray(measured.variance), of),
        per_photon=taken(np.asarray(measured.per_photon), of),
        fraction=taken(np.asarray(measured.fraction), of),
    )
    ideal, expected = np.zeros(m), draws.mean(axis=0)
    for part in whole_reflections(reflection):
        here = reflection[part]
        alone = seen.information(np.arange(part.start, part.stop), expected[here])
        ideal += np.bincount(here, alone, m)
        release(*vars(seen).values())
    told = information.sum(axis=1)
    both = (ideal > 0) & (told > 0)
    return replace(seen, efficiency=float(np.median(told[both] / ideal[both])))
