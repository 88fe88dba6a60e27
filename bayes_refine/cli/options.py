"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..util.errors import InputError

DETECTOR, INFERENCE = "Beam and detector", "Model and inference"


def _positive(d_min: float | None) -> float | None:
    if d_min is not None and not d_min > 0:
        raise InputError(f"--d-min {d_min:g}: the resolution limit must be positive, in Å")
    return d_min


def reference_option(show_default: bool | str = True) -> Any:
    """``--reference``, with what stands in its place."""
    return typer.Option(
        "--reference",
        metavar="FILE",
        help="Reference intensities: .mtz, structure-factor .cif, .pdb or model .cif.",
        show_default=show_default,
    )


def resolution_option(show_default: str) -> Any:
    """``--d-min``, with the limit where it is not given."""
    return typer.Option(
        metavar="Å", help="Resolution limit, Å.", show_default=show_default, callback=_positive
    )


def free_option(help: str) -> Any:
    """``--free-fraction``."""
    return typer.Option(min=0.0, max=0.5, metavar="FRACTION", help=help)


def priors_option(of: str = "", panel: str | None = None) -> Any:
    """``--priors``, of everything or ``of`` some things."""
    return typer.Option(
        "--priors",
        metavar="FILE",
        help=f"TOML file of priors {of}that replace defaults.",
        rich_help_panel=panel,
    )


def bandwidth_option(panel: str | None = None) -> Any:
    """``--bandwidth``."""
    return typer.Option(
        min=0.0,
        max=0.2,
        metavar="FRACTION",
        help="Bandwidth Δλ/λ to start from, rms fraction; it is refined.",
        show_default="from the image files, else the prior's",
        rich_help_panel=panel,
    )


def gain_option(show_default: str, panel: str | None = None) -> Any:
    """``--gain``."""
    return typer.Option(
        metavar="G", help="Counts per photon.", show_default=show_default, rich_help_panel=panel
    )


def read_noise_option(show_default: str, panel: str | None = None) -> Any:
    """``--read-noise``."""
    return typer.Option(
        metavar="PHOTONS",
        help="Read-out noise, photons rms.",
        show_default=show_default,
        rich_help_panel=panel,
    )


Out = Annotated[
    Path,
    typer.Option(help="Folder for the results; made if absent.", metavar="DIR", show_default=False),
]
ExperimentsFile = Annotated[
    Path,
    typer.Argument(
        help="Indexed stills, a DIALS .expt file.", metavar="EXPERIMENTS", show_default=False
    ),
]
Images = Annotated[
    str | None,
    typer.Option(
        metavar="A:B", help="Range a:b of the stills, from 0, b left out.", show_default="all"
    ),
]
Resolution = Annotated[float | None, resolution_option("that of the reference")]
ReferenceColumn = Annotated[
    str | None,
    typer.Option(
        metavar="LABEL", help="Column of the reference; found by its usual names if left out."
    ),
]
Seed = Annotated[
    int, typer.Option(metavar="N", help="Of the free set, the random halves and the draws.")
]
SimulationSeed = Annotated[int, typer.Option(metavar="N", help="Of every random number.")]
