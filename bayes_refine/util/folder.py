"""The folder that a run writes to: one run at a time, results complete or absent.

While a run goes on, whatever it writes lies in ``.bayes-refine`` inside that folder, which a lock
marks as in use.  What a killed run leaves there goes when the next run comes.
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
    """The folder, made if absent; InputError where nothing can be written in it."""
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
    """The work folder of a run in ``out_dir``, which no other run can take meanwhile.

    May be nested in one process.  At the end the work folder goes; where there is a checkpoint in
    it, or a fit that is kept, these stay, and what was measured.

    Args:
        go_on: leave these of an earlier run; else they go with all other leftovers.

    Raises:
        InputError: another run writes to this folder, or it cannot be written.
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
    """Lock the work folder; again where a run that just ended took the folder away."""
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
    """A folder to write into; at the end its files, on disk by then, go to ``out_dir``.

    The file ``last`` comes last: where it is, the others are complete and belong to it.

    Args:
        outdated: names of files of an earlier run that go when the new ones come.

    Raises:
        InputError: another run writes to this folder, or it cannot be written.
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
                    flush_to_disk(out)  # the others' names before its own
                os.replace(file, out / file.name)
            flush_to_disk(out)
        except OSError as error:
            raise InputError(f"{out}: cannot be written ({error.strerror or error})") from None
        finally:
            shutil.rmtree(place, ignore_errors=True)


def flush_to_disk(path: Path) -> None:
    """``fsync`` of a file, or of a folder's names where the system can do that."""
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
