"""Below which count, and above which background, do the Gaussian moments stop being calibrated?

The replicates of ``sbc.py`` for spots of 3 to 3000 photons on several backgrounds: how many
truths the central 90 % interval holds, of Laplace draws and of the same draws resampled to the
exact posterior.  Where both fail the likelihood is wrong, where one does, Laplace is.

    python analysis/sbc_limits.py --replicates 16 --out sbc_limits.png
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
from sbc import N_PROPOSED, resampled
from simulate_shoeboxes import PRIORS, SMALL, Replicate, Setup, replicate

import bayes_refine as br

PHOTONS = (6.0, 20.0, 60.0, 200.0, 800.0, 4000.0)  # mean I_ref: partiality takes a quarter
GROUPS = {
    "ln G": "log_G",
    "B": "B",
    "ω": "rotation_mrad",
    "ln R1": "log_R1",
    "ln R0": "log_R0",
    "detector": "detector_shift_mm",
}


def typical_photons(setup: Setup, made: Replicate) -> float:
    """Mean J_model at the truth of the reflections with p > 0.3, photons."""
    batch, obs = made.batch, made.observations
    sites = br.evaluate(setup.model, made.truth, obs, setup.priors)
    J = batch.where.flat(sites["scale"] * np.asarray(obs.intensity_reference))
    near = batch.where.flat(sites["partiality"]) > 0.3
    return float(np.mean(J[near & np.isfinite(batch.intensity_reference)]))


def one(setup: Setup, seed) -> tuple[dict[str, np.ndarray], float, float]:
    """By group (2, ·): level 2|F(truth) − ½| among Laplace draws and among exact ones; the
    effective number of the latter; photons of a spot."""
    made = replicate(setup, seed)
    rng = np.random.default_rng([*seed, 1])
    draws = br.laplace_draws(made.fit, N_PROPOSED, rng=rng)
    keep, effective = resampled(setup, made, draws, rng)
    levels = {}
    for name, site in GROUPS.items():
        below = draws[site] < made.truth[site]
        each = [np.abs(2 * x.mean(0) - 1).ravel() for x in (below, below[keep])]
        levels[name] = np.array(each)
    return levels, effective, typical_photons(setup, made)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replicates", type=int, default=16)
    parser.add_argument("--backgrounds", type=float, nargs="+", default=[0.1, 1.0, 10.0])
    parser.add_argument("--tables", type=Path, nargs="*", help="of earlier runs (.npz), no new one")
    parser.add_argument("--out", type=Path, default=Path("sbc_limits.png"))
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    if options.tables:
        draw(np.concatenate([np.load(path)["table"] for path in options.tables]), options.out)
        return
    model, table = br.load_model("still"), []
    print("truths inside the central 90 % interval, Laplace / exact")
    print(f"{'J':>7s} {'Bg':>5s} {'n_eff':>6s}" + "".join(f"{n:>14s}" for n in GROUPS))
    for background in options.backgrounds:
        for mean in PHOTONS:
            run = replace(SMALL, mean_photons=mean, background_photons=background)
            setup = Setup(run, PRIORS, model)
            found = [one(setup, (11, k)) for k in range(options.replicates)]
            J, effective = np.mean([f[2] for f in found]), np.median([f[1] for f in found])
            row = [J, background, effective]
            line = f"{J:7.1f} {background:5.1f} {effective:6.0f}"
            for name in GROUPS:
                inside = np.array([np.mean(f[0][name] < 0.9, axis=1) for f in found])
                row += [*inside.mean(0), *(inside.std(0, ddof=1) / np.sqrt(len(inside)))]
                line += "{:8.0f} /{:4.0f}".format(*(100 * inside.mean(0)))
            print(line, flush=True)
            table.append(row)
            np.savez(options.out.with_suffix(".npz"), table=np.array(table))
    draw(np.array(table), options.out)


def draw(table: np.ndarray, out: Path) -> None:
    """Coverage of the 90 % interval against photons, a line a background; above Laplace."""
    figure, axes = plt.subplots(
        2, len(GROUPS), figsize=(16, 6), layout="constrained", sharex=True, sharey=True
    )
    for k, name in enumerate(GROUPS):
        for i, background in enumerate(np.unique(table[:, 1])):
            mine = table[table[:, 1] == background]
            at = mine[:, 0] * 1.08**i
            for row in (0, 1):
                inside, error = 100 * mine[:, 3 + 4 * k + row], 100 * mine[:, 5 + 4 * k + row]
                axes[row, k].errorbar(
                    at, inside, error, fmt="o-", ms=3, lw=1, label=f"{background:g} photons/px"
                )
        for row in (0, 1):
            axes[row, k].axhspan(85, 95, color="0.9")
            axes[row, k].axhline(90, color="k", lw=0.5)
        axes[0, k].set(xscale="log", title=name, ylim=(50, 101))
        axes[1, k].set(xlabel="photons a spot")
    axes[0, 0].set(ylabel="truths in the 90 % interval, %\nLaplace")
    axes[1, 0].set(ylabel="exact posterior of the\nGaussian moments")
    axes[0, 0].legend(fontsize=7, title="background", loc="lower right")
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    main()
