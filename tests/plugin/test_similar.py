"""The rows similar to a row: their page, its twins, and the ways to it."""

import csv
import html
import io
import re
from urllib.parse import quote

import pytest
from datasette.app import Datasette
from pages import address, cookies, hrefs, plain, rules

from datasette_vec_gemini import connect, find_index, similar


def expected(file, key, **options) -> list[dict]:
    conn = connect(file, read_only=True)
    try:
        return [hit.to_dict() for hit in similar(conn, find_index(conn, "docs"), key, **options)]
    finally:
        conn.close()


@pytest.mark.asyncio
async def test_page_and_twins_show_what_the_library_finds(site, library) -> None:
    datasette = site(library)
    hits = expected(library, (3,), k=4, filters={"category": "time"})
    body = (await datasette.client.get("/library/-/vec/docs/similar.json?key=3&_size=4&category=time")).json()
    assert plain(body["hits"]) == hits
    assert {name: body[name] for name in ("ok", "query", "index", "mode", "key", "title", "next", "pending")} == {
        "ok": True,
        "query": "",
        "index": "docs",
        "mode": "semantic",
        "key": [3],
        "title": "dates 3",
        "next": "4",
        "pending": 0,
    }
    page = (await datasette.client.get("/library/-/vec/docs/similar?key=3&_size=4&category=time")).text
    assert sorted(hrefs(page)) == sorted(f"/library/docs/{hit['key'][0]}" for hit in hits)
    assert 'Similar to <a href="/library/docs/3">dates 3</a></h1>' in page
    assert "/library/docs/3" not in hrefs(page)
    table = (await datasette.client.get("/library/-/vec/docs/similar.csv?key=3&_size=4&category=time")).text
    assert [row[0] for row in csv.reader(io.StringIO(table))] == ["id", *(str(hit["key"][0]) for hit in hits)]


@pytest.mark.asyncio
async def test_a_key_that_is_a_blob_is_found_as_the_row_s_address_spells_it(site, build, tmp_path) -> None:
    file = build(
        tmp_path / "library.db",
        """
        create table docs (id primary key, title text, body text);
        insert into docs values (x'ff01', 'bytes', 'read bytes'), (7, 'number', 'read numbers'), ('7', 'text', 'read');
        """,
        columns=["title", "body"],
    )
    body = (await site(file).client.get("/library/-/vec/docs/similar.json?key=ff01")).json()
    assert (body["title"], body["key"], {hit["title"] for hit in body["hits"]}) == (
        "bytes",
        ["ff01"],
        {"number", "text"},
    )


@pytest.mark.asyncio
async def test_pages_show_every_other_row_once(site, library) -> None:
    datasette, keys, path = site(library), [], "/library/-/vec/docs/similar?key=3&_size=5"
    while path:
        page = (await datasette.client.get(path)).text
        keys += hrefs(page)
        path = address(page, "Next page")
    assert sorted(keys) == sorted(f"/library/docs/{n}" for n in range(1, 26) if n != 3)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("path", "status", "message"),
    [
        ("", 400, "key is missing"),
        ("?key=", 400, "key is missing"),
        ("?key=99", 404, "has no row with the key '99'"),
        ("?key=1,2", 404, "has no row with the key"),
        ("?key=%00", 404, "has no row with the key"),
        ("?key=26", 404, "has no vector"),
        ("?key=1&_size=0", 400, "_size is 0"),
        ("?key=1&colour=red", 400, "has no column 'colour'"),
    ],
)
async def test_a_wrong_request_is_refused_with_the_reason(site, library, path, status, message) -> None:
    conn = connect(library)
    conn.execute("insert into docs (id, title) values (26, 'new')")
    conn.commit()
    conn.close()
    datasette = site(library)
    response = await datasette.client.get(f"/library/-/vec/docs/similar.json{path}")
    error = response.json()["error"]
    assert (response.status_code, message in error) == (status, True)
    assert response.json() == {"ok": False, "error": error, "status": status}
    page = await datasette.client.get(f"/library/-/vec/docs/similar{path}")
    assert page.status_code == status
    assert 'role="alert"' in page.text


@pytest.mark.asyncio
async def test_the_rows_similar_to_one_of_a_private_table_do_not_exist(site, library) -> None:
    metadata = {"databases": {"library": {"tables": {"docs": {"allow": {"id": "root"}}}}}}
    datasette = site(library, metadata=metadata)
    for ending in ("?key=1", "?key=99", ".json?key=1", ".csv?key=1"):
        answers = [
            await datasette.client.get(f"/library/-/vec/{index}/similar{ending}") for index in ("docs", "absent")
        ]
        assert [answer.status_code for answer in answers] == [404, 404]
        assert answers[0].text == answers[1].text
    seen = await datasette.client.get("/library/-/vec/docs/similar.json?key=1", cookies=cookies(datasette))
    assert len(seen.json()["hits"]) == 10


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("schema", "rows"),
    [
        ("id integer primary key, body text", "(1, 'red fish'), (-7, 'red bird')"),
        ("id text primary key, body text", "('a/b,c.json', 'red fish'), ('50% ~ü+\"?#&', 'red bird')"),
        ("a text, b integer, body text, primary key (b, a)", "('x/y', 1, 'red fish'), ('', 2, 'red bird')"),
        ("body text", "('red fish'), ('red bird')"),
    ],
    ids=["integer", "text", "composite", "rowid"],
)
async def test_cards_and_row_pages_lead_to_the_similar_rows(site, tmp_path, build, schema, rows) -> None:
    file = build(
        tmp_path / "keys.db", f'create table "a/b.c" ({schema}); insert into "a/b.c" values {rows};', table="a/b.c",
        columns=["body"],
    )  # fmt: skip
    datasette = site(file)
    page = (await datasette.client.get("/keys/-/vec/docs?q=red")).text
    cards = [html.unescape(href) for href in re.findall(r'href="([^"]*/similar\?[^"]*)"', page)]
    assert len(cards) == 2
    for card, row in zip(cards, hrefs(page), strict=True):
        shown = await datasette.client.get(card)
        assert shown.status_code == 200
        assert len(hrefs(shown.text)) == 1
        of_row = (await datasette.client.get(row)).text
        found = [html.unescape(href) for href in re.findall(r'href="([^"]*/similar\?[^"]*)"', of_row)]
        assert set(found) == {card}  # on 0.65 in the menu too


@pytest.mark.asyncio
async def test_the_page_of_a_row_leads_to_each_index_that_one_may_search(site, library, build) -> None:
    conn = connect(library)
    conn.execute("create table plain (id integer primary key)")
    conn.execute("insert into plain values (1)")
    conn.commit()
    conn.close()
    datasette = site(library, settings={"base_url": "/under/"})
    page = (await datasette.client.get("/library/docs/3")).text
    assert re.findall(r'href="(/under/library/-/vec/docs/similar\?key=3)"[^>]*>\s*Similar rows', page)
    assert "similar" not in (await datasette.client.get("/library/plain/1")).text
    private = {"databases": {"library": {"tables": {"docs": {"permissions": {"vec-search": {"id": "root"}}}}}}}
    datasette = site(library, **rules(private))
    assert "/similar?" not in (await datasette.client.get("/library/docs/3")).text
    assert "/similar?" in (await datasette.client.get("/library/docs/3", cookies=cookies(datasette))).text


@pytest.mark.asyncio
@pytest.mark.parametrize("name", ["row.html", "row-library-docs.html"])
async def test_a_site_s_own_template_of_a_row_takes_the_way_to_similar_rows_from_nobody(
    site, library, tmp_path, name
) -> None:
    templates = tmp_path / "templates"
    templates.mkdir()
    own = '{% extends "base.html" %}{% block content %}OUR ROW{% set links = row_actions %}{% endblock %}'
    (templates / name).write_text(own)
    page = (await site(library, template_dir=str(templates)).client.get("/library/docs/3")).text
    assert "OUR ROW" in page
    # 1.0 has a menu of a row's actions, which such a template may leave out like any of Datasette's own.
    assert ("/library/-/vec/docs/similar?key=3" in page) == (not hasattr(Datasette, "allowed"))
    other = (await site(library, template_dir=str(templates)).client.get("/library/docs")).text
    assert "similar?" not in other


@pytest.mark.asyncio
async def test_a_column_named_key_is_filtered_by_its_operator(site, tmp_path, build) -> None:
    script = "create table docs (id integer primary key, body text, key text);"
    script += "insert into docs values (1, 'red fish', 'a'), (2, 'red bird', 'a'), (3, 'red cat', 'b');"
    file = build(tmp_path / "library.db", script, columns=["body"])
    datasette = site(file)
    parameters = f"key=1&key__exact={quote('b')}"
    body = (await datasette.client.get(f"/library/-/vec/docs/similar.json?{parameters}")).json()
    assert [hit["key"] for hit in body["hits"]] == [[3]]
    body = (await datasette.client.get("/library/-/vec/docs.json?q=red&key=a")).json()
    assert sorted(hit["key"] for hit in body["hits"]) == [[1], [2]]
