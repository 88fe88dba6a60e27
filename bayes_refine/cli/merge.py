"""``bayes-refine merge``."""

from __future__ import annotations

import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from .. import loading
from ..io.jungfraujoch import read_names
from ..io.open_unmerged import open_unmerged
from ..io.unmerged_mtz import Columns
from ..learned import needed
from ..merging import mates, merged_intensities
from ..merging.merge import MergeSettings, merge_run
from ..merging.merged_columns import blank_sentence
from ..merging.observations import ScalingPriors
from ..physics.reference import check_symmetry
from ..results.merge import write_merge
from ..results.pictures import load_meanwhile
from ..util import folder
from ..util.errors import InputError
from . import options
from .app import err_console, log_to, out_console, progress
from .export import exported
from .inputs import given_from, priors_from, reference_from
from .long_command import long_command
from .settings import write_settings


class Prior(StrEnum):
    """Prior of true intensities."""

    wilson = "wilson"
    double_wilson = "double-wilson"
    reference = "reference"


@long_command("merge")
def merge_command(
    context: typer.Context,
    unmerged: Annotated[
        list[Path],
        typer.Argument(
            help="Integrated stills: MTZ (I, SIGI, BATCH and, where known, an Ewald offset), a "
            "CrystFEL .stream, DIALS .expt with .refl beside, Jungfraujoch or XDS files.",
            metavar="UNMERGED",
            show_default=False,
        ),
    ],
    out: options.Out,
    reference_file: Annotated[Path | None, options.reference_option()] = None,
    reference_column: options.ReferenceColumn = None,
    space_group: options.SpaceGroup = None,
    cell: options.Cell = None,
    intensity_column: Annotated[str | None, options.label_option("intensities", "I")] = None,
    sigma_column: Annotated[str | None, options.label_option("their sigmas", "SIGI")] = None,
    batch_column: Annotated[str | None, options.label_option("image numbers", "BATCH")] = None,
    names: options.NamesFile = None,
    prior: Annotated[
        Prior | None,
        typer.Option(
            help="Prior of true intensities: wilson uses no reference; double-wilson, the "
            "reference and its errors; reference, a normal law around the reference.",
            show_default="wilson without a reference or with --anomalous, else double-wilson",
        ),
    ] = None,
    anomalous: Annotated[
        bool, typer.Option("--anomalous", help="Keep Friedel mates apart.")
    ] = False,
    d_min: Annotated[float | None, options.resolution_option("all reflections")] = None,
    free_fraction: options.FreeFraction = 0.05,
    seed: options.Seed = 0,
    write: options.Write = None,
    priors_file: Annotated[Path | None, options.priors_option("of scales ")] = None,
    learn_curve: Annotated[
        bool,
        typer.Option(
            "--learn-curve", help="Learn the partiality curve; a Lorentzian without this option."
        ),
    ] = False,
    draws: Annotated[
        int | None,
        typer.Option(
            min=4,
            max=100_000,
            metavar="N",
            help="Number of draws in posterior.nc, with I and F of every unique reflection.",
            show_default="100 draws of scales alone",
        ),
    ] = None,
    refit_halves: Annotated[
        bool,
        typer.Option(
            "--refit-halves", help="Also fit each half of the images alone (twice the time)."
        ),
    ] = False,
    config: options.Config = None,
) -> None:
    """Scale and merge integrated stills: true intensities with their uncertainties."""
    started = time.perf_counter()
    chosen = _prior(prior, reference_file, anomalous)
    if anomalous and draws is not None:
        raise InputError("--draws with --anomalous: Friedel pairs have no draws; drop one option")
    context.with_resource(folder.taken(out))
    log_to(out / "log.txt", context.obj or [])
    scales = priors_from(priors_file, ScalingPriors())
    given = given_from(space_group, cell)
    labels = Columns(intensity_column, sigma_column, batch_column)
    table = None if names is None else read_names(names)
    data = open_unmerged(unmerged, given.space_group, given.cell, labels, table)
    err_console.print(data.describe(), markup=False, soft_wrap=True)
    ref = None
    if reference_file is not None:
        ref = reference_from(reference_file, reference_column, d_min, given)
        check_symmetry(ref, data.cell, data.space_group, data.source)
    name = "latent" if chosen is Prior.wilson else "latent_reference"
    model = loading.load_model(name)
    if learn_curve:
        needed()
        if data.excitation_error is None:
            raise InputError(
                f"{data.source}: has no Ewald offsets, and a partiality curve is a function of "
                "these; leave --learn-curve out"
            )
        from ..learned.merged_curve import with_learned_curve

        model = with_learned_curve(model)
    settings = MergeSettings(d_min or 0.0, free_fraction, seed, anomalous, refit_halves)
    seconds = {"read": time.perf_counter() - started}
    load_meanwhile()
    with progress() as listener:
        run = merge_run(
            data,
            model,
            settings,
            scales,
            None if chosen is Prior.wilson else ref,
            estimate=_estimate(chosen, anomalous),
            progress=listener,
        )
        summary = write_merge(
            out,
            run,
            ref,
            draws,
            {"command": context.obj or [], "prior": chosen.value, "model": name},
            seconds,
            listener,
        )
    write_settings(context, out / "settings.toml")
    _report(out, summary, time.perf_counter() - started)
    exported(out, write)


def _prior(prior: Prior | None, reference_file: Path | None, anomalous: bool) -> Prior:
    if prior is None:
        return Prior.double_wilson if reference_file and not anomalous else Prior.wilson
    if prior is not Prior.wilson and reference_file is None:
        raise InputError(f"--prior {prior.value} needs a reference: give one with --reference")
    if prior is not Prior.wilson and anomalous:
        raise InputError(
            f"--prior {prior.value} with --anomalous: Friedel pairs have a Wilson prior of their "
            "own; drop --prior, and the reference is still compared with"
        )
    return prior


def _estimate(prior: Prior, anomalous: bool) -> merged_intensities.Estimate:
    if anomalous:
        return mates.apart
    if prior is Prior.reference:
        return merged_intensities.near_reference
    return merged_intensities.together


def _report(out: Path, summary: dict[str, Any], seconds: float) -> None:
    counts, last = summary["counts"], summary["agreement"][-1]
    out_console.print(
        f"{counts['images_used']} images, {counts['reflections_measured']} observations of "
        f"{counts['reflections_merged']} unique reflections, to {last['d_min']:.2f} Å"
    )
    if blank := counts["reflections_blank"]:
        line = blank_sentence(blank, counts["reflections_merged"])
        out_console.print(line, markup=False, soft_wrap=True)
    numbers = {
        "CC1/2": "cc_half",
        "R_split": "r_split",
        "CC_ref": "cc_ref",
        "CC_free": "cc_free",
        "CC_free, posterior": "cc_free_posterior",
        "CC_anom": "cc_anom",
        "CC1/2, refitted halves": "cc_half_refitted",
    }
    shown = (
        f"{name} {last[key]:.3f}" for name, key in numbers.items() if last.get(key) is not None
    )
    out_console.print(", ".join(shown))
    out_console.print(f"{seconds:.0f} s; results in {out}", soft_wrap=True)
