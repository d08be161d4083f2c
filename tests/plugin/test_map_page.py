"""The map of an index, its JSON twin and its list, driven through Datasette's own client, on 0.65 and on 1.0."""

import html
import json
import re
from contextlib import closing
from urllib.parse import urlencode

import pytest

from datasette_vec_gemini import Query, connect, find_index, search
from datasette_vec_gemini.keys import key_to_path
from datasette_vec_gemini.mapping import project
from datasette_vec_gemini.mapping.plotting import map_points
from datasette_vec_gemini.plugin.drawing import SHAPES
from datasette_vec_gemini.store import picture

MAP = "/library/-/vec/docs/map"
ATTACK = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&amp;"


def listed(page: str) -> list[tuple[str, str]]:
    """Addresses and titles of the list, in order."""
    part = page.partition('class="vec-map-list"')[2]
    return [
        (html.unescape(a), html.unescape(t))
        for a, t in re.findall(r'<a href="([^"]*)">([^<]*)</a></(?:span|h3)>', part)
    ]


def paths(page: str) -> dict[str, int]:
    """Class -> how many points the picture has of it."""
    drawn = re.search(r"<figure.*?<svg.*?</svg>", page, re.DOTALL)[0]
    return {name: path.count("M") for name, path in re.findall(r'<path class="(vec-c\d)"[^>]* d="([^"]*)"', drawn)}


@pytest.mark.asyncio
async def test_json_has_every_point_as_it_is_stored(site, library) -> None:
    response = await site(library).client.get(f"{MAP}.json?_color=category")
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json; charset=utf-8"
    body = response.json()
    with closing(connect(library, read_only=True)) as conn:
        index = find_index(conn, "docs")
        shown, axes = map_points(conn, index, color="category"), picture.axes(conn, index)
    assert body == {
        "ok": True,
        "index": "docs",
        "variance": [round(part, 4) for part in axes.variance],
        "documents": 25,
        "count": 25,
        "shown": 25,
        "sampled": False,
        "columns": ["category", "year"],
        "color": {
            "column": "category",
            "values": [
                {"label": "time", "count": 17, "filters": {"category": "time"}},
                {"label": "data", "count": 8, "filters": {"category": "data"}},
            ],
        },
        "row_url": "/library/docs/",
        "points": [[round(p.x, 4), round(p.y, 4), p.category, [*p.key], p.title] for p in shown.points],
        "query": None,
        "hits": [],
        "pending": 0,
        "notices": [],
    }
    assert 0 < sum(body["variance"]) <= 1


@pytest.mark.asyncio
async def test_the_page_works_without_scripts_and_its_list_is_the_pictures_equal(site, library) -> None:
    datasette = site(library)
    page = (await datasette.client.get(f"{MAP}?_color=category")).text
    points = (await datasette.client.get(f"{MAP}.json?_color=category")).json()["points"]
    assert paths(page) == {"vec-c0": 17, "vec-c1": 8}
    assert page.count(SHAPES[0]) == 17 + 1  # and in the legend
    across = [(f"/library/docs/{p[3][0]}", p[4]) for p in sorted(points, key=lambda p: (p[0], p[1], p[3]))]
    assert sorted(listed(page)) == sorted(across)
    assert re.search(r'role="img" aria-label="Map of 25 documents of docs, coloured by category\.', page)
    assert f'data-url="{MAP}.json?_color=category"' in page
    (script,) = re.findall(r'<script src="(/-/static-plugins/datasette-vec-gemini/map\.js[^"]*)" defer></script>', page)
    assert (await datasette.client.get(script)).status_code == 200
    ours = page.partition('<section class="content">')[2].partition("<footer")[0]
    assert "<script" not in ours
    assert not re.search(r'\s(style|on\w+)="', ours)


@pytest.mark.asyncio
async def test_pages_of_the_list_have_every_document_once(site, library) -> None:
    datasette, found, path = site(library), [], f"{MAP}?_size=10"
    while path:
        page = (await datasette.client.get(path)).text
        assert f'<ol class="vec-listed" start="{len(found) + 1}">' in page
        found += listed(page)
        following = re.search(r'<a class="vec-next" href="([^"]*)"', page)
        path = following and html.unescape(following[1])
    assert len(found) == len(set(found)) == 25


@pytest.mark.asyncio
@pytest.mark.parametrize("mode", ["hybrid", "semantic", "keyword"])
async def test_a_question_is_a_star_among_its_hits(site, library, mode) -> None:
    datasette = site(library)
    asked = urlencode({"q": "parse dates", "mode": mode, "_size": 4})
    body = (await datasette.client.get(f"{MAP}.json?{asked}")).json()
    with closing(connect(library, read_only=True)) as conn:
        index = find_index(conn, "docs")
        hits = [hit.to_dict() for hit in search(conn, index, Query("parse dates", k=4, mode=mode))]
        places = {p.key: (round(p.x, 4), round(p.y, 4)) for p in map_points(conn, index).points}
        axes = picture.axes(conn, index)
    own = [{name: value for name, value in hit.items() if name in hits[0]} for hit in body["hits"]]
    assert own == hits
    for hit in body["hits"]:
        assert (hit["x"], hit["y"]) == pytest.approx(places[tuple(hit["key"])], abs=1e-4)
    page = (await datasette.client.get(f"{MAP}?{asked}")).text
    assert [address for address, _ in listed(page)] == [f"/library/docs/{hit['key'][0]}" for hit in hits]
    assert page.count('class="vec-ring"') == len({hit["number"] for hit in body["hits"]})
    assert ('<polygon class="vec-star" points=' in page) == (mode != "keyword")
    if mode == "keyword":
        assert body["query"] is None
        assert "The question has no star" in body["notices"][0]
        assert "The question has no star" in page
    else:
        from datasette_vec_gemini import load_embedder

        x, y = project(axes, load_embedder("hashing@64").embed_query("parse dates"))
        assert (body["query"]["x"], body["query"]["y"]) == pytest.approx((x, y), abs=1e-4)


@pytest.mark.asyncio
async def test_filters_leave_their_points_and_can_be_taken_away(site, library) -> None:
    datasette = site(library)
    body = (await datasette.client.get(f"{MAP}.json?category=data&_color=category")).json()
    assert (body["count"], len(body["points"])) == (8, 8)
    page = (await datasette.client.get(f"{MAP}?category=data&_color=category&year__gte=2010")).text
    removals = [html.unescape(href) for href in re.findall(r'<a href="([^"]*)" aria-label="Remove', page)]
    assert removals == [f"{MAP}?_color=category&year__gte=2010", f"{MAP}?category=data&_color=category"]
    assert ("_color", "category") in re.findall(r'<input type="hidden" name="([^"]*)" value="([^"]*)">', page)


@pytest.mark.asyncio
async def test_a_colour_of_the_legend_leads_to_its_points(site, library) -> None:
    datasette = site(library)
    for color in ("category", "year"):
        page = (await datasette.client.get(f"{MAP}?_color={color}&title__not=x")).text
        legend = page.partition('class="vec-map-legend"')[2].partition("</ul>")[0]
        links = re.findall(r'<a href="([^"]*)">[^<]*</a></span> <span class="vec-count">(\d+)<', legend)
        assert len(links) == {"category": 2, "year": 6}[color]
        for address, count in links:
            body = (await datasette.client.get(html.unescape(address).replace("/map?", "/map.json?"))).json()
            assert body["count"] == int(count)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ("_color=body", "'body' is no column to colour by; there are category, year"),
        ("_color=nothing", "'nothing' is no column"),
        ("colour=red", "has no column 'colour'"),
        ("_size=0", "_size can be 1 to 1,000"),
        ("_next=-1", "_next is -1; it can be 0 or more"),
        ("_size=x", "_size is 'x'"),
        ("q=x&mode=best", "mode is 'best'"),
    ],
)
async def test_a_wrong_request_is_refused_with_the_reason(site, library, parameters, message) -> None:
    datasette = site(library)
    answer = await datasette.client.get(f"{MAP}.json?{parameters}")
    assert (answer.status_code, answer.json()["ok"]) == (400, False)
    assert message in answer.json()["error"]
    page = await datasette.client.get(f"{MAP}?{parameters}")
    assert page.status_code == 400
    assert message in html.unescape(page.text)


@pytest.mark.asyncio
async def test_without_a_map_the_command_that_draws_one_is_said(site, library) -> None:
    with closing(connect(library)) as conn:
        conn.execute("delete from _vec_docs_1_axes")
        conn.commit()
    before = library.read_bytes()
    datasette = site(library)
    page = await datasette.client.get(f"{MAP}?q=dates")
    assert page.status_code == 200
    assert "no map yet; a sync draws it: datasette vec sync library.db docs" in page.text
    assert str(library.parent) not in page.text
    body = (await datasette.client.get(f"{MAP}.json?q=dates")).json()
    assert (body["variance"], body["points"], body["query"]) == (None, [], None)
    assert "no map yet" in body["notices"][0]
    assert library.read_bytes() == before


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "metadata",
    [{"databases": {"library": {"tables": {"docs": {"allow": {"id": "root"}}}}}}, {"allow": {"id": "root"}}],
    ids=["table", "instance"],
)
async def test_a_private_map_is_answered_like_one_that_does_not_exist(site, library, metadata) -> None:
    datasette = site(library, metadata=metadata)
    for ending in ("", "?q=dates", ".json", ".json?_color=nothing"):
        answers = [
            await datasette.client.get(f"{path}{ending}")
            for path in (MAP, "/library/-/vec/absent/map", "/absent/-/vec/docs/map")
        ]
        assert [answer.status_code for answer in answers] == [404] * 3
        assert len({(answer.headers["content-type"], answer.text) for answer in answers}) == 1
    cookies = {"ds_actor": datasette.sign({"a": {"id": "root"}}, "actor")}
    assert len((await datasette.client.get(f"{MAP}.json", cookies=cookies)).json()["points"]) == 25


@pytest.mark.asyncio
async def test_the_tables_of_the_map_are_as_private_as_their_source(site, library) -> None:
    datasette = site(library, metadata={"databases": {"library": {"tables": {"docs": {"allow": {"id": "root"}}}}}})
    for name in ("map", "axes"):
        assert (await datasette.client.get(f"/library/_vec_docs_1_{name}.json")).status_code in {403, 404}


@pytest.mark.asyncio
async def test_no_text_of_a_visitor_or_a_row_becomes_markup(site, tmp_path, build) -> None:
    quoted = ATTACK.replace("'", "''")
    file = build(
        tmp_path / "evil.db",
        f"""
        create table docs (id integer primary key, title text, body text, "{ATTACK.replace('"', '""')}" text);
        insert into docs values (1, '{quoted}', '{quoted} one', '{quoted}'), (2, '{quoted}', 'two', '</script>');
        """,
        columns=["title", "body"],
    )
    datasette = site(file)
    for parameters in ({"_color": ATTACK}, {"_color": ATTACK, "q": ATTACK}, {ATTACK: ATTACK}, {"_color": f"{ATTACK}x"}):
        page = (await datasette.client.get(f"/evil/-/vec/docs/map?{urlencode(parameters)}")).text
        assert "alert(1)" in html.unescape(re.sub(r"</?mark>", "", page))
        assert "<script>alert" not in page
        assert "<img" not in page
        assert "\"'>" not in page
    answer = await datasette.client.get(f"/evil/-/vec/docs/map.json?{urlencode({'_color': ATTACK})}")
    assert answer.headers["content-type"].startswith("application/json")
    assert {point[4] for point in answer.json()["points"]} == {ATTACK[:59] + "…"}


@pytest.mark.asyncio
async def test_keys_lead_to_their_rows_however_a_script_reads_them(site, tmp_path, build) -> None:
    """The page's script spells plain keys itself; of others, a number beyond 2**53 say, the JSON has the address."""
    file = build(
        tmp_path / "keys.db",
        """
        create table docs (a, b text, body text, primary key (a, b));
        insert into docs values
            (1, 'x/y', 'one'), (9007199254740993, 'z', 'two'), (1.5, 'z', 'three'), (x'00', 'z', 'four');
        """,
        columns=["body"],
    )
    body = (await site(file).client.get("/keys/-/vec/docs/map.json")).json()
    assert body["row_url"] == "/keys/docs/"
    assert {json.dumps(point[3]): point[5:] for point in body["points"]} == {
        '[1, "x/y"]': [],
        '[9007199254740993, "z"]': [key_to_path((9007199254740993, "z"))],
        '[1.5, "z"]': ["1~2E5,z"],
        '["00", "z"]': [None],
    }


@pytest.mark.asyncio
@pytest.mark.parametrize("rows", [4, 12])
async def test_infinite_numbers_of_the_colour_are_valid_json(site, tmp_path, build, rows) -> None:
    values = ", ".join(f"({n}, 'word {n}', {'9e999' if n == 1 else '-9e999' if n == 2 else n})" for n in range(rows))
    script = f"create table docs (id integer primary key, body text, f real); insert into docs values {values}"
    file = build(tmp_path / "infinite.db", script, columns=["body"], filter_columns=["f"])
    text = (await site(file).client.get("/infinite/-/vec/docs/map.json")).text
    body = json.loads(text, parse_constant=pytest.fail)
    found = {value["label"]: value["filters"] for value in body["color"]["values"]}
    assert {label: found[label] for label in ("infinity", "-infinity")} == {"infinity": None, "-infinity": None}


@pytest.mark.asyncio
async def test_the_page_of_many_documents_stays_small(site, tmp_path, build) -> None:
    script = """
        create table docs (id integer primary key, title text, body text, category text);
        with recursive numbers (n) as (select 1 union all select n + 1 from numbers where n < 3000)
        insert into docs select n, 'A title that is rather long, ' || n || ', and goes on and on and on and on',
            'word' || (n % 37) || ' word' || (n % 11), 'category ' || (n % 8) from numbers
        """
    file = build(tmp_path / "many.db", script, columns=["body"], filter_columns=["category"])
    page = (await site(file).client.get("/many/-/vec/docs/map")).text
    assert 1_000 < sum(paths(page).values()) < 3_000
    assert len(page.encode()) <= 60 * 1024


@pytest.mark.asyncio
async def test_a_name_that_is_taken_is_said_to_prevent_the_map(site, library) -> None:
    with closing(connect(library)) as conn:
        conn.executescript("drop table _vec_docs_1_map; create view _vec_docs_1_map as select 1")
    page = await site(library).client.get(f"{MAP}?q=dates")
    assert page.status_code == 200
    assert "a name that it needs is taken in this database; a rebuild takes others: datasette vec rebuild" in page.text


@pytest.mark.asyncio
async def test_a_view_is_drawn_without_links(site, tmp_path, build) -> None:
    file = build(
        tmp_path / "views.db",
        """
        create table t (id integer primary key, title text, body text);
        insert into t values (1, 'One', 'first'), (2, 'Two', 'second');
        create view docs as select * from t;
        """,
        columns=["body"],
        key=["id"],
    )
    datasette = site(file)
    body = (await datasette.client.get("/views/-/vec/docs/map.json")).json()
    assert (body["row_url"], len(body["points"])) == (None, 2)
    page = (await datasette.client.get("/views/-/vec/docs/map")).text
    assert listed(page) == []
    assert ">One<" in page


@pytest.mark.asyncio
async def test_a_file_that_cannot_be_written_shows_its_map(site, library) -> None:
    datasette = site(immutables=[str(library)])
    assert len((await datasette.client.get(f"{MAP}.json")).json()["points"]) == 25


@pytest.mark.asyncio
async def test_a_map_that_takes_too_long_is_said_to(site, tmp_path, build) -> None:
    file = build(
        tmp_path / "slow.db",
        """
        create table t (id integer primary key, body text);
        insert into t values (1, 'one'), (2, 'two'), (3, 'three');
        create view docs as select id, body, (
            with recursive numbers (n) as (select id union all select n + 1 from numbers where n < 100000000)
            select count(*) from numbers
        ) as slow from t;
        """,
        columns=["body"],
        key=["id"],
    )
    datasette = site(file, settings={"sql_time_limit_ms": 900})
    assert len((await datasette.client.get("/slow/-/vec/docs/map.json")).json()["points"]) == 3
    answer = await datasette.client.get("/slow/-/vec/docs/map.json?_color=slow")
    assert (answer.status_code, answer.json()["ok"]) == (503, False)
    assert "longer than 900 ms" in answer.json()["error"]
