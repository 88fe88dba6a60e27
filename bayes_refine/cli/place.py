"""``--threads``, ``--workers``, ``--scheduler``, ``--work``: who does the work, and the folder of
data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from ..fitting.problem import Work
from ..util.errors import InputError
from ..util.folder import prepare_folder
from ..util.threads import use_threads
from .app import err_console

PANEL = "Where the work is done"
OPTIONS = ("--threads", "--workers", "--scheduler", "--work")  # no result depends on them


def _with_threads(n: int | None) -> int | None:
    if n is not None:
        use_threads(n)
    return n


Threads = Annotated[
    int | None,
    typer.Option(
        "--threads",
        min=1,
        max=4096,
        metavar="N",
        callback=_with_threads,
        help="Threads of this process that read images, unpack them and cut out shoeboxes.",
        show_default="one on each processor",
        rich_help_panel=PANEL,
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        min=1,
        max=4096,
        metavar="N",
        help="Processes on this machine that measure and fit batches of images.",
        show_default="this one alone",
        rich_help_panel=PANEL,
    ),
]
Scheduler = Annotated[
    str | None,
    typer.Option(
        "--scheduler",
        metavar="ADDRESS_OR_FILE",
        help="Dask cluster that runs already: tcp://host:port, or its scheduler file (.json).",
        show_default="none",
        rich_help_panel=PANEL,
    ),
]
WorkFolder = Annotated[
    Path | None,
    typer.Option(
        "--work",
        metavar="DIR",
        help="Folder for what is measured, about 0.5 MB an image, that all workers see.",
        show_default="inside --out",
        rich_help_panel=PANEL,
    ),
]


def without(command: Sequence[str]) -> list[str]:
    """A command without these options and their values."""
    return [word for word, ours in _marked(command) if not ours]


def chosen(command: Sequence[str]) -> list[str]:
    """These options of a command, with their values."""
    return [word for word, ours in _marked(command) if ours]


def _marked(command: Sequence[str]) -> Iterator[tuple[str, bool]]:
    """Each word, and whether it belongs to one of these options."""
    value = False
    for word in command:
        ours = value or word.split("=")[0] in OPTIONS
        value = not value and word in OPTIONS
        yield word, ours


@contextmanager
def work_of(
    workers: int | None,
    scheduler: str | None,
    folder: Path | None,
    default: Path,
    made_of: Mapping[str, Any],
) -> Iterator[Work]:
    """The processes that work on batches, and their folder, for as long as a fit lasts.

    Args:
        folder: that of ``--work``. default: in its place.
        made_of: as ``Work.made_of``.

    Raises:
        InputError: both ``workers`` and ``scheduler`` are given, Dask is not installed, no
            scheduler answers, or the folder cannot be written.
    """
    place = prepare_folder(default if folder is None else folder).resolve()
    if workers is None and scheduler is None:
        yield Work(folder=place, made_of=made_of)
        return
    if workers is not None and scheduler is not None:
        raise InputError("--workers and --scheduler: give one of them")
    option = "--workers" if scheduler is None else "--scheduler"
    try:
        from ..infer import cluster, dask_clients
    except ImportError as error:
        raise InputError(
            f"{option}: {error.name} is not installed; pip install 'bayes-refine[cluster]'"
        ) from None
    with dask_clients.client_of(workers, scheduler, place) as client:
        err_console.print(f"{dask_clients.described(client)}", markup=False, soft_wrap=True)
        with cluster.Cluster(client, place) as executor:
            yield Work(executor, place, made_of)
