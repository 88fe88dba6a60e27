"""``bayes-refine simulate`` and ``bayes-refine demo``."""

from __future__ import annotations

import math
import shlex
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from .. import demo, loading
from ..fitting.prepare import prepare
from ..fitting.problem import Settings
from ..io.expt import read_experiments
from ..io.images import ImageReader
from ..io.reference import read_reference
from ..physics import priors
from ..simulation.files import FILES, simulate_run
from ..simulation.layouts import Layout, write_layout
from ..simulation.truth import Simulation
from ..util import folder
from . import options
from .app import out_console, progress
from .fit import fit_and_write
from .long_command import long_command
from .options import number_option as number


@long_command("simulate")
def simulate_command(
    out: options.Out,
    images: Annotated[
        int, typer.Option(min=1, max=100_000, metavar="N", help="Number of stills.")
    ] = 12,
    seed: options.SimulationSeed = 1,
    d_min: Annotated[float, number(0.5, 100, "Å", "Resolution limit, Å.")] = 2.3,
    pixels: Annotated[
        int,
        typer.Option(min=64, max=16_384, metavar="N", help="Pixels along a side of the detector."),
    ] = 480,
    distance_mm: Annotated[float, number(1, 1e5, "MM", "Distance of the detector.")] = 110.0,
    panels: Annotated[int, typer.Option(metavar="N", help="1, or 4 for 2×2 tiles.")] = 1,
    wavelength: Annotated[float, number(0.1, 20, "Å", "Å.")] = 1.0,
    bandwidth: Annotated[float, number(0, 0.2, "FRACTION", "Bandwidth Δλ/λ, rms.")] = 1e-3,
    mosaic_mrad: Annotated[float, number(0, 100, "MRAD", "Mosaic spread η, exp(−φ²/η²).")] = 0.0,
    photons: Annotated[
        float, number(0, 1e9, "PHOTONS", "Mean I_ref of a unique reflection.")
    ] = 400.0,
    background: Annotated[float, number(0, 1e6, "PHOTONS", "Background of a pixel.")] = 6.0,
    gain: Annotated[float, number(1e-6, 1e6, "G", "Counts per photon.")] = 1.0,
    read_noise: Annotated[float, number(0, 1e6, "COUNTS", "Read-out noise, rms.")] = 0.0,
    rotation_error_deg: Annotated[
        float, number(0, 180, "DEG", "Angle from true to indexed orientation, rms.")
    ] = 0.05,
    model_error: Annotated[
        float, number(0, 10, "FRACTION", "Error of each spot's photons beyond counting, rms.")
    ] = 0.0,
    mosaic_blocks: Annotated[
        float, number(1, math.inf, "N", "Mosaic blocks in a crystal; with few, p is uneven.")
    ] = math.inf,
    position_error_px: Annotated[
        float, number(0, 10, "PX", "Displacement of each spot, each axis, rms.")
    ] = 0.0,
    shape_error: Annotated[
        float, number(0, 1, "FRACTION", "Error of the square of each spot's width, rms.")
    ] = 0.0,
    layout: Annotated[
        Layout, typer.Option(help="Also write files as users of this program have them.")
    ] = Layout.dials,
) -> None:
    """Simulate a run of stills: images, geometry as indexed, reference, and the truth."""
    simulation = Simulation(
        n_images=images,
        seed=seed,
        d_min=d_min,
        n_pixels=pixels,
        distance_mm=distance_mm,
        n_panels=panels,
        wavelength=wavelength,
        bandwidth=bandwidth,
        mosaic_rad=mosaic_mrad * 1e-3,
        mean_photons=photons,
        background_photons=background,
        gain=gain,
        read_noise=read_noise,
        rotation_error_deg=rotation_error_deg,
        model_error=model_error,
        mosaic_blocks=mosaic_blocks,
        position_error_px=position_error_px,
        shape_error=shape_error,
    )
    expt = _simulate(simulation, out)
    data = expt.parent
    more = write_layout(layout, read_experiments(expt), data)
    out_console.print(f"wrote {data}: {', '.join((*FILES, *more))}", soft_wrap=True)
    line = ["bayes-refine", "fit", str(expt), "--reference", str(data / "reference.mtz")]
    out_console.print(f"now: {shlex.join([*line, '--out', str(data / 'fit')])}", soft_wrap=True)


@long_command("demo")
def demo_command(
    context: typer.Context,
    out: options.Out,
    images: Annotated[
        int, typer.Option(min=2, max=100_000, metavar="N", help="Number of stills.")
    ] = 6,
    seed: options.SimulationSeed = 1,
) -> None:
    """Simulate a small run, fit it, and print how near the truth the fit came."""
    started = time.perf_counter()
    context.with_resource(folder.taken(out / "fit"))
    simulation = Simulation(n_images=images, seed=seed)
    expt = _simulate(simulation, out / "data")
    experiments = read_experiments(expt)
    ref = read_reference(out / "data" / "reference.mtz")
    with ImageReader() as reader:
        run = fit_and_write(
            out / "fit",
            lambda: prepare(experiments, reader, ref, d_min=simulation.d_min),
            loading.load_model("still"),
            priors.Priors(),
            Settings(seed=seed),
            started,
            about={"command": context.obj or [], "model": "still"},
        )
    table = Table(title="how near the truth", title_justify="left", box=None, pad_edge=False)
    for name in ("error, rms", "before", "after", "in σ"):
        table.add_column(name, justify="left" if name == "error, rms" else "right")
    for error in demo.errors(run, out / "data" / "truth.h5"):
        row = [error.name]
        for value, form in ((error.before, ".3g"), (error.after, ".3g"), (error.pull, ".1f")):
            row.append("" if value is None else f"{value:{form}}")
        table.add_row(*row)
    out_console.print(table)


def _simulate(simulation: Simulation, out: Path) -> Path:
    with progress() as listener:
        return simulate_run(simulation, out, listener)
