"""Find images that were moved since indexing, or indexed on another machine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ..geometry.experiments import Experiments
from ..util.errors import InputError


def images_in(experiments: Experiments, folder: Path) -> Experiments:
    """The experiments with their image files in ``folder``; their document says so too.

    The longest end of the old path that exists in the folder is taken: for
    ``/cluster/run7/data1/a.h5`` first ``run7/data1/a.h5`` is tried, last ``a.h5``.

    Raises:
        InputError: there is no such folder, or it has none of the files.
    """
    if not folder.is_dir():
        raise InputError(f"--image-folder {folder}: no such folder")
    there = {path: _there(path, folder) for path in {s.image_path for s in experiments.stills}}
    if all(found is None for found in there.values()):
        missing = min(there)
        raise InputError(f"--image-folder {folder}: {missing.name} is not in it, nor other images")
    stills = tuple(
        replace(still, image_path=there[still.image_path] or still.image_path)
        for still in experiments.stills
    )
    document = experiments.document
    sets = [_moved(entry, folder) for entry in document.get("imageset", [])]
    return replace(experiments, stills=stills, document={**document, "imageset": sets})


def _there(path: Path, folder: Path) -> Path | None:
    parts = [part for part in path.parts if part not in (path.anchor, "..")]
    ends = (folder.joinpath(*parts[k:]) for k in range(len(parts)))
    return next((end.resolve() for end in ends if end.is_file()), None)


def _moved(entry: dict[str, Any], folder: Path) -> dict[str, Any]:
    """An imageset of the document with its files in the folder; a template keeps its #."""
    entry = dict(entry)
    if isinstance(entry.get("images"), list):
        entry["images"] = [str(_there(Path(name), folder) or name) for name in entry["images"]]
    if isinstance(name := entry.get("template"), str):
        entry["template"] = str(_there(Path(name), folder) or name)
    return entry
