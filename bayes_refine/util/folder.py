"""The folder that a run writes to: one run at a time, results complete or absent.

While a run goes on, it writes only into the *work folder*, ``.bayes-refine`` inside that folder; a
lock marks the work folder as in use.  The next run removes what a killed run left in it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from .errors import InputError

WORK, LOCK = ".bayes-refine", "lock"
CHECKPOINT, KEPT, MEASURED = "checkpoint", "kept", "measured"

STAY = (LOCK, CHECKPOINT, KEPT, MEASURED)


def prepare_folder(out_dir: str | Path) -> Path:
    """Make the folder if it is absent; InputError where it cannot be written to."""
    out = Path(out_dir)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            return out
    except OSError as error:
        raise InputError(
            f"{out}: cannot be written ({error.strerror}); choose another folder"
        ) from None


@contextmanager
def taken(out_dir: str | Path, go_on: bool = False) -> Iterator[Path]:
    """Hold the work folder of a run in ``out_dir``, so that no other run can take it.

    Calls in one process may be nested.  At the end the work folder is removed; if it holds a
    checkpoint or a fit that is kept, these stay, and so do the measurements.

    Args:
        go_on: keep what an earlier run left of these; else it is removed with all other leftovers.

    Raises:
        InputError: another run writes to this folder, or it cannot be written to.
    """
    out = prepare_folder(out_dir)
    work = out.resolve() / WORK
    lock = FileLock(work / LOCK, timeout=0, is_singleton=True, thread_local=False)
    if lock.is_locked:  # by an enclosing call
        yield work
        return
    try:
        _acquire(lock, work)
    except Timeout:
        raise InputError(
            f"{out}: another run is writing to this folder; wait for it, or choose another --out"
        ) from None
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror or error})") from None
    try:
        _clear(work, keep=STAY if go_on else (LOCK,))
        yield work
    finally:
        _clear(work, keep=STAY)
        if not ((work / CHECKPOINT).exists() or (work / KEPT).exists()):
            shutil.rmtree(work, ignore_errors=True)
        lock.release()


def _acquire(lock: FileLock, work: Path, attempts: int = 5) -> None:
    """Lock the work folder; try again if a run that just ended removed the folder meanwhile."""
    for last in [False] * (attempts - 1) + [True]:
        try:
            work.mkdir(exist_ok=True)
            lock.acquire()
        except FileNotFoundError:
            if last:
                raise
            continue
        if (work / LOCK).exists() or last:
            return
        lock.release()


def _clear(work: Path, keep: Sequence[str]) -> None:
    with suppress(FileNotFoundError):
        for entry in work.iterdir():
            if entry.name not in keep:
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry, ignore_errors=True)
                else:
                    entry.unlink(missing_ok=True)


@contextmanager
def all_or_none(
    out_dir: str | Path, outdated: Sequence[str] = (), last: str = "summary.json"
) -> Iterator[Path]:
    """Give a folder to write into; at the end flush its files to disk and move them to ``out_dir``.

    The file ``last`` is moved last: where it exists, all other files are complete and belong to it.

    Args:
        outdated: names of files of an earlier run, which are removed before the new ones arrive.

    Raises:
        InputError: another run writes to this folder, or it cannot be written to.
    """
    with taken(out_dir) as work:
        out, place = Path(out_dir), work / "results"
        try:
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            yield place
            files = sorted(place.iterdir(), key=lambda f: (f.name == last, f.name))
            for file in files:
                flush_to_disk(file)
            for name in (last, *outdated):
                (out / name).unlink(missing_ok=True)
            for file in files:
                if file.name == last:
                    flush_to_disk(out)  # the names of the other files are then on disk first
                os.replace(file, out / file.name)
            flush_to_disk(out)
        except OSError as error:
            raise InputError(f"{out}: cannot be written ({error.strerror or error})") from None
        finally:
            shutil.rmtree(place, ignore_errors=True)


def flush_to_disk(path: Path) -> None:
    """``fsync`` a file, or the names in a folder where the system can do that."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except PermissionError:  # a folder on Windows
        return
    try:
        os.fsync(handle)
    except OSError:
        if not path.is_dir():  # some network file systems have no fsync of a folder
            raise
    finally:
        os.close(handle)
