"""Options that several commands share."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from ..results.exports import Export
from ..util.errors import InputError
from .settings import read_settings

DETECTOR, INFERENCE = "Beam and detector", "Model and inference"


MAX_SEED = 2**63 - 1  # of a signed 64-bit integer, which JAX's keys are made from


def _positive(d_min: float | None) -> float | None:
    if d_min is not None and not 0 < d_min < math.inf:
        raise InputError(f"--d-min {d_min:g}: the resolution limit must be positive, in Å")
    return d_min


def between(low: float, high: float, unit: str = "") -> Callable[..., float | None]:
    """A callback of an option, which refuses NaN and numbers outside [low, high]."""

    def check(param: typer.CallbackParam, value: float | None) -> float | None:
        if value is not None and not low <= value <= high:
            top = f"from {low:g} to {high:g}" if high < math.inf else f"{low:g} or more"
            raise InputError(f"{param.opts[0]} {value:g}: must be {top} {unit}".rstrip())
        return value

    return check


def number_option(low: float, high: float, metavar: str, help: str) -> Any:
    """An option that takes a number in [low, high]; its help states the range."""
    return typer.Option(
        metavar=metavar, help=f"{help} [{low:g} to {high:g}]", callback=between(low, high)
    )


def reference_option(show_default: bool | str = True) -> Any:
    """``--reference``; ``show_default`` says what happens without it."""
    return typer.Option(
        "--reference",
        metavar="FILE",
        help="Reference intensities: .mtz, structure-factor .cif, .pdb or model .cif.",
        show_default=show_default,
    )


def resolution_option(show_default: str) -> Any:
    """``--d-min``; ``show_default`` says what the limit is without it."""
    return typer.Option(
        metavar="Å", help="Resolution limit, Å.", show_default=show_default, callback=_positive
    )


def priors_option(of: str = "") -> Any:
    """``--priors``; ``of`` says of which unknowns."""
    return typer.Option(
        "--priors",
        metavar="FILE",
        help=f"TOML file with priors {of}that replace the defaults.",
        rich_help_panel=INFERENCE,
    )


def seed_option(help: str) -> Any:
    """``--seed``."""
    return typer.Option(min=0, max=MAX_SEED, metavar="N", help=help)


def rounds_option(help: str) -> Any:
    """``--rounds``."""
    return typer.Option(min=1, max=100, metavar="N", help=help, rich_help_panel=INFERENCE)


def label_option(of: str, usual: str) -> Any:
    """``--intensity-column`` and similar options: the label of a column with an unusual name."""
    return typer.Option(metavar="LABEL", help=f"Column of {of} in an MTZ file.", show_default=usual)


def pixel_file_option(help: str, show_default: str) -> Any:
    """An option that takes a file with a number for each pixel."""
    return typer.Option(
        metavar="FILE",
        help=f"{help} HDF5 (or file.h5:/path), NPY, TIFF or CBF.",
        show_default=show_default,
        rich_help_panel=DETECTOR,
    )


Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        is_eager=True,
        callback=read_settings,
        help="TOML file of options, such as settings.toml of a run; the command line has priority.",
        show_default=False,
    ),
]


Out = Annotated[
    Path,
    typer.Option(
        help="Folder for the results; it is made if absent.", metavar="DIR", show_default=False
    ),
]
ExperimentsFiles = Annotated[
    list[Path],
    typer.Argument(
        help="Indexed stills with images: DIALS .expt, CrystFEL .stream or Jungfraujoch files; "
        "also patterns and lists of files.",
        metavar="EXPERIMENTS",
        show_default=False,
    ),
]
GeometryFile = Annotated[
    Path | None,
    typer.Option(
        "--geometry",
        metavar="FILE.geom",
        help="CrystFEL geometry file, which replaces the geometry in the stream.",
        show_default="that of the stream",
        rich_help_panel=DETECTOR,
    ),
]
ImageFolder = Annotated[
    Path | None,
    typer.Option(
        "--image-folder",
        metavar="DIR",
        help="Folder of the image files, if they are not where the experiments say.",
        show_default="from the experiments",
    ),
]
Polarisation = Annotated[
    str | None,
    typer.Option(
        "--polarisation",
        metavar="TYPE",
        help="Polarisation of the beam, in CrystFEL's notation: horiz, vert, horiz98, 45deg90; "
        "horiz50: not polarised.",
        show_default="from the .expt; horiz for a .stream",
        rich_help_panel=DETECTOR,
    ),
]
NamesFile = Annotated[
    Path | None,
    typer.Option(
        "--names",
        metavar="FILE.toml",
        help="Names of data sets in Jungfraujoch files, for versions with other names.",
        show_default="packaged",
    ),
]
Monitor = Annotated[
    str | None,
    typer.Option(
        "--monitor",
        metavar="FILE",
        help="Pulse energies, any unit: CSV or TOML by identifier or in the order of the images, "
        "or FILE.h5:/path. Scales are tied to them (prior log_G_monitor_sd).",
        show_default="none",
        rich_help_panel=DETECTOR,
    ),
]
Images = Annotated[
    str | None,
    typer.Option(
        metavar="A:B", help="Range a:b of stills, counted from 0, without b.", show_default="all"
    ),
]
Resolution = Annotated[float | None, resolution_option("that of the reference")]
ReferenceFile = Annotated[Path | None, reference_option("none: the images are each other's")]
FreeFraction = Annotated[
    float,
    typer.Option(
        metavar="FRACTION",
        help="Share of unique reflections whose reference intensity informs no fit.",
        callback=between(0.0, 0.5),
    ),
]
PriorsFile = Annotated[Path | None, priors_option()]
Bandwidth = Annotated[
    float | None,
    typer.Option(
        metavar="FRACTION",
        help="Bandwidth Δλ/λ to start from, rms fraction; it is refined.",
        show_default="from the image files, else the prior's",
        callback=between(0.0, 0.2),
        rich_help_panel=DETECTOR,
    ),
]
Gain = Annotated[
    float | None,
    typer.Option(
        metavar="G",
        help="Counts per photon.",
        show_default="from the .expt, else the images",
        callback=between(1e-6, 1e9, "counts per photon"),
        rich_help_panel=DETECTOR,
    ),
]
ReadNoise = Annotated[
    float | None,
    typer.Option(
        metavar="PHOTONS",
        help="Read-out noise, photons rms.",
        show_default="from the images",
        callback=between(0.0, 1e6, "photons rms"),
        rich_help_panel=DETECTOR,
    ),
]
MaskFile = Annotated[
    Path | None,
    pixel_file_option(
        "Pixels to use: True of truth values, 0 of numbers.", "that of the .expt, if any"
    ),
]
ReferenceColumn = Annotated[
    str | None,
    typer.Option(
        metavar="LABEL", help="Column of the reference; by default one with a usual name."
    ),
]
SpaceGroup = Annotated[
    str | None,
    typer.Option(
        "--space-group",
        metavar="NAME",
        help="Space group, such as P43212 or 96, for files without one; for integrated stills it "
        "replaces the group in the file.",
        show_default="from the files",
    ),
]
Cell = Annotated[
    str | None,
    typer.Option(
        "--cell",
        metavar="A,B,C,α,β,γ",
        help="Cell, Å and degrees, or a CrystFEL cell file, for files without one; for integrated "
        "stills it replaces the cell in the file.",
        show_default="from the files",
    ),
]
Write = Annotated[
    list[Export] | None,
    typer.Option(
        "--write",
        help="Also write results for another program; may be given more than once.",
        show_default="none",
    ),
]
Oscillation = Annotated[
    float | None,
    typer.Option(
        "--oscillation",
        metavar="DEG",
        help="Turn of the crystal during an exposure, degrees; up to 0.5.",
        show_default="from the .expt, else 0",
        callback=between(0.0, 360.0, "degrees"),
        rich_help_panel=DETECTOR,
    ),
]
Spindle = Annotated[
    tuple[float, float, float] | None,
    typer.Option(
        "--spindle",
        metavar="X Y Z",
        help="Axis that the crystal turns about, in the lab frame.",
        show_default="from the .expt",
        rich_help_panel=DETECTOR,
    ),
]
AsStills = Annotated[
    bool,
    typer.Option(
        "--as-stills",
        help="Treat frames of a turning crystal as stills.",
        rich_help_panel=DETECTOR,
    ),
]
Seed = Annotated[int, seed_option("Seed of the free set, the random halves and the draws.")]
SimulationSeed = Annotated[int, seed_option("Seed of all random numbers.")]
