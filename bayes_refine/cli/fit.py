"""``bayes-refine fit``."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from .. import loading
from ..fitting import loop, tables
from ..fitting.problem import Settings
from ..geometry.experiments import Experiments
from ..io.images import ImageReader
from ..measuring import detector_noise
from ..measuring.bad_pixels import bad_pixels_of
from ..merging.merged_columns import blank_sentence
from ..physics import reference
from ..physics.priors import Priors
from ..results import fit as results
from ..util import folder
from ..util.errors import InputError
from ..util.status import Kind
from . import options
from .app import app, out_console, progress
from .inputs import (
    given_from,
    maps_for,
    mask_for,
    overridden,
    priors_from,
    reference_from,
    resolution_limit,
    some_images,
    usable_experiments,
)
from .methods import GuideName, MethodName, method_of
from .options import DETECTOR, INFERENCE


@app.command("fit")
def fit_command(
    context: typer.Context,
    experiments: options.ExperimentsFiles,
    out: options.Out,
    reference_file: Annotated[
        Path | None, options.reference_option("none: the images are each other's")
    ] = None,
    reference_column: options.ReferenceColumn = None,
    space_group: options.SpaceGroup = None,
    geometry: options.GeometryFile = None,
    names: options.NamesFile = None,
    cell: options.Cell = None,
    d_min: options.Resolution = None,
    images: options.Images = None,
    free_fraction: Annotated[
        float, options.free_option("Share of unique reflections kept from the fit.")
    ] = 0.05,
    seed: options.Seed = 0,
    anomalous: Annotated[
        bool, typer.Option("--anomalous", help="Keep Friedel mates apart in merged.mtz.")
    ] = False,
    model: Annotated[
        str,
        typer.Option(
            metavar="NAME_OR_PATH",
            help="Name of a model, or path of your own (.py).",
            rich_help_panel=INFERENCE,
        ),
    ] = "still",
    method: Annotated[
        MethodName,
        typer.Option(
            help="How the posterior is drawn from once the mode is found: its curvature (laplace;"
            " map also holds the scales fixed in merged sigmas), a guide (svi), or chains (nuts).",
            rich_help_panel=INFERENCE,
        ),
    ] = MethodName.laplace,
    guide: Annotated[
        GuideName,
        typer.Option(help="Of --method svi.", rich_help_panel=INFERENCE),
    ] = GuideName.structured,
    priors_file: Annotated[Path | None, options.priors_option(panel=INFERENCE)] = None,
    student_t: Annotated[
        float | None,
        typer.Option(
            metavar="NU",
            callback=options.between(1.0, math.inf),
            help="Prior median of the residuals' degrees of freedom; inf for normal ones.",
            show_default="of the priors",
            rich_help_panel=INFERENCE,
        ),
    ] = None,
    rounds: Annotated[
        int,
        typer.Option(
            min=1,
            max=100,
            metavar="N",
            help="Rounds of predict, measure, fit; two more without a reference.",
            rich_help_panel=INFERENCE,
        ),
    ] = 3,
    n_draws: Annotated[
        int | None,
        typer.Option(
            "--draws",
            min=4,
            max=100_000,
            metavar="N",
            help="Draws in posterior.nc; of each chain.",
            show_default="100; 1000 of each chain",
            rich_help_panel=INFERENCE,
        ),
    ] = None,
    chains: Annotated[
        int,
        typer.Option(
            min=2, max=1000, metavar="N", help="Of --method nuts.", rich_help_panel=INFERENCE
        ),
    ] = 4,
    warmup: Annotated[
        int,
        typer.Option(
            min=10,
            max=1_000_000,
            metavar="N",
            help="Trajectories of each chain before its draws.",
            rich_help_panel=INFERENCE,
        ),
    ] = 500,
    bandwidth: Annotated[float | None, options.bandwidth_option(DETECTOR)] = None,
    gain: Annotated[
        float | None, options.gain_option("from the .expt, else the images", DETECTOR)
    ] = None,
    read_noise: Annotated[
        float | None, options.read_noise_option("from the images", DETECTOR)
    ] = None,
    pedestal: Annotated[
        float | None,
        typer.Option(
            metavar="COUNTS",
            callback=options.between(-1e9, 1e9, "counts"),
            help="Counts at no photon.",
            show_default="from the .expt",
            rich_help_panel=DETECTOR,
        ),
    ] = None,
    mask: Annotated[
        Path | None,
        options.pixel_file_option(
            "Pixels to use: True of truth values, 0 of numbers.", "that of the .expt, if any"
        ),
    ] = None,
    gain_map: Annotated[
        Path | None, options.pixel_file_option("Counts per photon of each pixel.", "none")
    ] = None,
    pedestal_map: Annotated[
        Path | None, options.pixel_file_option("Counts at no photon of each pixel.", "none")
    ] = None,
    sensor_thickness_mm: Annotated[
        float | None,
        typer.Option(
            metavar="MM",
            callback=options.between(0.0, 100.0, "mm"),
            help="For parallax; 0 for none.",
            show_default="from the .expt",
            rich_help_panel=DETECTOR,
        ),
    ] = None,
    sensor_mu: Annotated[
        float | None,
        typer.Option(
            metavar="PER_MM",
            callback=options.between(0.0, 1e4, "per mm"),
            help="Attenuation of the sensor, per mm.",
            show_default="from the .expt",
            rich_help_panel=DETECTOR,
        ),
    ] = None,
) -> None:
    """Fit a run of indexed stills; write refined geometry, intensities, posterior and a picture."""
    started = time.perf_counter()
    context.with_resource(folder.taken(out))
    program = loading.load_model(model)
    chosen = priors_from(priors_file, Priors())
    if student_t is not None:
        chosen = replace(chosen, student_t_nu=student_t)
    given = given_from(space_group, cell)
    found = usable_experiments(experiments, given.space_group, geometry, names)
    run_of = some_images(found, images)
    if reference_file is None or d_min is not None:
        resolution_limit(d_min, None, run_of.stills)
    ref = None
    if reference_file is not None:
        ref = reference_from(reference_file, reference_column, d_min, given)
        reference.check_fits(ref, [s.crystal for s in run_of.stills], str(run_of.path))
    d_min = resolution_limit(d_min, ref, run_of.stills)
    settings = Settings(d_min=d_min, rounds=rounds, free_fraction=free_fraction, seed=seed)
    stills = overridden(run_of.stills, bandwidth, sensor_thickness_mm, sensor_mu)
    if gain_map is not None and gain is not None:
        raise InputError("--gain-map and --gain both say what the gain is; give one of them")
    usable, maps = mask_for(run_of, mask, geometry), maps_for(stills, gain_map, pedestal_map)
    gain = 1.0 if gain_map is not None else gain  # what the reader divides by is the map
    with ImageReader(gain=gain, pedestal=pedestal, usable=usable, **maps) as reader:
        fit_and_write(
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
            method=method_of(method, guide, n_draws, chains, warmup),
            model_name=model,
            command=context.obj or [],
            anomalous=anomalous,
        )


# -- steps ----------------------------------------------------------------------------------


def fit_and_write(
    out: Path,
    experiments: Experiments,
    ref: reference.Reference | None,
    reader: ImageReader,
    model: Callable[..., Any],
    prior: Priors,
    settings: Settings,
    *,
    started: float,
    gain: float | None = None,
    read_noise: float | None = None,
    **writing: Any,
) -> loop.RunFit:
    """Noise, fit, results, and what to tell about them."""
    seconds = {"read": time.perf_counter() - started}
    stills = experiments.stills
    with progress() as say:
        say("estimating gain and read-out noise")
        mark = time.perf_counter()
        found = detector_noise.noise_for(reader, stills, gain, read_noise)
        if gain is not None or all((s.detector.gain == s.detector.gain[0]).all() for s in stills):
            reader.gain = found.gain  # else each panel's own, of which found.gain is the mean
        settings = replace(settings, read_noise=found.read_noise)
        bad = bad_pixels_of(reader, stills, found.read_noise)
        if bad.mask.any():
            reader.usable = ~bad.mask if reader.usable is None else reader.usable & ~bad.mask
            say(str(bad))
        seconds["noise"] = time.perf_counter() - mark
        mark = time.perf_counter()
        run = loop.fit_run(stills, ref, reader, model, prior, settings, progress=say)
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
            bad_pixels=bad,
            seconds=seconds,
            progress=say,
            **writing,
        )
    _report(out, run, summary, time.perf_counter() - started)
    return run


def _report(out: Path, run: loop.RunFit, summary: dict[str, Any], seconds: float) -> None:
    counts, last = summary["counts"], summary["agreement"][-1]
    out_console.print(
        f"{counts['images_used']} of {counts['images']} images, {counts['reflections_measured']} "
        f"reflections measured, {counts['reflections_merged']} unique, to {last['d_min']:.2f} Å"
    )
    if counts["images_failed"]:
        usable = tables.usable_images(run)
        first = next(i for i, good in enumerate(usable) if not good)
        why = ", ".join(f"{n} {k}" for k, n in counts["status"].items() if not Kind(k).usable)
        out_console.print(
            f"{counts['images_failed']} images failed and were left out ({why}; see images.csv); "
            f"the first, {run.stills[first].identifier}: {run.status[first]}",
            markup=False,
            soft_wrap=True,
        )
    if blank := counts["reflections_blank"]:
        line = blank_sentence(blank, counts["reflections_merged"])
        out_console.print(line, markup=False, soft_wrap=True)
    numbers = {
        "CC(J, J_model), median": summary["cc_model_median"],
        "CC1/2": last["cc_half"],
        "R_split": last["r_split"],
        "CC_free": last["cc_free"],
    }
    shown = (f"{name} {value:.3f}" for name, value in numbers.items() if value is not None)
    out_console.print(", ".join(shown))
    if message := summary["posterior"]["message"]:
        out_console.print(message, markup=False, soft_wrap=True)
    out_console.print(f"{seconds:.0f} s; results in {out}", soft_wrap=True)
