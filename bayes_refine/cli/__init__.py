"""The command line: one module for each command, which parses options, calls and prints."""

from __future__ import annotations

import gc
import io
import logging
import os
import shlex
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import jax
from threadpoolctl import threadpool_limits

from ..util.kept_programs import keep_programs
from ..util.large_arrays import keep_freed_memory
from ..util.threads import use_threads
from . import fit  # noqa: F401  the commands register themselves: fit is the first in the help

# isort: split
from . import compare, export, inspect, merge, resume, simulate, train, watch  # noqa: F401
from .app import Talk, app, complain, end_log, talk
from .ending import Stopped, sentence_of, stoppable


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``bayes-refine``; an error ends in one sentence and an exit status."""
    command = ["bayes-refine", *(sys.argv[1:] if arguments is None else arguments)]
    warnings.showwarning = lambda message, *_args, **_kw: complain(f"warning: {message}")
    logging.getLogger("fabio").setLevel(logging.CRITICAL + 1)  # readers say it in one sentence
    talk(Talk.usual)
    _set_up_numerics()
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files may have any characters
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with stoppable():
            command, now = resume.expanded(command)
            app(args=now, prog_name="bayes-refine", obj=command)
    except (Stopped, Exception) as error:
        told = sentence_of(error)
        if told is None:
            raise
        complain(told[0])
        if (out := resume.stopped_in(command)) is not None:
            complain(f"to go on: bayes-refine fit --resume --out {shlex.quote(str(out))}")
        sys.exit(told[1])
    finally:
        end_log()


def _set_up_numerics() -> None:
    """Set JAX to float64, keep freed memory, compiled code on disk; a thread for images on each
    processor, and one for BLAS; and look for garbage less often, since tracing leaves little.

    Matrices are many and small.  Several threads gain nothing, and where another job has one of the
    processors, each product waits for the system to share it: a hundred times as long.
    """
    gc.set_threshold(20_000, 20, 20)
    use_threads(None)
    threadpool_limits(1, "blas")
    keep_freed_memory()
    jax.config.update("jax_enable_x64", True)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    jax.config.update("jax_compilation_cache_dir", str(Path(base) / "bayes_refine" / "jax"))
    keep_programs(Path(base) / "bayes_refine" / "programs")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
