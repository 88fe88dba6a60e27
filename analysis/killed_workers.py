"""Does it matter who does the work, and what a killed worker costs?

Fits one simulated run alone, by ``--workers 2``, and by a Dask cluster of two processes that is
joined by its file.  Then fits it by two workers again and again, and kills (SIGKILL) at a random
moment of each fit one worker, and both workers of every second fit.  For each fit: how many files
differ by a byte from those of the fit alone, the largest difference of a number in the MTZ files,
and seconds.

    python analysis/killed_workers.py --images 48 --kills 20
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import gemmi
import numpy as np
import psutil

DASK = [sys.executable, "-m", "dask"]
MAIN = "import sys; from bayes_refine.cli import main; main(sys.argv[1:])"
FILES = (
    *("merged.mtz", "posterior.mtz", "half1.mtz", "half2.mtz", "unmerged.mtz"),
    *("unmerged_scaled.mtz", "images.csv", "posterior.nc", "refined.expt"),
)


def command(*words: object) -> list[str]:
    """A command of ``bayes-refine`` in a process of its own."""
    return [sys.executable, "-c", MAIN, *map(str, words)]


def fitted(words: list[str], meanwhile: Callable[[subprocess.Popen], str] | None = None) -> str:
    """What happened in a fit, in words; it must end well."""
    said = ""
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as run:
        if meanwhile is not None:
            said = meanwhile(run)
        assert run.stderr is not None
        errors = run.stderr.read().decode()
    if run.returncode:
        raise SystemExit(f"a fit ended with status {run.returncode}: {errors[-2000:]}")
    return said


def kill(run: subprocess.Popen, after: float, how_many: int, rng: random.Random) -> str:
    """Kill workers of a fit after so many seconds, all at the same time."""
    time.sleep(after)
    try:
        family = psutil.Process(run.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return f"ended before {after:.1f} s"
    workers = [p for p in family if "spawn_main" in " ".join(p.cmdline())]
    if not workers:
        return f"no worker at {after:.1f} s"
    chosen = rng.sample(workers, min(how_many, len(workers)))
    for worker in chosen:
        worker.kill()
    return f"killed {len(chosen)} of {len(workers)} at {after:.1f} s"


def compared(one: Path, other: Path) -> str:
    """How the results of two fits differ."""
    differ = [n for n in FILES if (one / n).read_bytes() != (other / n).read_bytes()]
    worst = 0.0
    for name in (n for n in differ if n.endswith(".mtz")):
        a, b = (np.array(gemmi.read_mtz_file(str(x / name)), copy=True) for x in (one, other))
        if a.shape != b.shape:
            return f"{name}: {len(a)} rows for {len(b)}"
        scale = np.nanmean(np.abs(a), axis=0) + 1e-30
        worst = max(worst, float(np.nanmax(np.abs(a - b) / scale)))
    return f"{len(differ)} of {len(FILES)} files differ {' '.join(differ)}, by {worst:.1e}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = ("--images", options.images, "--pixels", 256, "--distance-mm", 60)
        data = folder / "data"
        fitted(command("simulate", "--out", data, *size))

        def fit(out: str, *more: object) -> list[str]:
            words = ("fit", data / "indexed.expt", "--reference", data / "reference.mtz")
            common = ("--d-min", 2.5, "--draws", 4, "--gain", 1, "--read-noise", 0, "-q")
            return command(*words, *common, "--out", folder / out, *more)

        def row(out: str, words: list[str], meanwhile=None) -> float:
            started = time.monotonic()
            said = fitted(words, meanwhile)
            seconds = time.monotonic() - started
            summary = json.loads((folder / out / "summary.json").read_text())
            failures = len(summary.get("workers", {}).get("failures", ()))
            same = compared(folder / "alone", folder / out)
            print(f"{out:10} {seconds:5.0f} s  {same}; {failures} given again; {said}", flush=True)
            return seconds

        row("alone", fit("alone"))
        row("alone 2", fit("alone 2"))
        duration = row("workers", fit("workers", "--workers", 2))
        place = folder / "scheduler.json"
        here = ["--scheduler-file", str(place)]
        ports = ["--port", "0", "--dashboard-address", ":0"]
        alone = ["--nthreads", "1", "--no-dashboard", "--local-directory", name]
        cluster = [subprocess.Popen([*DASK, "scheduler", *here, *ports], stderr=subprocess.DEVNULL)]
        while not place.exists() or not place.stat().st_size:
            time.sleep(0.2)
        for _ in range(2):
            worker = [*DASK, "worker", *here, *alone]
            cluster.append(subprocess.Popen(worker, stderr=subprocess.DEVNULL))
        try:
            row("joined", fit("joined", "--scheduler", place))
        finally:
            for process in reversed(cluster):
                process.terminate()
                process.wait()
        for k in range(options.kills):
            after = rng.uniform(0.05, 0.9) * duration
            words = fit(f"killed {k + 1}", "--workers", 2)
            n = 1 + k % 2
            row(f"killed {k + 1}", words, lambda run, after=after, n=n: kill(run, after, n, rng))


if __name__ == "__main__":
    main()
