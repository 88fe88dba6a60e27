"""What does a slope of ln p cost, of which fits and NUTS are made, and what sets its cost?

One batch of stills is fitted, and the program of its slope is timed at the mode: with fewer images
at a time, by other options of XLA's compiler, and on one processor or all.  Kernels are the parts
that XLA executes one after another.

    python analysis/slope.py
    python analysis/slope.py --data ../shared/data --run lysosim
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from bayes_refine.util.kept_programs import _QUICK

LIBRARY = "as in the library"
OPTIONS = {
    LIBRARY: _QUICK,
    "level 0": _QUICK | {"xla_backend_optimization_level": 0},
    "level 3": _QUICK | {"xla_backend_optimization_level": 3},
    "fusion emitters": {},
    "fast run": {"xla_cpu_opt_preset": "CPU_OPT_PRESET_FAST_RUNTIME"},
    "wide vectors": _QUICK | {"xla_cpu_prefer_vector_width": 512},
}


def times(call, repeat: int) -> tuple[float, float]:
    """Median wall and mean processor seconds of a call."""
    call()
    wall, begin = [], time.process_time()
    for _ in range(repeat):
        started = time.perf_counter()
        call()
        wall.append(time.perf_counter() - started)
    return float(np.median(wall)), (time.process_time() - begin) / repeat


def measure(data: Path, run_name: str, images: int, repeat: int, first_only: bool) -> None:
    """Print a row for each way to compute the slope of a batch."""
    import jax
    from known_run import load

    import bayes_refine as br
    from bayes_refine.infer.programs import compiled_slope
    from bayes_refine.util.large_arrays import keep_freed_memory

    keep_freed_memory()
    jax.config.update("jax_enable_x64", True)
    stills, reference, _ = load(data, images, run_name)
    with br.ImageReader() as reader:
        settings = br.Settings(d_min=2.3)
        run = br.fit_run(stills, reference, reader, br.load_model("still"), settings=settings)
    args = jax.device_put((run.observed.parts[0], run.priors))
    slope = compiled_slope(run.problem.model, run.fit.sites, True).__wrapped__
    theta, n = run.observed.padded(run.fit.image), run.observed.size

    def timed(what: str, some: int, options: dict) -> None:
        few = jax.tree.map(lambda x: x[:some] if np.ndim(x) else x, args[0])
        given = theta[:some], run.fit.shared, np.ones(some), (few, args[1])
        jax.clear_caches()
        started, begin = time.perf_counter(), time.process_time()
        program = jax.jit(slope).lower(*given).compile(compiler_options=options)
        compiling = time.perf_counter() - started, time.process_time() - begin
        wall, cpu = times(lambda: jax.block_until_ready(program(*given)), repeat)
        entry = program.as_text().split("\nENTRY ")[1]
        kernels = len(re.findall(r" = \S+ (?:fusion|dot|custom-call|reduce|copy)\(", entry))
        print(
            f"| {what} | {some} | {compiling[0]:.1f} ({compiling[1]:.1f}) | {kernels} |"
            f" {1e3 * wall:.2f} ({1e3 * cpu:.2f}) | {1e6 * wall / some:.0f} |",
            flush=True,
        )

    timed(f"{LIBRARY}; processors: {len(os.sched_getaffinity(0))}", n, OPTIONS[LIBRARY])
    if first_only:
        return
    for name, options in OPTIONS.items():
        if name != LIBRARY:
            timed(name, n, options)
    for some in (1, 2, 4, 8):
        timed(LIBRARY, some, OPTIONS[LIBRARY])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    from known_run import SHARED

    parser.add_argument("--data", type=Path, default=SHARED)
    parser.add_argument("--run", default="lysosim")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--repeat", type=int, default=100)
    parser.add_argument("--alone", action="store_true", help="on one processor, the first row only")
    options = parser.parse_args()
    if options.alone:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    else:
        print("| how | images | to compile, s (CPU) | kernels | a slope, ms (CPU) | µs an image |")
        print("|---|---|---|---|---|---|", flush=True)
    measure(options.data, options.run, options.images, options.repeat, options.alone)
    if not options.alone:
        subprocess.run([sys.executable, __file__, *sys.argv[1:], "--alone"], check=True)


if __name__ == "__main__":
    main()
