"""Every door gives the same question the same keys and scores."""

import json

import pytest
from click.testing import CliRunner
from mcp import Client

from datasette_vec_gemini import Query, create_index, search, sync
from datasette_vec_gemini.cli import vec
from mcp_server.file import FileLibrary
from mcp_server.server import build_server

TEXT, K, FILTERS = "red fish swims", 5, {"year__gte": "1990"}


@pytest.fixture
def index(conn):
    conn.execute("create table pets (id integer primary key, body text, year integer)")
    colours, animals = ("red", "blue", "green"), ("fish", "bird", "cat", "dog")
    conn.executemany(
        "insert into pets (body, year) values (?, ?)",
        [(f"a {c} {a} swims or sleeps", 1980 + n) for n, (c, a) in enumerate((c, a) for c in colours for a in animals)]
        + [("a red fish", 1999), ("swims", 2000)],
    )
    conn.commit()
    made = create_index(conn, "pets", table="pets", columns=["body"], embedder="hashing")
    sync(conn, made)
    return made


def brief(hits):
    return [(tuple(hit["key"]), hit["score"]) for hit in hits]


@pytest.mark.asyncio
@pytest.mark.parametrize("mode", ["hybrid", "semantic", "keyword"])
async def test_python_sql_command_line_page_and_agents_agree(conn, index, path, site, mode):
    expected = [hit.to_dict() for hit in search(conn, index, Query(TEXT, k=K, mode=mode, filters=FILTERS))]
    assert 3 <= len(expected) <= K

    sql = "select semantic_search('pets', ?, ?, ?, ?)"
    (answer,) = conn.execute(sql, [TEXT, K, mode, json.dumps(FILTERS)]).fetchone()
    assert json.loads(answer) == expected

    options = ["-k", str(K), "--mode", mode, "--filter", "year__gte=1990", "--json"]
    command = CliRunner().invoke(vec, ["search", str(path), TEXT, *options])
    assert json.loads(command.stdout)["hits"] == expected

    datasette = site(path)
    await datasette.invoke_startup()
    parameters = {"q": TEXT, "mode": mode, "_size": K, "year__gte": "1990"}
    page = await datasette.client.get("/test/-/vec/pets.json", params=parameters)
    assert brief(page.json()["hits"]) == brief(expected)

    library = FileLibrary(path)
    try:
        async with Client(build_server(library, writes=False)) as client:
            asked = {"query": TEXT, "mode": mode, "limit": K, "filters": FILTERS}
            answer = (await client.call_tool("search_documents", asked)).structured_content
    finally:
        library.close()
    shown = [(hit["key"], hit["score"]) for hit in answer["hits"]]
    assert shown == [(str(key), round(score, 4)) for (key,), score in brief(expected)]
