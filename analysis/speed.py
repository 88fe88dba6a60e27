"""How fast, and in how much memory?  Each size in a process of its own, after compilation.

More images than lysosim has are the same ones again.

python analysis/speed.py --images 50 100 200 1000
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from pathlib import Path

import jax
from lysosim import SHARED, load

import bayes_refine as br


def measure(data: Path, n: int) -> None:
    """One run to compile, one to time; the compilation is a small part of a large run."""
    jax.config.update("jax_enable_x64", True)
    stills, reference, _ = load(data, n)
    stills = (stills * (n // len(stills) + 1))[:n]
    model = br.load_model("still")
    for _ in range(2 if n <= 200 else 1):
        started = time.perf_counter()
        with br.ImageReader() as reader:
            run = br.fit_run(stills, reference, reader, model, br.Priors(), br.Settings(d_min=2.3))
        total = time.perf_counter() - started
    fit = sum(m.seconds_fit for m in run.movement)
    measured = sum(m.seconds_measure for m in run.movement)
    start = total - fit - measured
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{n} images: {1e3 * total / n:.0f} ms an image end to end: measuring three rounds"
        f" {1e3 * measured / n:.0f}, fitting {1e3 * fit / n:.0f}, finding a start"
        f" {1e3 * start / n:.0f}; Newton steps {[m.iterations for m in run.movement]};"
        f" peak memory {peak:.2f} GiB",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, nargs="+", default=[50, 100, 200])
    parser.add_argument("--data", type=Path, default=SHARED)
    options = parser.parse_args()
    if len(options.images) == 1:
        measure(options.data, options.images[0])
        return
    for n in options.images:
        command = [sys.executable, __file__, "--images", str(n), "--data", str(options.data)]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
