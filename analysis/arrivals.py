"""How long after an image came is it in the report, while a run is measured?

Simulates a run, puts its images one by one, each as an ``.expt`` of its own, into a folder at a
steady rate, and runs ``bayes-refine watch`` there.  An image is in the report when ``images.csv``
has it and ``report.html`` is not older.  Printed are, for each addition, images in all and new, the
seconds from the coming of its images to their place in the report, and the processor seconds that
the program has taken since the addition before.

    python analysis/arrivals.py --images 96 --rate 2
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

WATCH = "import sys; from bayes_refine.cli import main; main(sys.argv[1:])"


def pieces(data: Path, n: int) -> list[str]:
    """The experiment list of a simulated run, one document an image, with absolute paths."""
    document = json.loads((data / "indexed.expt").read_text())
    for imageset in document["imageset"]:
        for key in ("template", "images"):
            if isinstance(imageset.get(key), str):
                imageset[key] = str(data / imageset[key])
            elif imageset.get(key):
                imageset[key] = [str(data / name) for name in imageset[key]]
    return [json.dumps(document | {"experiment": [e]}) for e in document["experiment"][:n]]


def in_report(out: Path) -> list[str]:
    """Identifiers of the images that the report has, once it is there."""
    table, report = out / "images.csv", out / "report.html"
    if not report.exists() or report.stat().st_mtime < (out / "summary.json").stat().st_mtime:
        return []
    with table.open() as file:
        return [row["identifier"] for row in csv.DictReader(file)]


def processor_seconds(pid: int) -> float:
    """That a process has taken; NaN where the system does not say so in ``/proc``."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return float("nan")
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def measure(options: argparse.Namespace, folder: Path) -> None:
    simulate = ["simulate", "--out", str(folder / "data"), "--images", str(options.images)]
    simulate += ["--pixels", str(options.pixels), "--distance-mm", str(options.distance)]
    subprocess.run([sys.executable, "-c", WATCH, *simulate], check=True, capture_output=True)
    come, out = folder / "come", folder / "out"
    come.mkdir()
    words = ["watch", str(come), "--out", str(out), "--idle", str(options.idle)]
    words += ["--reference", str(folder / "data" / "reference.mtz"), "--d-min", str(options.d_min)]
    words += ["--draws", "10", "--gain", "1", "--read-noise", "0", "-q"]
    texts, came, seen = pieces(folder / "data", options.images), {}, {}

    def comer() -> None:
        for k, text in enumerate(texts):
            (come / f"image{k:05d}.expt").write_text(text)
            came[json.loads(text)["experiment"][0]["identifier"]] = time.monotonic()
            time.sleep(1 / options.rate)

    with subprocess.Popen([sys.executable, "-c", WATCH, *words]) as run:
        threading.Thread(target=comer).start()
        print("images   new   longest wait s   shortest wait s   processor s")
        taken = 0.0
        while run.poll() is None:
            time.sleep(0.2)
            try:
                now = time.monotonic()
                new = [name for name in in_report(out) if name not in seen]
            except (OSError, KeyError):
                continue
            if new:
                seen.update(dict.fromkeys(new, now))
                waits = [now - came[name] for name in new]
                before, taken = taken, processor_seconds(run.pid)
                print(
                    f"{len(seen):6d} {len(new):5d} {max(waits):16.1f} {min(waits):17.1f} "
                    f"{taken - before:13.1f}",
                    flush=True,
                )
    waits = np.array([seen[name] - came[name] for name in seen])
    half = waits[len(waits) // 2 :]
    print(
        f"{len(seen)} of {len(came)} images at {options.rate:g} a second: median wait "
        f"{np.median(waits):.1f} s, of the later half {np.median(half):.1f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--rate", type=float, default=10.0, help="images a second")
    parser.add_argument("--pixels", type=int, default=256)
    parser.add_argument("--distance", type=float, default=60.0, help="mm")
    parser.add_argument("--d-min", type=float, default=2.5)
    parser.add_argument("--idle", type=float, default=30.0)
    with tempfile.TemporaryDirectory() as folder:
        measure(parser.parse_args(), Path(folder))


if __name__ == "__main__":
    main()
