"""Whether draws can be believed: numbers from ArviZ, 0.x or 1.x, and one sentence."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import numpy as np

RHAT = 1.01  # Vehtari et al. 2021: above this chains have not mixed
ESS_PER_CHAIN = 100  # the same: below this R-hat and ESS are themselves uncertain
KHAT = 0.7  # Vehtari et al. 2024: above this importance weights are not to be used
BFMI = 0.3  # Betancourt 2016: below this the energy is explored too slowly


def psis(log_weights: np.ndarray, relative_efficiency: float = 1.0):
    """Pareto-smoothed importance weights, ArviZ's.

    Args:
        log_weights: (..., S), S draws.
        relative_efficiency: ESS/S of the draws.

    Returns:
        ln of the normalised smoothed weights (..., S), and Pareto k-hat (...).
    """
    log_weights = np.asarray(log_weights, float)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # large k-hat: it is returned
        import arviz

        if hasattr(arviz, "psislw"):
            smoothed, khat = arviz.psislw(log_weights.copy(), relative_efficiency)
        else:
            from arviz_stats.base import array_stats

            # ArviZ 1.x takes ln p of left-out data, which is minus the log weights
            smoothed, khat = array_stats.psislw(-log_weights, relative_efficiency)
    return np.asarray(smoothed), np.asarray(khat)


def chain_summary(draws: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """Split R-hat, bulk and tail ESS by site, each in the site's shape.

    Args:
        draws: (chain, draw, ...) by site.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import arviz

        data = arviz.convert_to_dataset({k: np.asarray(v, float) for k, v in draws.items()})
        found = {
            "rhat": arviz.rhat(data),
            "ess_bulk": arviz.ess(data, method="bulk"),
            "ess_tail": arviz.ess(data, method="tail"),
        }
    return {name: {k: np.asarray(v[name]) for k, v in found.items()} for name in draws}


def bfmi(energy: np.ndarray) -> np.ndarray:
    """(chain,) Bayesian fraction of missing information of energies (chain, draw)."""
    return np.mean(np.diff(energy, axis=1) ** 2, axis=1) / np.var(energy, axis=1)


def extreme(summary: Mapping[str, Mapping[str, np.ndarray]], what: str) -> tuple[str, float]:
    """The site with the worst ``what`` (largest R-hat, smallest ESS), and its value."""
    worst, best = (np.nanmax, max) if what == "rhat" else (np.nanmin, min)
    values = {k: float(worst(v[what])) for k, v in summary.items() if np.size(v[what])}
    name = best(values, key=lambda k: values[k])
    return name, values[name]


def judge_chains(
    summary: Mapping[str, Mapping[str, np.ndarray]],
    divergences: int,
    saturated: int,
    energy: np.ndarray,
) -> tuple[bool, str]:
    """Whether the draws of a run of NUTS can be believed, and one sentence that says why.

    Args:
        summary: :func:`chain_summary`. divergences: trajectories that diverged.
        saturated: trajectories cut at the largest tree. energy: (chain, draw).
    """
    chains, draws = energy.shape
    (loose, rhat), (few, bulk), (thin, tail) = (
        extreme(summary, what) for what in ("rhat", "ess_bulk", "ess_tail")
    )
    lowest = float(np.min(bfmi(energy)))
    if divergences:
        return False, (
            f"{divergences} of {chains * draws} trajectories diverged, so a narrow part of the "
            "posterior may be missing from the draws: raise the target acceptance, or give the "
            "widths that are least known a tighter prior."
        )
    if not rhat < RHAT:
        return False, (
            f"The {chains} chains disagree on {loose} (R-hat {rhat:.3f}, {RHAT} is the limit): "
            "draw more, with a longer warm-up."
        )
    if not min(bulk, tail) > ESS_PER_CHAIN * chains:
        name, size, where = (few, bulk, "bulk") if bulk < tail else (thin, tail, "tails")
        return False, (
            f"The {where} of {name} rest on {size:.0f} independent draws, fewer than the "
            f"{ESS_PER_CHAIN * chains} that {chains} chains need: draw more."
        )
    if saturated > 0.01 * chains * draws:
        return False, (
            f"{saturated} of {chains * draws} trajectories were cut at the largest tree: the "
            "posterior is longer than its Laplace covariance says; allow deeper trees."
        )
    if not lowest > BFMI:
        return False, (
            f"The energy is explored slowly (E-BFMI {lowest:.2f}, {BFMI} is the limit): the tails "
            "are heavier than the draws show; draw more."
        )
    return True, (
        f"{chains} chains agree: R-hat at most {rhat:.3f} ({loose}), at least {bulk:.0f} "
        f"independent draws in the bulk ({few}) and {tail:.0f} in the tails ({thin}), "
        "no divergences."
    )


def judge_guide(
    settled: bool, steps: int, unsettled: float, slope: float, slope_sd: float, khat: float
) -> str:
    """One sentence on a variational fit.

    Args:
        settled: whether it converged, after ``steps`` steps. unsettled: share of the guide's
            parameters that still moved. slope, slope_sd: change of the ELBO over the last
            stretch, nats. khat: of the guide's importance weights.
    """
    if not settled:
        return (
            f"The guide was still moving after {steps} steps ({100 * unsettled:.0f} % of its "
            f"parameters; the ELBO by {slope:.2f} ± {slope_sd:.2f} nats): allow more steps."
        )
    how = f"The guide settled after {steps} steps"
    if not np.isfinite(khat):
        return f"{how}; its fit to the posterior was not tested."
    if khat < KHAT:
        return f"{how} and is close to the posterior (k-hat {khat:.2f}, {KHAT} is the limit)."
    return (
        f"{how}, but in all its dimensions together it is not close to the posterior "
        f"(k-hat {khat:.2f}, {KHAT} is the limit): compare widths and tails with NUTS."
    )
