"""The tools at datasette-mcp's `/-/mcp`, on whichever Datasette is installed, and nothing of them without it."""

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress

import httpx2
import pytest
from callers import ERAS
from fake_gemini import KEY, FakeGemini
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from datasette_vec_gemini import connect, create_index, create_memory, sync

OURS = {"search_documents", "get_document", "find_similar", "list_indexes", "add_documents", "delete_documents"}


@pytest.mark.asyncio
async def test_without_datasette_mcp_nothing_changes(path, site):
    try:
        import datasette_mcp  # noqa: F401
    except ImportError:
        pass
    else:
        pytest.skip("datasette-mcp is installed")
    conn = connect(path, create=True)
    create_memory(conn, embedder="hashing@64")
    conn.close()
    datasette = site(path)
    assert (await datasette.client.get("/-/mcp")).status_code == 404
    assert (await datasette.client.get("/test/-/vec/documents.json")).status_code == 200


@pytest.fixture
def files(tmp_path):
    """`open.db` with an index everybody may search, `closed.db` with a private table beside an open one."""
    pytest.importorskip("datasette_mcp")
    for name in ("open", "closed"):
        conn = connect(tmp_path / f"{name}.db", create=True)
        conn.executescript(
            """
            create table docs (id integer primary key, title text, body text);
            insert into docs (title, body) values ('Dates', 'parse a date'), ('Zones', 'convert a time zone');
            create table secret (id integer primary key, body text);
            insert into secret (body) values ('the password is a date');
            """
        )
        sync(conn, create_index(conn, "docs", table="docs", columns=["title", "body"], embedder="hashing@64"))
        if name == "closed":
            sync(conn, create_index(conn, "secret", table="secret", columns=["body"], embedder="hashing@64"))
        conn.close()
    return [tmp_path / "open.db", tmp_path / "closed.db"]


CONFIG = {
    "permissions": {"vec-add": {"id": ["root", "writer"]}},
    "databases": {"closed": {"tables": {"secret": {"allow": {"id": ["root", "writer"]}}}}},
}
ACTORS = """
from datasette import hookimpl

@hookimpl
def actor_from_request(request):
    name = request.headers.get("x-actor")
    return {"id": name} if name else None
"""


@contextmanager
def served(files, tmp_path, config=CONFIG, **environment):
    """A Datasette that believes whoever says who they are; the address of its MCP endpoint."""
    plugins = tmp_path / "plugins"
    plugins.mkdir(exist_ok=True)
    (plugins / "actors.py").write_text(ACTORS)
    settings = tmp_path / "metadata.json"
    settings.write_text(json.dumps(config))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    option = "--metadata" if _is_old() else "--config"
    command = [sys.executable, "-m", "datasette", *map(str, files), "--port", str(port), option, str(settings)]
    log = (tmp_path / "datasette.log").open("w")
    process = subprocess.Popen(
        [*command, "--plugins-dir", str(plugins)], stdout=log, stderr=log, env=os.environ | environment
    )
    try:
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None, (tmp_path / "datasette.log").read_text()
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/-/mcp"
    finally:
        process.terminate()
        process.wait(30)
        log.close()


def _is_old():
    from datasette.app import Datasette

    return not hasattr(Datasette, "allowed")


class Caller:
    def __init__(self, client):
        self.client = client

    async def __call__(self, tool, **arguments):
        answer = await self.client.call_tool(tool, arguments)
        assert not answer.is_error, answer.content[0].text
        return answer.structured_content

    async def error(self, tool, **arguments):
        answer = await self.client.call_tool(tool, arguments)
        assert answer.is_error
        return answer.content[0].text


def using(address, work, *, mode="auto", **headers):
    async def run():
        async with (
            httpx2.AsyncClient(headers=headers, timeout=60) as connection,
            Client(streamable_http_client(address, http_client=connection), mode=mode) as client,
        ):
            await work(Caller(client))

    asyncio.run(run())


@pytest.mark.slow
@pytest.mark.parametrize("mode", ERAS)
def test_who_may_search_searches_and_who_may_add_adds(files, tmp_path, mode):
    async def everybody(call):
        names = {tool.name for tool in (await call.client.list_tools()).tools}
        assert names > OURS
        assert "execute_sql" in names
        listed = (await call("list_indexes"))["indexes"]
        assert [each["name"] for each in listed] == ["open/docs", "closed/docs"]
        hidden = await call.error("search_documents", query="password", index="closed/secret")
        absent = await call.error("search_documents", query="password", index="closed/nowhere")
        assert hidden.replace("secret", "nowhere") == absent
        assert "several" in await call.error("search_documents", query="date", index="docs")
        found = await call("search_documents", query="parse a date", index="open/docs")
        assert (found["hits"][0]["key"], found["hits"][0]["uri"]) == ("1", "doc://open~2Fdocs/1")
        assert (await call.client.read_resource("doc://open~2Fdocs/1")).contents[0].text == "Dates\n\nparse a date"
        assert (await call("get_document", key="1", index="open/docs"))["text"] == "Dates\n\nparse a date"
        assert (await call("find_similar", key="1", index="open/docs"))["hits"][0]["key"] == "2"
        for tool, arguments in [
            ("add_documents", {"documents": [{"text": "x"}]}),
            ("delete_documents", {"keys": ["1"]}),
        ]:
            assert "vec-add" in await call.error(tool, index="open/docs", **arguments)

    async def writer(call):
        assert len((await call("list_indexes"))["indexes"]) == 3
        assert (await call("search_documents", query="password", index="secret"))["hits"][0]["key"] == "1"
        documents = [{"text": "a leap second", "title": "Leaps"}, {"text": "x", "fields": {"no": 1}}]
        added = await call("add_documents", documents=documents, index="open/docs")
        assert [(item["status"], item.get("key")) for item in added["items"]] == [("created", "3"), ("error", None)]
        assert (added["pending"], added["notes"]) == (0, [])
        found = await call("search_documents", query="leap second", index="open/docs", mode="semantic", limit=1)
        assert found["hits"][0]["key"] == "3"
        gone = await call("delete_documents", keys=["3"], index="open/docs")
        assert [item["status"] for item in gone["items"]] == ["deleted"]
        assert "no row" in await call.error("get_document", key="3", index="open/docs")

    with served(files, tmp_path) as address:
        using(address, everybody, mode=mode)
        using(address, writer, mode=mode, **{"x-actor": "writer"})
        using(address, everybody, mode=mode)


@pytest.mark.slow
def test_what_the_constraints_of_a_table_refuse_is_refused(tmp_path):
    pytest.importorskip("datasette_mcp")
    path = tmp_path / "a b.db"
    conn = connect(path, create=True)
    conn.executescript(
        """
        create table people (first text, last text, body text, primary key (first, last));
        insert into people values ('Ada', 'King, Lady', 'wrote a program'), ('Charles', 'Babbage', 'built an engine');
        create table notes (
            id integer primary key, body text, slug text unique on conflict rollback, first text, last text,
            foreign key (first, last) references people
        );
        insert into notes values (1, 'on the engine', 'one', 'Ada', 'King, Lady');
        """
    )
    for table in ("people", "notes"):
        sync(conn, create_index(conn, table, table=table, columns=["body"], embedder="hashing@64"))

    async def writer(call):
        (hit,) = (await call("search_documents", query="program", index="people", mode="keyword"))["hits"]
        assert hit["key"] == "Ada,King~2C+Lady"
        assert (await call.client.read_resource(hit["uri"])).contents[0].text == "wrote a program"
        documents = [
            {"text": "good", "fields": {"slug": "two"}},
            {"text": "of nobody", "fields": {"first": "No", "last": "Body"}},
            {"text": "the same slug", "fields": {"slug": "one"}},
            {"text": "good too", "fields": {"first": "Charles", "last": "Babbage"}},
        ]
        items = (await call("add_documents", documents=documents, index="notes"))["items"]
        assert [item["status"] for item in items] == ["created", "error", "error", "created"]
        assert "FOREIGN KEY" in items[1]["error"]
        assert "UNIQUE" in items[2]["error"]
        refused = await call.client.call_tool("delete_documents", {"keys": [hit["key"]], "index": "people"})
        assert "FOREIGN KEY" in refused.content[0].text

    with served([path], tmp_path) as address:
        using(address, writer, **{"x-actor": "writer"})
    assert conn.execute("select body from notes").fetchall() == [("on the engine",), ("good",), ("good too",)]
    assert conn.execute("select count(*) from people").fetchone() == (2,)
    conn.close()


@pytest.mark.slow
def test_what_another_page_makes_a_browser_send_writes_nothing(files, tmp_path):
    heard = []

    async def page(call):
        heard.append(await call.error("add_documents", documents=[{"text": "x", "title": "y"}], index="open/docs"))

    with served(files, tmp_path) as address:
        for headers in ({"origin": "https://evil.example"}, {"sec-fetch-site": "cross-site"}):
            with suppress(Exception):  # Datasette 1.0 lets it not even connect
                using(address, page, **{"x-actor": "writer"}, **headers)
    assert len(heard) == (2 if _is_old() else 0)
    assert all("another web page" in text for text in heard)
    conn = connect(files[0])
    assert conn.execute("select count(*) from docs").fetchone() == (2,)
    conn.close()


@pytest.mark.slow
@pytest.mark.parametrize("daily_usd", ["", "0.5"])
def test_on_a_paid_index_adding_needs_a_limit_and_the_gate_of_the_page_holds(tmp_path, monkeypatch, daily_usd):
    pytest.importorskip("datasette_mcp")
    with FakeGemini() as fake:
        monkeypatch.setenv("GEMINI_API_KEY", KEY)
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", fake.url)
        conn = connect(tmp_path / "paid.db", create=True)
        sync(conn, create_memory(conn, embedder="gemini"))
        conn.close()

        async def writer(call):
            added = await call("add_documents", documents=[{"text": "parse a date"}])
            assert added["items"][0]["status"] == "created"
            assert added["pending"] == (0 if daily_usd else 1)
            assert ("daily_usd" in "".join(added["notes"])) != bool(daily_usd)
            found = await call("search_documents", query="parse a date", filters={"added_by": "writer"})
            assert len(found["hits"]) == 1
            assert found["mode"] == "hybrid"

        with served([tmp_path / "paid.db"], tmp_path, DATASETTE_VEC_DAILY_USD=daily_usd) as address:
            using(address, writer, **{"x-actor": "writer"})
        assert len(fake.requests) == (2 if daily_usd else 1)
