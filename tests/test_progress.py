"""How a sync tells how far it is, and that it ends soon once that is asked for."""

import os
import subprocess
import sys
import threading
import time
from contextlib import closing

import pytest

from datasette_vec_gemini import connect, create_index, find_index, status, sync
from datasette_vec_gemini.filling import BATCH_SECONDS, FIRST_BATCH
from datasette_vec_gemini.owners import new_owner
from datasette_vec_gemini.store import claims
from datasette_vec_gemini.store.transactions import transaction
from datasette_vec_gemini.syncing import Stop

ROWS = 300


@pytest.fixture
def index(conn):
    conn.execute("create table t (id integer primary key, body text)")
    conn.executemany("insert into t (body) values (?)", [(f"word{n}",) for n in range(ROWS)])
    conn.commit()
    return create_index(conn, "t", table="t", columns=["body"], embedder="hashing@64")


def vectors(conn, index, **options):
    seen = []
    sync(conn, index, on_progress=lambda p: seen.append((p.done, p.total)) if p.stage == "vectors" else None, **options)
    return seen


def test_the_stage_is_told_before_the_first_batch_which_is_small(conn, index, recorder) -> None:
    recorder.batch_size = 256
    seen = vectors(conn, index, embedder=recorder)
    assert seen[:2] == [(0, ROWS), (FIRST_BATCH, ROWS)]
    assert seen[-1] == (ROWS, ROWS)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert all(later <= 4 * earlier for earlier, later in zip(recorder.batches, recorder.batches[1:], strict=False))


def test_a_slow_model_gets_few_texts_at_once_and_a_quick_one_as_many_as_it_takes(conn, index, recorder) -> None:
    recorder.batch_size = 64
    recorder.meanwhile = lambda: time.sleep(BATCH_SECONDS if len(recorder.batches) == 2 else 0)
    sync(conn, index, embedder=recorder)
    slow = recorder.batches[1]
    assert recorder.batches[2] <= slow
    assert max(recorder.batches[3:]) == 64


def test_nothing_is_told_where_nothing_is_pending(conn, index, recorder) -> None:
    vectors(conn, index, embedder=recorder)
    assert vectors(conn, index, embedder=recorder) == []


@pytest.fixture
def claimed(conn, path, index):
    """All chunks are claimed by a process that lives and never ends."""
    with pytest.raises(InterruptedError):
        sync(conn, index, on_progress=interrupt)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        owner = new_owner().replace(f":{os.getpid()}:", f":{other.pid}:")
        with transaction(conn):
            claims.take(conn, index, owner=owner, limit=ROWS, now=time.time(), until=time.time() + 600)
        yield index
        other.kill()


def interrupt(progress) -> None:
    if progress.stage == "vectors":
        raise InterruptedError


@pytest.mark.skipif(os.name != "posix", reason="elsewhere nothing is known of other processes")
def test_who_waits_for_others_can_be_stopped(path, claimed) -> None:
    stop, told, raised = Stop(), [], []

    def wait() -> None:
        with closing(connect(path)) as own:
            try:
                sync(own, find_index(own, "t"), stop=stop, on_progress=told.append)
            except InterruptedError as error:
                raised.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    until = time.monotonic() + 30
    while not any(progress.stage == "vectors" for progress in told):
        assert time.monotonic() < until
        time.sleep(0.01)
    time.sleep(1)  # it asks again meanwhile
    assert thread.is_alive()
    stop.request(InterruptedError())
    thread.join(10)
    assert not thread.is_alive()
    assert len(raised) == 1
    assert [p.done for p in told if p.stage == "vectors"] == [0]  # nothing new is not told again
    with closing(connect(path)) as own:
        assert status(own, claimed).pending == ROWS
