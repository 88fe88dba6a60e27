"""Pieces of the model that are learned through its likelihood, as values in files.

Needs the extra ``learn`` (equinox, optax): :func:`needed` says so before anything else is imported.
"""

from __future__ import annotations

from importlib.util import find_spec

from ..util.errors import InputError


def needed() -> None:
    """Check that what learned components are made with is installed.

    Raises:
        InputError: equinox or optax is missing.
    """
    missing = [name for name in ("equinox", "optax") if find_spec(name) is None]
    if missing:
        raise InputError(
            f"learned components need {' and '.join(missing)}: pip install 'bayes-refine[learn]'"
        )
