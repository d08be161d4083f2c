"""What people write to break pages: markup in every place that takes text, names that SQL and URLs trip over, noise."""

import asyncio
import re
import string
from html.parser import HTMLParser
from urllib.parse import quote, urlencode

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from sqlite_utils.db import quote_identifier

from datasette_vec_gemini import connect, create_index, sync

MARKER = "pwn3d"
PAYLOADS = [
    wrapper.replace("%", f"<{tag} {event}={MARKER}>")
    for wrapper in ("%", "'>%", '">%', "</title>%", "<!--%-->", "{{%}}", "]]>%", "%\u2028", "&lt;%", "a,b%__exact=1")
    for tag, event in (
        ("script", "src"),
        ("img", "src=x onerror"),
        ("svg/onload", "x"),
        ("a", "href=javascript:alert(1) onclick"),
        ("iframe", "srcdoc"),
        ("style", "media"),
        ("input", "autofocus onfocus"),
        ("details open", "ontoggle"),
        ("base", "href"),
        ("b", "style=x:expression(1) onmouseover"),
    )
]


class Markup(HTMLParser):
    """Collects what a browser would take for an element or an attribute of a payload."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[str] = []
        self.texts = 0

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            dangerous = name.startswith("on") or (value or "").strip().lower().startswith("javascript:")
            is_text = name in {"name", "value", "aria-label", "class"} or (name in {"href", "action"} and not dangerous)
            if MARKER in name or (MARKER in (value or "") and not is_text) or dangerous:
                self.found.append(f"<{tag} {name}={value!r}>")

    def handle_data(self, data: str) -> None:
        self.texts += MARKER in data


def broken_out(page: str) -> list[str]:
    parser = Markup()
    parser.feed(page)
    parser.close()
    raw = re.findall(rf"<[^>&]*{MARKER}[^>&]*>", re.sub(r'"[^"]*"', '""', page))
    return parser.found + raw


def test_there_are_a_hundred_payloads_and_the_detector_sees_each_of_them() -> None:
    assert len(set(PAYLOADS)) == 100
    for payload in PAYLOADS:
        if not payload.startswith(("<!--", "</title>")):
            assert broken_out(f"<p>{payload}</p>"), payload


@pytest.mark.asyncio
async def test_markup_in_rows_titles_columns_questions_facets_and_filters_stays_text(site, tmp_path) -> None:
    file = tmp_path / "evil.db"
    conn = connect(file, create=True)
    column = f"c<img src=x onerror={MARKER}>\"'"
    conn.execute(
        f"create table docs (id text primary key, title text, body text, {quote_identifier(column)} text, kind text)"
    )
    rows = [(payload, payload, f"{payload} word {payload}", payload, payload) for payload in PAYLOADS]
    conn.executemany("insert into docs values (?, ?, ?, ?, ?)", rows)
    conn.commit()
    options = {"embedder": "hashing@64", "filter_columns": [column, "kind"]}
    sync(conn, create_index(conn, "docs", table="docs", columns=["title", "body"], **options))
    conn.close()
    datasette = site(file)

    async def check(path: str, parameters: dict[str, str]) -> str:
        response = await datasette.client.get(f"{path}?{urlencode(parameters)}")
        assert response.status_code < 500
        assert broken_out(response.text) == [], parameters
        return response.text

    for page in range(0, 100, 25):
        shown = await check("/evil/-/vec/docs", {"q": "word", "_size": "25", "_next": str(page), "_facet": column})
        assert shown.count(MARKER) > 100
    for payload in PAYLOADS:
        await check("/evil/-/vec/docs", {"q": payload, "_facet": "kind", "kind": payload})
        await check("/evil/-/vec/docs", {"q": "x", payload: payload, "_facet": payload, "mode": payload})
        await check("/evil/-/vec/docs/similar", {"key": quote(payload), column: payload})
        await check("/-/vec", {"q": payload, "mode": payload})
        key = quote(payload, safe="").replace("%", "~").replace(".", "~2E")
        await check("/evil/-/vec/docs/similar", {"key": key, "_size": "3", "_facet": "kind"})


NAMES = [
    template.format(name)
    for name in ("select", "order", 'a"b', "a'b", "a`b", "[a]", "x'; drop table docs; --", "ünï", "日本", "a b",
                 "%s", "{x}", "a.b", "a/b", "a,b", "~2F", "a+b", "a&b=c", "a#b", "-a")
    for template in ("{}", "{}1", "1{}", "_{}x", "{} ", "{}__gt", "{}__isnull", "{}\n", "{}.json", "{};--")
]  # fmt: skip


@pytest.mark.asyncio
@pytest.mark.parametrize("names", [NAMES[start : start + 20] for start in range(0, 200, 20)])
async def test_tables_and_columns_of_any_name_are_searched_filtered_and_counted(site, tmp_path, names) -> None:
    file = tmp_path / "names.db"
    conn = connect(file, create=True)
    for number, name in enumerate(names):
        called = f"{name}t".replace("]", "")  # with one, Datasette 0.65 breaks by itself
        table, column = quote_identifier(called), quote_identifier(name)
        conn.execute(f"create table {table} (id integer primary key, {column} text, body text)")
        conn.execute(f"insert into {table} values (1, 'a', 'word {number}'), (2, 'b', 'word')")
        conn.commit()
        options = {"embedder": "hashing@64", "filter_columns": [name]}
        index = create_index(conn, f"i{number}", table=called, columns=[name, "body"], **options)
        sync(conn, index)
    conn.close()
    datasette = site(file)
    for number, name in enumerate(names):
        asked = urlencode({"q": "word", "_facet": name})
        response = await datasette.client.get(f"/names/-/vec/i{number}.json?{asked}")
        assert response.status_code == 200, (name, response.text)
        body = response.json()
        assert [hit["row"][name] for hit in body["hits"]] == ["a", "b"] or [
            hit["row"][name] for hit in body["hits"]
        ] == ["b", "a"]
        (facet,) = body["facets"].values()
        toggle = next(result["toggle_url"] for result in facet["results"] if result["value"] == "b")
        path, _, parameters = toggle.partition("?")
        narrowed = (await datasette.client.get(f"{path}.json?{parameters}")).json()
        assert [hit["row"][name] for hit in narrowed["hits"]] == ["b"], (name, toggle)
        page = (await datasette.client.get(toggle)).text
        assert f'href="/names/-/vec/i{number}/similar?key=2"' in page
        row = re.search(r'<h2 dir="auto"><a href="([^"]*)">', page)
        assert (await datasette.client.get(row[1])).status_code == 200
        assert (await datasette.client.get(f"/names/-/vec/i{number}.csv?q=word")).status_code == 200


@pytest.mark.asyncio
async def test_an_index_of_any_other_name_is_not_found(site, library) -> None:
    datasette = site(library)
    for name in NAMES[::20]:
        encoded = quote(name, safe="").replace("%", "~").replace(".", "~2E")
        for ending in (".json", "/similar.csv"):
            response = await datasette.client.get(f"/library/-/vec/{encoded}{ending}?q=x&key=1")
            assert response.status_code == 404, (name, response.text)


VALUES = st.one_of(
    st.text(max_size=60),
    st.text(alphabet=string.punctuation + " \0\n09a", max_size=40),
    st.sampled_from(
        ["", "0", "-1", "1e9", "9" * 400, "NaN", "inf", "1,2", "[1]", '["a"', "[[[[", '{"a":1}', "null", "\ud7ff",
         '"', "*", 'NEAR("a" "b")', "a AND OR", "^a", "col:a", "x" * 5_000, "a " * 3_000, "\u202e\u0000", "%s%n"]
    ),
)  # fmt: skip
PARAMETERS = st.one_of(
    st.sampled_from(
        ["q", "mode", "_size", "_next", "_facet", "key", "id", "year", "year__gt", "year__in", "title__isnull",
         "category__not", "rowid", "_shape", "_labels", "_header", "_dl", "__", "_"]
    ),
    st.text(max_size=12),
)  # fmt: skip
RAW = st.binary(max_size=20).map(lambda noise: quote(noise, safe="=&%+;"))


@pytest.mark.slow  # a thousand requests each
@pytest.mark.parametrize(
    "path",
    ["/library/-/vec/docs.json", "/library/-/vec/docs/similar.json", "/library/-/vec/docs.csv", "/-/vec.json"],
)
def test_no_generated_request_is_an_accident(site, library, path) -> None:
    datasette = site(library)
    fixed = {"key": "3"} if "similar" in path else {"q": "parse dates"}
    with asyncio.Runner() as runner:

        @settings(
            max_examples=1_000,
            deadline=None,
            database=None,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
        )
        @given(st.lists(st.tuples(PARAMETERS, VALUES), max_size=4), RAW, st.booleans())
        def ask(pairs: list[tuple[str, str]], noise: str, asks_well: bool) -> None:
            well = list(fixed.items()) if asks_well else []
            query = urlencode([*pairs, *well], errors="replace") + f"&{noise}"
            response = runner.run(datasette.client.get(f"{path}?{query}"))
            assert response.status_code in {200, 400, 404}, response.text
            if path.endswith(".json"):
                body = response.json()
                assert body["ok"] is (response.status_code == 200)
                assert body["ok"] or len(body["error"]) <= 400

        ask()
