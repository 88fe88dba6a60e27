"""Pieces of the model that are learned through its likelihood, and kept in files.

The other modules of this folder need the extra ``learn`` (equinox, optax): call :func:`needed`,
which says so, before importing any of them.
"""

from __future__ import annotations

from importlib.util import find_spec

from ..util.errors import InputError


def needed() -> None:
    """Check that the packages which learned components need are installed.

    Raises:
        InputError: equinox or optax is missing.
    """
    missing = [name for name in ("equinox", "optax") if find_spec(name) is None]
    if missing:
        raise InputError(
            f"learned components need {' and '.join(missing)}: pip install 'bayes-refine[learn]'"
        )
