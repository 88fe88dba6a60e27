"""What does a reference do to posterior intensities, right or wrong, and is it counted twice?

    PYTHONPATH=. python analysis/reference_prior.py FOLDER OUT_FOLDER [--images 60] [--refit]

FOLDER holds stills simulated by another program (NAME_indexed.expt) and the truth as
NAME_reference.mtz.  The stills are fitted once with the truth as the reference.  Then the prior of
the merge is given other references, and posterior intensities are compared with the truth: medians
in twenty shells, what 90 % intervals hold, and the error over that of Wilson's prior.

--refit fits again with a reference whose intensities are off by 5 % at random, and by 5 % more from
3.3 to 3.0 Å.  A reference that an intensity followed through its scales would be counted twice: the
slope of what IMEAN changed by on what its I_ref changed by is that share.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import jax
import matplotlib
import numpy as np

import bayes_refine as br
from bayes_refine import infer
from bayes_refine.fitting.merge_fit import measured_of
from bayes_refine.fitting.state import tails
from bayes_refine.fitting.tables import usable_images
from bayes_refine.geometry.miller import resolution, rows_of
from bayes_refine.geometry.symmetry import epsilon_centric
from bayes_refine.io.reference import read_reference
from bayes_refine.merging.amplitude_prior import fit_prior
from bayes_refine.merging.latent import intensity_posteriors, likelihood_only
from bayes_refine.merging.reference_scale import amplitudes_of
from bayes_refine.physics.reference import free_set, wilson_mean
from bayes_refine.results.fit import mean_cell, scale_uncertainty

SHELLS, FREE, SEED = 20, 0.05, 0
SHELL, OFF = (3.3, 3.0), 0.05


def references(truth):
    """References by what is wrong with them."""
    rng = np.random.default_rng(5)
    epsilon, centric = epsilon_centric(truth.hkl, truth.space_group)
    S = wilson_mean(truth.d, truth.intensity / epsilon, truth.d) * epsilon
    q2, F = truth.d**-2.0, np.sqrt(truth.intensity)
    s = truth.hkl @ np.array(truth.cell.frac.mat)

    def draw():
        z = rng.normal(size=(2, len(F)))
        return np.where(centric, z[0], (z[0] + 1j * z[1]) / np.sqrt(2))

    phase = draw()
    true, other = F * phase / np.abs(phase), draw() * np.sqrt(S)
    found = {
        "the truth": F,
        "B + 20 Å²": F * np.exp(-20 * q2 / 4),
        "5 % along c": F * (1 + 0.05 * (s[:, 2] * truth.d) ** 2),
        "B along c + 5 Å²": F * np.exp(-5 * s[:, 2] ** 2 / 4),
        "no bulk solvent": F / (1 - 0.75 * np.exp(-180 * q2 / 4)),
        "R = 25 %": np.abs(true + 0.42 * other),
        "worse with resolution": np.abs(true + (0.1 + 4 * q2) * other),
        "a fifth missing": np.abs(np.sqrt(0.8) * true + np.sqrt(0.2 * 0.8) * other),
        "another crystal": np.abs(other),
    }
    return {name: replace(truth, intensity=F**2) for name, F in found.items()}


def fitted(stills, reference, d_min):
    """What a fit with ``reference`` says of each reflection, and the cell."""
    model, priors, settings = br.load_model("still"), br.Priors(), br.Settings(d_min=d_min)
    with br.ImageReader() as reader:
        run = br.fit_run(
            stills, reference, reader, model, priors, settings, progress=br.Listener(print)
        )
    draws = infer.laplace_draws(run.fit, 25, rng=np.random.default_rng(0))
    sd = scale_uncertainty(run, model, priors, draws)
    r = run.reflections
    rows = np.flatnonzero(r.measured & usable_images(run)[r.image])
    nu = tails(run.fit.values(), priors)
    return measured_of(r, rows, reference.space_group, sd, nu), mean_cell(run)


def judged(post, true, d):
    """Medians of I over the truth in shells, and whether 90 % intervals hold; k and B fitted."""
    ratio = np.log(np.maximum(post.intensity, 1e-30) / true)
    weight = true / post.intensity_sd
    for _ in range(10):  # least absolute deviations: Wilson's posteriors are skewed
        k = np.polyval(np.polyfit(d**-2.0, ratio, 1, w=weight), d**-2.0)
        weight = np.sqrt(true / post.intensity_sd / np.maximum(np.abs(ratio - k), 1e-3))
    I, sd = post.intensity / np.exp(k), post.intensity_sd / np.exp(k)  # noqa: E741
    shells = np.array_split(np.argsort(-d), SHELLS)
    return np.array([np.median((I / true)[rows]) for rows in shells]), np.abs(I - true) < 1.645 * sd


def compare(measured, cell, truth, draw):
    """A row a reference; ``draw`` (axis pair) takes medians and coverage."""
    hkl = np.asarray(measured.hkl)
    d, true = resolution(hkl, cell), truth.lookup(hkl)
    kinds = epsilon_centric(hkl, truth.space_group)
    plain = intensity_posteriors(measured, fit_prior(measured, d, *kinds)).posterior
    off = np.abs(plain.intensity - true)
    print(
        " " * 24 + " medians in 20 shells  90 % hold  strong  tenths by d     |error| over Wilson's"
    )
    rows = {"none (Wilson)": (plain, np.isfinite(true))}
    for name, reference in references(truth).items():
        amplitudes = amplitudes_of(reference, hkl, d, cell, FREE, SEED)
        post = intensity_posteriors(measured, fit_prior(measured, d, *kinds, amplitudes)).posterior
        rows[name] = post, np.asarray(amplitudes.informed)
    for name, (post, chosen) in rows.items():
        of = [x[chosen] for x in (post.intensity, post.intensity_sd, true, d)]
        some = replace(post, intensity=of[0], intensity_sd=of[1])
        median, holds = judged(some, of[2], of[3])
        strong = np.argsort(-of[2])[: len(holds) // 4]
        tenths = [holds[rows].mean() for rows in np.array_split(np.argsort(-of[3]), 10)]
        error = np.abs(post.intensity - true)
        gain = [error[k].sum() / off[k].sum() for k in (chosen, ~chosen) if k.any()]
        print(
            f"{name:24s} {median.min():8.3f} … {median.max():.3f} {holds.mean():11.3f} "
            f"{holds[strong].mean():8.3f} {min(tenths):8.2f} … {max(tenths):.2f}     "
            + "   free ".join(f"{x:.3f}" for x in gain)
        )
        draw[0].plot(median, label=name)
        draw[1].plot(tenths, label=name)
    draw[0].set(ylabel="median of I over the truth", xlabel="shell", ylim=(0.9, 1.15))
    draw[1].set(ylabel="90 % intervals hold", xlabel="tenth by resolution")
    draw[1].axhspan(0.86, 0.94, color="0.9")
    draw[1].legend(fontsize=6)


def counted_twice(stills, truth, d_min, measured, cell):
    """How far IMEAN follows a change of its own reference, and of its shell's."""
    rng = np.random.default_rng(11)
    inside = (truth.d < SHELL[0]) & (truth.d > SHELL[1])
    own = OFF * rng.normal(size=len(truth.hkl))
    moved = replace(truth, intensity=truth.intensity * np.exp(own + np.log1p(OFF) * inside))
    again, _ = fitted(stills, moved, d_min)
    found = []
    for data in (measured, again):
        hkl = np.asarray(data.hkl)
        d = resolution(hkl, cell)
        prior = fit_prior(data, d, *epsilon_centric(hkl, truth.space_group))
        expected = intensity_posteriors(data, prior).posterior.intensity
        found.append(likelihood_only(data, prior, expected))
    report_shares(*found, truth.hkl, own, inside, truth.space_group)


def report_shares(before, after, hkl, own, inside, group):
    """Print slopes of Δln IMEAN on Δln I_ref, informed and free, and the shell's shift."""
    common = np.array(sorted(set(map(tuple, before.hkl)) & set(map(tuple, after.hkl))))
    a, b, at = (rows_of(common, x) for x in (before.hkl, after.hkl, hkl))
    strong = before.intensity[a] > 5 * before.sigma[a]
    change = np.log(np.maximum(after.intensity[b], 1e-9) / np.maximum(before.intensity[a], 1e-9))
    free = free_set(common, FREE, SEED, group)
    for name, chosen in (("informed", ~free & strong), ("free", free & strong)):
        x = own[at][chosen]
        y = change[chosen] - np.median(change[chosen])
        keep = np.abs(y) < 0.2
        x, y = x[keep], y[keep]
        slope = x @ y / (x @ x)
        sd = np.sqrt(np.mean((y - slope * x) ** 2) / (x @ x))
        print(f"{name:10s} slope of Δln IMEAN on Δln I_ref {slope:.3f} ± {sd:.3f} ({len(x)})")
    shift = np.median(change[inside[at] & strong]) - np.median(change[~inside[at] & strong])
    print(f"the shell whose reference is {OFF:.0%} brighter: IMEAN {shift:+.2%}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--d-min", type=float, default=2.3)
    parser.add_argument("--refit", action="store_true")
    args = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    (path,) = args.folder.glob("*_indexed.expt")
    experiments = br.read_experiments(path)
    stills = experiments.stills[: args.images]
    truth = read_reference(path.with_name(path.name.replace("_indexed.expt", "_reference.mtz")))
    measured, cell = fitted(stills, truth, args.d_min)
    figure, axes = plt.subplots(1, 2, figsize=(11, 4))
    compare(measured, cell, truth, axes)
    args.out.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out / "reference_prior.png", dpi=150, bbox_inches="tight")
    if args.refit:
        counted_twice(stills, truth, args.d_min, measured, cell)


if __name__ == "__main__":
    main()
