"""Batches measured and fitted by other processes: the bytes of one process, whoever is killed."""

from __future__ import annotations

import os
import signal
import threading
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bayes_refine.fitting.loop import fit_run
from bayes_refine.fitting.measure_batch import Plan
from bayes_refine.fitting.measure_run import measure_run
from bayes_refine.fitting.problem import Settings, Work, prepare_run
from bayes_refine.infer import cluster, dask_clients
from bayes_refine.io.expt import read_experiments
from bayes_refine.io.images import ImageReader
from bayes_refine.io.reference import read_reference
from bayes_refine.loading import load_file, load_model
from bayes_refine.physics.priors import Priors
from bayes_refine.simulation.files import simulate_run
from bayes_refine.simulation.truth import Simulation
from bayes_refine.util import array_file
from bayes_refine.util.errors import InputError
from bayes_refine.util.progress import SILENT
from bayes_refine.util.status import Kind

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning"),
    pytest.mark.usefixtures("small_batches"),
]
SETTINGS = Settings(d_min=2.5, rounds=2)


class Counting(ImageReader):
    """Knows how many images were read in this process."""

    count = 0

    def read(self, still):
        Counting.count += 1
        return super().read(still)


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Twelve stills, which are four three times; a reference; a model."""
    folder = tmp_path_factory.mktemp("data")
    simulate_run(Simulation(n_images=4, n_pixels=256, distance_mm=60, seed=3), folder)
    stills = read_experiments(folder / "indexed.expt").stills
    many = tuple(replace(stills[k % 4], identifier=f"image {k}") for k in range(12))
    ref = read_reference(folder / "reference.mtz", None, 0.97 * SETTINGS.d_min)
    return many, ref, load_model("still")


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with dask_clients.client_of(2, None, tmp_path_factory.mktemp("dask")) as client:
            yield client


def run_of(given, work, reader):
    stills, ref, model = given
    return prepare_run(stills, ref, reader, model, Priors(), SETTINGS, work)


def measured(given, work, reader=None):
    """Arrays of all batches, and the statuses."""
    with reader or ImageReader(gain=1.0) as reader:
        run, status = run_of(given, work, reader), np.full(len(given[0]), "", dtype=object)
        state = {"log_R1": np.full((len(given[0]), 1), np.log(1e-3))}
        found = measure_run(run, state, Priors(), status, Plan(), 1.5, SILENT)
        rows = [
            [
                b.statistics.value,
                b.intensity_reference,
                b.predictions.xy_px,
                o.statistics,
                o.q,
                o.log_G0,
            ]
            for b, o in zip(found.batches, found.observations.parts, strict=True)
        ]
    return [np.asarray(x).tobytes() for row in rows for x in row] + [found.log_G.tobytes()], status


def test_measured_by_two_workers_and_again_from_disk(given, client, tmp_path):
    (tmp_path / "here").mkdir()
    here = Work(folder=tmp_path / "here", made_of={"files": "as they were"})
    first, status = measured(given, here)
    assert np.all(status == "")
    with cluster.Cluster(client, tmp_path) as executor:
        by_two, its = measured(given, Work(executor, tmp_path))
        assert by_two == first and np.all(its == "")
        assert set(executor.summary()["seconds"]) == {"predict_batch", "measure_batch"}

    # an earlier process left these files: nothing is read but a batch that was damaged
    Counting.count = 0
    counting = Counting(gain=1.0)
    assert measured(given, here, counting)[0] == first and Counting.count == 0
    file = next(here.folder.glob("measured-*/000/000001.h5"))
    file.write_bytes(file.read_bytes()[:5000])
    assert measured(given, here, counting)[0] == first and Counting.count == 4
    # files of other input, or of another state, are not taken
    measured(given, replace(here, made_of={"files": "changed"}), counting)
    assert Counting.count == 16
    kept = next(here.folder.glob("measured-*/000/000000.h5"))
    assert array_file.read(kept).said.counts.sum() > 100


DEADLY = """
import os, signal
from bayes_refine.io.images import ImageReader

class Deadly(ImageReader):
    def read(self, still):
        if still.identifier == "image 5":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(still)
"""


@pytest.mark.slow
def test_a_batch_that_ends_its_workers_is_set_aside(given, client, tmp_path):
    (tmp_path / "deadly_reader.py").write_text(DEADLY)
    deadly = load_file(tmp_path / "deadly_reader.py").Deadly(gain=1.0)
    first, _ = measured(given, Work())
    with cluster.Cluster(client, tmp_path) as executor:
        found, status = measured(given, Work(executor, tmp_path), deadly)
    assert [s and s.kind for s in status] == [*[""] * 4, *[Kind.LOST] * 4, *[""] * 4]
    assert "ended 3 processes" in status[5]
    size = (len(first) - 1) // 3
    assert found[:size] == first[:size] and found[2 * size : -1] == first[2 * size : -1]
    np.testing.assert_array_equal(np.frombuffer(found[size]), [])  # nothing of the lost images


def fitted(given, work=None) -> list[bytes]:
    stills, ref, model = given
    with ImageReader(gain=1.0) as reader:
        run = fit_run(stills, ref, reader, model, settings=SETTINGS, work=work)
    assert all(s.kind is Kind.CONVERGED for s in run.status)
    fit, values = run.fit, run.fit.values()
    arrays = [*(values[name] for name in sorted(values)), fit.image_precision, fit.coupling]
    return [np.asarray(x).tobytes() for x in [*arrays, fit.shared_covariance, run.reflections.J]]


@pytest.mark.slow
def test_a_fit_by_two_workers_and_by_a_cluster_that_is_joined(given, client, tmp_path):
    here = fitted(given)
    for address in (None, client.scheduler.address):
        joined = dask_clients.client_of(None, address, tmp_path) if address else None
        try:
            own = joined.__enter__() if joined else client
            with cluster.Cluster(own, tmp_path) as executor:
                assert fitted(given, Work(executor, tmp_path)) == here
        finally:
            if joined:
                joined.__exit__(None, None, None)


@pytest.mark.slow
def test_workers_killed_at_twenty_moments(given, client, tmp_path):
    here, rng = fitted(given), np.random.default_rng(0)
    started = time.monotonic()
    with cluster.Cluster(client, tmp_path) as executor:
        assert fitted(given, Work(executor, tmp_path)) == here
    duration = time.monotonic() - started

    def kill(after: float) -> None:
        time.sleep(after)
        pids = list(client.run(os.getpid).values())
        os.kill(pids[int(rng.integers(len(pids)))], signal.SIGKILL)

    for k in range(20):
        killer = threading.Thread(target=kill, args=(duration * (k + 0.5) / 20,))
        killer.start()
        folder = tmp_path / str(k)
        folder.mkdir()
        with cluster.Cluster(client, folder) as executor:
            assert fitted(given, Work(executor, folder)) == here
        killer.join()


def test_a_folder_that_is_full_is_told(given, tmp_path):
    with pytest.raises(InputError, match=r"measured cannot be written there .*give --work"):
        Work(folder=Path("/proc/none")).store("measured", 1, {})
