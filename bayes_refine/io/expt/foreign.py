"""Stills that came from another format, as an experiment list that can be written back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ...geometry.experiments import Experiments, Still
from .document import document_of
from .read import parse


def as_experiments(
    stills: Sequence[Still], path: str | Path, left_out: tuple[str, ...] = ()
) -> Experiments:
    """The stills with a document of their own, checked as one that is read.

    Stills without an identifier get one (``read_experiments``); those whose crystal cannot be are
    left out, with a sentence each.

    Args:
        path: the file that the stills were read from.
        left_out: what its reader left out already.

    Raises:
        InputError: a beam or detector that cannot be, or no crystal that can.
    """
    document, path = document_of(stills), Path(path)
    contents = parse(document, path)
    named = tuple(
        replace(stills[n], identifier=still.identifier)
        for n, still in zip(contents.numbers, contents.stills, strict=True)
    )
    return Experiments(named, path, document, (*left_out, *contents.left_out))
