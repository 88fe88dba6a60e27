"""``bayes-refine compare``."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from .. import compare, loading, noise, output, priors, reference, run
from ..errors import InputError
from ..io.expt import read_experiments
from ..io.images import ImageReader
from .app import Out, app, out_console, progress
from .fit import _images, overridden


@app.command("compare")
def compare_command(
    context: typer.Context,
    experiments: Annotated[
        Path,
        typer.Argument(
            help="Indexed stills, a DIALS .expt file.", metavar="EXPERIMENTS", show_default=False
        ),
    ],
    out: Out,
    reference_file: Annotated[
        Path,
        typer.Option(
            "--reference",
            metavar="FILE",
            show_default=False,
            help="Reference intensities: .mtz, structure-factor .cif, .pdb or model .cif.",
        ),
    ],
    truth_file: Annotated[
        Path | None,
        typer.Option(
            "--truth",
            metavar="FILE",
            help="HDF5 with the true A of all stills, and G and B, as of a simulated run.",
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
            help="Share of unique reflections kept from all fits.",
        ),
    ] = 0.05,
    seed: Annotated[int, typer.Option(metavar="N", help="Of the free set and the halves.")] = 0,
    priors_file: Annotated[
        Path | None,
        typer.Option("--priors", metavar="FILE", help="TOML file of priors that replace defaults."),
    ] = None,
    bandwidth: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=0.2,
            metavar="FRACTION",
            help="Bandwidth Δλ/λ, rms fraction.",
            show_default="from the image files, else 0",
        ),
    ] = None,
    gain: Annotated[
        float | None,
        typer.Option(metavar="G", help="Counts per photon.", show_default="as of fit"),
    ] = None,
    read_noise: Annotated[
        float | None,
        typer.Option(
            metavar="PHOTONS", help="Read-out noise, photons rms.", show_default="as of fit"
        ),
    ] = None,
) -> None:
    """Fit a run to factored statistics and to its pixels; write and print one table of both."""
    if d_min is not None and not d_min > 0:
        raise InputError(f"--d-min {d_min:g}: the resolution limit must be positive, in Å")
    output.prepare_folder(out)
    whole = read_experiments(experiments)
    run_of = _images(whole, images)
    truth = None
    if truth_file is not None:
        first = next(i for i, still in enumerate(whole.stills) if still is run_of.stills[0])
        truth = compare.read_truth(truth_file, slice(first, first + len(run_of)))
    ref = reference.read_reference(reference_file, None, 0.97 * d_min if d_min else None)
    settings = run.Settings(
        d_min=d_min or float(ref.d.min()), free_fraction=free_fraction, seed=seed
    )
    prior = priors.read_priors(priors_file, priors.Priors()) if priors_file else priors.Priors()
    stills = overridden(run_of.stills, bandwidth, None, None)
    with ImageReader(gain=gain) as reader, progress() as say:
        found = noise.noise_for(reader, stills, gain, read_noise)
        reader.gain = found.gain
        settings = replace(settings, read_noise=found.read_noise)
        contestants = compare.compare(
            stills,
            ref,
            reader,
            loading.load_model("still"),
            loading.load_model("per_pixel"),
            prior,
            settings,
            progress=say,
        )
    table = {c.name: compare.scores(c, ref, settings, truth) for c in contestants}
    about = {"command": context.obj or [], "noise": asdict(found), "priors": asdict(prior)}
    compare.write_comparison(out, table, about)
    _print(table)
    out_console.print(f"results in {out}", soft_wrap=True)


def _print(table: dict[str, dict[str, float]]) -> None:
    shown = Table(box=None, pad_edge=False)
    shown.add_column("")
    for name in table:
        shown.add_column(name, justify="right")
    for quantity in next(iter(table.values())):
        row = [score.get(quantity, math.nan) for score in table.values()]
        if not all(math.isnan(x) for x in row):
            shown.add_row(quantity, *("" if math.isnan(x) else f"{x:.4g}" for x in row))
    out_console.print(shown)
