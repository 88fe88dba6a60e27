"""``bayes-refine inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..io.inspect import inspect
from .app import app, out_console


@app.command("inspect")
def inspect_command(
    files: Annotated[
        list[Path],
        typer.Argument(help="Files of any kind.", metavar="FILE", show_default=False),
    ],
) -> None:
    """Say what files are, what they contain, and what else fit and merge would need."""
    for file in files:
        for line in inspect(file):
            out_console.print(line, markup=False, soft_wrap=True)
