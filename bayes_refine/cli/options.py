"""Options that several commands have."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from ..results.exports import Export
from ..util.errors import InputError
from .app import Talk, talk
from .settings import read_settings

DETECTOR, INFERENCE = "Beam and detector", "Model and inference"


MAX_SEED = 2**63 - 1  # of a signed 64-bit integer, which JAX's keys are made from


def _positive(d_min: float | None) -> float | None:
    if d_min is not None and not 0 < d_min < math.inf:
        raise InputError(f"--d-min {d_min:g}: the resolution limit must be positive, in Å")
    return d_min


def between(low: float, high: float, unit: str = "") -> Callable[..., float | None]:
    """A callback of an option: InputError for a number outside [low, high], as NaN is."""

    def check(param: typer.CallbackParam, value: float | None) -> float | None:
        if value is not None and not low <= value <= high:
            top = f"from {low:g} to {high:g}" if high < math.inf else f"{low:g} or more"
            raise InputError(f"{param.opts[0]} {value:g}: must be {top} {unit}".rstrip())
        return value

    return check


def number_option(low: float, high: float, metavar: str, help: str) -> Any:
    """An option of a number in [low, high], which its help states."""
    return typer.Option(
        metavar=metavar, help=f"{help} [{low:g} to {high:g}]", callback=between(low, high)
    )


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
    return typer.Option(metavar="FRACTION", help=help, callback=between(0.0, 0.5))


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
        metavar="FRACTION",
        help="Bandwidth Δλ/λ to start from, rms fraction; it is refined.",
        show_default="from the image files, else the prior's",
        callback=between(0.0, 0.2),
        rich_help_panel=panel,
    )


def gain_option(show_default: str, panel: str | None = None) -> Any:
    """``--gain``."""
    return typer.Option(
        metavar="G",
        help="Counts per photon.",
        show_default=show_default,
        rich_help_panel=panel,
        callback=between(1e-6, 1e9, "counts per photon"),
    )


def read_noise_option(show_default: str, panel: str | None = None) -> Any:
    """``--read-noise``."""
    return typer.Option(
        metavar="PHOTONS",
        help="Read-out noise, photons rms.",
        show_default=show_default,
        rich_help_panel=panel,
        callback=between(0.0, 1e6, "photons rms"),
    )


def seed_option(help: str) -> Any:
    """``--seed``."""
    return typer.Option(min=0, max=MAX_SEED, metavar="N", help=help)


def rounds_option(help: str, panel: str | None = None) -> Any:
    """``--rounds``."""
    return typer.Option(min=1, max=100, metavar="N", help=help, rich_help_panel=panel)


def label_option(of: str, usual: str) -> Any:
    """``--intensity-column`` and its like: the label of a column that does not follow usage."""
    return typer.Option(metavar="LABEL", help=f"Column of {of} in an MTZ file.", show_default=usual)


def pixel_file_option(help: str, show_default: str) -> Any:
    """A file with a number for each pixel."""
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
        help="TOML file of options, such as the settings.toml of a run; what is given here counts.",
        show_default=False,
    ),
]


def _talk(level: Talk) -> Callable[[bool], bool]:
    def chosen(value: bool) -> bool:
        if value:
            talk(level)
        return value

    return chosen


Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet",
        "-q",
        callback=_talk(Talk.quiet),
        help="Print errors and warnings only; log.txt has the rest.",
    ),
]
Verbose = Annotated[
    bool,
    typer.Option(
        "--verbose",
        "-v",
        callback=_talk(Talk.verbose),
        help="Keep each step, with time and memory, on the terminal and in log.txt.",
    ),
]
Out = Annotated[
    Path,
    typer.Option(help="Folder for the results; made if absent.", metavar="DIR", show_default=False),
]
ExperimentsFiles = Annotated[
    list[Path],
    typer.Argument(
        help="Indexed stills with images: DIALS .expt, CrystFEL .stream or Jungfraujoch files; "
        "patterns and lists of files too.",
        metavar="EXPERIMENTS",
        show_default=False,
    ),
]
GeometryFile = Annotated[
    Path | None,
    typer.Option(
        "--geometry",
        metavar="FILE.geom",
        help="CrystFEL geometry in place of the stream's own.",
        show_default="that of the stream",
        rich_help_panel=DETECTOR,
    ),
]
ImageFolder = Annotated[
    Path | None,
    typer.Option(
        "--image-folder",
        metavar="DIR",
        help="Where the image files are, if not where the experiments say.",
        show_default="as they say",
    ),
]
Polarisation = Annotated[
    str | None,
    typer.Option(
        "--polarisation",
        metavar="TYPE",
        help="Of the beam, as CrystFEL says it: horiz, vert, horiz98, 45deg90; horiz50 for none.",
        show_default="from the .expt; horiz for a .stream",
        rich_help_panel=DETECTOR,
    ),
]
NamesFile = Annotated[
    Path | None,
    typer.Option(
        "--names",
        metavar="FILE.toml",
        help="Names of data sets in Jungfraujoch files, where a version has others.",
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
SpaceGroup = Annotated[
    str | None,
    typer.Option(
        "--space-group",
        metavar="NAME",
        help="Such as P43212 or 96, where a file has none; of integrated stills, in its place.",
        show_default="from the files",
    ),
]
Cell = Annotated[
    str | None,
    typer.Option(
        "--cell",
        metavar="A,B,C,α,β,γ",
        help="Å and degrees, or a CrystFEL cell file, where a file has none; of integrated stills, "
        "in its place.",
        show_default="from the files",
    ),
]
Write = Annotated[
    list[Export] | None,
    typer.Option(
        "--write",
        help="Results for other programs too; may be given more than once.",
        show_default="none",
    ),
]
Oscillation = Annotated[
    float | None,
    typer.Option(
        "--oscillation",
        metavar="DEG",
        help="Turn of the crystal during an exposure, degrees; up to 0.5.",
        show_default="from the .expt, else none: stills",
        callback=between(0.0, 360.0, "degrees"),
        rich_help_panel=DETECTOR,
    ),
]
Spindle = Annotated[
    tuple[float, float, float] | None,
    typer.Option(
        "--spindle",
        metavar="X Y Z",
        help="Axis that the crystal turns about, in the laboratory.",
        show_default="from the .expt",
        rich_help_panel=DETECTOR,
    ),
]
AsStills = Annotated[
    bool,
    typer.Option(
        "--as-stills",
        help="Take frames of a turning crystal as stills.",
        rich_help_panel=DETECTOR,
    ),
]
Seed = Annotated[int, seed_option("Of the free set, the random halves and the draws.")]
SimulationSeed = Annotated[int, seed_option("Of every random number.")]
