"""How do time and memory of scaling grow with the number of observations?

    PYTHONPATH=. python analysis/merge_cost.py [N ...]

Simulates integrated stills with N observations in all (10⁴ ... 10⁶ by default, 200 an image up to
2,000 images), each reflection 20 times at least, and times ``fit_scales``; one process a size.
"""

import json
import resource
import subprocess
import sys
import time

SIZES = (10**4, 10**5, 10**6)


def one(n):
    """Seconds and memory of one size; a first fit of the same shape has compiled everything."""
    import jax
    import numpy as np

    jax.config.update("jax_enable_x64", True)
    from bayes_refine import load_model, scaling
    from bayes_refine.latent import true_intensities
    from bayes_refine.simulate_unmerged import UnmergedSimulation, simulate_unmerged

    n_images = min(max(n // 200, 20), 2000)
    edge = 40.0 if n < 3e6 else 90.0
    settings = UnmergedSimulation(
        n_images=n_images,
        each=n // n_images,
        n_unique=max(n // 20, 100),
        d_min=1.6,
        cell=(edge, edge, 1.5 * edge, 90.0, 90.0, 90.0),
    )
    obs = scaling.prepare(simulate_unmerged(settings).data)
    found = {"observations": len(obs.intensity), "unique": len(obs.hkl), "images": n_images}
    clock = time.perf_counter(), time.process_time()
    fit = scaling.fit_scales(obs, load_model("latent"))
    found["seconds, compiling too"] = time.perf_counter() - clock[0]
    found["processor seconds"] = time.process_time() - clock[1]
    found["evaluations"] = fit.fit.iterations
    clock = time.perf_counter(), time.process_time()
    true_intensities(fit.measured, fit.prior)
    found["processor seconds, intensities"] = time.process_time() - clock[1]
    found["converged"] = float(np.mean(fit.fit.status == "converged"))
    found["GiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps(found))


def main(sizes):
    for n in sizes:
        run = subprocess.run(
            [sys.executable, __file__, "--one", str(n)], capture_output=True, text=True
        )
        if run.returncode:
            sys.exit(run.stderr)
        found = json.loads(run.stdout.splitlines()[-1])
        found["processor µs per observation and evaluation"] = (
            1e6 * found["processor seconds"] / found["observations"] / found["evaluations"]
        )
        print(", ".join(f"{k} {v:.3g}" for k, v in found.items()), flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        one(int(sys.argv[2]))
    else:
        main([int(float(x)) for x in sys.argv[1:]] or SIZES)
