"""How do time and memory grow with the number of images, 10 to 10⁴?

Each size in a process of its own.  The whole loop, from pixels: images of `plain`, the same ones
again where there are not enough.  The joint MAP alone: the statistics of 16 of them again and
again, read from disk as in the loop, so that no pixels need be measured for 10⁴ images; it
starts two posterior sd from the mode.  A first fit of few images pays for compilation.

    python analysis/cost.py --loop 10 100 1000 --map 10 100 1000 10000 --out cost.png
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from known_run import SHARED, load

import bayes_refine as br
from bayes_refine import infer
from bayes_refine.infer.density import unflatten

FEW = 16  # a batch of the loop


class Again(Sequence):
    """Parts that repeat, ``count`` in all."""

    def __init__(self, parts: Sequence, count: int) -> None:
        self.parts, self.count = parts, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i):
        if not 0 <= i < self.count:
            raise IndexError(i)
        return self.parts[i % len(self.parts)]


def few(data: Path, n: int, d_min: float) -> br.RunFit:
    """A run of ``n`` images, some of them again where the run has too few."""
    stills, reference, _ = load(data, n)
    stills = (stills * (n // len(stills) + 1))[:n]
    with br.ImageReader() as reader:
        settings = br.Settings(d_min=d_min)
        return br.fit_run(stills, reference, reader, br.load_model("still"), br.Priors(), settings)


def joint_map(run: br.RunFit, n: int) -> infer.Fit:
    """The MAP of n images with the statistics of a batch of a run, from two sd off."""
    rng, fit = np.random.default_rng(0), run.fit
    rows = np.arange(n) % FEW
    own = np.sqrt(np.diagonal(fit.image_covariance(), axis1=1, axis2=2))
    image = fit.image[rows] + 2 * own[rows] * rng.standard_normal((n, fit.image.shape[1]))
    start = unflatten(fit.sites, jnp.asarray(image), jnp.asarray(fit.shared))
    start = {name: np.asarray(value) for name, value in start.items()}
    obs = infer.Batches(Again(run.observed.parts, -(-n // FEW)), FEW, n)
    return br.map_fit(br.load_model("still"), obs, br.Priors(), init=start)


def measure(kind: str, n: int, data: Path, d_min: float) -> None:
    """Print seconds and peak GiB of one size as JSON."""
    jax.config.update("jax_enable_x64", True)
    run = few(data, FEW, d_min)
    if kind == "map":
        joint_map(run, min(n, FEW))
    started = time.perf_counter()
    if kind == "map":
        fit = joint_map(run, n)
        steps = fit.iterations
    else:
        steps = [m.iterations for m in few(data, n, d_min).movement]
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"kind": kind, "n": n, "seconds": seconds, "GiB": peak, "steps": steps}))


def draw(rows: list[dict], out: Path) -> None:
    """Time and memory against the number of images, log-log."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    for kind, label in (
        ("loop", "whole loop, from pixels"),
        ("map", "joint MAP, statistics on disk"),
    ):
        some = [r for r in rows if r["kind"] == kind]
        n = [r["n"] for r in some]
        for axis, what in zip(axes, ("seconds", "GiB"), strict=True):
            axis.loglog(n, [r[what] for r in some], "o-", label=label)
    largest = max(rows, key=lambda r: r["n"])
    line = np.array([min(r["n"] for r in rows), largest["n"]])
    axes[0].loglog(line, largest["seconds"] * line / largest["n"], "k:", label="linear")
    axes[0].set(xlabel="images", ylabel="wall time, s")
    axes[1].set(xlabel="images", ylabel="peak memory of the process, GiB", ylim=(0.1, 10))
    axes[0].legend()
    figure.savefig(out, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--loop", type=int, nargs="*", default=[10, 100, 1000])
    parser.add_argument("--map", type=int, nargs="*", default=[10, 100, 1000, 10_000])
    parser.add_argument("--one", nargs=2, metavar=("KIND", "N"), help="in this process")
    parser.add_argument("--d-min", type=float, default=2.3)
    parser.add_argument("--data", type=Path, default=SHARED)
    parser.add_argument("--out", type=Path, default=Path("cost.png"))
    options = parser.parse_args()
    if options.one:
        measure(options.one[0], int(options.one[1]), options.data, options.d_min)
        return
    rows = []
    for kind, n in [("loop", n) for n in options.loop] + [("map", n) for n in options.map]:
        command = [sys.executable, __file__, "--one", kind, str(n), "--d-min", str(options.d_min)]
        command += ["--data", str(options.data)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        each = 1e3 * rows[-1]["seconds"] / n
        print(f"{rows[-1]}: {each:.1f} ms an image", flush=True)
        draw(rows, options.out)


if __name__ == "__main__":
    main()
