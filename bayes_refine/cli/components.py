"""``fit --component``: replace pieces of a model by learned components."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..fitting.problem import Settings
from ..geometry.experiments import Still
from ..learned import needed
from .app import err_console


def with_components(
    model: Callable[..., Any],
    settings: Settings,
    files: Sequence[Path] | None,
    stills: Sequence[Still],
) -> tuple[Callable[..., Any], Settings, dict[str, Any]]:
    """Put learned components into a model.

    Returns:
        The model with the components, the settings that the components need, and the entries of
        ``summary.json`` about them.

    Raises:
        InputError: a file is no component, or a component does not fit these images.
    """
    if not files:
        return model, settings, {}
    needed()
    from ..learned import component

    found = [component.read_component(path) for path in files]
    for path, one in zip(files, found, strict=True):
        one.check_serves(stills, path)
        line = f"{path}: {one.family}, {one.origin.evidence}"
        err_console.print(line, markup=False, soft_wrap=True)
    shown = [{"file": str(path), **one.shown()} for path, one in zip(files, found, strict=True)]
    settings = component.settings_with(settings, found)
    return component.with_components(model, found), settings, {"components": shown}
