"""Do the same crystals through DIALS's and through CrystFEL's door give the same intensities?

    PYTHONPATH=. python analysis/two_doors.py EXPERIMENTS.expt REFERENCE [--images A:B] [--out DIR]

Writes ``run.stream`` and ``run.geom`` of the stills (as `simulate --layout crystfel` does), fits
both with the same options, and prints how far intensities of the same reflections are apart.  What
a stream cannot say is given as options: polarisation and sensor.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import gemmi
import numpy as np

import bayes_refine as br
from bayes_refine.simulation.layouts import write_crystfel_layout


def fit(stills: Path, out: Path, *options: str) -> None:
    command = [sys.executable, "-m", "bayes_refine.cli", "fit", str(stills), "--out", str(out)]
    subprocess.run([*command, "--draws", "10", *options], check=True)


def column(path: Path, label: str) -> dict[tuple[int, int, int], float]:
    mtz = gemmi.read_mtz_file(str(path))
    values = np.array(mtz.column_with_label(label), float)
    return dict(zip(map(tuple, mtz.make_miller_array().tolist()), values.tolist(), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("experiments", type=Path)
    parser.add_argument("reference")
    parser.add_argument("--images", default="0:8")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--d-min", default="2.3")
    options = parser.parse_args()
    out = (options.out or Path(tempfile.mkdtemp())).absolute()
    out.mkdir(parents=True, exist_ok=True)
    first, last = map(int, options.images.split(":"))
    whole = br.read_experiments(options.experiments)
    run = replace(whole, stills=whole.stills[first:last])
    for image in {still.image_path for still in run.stills}:
        if not (out / image.name).exists():
            (out / image.name).symlink_to(image)
    write_crystfel_layout(run, out)
    still = run.stills[0]
    common = ["--reference", options.reference, "--d-min", options.d_min]
    dials = [*common, "--images", options.images]
    percent = 100 * still.beam.polarization_fraction
    group = still.crystal.space_group.xhm()
    crystfel = [*common, "--space-group", group, "--polarisation", f"horiz{percent:.0f}"]
    crystfel += ["--sensor-thickness-mm", str(still.detector.thickness_mm[0])]
    crystfel += ["--sensor-mu", str(still.detector.mu_per_mm[0])]
    fit(options.experiments, out / "dials", *dials)
    fit(out / "run.stream", out / "crystfel", *crystfel)
    for name, label in (("merged", "IMEAN"), ("posterior", "IPOST"), ("posterior", "FPOST")):
        a, b = (column(out / door / f"{name}.mtz", label) for door in ("dials", "crystfel"))
        common_rows = [h for h in a if h in b and np.isfinite(a[h]) and np.isfinite(b[h])]
        x, y = (np.array([values[h] for h in common_rows]) for values in (a, b))
        size = np.abs(x).mean()
        print(
            f"{label}: {len(a)} and {len(b)} reflections, {len(common_rows)} of both; largest"
            f" difference {np.abs(x - y).max() / size:.1e} of the mean {label}"
        )


if __name__ == "__main__":
    main()
