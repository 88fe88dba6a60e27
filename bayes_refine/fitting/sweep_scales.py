"""Scale and B along sweeps, with the intensities integrated out (docs/theory.md, Sweeps).

Without a reference each round fits frames to the intensities that their neighbours say.  A slow
drift of scale and B along the sweep would stay as it is, round after round, and its uncertainty
would not be seen.  After each round the smooth G and B of all sweeps are therefore moved to the
mode of ``merging.joint_scales``, and the frames with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from .. import infer
from ..geometry.experiments import Still
from ..infer.density import place_of
from ..merging.joint_scales import joint_scales
from ..physics.priors import Priors
from .crosswise_reference import prior_of
from .measure_run import MeasuredRun
from .merge_fit import measured_of, observed_rows
from .over_batches import all_reflections
from .problem import Run
from .reflections import Reflections
from .state import State, tails

SITES, NUMBERS = ("log_G", "B"), ("log_G_sweep", "B_sweep")
GAUGE = 0.1  # of the sd of a common scale and B, which no intensity depends on, that is left


@dataclass(frozen=True)
class SweepScales:
    """A change of the smooth scale and B of sweeps.

    Attributes:
        smooth: (n, r) weights of the r numbers in each of n images.
        change: (2, r) of the numbers of ln G and of B. covariance: (2r, 2r) of these numbers.
    """

    smooth: np.ndarray
    change: np.ndarray
    covariance: np.ndarray

    def moved(self, state: State) -> State:
        """The state after the change, which the images follow."""
        found = dict(state)
        for site, numbers, change in zip(SITES, NUMBERS, self.change, strict=True):
            found[numbers] = state[numbers] + change
            found[site] = state[site] + (self.smooth @ change).reshape(np.shape(state[site]))
        return found

    def of_fit(self, fit: infer.Fit) -> infer.Fit:
        """The fit after the change; scale and B of an image follow the smooth ones wholly.

        The intensities to which the image was fitted would follow too.
        """
        columns = [np.arange(len(fit.shared))[place_of(fit.sites, name)[1]] for name in NUMBERS]
        both = np.concatenate(columns)
        image, shared = fit.image.copy(), fit.shared.copy()
        follow = np.zeros_like(fit.coupling)
        for site, of_shared, change in zip(SITES, columns, self.change, strict=True):
            at = place_of(fit.sites, site)[1].start
            image[:, at] += self.smooth @ change
            shared[of_shared] += change
            follow[:, at, of_shared] = self.smooth
        coupling = fit.coupling.copy()
        coupling[:, :, both] = -(fit.image_precision @ follow)[:, :, both]
        old = fit.shared_covariance
        slope = np.linalg.solve(old[np.ix_(both, both)], old[both])  # of the others given these
        wider = slope.T @ (self.covariance - old[np.ix_(both, both)]) @ slope
        return replace(
            fit, image=image, shared=shared, coupling=coupling, shared_covariance=old + wider
        )


def joint_sweep_scales(
    run: Run, measurements: MeasuredRun, state: State, priors: Priors
) -> SweepScales | None:
    """The most probable smooth scale and B, with the intensities integrated out.

    Their means over the images stay: without a reference, a common scale and B are the
    intensities' own.  None where there are no sweeps, and where a reference gives the intensities.
    """
    smooth = weights_of(run.stills)
    if smooth is None or run.crosswise is None or not set(NUMBERS) <= set(state):
        return None
    r = all_reflections(run, measurements, state, priors)
    rows, group = r.where(lambda some: some.informs), run.ref.space_group
    measured = measured_of(r, rows, group, 0.0, tails(state, priors))
    rows, _, _ = observed_rows(r, rows, group)
    starts = run.stills[0].sweep.starts  # type: ignore[union-attr]
    mean, sd = _prior(state, starts, measurements.plan.log_G0 or 0.0, priors)
    prior = prior_of(np.asarray(measured.hkl), run.crosswise.reference)
    found = joint_scales(measured, prior, design_of(r, rows, smooth), mean, sd)
    usable = measurements.counts > 0
    common = np.outer(starts, smooth[usable].mean(axis=0))
    one = np.eye(len(starts))
    pin = np.kron(np.eye(2), one - common)
    loose = np.kron(np.eye(2), one - (1 - GAUGE) * common)
    change = (pin @ found.x).reshape(2, -1)
    return SweepScales(smooth, change, loose @ found.covariance @ loose.T)


def weights_of(stills: Sequence[Still]) -> np.ndarray | None:
    """(n, r) weights of the smooth numbers of all sweeps in each image; None without sweeps."""
    places = [still.sweep for still in stills if still.sweep is not None]
    return np.stack([place.smooth for place in places]) if places else None


def design_of(r: Reflections, rows: np.ndarray, smooth: np.ndarray) -> np.ndarray:
    """(k, 2r) change of ln g of some reflections with the smooth numbers of ln G and B."""
    of_image = smooth[r.image[rows]]
    return np.concatenate([of_image, -of_image / (4 * r.d[rows, None] ** 2)], axis=1)


def smooth_scale_sd(r: Reflections, fit: infer.Fit, stills: Sequence[Still]) -> np.ndarray | float:
    """(N,) sd of ln g by the smooth scale and B alone, which frames of a crossing share."""
    smooth, sites = weights_of(stills), {site.name for site in fit.sites}
    if smooth is None or not set(NUMBERS) <= sites:
        return 0.0
    columns = np.concatenate(
        [np.arange(len(fit.shared))[place_of(fit.sites, name)[1]] for name in NUMBERS]
    )
    size = smooth.shape[1]
    covariance = fit.shared_covariance[np.ix_(columns, columns)].reshape(2, size, 2, size)
    of_image = np.einsum("ni,aibj,nj->nab", smooth, covariance, smooth)[r.image]
    k = 1 / (4 * r.d**2)
    variance = of_image[:, 0, 0] - 2 * k * of_image[:, 0, 1] + k**2 * of_image[:, 1, 1]
    return np.sqrt(np.maximum(variance, 0.0))


def _prior(state: State, starts, log_G0: float, priors: Priors) -> tuple[np.ndarray, np.ndarray]:
    """Mean and sd of the prior of the changes from the state, of ln G and then of B."""
    means, sds = [], []
    for numbers, first, change_sd in (
        ("log_G_sweep", (log_G0, priors.log_G_sd), priors.log_G_change_sd),
        ("B_sweep", (priors.B_mean, priors.B_sd), priors.B_change_sd),
    ):
        means.append(np.where(starts > 0, first[0], 0.0) - state[numbers])
        sds.append(np.where(starts > 0, first[1], change_sd))
    return np.concatenate(means), np.concatenate(sds)
