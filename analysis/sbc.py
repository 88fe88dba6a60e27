"""Are posteriors calibrated? Simulation-based calibration from pixels, not from statistics.

Every replicate draws all unknowns of a small run from their priors, paints Poisson photons,
measures and fits them by the library's own rounds, and ranks each truth among posterior draws
(Talts et al. 2018).  Ranks are judged by ECDF differences with simultaneous 95 % bands
(Säilynoja, Bürkner & Vehtari 2022, the band found by simulation).

    python analysis/sbc.py --replicates 300 --out sbc.png
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from numpyro.infer.util import log_density
from scipy.stats import binom
from simulate_shoeboxes import COUNTING, PRIORS, SMALL, Replicate, Setup, replicate

import bayes_refine as br

N_RANKED = 199  # draws a truth is ranked among: 200 possible ranks
N_PROPOSED = 1000  # draws the exact posterior is resampled from
NAMES = {
    "log_G": "ln G",
    "B": "B",
    "rotation_mrad_0": "ω about x",
    "rotation_mrad_1": "ω about y",
    "rotation_mrad_2": "ω about z",
    "log_R1": "ln R1",
    "log_R0": "ln R0",
    "detector_shift_mm_2": "distance",
    "detector_shift_mm_0": "beam centre x",
    "detector_shift_mm_1": "beam centre y",
    "J": "J of a free reflection",
    "strain_0": "strain 1",
    "strain_1": "strain 2",
    "log_mosaic_mrad": "ln mosaic spread, run",
    "log_mosaic_image_mrad": "ln mosaic spread, image",
    "log_model_error": "ln model error",
    "speckle_variance": "1/blocks",
    "log_bandwidth": "ln bandwidth",
    "log_position_error_0": "ln position error, radial",
    "log_position_error_1": "ln position error, tangential",
    "log_shape_error": "ln shape error",
}


# ------------------------------------------------------------------------------- the bands


def crossing(ranks: np.ndarray, n_draws: int) -> np.ndarray:
    """How improbable the ECDF of ranks is at its worst place: (m,) of (m, N) ranks in 0..n_draws.

    At z = k/(n_draws + 1) the number of ranks below k is binomial(N, z); the smaller of twice
    its two tails, at the worst of all z.
    """
    N = ranks.shape[1]
    k = np.arange(1, n_draws + 1)
    counts = np.stack([np.bincount(row, minlength=n_draws + 1) for row in ranks])
    below = np.cumsum(counts, axis=1)[:, :-1]
    z = k / (n_draws + 1)
    tails = np.minimum(binom.cdf(below, N, z), binom.sf(below - 1, N, z))
    return 2 * tails.min(axis=1)


def simultaneous(N: int, n_draws: int, trials: int = 4000, seed: int = 0) -> np.ndarray:
    """:func:`crossing` of ``trials`` sets of N uniform ranks, sorted: what chance does."""
    rng = np.random.default_rng(seed)
    return np.sort(crossing(rng.integers(0, n_draws + 1, (trials, N)), n_draws))


def band(N: int, n_draws: int, chance: np.ndarray, coverage: float = 0.95):
    """z and the ECDF's lower and upper limit, which 95 % of all uniform ranks keep everywhere."""
    gamma = np.quantile(chance, 1 - coverage)
    z = np.arange(1, n_draws + 1) / (n_draws + 1)
    return z, binom.ppf(gamma / 2, N, z) / N, binom.ppf(1 - gamma / 2, N, z) / N


# ------------------------------------------------------------------------------- the ranks


def by_name(values: dict[str, np.ndarray], image: int = 0) -> dict[str, np.ndarray]:
    """Scalars of one image and of the run from values by site, any leading draws kept."""
    out = {}
    for name in NAMES:
        site, _, part = name.rpartition("_")
        if not part.isdigit():
            site, part = name, ""
        if site not in values:
            continue
        x = np.asarray(values[site])
        if site in ("log_G", "B", "log_R1", "log_mosaic_image_mrad"):
            x = x[..., image, 0]
        elif site in ("rotation_mrad", "strain"):
            x = x[..., image, 0, int(part)]
        elif part:
            x = x[..., int(part)]
        out[name] = x
    return out


@partial(jax.jit, static_argnums=0)
def _log_densities(model, values, args):
    return jax.lax.map(lambda v: log_density(model, args, {}, v)[0], values, batch_size=50)


def resampled(setup: Setup, made: Replicate, draws, rng: np.random.Generator):
    """Draws of the exact posterior by importance resampling of Laplace draws; effective number.

    Weights ∝ density/Gaussian, truncated at √n times their mean (Ionides 2008).  The model's
    unknowns are all on the real line.
    """
    fit, n = made.fit, len(draws["log_R0"])
    values = {k: jnp.asarray(v) for k, v in draws.items()}
    target = np.asarray(_log_densities(setup.model, values, (made.observations, setup.priors)))
    image = [s.name for s in fit.sites if s.per_image]
    shared = [s.name for s in fit.sites if not s.per_image]
    theta = np.concatenate([draws[k].reshape(n, len(fit.image), -1) for k in image], 2)
    phi = np.concatenate([draws[k].reshape(n, -1) for k in shared], 1)
    theta -= fit.image + fit.image_shift
    phi -= fit.shared + fit.shared_shift
    theta += np.einsum("nks,ds->dnk", np.linalg.solve(fit.image_precision, fit.coupling), phi)
    gauss = -0.5 * np.einsum("dnk,nkl,dnl->d", theta, fit.image_precision, theta)
    gauss -= 0.5 * np.einsum("ds,st,dt->d", phi, np.linalg.inv(fit.shared_covariance), phi)
    log_w = target - gauss
    w = np.exp(log_w - log_w.max())
    w = np.minimum(w, np.sqrt(n) * w.mean())
    w /= w.sum()
    return rng.choice(n, N_RANKED, p=w), 1 / np.sum(w**2)


def free_intensity(setup: Setup, made: Replicate, draws, rng: np.random.Generator):
    """J of one free reflection of the first image, and its posterior predictive draws.

    Never fitted, but its reference intensity is known; chosen at random, not by what it shows.
    """
    batch = made.batch
    free = batch.free & (batch.predictions.image == 0) & (batch.statistics.covered > 0.6)
    free &= np.isfinite(batch.intensity_reference)
    if not free.any():
        return None
    slot = batch.where.slot[rng.choice(np.flatnonzero(free))]
    few = {k: v[:N_RANKED] for k, v in draws.items()}
    predicted = br.predictive_draws(setup.model, few, made.observations, setup.priors, rng=rng)
    replicas = np.array([sites["intensity"][1][0, slot] for sites in predicted])
    return float(made.observations.statistics[0, 0, slot]), replicas


def ranks_of(setup: Setup, seed) -> tuple[dict[str, tuple[int, int]], float, np.ndarray]:
    """Ranks (Laplace, exact) of each truth in one replicate, the resampling's effective number,
    and the pulls of all images."""
    made = replicate(setup, seed)
    rng = np.random.default_rng([*seed, 1])
    draws = br.laplace_draws(made.fit, N_PROPOSED, rng=rng)
    keep, effective = resampled(setup, made, draws, rng)
    truth, every = by_name(made.truth), by_name(draws)
    ranks = {
        name: (int(np.sum(x[:N_RANKED] < truth[name])), int(np.sum(x[keep] < truth[name])))
        for name, x in every.items()
    }
    held_out = free_intensity(setup, made, draws, rng)
    if held_out is not None:
        rank = int(np.sum(held_out[1] < held_out[0]))
        ranks["J"] = (rank, rank)
    pulls = [(truth[k] - every[k].mean()) / every[k].std() for k in every]
    return ranks, effective, np.array([float(p) for p in pulls])


# ------------------------------------------------------------------------------- the answer


def draw_figure(ranks: dict[str, np.ndarray], chance: dict[int, np.ndarray], title: str, out: Path):
    """For each unknown its rank histogram and its ECDF difference in the band."""
    shown = [name for name in NAMES if name in ranks]
    rows = -(-len(shown) // 4)
    figure, axes = plt.subplots(rows, 8, figsize=(16, 2.1 * rows), layout="constrained")
    for axis in axes.flat:
        axis.set_visible(False)
    for i, name in enumerate(shown):
        row, column = i % rows, 2 * (i // rows)
        histogram, ecdf = axes[row, column], axes[row, column + 1]
        laplace, exact = ranks[name].T
        N = len(laplace)
        low, high = binom.ppf([0.025, 0.975], N, 1 / 20)
        histogram.axhspan(low, high, color="0.85")
        histogram.hist(laplace, bins=np.linspace(-0.5, N_RANKED + 0.5, 21), color="C0")
        histogram.set(ylabel=NAMES[name], xticks=[0, 100, 199])
        z, lower, upper = band(N, N_RANKED, chance[N])
        ecdf.fill_between(z, lower - z, upper - z, color="0.85", lw=0)
        for r, colour, width in ((exact, "C1", 1), (laplace, "C0", 1.5)):
            below = np.searchsorted(np.sort(r), np.arange(1, N_RANKED + 1)) / N
            ecdf.plot(z, below - z, color=colour, lw=width)
        ecdf.axhline(0, color="k", lw=0.5)
        ecdf.set(xlim=(0, 1))
        histogram.set_visible(True)
        ecdf.set_visible(True)
    figure.suptitle(title)
    figure.savefig(out, dpi=110)


def report(ranks: dict[str, np.ndarray]) -> dict[int, np.ndarray]:
    """Print each unknown's verdict; returns what chance does, by number of ranks."""
    chance = {N: simultaneous(N, N_RANKED) for N in {len(r) for r in ranks.values()}}
    print(f"{'':26s}{'Laplace':>22s}{'resampled':>26s}")
    print(f"{'':26s}{'p':>8s} {'inside':>7s} {'mean':>6s} {'p':>10s} {'inside':>7s} {'mean':>6s}")
    for name, r in ranks.items():
        line = f"{NAMES[name]:26s}"
        for column in r.T:
            found = crossing(column[None], N_RANKED)[0]
            p = np.searchsorted(chance[len(r)], found, side="right") / len(chance[len(r)])
            verdict = "yes" if p >= 0.05 else "NO"
            line += f"{p:8.3f} {verdict:>7s} {(column.mean() + 0.5) / (N_RANKED + 1):6.3f}   "
        print(line)
    return chance


def simulated(options) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Ranks by unknown and effective numbers of new replicates, saved as they come."""
    priors = COUNTING if options.counting else PRIORS
    setup = Setup(SMALL, priors, br.load_model("still"), skewed=options.skewed)
    started, kept, effective = time.perf_counter(), {}, []
    for k in range(options.replicates):
        found, n_eff, _ = ranks_of(setup, (options.seed, k))
        effective.append(n_eff)
        for name, rank in found.items():
            kept.setdefault(name, []).append(rank)
        if k % 10 == 9 or k == options.replicates - 1:
            np.savez(options.out.with_suffix(".npz"), effective=effective, **kept)
            print(f"{k + 1} replicates, {time.perf_counter() - started:.0f} s", flush=True)
    return {name: np.array(rows) for name, rows in kept.items()}, np.array(effective)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replicates", type=int, default=300)
    parser.add_argument("--counting", action="store_true", help="no discrepancies, photons alone")
    parser.add_argument("--skewed", action="store_true", help="gamma errors of J, not normal ones")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ranks", type=Path, nargs="*", help="of earlier runs (.npz), no new one")
    parser.add_argument("--out", type=Path, default=Path("sbc.png"))
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    if options.ranks:
        files = [dict(np.load(path)) for path in options.ranks]
        found = {k: np.concatenate([f[k] for f in files]) for k in files[0]}
        effective = found.pop("effective")
    else:
        found, effective = simulated(options)
    ranks = {name: found[name] for name in NAMES if name in found}
    print(
        f"resampling: {N_PROPOSED} Laplace draws are worth {np.median(effective):.0f} of the exact"
        f" posterior (median; fewer than 50 in {np.mean(effective < 50):.0%})"
    )
    chance = report(ranks)
    what = "photons alone" if options.counting else "with model, position and shape error, speckle"
    what += " (skewed)" if options.skewed else ""
    title = (
        f"{len(effective)} runs of {SMALL.n_images} images, {what}; blue: Laplace, orange:"
        " resampled to the exact posterior; grey: 95 %, simultaneous"
    )
    draw_figure(ranks, chance, title, options.out)


if __name__ == "__main__":
    main()
