"""Do 90 % intervals of what a merge's images share hold the truth as often as they say?

Each run is simulated from the scaling model with its own errors and widths, and scaled without a
reference: at the joint mode of all unknowns, and at the marginal mode of what the images share.

    python analysis/errors_of_a_merge.py --runs 40 --images 60 --unique 500
"""

from __future__ import annotations

import argparse
from collections import defaultdict

import jax
import numpy as np

from bayes_refine import load_model
from bayes_refine.infer.coupled import at_marginal_mode
from bayes_refine.merging.observations import ScalingPriors, prepare
from bayes_refine.merging.scaling import joint_mode
from bayes_refine.simulation.unmerged import UnmergedSimulation, simulate_unmerged

# Typical value, and sd of its logarithm from run to run.
SPREAD = {
    "model_error": (0.2, 0.4),
    "nu": (6.0, 0.3),
    "dispersion_angstrom": (2e-3, 0.3),
    "R0_inv_angstrom": (1e-4, 0.3),
}


def pulls(fit, truth: dict[str, float]) -> dict[str, float]:
    """(value − truth)/sd of each shared unknown whose truth is known."""
    values = fit.values()
    return {
        name: float((np.ravel(values[name])[0] - true) / np.ravel(fit.sd(name))[0])
        for name, true in truth.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--each", type=int, default=150, help="observations of an image")
    parser.add_argument("--unique", type=int, default=500, help="reflections")
    parser.add_argument("--first-seed", type=int, default=100)
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    model, priors = load_model("latent"), ScalingPriors()
    found: dict[str, list[dict[str, float]]] = defaultdict(list)
    for seed in range(options.first_seed, options.first_seed + options.runs):
        rng = np.random.default_rng(seed)
        drawn = {k: typical * np.exp(sd * rng.normal()) for k, (typical, sd) in SPREAD.items()}
        size = {"n_images": options.images, "each": options.each, "n_unique": options.unique}
        simulated = simulate_unmerged(UnmergedSimulation(**size, seed=seed, **drawn))
        truth = {f"log_{k.split('_')[0]}": np.log(v) for k, v in drawn.items()}
        truth["log_model_error"] = truth.pop("log_model")
        truth["log_sigma_factor"] = 0.0
        joint, obs = joint_mode(prepare(simulated.data, n_knots=4), model, priors)
        found["joint mode"].append(pulls(joint, truth))
        found["marginal mode"].append(pulls(at_marginal_mode(joint, model, obs, priors), truth))
    for mode, runs in found.items():
        for name in runs[0]:
            pull = np.array([run[name] for run in runs])
            held = [(np.abs(pull) < z).mean() for z in (1.645, 0.674)]
            print(
                f"{mode:14s} {name:18s} pulls {pull.mean():5.2f} ± {pull.std():4.2f}; "
                f"90 % hold {held[0]:.0%}, 50 % hold {held[1]:.0%}"
            )


if __name__ == "__main__":
    main()
