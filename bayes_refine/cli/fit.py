"""``bayes-refine fit``."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from .. import loading
from ..fitting import addition, loop, tables
from ..fitting.checkpoint import Checkpoint
from ..fitting.exposures import exposed
from ..fitting.kept import keep as kept_fit
from ..fitting.kept import kept_first, key_of, read_kept
from ..fitting.prepare import Prepared, fit, prepare, prepare_more
from ..fitting.problem import Settings, Work
from ..geometry.experiments import Experiments
from ..io.image_folder import images_in
from ..io.images import ImageReader
from ..io.polarisation import with_polarisation
from ..io.pulse_energies import with_pulse_energies
from ..merging.merged_columns import blank_sentence
from ..physics import reference
from ..physics.priors import Priors, load_priors
from ..results import fit as results
from ..results.pictures import load_meanwhile
from ..util import folder
from ..util.errors import InputError
from ..util.status import Kind
from . import options, place
from .app import log_to, out_console, progress
from .components import with_components
from .export import exported
from .inputs import (
    given_from,
    in_order,
    maps_for,
    mask_for,
    priors_from,
    reference_from,
    resolution_limit,
    some_images,
    usable_experiments,
)
from .long_command import long_command
from .methods import GuideName, MethodName, method_of
from .options import DETECTOR, INFERENCE
from .resume import made_of, same_place
from .settings import write_settings


@long_command("fit")
def fit_command(
    context: typer.Context,
    experiments: options.ExperimentsFiles,
    out: options.Out,
    reference_file: options.ReferenceFile = None,
    reference_column: options.ReferenceColumn = None,
    space_group: options.SpaceGroup = None,
    geometry: options.GeometryFile = None,
    names: options.NamesFile = None,
    image_folder: options.ImageFolder = None,
    polarisation: options.Polarisation = None,
    cell: options.Cell = None,
    d_min: options.Resolution = None,
    images: options.Images = None,
    free_fraction: options.FreeFraction = 0.05,
    seed: options.Seed = 0,
    write: options.Write = None,
    anomalous: Annotated[
        bool, typer.Option("--anomalous", help="Keep Friedel mates apart in merged.mtz.")
    ] = False,
    model: Annotated[
        str,
        typer.Option(
            metavar="NAME_OR_PATH",
            help="Name of a model, or path of a model of your own (.py).",
            rich_help_panel=INFERENCE,
        ),
    ] = "still",
    component: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="File of a component that `train` learned, which replaces a piece of the model; "
            "may be given more than once.",
            show_default="none",
            rich_help_panel=INFERENCE,
        ),
    ] = None,
    method: Annotated[
        MethodName,
        typer.Option(
            help="How draws from the posterior are made once the mode is found: from its curvature "
            "(laplace; map: the same, and merged sigmas take scales as exact), from a guide (svi), "
            "or by Markov chains (nuts).",
            rich_help_panel=INFERENCE,
        ),
    ] = MethodName.laplace,
    guide: Annotated[
        GuideName,
        typer.Option(help="Guide of --method svi.", rich_help_panel=INFERENCE),
    ] = GuideName.structured,
    priors_file: options.PriorsFile = None,
    student_t: Annotated[
        float | None,
        typer.Option(
            metavar="NU",
            callback=options.between(1.0, math.inf),
            help="Prior median of the residuals' degrees of freedom; inf: normal residuals.",
            show_default="from the priors",
            rich_help_panel=INFERENCE,
        ),
    ] = None,
    rounds: Annotated[
        int,
        options.rounds_option("Rounds of predict, measure, fit; two more without a reference."),
    ] = 3,
    n_draws: Annotated[
        int | None,
        typer.Option(
            "--draws",
            min=4,
            max=100_000,
            metavar="N",
            help="Number of draws in posterior.nc; of nuts, in each chain.",
            show_default="100; of nuts 1000",
            rich_help_panel=INFERENCE,
        ),
    ] = None,
    chains: Annotated[
        int,
        typer.Option(
            min=2, max=1000, metavar="N", help="Chains of --method nuts.", rich_help_panel=INFERENCE
        ),
    ] = 4,
    warmup: Annotated[
        int,
        typer.Option(
            min=10,
            max=1_000_000,
            metavar="N",
            help="Trajectories of each chain of nuts before its draws.",
            rich_help_panel=INFERENCE,
        ),
    ] = 500,
    bandwidth: options.Bandwidth = None,
    monitor: options.Monitor = None,
    gain: options.Gain = None,
    read_noise: options.ReadNoise = None,
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
    mask: options.MaskFile = None,
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
            help="Thickness of the sensor, for parallax; 0: no parallax.",
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
    oscillation: options.Oscillation = None,
    spindle: options.Spindle = None,
    as_stills: options.AsStills = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Continue the fit that was stopped in --out; no other option is needed.",
        ),
    ] = False,
    keep: Annotated[
        bool,
        typer.Option(
            "--keep",
            help="Keep the statistics of all images, 0.5 MB each, so that --add can add more.",
        ),
    ] = False,
    add: Annotated[
        bool,
        typer.Option(
            "--add",
            help="Add the images of more files to the fit that --keep left in --out.",
        ),
    ] = False,
    threads: place.Threads = None,
    workers: place.Workers = None,
    scheduler: place.Scheduler = None,
    work: place.WorkFolder = None,
    config: options.Config = None,
) -> None:
    """Fit a run of indexed stills; write refined geometry, intensities, posterior and a report."""
    started = time.perf_counter()
    inside = context.with_resource(folder.taken(out, resume or add))
    log_to(out / "log.txt", context.obj or [], resume or add)
    kept = read_kept(Checkpoint(inside / folder.KEPT, same_place(), "--add")) if add else None
    program = loading.load_model(model)
    chosen = priors_from(priors_file, load_priors(model))
    if student_t is not None:
        chosen = replace(chosen, student_t_nu=student_t)
    given = given_from(space_group, cell)
    found = usable_experiments(experiments, given.space_group, geometry, names, growing=keep)
    if kept is not None and monitor is not None:
        raise InputError(
            "--add with --monitor: pulse energies are relative to one run; fit all images again "
            "without --add"
        )
    if image_folder is not None:
        found = images_in(found, image_folder)
    if polarisation is not None:
        found = with_polarisation(found, polarisation)
    if monitor is not None:
        found = replace(found, stills=with_pulse_energies(found.stills, monitor))
    run_of = exposed(in_order(some_images(found, images)), oscillation, spindle, as_stills)
    if kept is not None:
        run_of = replace(run_of, stills=kept_first(run_of.stills, kept))
    if reference_file is None or d_min is not None:
        resolution_limit(d_min, None, run_of.stills)
    ref = None
    if reference_file is not None:
        ref = reference_from(reference_file, reference_column, d_min, given)
        reference.check_fits(ref, [s.crystal for s in run_of.stills], str(run_of.path))
    d_min = resolution_limit(d_min, ref, run_of.stills)
    settings = Settings(
        rounds=rounds,
        free_fraction=free_fraction,
        seed=seed,
        metadata=loading.needs_metadata(model),
        sweeps=not (keep or add),
    )
    program, settings, learned = with_components(program, settings, component, run_of.stills)
    if gain_map is not None and gain is not None:
        raise InputError("--gain-map and --gain both set the gain; give one of them")
    usable = mask_for(run_of, mask, geometry)
    maps = maps_for(run_of.stills, gain_map, pedestal_map)
    inputs = made_of(context.obj or [], run_of.stills)
    checkpoint = Checkpoint(inside / folder.CHECKPOINT, inputs)
    if kept is None:
        checkpoint.begin()
    of_detector: dict[str, Any] = {
        "bandwidth": bandwidth,
        "sensor": (sensor_thickness_mm, sensor_mu),
    }
    with (
        ImageReader(gain=gain, pedestal=pedestal, usable=usable, **maps) as reader,
        place.work_of(workers, scheduler, work, inside / folder.MEASURED, inputs) as where,
    ):
        fit_and_write(
            out,
            lambda: (
                prepare(
                    run_of,
                    reader,
                    ref,
                    d_min=d_min,
                    read_noise=read_noise,
                    work=where,
                    **of_detector,
                )
                if kept is None
                else prepare_more(run_of, reader, ref, kept, d_min=d_min, work=where, **of_detector)
            ),
            program,
            chosen,
            settings,
            started,
            about={"command": context.obj or [], "model": model, **learned},
            method=method_of(method, guide, n_draws, chains, warmup),
            anomalous=anomalous,
            work=where if kept is not None else replace(where, checkpoint=checkpoint),
            fitted=fit if kept is None else partial(addition.add, kept=kept),
            done=partial(_keep, Checkpoint(inside / folder.KEPT, inputs), run_of) if keep else None,
        )
    write_settings(context, out / "settings.toml")
    checkpoint.clear()
    exported(out, write)


# -- steps ----------------------------------------------------------------------------------


def fit_and_write(
    out: Path,
    make: Callable[[], Prepared],
    model: Callable[..., Any],
    prior: Priors,
    settings: Settings,
    started: float,
    about: dict[str, Any],
    work: Work | None = None,
    fitted: Callable[..., loop.RunFit] = fit,
    done: Callable[[loop.RunFit, Prepared], None] | None = None,
    **writing: Any,
) -> loop.RunFit:
    """Prepare, fit, write the results, and print a short account of them.

    Args:
        fitted: ``prepare.fit``, or another function of its arguments.
        done: called when the results are complete on disk.
    """
    seconds = {"read": time.perf_counter() - started}
    with progress() as listener:
        listener.say("estimating gain and read-out noise")
        mark = time.perf_counter()
        ready = make()
        load_meanwhile()
        if ready.bad_pixels.mask.any():
            listener.say(str(ready.bad_pixels))
        seconds["noise"] = time.perf_counter() - mark
        mark = time.perf_counter()
        run = fitted(ready, model, prior, settings, listener, work)
        seconds["fit"] = time.perf_counter() - mark
        about = {**about, "seconds": seconds}
        if work is not None and (record := work.executor.summary()):
            about["workers"] = record
        summary = results.write_results(out, run, ready, about=about, progress=listener, **writing)
        if done is not None:
            done(run, ready)
    _report(out, run, summary, time.perf_counter() - started)
    return run


def _keep(
    checkpoint: Checkpoint, experiments: Experiments, run: loop.RunFit, ready: Prepared
) -> None:
    names = {still.identifier: key_of(still) for still in experiments.stills}
    kept_fit(checkpoint, run, names, ready.noise, ready.bad_pixels)


def _report(out: Path, run: loop.RunFit, summary: dict[str, Any], seconds: float) -> None:
    counts, last = summary["counts"], summary["agreement"][-1]
    out_console.print(
        f"{counts['images_used']} of {counts['images']} images, {counts['reflections_measured']} "
        f"reflections measured, {counts['reflections_merged']} unique, to {last['d_min']:.2f} Å"
    )
    if counts["images_failed"]:
        zipped = zip(run.stills, run.status, tables.usable_images(run), strict=True)
        failed = [*run.unread, *((still, said) for still, said, good in zipped if not good)]
        first, said = failed[0]
        why = ", ".join(f"{n} {k}" for k, n in counts["status"].items() if not Kind(k).usable)
        out_console.print(
            f"{counts['images_failed']} images failed and were left out ({why}; see images.csv); "
            f"the first, {first.identifier}: {said}",
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
