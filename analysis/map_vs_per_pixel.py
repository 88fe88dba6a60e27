"""Is the factored likelihood as good as that of every pixel, and what does each cost?

The same run fitted to factored statistics and to its pixels, on `plain`, `thermolysin_xfel` and
a run simulated from the model itself, bright and faint; then CPU time of one fit from one start to
one hundredth of a posterior sd, of each likelihood by the same search.

    python analysis/map_vs_per_pixel.py --images 40 --out map_vs_per_pixel.png
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import h5py
import jax
import matplotlib.pyplot as plt
import numpy as np
from known_run import SHARED, load
from pixel_start import at_start, thermolysin

import bayes_refine as br
from bayes_refine import infer
from bayes_refine.per_pixel import compare, curvature, pixel_noise
from bayes_refine.per_pixel.pixels import frozen, pixels_of

FACTORED, PER_PIXEL = br.load_model("still"), br.load_model("per_pixel")
SHOWN = (
    "ε_r error, rms near the sphere, median, 1e-5 Å⁻¹",
    "orientation error, median, mrad",
    "ln G error, robust sd",
    "B error, robust sd, Å²",
    "R1(I) to the reference",
    "pull of ln G, robust sd",
)


def simulated(folder: Path, **changed):
    """Stills, reference and truth of a run from the model's own physics."""
    expt = br.simulate_run(br.Simulation(mosaic_rad=3e-4, **changed), folder)
    stills = br.read_experiments(expt).stills
    with h5py.File(folder / "truth.h5") as file:
        truth = compare.TrueImages(file["A"][()], file["G"][()], file["B"][()])
        bandwidth = float(file.attrs["bandwidth"])
    stills = [replace(s, beam=replace(s.beam, bandwidth=bandwidth)) for s in stills]
    return stills, br.read_reference(folder / "reference.mtz"), truth


def table_of(stills, reference, truth, reader, settings, times=1):
    """Scores of every method on one run."""
    found = compare.compare(
        stills,
        reference,
        reader,
        compare.Models(FACTORED, PER_PIXEL),
        br.Priors(),
        settings,
        times,
        br.Listener(print),
    )
    return {c.name: compare.scores(c, reference, settings, truth) for c in found}


def show(name, tables, out):
    """Print one run's table and keep all so far: the next run takes its time."""
    table = tables[name]
    print(f"\n{name}")
    print(f"{'':52s}" + "".join(f"{m[-18:]:>19s}" for m in table))
    for quantity in next(iter(table.values())):
        values = "".join(f"{row[quantity]:19.4g}" for row in table.values())
        print(f"{quantity:52s}{values}", flush=True)
    out.with_suffix(".json").write_text(json.dumps(tables, indent=1))


def race(stills, reference, reader, settings) -> dict[str, tuple[float, int]]:
    """CPU ms an image and steps of one fit from one start, on the same shoeboxes."""
    run, measurements, state, priors = at_start(stills, reference, reader, FACTORED, settings)
    pixels = pixels_of(run, measurements, state, priors)
    pixels = frozen(pixels, infer.evaluate(PER_PIXEL, state, pixels, priors)["spots"])
    factored = (FACTORED, measurements.observations, priors)
    fits = {
        "factored, Fisher's curvature": lambda: br.map_fit(*factored, init=state, exact=False),
        "factored, exact at the end": lambda: br.map_fit(*factored, init=state),
    }
    for name, noise in (
        ("observed variance", pixel_noise.observed_variance),
        ("expected variance", pixel_noise.expected_variance),
        ("Poisson", pixel_noise.poisson),
    ):
        fits[f"per pixel, {name}"] = lambda noise=noise: curvature.pixel_fit(
            PER_PIXEL, noise, pixels, priors, state, max_iterations=400
        )
    found = {}
    for name, fit in fits.items():
        seconds = []
        for _ in range(3):  # the first compiles
            started = time.process_time()
            result = fit()
            seconds.append(time.process_time() - started)
        found[name] = 1e3 * min(seconds[1:]) / len(stills), result.iterations
        far = max(result.distance.max(), result.shared_distance)
        print(
            f"{name}: {found[name][0]:.1f} ms CPU an image, {found[name][1]} steps,"
            f" {far:.2g} sd to go",
            flush=True,
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--simulated", type=int, default=16)
    parser.add_argument("--race", type=int, default=16, help="images whose fits are timed")
    parser.add_argument("--times", type=int, default=2, help="2 for seconds without compilation")
    parser.add_argument("--data", type=Path, default=SHARED)
    parser.add_argument("--out", type=Path, default=Path("map_vs_per_pixel.png"))
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    settings, tables = br.Settings(d_min=2.3), {}

    stills, reference, true = load(options.data, options.images)
    with br.ImageReader() as reader:
        truth = compare.TrueImages(true.A, true.G, true.B)
        tables["plain"] = table_of(stills, reference, truth, reader, settings, options.times)
        show("plain", tables, options.out)

    with tempfile.TemporaryDirectory() as folder:
        for name, photons, background in (("simulated", 400.0, 6.0), ("faint", 40.0, 0.3)):
            run = simulated(
                Path(folder) / name,
                n_images=options.simulated,
                mean_photons=photons,
                background_photons=background,
            )
            with br.ImageReader() as reader:
                tables[name] = table_of(*run, reader, settings)
            show(name, tables, options.out)

    with br.ImageReader() as reader:
        stills, reference, read_noise = thermolysin(options.data, reader)
        chosen = replace(settings, read_noise=read_noise)
        tables["thermolysin"] = table_of(stills, reference, None, reader, chosen)
    show("thermolysin", tables, options.out)

    with br.ImageReader() as reader:
        stills, reference, _ = load(options.data, options.race)
        raced = race(stills, reference, reader, settings)
    options.out.with_suffix(".json").write_text(json.dumps({"race": raced, **tables}, indent=1))
    draw(tables, raced).savefig(options.out, dpi=110)


def draw(tables, raced):
    figure, axes = plt.subplots(2, 4, figsize=(17, 8), layout="constrained")
    methods = list(tables["plain"])
    runs = [name for name in tables if name != "thermolysin"]
    for axis, quantity in zip(axes.flat, SHOWN, strict=False):
        for k, method in enumerate(methods):
            x = np.arange(len(runs)) + (k - 2) * 0.16
            axis.bar(x, [tables[r][method][quantity] for r in runs], 0.16, label=method)
        axis.set_xticks(range(len(runs)), runs)
        axis.set_title(quantity, fontsize=9)
        if "pull" in quantity:
            axis.axhline(1, color="k", lw=0.8)
            axis.set_yscale("log")
    axes[0, 0].legend(fontsize=7)
    axis = axes.flat[6]
    for k, method in enumerate(methods):
        axis.bar(k, tables["thermolysin"][method]["CC(J, J_model), median"])
    axis.set_xticks(range(len(methods)), methods, rotation=30, ha="right", fontsize=7)
    axis.set_title("thermolysin_xfel: CC(J, J_model), median of 3", fontsize=9)
    axis.set_ylim(0.5, 1)
    axis = axes.flat[7]
    axis.barh(range(len(raced)), [x[0] for x in raced.values()])
    axis.set_yticks(range(len(raced)), [name.replace(", ", "\n", 1) for name in raced], fontsize=7)
    axis.set_title("one fit from one start, ms CPU an image (plain)", fontsize=9)
    return figure


if __name__ == "__main__":
    main()
