"""Laws of the second stage with a paid model: what was paid for is kept, whoever stops the run and however."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import closing

import numpy as np
import pytest
from fake_gemini import KEY, FakeGemini

from datasette_vec_gemini import (
    Access,
    Query,
    connect,
    create_index,
    drop,
    find_index,
    load_embedder,
    search,
    status,
    sync,
    verify,
)
from datasette_vec_gemini.embedders.batching import WITNESS
from datasette_vec_gemini.errors import BudgetReached, ConfirmationNeeded, IndexNotFound
from datasette_vec_gemini.vectors import unpack

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_certificate")]

PREFIX = "title: none | text: "
ROWS = 500


@pytest.fixture
def fake(monkeypatch):
    with FakeGemini() as served:
        monkeypatch.delenv("GOOGLE_API_KEY", raising=False)
        monkeypatch.setenv("GEMINI_API_KEY", KEY)
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", served.url)
        yield served


@pytest.fixture
def model(fake):
    return load_embedder("gemini", Access(api_key=KEY, base_url=fake.url, patience_seconds=3))


def indexed(conn, model, texts):
    conn.execute("create table docs (id integer primary key, body text)")
    conn.executemany("insert into docs (body) values (?)", [(text,) for text in texts])
    conn.commit()
    return create_index(conn, "docs", table="docs", columns=["body"], embedder=model)


@pytest.fixture
def index(conn, model):
    return indexed(conn, model, [f"alpha{n} beta{n} gamma{n}" for n in range(ROWS)])


def paid(fake):
    return Counter({text.removeprefix(PREFIX): n for text, n in fake.embedded.items() if WITNESS not in text})


def stored(conn):
    return dict(conn.execute("select text, embedding from _vec_docs where embedding is not null").fetchall())


def right(conn, fake):
    return all(unpack(blob) @ fake.vector(PREFIX + text) > 0.999 for text, blob in stored(conn).items())


def claims(conn, index):
    (count,) = conn.execute(
        f"select count(*) from {index.object('chunks')} where embedding is null and claim is not null"
    ).fetchone()
    return count


def during(batch, act):
    seen = []

    def on_progress(progress):
        if progress.stage == "vectors" and progress.done:
            seen.append(progress)
            if len(seen) == batch:
                act()

    return on_progress


def test_two_batches_are_under_way_at_once_and_progress_is_in_order(conn, fake, model, index):
    fake.latency_seconds = 0.2
    seen = []
    sync(
        conn,
        index,
        embedder=model,
        on_progress=lambda p: seen.append((p.done, p.total)) if p.stage == "vectors" else None,
    )
    times = [received.time for received in fake.requests]
    assert len(times) <= 8
    # The first batch goes alone, in two requests; then there are two at once.
    assert times[1] - times[0] >= 0.2
    assert times[3] - times[2] < 0.15
    assert seen == [(done, ROWS) for done in (0, 99, 198, 297, 396, 495, 500)]
    assert max(len(received.texts) for received in fake.requests) == 100
    assert set(paid(fake).values()) == {1}
    assert right(conn, fake)
    assert verify(conn, index) == []


def test_a_text_in_several_batches_is_paid_for_once(conn, fake, model):
    fake.latency_seconds = 0.1
    texts = ["the same text in all of it" if n % 3 else f"text number {n:04} of its own" for n in range(400)]
    index = indexed(conn, model, texts)
    report = sync(conn, index, embedder=model)
    assert paid(fake) == Counter(set(texts))
    assert (report.embedded, report.reused) == (len(set(texts)), 400 - len(set(texts)))
    assert status(conn, index).indexed == 400
    assert right(conn, fake)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
@pytest.mark.parametrize("batch", [2])
def test_an_interruption_keeps_what_was_paid_for_and_gives_the_rest_back(conn, fake, model, index, error, batch):  # noqa: PLR0917 - fixtures
    fake.latency_seconds = 0.1

    def act():
        raise error

    with pytest.raises(error):
        sync(conn, index, embedder=model, on_progress=during(batch, act))
    assert set(stored(conn)) == set(paid(fake))
    assert claims(conn, index) == 0
    spent = conn.execute("select sum(texts) from _vec_usage").fetchone()[0]
    assert spent == sum(len(received.texts) for received in fake.requests)
    assert sync(conn, index, embedder=model).pending == 0
    assert set(paid(fake).values()) == {1}
    assert verify(conn, index) == []


def test_a_cap_reached_in_the_middle_keeps_everything(conn, fake, model, index):
    fake.latency_seconds = 0.1
    with pytest.raises(BudgetReached):
        sync(conn, index, embedder=model, max_usd=0.0007)
    assert set(stored(conn)) == set(paid(fake)) != set()
    assert claims(conn, index) == 0
    sync(conn, index, embedder=model)
    assert set(paid(fake).values()) == {1}


def test_who_is_not_approved_has_keyword_search_and_no_bill(conn, fake, model, index):
    def refuse(expected):
        assert expected.chunks == ROWS
        raise ConfirmationNeeded("no")

    with pytest.raises(ConfirmationNeeded):
        sync(conn, index, embedder=model, approve=refuse)
    assert fake.requests == []
    assert [hit.key for hit in search(conn, index, Query("alpha42", mode="keyword"))] == [(43,)]
    assert status(conn, index).pending == ROWS
    assert claims(conn, index) == 0


def test_approval_is_not_asked_where_nothing_is_to_be_spent(conn, fake, model):
    index = indexed(conn, model, ["one text", "POISON text"])
    fake.poison.add("POISON")
    sync(conn, index, embedder=model)
    sync(conn, index, embedder=model)
    sync(conn, index, embedder=model)
    fake.requests.clear()
    asked = []
    report = sync(conn, index, embedder=model, approve=asked.append)
    assert (report.failed, fake.requests, asked) == (1, [], [])


def test_an_index_that_is_dropped_meanwhile_ends_the_run_and_leaves_nothing_behind(conn, path, fake, model, index):
    fake.latency_seconds = 0.1

    def act():
        with closing(connect(path)) as other:
            drop(other, find_index(other, "docs"))

    with pytest.raises(IndexNotFound):
        sync(conn, index, embedder=model, on_progress=during(1, act))
    fake.latency_seconds = 0.0
    rest = conn.execute("select name from sqlite_master where name like '\\_vec\\_docs%' escape '\\'").fetchall()
    assert rest == []


def test_who_waits_for_an_index_that_is_gone_does_not_try_again_for_minutes(conn, path, fake, index):
    patient = load_embedder("gemini", Access(api_key=KEY, base_url=fake.url, patience_seconds=60))

    def act():
        fake.always = "503"
        with closing(connect(path)) as other:
            drop(other, find_index(other, "docs"))

    with pytest.raises(IndexNotFound):
        sync(conn, index, embedder=patient, on_progress=during(1, act))
    until = time.monotonic() + 5
    while any(thread.name == "vec-filling" for thread in threading.enumerate()):
        assert time.monotonic() < until
        time.sleep(0.02)


def test_two_threads_on_one_file_pay_for_every_text_once(path, conn, fake, model, index):
    fake.latency_seconds = 0.05
    errors = []

    def work():
        try:
            with closing(connect(path)) as own:
                sync(own, find_index(own, "docs"), embedder=model)
        except BaseException as error:  # noqa: BLE001 - told by the thread that asserts
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert errors == []
    assert paid(fake) == Counter(f"alpha{n} beta{n} gamma{n}" for n in range(ROWS))
    assert status(conn, index).indexed == ROWS
    assert verify(conn, index) == []
    assert conn.execute("select sum(texts) from _vec_usage").fetchone()[0] == sum(len(r.texts) for r in fake.requests)


SYNCER = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may start us with it ignored
from datasette_vec_gemini import connect, find_index, sync
conn = connect(sys.argv[1])
sync(conn, find_index(conn, "docs"))
"""


def start(path):
    return subprocess.Popen([sys.executable, "-c", SYNCER, str(path)], env=os.environ)


@pytest.mark.slow
def test_two_processes_on_one_file_pay_for_every_text_once(path, conn, fake, model, index):
    fake.latency_seconds = 0.1
    assert [process.wait(60) for process in [start(path), start(path)]] == [0, 0]
    assert paid(fake) == Counter(f"alpha{n} beta{n} gamma{n}" for n in range(ROWS))
    assert status(conn, index).indexed == ROWS
    assert verify(conn, index) == []


@pytest.mark.slow
@pytest.mark.parametrize("after", [1, 3])
def test_a_killed_process_loses_two_batches_at_most_and_nothing_stored_is_paid_for_again(  # noqa: PLR0917 - fixtures
    path, conn, fake, model, index, after
):
    fake.latency_seconds = 0.3
    process = start(path)
    until = time.monotonic() + 30
    while len(fake.requests) < after:
        assert time.monotonic() < until
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = set(stored(conn))
    time.sleep(0.35)  # the service finishes what it has received
    fake.latency_seconds = 0.0
    fake.requests.clear()
    started = time.monotonic()
    report = sync(conn, index, embedder=model)
    assert time.monotonic() - started < 60  # the dead process's claims hold for five minutes
    again = {text.removeprefix(PREFIX) for received in fake.requests for text in received.texts}
    assert again.isdisjoint(kept)
    assert (report.pending, status(conn, index).indexed) == (0, ROWS)
    assert sum(paid(fake).values()) - ROWS <= 2 * 99
    assert verify(conn, index) == []


@pytest.mark.slow
def test_a_process_interrupted_at_the_keyboard_keeps_what_was_paid_for(path, conn, fake, model, index):
    fake.latency_seconds = 0.3
    process = subprocess.Popen(
        [sys.executable, "-c", SYNCER, str(path)], env=os.environ, stderr=subprocess.PIPE, text=True
    )
    until = time.monotonic() + 30
    while len(fake.requests) < 3:
        assert time.monotonic() < until
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert "KeyboardInterrupt" in errors
    assert KEY not in errors
    assert set(stored(conn)) == set(paid(fake))
    sync(conn, index, embedder=model)
    assert set(paid(fake).values()) == {1}


@pytest.mark.slow
@pytest.mark.parametrize("answered", [0, 1, 2])
def test_a_process_interrupted_at_a_service_that_hangs_ends_at_once_with_what_it_has(  # noqa: PLR0917 - fixtures
    path, conn, fake, model, index, answered
):
    fake.latency_seconds = 0.3  # time to say what becomes of the next request
    fake.always = None if answered else "hang"
    process = subprocess.Popen(
        [sys.executable, "-c", SYNCER, str(path)], env=os.environ, stderr=subprocess.PIPE, text=True
    )
    under_way = 2 if answered == 2 else 1  # the first batch, of two requests, goes alone
    until = time.monotonic() + 30
    while len(fake.requests) < answered + under_way:
        assert time.monotonic() < until
        if answered and len(fake.requests) == answered:
            fake.always = "hang"
        time.sleep(0.01)
    interrupted = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=90)
    assert time.monotonic() - interrupted < 3
    assert errors.endswith("KeyboardInterrupt\n")
    assert set(stored(conn)) == set(paid(fake))
    assert len(stored(conn)) == [0, 98, 99][answered]
    assert claims(conn, index) == 0
    # What hangs may be billed all the same.
    spent = conn.execute("select sum(texts) from _vec_usage").fetchone()[0]
    assert spent == sum(len(received.texts) for received in fake.requests)
    fake.always = None
    sync(conn, index, embedder=model)
    assert set(paid(fake).values()) == {1}
    assert status(conn, index).indexed == ROWS
    assert verify(conn, index) == []


def test_rows_edited_while_their_text_is_away_get_the_vector_of_their_new_text(conn, path, fake, model, index):
    def refuse(expected):
        raise ConfirmationNeeded("the text stage is enough")

    def act():
        with closing(connect(path)) as other:
            other.execute("update docs set body = 'zebra' || id where id % 2")
            other.commit()
            with pytest.raises(ConfirmationNeeded):
                sync(other, find_index(other, "docs"), embedder=model, approve=refuse)

    sync(conn, index, embedder=model, on_progress=during(1, act))
    sync(conn, index, embedder=model)
    assert right(conn, fake)
    assert status(conn, index).indexed == ROWS
    assert verify(conn, index) == []


@pytest.mark.parametrize("quantize", ["bit", "int8", "float32"])
def test_every_quantizer_finds_what_it_was_given(conn, fake, model, quantize):
    conn.execute("create table docs (id integer primary key, body text)")
    conn.executemany("insert into docs (body) values (?)", [(f"alpha{n} beta{n}",) for n in range(150)])
    conn.commit()
    index = create_index(conn, "docs", table="docs", columns=["body"], embedder=model, quantize=quantize)
    sync(conn, index, embedder=model)
    for n in (0, 77, 149):
        assert [
            hit.key for hit in search(conn, index, Query(f"alpha{n} beta{n}", k=1, mode="semantic"), embedder=model)
        ] == [(n + 1,)]
    assert verify(conn, index) == []
    assert np.isclose(np.linalg.norm(unpack(stored(conn)["alpha5 beta5"])), 1, atol=1e-6)
