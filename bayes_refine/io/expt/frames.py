"""Which file and frame an experiment's image is: image sets, sequences with scans, templates."""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path

from ...util.errors import InputError
from .schema import Document, ExperimentEntry, ImageSetEntry, ScanEntry

_MAPS = {
    "gain": "a gain map per pixel: remove it here and give it as --gain-map",
    "pedestal": "a pedestal map per pixel: remove it here and give it as --pedestal-map",
    "dx": "a map of displaced pixels, which cannot be used: remove dx and dy to go on without it",
}
_MAPS["dy"] = _MAPS["dx"]


class Frames:
    """Finds the image of each experiment of a document.

    Args:
        path: of the ``.expt`` file; names of image files are relative to its folder.
    """

    def __init__(self, document: Document, path: Path) -> None:
        self._document, self._folder = document, path.parent
        scanned = _scanned(document)
        self._relative = {
            i for i, s in enumerate(document.imageset) if _counts_from_first(scanned[i], s)
        }

    def of(self, n: int, image: int | None = None) -> tuple[Path, int]:
        """File and frame (from 0) of experiment ``n``, and of one ``image`` of several.

        An image set has a list of files, with their frames.  A sequence, as DIALS writes since
        3.17, has a template and the experiment a scan: of a file of many images its
        ``image_range`` counts frames from 1, of a template with # it is the number of the file.

        Raises:
            InputError: none or several images, maps of pixels.
        """
        entry = self._document.experiment[n]
        scan = None if entry.scan is None else self._document.scan[entry.scan]
        where = f"imageset[{entry.imageset}]"
        images = self._document.imageset[entry.imageset]
        for key, what in _MAPS.items():
            if getattr(images, key):
                raise InputError(f"{where}.{key}: {what}")
        if images.images:
            return self._listed(images, images.images, entry, scan, image)
        if not images.template:
            raise InputError(f"{where}: it has neither images nor a template")
        if scan is None:
            raise InputError(f"experiment[{n}]: no scan says which image of {where} it is of")
        first = _one_image(scan, entry) if image is None else image
        if "#" in Path(images.template).name:
            return self._absolute(_numbered(images.template, first)), 0
        frame = first - 1
        if entry.imageset in self._relative and images.single_file_indices:
            frame = images.single_file_indices[frame]
        if frame < 0:
            raise InputError(f"scan[{entry.scan}].image_range: frames of a file count from 1")
        return self._absolute(images.template), frame

    def masks(self) -> list[str]:
        """The mask files of the image sets, each once: they are not read."""
        return list(dict.fromkeys(s.mask for s in self._document.imageset if s.mask))

    def _listed(
        self,
        images: ImageSetEntry,
        files: list[str],
        entry: ExperimentEntry,
        scan: ScanEntry | None,
        image: int | None,
    ) -> tuple[Path, int]:
        where = f"imageset[{entry.imageset}]"
        indices = images.single_file_indices or []
        if indices and len(indices) != len(files):
            raise InputError(
                f"{where}: {len(indices)} single_file_indices of {len(files)} images; write the "
                "file anew with DIALS"
            )
        k = 0
        if len(files) > 1:
            if scan is None:
                raise InputError(
                    f"{where}: it has {len(files)} images and no scan says which one; give each "
                    "still its own (dials.split_experiments)"
                )
            k = (_one_image(scan, entry) if image is None else image) - 1
            if not 0 <= k < len(files):
                raise InputError(
                    f"scan[{entry.scan}].image_range: image {k + 1} of the {len(files)} of {where}"
                )
        return self._absolute(files[k]), indices[k] if indices else 0

    def _absolute(self, name: str) -> Path:
        return absolute(name, self._folder)


def absolute(name: str, folder: Path) -> Path:
    """A file that an ``.expt`` in ``folder`` names, ~ and $VARIABLES expanded as DIALS does."""
    return Path(os.path.abspath(folder / os.path.expanduser(os.path.expandvars(name))))


def _one_image(scan: ScanEntry, entry: ExperimentEntry) -> int:
    """The number of the one image of a scan."""
    if scan.image_range is None:
        raise InputError(f"scan[{entry.scan}].image_range: it is missing")
    first, last = scan.image_range
    if first != last:
        raise InputError(
            f"scan[{entry.scan}].image_range: images {first} to {last}, where a still has one; "
            "give each still its own (dials.split_experiments)"
        )
    return first


def _numbered(template: str, number: int) -> str:
    """A template with its # in the name replaced: several by zero-padded digits, one by as many."""
    if number < 0:
        raise InputError(f"the template {template} has no image {number}")
    folder, name = os.path.split(template)
    start, end = name.index("#"), name.rindex("#") + 1
    width = name.count("#")
    digits = f"{number:0{width}d}" if width > 1 else str(number)
    return os.path.join(folder, name[:start] + digits + name[end:])


def _counts_from_first(frames: set[int], images: ImageSetEntry) -> bool:
    """Whether image ranges count from the first of a sequence's own frames, not of the file.

    DIALS counts from the file's first.  A list whose ranges are not among the sequence's frames,
    but would be if counted from its first, was renumbered.

    Args:
        frames: that experiments have of the image set.
    """
    own = images.single_file_indices
    if images.images or not own or not frames:
        return False
    within = all(0 <= frame < len(own) for frame in frames)
    return within and not frames <= set(own)


def _scanned(document: Document) -> dict[int, set[int]]:
    """The frames that experiments have of each image set by their scans."""
    found: dict[int, set[int]] = defaultdict(set)
    for entry in document.experiment:
        if entry.scan is not None:
            image_range = document.scan[entry.scan].image_range
            if image_range is not None:
                found[entry.imageset].add(image_range[0] - 1)
    return found
