"""Images that are not where the experiments say: they were moved, or indexed on another machine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ..geometry.experiments import Experiments
from ..util.errors import InputError


def images_in(experiments: Experiments, folder: Path) -> Experiments:
    """The experiments with every image file in ``folder``, in the document too.

    Of the path that the experiments have, the longest end that exists in the folder counts: of
    ``/cluster/run7/data1/a.h5`` first ``run7/data1/a.h5``, last ``a.h5``.

    Raises:
        InputError: there is no such folder, or none of the files is in it.
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
    """An imageset of the document whose files are in the folder; a template with # stays."""
    entry = dict(entry)
    if isinstance(entry.get("images"), list):
        entry["images"] = [str(_there(Path(name), folder) or name) for name in entry["images"]]
    if isinstance(name := entry.get("template"), str):
        entry["template"] = str(_there(Path(name), folder) or name)
    return entry
