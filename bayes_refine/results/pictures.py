"""Pictures of a run: drawn after its results are complete, so that none can lose them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ..util.folder import flush_to_disk, taken
from ..util.progress import Listener

# of a run before, they would belong to other results
MAY_BE_ABSENT = ("overview.png", "report.html", "half1.mtz", "half2.mtz")


def draw_pictures(
    out: Path,
    drawn: Mapping[str, Callable[[Path], Sequence[str] | None]],
    progress: Listener,
) -> list[str]:
    """Draw each picture into ``out``, whole or not at all, and go on where one fails.

    Args:
        out: where the results are.
        drawn: by file name, what writes a picture to a path; it may return sentences about
            parts that are missing.
        progress: told each failure in one sentence.

    Returns:
        Those sentences.
    """
    failed: list[str] = []
    for k, (name, draw) in enumerate(drawn.items()):
        progress.update(k / len(drawn), f"drawing {name}")
        try:
            with taken(out) as work:
                found = [f"{name}: {line}" for line in draw(work / name) or ()]
                flush_to_disk(work / name)
                os.replace(work / name, out / name)
        except Exception as error:  # whatever a library raises: the results are there
            why = " ".join(f"{error}".split()) or type(error).__name__
            found = [f"{name} could not be drawn: {why}"]
        for line in found:
            progress.say(f"{line}; all other results are complete")
        failed += found
    return failed
