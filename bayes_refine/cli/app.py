"""What all commands share: the application, where it prints, and progress."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.console import Console

from .. import __version__

app = typer.Typer(
    name="bayes-refine",
    help="Bayesian integration, scaling and geometry refinement of still images.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
out_console, err_console = Console(highlight=False), Console(stderr=True, highlight=False)


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        out_console.print(f"bayes-refine {__version__}")
        raise typer.Exit


@contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """A printer of progress: lines that begin with "step" replace each other, others stay."""
    with err_console.status("starting") as status:

        def say(line: str) -> None:
            status.update(line)
            if not line.startswith("step"):
                err_console.print(line, markup=False, soft_wrap=True)

        yield say
