"""Do forecasts hold?  From the first images of a run the state at all images is foretold.

Fits the first n images by the command line, for each n of which all images are 2, 5 or 10 times as
many, and all of them (or takes a fit of all that is there, ``--whole``).  Of each number and shell
of resolution: is what came inside the 90 % interval that was foretold?

    python analysis/forecast.py indexed.expt --reference model.mtz --d-min 2.3 --all 200 20 40
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

MAIN = "import sys; from bayes_refine.cli import main; main(sys.argv[1:])"
NUMBERS = ("completeness", "mean_i_over_sigma", "cc_half")


def summary_of(options: argparse.Namespace, n: int, folder: Path) -> dict:
    """Of a fit of the first n images."""
    out = folder / f"first{n}"
    words = ["fit", options.experiments, "--images", f"0:{n}", "--out", out, "-q", "--draws", 10]
    words += ["--d-min", options.d_min]
    words += ["--reference", options.reference] if options.reference else []
    subprocess.run([sys.executable, "-c", MAIN, *map(str, words)], check=True)
    return json.loads((out / "summary.json").read_text())


def compare(then: dict, early: dict, n: int) -> None:
    """Print, for each number, what share of the shells' intervals held what came."""
    came = {row["shell"]: row for row in then["agreement"]}
    used = then["counts"]["images_used"]
    rows = [f for f in early["forecast"] if abs(f["images"] / used - 1) < 0.1]
    for name in NUMBERS:
        told = [(f[name], came[f["shell"]][name]) for f in rows if f["shell"] in came]
        told = [(interval, value) for interval, value in told if None not in (*interval, value)]
        held = [low <= value <= high for (low, _, high), value in told]
        off = [value - middle for (_, middle, _), value in told]
        width = [high - low for (low, _, high), _ in told]
        less, wide = (sum(x) / max(len(off), 1) for x in (off, width))
        print(
            f"from {n} images, {name}: {sum(held)} of {len(held)} shells inside; what came less "
            f"the median {less:+.3f}, width {wide:.3f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("experiments", type=Path)
    parser.add_argument("sizes", type=int, nargs="+", metavar="n")
    parser.add_argument("--all", type=int, default=200, help="images")
    parser.add_argument("--whole", type=Path, help="folder of a fit of all")
    parser.add_argument("--reference", type=Path)
    parser.add_argument("--d-min", type=float, default=2.3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.whole is None:
            then = summary_of(options, options.all, folder)
        else:
            then = json.loads((options.whole / "summary.json").read_text())
        for n in options.sizes:
            compare(then, summary_of(options, n, folder), n)


if __name__ == "__main__":
    main()
