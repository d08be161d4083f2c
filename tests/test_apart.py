"""Waiting in a SQL function, while any thread may collect garbage."""

import contextlib
import gc
import threading

import pytest

from datasette_vec_gemini import sqlite3
from datasette_vec_gemini.apart import SELDOM, apart
from datasette_vec_gemini.errors import ServiceUnavailable


@pytest.fixture(autouse=True)
def threshold():
    """The collector's usual setting, which must be the same afterwards."""
    before = gc.get_threshold()
    gc.set_threshold(700, 10, 10)
    yield
    assert gc.get_threshold() == (700, 10, 10)
    gc.set_threshold(*before)


def test_what_a_function_waits_for_does_not_collect_a_failed_cursor_of_its_connection() -> None:
    """It would wait for the connection, which waits for it. Datasette leaves such cursors in circles."""
    with contextlib.closing(sqlite3.connect(":memory:", check_same_thread=False)) as conn:
        conn.create_function("allocate", 0, lambda: apart(lambda: len([[] for _ in range(5_000)]), seconds=5))
        gc.collect()
        circle = [conn.cursor()]
        with contextlib.suppress(sqlite3.OperationalError):
            circle[0].execute("select json('this is none')").fetchone()
        circle.append(circle)
        del circle
        assert conn.execute("select allocate()").fetchone() == (5_000,)


def test_garbage_is_collected_as_before_when_the_last_one_has_waited() -> None:
    first, second = threading.Event(), threading.Event()
    waiting = [threading.Thread(target=apart, args=(event.wait,), kwargs={"seconds": 30}) for event in (first, second)]
    for thread in waiting:
        thread.start()
    try:
        assert apart(gc.get_threshold, seconds=5) == (SELDOM, 10, 10)
        first.set()
        waiting[0].join()
        assert gc.get_threshold() == (SELDOM, 10, 10)
    finally:
        first.set()
        second.set()
        for thread in waiting:
            thread.join()


def test_a_collector_that_is_switched_off_stays_so() -> None:
    gc.set_threshold(0, 10, 10)
    assert apart(gc.get_threshold, seconds=5) == (0, 10, 10)
    gc.set_threshold(700, 10, 10)


def test_the_wait_is_bounded_and_an_error_is_passed_on() -> None:
    until = threading.Event()
    with pytest.raises(ServiceUnavailable, match=r"within 0\.01 s"):
        apart(until.wait, seconds=0.01)
    until.set()
    with pytest.raises(ZeroDivisionError):
        apart(lambda: 1 // 0, seconds=5)
