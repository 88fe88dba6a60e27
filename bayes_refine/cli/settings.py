"""``settings.toml`` and ``--config``: write all options of a command, and read them back."""

from __future__ import annotations

import json
import os
import tomllib
from enum import Enum
from pathlib import Path
from typing import Any

import typer

from ..util.errors import InputError
from ..util.folder import flush_to_disk

NOT_WRITTEN = ("resume", "add", "config")


def write_settings(context: typer.Context, path: Path) -> None:
    """Write the options of a command as TOML; a comment names each option without a value."""
    lines = [f"# bayes-refine {context.command.name}: give this file with --config\n"]
    for name, value in context.params.items():
        if name in NOT_WRITTEN:
            continue
        if value is None or value == () or value == []:
            lines.append(f"# {name} = not given\n")
        else:
            lines.append(f"{name} = {_toml(value)}\n")
    part = path.with_name(f".{path.name}.part")
    part.write_text("".join(lines), encoding="utf-8")
    flush_to_disk(part)
    os.replace(part, path)


def _toml(value: Any) -> str:
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, bool | int | float):
        return str(value).lower()  # TOML too writes true, inf and nan
    if isinstance(value, list | tuple):
        return f"[{', '.join(_toml(v) for v in value)}]"
    return json.dumps(os.fspath(value), ensure_ascii=True)


def read_settings(context: typer.Context, path: Path | None) -> Path | None:
    """Callback of ``--config``: take from the file what the command line does not give.

    Raises:
        InputError: the file cannot be read, is no TOML, or has a name that is no option.
    """
    if path is None:
        return None
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as TOML ({error})") from None
    known = {parameter.name for parameter in context.command.params} - {"config"}
    for name, value in found.items():
        if name not in known:
            raise InputError(f"{path}: there is no option {name!r} of {context.command.name}")
        if isinstance(value, dict):
            raise InputError(f"{path}: {name} must be a value, not a table")
    context.default_map = {**(context.default_map or {}), **found}
    return path
