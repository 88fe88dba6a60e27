"""Which partiality curve do integrated stills ask for, judged by images that did not fit it?

A Gaussian, a Lorentzian and a learned curve each scale and merge a run.  Curve, widths and errors
are fitted to one half of the images; of the other half ln p is taken given these, its own scales,
widths and mean intensities at their mode and integrated by Laplace, true intensities by
quadrature.  Agreement with a refined model is printed beside it and chooses nothing.

    python analysis/curve_of_a_merge.py unmerged.mtz --reference reference.mtz --column FMODEL_PLUS
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro

import bayes_refine as br
from bayes_refine import physics
from bayes_refine.infer.coupled import coupled_fit
from bayes_refine.learned.curve import Curve
from bayes_refine.learned.merged_curve import with_learned_curve
from bayes_refine.merging import scaling
from bayes_refine.merging.agreement import pearson
from bayes_refine.merging.observations import ScalingPriors, prepare

SHELLS = ((50, 3), (3, 2.4), (2.4, 2.0), (2.0, 1.8))
OF_HALF = ("log_Sigma",)  # shared unknowns that each half has for itself


@lru_cache(maxsize=8)
def given(model):
    """The model of (obs, (priors, values)) with these values of some of its sites."""

    def with_values(obs, priors_and_values):
        priors, values = priors_and_values
        numpyro.handlers.condition(model, data=values)(obs, priors)

    return with_values


def held_out(model, obs, priors, fit: scaling.Scaled) -> float:
    """ln p of the observations that have weight, with the curve and errors of another fit."""
    at = fit.fit.values()
    shared = [s.name for s in fit.fit.sites if not s.per_image and s.name not in OF_HALF]
    values = {name: jnp.asarray(at[name]) for name in shared}
    seeded = numpyro.handlers.seed(model, jax.random.key(0))
    trace = numpyro.handlers.trace(numpyro.handlers.condition(seeded, data=values)).get_trace(
        obs, priors
    )
    prior = sum(float(jnp.sum(trace[n]["fn"].log_prob(trace[n]["value"]))) for n in shared)
    conditioned = given(model)
    args = priors, values
    start = {"log_G": obs.log_G0, "log_Sigma": at["log_Sigma"]}

    def renewed(obs, at):
        return scaling.renewed(conditioned, obs, args, at)

    found, _ = coupled_fit(conditioned, obs, args, start, renewed)
    inside = -0.5 * np.sum(np.linalg.slogdet(found.image_precision)[1])
    return found.log_density - prior + inside + 0.5 * np.linalg.slogdet(found.shared_covariance)[1]


def by_shell(d, one, two) -> str:
    at = [(d <= high) & (d >= low) for high, low in SHELLS]
    return "".join(f"{pearson(one[k], two[k]):7.3f}" for k in at)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("unmerged", type=Path)
    parser.add_argument("--reference", type=Path, required=True)
    parser.add_argument("--column")
    parser.add_argument("--d-min", type=float, default=0.0)
    parser.add_argument("--out", type=Path, default=Path("curve_of_a_merge.png"))
    args = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    obs = prepare(br.read_unmerged(args.unmerged), args.d_min)
    truth = br.read_reference(args.reference, column=args.column).lookup(np.asarray(obs.hkl))
    d, priors, latent = 1 / np.asarray(obs.norm_q_unique), ScalingPriors(), br.load_model("latent")
    forms = {
        "Gaussian": partial(latent, partiality=physics.gaussian),
        "Lorentzian": latent,
        "learned": with_learned_curve(latent),
    }
    figure, ax = plt.subplots(layout="constrained")
    x, nats = np.linspace(-4, 4, 161), {}
    for name, model in forms.items():
        begun = time.process_time()
        whole = scaling.fit_scales(obs, model, priors)
        spent = time.process_time() - begun
        posterior = by_shell(d, np.asarray(whole.posterior.intensity), truth)
        print(f"{name}: {spent:.0f} CPU s, ln p {whole.fit.log_density:.1f}, CC {posterior}")
        shared = {k: (np.round(v, 4), np.round(s, 4)) for k, (v, s) in whole.shared.items()}
        print("   ", {k: v for k, v in shared.items() if k != "log_Sigma"}, flush=True)
        halves = scaling.refit_halves(obs, model, priors)
        print(f"    CC1/2 {by_shell(d, *halves.posterior.T)}", flush=True)
        of_observation = halves.half_of_image[np.asarray(obs.image)]
        nats[name] = [
            held_out(model, replace(obs, weight=jnp.asarray(of_observation != k, float)), priors, f)
            for k, f in enumerate(halves.fits)
        ]
        print(
            f"    held-out ln p of the halves: {nats[name][0]:.1f} {nats[name][1]:.1f}; "
            f"{time.process_time() - begun:.0f} CPU s in all",
            flush=True,
        )
        if name == "learned":
            curve = Curve.of(jnp.asarray(whole.fit.values()["curve"]))
            ax.plot(x, curve.shape(jnp.asarray(x)), label=name)
    for name, (one, two) in nats.items():
        base = nats["Gaussian"]
        print(f"{name:12s}{one - base[0]:+9.1f}{two - base[1]:+9.1f} nats over the Gaussian")
    e = np.sqrt(np.e - 1)
    ax.plot(x, -np.log1p((e * x) ** 2), label="Lorentzian")
    ax.plot(x, -(x**2), label="Gaussian")
    ax.set(xlabel="ε_r over the width at 1/e", ylabel="ln k", ylim=(-6, 0.2))
    ax.legend()
    figure.savefig(args.out, dpi=120)


if __name__ == "__main__":
    main()
