"""Commands that take a while, which all have ``--quiet`` and ``--verbose``."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from .app import Talk, app, talk


def _talk(level: Talk) -> Callable[[bool], bool]:
    def chosen(value: bool) -> bool:
        if value:
            talk(level)
        return value

    return chosen


OPTIONS = {
    "quiet": Annotated[
        bool,
        typer.Option(
            "--quiet",
            "-q",
            callback=_talk(Talk.quiet),
            help="Print errors and warnings only; log.txt of a fit or a merge has all lines.",
        ),
    ],
    "verbose": Annotated[
        bool,
        typer.Option(
            "--verbose",
            "-v",
            callback=_talk(Talk.verbose),
            help="Keep each step on the terminal, with time and memory so far.",
        ),
    ],
}


def long_command(name: str, **settings: Any) -> Callable[[Callable], Callable]:
    """Make a function a command of the application, with the options above besides its own.

    Args:
        settings: of typer's ``command``.
    """

    def registered(function: Callable) -> Callable:
        @functools.wraps(function)
        def command(*args: Any, **given: Any) -> None:
            function(*args, **{key: value for key, value in given.items() if key not in OPTIONS})

        own = inspect.signature(function, eval_str=True)
        more = [
            inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=kind)
            for key, kind in OPTIONS.items()
        ]
        signature = own.replace(parameters=[*own.parameters.values(), *more])
        vars(command)["__signature__"] = signature
        command.__annotations__ = {
            key: parameter.annotation for key, parameter in signature.parameters.items()
        }
        app.command(name, **settings)(command)
        return function

    return registered
