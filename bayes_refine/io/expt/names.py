"""A name for each experiment: its identifier where that is unique, else the name of its image."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ...util.text import printable

_COMPRESSED = (".bz2", ".gz")


class Named(NamedTuple):
    """What the name of an experiment is made of: identifier, image, numbers of the crystal."""

    identifier: str
    image: tuple[Path, int]
    crystal: tuple[float, ...]


def unique_names(experiments: Sequence[Named]) -> list[str]:
    """Names of experiments, which do not depend on the order of the experiments.

    An identifier that occurs once is kept, with control characters escaped.  Other experiments are
    called ``stem#frame`` after the image, with ``.crystalN`` added where several crystals are on
    the image (N in the order of their numbers), and ``@folder`` where images in several folders
    have the same name.
    """
    given = [printable(e.identifier) for e in experiments]
    count = Counter(given)
    folders = _folders({e.image[0] for e in experiments})
    on_image: dict[tuple[Path, int], list[int]] = defaultdict(list)
    for n, e in enumerate(experiments):
        on_image[e.image].append(n)
    taken = {name for name in given if count[name] == 1}
    names = list(given)
    for (path, frame), members in sorted(on_image.items()):
        ordered = sorted(members, key=lambda n: experiments[n].crystal)
        for k, n in enumerate(ordered):
            if given[n] and count[given[n]] == 1:
                continue
            name = f"{printable(_stem(path))}#{frame}"
            if len(members) > 1:
                name += f".crystal{k + 1}"
            if folders[path]:
                name += f"@{folders[path]}"
            while name in taken:  # it is another experiment's identifier
                name += "'"
            names[n] = name
            taken.add(name)
    return names


def _folders(paths: set[Path]) -> dict[Path, str]:
    """The folders of each path that tell it from other files of the same stem; "" if none do."""
    folders: dict[Path, str] = {}
    by_stem: dict[str, list[Path]] = defaultdict(list)
    for path in paths:
        by_stem[_stem(path)].append(path)
    for alike in by_stem.values():
        depth, found = 0, [""] * len(alike)
        while len(set(found)) < len(alike):
            depth += 1
            if depth > max(len(path.parts) for path in alike):  # their suffixes differ
                found = [str(path) for path in alike]
                break
            found = ["/".join(path.parent.parts[1:][-depth:]) for path in alike]
        folders |= {path: printable(folder) for path, folder in zip(alike, found, strict=True)}
    return folders


def _stem(file: Path) -> str:
    return Path(file.stem if file.suffix in _COMPRESSED else file).stem
