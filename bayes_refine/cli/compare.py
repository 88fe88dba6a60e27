"""``bayes-refine compare``."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from .. import loading
from ..fitting.prepare import prepare, settings_of
from ..fitting.problem import Settings
from ..io.images import ImageReader
from ..per_pixel import compare
from ..physics.priors import Priors
from ..util import folder
from ..util.errors import InputError
from . import options
from .app import out_console, progress
from .inputs import (
    mask_for,
    priors_from,
    reference_from,
    resolution_limit,
    some_images,
    usable_experiments,
)
from .long_command import long_command


@long_command("compare")
def compare_command(
    context: typer.Context,
    experiments: options.ExperimentsFiles,
    out: options.Out,
    reference_file: Annotated[Path, options.reference_option(show_default=False)],
    truth_file: Annotated[
        Path | None,
        typer.Option(
            "--truth",
            metavar="FILE",
            help="HDF5 file of a simulated run with the true A, G and B of all stills.",
        ),
    ] = None,
    d_min: options.Resolution = None,
    images: options.Images = None,
    free_fraction: options.FreeFraction = 0.05,
    seed: Annotated[int, options.seed_option("Seed of free set and halves.")] = 0,
    priors_file: options.PriorsFile = None,
    bandwidth: options.Bandwidth = None,
    gain: options.Gain = None,
    read_noise: options.ReadNoise = None,
) -> None:
    """Fit a run to its factored statistics and to its pixels; write and print one table of both."""
    context.with_resource(folder.taken(out))
    whole = usable_experiments(experiments)
    chosen = some_images(whole, images)
    truth = None
    if truth_file is not None:
        if whole.left_out:
            raise InputError(f"{whole.path}: --truth needs all of its stills; {whole.left_out[0]}")
        first = next(i for i, still in enumerate(whole.stills) if still is chosen.stills[0])
        truth = compare.read_truth(truth_file, slice(first, first + len(chosen)))
    ref = reference_from(reference_file, None, d_min)
    d_min = resolution_limit(d_min, ref, chosen.stills)
    settings = Settings(free_fraction=free_fraction, seed=seed)
    prior = priors_from(priors_file, Priors())
    usable = mask_for(chosen, None)
    with ImageReader(gain=gain, usable=usable) as reader, progress() as listener:
        ready = prepare(
            chosen, reader, ref, d_min=d_min, read_noise=read_noise, bandwidth=bandwidth
        )
        settings = settings_of(ready, settings)
        if truth is not None:  # some images may not be readable
            number = {still.identifier: i for i, still in enumerate(chosen.stills)}
            truth = truth.select([number[still.identifier] for still in ready.experiments.stills])
        model, pixel_model = loading.load_model("still"), loading.load_model("per_pixel")
        contestants = compare.compare(
            ready.experiments.stills,
            ref,
            reader,
            compare.Models(model, pixel_model),
            prior,
            settings,
            progress=listener,
        )
    table = {c.name: compare.scores(c, ref, settings, truth) for c in contestants}
    about = {"command": context.obj or [], "noise": asdict(ready.noise), "priors": asdict(prior)}
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
