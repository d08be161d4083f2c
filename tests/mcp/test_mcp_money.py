"""On an index of a paid model nothing is spent that nobody has agreed to, and what is written is never lost for it."""

import pytest
from callers import calling
from fake_gemini import KEY, FakeGemini

from datasette_vec_gemini import connect, create_memory, find_index, status, sync

pytestmark = [pytest.mark.slow, pytest.mark.asyncio]


@pytest.fixture
def fake(monkeypatch):
    with FakeGemini() as service:
        monkeypatch.setenv("GEMINI_API_KEY", KEY)
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", service.url)
        monkeypatch.delenv("DATASETTE_VEC_DAILY_USD", raising=False)
        yield service


@pytest.fixture
def paid(path, fake):
    """The file of a memory of Gemini, with one document that is paid for."""
    conn = connect(path, create=True)
    index = create_memory(conn, embedder="gemini")
    conn.execute("insert into documents (id, text, added_at) values ('old', 'convert a time zone', '2026')")
    conn.commit()
    sync(conn, index)
    conn.close()
    fake.requests.clear()
    return path


DOCUMENTS = [{"text": "parse a date", "id": "a"}, {"text": "a deque", "id": "b"}]


async def test_with_a_limit_what_is_added_is_found_by_meaning(paid, fake, open_library, monkeypatch):
    monkeypatch.setenv("DATASETTE_VEC_DAILY_USD", "0.5")
    async with calling(open_library()) as call:
        added = await call("add_documents", documents=DOCUMENTS)
        assert (added["pending"], added["notes"]) == (0, [])
        assert len(fake.requests) == 1
        again = await call("add_documents", documents=DOCUMENTS)
        assert {item["status"] for item in again["items"]} == {"unchanged"}
        assert len(fake.requests) == 1
        found = await call("search_documents", query="parse a date")
        assert (found["mode"], found["hits"][0]["key"]) == ("hybrid", "a")
        await call("search_documents", query="parse a date")
        assert len(fake.requests) == 2


async def test_without_a_limit_rows_are_saved_found_by_words_and_pending(paid, fake, open_library):
    async with calling(open_library()) as call:
        added = await call("add_documents", documents=DOCUMENTS)
        assert [item["status"] for item in added["items"]] == ["created", "created"]
        assert added["pending"] == 2
        assert "daily_usd" in added["notes"][0]
        assert fake.requests == []
        found = await call("search_documents", query="parse a date", mode="keyword")
        assert (found["hits"][0]["key"], found["pending"]) == ("a", 2)
        assert fake.requests == []
    conn = connect(paid)
    figures = status(conn, find_index(conn, "documents"))
    assert (figures.rows, figures.indexed, figures.pending) == (3, 1, 2)
    conn.close()


@pytest.mark.parametrize("fault", ["429-daily", "400-key"])
async def test_when_the_quota_is_gone_rows_are_saved_and_the_answer_says_so(
    paid, fake, open_library, monkeypatch, fault
):
    monkeypatch.setenv("DATASETTE_VEC_DAILY_USD", "0.5")
    fake.always = fault
    async with calling(open_library()) as call:
        added = await call("add_documents", documents=DOCUMENTS)
        assert [item["status"] for item in added["items"]] == ["created", "created"]
        assert added["pending"] == 2
        assert "found by words" in added["notes"][0]
        found = await call("search_documents", query="parse a date")
        assert (found["mode"], found["hits"][0]["key"]) == ("keyword", "a")
        assert "Searched by exact words only" in found["notes"][0]
        assert KEY not in str(added) + str(found)
        await call.error("search_documents", query="another question", mode="semantic")
        fake.always = None
        added = await call("add_documents", documents=[{"text": "one more", "id": "c"}])
        assert added["pending"] == 0


async def test_the_daily_cap_holds_for_searches_and_for_adding(paid, fake, open_library, monkeypatch):
    monkeypatch.setenv("DATASETTE_VEC_DAILY_USD", "0.0000025")
    async with calling(open_library()) as call:
        added = await call("add_documents", documents=DOCUMENTS)
        assert added["pending"] > 0
        assert "daily_usd" in added["notes"][0]
        found = await call("search_documents", query="what is quick at both of its ends and why would anybody care")
        assert found["mode"] == "keyword"
        assert "daily_usd" in found["notes"][0]


async def test_reading_listing_and_similar_cost_nothing(paid, fake, open_library):
    async with calling(open_library()) as call:
        await call("list_indexes")
        await call("get_document", key="old")
        await call("find_similar", key="old")
        await call("search_documents", query="time zone", mode="keyword")
        await call("delete_documents", keys=["old"])
    assert fake.requests == []


async def test_texts_that_go_elsewhere_are_said_to(paid, open_library):
    from mcp import Client

    from mcp_server.server import build_server

    async with Client(build_server(open_library(), writes=True, is_remote=True)) as client:
        hints = {tool.name: tool.annotations.open_world_hint for tool in (await client.list_tools()).tools}
    assert {name for name, hint in hints.items() if hint} == {"search_documents", "add_documents"}
