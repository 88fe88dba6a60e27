"""``bayes-refine watch``: add images to a fit as they come, and say when there are enough.

When the first files have come, ``watch`` runs ``fit --keep``; for all later files, ``fit --add``.
A ``watch`` that was stopped goes on where it was when it is given again with the same ``--out``.
"""

from __future__ import annotations

import glob
import json
import math
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from ..fitting.addition import NothingToAdd
from ..fitting.checkpoint import read_record
from ..io.open_experiments import open_experiments
from ..io.recognise import WILDCARDS, Kind, kind_of
from ..util.errors import InputError
from ..util.folder import CHECKPOINT, KEPT, WORK
from . import options, place, resume
from .app import app, err_console, out_console
from .long_command import long_command
from .until import Condition, conditions_of

POLL = 0.5  # s between looks at the folder
SETTLED = 0.5  # s without a write after which a file counts as complete (a stream never does)
DRAWS = 20  # in posterior.nc, which each addition writes anew
LATER = 10.0  # s after which files that could not be fitted are tried again
TAKEN = (".expt", ".stream", "_process.h5")  # names of files of indexed stills end so


@long_command("watch", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def watch_command(
    context: typer.Context,
    where: Annotated[
        str,
        typer.Argument(
            help="Folder, or pattern of files, in which indexed stills appear: DIALS .expt, "
            "CrystFEL .stream (also while it grows), Jungfraujoch files.",
            metavar="WHERE",
            show_default=False,
        ),
    ],
    out: options.Out,
    until: Annotated[
        str | None,
        typer.Option(
            metavar="CONDITIONS",
            help="End when all conditions hold, such as 'cc_half>0.5@2.0,completeness>0.95': "
            "limits of completeness, i_over_sigma, cc_half, cc_anom, multiplicity or r_split, in "
            "the shell of a resolution (Å) or, without one, over all reflections.",
            show_default="none",
        ),
    ] = None,
    idle: Annotated[
        float,
        typer.Option(
            min=0.0, metavar="S", help="End when no image has come for S seconds; inf for never."
        ),
    ] = math.inf,
    first: Annotated[
        int,
        typer.Option(min=1, metavar="N", help="The first fit waits for N images."),
    ] = 16,
) -> None:
    """Fit images as they come, with the options of fit, and end when there are enough."""
    if where.startswith("-"):
        raise InputError("watch: give the folder or pattern first, then --out and the options")
    conditions = () if until is None else conditions_of(until)
    rest = list(context.args)
    if not any(word.split("=")[0] == "--draws" for word in rest):
        rest += ["--draws", str(DRAWS)]
    _check(rest, out)
    folder, begun, before = _Folder(where), _go_on(out, rest), 0
    if begun:
        before = _summary(out)["counts"]["images"]
        if _enough(out, conditions):
            return
    waiting_since = time.monotonic()
    while True:
        new = folder.new()
        count, quiet = sum(f.stills for f in new), time.monotonic() - waiting_since
        if not new or not (begun or count >= first or quiet > idle):
            if quiet > idle:
                break
            time.sleep(POLL)
            continue
        started = time.monotonic()
        try:
            _update(out, new, rest, begun)
        except NothingToAdd:  # an earlier watch has added these images
            folder.taken_up(new)
            continue
        except InputError as error:  # files that come later may mend it
            err_console.print(f"waiting for more images: {error}", markup=False, soft_wrap=True)
            folder.try_later(new)
            continue
        folder.taken_up(new)
        begun, waiting_since = True, time.monotonic()
        seconds = waiting_since - started
        since = time.time() - min(f.mark[1] for f in new) * 1e-9
        n = _summary(out)["counts"]["images"]
        out_console.print(
            f"{n} images, {n - before} of them new: fitted in {seconds:.1f} s, "
            f"{since:.1f} s after the first of these came"
        )
        before = n
        if _enough(out, conditions):
            return
    if not begun:
        raise InputError(f"{where}: no indexed image came in {idle:g} s")
    out_console.print(f"no image for {idle:g} s: {out} has all that came", soft_wrap=True)


class _File(NamedTuple):
    """A file with images that the fit lacks: about how many, and the file's size and time (ns)."""

    path: Path
    stills: int
    mark: tuple[int, int]


class _Folder:
    """The watched files, each with its size and time when its images were last taken up.

    Args:
        where: folder or pattern.
    """

    def __init__(self, where: str) -> None:
        self._where = where
        self._done: dict[Path, tuple[int, int]] = {}
        self._not_before: dict[Path, float] = {}

    def files(self) -> list[Path]:
        """All files that may hold indexed stills."""
        if WILDCARDS & set(self._where):
            return sorted(Path(name) for name in glob.glob(self._where))
        if Path(self._where).is_file():
            return [Path(self._where)]
        found = Path(self._where).glob("*")
        return sorted(f for f in found if f.is_file() and f.name.endswith(TAKEN))

    def new(self) -> list[_File]:
        """Files that have images which were not there when the file was last taken up."""
        found, now = [], time.monotonic()
        for path in self.files():
            before = self._done.get(path, (0, 0))
            try:
                mark = _mark(path)
                if mark == before or now < self._not_before.get(path, 0.0):
                    continue
                count = _count(path, before[0] if mark[0] > before[0] else 0)
            except OSError:
                continue  # the file is gone again
            except InputError as error:
                err_console.print(f"left out: {error}", markup=False, soft_wrap=True)
                self._done[path] = mark  # until the file is written anew
                continue
            if count > 0:
                found.append(_File(path, count, mark))
        return found

    def taken_up(self, files: Sequence[_File]) -> None:
        """Note that the fit has the images of these files, as the files were when found."""
        self._done |= {file.path: file.mark for file in files}

    def try_later(self, files: Sequence[_File]) -> None:
        """Note that these files could not be fitted yet: their images may still be coming."""
        self._not_before |= {file.path: time.monotonic() + LATER for file in files}


def _mark(file: Path) -> tuple[int, int]:
    found = file.stat()
    return found.st_size, found.st_mtime_ns


def _count(file: Path, before: int) -> int:
    """Count the stills of a file: in a stream, those after byte ``before``; 0 while any other file
    is being written.

    Raises:
        InputError: the file has no still that can be used.
    """
    if file.suffix != ".stream" and time.time() - file.stat().st_mtime < SETTLED:
        return 0
    kind = kind_of(file)
    if kind is Kind.STREAM:
        with file.open("rb") as stream:
            stream.seek(before)
            return stream.read().count(b"--- End crystal")
    if kind is Kind.EXPERIMENTS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return len(open_experiments(file))
    return 1


def _check(rest: Sequence[str], out: Path) -> None:
    """Raise for wrong options of ``fit`` before any image comes."""
    command: Any = typer.main.get_command(app)
    fit = command.commands["fit"]
    words = ["watched.expt", *rest, "--out", str(out)]
    with fit.make_context("bayes-refine watch", words, parent=None):
        pass


def _go_on(out: Path, rest: Sequence[str]) -> bool:
    """Whether ``out`` has a fit to which images can be added; a stopped fit is finished first.

    Raises:
        InputError: the fit in ``out`` was given other options.
    """
    for folder in (KEPT, CHECKPOINT):
        record = read_record(out / WORK / folder)
        if record is None:
            continue
        known = list(map(str, record["made_of"][resume.COMMAND]))[2:]
        if other := [word for word in (*place.without(rest), "--keep") if word not in known]:
            raise InputError(
                f"{out}: has a fit without {' '.join(other)}; give its options or another --out"
            )
        if folder == CHECKPOINT:
            _run(["fit", "--resume", "--out", str(out), *place.chosen(rest)])
        return True
    return False


def _update(out: Path, files: Sequence[_File], rest: Sequence[str], begun: bool) -> None:
    """Fit the images of these files, or add the images to the fit that has ``begun``."""
    names = [str(file.path) for file in files]
    if begun:
        _run(["fit", "--add", *names, "--out", str(out), *place.chosen(rest)])
    else:
        _run(["fit", *names, *rest, "--keep", "--out", str(out)])


def _run(words: Sequence[str]) -> None:
    command, now = resume.expanded(["bayes-refine", *words])
    app(args=now, prog_name="bayes-refine", obj=command, standalone_mode=False)


def _summary(out: Path) -> dict[str, Any]:
    return json.loads((out / "summary.json").read_text(encoding="utf-8"))


def _enough(out: Path, conditions: Sequence[Condition]) -> bool:
    """Whether all conditions hold; for each that does not, print the forecast of when it will."""
    if not conditions:
        return False
    summary = _summary(out)
    table, n = summary["agreement"], summary["counts"]["images_used"]
    missing = [condition for condition in conditions if not condition.holds(table)]
    for condition in missing:
        when = condition.images(table, n, summary["forecast"])
        out_console.print(f"{condition}: it is {condition.value(table):.3g} of {n} images; {when}")
    if not missing:
        what = ", ".join(f"{c} ({c.value(table):.3g})" for c in conditions)
        out_console.print(f"enough: {what} with {n} images; results in {out}", soft_wrap=True)
    return not missing
