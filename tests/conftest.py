"""What all tests share: float64 in JAX, and the measured data where they are at hand."""

from __future__ import annotations

import ctypes
import gc
import inspect
import io
import json
import os
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import Any

import h5py
import jax
import numpy as np
import psutil
import pytest
from threadpoolctl import threadpool_limits
from xdist.scheduler import LoadScopeScheduling

from bayes_refine.util.kept_programs import forget_programs, keep_programs

jax.config.update("jax_enable_x64", True)
threadpool_limits(1, "blas")  # as the command does

# Tracing makes many objects that stay: looking for cycles among them takes a tenth of the time.
gc.set_threshold(100_000, 20, 100)

TESTS = Path(__file__).resolve().parent


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Tests of a file run in one process; all files that look at ``small_run`` in the same one.

    Only that process then has to make ``small_run``.  Files are taken in the order of their names:
    those of ``cli`` take longest, though they have few tests, and must not come last.
    """
    config.option.loadscopereorder = False  # not by the number of tests
    files = TESTS.rglob("test_*.py")
    share = {f.relative_to(TESTS.parent).as_posix() for f in files if "small_run" in f.read_text()}

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = nodeid.split("::", 1)[0]
            return "small_run" if file in share else file

    return ByFile(config, log)


FULL = 1.7 * 2**30  # bytes of memory


@pytest.fixture(scope="module", autouse=True)
def memory() -> Iterator[None]:
    """Forget the compiled programs of earlier files once a process has much memory.

    Later files trace again what they share with earlier ones, and find it compiled on disk.
    """
    yield
    if psutil.Process().memory_info().rss > FULL:
        jax.clear_caches()
        forget_programs()
        gc.collect()
        libc = ctypes.CDLL(None)
        if hasattr(libc, "malloc_trim"):  # glibc keeps what is freed unless asked
            libc.malloc_trim(0)


@pytest.fixture(scope="module")
def small_batches() -> Iterator[None]:
    """Batches of four images, so that few images are many batches."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bayes_refine.fitting.problem.BATCH", 4)
        patch.setattr("bayes_refine.fitting.start.BATCH", 4)
        yield


@pytest.fixture(scope="module")
def empty_pictures() -> Iterator[None]:
    """Frames without pictures, for tests of small runs that do not look at the pictures.

    The report is still written, with all its sections and tables.
    """

    def frame(name, draw, caption, size=(5.2, 3.5), images=None):
        return f'<figure id="{name}"></figure>'

    def write_overview(path, run, reader):
        path.write_bytes(b"")
        return []

    with pytest.MonkeyPatch.context() as patch:
        for module in ("images", "learned", "run", "sections"):
            patch.setattr(f"bayes_refine.report.{module}.chart", frame)
        patch.setattr("bayes_refine.results.fit.write_overview", write_overview)
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of measured and simulated data beside the repository, or a skip."""
    path = Path(__file__).resolve().parents[1] / ".." / "shared" / "data"
    if not path.is_dir():
        pytest.skip(f"the data these tests compare with are not at {path.resolve()}")
    return path.resolve()


@pytest.fixture(scope="session", autouse=True)
def cache() -> Iterator[None]:
    """Compiled code is kept between test runs, apart from the user's own.

    JAX keys its entries by program, options and versions: what has changed is compiled anew.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = base / "bayes_refine_tests"
    jax.config.update("jax_compilation_cache_dir", str(folder / "bayes_refine" / "jax"))
    keep_programs(folder / "bayes_refine" / "programs")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield


@pytest.fixture(scope="session")
def with_residual():
    """``with_residual(model, residual)``: a copy of a model with another ``residual``."""

    def with_globals(function, **names):
        known = function.__globals__ | names
        return FunctionType(function.__code__, known, argdefs=function.__defaults__)

    def copy(model, residual):
        likelihood = with_globals(model.__globals__["likelihood"], residual=residual)
        return with_globals(model, likelihood=likelihood)

    return copy


@dataclass(frozen=True)
class SmallRun:
    """A simulated run as the command line fitted it; images 4 to 7 are each bad in their way.

    Attributes:
        data, out: folders; status, printed: exit status, and what went to stdout.
        arguments: of ``write_results``, to call it again. given: what was fitted, by name.
    """

    data: Path
    out: Path
    status: int
    printed: str
    arguments: dict[str, Any]
    given: dict[str, Any]


@pytest.fixture(scope="session")
def small_run(tmp_path_factory) -> SmallRun:
    """Fitted once for all tests that look at results: most of its time is compilation."""
    from bayes_refine import cli
    from bayes_refine.results import fit as results
    from bayes_refine.simulation.files import simulate_run
    from bayes_refine.simulation.truth import Simulation

    folder = tmp_path_factory.mktemp("small_run")
    data, out = folder / "data", folder / "out"
    expt = simulate_run(Simulation(n_images=8, seed=3), data)
    _spoil(data, expt)
    captured: dict[str, Any] = {}
    written = results.write_results

    def record(*args, **kwargs):
        bound = inspect.signature(written).bind(*args, **kwargs)
        captured.update(bound.arguments)
        return written(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as printed:
        patch.setattr(results, "write_results", record)
        reference = str(data / "reference.mtz")
        line = ["fit", str(expt), "--reference", reference, "--out", str(out)]
        with pytest.raises(SystemExit) as end:
            # what was measured stays, for tests that look at it again
            cli.main([*line, "--rounds", "2", "--draws", "12", "--work", str(folder / "work")])
    run, ready = captured["run"], captured["prepared"]
    given = {"run": run, "model": run.problem.model, "settings": run.problem.settings}
    given |= {"priors": run.priors, "ref": ready.reference, "reader": ready.reader}
    return SmallRun(data, out, end.value.code or 0, printed.getvalue(), captured, given)


def _spoil(data: Path, expt: Path) -> None:
    """Images 4 to 7: in a truncated file, in none, not a number, of another shape; an image that
    was not indexed is in the list too."""
    document = json.loads(expt.read_text())
    whole = (data / "master.h5").read_bytes()
    (data / "truncated.h5").write_bytes(whole[: len(whole) // 2])
    for name, pixels in (
        ("nan.h5", np.full((1, 480, 480), np.nan, np.float32)),
        ("shape.h5", np.zeros((1, 481, 480), np.uint16)),
    ):
        with h5py.File(data / name, "w") as file:
            file.create_group("entry").attrs["NX_class"] = "NXentry"
            file.create_group("entry/data").attrs.update({"NX_class": "NXdata", "signal": "data"})
            file["entry/data/data"] = pixels
    for k, name in enumerate(("truncated.h5", "missing.h5", "nan.h5", "shape.h5"), start=4):
        document["imageset"][k] |= {"images": [name], "single_file_indices": [0]}
    unindexed = {k: v for k, v in document["experiment"][0].items() if k != "crystal"}
    document["experiment"].append({**unindexed, "identifier": "not indexed"})
    expt.write_text(json.dumps(document))
