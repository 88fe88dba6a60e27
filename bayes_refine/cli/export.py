"""``bayes-refine export``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from ..results.exports import Export, export
from .app import app, out_console


@app.command("export")
def export_command(
    folder: Annotated[
        Path,
        typer.Argument(help="Folder of a fit or a merge.", metavar="DIR", show_default=False),
    ],
    formats: Annotated[
        list[Export],
        typer.Option("--write", help="A format; may be given more than once.", show_default=False),
    ],
) -> None:
    """Write results for other programs: DIALS, CrystFEL, XDS, SHELX, SCALEPACK, mmCIF."""
    exported(folder, formats)


def exported(folder: Path, formats: Sequence[Export] | None) -> None:
    """Write results in more formats, and print where."""
    for path in export(folder, formats or ()):
        out_console.print(f"wrote {path}", markup=False, soft_wrap=True)
