"""``bayes-refine train``."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from .. import loading
from ..fitting.prepare import fit, prepare
from ..fitting.problem import Settings
from ..io.images import ImageReader
from ..io.pulse_energies import with_pulse_energies
from ..learned import needed
from ..physics.priors import Priors
from ..util.errors import InputError
from . import options
from .app import app, out_console, progress
from .inputs import (
    in_order,
    mask_for,
    priors_from,
    reference_from,
    resolution_limit,
    some_images,
    usable_experiments,
)
from .options import DETECTOR, INFERENCE


class FamilyName(StrEnum):
    """The piece of the model that is learned."""

    partiality = "partiality"
    correction = "correction"
    profile = "profile"


@app.command("train")
def train_command(
    experiments: options.ExperimentsFiles,
    component: Annotated[
        FamilyName,
        typer.Option(
            help="The piece that is learned: the curve of partiality, a factor by place on the "
            "detector, resolution, order and pulse energy of the images, or the profile of spots.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(metavar="FILE", help="File of the component.", show_default=False),
    ],
    reference_file: Annotated[
        Path | None, options.reference_option("none: the images are each other's")
    ] = None,
    d_min: options.Resolution = None,
    images: options.Images = None,
    free_fraction: Annotated[
        float, options.free_option("Share of unique reflections kept from training.")
    ] = 0.05,
    seed: Annotated[int, options.seed_option("Of the free set, the folds and first weights.")] = 0,
    priors_file: Annotated[Path | None, options.priors_option(panel=INFERENCE)] = None,
    epochs: Annotated[
        int,
        typer.Option(
            min=1,
            max=10_000,
            metavar="N",
            help="Passes over the images, at most; images held out say when to stop.",
            rich_help_panel=INFERENCE,
        ),
    ] = 150,
    each_image: Annotated[
        bool,
        typer.Option(
            "--each-image",
            help="Of partiality: the curve of each image has two numbers of its own.",
            rich_help_panel=INFERENCE,
        ),
    ] = False,
    rounds: Annotated[int, options.rounds_option("Rounds of the plain fit before.", INFERENCE)] = 3,
    bandwidth: Annotated[float | None, options.bandwidth_option(DETECTOR)] = None,
    monitor: options.Monitor = None,
    gain: Annotated[float | None, options.gain_option("as of fit", DETECTOR)] = None,
    read_noise: Annotated[float | None, options.read_noise_option("as of fit", DETECTOR)] = None,
    mask: Annotated[
        Path | None,
        options.pixel_file_option("Pixels to use, as of fit.", "that of the .expt, if any"),
    ] = None,
) -> None:
    """Learn a piece of the model through its likelihood; say whether it predicts unseen images."""
    needed()
    from ..learned.component import Family, write_component
    from ..learned.training import OWN, Training, settings_for, train_component

    if not out.parent.is_dir():
        raise InputError(f"{out.parent}: no such folder for --out")
    family = Family(component.value)
    if each_image and family is not Family.partiality:
        raise InputError("--each-image is of the curve of partiality: leave it out, or give that")
    training = Training(epochs, seed, OWN if each_image else 0.0)
    given = usable_experiments(experiments)
    if monitor is not None:
        given = replace(given, stills=with_pulse_energies(given.stills, monitor))
    run_of = in_order(some_images(given, images))
    ref = None if reference_file is None else reference_from(reference_file, None, d_min)
    d_min = resolution_limit(d_min, ref, run_of.stills)
    settings = settings_for(
        Settings(rounds=rounds, free_fraction=free_fraction, seed=seed), [family]
    )
    prior, usable = priors_from(priors_file, Priors()), mask_for(run_of, mask)
    with ImageReader(gain=gain, usable=usable) as reader, progress() as listener:
        ready = prepare(
            run_of, reader, ref, d_min=d_min, read_noise=read_noise, bandwidth=bandwidth
        )
        run = fit(ready, loading.load_model("still"), prior, settings, listener)
        found = train_component(run, family, training, listener)
    write_component(out, found)
    out_console.print(f"{family}: {found.origin.evidence}", soft_wrap=True)
    out_console.print(f"component in {out}", soft_wrap=True)
