"""Work in threads: the same results, in order, whatever the number of threads."""

from __future__ import annotations

import threading
import time

import pytest

from bayes_refine.util import threads
from bayes_refine.util.threads import ahead, in_threads, processors, use_threads


@pytest.fixture
def several(monkeypatch):
    monkeypatch.setattr(threads, "_number", 1)  # and again after the test
    use_threads(3)


def test_results_are_in_the_order_of_the_items(several):
    together = threading.Barrier(3, timeout=30)

    def work(k: int) -> tuple[int, int]:
        together.wait()  # each of three waits for the other two
        return k, threading.get_ident()

    found = in_threads(work, range(6))
    assert [k for k, _ in found] == [*range(6)]
    assert len({ident for _, ident in found}) == 3


def test_one_thread_is_the_callers_own(several):
    use_threads(1)
    assert in_threads(lambda _: threading.get_ident(), [0, 1]) == 2 * [threading.get_ident()]


def test_large_items_are_worked_on_by_fewer(several):
    at_work, most = threading.Semaphore(2), threads.AT_WORK // 2  # two have room, not three

    def work(k: int) -> int:
        assert at_work.acquire(blocking=False)
        time.sleep(0.02)
        at_work.release()
        return k

    assert in_threads(work, range(8), most) == [*range(8)]
    assert in_threads(lambda _: threading.get_ident(), range(2), most * 3) == 2 * [
        threading.get_ident()
    ]


def test_by_default_one_on_each_processor(several):
    use_threads(None)
    assert threads._number == processors() >= 1


def test_an_exception_reaches_the_caller(several):
    def work(k: int) -> int:
        if k == 1:
            raise MemoryError("of one image")
        return k

    with pytest.raises(MemoryError, match="of one image"):
        in_threads(work, range(4))


def test_the_next_item_is_worked_on_while_the_caller_uses_one(several):
    begun = [threading.Event() for _ in range(4)]

    def work(k: int) -> int:
        begun[k].set()
        return 10 * k

    for k, found in enumerate(ahead(work, range(4))):
        assert found == 10 * k
        assert all(event.wait(30) for event in begun[: k + 2])
        assert not any(event.is_set() for event in begun[k + 2 :])  # one item, and not all


def test_ahead_with_one_thread_is_the_callers_own(several):
    use_threads(1)
    assert [*ahead(lambda _: threading.get_ident(), [0, 1])] == 2 * [threading.get_ident()]


def test_an_exception_ahead_comes_in_its_turn(several):
    def work(k: int) -> float:
        return 1 / (1 - k)

    found = ahead(work, range(3))
    assert next(found) == 1
    with pytest.raises(ZeroDivisionError):
        next(found)
