"""Facets and filters of the search page: counts among the top hits, switched on and off by links."""

import html
import re
from urllib.parse import parse_qsl, urlencode, urlsplit

import pytest
from pages import address

SCRIPT = """
create table docs (id integer primary key, body text, kind text, q text, "_own" text, "a__gt" text, n, raw blob);
insert into docs values
    (1, 'word one', 'x', 'q1', 'o1', 'g1', 1, x'00'), (2, 'word two', 'x', 'q2', 'o1', 'g2', 2.5, null),
    (3, 'word three', 'y', 'q1', 'o2', 'g1', 'text', x'00'), (4, 'word four', null, null, null, null, null, x'01'),
    (5, 'word five', '', 'q1', 'o1', 'g1', 'z', null);
"""


@pytest.fixture
def file(tmp_path, build):
    return build(tmp_path / "library.db", SCRIPT, columns=["body"], filter_columns=["kind", "n"])


async def ask(datasette, url: str) -> dict:
    path, _, query = url.partition("?")
    return (await datasette.client.get(f"{path}.json?{query}")).json()


@pytest.mark.asyncio
@pytest.mark.parametrize("column", ["kind", "q", "_own", "a__gt", "n"])
@pytest.mark.parametrize("page", ["/library/-/vec/docs?q=word", "/library/-/vec/docs/similar?key=1"])
async def test_each_value_leads_to_just_its_hits_and_back(site, file, column, page) -> None:
    datasette = site(file)
    everything = await ask(datasette, f"{page}&{urlencode({'_facet': column})}")
    facet = everything["facets"][column]
    assert facet["among"] == (5 if "q=" in page else 4)
    assert sum(result["count"] for result in facet["results"]) == facet["among"]
    for result in facet["results"]:
        assert result["selected"] is False
        narrowed = await ask(datasette, result["toggle_url"])
        assert [hit["row"][column] for hit in narrowed["hits"]] == [result["value"]] * result["count"]
        (chosen,) = narrowed["facets"][column]["results"]
        assert (chosen["value"], chosen["selected"]) == (result["value"], True)
        back = dict(parse_qsl(urlsplit(chosen["toggle_url"]).query, keep_blank_values=True))
        assert back == dict(parse_qsl(urlsplit(page).query)) | {"_facet": column}


@pytest.mark.asyncio
@pytest.mark.parametrize("declared", ["", "blob", "text", "real", "numeric"])
async def test_text_like_a_number_is_told_from_the_number_where_sqlite_tells_them(
    site, tmp_path, build, declared
) -> None:
    values = ["1", "'1'", "'01'", "1.5", "'1.5'", "1e20", "-3", "'-3'", "'1e3'", "null", "''", "12345678901234567"]
    rows = ", ".join(f"({n}, 'word {n}', {value})" for n, value in enumerate(values))
    script = f"create table docs (id integer primary key, body text, n {declared}); insert into docs values {rows};"
    datasette = site(build(tmp_path / "library.db", script, columns=["body"]))
    page = "/library/-/vec/docs?q=word&_size=20&_facet=n"
    results = (await ask(datasette, page))["facets"]["n"]["results"]
    assert sum(result["count"] for result in results) == len(values)
    for result in results:
        narrowed = await ask(datasette, result["toggle_url"])
        assert [hit["row"]["n"] for hit in narrowed["hits"]] == [result["value"]] * result["count"]
        (chosen,) = narrowed["facets"]["n"]["results"]
        assert chosen["selected"]
        assert sorted(parse_qsl(urlsplit(chosen["toggle_url"]).query)) == sorted(parse_qsl(urlsplit(page).query))


@pytest.mark.asyncio
async def test_the_page_shows_counts_and_offers_the_filter_columns_of_the_index(site, file) -> None:
    datasette = site(file)
    page = (await datasette.client.get("/library/-/vec/docs?q=word&_facet=kind&_next=0")).text
    assert "Among the top 5" in page
    links = re.findall(r'<li><a href="([^"]*)" dir="auto">([^<]*)</a> (\d)', page)
    assert [(html.unescape(href), label, count) for href, label, count in links] == [
        ("/library/-/vec/docs?q=word&_facet=kind&kind=x", "x", "2"),
        ("/library/-/vec/docs?q=word&_facet=kind&kind=", "(empty)", "1"),
        ("/library/-/vec/docs?q=word&_facet=kind&kind__isnull=1", "(none)", "1"),
        ("/library/-/vec/docs?q=word&_facet=kind&kind=y", "y", "1"),
    ]
    assert address(page, "Hide") == "/library/-/vec/docs?q=word"
    assert address(page, "n") == "/library/-/vec/docs?q=word&_facet=kind&_facet=n"

    page = (await datasette.client.get("/library/-/vec/docs?q=word&_facet=kind&kind=x")).text
    assert re.search(r'aria-current="true" dir="auto">x</a> 2 <span>\(chosen\)</span>', page)
    assert '<input type="hidden" name="_facet" value="kind">' in page
    assert address(page, "Remove") == "/library/-/vec/docs?q=word&_facet=kind"


@pytest.mark.asyncio
async def test_a_blob_is_counted_but_cannot_be_chosen(site, file) -> None:
    body = await ask(site(file), "/library/-/vec/docs?q=word&_facet=raw")
    assert [(r["value"], r["count"], bool(r["toggle_url"])) for r in body["facets"]["raw"]["results"]] == [
        (None, 2, True),
        ("<1 bytes>", 2, False),
        ("<1 bytes>", 1, False),
    ]


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("parameters", "message"),
    [("_facet=absent", "has no column 'absent'"), ("&".join(["_facet=kind"] * 11), "10 can be counted at once")],
)
async def test_a_facet_of_no_column_and_too_many_facets_are_refused(site, file, parameters, message) -> None:
    response = await site(file).client.get(f"/library/-/vec/docs.json?q=word&{parameters}")
    assert response.status_code == 400
    assert message in response.json()["error"]


@pytest.mark.asyncio
async def test_the_page_narrows_by_what_the_rows_say_now(site, file) -> None:
    body = await ask(site(file), "/library/-/vec/docs?q=word&_facet=kind&n__gt=1&n__lt=a&_size=1")
    assert body["facets"]["kind"] == {
        "among": 1,
        "results": [
            {
                "value": "x",
                "count": 1,
                "toggle_url": "/library/-/vec/docs?q=word&_facet=kind&n__gt=1&n__lt=a&_size=1&kind=x",
                "selected": False,
            }
        ],
        "truncated": False,
    }
