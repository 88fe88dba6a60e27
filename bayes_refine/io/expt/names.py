"""One name for each experiment: what the file gives where that is unique, else the image's."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ...util.text import printable

_COMPRESSED = (".bz2", ".gz")


class Named(NamedTuple):
    """What an experiment's name is made of: its identifier, image, and crystal's numbers."""

    identifier: str
    image: tuple[Path, int]
    crystal: tuple[float, ...]


def unique_names(experiments: Sequence[Named]) -> list[str]:
    """A name for each experiment that does not depend on their order.

    Identifiers that are given once are kept (control characters escaped).  Others become
    ``stem#frame`` of the image, with ``.crystalN`` where several crystals lie on the image, N in
    the order of their numbers, and ``@folder`` where images of one name lie in several folders.
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
            while name in taken:  # somebody else's identifier
                name += "'"
            names[n] = name
            taken.add(name)
    return names


def _folders(paths: set[Path]) -> dict[Path, str]:
    """As many folders of each file as tell it from the others of its stem; none if it is alone."""
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
