"""Work on a cluster: the results of this process, whichever workers are lost meanwhile."""

from __future__ import annotations

import os
import signal
import time
import warnings
from functools import partial

import numpy as np
import psutil
import pytest

from bayes_refine.infer import cluster, dask_clients
from bayes_refine.infer.executor import IN_PROCESS, tree_sum
from bayes_refine.loading import load_file
from bayes_refine.util.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")

WORK = """
import os, signal
from pathlib import Path

def times(factor, x):
    return factor.get() * x

def sums(x):
    return {"a": x / 7, "b": 1}, x

def dies_once(folder, k):
    flag = Path(folder) / str(k)
    if k % 5 == 3 and not flag.exists():
        flag.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return k * k

def full_disk(folder, k):
    flag = Path(folder) / "full"
    try:  # the first worker to come is the one
        with flag.open("x") as file:
            file.write(str(os.getpid()))
    except FileExistsError:
        pass
    if flag.read_text() == str(os.getpid()):
        raise OSError(28, "No space left on device")
    return k

def wrong(k):
    raise ValueError(f"{k} is wrong")

def dies(k):
    if k == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return k * k
"""


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A module that workers know as they know a model: by its file."""
    path = tmp_path_factory.mktemp("work") / "work_of_test_cluster.py"
    path.write_text(WORK)
    return load_file(path)


@pytest.fixture(scope="module")
def executor(work, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cluster")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with (
            dask_clients.client_of(2, None, folder) as client,
            cluster.Cluster(client, folder) as executor,
        ):
            yield executor


def test_results_are_those_of_this_process(executor, work):
    xs, done = [np.array([x, 1 / 3]) for x in range(21)], []
    factor = executor.share(np.array([0.1, 0.2]))
    found = executor.map(partial(work.times, factor), xs, finished=done.append)
    assert [x.tolist() for x in found] == [(np.array([0.1, 0.2]) * x).tolist() for x in xs]
    assert done[-1] == 21 and done == sorted(done)
    assert executor.map(work.sums, []) == []
    told = executor.summary()
    assert told["steps"]["times"]["calls"] == 1 and set(told["seconds"]) >= {"times"}
    assert (
        told["bytes_sent"] >= told["steps"]["times"]["bytes_sent"] > 21 * 16
    )  # 21 pairs of numbers
    assert 0 < told["memory_gib"]["here"] and len(told["memory_gib"]) >= 2
    assert "batches in flight on 2 workers of up to" in executor.at_work()


@pytest.mark.parametrize("n", [1, 2, 5, 64, 100])
def test_a_sum_is_the_same_to_the_last_bit(executor, work, n):
    """Of numbers whose plain sum from the left differs."""
    xs = [np.random.default_rng(k).normal(size=3) * 10.0 ** (k % 7) for k in range(n)]
    (here, own), (there, its) = (e.reduce(work.sums, xs) for e in (IN_PROCESS, executor))
    assert here["a"].tobytes() == there["a"].tobytes() and here["b"] == there["b"] == n
    assert [x.tobytes() for x in own] == [x.tobytes() for x in its]


def test_a_tree_sum_is_made_of_the_sums_of_aligned_groups():
    x = list(np.random.default_rng(0).normal(size=23) * 10.0 ** np.arange(23))
    for size in (2, 4, 8):
        groups = [tree_sum(x[k : k + size]) for k in range(0, len(x), size)]
        assert tree_sum(groups) == tree_sum(x)


def test_a_worker_that_is_lost_costs_its_items_only(executor, work, tmp_path):
    found = executor.map(partial(work.dies_once, str(tmp_path)), range(12))
    assert found == [k * k for k in range(12)]
    assert sorted(int(f.name) for f in tmp_path.iterdir()) == [3, 8]  # each was tried twice


def test_a_worker_that_is_lost_while_it_is_made_ready(executor, work, tmp_path):
    """A model's file that ends the first process which reads it, but not this one."""
    text = f"""
import os, signal
from pathlib import Path

flag = Path({str(tmp_path)!r}) / "lost"
if os.getpid() != {os.getpid()} and not flag.exists():
    flag.touch()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    (tmp_path / "model_that_ends_a_worker.py").write_text(text)
    load_file(tmp_path / "model_that_ends_a_worker.py")
    factor = executor.share(3.0)
    assert (tmp_path / "lost").exists()
    assert executor.map(partial(work.times, factor), [1.0, 2.0]) == [3.0, 6.0]
    executor.client.wait_for_workers(2, timeout=60)  # other tests want both


def test_a_lost_worker_that_is_slow_to_come_back_is_expected(executor):
    """As on a busy machine: for longer than the 15 s after which Dask gives it up."""
    executor.client.wait_for_workers(2, timeout=60)
    known = psutil.Process().children(recursive=True)
    os.kill(min(executor.client.run(os.getpid).values()), signal.SIGKILL)
    while not (fresh := set(psutil.Process().children(recursive=True)).difference(known)):
        time.sleep(0.01)
    (restarted,) = fresh
    restarted.suspend()
    time.sleep(20)
    restarted.resume()
    executor.client.wait_for_workers(2, timeout=60)
    assert restarted.pid in executor.client.run(os.getpid).values()


def test_all_workers_are_lost_at_once(executor, work, monkeypatch):
    """Work that was preferably for one of them is done by those that come in their place."""
    monkeypatch.setattr(cluster, "STRANDED_S", 0.5)
    factor = executor.share(3.0)
    assert executor.map(partial(work.times, factor), range(16)) == [3.0 * k for k in range(16)]
    for pid in executor.client.run(os.getpid).values():
        os.kill(pid, signal.SIGKILL)
    assert executor.map(partial(work.times, factor), range(16)) == [3.0 * k for k in range(16)]
    executor.client.wait_for_workers(2, timeout=60)  # other tests want both


def test_processes_that_are_gone_for_good_end_the_run_in_a_sentence(work, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "STRANDED_S", 0.2)
    monkeypatch.setattr(cluster, "GONE_S", 0.5)
    with (
        dask_clients.client_of(1, None, tmp_path) as client,
        cluster.Cluster(client, tmp_path) as executor,
    ):
        factor = executor.share(3.0)
        assert executor.map(partial(work.times, factor), [1.0]) == [3.0]
        client.cluster.scale(0)
        while client.nthreads():
            time.sleep(0.1)
        with pytest.raises(InputError, match="all worker processes are gone"):
            executor.map(partial(work.times, factor), [1.0])


def test_a_process_that_is_lost_while_it_starts(tmp_path, monkeypatch):
    started = []

    def start(**how):
        started.append(how["n_workers"])
        if len(started) < dask_clients.ATTEMPTS:
            raise RuntimeError("Nanny failed to start.")
        return "a cluster"

    monkeypatch.setattr(dask_clients, "LocalCluster", start)
    monkeypatch.setattr(dask_clients, "AGAIN_S", 0.0)
    assert dask_clients.local(2, tmp_path) == "a cluster" and started == [2, 2, 2]
    monkeypatch.setattr(dask_clients, "LocalCluster", lambda **_: 1 / 0)
    with pytest.raises(ZeroDivisionError):  # what is no lost process is not tried again
        dask_clients.local(2, tmp_path)


def test_what_fails_on_one_worker_is_done_on_another(executor, work, tmp_path):
    """A disk that is full, of the worker that comes first."""
    assert executor.map(partial(work.full_disk, str(tmp_path)), range(8)) == list(range(8))
    assert any("No space left" in said for said in executor.summary()["failures"])
    with pytest.raises(ValueError, match="0 is wrong"):
        executor.map(work.wrong, [0])


@pytest.mark.slow
def test_an_item_that_ends_three_workers_is_set_aside(executor, work):
    assert executor.map(work.dies, range(6), lost=lambda item, why: (item, why[:19])) == [
        *(0, 1, 4),
        (3, "ended 3 processes, "),
        *(16, 25),
    ]
    with pytest.raises(InputError, match="dies: a batch of images ended 3 processes"):
        executor.map(work.dies, [3])


def test_a_scheduler_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(dask_clients, "ANSWER", 2)
    (tmp_path / "{}.json").write_text("{}")
    (tmp_path / "bytes.json").write_bytes(b"\x89HDF\r\n")
    for where, said in (
        ("x.json", "no such file"),
        (str(tmp_path / "{}.json"), "no scheduler answers"),
        (str(tmp_path / "bytes.json"), "no scheduler answers"),
        ("tcp://127.0.0.1:9", "no scheduler answers"),
    ):
        with (
            pytest.raises(InputError, match=said),
            dask_clients.client_of(None, where, tmp_path),
        ):
            pass


def test_a_cluster_that_runs_already_is_joined(executor, work):
    executor.client.wait_for_workers(2, timeout=60)  # one may have been lost in another test
    address = executor.client.scheduler.address
    with (
        dask_clients.client_of(None, address, executor.folder) as client,
        cluster.Cluster(client, executor.folder) as joined,
    ):
        assert dask_clients.described(client).startswith("2 workers; dashboard: http")
        assert joined.map(work.dies, [1, 2]) == [1, 4]
