"""What all commands share: the application, where it prints, and progress."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer
from rich.console import Console

from .. import __version__
from ..util.errors import InputError

app = typer.Typer(
    name="bayes-refine",
    help="Bayesian integration, scaling and geometry refinement of still images.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


class _Logged(Console):
    """A console whose lines go to ``log.txt`` too, once :func:`log_to` has said where."""

    to: TextIO | None = None

    def print(self, *objects: Any, **how: Any) -> None:
        super().print(*objects, **how)
        if _Logged.to is not None:
            how = {k: v for k, v in how.items() if k in ("sep", "end", "markup", "soft_wrap")}
            Console(file=_Logged.to, highlight=False, width=100).print(*objects, **how)
            _Logged.to.flush()


out_console, err_console = _Logged(highlight=False), _Logged(stderr=True, highlight=False)


def log_to(path: Path, command: Sequence[str], go_on: bool = False) -> None:
    """From now on what the terminal shows, and each step of the progress, is in this file too."""
    end_log()
    try:
        _Logged.to = path.open("a" if go_on else "w", encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from None
    _Logged.to.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {shlex.join(map(str, command))}\n")


def end_log() -> None:
    """No more of it."""
    if _Logged.to is not None:
        with suppress(OSError):
            _Logged.to.close()
        _Logged.to = None


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
            elif _Logged.to is not None:
                _Logged.to.write(f"{line}\n")

        yield say
