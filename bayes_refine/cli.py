"""The command line: parse, call, print."""

from __future__ import annotations

import os
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import jax
import typer
from rich.console import Console
from rich.table import Table

from . import __version__, demo, fit, loading, noise, priors, reference, results, tables
from .errors import InputError
from .experiments import Experiments, Still
from .io.expt import read_experiments
from .io.images import ImageReader, read_bandwidth
from .simulate import Simulation
from .simulate_files import simulate_run

app = typer.Typer(
    name="bayes-refine",
    help="Bayesian integration, scaling and geometry refinement of still images.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
out_console, err_console = Console(highlight=False), Console(stderr=True, highlight=False)

Out = Annotated[
    Path,
    typer.Option(help="Folder for the results; made if absent.", metavar="DIR", show_default=False),
]
DETECTOR, INFERENCE = "Beam and detector", "Model and inference"


class Method(StrEnum):
    """How sigmas of merged intensities are found: at fixed scales, or with their uncertainty."""

    map = "map"
    laplace = "laplace"


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``bayes-refine``; exit status 2 with one sentence where input is no good."""
    command = ["bayes-refine", *(sys.argv[1:] if arguments is None else arguments)]
    warnings.formatwarning = lambda message, *_args, **_kw: f"bayes-refine: warning: {message}\n"
    _set_up_jax()
    try:
        app(args=command[1:], prog_name="bayes-refine", obj=command)
    except InputError as error:
        err_console.print(f"bayes-refine: {error}", markup=False, soft_wrap=True)
        sys.exit(2)


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        out_console.print(f"bayes-refine {__version__}")
        raise typer.Exit


@app.command("fit")
def fit_command(
    context: typer.Context,
    experiments: Annotated[
        Path,
        typer.Argument(
            help="Indexed stills, a DIALS .expt file.", metavar="EXPERIMENTS", show_default=False
        ),
    ],
    out: Out,
    reference_file: Annotated[
        Path | None,
        typer.Option(
            "--reference",
            metavar="FILE",
            help="Reference intensities: .mtz, structure-factor .cif, .pdb or model .cif.",
        ),
    ] = None,
    reference_column: Annotated[
        str | None,
        typer.Option(
            metavar="LABEL", help="Column of the reference; found by its usual names if left out."
        ),
    ] = None,
    d_min: Annotated[
        float | None,
        typer.Option(
            metavar="Å", help="Resolution limit, Å.", show_default="that of the reference"
        ),
    ] = None,
    images: Annotated[
        str | None,
        typer.Option(
            metavar="A:B", help="Range a:b of the stills, from 0, b left out.", show_default="all"
        ),
    ] = None,
    free_fraction: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=0.5,
            metavar="FRACTION",
            help="Share of unique reflections kept from the fit.",
        ),
    ] = 0.05,
    seed: Annotated[
        int, typer.Option(metavar="N", help="Of the free set, the random halves and the draws.")
    ] = 0,
    model: Annotated[
        str,
        typer.Option(
            metavar="NAME_OR_PATH",
            help="Name of a model, or path of your own (.py).",
            rich_help_panel=INFERENCE,
        ),
    ] = "still",
    method: Annotated[
        Method,
        typer.Option(
            help="Merged sigmas at fixed scales (map), or with the scales' uncertainty.",
            rich_help_panel=INFERENCE,
        ),
    ] = Method.laplace,
    priors_file: Annotated[
        Path | None,
        typer.Option(
            "--priors",
            metavar="FILE",
            help="TOML file of priors that replace defaults.",
            rich_help_panel=INFERENCE,
        ),
    ] = None,
    student_t: Annotated[
        float | None,
        typer.Option(
            min=1.0,
            metavar="NU",
            help="Degrees of freedom of Student-t residuals; inf for normal ones.",
            show_default="of the priors",
            rich_help_panel=INFERENCE,
        ),
    ] = None,
    rounds: Annotated[
        int,
        typer.Option(
            min=1, metavar="N", help="Rounds of predict, measure, fit.", rich_help_panel=INFERENCE
        ),
    ] = 3,
    draws: Annotated[
        int,
        typer.Option(
            min=4, metavar="N", help="Laplace draws in posterior.nc.", rich_help_panel=INFERENCE
        ),
    ] = 100,
    bandwidth: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=0.2,
            metavar="FRACTION",
            help="Bandwidth Δλ/λ, rms fraction.",
            show_default="from the image files, else 0",
            rich_help_panel=DETECTOR,
        ),
    ] = None,
    gain: Annotated[
        float | None,
        typer.Option(
            metavar="G",
            help="Counts per photon.",
            show_default="from the .expt, else the images",
            rich_help_panel=DETECTOR,
        ),
    ] = None,
    read_noise: Annotated[
        float | None,
        typer.Option(
            metavar="PHOTONS",
            help="Read-out noise, photons rms.",
            show_default="from the images",
            rich_help_panel=DETECTOR,
        ),
    ] = None,
    pedestal: Annotated[
        float | None,
        typer.Option(
            metavar="COUNTS",
            help="Counts at no photon.",
            show_default="from the .expt",
            rich_help_panel=DETECTOR,
        ),
    ] = None,
    sensor_thickness_mm: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            metavar="MM",
            help="For parallax; 0 for none.",
            show_default="from the .expt",
            rich_help_panel=DETECTOR,
        ),
    ] = None,
    sensor_mu: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            metavar="PER_MM",
            help="Attenuation of the sensor, per mm.",
            show_default="from the .expt",
            rich_help_panel=DETECTOR,
        ),
    ] = None,
) -> None:
    """Fit a run of indexed stills; write refined geometry, intensities, posterior and a picture."""
    started = time.perf_counter()
    if d_min is not None and not d_min > 0:
        raise InputError(f"--d-min {d_min:g}: the resolution limit must be positive, in Å")
    results.prepare_folder(out)
    program = loading.load_model(model)
    chosen = priors.read_priors(priors_file) if priors_file else priors.Priors()
    if student_t is not None:
        chosen = replace(chosen, student_t_nu=student_t)
    run_of = _images(read_experiments(experiments), images)
    if reference_file is None:
        raise InputError("a reference is needed for now: give one with --reference")
    if d_min and d_min > _d_max(run_of.stills[0]):
        raise InputError(f"--d-min {d_min:g}: no reflection of this cell has so large a d")
    margin = 0.97 * d_min if d_min else None  # the cells of stills differ a little
    ref = reference.read_reference(reference_file, reference_column, margin)
    settings = fit.Settings(
        d_min=d_min or float(ref.d.min()), rounds=rounds, free_fraction=free_fraction, seed=seed
    )
    stills = _overridden(run_of.stills, bandwidth, sensor_thickness_mm, sensor_mu)
    with ImageReader(gain=gain, pedestal=pedestal) as reader:
        _fit_and_write(
            out,
            replace(run_of, stills=stills),
            ref,
            reader,
            program,
            chosen,
            settings,
            gain=gain,
            read_noise=read_noise,
            started=started,
            method=method.value,
            n_draws=draws,
            model_name=model,
            command=context.obj or [],
        )


@app.command("simulate")
def simulate_command(
    out: Out,
    images: Annotated[int, typer.Option(min=1, metavar="N", help="Number of stills.")] = 12,
    seed: Annotated[int, typer.Option(metavar="N", help="Of every random number.")] = 1,
    d_min: Annotated[
        float, typer.Option(min=0.5, metavar="Å", help="No reflections beyond, Å.")
    ] = 2.3,
    pixels: Annotated[
        int, typer.Option(min=64, metavar="N", help="Pixels along a side of the detector.")
    ] = 480,
    distance_mm: Annotated[
        float, typer.Option(min=1.0, metavar="MM", help="Of the detector.")
    ] = 110.0,
    panels: Annotated[int, typer.Option(metavar="N", help="1, or 4 for 2×2 tiles.")] = 1,
    wavelength: Annotated[float, typer.Option(min=0.1, metavar="Å", help="Å.")] = 1.0,
    bandwidth: Annotated[
        float, typer.Option(min=0.0, metavar="FRACTION", help="Δλ/λ, rms fraction.")
    ] = 1e-3,
    mosaic_mrad: Annotated[
        float, typer.Option(min=0.0, metavar="MRAD", help="Mosaic spread η, exp(−φ²/η²).")
    ] = 0.0,
    photons: Annotated[
        float, typer.Option(min=0.0, metavar="PHOTONS", help="Mean I_ref of a unique reflection.")
    ] = 400.0,
    background: Annotated[
        float, typer.Option(min=0.0, metavar="PHOTONS", help="Photons a pixel.")
    ] = 6.0,
    gain: Annotated[float, typer.Option(min=1e-6, metavar="G", help="Counts per photon.")] = 1.0,
    read_noise: Annotated[
        float, typer.Option(min=0.0, metavar="COUNTS", help="Counts rms a pixel.")
    ] = 0.0,
    rotation_error_deg: Annotated[
        float,
        typer.Option(min=0.0, metavar="DEG", help="rms angle from true to indexed orientation."),
    ] = 0.05,
) -> None:
    """Simulate a run of stills whose truth is known: images, geometry, reference, truth."""
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
    )
    expt = _simulate(simulation, out)
    data = expt.parent
    out_console.print(
        f"wrote {data}: master.h5, indexed.expt, reference.mtz, truth.h5", soft_wrap=True
    )
    line = ["bayes-refine", "fit", str(expt), "--reference", str(data / "reference.mtz")]
    out_console.print(f"now: {shlex.join([*line, '--out', str(data / 'fit')])}", soft_wrap=True)


@app.command("demo")
def demo_command(
    context: typer.Context,
    out: Out,
    images: Annotated[int, typer.Option(min=2, metavar="N", help="Number of stills.")] = 6,
    seed: Annotated[int, typer.Option(metavar="N", help="Of every random number.")] = 1,
) -> None:
    """Simulate a small run, fit it, and say how near the truth the fit came."""
    started = time.perf_counter()
    results.prepare_folder(out)
    simulation = Simulation(n_images=images, seed=seed)
    expt = _simulate(simulation, out / "data")
    experiments = read_experiments(expt)
    stills = _overridden(experiments.stills, None, None, None)
    ref = reference.read_reference(out / "data" / "reference.mtz")
    with ImageReader() as reader:
        run = _fit_and_write(
            out / "fit",
            replace(experiments, stills=stills),
            ref,
            reader,
            loading.load_model("still"),
            priors.Priors(),
            fit.Settings(d_min=simulation.d_min, seed=seed),
            started=started,
            model_name="still",
            command=context.obj or [],
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


# -- steps ----------------------------------------------------------------------------------


def _fit_and_write(
    out: Path,
    experiments: Experiments,
    ref: reference.Reference,
    reader: ImageReader,
    model: Callable[..., Any],
    prior: priors.Priors,
    settings: fit.Settings,
    *,
    started: float,
    gain: float | None = None,
    read_noise: float | None = None,
    **writing: Any,
) -> fit.RunFit:
    """Noise, fit, results, and what to tell about them."""
    seconds = {"read": time.perf_counter() - started}
    stills = experiments.stills
    with _progress() as say:
        say("estimating gain and read-out noise")
        mark = time.perf_counter()
        found = noise.noise_for(reader, stills, gain, read_noise)
        if gain is not None or all((s.detector.gain == s.detector.gain[0]).all() for s in stills):
            reader.gain = found.gain  # else each panel's own, of which found.gain is the mean
        settings = replace(settings, read_noise=found.read_noise)
        seconds["noise"] = time.perf_counter() - mark
        mark = time.perf_counter()
        run = fit.fit_run(stills, ref, reader, model, prior, settings, progress=say)
        seconds["fit"] = time.perf_counter() - mark
        summary = results.write_results(
            out,
            run,
            experiments,
            ref,
            model,
            prior,
            settings,
            reader=reader,
            noise=found,
            seconds=seconds,
            progress=say,
            **writing,
        )
    _report(out, run, summary, time.perf_counter() - started)
    return run


def _report(out: Path, run: fit.RunFit, summary: dict[str, Any], seconds: float) -> None:
    counts, last = summary["counts"], summary["agreement"][-1]
    out_console.print(
        f"{counts['images_used']} of {counts['images']} images, {counts['reflections_measured']} "
        f"reflections measured, {counts['reflections_merged']} unique, to {last['d_min']:.2f} Å"
    )
    if counts["images_failed"]:
        usable = tables.usable_images(run)
        first = next(i for i, good in enumerate(usable) if not good)
        out_console.print(
            f"{counts['images_failed']} images failed and were left out (see images.csv); "
            f"the first, {run.stills[first].identifier}: {run.status[first]}",
            markup=False,
            soft_wrap=True,
        )
    numbers = {
        "CC(J, J_model), median": summary["cc_model_median"],
        "CC1/2": last["cc_half"],
        "R_split": last["r_split"],
        "CC_free": last["cc_free"],
    }
    shown = (f"{name} {value:.3f}" for name, value in numbers.items() if value is not None)
    out_console.print(", ".join(shown))
    out_console.print(f"{seconds:.0f} s; results in {out}", soft_wrap=True)


def _simulate(simulation: Simulation, folder: Path) -> Path:
    results.prepare_folder(folder)
    with _progress() as say:
        return simulate_run(
            simulation, folder, lambda k, n: say(f"step: simulated image {k} of {n}")
        )


def _images(experiments: Experiments, chosen: str | None) -> Experiments:
    """The experiments in a range ``a:b``."""
    n = len(experiments)
    if chosen is None:
        return experiments
    try:
        start, stop = (int(part) if part.strip() else None for part in chosen.split(":"))
    except ValueError:
        raise InputError(f"--images {chosen}: give a range a:b, such as 0:12") from None
    stills = experiments.stills[start:stop]
    if not stills:
        raise InputError(
            f"--images {chosen}: no such images; {experiments.path} has {n}, 0 to {n - 1}"
        )
    return replace(experiments, stills=stills)


def _overridden(
    stills: Sequence[Still], bandwidth: float | None, thickness: float | None, mu: float | None
) -> tuple[Still, ...]:
    """The stills with their bandwidth, and the sensor that the options say."""

    def one(still: Still) -> Still:
        width, detector = bandwidth, still.detector
        if width is None:
            try:
                width = read_bandwidth(still) or 0.0
            except InputError:  # reading the image will say so again, for this image alone
                width = 0.0
        if thickness is not None:
            detector = replace(detector, thickness_mm=0 * detector.thickness_mm + thickness)
        if mu is not None:
            detector = replace(detector, mu_per_mm=0 * detector.mu_per_mm + mu)
        return replace(still, beam=replace(still.beam, bandwidth=width), detector=detector)

    return tuple(map(one, stills))


def _d_max(still: Still) -> float:
    """Å, of the largest lattice planes, no matter whether present."""
    cell = still.crystal.cell.reciprocal()
    return 1 / min(cell.a, cell.b, cell.c)


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """A printer of progress: lines that begin with "step" replace each other, others stay."""
    with err_console.status("starting") as status:

        def say(line: str) -> None:
            status.update(line)
            if not line.startswith("step"):
                err_console.print(line, markup=False, soft_wrap=True)

        yield say


def _set_up_jax() -> None:
    """float64, and compiled code kept from run to run."""
    jax.config.update("jax_enable_x64", True)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    jax.config.update("jax_compilation_cache_dir", str(Path(base) / "bayes_refine" / "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


if __name__ == "__main__":
    main()
