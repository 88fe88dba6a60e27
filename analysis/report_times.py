"""How long do the report and the other pictures of a command take?

Runs a command of ``bayes-refine`` in this process and draws each of its pictures three times more.
The first time of the report has the time in which Matplotlib is loaded.

    python analysis/report_times.py fit lysosim_indexed.expt --reference model.mtz --out fitted
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from bayes_refine.cli import main
from bayes_refine.results import fit, merge, pictures
from bayes_refine.util.progress import Listener

REPEATS = 4


def timed(
    out: Path, drawn: Mapping[str, Callable[[Path], Sequence[str] | None]], progress: Listener
) -> list[str]:
    """As ``draw_pictures``; prints the seconds of each picture, every time that it is drawn."""
    with TemporaryDirectory() as folder:
        for name, draw in drawn.items():
            seconds = []
            for _ in range(REPEATS):
                started = time.perf_counter()
                draw(Path(folder) / name)
                seconds.append(f"{time.perf_counter() - started:.2f}")
            print(f"{name}: {', '.join(seconds)} s", file=sys.stderr, flush=True)
    return pictures.draw_pictures(out, drawn, progress)


if __name__ == "__main__":
    for module in (fit, merge):
        setattr(module, "draw_pictures", timed)  # noqa: B010  mypy allows no other function
    main(sys.argv[1:])
