"""How do time and memory of scaling grow with the number of observations?

    PYTHONPATH=. python analysis/merge_cost.py [--fit] [N ...]

Simulates integrated stills with N observations in all (10⁴ ... 3·10⁶ by default; 200 an image, at
most 2,000 images; 20 of each reflection) and times what a fit is made of: the gradient of ln p,
of which it takes some 60 to 120 whatever N, and the posterior intensities at the end.  ``--fit``
runs whole fits instead.  One process a size.
"""

import json
import resource
import subprocess
import sys
import time

SIZES = (10**4, 10**5, 10**6, 3 * 10**6)


def simulated(n):
    """Observations of n / 20 reflections."""
    from bayes_refine.merging.observations import prepare
    from bayes_refine.simulation.unmerged import UnmergedSimulation, simulate_unmerged

    n_images = min(max(n // 200, 20), 2000)
    edge = 40.0 if n < 3e6 else 90.0
    settings = UnmergedSimulation(
        n_images=n_images,
        each=n // n_images,
        n_unique=max(n // 20, 100),
        d_min=1.6,
        cell=(edge, edge, 1.5 * edge, 90.0, 90.0, 90.0),
    )
    return prepare(simulate_unmerged(settings).data)


def gradient(n, repeats=2):
    """Processor seconds of one gradient of ln p, and the peak of memory."""
    import jax
    import numpy as np

    from bayes_refine import load_model
    from bayes_refine.infer import coupled
    from bayes_refine.infer.density import find_sites
    from bayes_refine.merging import observations, scaling

    obs, model, priors = simulated(n), load_model("latent"), observations.ScalingPriors()
    found = {"observations": n, "unique": len(obs.hkl), "images": obs.n_images}
    found["GiB before"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    start = {"log_G": obs.log_G0, "log_Sigma": obs.log_Sigma0} | scaling.BROAD
    sites, values = find_sites(model, (obs, priors), start)
    obs = scaling.renewed(model, obs, priors, values)
    flat, unravel = coupled.ravelled(sites, values)
    objective = coupled.compiled_objective(model, sites)
    jax.block_until_ready(objective(*unravel(np.array(flat)), obs, priors))  # compiles
    clock = time.process_time()
    for _ in range(repeats):
        jax.block_until_ready(objective(*unravel(np.array(flat)), obs, priors))
    found["processor seconds a gradient"] = (time.process_time() - clock) / repeats
    return found


def fit(n):
    """Processor seconds of a whole fit and of the posterior intensities."""
    import numpy as np

    from bayes_refine import load_model
    from bayes_refine.merging import scaling
    from bayes_refine.merging.latent import intensity_posteriors

    obs = simulated(n)
    clock = time.process_time()
    run = scaling.fit_scales(obs, load_model("latent"))
    found = {"observations": n, "processor seconds of the fit": time.process_time() - clock}
    clock = time.process_time()
    intensity_posteriors(run.measured, run.prior)
    return found | {
        "of the intensities": time.process_time() - clock,
        "gradients": run.fit.iterations,
        "images settled": float(np.mean(run.fit.status == "converged")),
    }


def one(task, n):
    """Run by :func:`main` in a process of its own."""
    import jax

    jax.config.update("jax_enable_x64", True)
    found = {"--fit": fit, "--gradient": gradient}[task](n)
    found["GiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps(found))


def main(task, sizes):
    for n in sizes:
        run = subprocess.run(
            [sys.executable, __file__, "--one", task, str(n)], capture_output=True, text=True
        )
        if run.returncode:
            sys.exit(run.stderr)
        found = json.loads(run.stdout.splitlines()[-1])
        print(", ".join(f"{k} {v:.3g}" for k, v in found.items()), flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        one(sys.argv[2], int(sys.argv[3]))
    else:
        given = [word for word in sys.argv[1:] if word != "--fit"]
        task = "--fit" if "--fit" in sys.argv else "--gradient"
        main(task, [int(float(x)) for x in given] or SIZES)
