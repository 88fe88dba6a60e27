"""The application, its consoles and its progress bar, which all commands share."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from enum import IntEnum
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from .. import __version__
from ..util.errors import InputError
from ..util.output import versions
from ..util.progress import Listener, peak_memory

app = typer.Typer(
    name="bayes-refine",
    help="Bayesian integration, scaling and geometry refinement of still images.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


class Talk(IntEnum):
    """How much the terminal shows."""

    quiet = 0  # errors and warnings only
    usual = 1
    verbose = 2  # each step stays on the screen, with time and memory so far


class _Logged(Console):
    """A console that also writes to ``log.txt``, after :func:`log_to` was called."""

    to: TextIO | None = None
    talk = Talk.usual
    started = 0.0

    def print(self, *objects: Any, **how: Any) -> None:
        if _Logged.talk > Talk.quiet:
            super().print(*objects, **how)
        if _Logged.to is not None:
            how = {k: v for k, v in how.items() if k in ("sep", "end", "markup", "soft_wrap")}
            Console(file=_Logged.to, highlight=False, width=100).print(*objects, **how)


out_console, err_console = _Logged(highlight=False), _Logged(stderr=True, highlight=False)


def talk(level: Talk) -> None:
    """Set how much the terminal shows; ``log.txt`` has everything except time and memory."""
    _Logged.talk, _Logged.started = level, time.perf_counter()


def complain(line: str) -> None:
    """Print an error or a warning, whatever the level."""
    with _at_least(Talk.usual):
        err_console.print(f"bayes-refine: {line}", markup=False, soft_wrap=True)


@contextmanager
def _at_least(level: Talk) -> Iterator[None]:
    before = _Logged.talk
    _Logged.talk = max(before, level)
    try:
        yield
    finally:
        _Logged.talk = before


def log_to(path: Path, command: Sequence[str], go_on: bool = False) -> None:
    """Copy what the terminal shows, and each report of progress, to a file from now on."""
    end_log()
    try:
        # line by line: it can be followed, and is whole where the program is killed
        _Logged.to = path.open(
            "a" if go_on else "w", buffering=1, encoding="utf-8", errors="backslashreplace"
        )
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from None
    _Logged.to.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {shlex.join(map(str, command))}\n")
    made_with = ", ".join(f"{name} {number}" for name, number in versions().items())
    _Logged.to.write(f"{made_with}\n")


def end_log() -> None:
    """Stop copying to the log file."""
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
def progress() -> Iterator[Listener]:
    """Show lines that stay, and below them the progress of a stage; log all lines."""
    if _Logged.talk is Talk.verbose:
        yield Listener(_stamped, lambda fraction, line: _stamped(line))
        return
    if _Logged.talk is Talk.quiet:
        yield Listener(_stays, lambda fraction, line: _logged(line))
        return
    columns = (SpinnerColumn(), BarColumn(24), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=err_console, transient=True) as bar:
        task = bar.add_task("starting", total=None)

        def say(line: str) -> None:
            bar.update(task, description=line, total=None)
            _stays(line)

        def update(fraction: float | None, line: str) -> None:
            total = None if fraction is None else 1.0
            bar.update(task, description=line, total=total, completed=fraction or 0.0)
            _logged(line)

        yield Listener(say, update)


def _stays(line: str) -> None:
    err_console.print(line, markup=False, soft_wrap=True)


def _logged(line: str) -> None:
    if _Logged.to is not None:
        _Logged.to.write(f"{line}\n")


def _stamped(line: str) -> None:
    """A line, preceded by the seconds since the start and the peak of memory so far."""
    _stays(f"[{time.perf_counter() - _Logged.started:.1f} s, {peak_memory():.2f} GiB] {line}")
