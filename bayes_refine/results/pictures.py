"""Draw the pictures of a run after its results are complete, so that no picture can lose them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from threading import Thread

from ..util.folder import flush_to_disk, taken
from ..util.progress import Listener

# of an earlier run these would not belong to the new results
MAY_BE_ABSENT = ("overview.png", "report.html", "half1.mtz", "half2.mtz")


def load_meanwhile() -> None:
    """Load Matplotlib and its fonts in a thread, most of a second, while this one computes."""
    Thread(target=_load).start()  # which the end of the process waits for


def _load() -> None:
    with suppress(Exception):  # it is said when a picture is drawn
        from matplotlib.figure import Figure

        figure = Figure()
        figure.add_subplot()
        figure.savefig(BytesIO(), format="svg")


def draw_pictures(
    out: Path,
    drawn: Mapping[str, Callable[[Path], Sequence[str] | None]],
    progress: Listener,
) -> list[str]:
    """Draw each picture into ``out``, completely or not at all; a failure stops no other picture.

    Args:
        out: folder of the results.
        drawn: for each file name a function that writes a picture to a path; it may return
            sentences about missing parts.
        progress: gets one sentence for each failure.

    Returns:
        These sentences.
    """
    failed: list[str] = []
    for k, (name, draw) in enumerate(drawn.items()):
        progress.update(k / len(drawn), f"drawing {name}")
        try:
            with taken(out) as work:
                found = [f"{name}: {line}" for line in draw(work / name) or ()]
                flush_to_disk(work / name)
                os.replace(work / name, out / name)
        except Exception as error:  # no error of a library may cost the results
            why = " ".join(f"{error}".split()) or type(error).__name__
            found = [f"{name} could not be drawn: {why}"]
        for line in found:
            progress.say(f"{line}; all other results are complete")
        failed += found
    return failed
