"""The server as a process of its own, as clients start it: over stdio and over HTTP, in both eras."""

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from http.client import HTTPConnection
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import httpx2
import pytest
from callers import ERAS, INITIALIZE
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client

from datasette_vec_gemini import VecError, connect, count_pending, create_memory, find_index, indexes, verify

pytestmark = pytest.mark.slow

COMMANDS = [("-m", "mcp_server"), ("-m", "datasette", "vec", "mcp")]
TOKEN = "correct horse battery staple"
READING = ["search_documents", "get_document", "find_similar", "list_indexes"]


@pytest.fixture
def file(path):
    """A memory with the hashing model, which is there at once."""
    conn = connect(path, create=True)
    create_memory(conn, embedder="hashing@64")
    conn.close()
    return path


def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextmanager
def http(file, *options, host="127.0.0.1", **environment):
    """The server over HTTP; its address."""
    number = port()
    command = [sys.executable, "-m", "mcp_server", str(file), "--http", f"{host}:{number}", *options]
    log = file.with_suffix(".log")
    with log.open("w") as errors:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, env=os.environ | environment
        )
        try:
            for _ in range(600):
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", number)) == 0:
                        break
                assert process.poll() is None, log.read_text()
                time.sleep(0.1)
            yield f"http://127.0.0.1:{number}/mcp"
        finally:
            process.terminate()
            out, _ = process.communicate(timeout=30)
            assert out == b""


@pytest.mark.parametrize("mode", ERAS)
@pytest.mark.parametrize("command", COMMANDS)
def test_over_stdio_an_empty_memory_works_at_once_with_the_local_model(path, mode, command):
    async def use():
        server = StdioServerParameters(command=sys.executable, args=[*command, str(path)], env=dict(os.environ))
        async with Client(server, mode=mode) as client:
            tools = [tool.name for tool in (await client.list_tools()).tools]
            assert tools == [*READING, "add_documents", "delete_documents"]
            documents = [{"text": "To bake bread, knead the dough and let it rise."}, {"text": "Cats sleep all day."}]
            added = await client.call_tool("add_documents", {"documents": documents})
            assert [item["status"] for item in added.structured_content["items"]] == ["created", "created"]
            found = await client.call_tool("search_documents", {"query": "how is a loaf made", "mode": "semantic"})
            assert "bread" in found.structured_content["hits"][0]["snippet"]

    asyncio.run(use())
    conn = connect(path, read_only=True)
    assert [index.embedder for index in indexes(conn)] == ["local"]
    conn.close()


def rested(file):
    """The bytes of a file that no journal stands beside."""
    conn = connect(file)
    conn.execute("pragma journal_mode = delete").fetchone()
    conn.close()
    return file.read_bytes()


def tools(*command):
    async def ask():
        async with Client(StdioServerParameters(command=command[0], args=list(command[1:]))) as client:
            return [tool.name for tool in (await client.list_tools()).tools]

    return asyncio.run(ask())


def test_a_file_is_served_read_only_when_told(file):
    before = rested(file)
    assert tools(sys.executable, "-m", "mcp_server", str(file), "--read-only") == READING
    assert file.read_bytes() == before


def test_a_file_that_cannot_be_written_is_served_read_only(file, unprivileged_python):
    before = rested(file)
    file.chmod(0o444)
    assert tools(*unprivileged_python, "-m", "mcp_server", str(file)) == READING
    assert file.read_bytes() == before


@pytest.mark.parametrize("mode", ERAS)
def test_over_http_two_clients_see_what_each_adds_and_progress_arrives(file, mode):
    told = []

    async def hear(progress, total, message):
        told.append(message)

    async def use(address):
        async with Client(address, mode=mode) as one, Client(address, mode=mode) as other:
            documents = [{"text": f"note number {n}"} for n in range(50)]
            added = await one.call_tool("add_documents", {"documents": documents}, progress_callback=hear)
            assert {item["status"] for item in added.structured_content["items"]} == {"created"}
            found = await other.call_tool("search_documents", {"query": "note number 7", "mode": "keyword"})
            key = found.structured_content["hits"][0]["key"]
            assert (await other.read_resource(f"doc://documents/{key}")).contents[0].text == "note number 7"
            await other.call_tool("delete_documents", {"keys": [key]})
            answer = await one.call_tool("get_document", {"key": key})
            assert answer.is_error

    with http(file) as address:
        asyncio.run(use(address))
    assert any("documents read" in message for message in told)


def answer(address, *, body=None, **headers):
    """The status of a request."""
    given = {"content-type": "application/json", "accept": "application/json, text/event-stream"}
    given |= {name.replace("_", "-"): value for name, value in headers.items()}
    request = Request(address, data=json.dumps(INITIALIZE).encode() if body is None else body, headers=given)
    try:
        with urlopen(request, timeout=30) as response:
            return response.status
    except HTTPError as error:
        return error.code


def announced(host, length):
    """The status of a request that says how long its body will be, before any of it is sent."""
    connection = HTTPConnection(host, timeout=30)
    connection.putrequest("POST", "/mcp")
    for name, value in {"content-type": "application/json", "content-length": str(length)}.items():
        connection.putheader(name, value)
    connection.endheaders()
    status = connection.getresponse().status
    connection.close()
    return status


def test_who_must_not_connect_is_refused(file):
    with http(file) as address:
        host = re.search("//(.+?)/", address)[1]
        assert answer(address) == 200
        assert answer(address, host=host.replace("127.0.0.1", "localhost")) == 200
        assert answer(address, host="evil.example") == 421
        assert answer(address, origin="https://evil.example") == 403
        assert answer(address, origin=f"http://{host}") == 200
        assert answer(address, body=b"[" + json.dumps(INITIALIZE).encode() + b"]") == 400
        assert announced(host, 9 << 20) == 413
        assert answer(address, content_type="text/plain") in {400, 415}


def test_a_token_is_needed_where_there_is_one(file, tmp_path):
    secret = tmp_path / "token"
    secret.write_text(f"{TOKEN}\n")

    async def use(address, token):
        headers = {"authorization": f"Bearer {token}"}
        async with (
            httpx2.AsyncClient(headers=headers) as connection,
            Client(streamable_http_client(address, http_client=connection)) as client,
        ):
            return len((await client.list_tools()).tools)

    for options, environment in [
        (["--token-file", str(secret), "--allowed-host", "docs.example"], {}),
        (["--allowed-host", "docs.example"], {"DATASETTE_VEC_MCP_TOKEN": TOKEN}),
    ]:
        with http(file, *options, **environment) as address:
            assert asyncio.run(use(address, TOKEN)) == 6
            assert answer(address) == 401
            assert answer(address, authorization=f"Bearer {TOKEN}x") == 401
            assert answer(address, authorization="Basic eHg6eHg=") == 401
            assert answer(address, authorization=f"bearer {TOKEN}") == 200
            assert answer(address, authorization=f"Bearer {TOKEN}", host="docs.example") == 200
            assert answer(address, authorization=f"Bearer {TOKEN}", host="other.example") == 421
        assert TOKEN not in file.with_suffix(".log").read_text()


def test_on_every_address_only_the_names_that_are_allowed_are_answered(file):
    options = ["--allowed-host", "docs.example"]
    with http(file, *options, host="0.0.0.0", DATASETTE_VEC_MCP_TOKEN=TOKEN) as address:
        allowed = {"authorization": f"Bearer {TOKEN}"}
        assert answer(address, host="docs.example", **allowed) == 200
        assert answer(address, host="docs.example:8443", origin="https://docs.example", **allowed) == 200
        assert answer(address, host="docs.example", origin="https://evil.example", **allowed) == 403
        assert answer(address, **allowed) == 421
        assert answer(address, host="docs.example") == 401


def test_what_is_embedded_when_a_server_is_killed_goes_on_in_the_next(path):
    documents = [{"text": f"number {n} " + "of a text " * 30} for n in range(60)]
    call = {"name": "add_documents", "arguments": {"documents": documents}}
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": call}).encode()
    command = [sys.executable, "-m", "mcp_server", str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdin.write(json.dumps(INITIALIZE).encode() + b"\n" + body + b"\n")
        process.stdin.flush()
        while left(path)[0] < 60:
            time.sleep(0.05)
        process.kill()
    rows, waiting = left(path)
    assert (rows, waiting > 0) == (60, True)
    with http(path):
        for _ in range(600):
            if left(path)[1] == 0:
                break
            time.sleep(0.1)
    assert left(path) == (60, 0)
    conn = connect(path, read_only=True)
    assert conn.execute("pragma integrity_check").fetchone() == ("ok",)
    assert verify(conn, find_index(conn, "documents")) == []
    conn.close()


def left(path):
    """How many documents there are, and how many of them cannot be found by meaning yet."""
    try:
        conn = connect(path, read_only=True)
        index = find_index(conn, "documents")
        found = conn.execute("select count(*) from documents").fetchone()[0], count_pending(conn, index)
        conn.close()
    except VecError:  # nothing is there yet
        return 0, 0
    return found


def test_a_restart_loses_no_client(file):
    async def use(address):
        async with Client(address, mode="legacy") as client:
            return (await client.call_tool("list_indexes", {})).structured_content["indexes"][0]["name"]

    for _ in range(2):
        with http(file) as address:
            assert asyncio.run(use(address)) == "documents"


def test_two_servers_and_a_writer_share_one_file(file):
    async def use():
        servers = [StdioServerParameters(command=sys.executable, args=["-m", "mcp_server", str(file)]) for _ in "ab"]
        async with Client(servers[0]) as one, Client(servers[1]) as other:
            for n in range(5):
                both = [
                    client.call_tool("add_documents", {"documents": [{"text": f"{name} wrote number {n}"}]})
                    for name, client in (("one", one), ("other", other))
                ]
                for added in await asyncio.gather(*both):
                    assert [item["status"] for item in added.structured_content["items"]] == ["created"]
            for client in (one, other):
                found = await client.call_tool("search_documents", {"query": "wrote number", "limit": 20})
                assert len(found.structured_content["hits"]) == 10

    asyncio.run(use())
