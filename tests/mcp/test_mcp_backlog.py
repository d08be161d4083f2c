"""What waits for its vectors since a server was ended in the middle of its work, or since no server ran."""

import asyncio
import threading
import time

import pytest
from callers import calling
from fake_gemini import KEY, FakeGemini
from fakes import Recorder

from datasette_vec_gemini import NewDocument, add_documents, connect, count_pending, create_memory, find_index
from mcp_server.catching_up import catch_up_a_little
from mcp_server.file import FileLibrary

pytestmark = pytest.mark.asyncio


@pytest.fixture
def nobodys(path):
    """The file of an empty memory that no server is at."""
    conn = connect(path, create=True)
    create_memory(conn, embedder="hashing@64")
    conn.close()
    return path


@pytest.fixture
def waiting(nobodys):
    """A memory of forty documents that nobody has embedded, nor cut into chunks."""
    conn = connect(nobodys)
    items = [NewDocument(id=str(n), text=f"document number {n}") for n in range(40)]
    add_documents(conn, find_index(conn, "documents"), items)
    conn.close()
    return nobodys


async def pending(path, *, until=0):
    """How many documents wait, once so few do or half a minute has gone by."""
    conn = connect(path, read_only=True)
    index, found = find_index(conn, "documents"), -1
    for _ in range(300):
        if (found := count_pending(conn, index)) <= until:
            break
        await asyncio.sleep(0.1)
    conn.close()
    return found


async def test_a_server_embeds_what_waits_without_being_asked(waiting, open_library):
    open_library()
    assert await pending(waiting) == 0


async def test_a_server_that_only_reads_leaves_it(waiting, open_library):
    open_library(read_only=True)
    await asyncio.sleep(1)
    assert await pending(waiting, until=40) == 40


async def test_calls_have_their_turn_while_much_waits(waiting, open_library):
    slow = Recorder()
    slow.meanwhile = lambda: time.sleep(0.1)
    async with calling(open_library(load=lambda _: slow)) as call:
        added = await call("add_documents", documents=[{"text": "one more"}])
        assert (added["items"][0]["status"], added["pending"]) == ("created", 0)
        assert len(slow.texts) == len(set(slow.texts)) == 41


async def test_what_does_not_fit_into_a_call_is_embedded_after_it(nobodys, open_library):
    slow = Recorder()
    slow.meanwhile = lambda: time.sleep(0.2)
    async with calling(open_library(load=lambda _: slow, sync_seconds=0.5)) as call:
        added = await call("add_documents", documents=[{"text": f"document number {n}"} for n in range(30)])
        assert added["pending"] > 0
        assert await pending(nobodys) == 0
        assert len(slow.texts) == len(set(slow.texts)) == 30


async def test_adding_what_is_there_already_embeds_what_waits(waiting, open_library):
    def fails_once(name, calls=[]):  # noqa: B006 - remembers that it was called
        calls.append(name)
        if len(calls) == 1:
            raise MemoryError("not yet")
        return Recorder()

    async with calling(open_library(load=fails_once)) as call:
        again = await call("add_documents", documents=[{"id": "7", "text": "document number 7"}])
        assert (again["items"][0]["status"], again["pending"]) == ("unchanged", 0)


async def test_what_is_cut_off_goes_on_where_it_was_and_embeds_nothing_twice(waiting):
    conn = connect(waiting)
    index, slow = find_index(conn, "documents"), Recorder()
    slow.meanwhile = lambda: time.sleep(0.1)
    slices = []
    while (seconds := catch_up_a_little(conn, index, model=slow, seconds=0.25, is_over=lambda: False)) is not None:
        slices.append(seconds)
    assert len(slices) > 1
    assert set(slices) == {0.25}
    assert count_pending(conn, index) == 0
    assert len(slow.texts) == len(set(slow.texts)) == 40
    conn.close()


@pytest.mark.parametrize(("seconds", "expected"), [(1.0, 2.0), (20.0, 40.0), (30.0, None)])
async def test_what_gets_nowhere_is_given_more_time_and_then_given_up(waiting, seconds, expected):
    conn, over = connect(waiting), iter([False, True])
    # Paused before the first document is done.
    longer = catch_up_a_little(
        conn, find_index(conn, "documents"), model=Recorder(), seconds=seconds, is_over=lambda: next(over)
    )
    assert longer == expected
    conn.close()


async def test_a_server_that_ends_waits_for_no_backlog(waiting):
    slow, begun = Recorder(), threading.Event()

    def embed_slowly():
        begun.set()
        time.sleep(0.5)

    slow.meanwhile = embed_slowly
    library = FileLibrary(waiting, load=lambda _: slow)
    library.start()
    await asyncio.to_thread(begun.wait, 30)
    library.close()
    assert len(slow.texts) < 40


@pytest.mark.slow
async def test_nothing_is_spent_without_being_asked(path, monkeypatch, open_library):
    with FakeGemini() as fake:
        monkeypatch.setenv("GEMINI_API_KEY", KEY)
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", fake.url)
        monkeypatch.setenv("DATASETTE_VEC_DAILY_USD", "0.5")
        conn = connect(path, create=True)
        add_documents(conn, create_memory(conn, embedder="gemini"), [NewDocument(text="parse a date")])
        conn.close()
        open_library()
        await asyncio.sleep(2)
        assert (await pending(path, until=1), fake.requests) == (1, [])
