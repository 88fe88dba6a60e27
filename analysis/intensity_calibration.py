"""Do posterior intensities hold the truth as often as they say, and do they beat French–Wilson?

    python analysis/intensity_calibration.py {integrated,simulated,foreign} --out FOLDER

``integrated``: stills drawn from the scaling model, scaled and merged without a reference.
``simulated``: pixels from known truth; ``foreign``: pixels of an independent simulator; both
through ``fit_run`` without a reference.  The truth is brought to the scale of each set of
intensities by one factor and one B, which nothing fixes.

Pull: (mean − truth)/sd of a posterior.  Coverage: of the central 90 % of posterior draws.  Log
score: mean ln of the posterior density of F at the truth, larger is better; rivals are French &
Wilson's posterior (1978) of the same data merged with the fit's scales (likelihood only), and of
the plain mean of J, with sd/√n for its error.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from known_run import LYSOSIM, PLAIN, SHARED, gauge, load

import bayes_refine as br
from bayes_refine import infer
from bayes_refine.fitting.merge_fit import measured_of
from bayes_refine.fitting.state import tails
from bayes_refine.fitting.tables import mean_cell, usable_images
from bayes_refine.geometry.symmetry import epsilon_centric
from bayes_refine.merging import scaling
from bayes_refine.merging.amplitude_prior import fit_prior
from bayes_refine.merging.latent import (
    AmplitudePrior,
    Measured,
    intensity_posteriors,
    likelihood_only,
)
from bayes_refine.merging.observations import prepare
from bayes_refine.physics import true_intensities
from bayes_refine.physics.reference import wilson_mean
from bayes_refine.results.fit import scale_uncertainty
from bayes_refine.simulation.unmerged import UnmergedSimulation, simulate_unmerged

N_DRAWS = 1000
MIN_SEEN = 3  # observations of a reflection, for the plain mean to have an error


def integrated(args) -> tuple[Measured, AmplitudePrior, br.Reference]:
    """Scaled and merged without a reference."""
    made = simulate_unmerged(UnmergedSimulation(n_images=args.images, each=150, n_unique=1500))
    fit = scaling.fit_scales(prepare(made.data), br.load_model("latent"))
    return fit.measured, fit.prior, made.truth


def fit_pixels(stills, d_min) -> tuple[br.RunFit, np.ndarray]:
    """Fitted without any reference, and the relative sd of the scales."""
    model, priors, settings = br.load_model("still"), br.Priors(), br.Settings(d_min=d_min)
    with br.ImageReader() as reader:
        run = br.fit_run(stills, None, reader, model, priors, settings, progress=br.Listener(print))
    draws = infer.laplace_draws(run.fit, 25, rng=np.random.default_rng(0))
    return run, scale_uncertainty(run, model, priors, draws)


def latent_of(run: br.RunFit, r, scale_sd, group) -> tuple[Measured, AmplitudePrior]:
    """What reflections ``r`` of a run say of each true intensity, and Wilson's prior of them."""
    rows = np.flatnonzero(r.measured & usable_images(run)[r.image])
    measured = measured_of(r, rows, group, scale_sd, tails(run.fit.values(), br.Priors()))
    hkl = np.asarray(measured.hkl)
    d = mean_cell(run).calculate_d_array(np.ascontiguousarray(hkl, np.int32))
    epsilon, centric = epsilon_centric(hkl, group)
    return measured, fit_prior(measured, d, epsilon, centric)


def from_pixels(stills, reference, d_min) -> tuple[Measured, AmplitudePrior, br.Reference]:
    """Fitted without the reference."""
    run, scale_sd = fit_pixels(stills, d_min)
    return *latent_of(run, run.reflections, scale_sd, reference.space_group), reference


def simulated(args):
    """Pixels of our own simulator, drawn from the priors' kind of physics."""
    simulation = br.Simulation(n_images=args.images, mean_photons=args.photons)
    folder = args.out / "run"
    stills = br.read_experiments(br.simulate_run(simulation, folder)).stills
    bandwidth = simulation.bandwidth
    stills = [replace(s, beam=replace(s.beam, bandwidth=bandwidth)) for s in stills]
    return from_pixels(stills, br.read_reference(folder / "reference.mtz"), simulation.d_min)


def foreign(args):
    """Mosaic blocks, another program's pixels."""
    stills, reference, _ = load(args.data, args.images, args.run)
    return from_pixels(stills, reference, 2.3)


# --- what is asked of each posterior --------------------------------------------------------


class Judged:
    """One posterior of F of each reflection against the truth, on the posterior's scale."""

    def __init__(self, name, mean, sd, draws, log_density, truth, d):
        k = gauge(mean, sd, truth, d)
        self.name, self.mean, self.truth = name, mean, k * truth
        self.pull = (mean - self.truth) / sd
        self.inside = np.abs((draws**2 < self.truth).mean(0) - 0.5) < 0.45
        self.score = log_density(np.sqrt(self.truth)) + 0.5 * np.log(k)  # per unit of true F
        self.error = np.abs(mean - self.truth).sum() / self.truth.sum()

    def line(self, rows) -> str:
        """sd of pulls (and robust), coverage, log score over some reflections."""
        pull = self.pull[rows]
        robust = 1.4826 * np.median(np.abs(pull - np.median(pull)))
        return (
            f"{rows.sum():6d}{pull.mean():9.2f}{pull.std():8.2f}{robust:8.2f}"
            f"{self.inside[rows].mean():9.3f}{self.score[rows].mean():10.3f}"
        )


def ours(measured, prior, truth, at, d) -> Judged:
    """The posterior of the product of all observations."""
    latent = intensity_posteriors(measured, prior)
    m = measured

    def log_density(F):
        everywhere = np.ones(len(m.hkl))
        everywhere[at] = F
        F = jnp.asarray(everywhere)[:, None]
        log_likelihood = true_intensities.log_observations(
            F,
            m.J,
            m.scale,
            true_intensities.VarianceOfJ(m.variance, m.fraction, m.per_photon),
            float(m.nu),
            m.code,
            m.weight,
        )
        values = prior.log_density(F) + log_likelihood
        return np.asarray(values[:, 0] - latent.posterior.log_evidence)[at]

    p = latent.posterior
    return Judged(
        "posterior", p.intensity[at], p.intensity_sd[at], latent.draws(N_DRAWS, seed=0)[:, at],
        log_density, truth, d,
    )  # fmt: skip


def french_wilson(name, intensity, sigma, log_mean, centric, truth, d) -> Judged:
    """Of merged intensities ± sigma."""
    I, s, log_S = (jnp.asarray(x, float) for x in (intensity, sigma, log_mean))  # noqa: E741

    def integrand(F):
        prior = true_intensities.log_wilson(F, log_S, jnp.asarray(centric))
        return prior + true_intensities.log_gaussian(F, I, s)

    nodes = true_intensities.place_nodes(
        integrand, true_intensities.upper_amplitude(log_S, I, s), 48
    )
    values = integrand(nodes.amplitude)
    p = jax.tree.map(np.asarray, true_intensities.posterior(values, nodes))
    draws = np.asarray(true_intensities.draw_amplitudes(jax.random.key(1), values, nodes, N_DRAWS))

    def log_density(F):
        return np.asarray(integrand(jnp.asarray(F)[:, None])[:, 0] - p.log_evidence)

    return Judged(name, p.intensity, p.intensity_sd, draws, log_density, truth, d)


def plain_means(measured: Measured):
    """Mean of J, sd/√n and n of each reflection."""
    code, J = np.asarray(measured.code), np.asarray(measured.J)
    n = np.bincount(code)
    mean = np.bincount(code, J) / n
    variance = np.bincount(code, (J - mean[code]) ** 2) / np.maximum(n - 1, 1)
    return mean, np.sqrt(variance / n), n


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data_set", choices=["integrated", "simulated", "foreign"])
    parser.add_argument("--images", type=int, default=50)
    parser.add_argument("--photons", type=float, default=100.0, help="mean I_ref (simulated)")
    parser.add_argument("--data", type=Path, default=SHARED)
    parser.add_argument("--run", choices=[PLAIN, LYSOSIM], default=PLAIN)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    args.out.mkdir(parents=True, exist_ok=True)
    made = {"integrated": integrated, "simulated": simulated, "foreign": foreign}[args.data_set]
    measured, prior, reference = made(args)

    hkl = np.asarray(measured.hkl)
    true = reference.lookup(hkl)
    mean, error, n = plain_means(measured)
    at = np.flatnonzero(np.isfinite(true) & (true > 0) & (n >= MIN_SEEN) & (error > 0))
    truth = true[at]
    d = reference.cell.calculate_d_array(np.ascontiguousarray(hkl[at], np.int32))
    epsilon, centric = epsilon_centric(hkl[at], reference.space_group)
    posterior = ours(measured, prior, truth, at, d)
    expected = intensity_posteriors(measured, prior).posterior.intensity
    merged = likelihood_only(measured, prior, expected)
    row = {tuple(h): i for i, h in enumerate(merged.hkl.tolist())}
    rows = np.array([row[tuple(h)] for h in hkl[at].tolist()])
    log_S = np.asarray(prior.log_mean)[at]
    plain_S = np.log(epsilon * wilson_mean(d, mean[at] / epsilon, d))
    judged = [
        posterior,
        french_wilson(
            "French-Wilson, fit's scales", merged.intensity[rows], merged.sigma[rows], log_S,
            centric, truth, d,
        ),
        french_wilson(
            "French-Wilson, plain means", mean[at], error[at], plain_S, centric, truth, d
        ),
    ]  # fmt: skip

    print(f"{args.data_set}, {args.images} images: {len(hkl)} reflections, {len(at)} with "
          f"{MIN_SEEN} or more of {len(measured.code)} observations")  # fmt: skip
    print(f"{'':34s}{'n':>6s}{'mean':>9s}{'sd':>8s}{'robust':>8s}{'90 %':>9s}{'log score':>10s}")
    everything = np.ones(len(at), bool)
    for j in judged:
        print(f"{j.name:34s}{j.line(everything)}   R1(I) {j.error:.3f}")
    normal = ours(replace(measured, nu=math.inf), prior, truth, at, d)
    print(
        f"{'posterior, normal residuals':34s}{normal.line(everything)}   R1(I) {normal.error:.3f}"
    )
    known = np.flatnonzero(np.isfinite(true) & (true > 0))
    d_known = reference.cell.calculate_d_array(np.ascontiguousarray(hkl[known], np.int32))
    all_of_them = ours(measured, prior, true[known], known, d_known)
    print(f"{'posterior, seen once or more':34s}{all_of_them.line(np.ones(len(known), bool))}"
          f"   R1(I) {all_of_them.error:.3f}")  # fmt: skip
    # a posterior is calibrated given what was seen; among the truly weakest, whose truths were
    # drawn from the lower end of the prior, it must be too high
    found = np.asarray(posterior.mean)
    E2 = found / (epsilon * wilson_mean(d, found / epsilon, d))
    weight = np.bincount(np.asarray(measured.code), np.asarray(measured.scale) ** 2
                         / np.asarray(measured.variance))[at]  # fmt: skip
    groups = {"acentric": ~centric, "centric": centric}
    for name, values, unit in (("posterior I/⟨I⟩", E2, ""), ("d", d, " Å"), ("σ(I)/Σ at I = 0",
                               weight**-0.5 / np.exp(log_S), "")):  # fmt: skip
        edges = np.quantile(values, [0, 0.2, 0.4, 0.6, 0.8, 1])
        for low, high in pairwise(edges):
            mine = (values >= low) & (values <= high)
            groups[f"{name} {low:.3g} to {high:.3g}{unit}"] = mine
    print("posterior, by")
    for name, mine in groups.items():
        print(f"  {name:32.32s}{posterior.line(mine)}")
    plot(judged, E2, d, args.out / f"intensity_calibration_{args.data_set}.png")


def plot(judged, E2, d, path) -> None:
    """Pulls by intensity and by resolution, and how often each central interval holds."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    for ax, x, label in ((axes[0], E2, "posterior I/⟨I⟩"), (axes[1], 1 / d**2, "1/d², Å⁻²")):
        edges = np.quantile(x, np.linspace(0, 1, 7))
        for color, j in enumerate(judged):
            bins = [(x >= a) & (x <= b) for a, b in pairwise(edges)]
            spread, middle = [j.pull[k].std() for k in bins], [np.median(x[k]) for k in bins]
            ax.plot(middle, spread, marker="o", color=f"C{color}", label=j.name)
        ax.axhspan(0.9, 1.1, color="0.9")
        ax.set_xlabel(label)
        ax.set_ylabel("sd of pulls")
        ax.set_ylim(0, 3)
    axes[0].set_xscale("log")
    axes[0].legend(fontsize=7)
    pulls = np.linspace(-4, 4, 41)
    for k, j in enumerate(judged):
        axes[2].hist(j.pull, pulls, density=True, histtype="step", color=f"C{k}")
    axes[2].plot(pulls, np.exp(-(pulls**2) / 2) / np.sqrt(2 * np.pi), "k:", lw=1)
    axes[2].set_xlabel("pull")
    figure.savefig(path, dpi=150, bbox_inches="tight")


if __name__ == "__main__":
    main()
