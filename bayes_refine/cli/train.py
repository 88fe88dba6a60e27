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
from .app import out_console, progress
from .inputs import (
    in_order,
    mask_for,
    priors_from,
    reference_from,
    resolution_limit,
    some_images,
    usable_experiments,
)
from .long_command import long_command
from .options import INFERENCE


class FamilyName(StrEnum):
    """The piece of the model that is learned."""

    partiality = "partiality"
    correction = "correction"
    profile = "profile"


@long_command("train")
def train_command(
    experiments: options.ExperimentsFiles,
    component: Annotated[
        FamilyName,
        typer.Option(
            help="The piece that is learned: the partiality curve; a factor on the scale, by place "
            "on the detector, resolution, order and pulse energy; or the profile of spots.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(metavar="FILE", help="File for the component.", show_default=False),
    ],
    reference_file: options.ReferenceFile = None,
    d_min: options.Resolution = None,
    images: options.Images = None,
    free_fraction: options.FreeFraction = 0.05,
    seed: Annotated[int, options.seed_option("Seed of free set, folds and first weights.")] = 0,
    priors_file: options.PriorsFile = None,
    epochs: Annotated[
        int,
        typer.Option(
            min=1,
            max=10_000,
            metavar="N",
            help="Most passes over the images; training stops when held-out images gain no more.",
            rich_help_panel=INFERENCE,
        ),
    ] = 150,
    each_image: Annotated[
        bool,
        typer.Option(
            "--each-image",
            help="Give the partiality curve of each image two numbers of its own.",
            rich_help_panel=INFERENCE,
        ),
    ] = False,
    rounds: Annotated[int, options.rounds_option("Rounds of the plain fit before training.")] = 3,
    bandwidth: options.Bandwidth = None,
    monitor: options.Monitor = None,
    gain: options.Gain = None,
    read_noise: options.ReadNoise = None,
    mask: options.MaskFile = None,
) -> None:
    """Learn a piece of the model by its likelihood; say whether it helps on unseen images."""
    needed()
    from ..learned.component import Family, write_component
    from ..learned.training import OWN, Training, settings_for, train_component

    if not out.parent.is_dir():
        raise InputError(f"{out.parent}: no such folder for --out")
    family = Family(component.value)
    if each_image and family is not Family.partiality:
        raise InputError(
            "--each-image needs --component partiality; drop it, or give that component"
        )
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
