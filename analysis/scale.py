"""How do time, memory and bytes on the wire of a whole fit grow with the number of images?

Simulates a run of small stills once, with the errors of real crystals, and fits its first N images
for each N by the command line, each in a process of its own, alone or with ``--workers``.  From
``summary.json`` and from the process: images a second, processor seconds of all processes, peak
memory of the program and of the largest worker, and with workers the bytes of each kind of step.

    python analysis/scale.py 32 128 512 --workers 2
    python analysis/scale.py 1000 10000 100000 --pixels 96 --d-min 6 --work DIR
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

ERRORS = (
    *("--mosaic-mrad", 1, "--model-error", 0.1, "--mosaic-blocks", 400),
    *("--position-error-px", 0.05, "--shape-error", 0.1),
)
MAIN = "import sys; from bayes_refine.cli import main; main(sys.argv[1:])"


def run(*words: object) -> tuple[float, float, float]:
    """Wall and processor seconds, and peak GiB of the program itself."""
    started = time.monotonic()
    command = [sys.executable, "-c", MAIN, *map(str, words)]
    pid = os.posix_spawn(sys.executable, command, dict(os.environ))
    _, status, used = os.wait4(pid, 0)
    if status:
        raise SystemExit(f"{' '.join(map(str, words))}: ended with status {status}")
    return time.monotonic() - started, used.ru_utime + used.ru_stime, used.ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sizes", type=int, nargs="+", metavar="N")
    parser.add_argument("--workers", type=int, default=0, help="processes; 0 for the program alone")
    parser.add_argument("--no-reference", action="store_true")
    parser.add_argument("--pixels", type=int, default=256)
    parser.add_argument("--distance", type=float, default=60.0, help="mm")
    parser.add_argument("--d-min", type=float, default=2.5)
    parser.add_argument("--work", type=Path, help="folder that stays; what it has is taken")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = options.work or Path(name)
        if not (folder / "data" / "simulation.json").exists():
            seconds = run(
                *("simulate", "--out", folder / "data", "--images", max(options.sizes)),
                *("--pixels", options.pixels, "--distance-mm", options.distance),
                *("--d-min", options.d_min, *ERRORS),
            )
            print(f"simulated in {seconds[1]:.0f} processor s")
        print("images  wall s  cpu s  images/s  GiB here  GiB worker   kB/image sent  received")
        for n in options.sizes:
            out = folder / f"out{n}"
            words = ["fit", folder / "data" / "indexed.expt", "--images", f"0:{n}", "--out", out]
            words += ["--d-min", options.d_min]
            if not options.no_reference:
                words += ["--reference", folder / "data" / "reference.mtz"]
            words += ["--draws", 10, "--gain", 1, "--read-noise", 0, "-q"]
            if options.workers:
                words += ["--workers", options.workers]
            wall, cpu, here = run(*words)
            summary = json.loads((out / "summary.json").read_text())
            work = summary.get("workers", {})
            memory = [v for k, v in work.get("memory_gib", {}).items() if k != "here"]
            kilobytes = [work.get(f"bytes_{way}", 0) / n / 1e3 for way in ("sent", "received")]
            print(
                f"{n:6d} {wall:7.0f} {cpu:6.0f} {n / wall:9.2f} {here:9.2f} "
                f"{max(memory, default=0):11.2f} {kilobytes[0]:15.1f} {kilobytes[1]:9.1f}",
                flush=True,
            )
            for kind, step in work.get("steps", {}).items():
                each = [step[f"bytes_{way}"] / n / step["calls"] for way in ("sent", "received")]
                print(f"    {kind}: {step['calls']} times, {each[0]:.0f} and {each[1]:.0f} B/image")
            seconds = {k: round(v, 1) for k, v in summary["seconds"].items()}
            print(f"    {seconds}", flush=True)


if __name__ == "__main__":
    main()
