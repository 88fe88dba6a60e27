"""How do time and memory of scaling and merging grow with the number of observations?

    PYTHONPATH=. python analysis/merge_cost.py [--fit | --command] [N ...]

Simulates integrated stills with N observations in all (10⁴ ... 3·10⁶ by default; 200 an image, at
most 2,000 images; 20 of each reflection) and times what a fit is made of: the gradient of ln p,
of which it takes some 60 to 120 whatever N, and the posterior intensities at the end.  ``--fit``
runs whole fits instead.  One process a size.

``--command`` runs `bayes-refine merge` on MTZ files of a million observations each: 150 an image,
N/150 images, of the 12,600 reflections of tetragonal lysozyme to 1.7 Å.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

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


EACH, OF_A_FILE = 150, 6667  # observations of an image, images of a file


def write(n, folder):
    """Write MTZ files of n observations, one after the other."""
    import numpy as np

    from bayes_refine.io.mtz import new_batch, write_observations
    from bayes_refine.simulation.unmerged import UnmergedSimulation, simulate_in_parts

    settings = UnmergedSimulation(
        n_images=n // EACH,
        each=EACH,
        d_min=1.7,
        cell=(79.0, 79.0, 38.0, 90.0, 90.0, 90.0),
        space_group="P 43 21 2",
    )
    for k, part in enumerate(simulate_in_parts(settings, OF_A_FILE)):
        data = part.data
        columns = {"BATCH": data.batch, "I": data.J, "SIGI": data.sigma}
        columns["EPSILON_R"] = data.excitation_error
        headers = (new_batch(int(b), str(b), data.cell, 1.3) for b in np.unique(data.batch))
        path, block = folder / f"part{k:04d}.mtz", (data.hkl, columns)
        write_observations(path, [block], len(data), data.cell, data.space_group, headers)


def command(n):
    """Wall and processor seconds of the whole command, its peak of memory, and its stages."""
    from scale import run  # not of the library, whose memory would count as the command's

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run([sys.executable, __file__, "--write", str(n), name], check=True)
        wall, seconds, memory = run(
            *("merge", *sorted(folder.glob("part*.mtz")), "-q", "--out", folder / "out")
        )
        stages = json.loads((folder / "out" / "summary.json").read_text())["seconds"]
    found = {"observations": n, "wall s": wall, "processor s": seconds}
    found |= {"µs an observation": 1e6 * seconds / n, "GiB": memory}
    return found | {f"{stage} s": x for stage, x in stages.items()}


def one(task, n):
    """Run by :func:`main` in a process of its own."""
    import jax

    jax.config.update("jax_enable_x64", True)
    found = {"--fit": fit, "--gradient": gradient}[task](n)
    found["GiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps(found))


def measured(task, n):
    """What :func:`one` found."""
    run = subprocess.run(
        [sys.executable, __file__, "--one", task, str(n)], capture_output=True, text=True
    )
    if run.returncode:
        sys.exit(run.stderr)
    return json.loads(run.stdout.splitlines()[-1])


def main(task, sizes):
    for n in sizes:
        found = command(n) if task == "--command" else measured(task, n)
        print(", ".join(f"{k} {v:.3g}" for k, v in found.items()), flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        one(sys.argv[2], int(sys.argv[3]))
    elif sys.argv[1:2] == ["--write"]:
        write(int(sys.argv[2]), Path(sys.argv[3]))
    else:
        tasks = [word for word in sys.argv[1:] if word in ("--fit", "--command")]
        given = [int(float(word)) for word in sys.argv[1:] if word not in tasks]
        main(tasks[0] if tasks else "--gradient", given or SIZES)
