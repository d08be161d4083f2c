"""The search over every index that one may see."""

import html
import re
import shlex
from contextlib import closing

import pytest
from click.testing import CliRunner
from pages import address, cookies, hrefs, plain

from datasette_vec_gemini import connect, create_index, sync
from datasette_vec_gemini.cli import vec


@pytest.fixture
def zoo(tmp_path, build):
    return build(
        tmp_path / "zoo.db",
        """
        create table pets (id integer primary key, body text);
        insert into pets values (1, 'parse a red fish'), (2, 'a blue bird');
        """,
        table="pets",
        name="pets",
        columns=["body"],
    )


@pytest.mark.asyncio
async def test_each_index_answers_with_its_own_ranking(site, library, zoo) -> None:
    datasette = site(library, zoo)
    body = (await datasette.client.get("/-/vec.json?q=parse+dates")).json()
    assert body.pop("took_ms") > 0
    groups = body.pop("groups")
    assert body == {
        "ok": True,
        "query": "parse dates",
        "mode": "hybrid",
        "indexes": [
            {"database": "library", "index": "docs", "table": "docs"},
            {"database": "zoo", "index": "pets", "table": "pets"},
        ],
    }
    for group, path, count in zip(groups, ("/library/-/vec/docs", "/zoo/-/vec/pets"), (3, 2), strict=True):
        own = (await datasette.client.get(f"{path}.json?q=parse+dates&_size=3")).json()
        assert plain(group["hits"]) == plain(own["hits"])
        assert len(group["hits"]) == count
        assert (group["url"], group["error"], group["notices"]) == (f"{path}?q=parse+dates", None, [])
    page = (await datasette.client.get("/-/vec?q=parse+dates")).text
    assert address(page, "All hits of docs") == "/library/-/vec/docs?q=parse+dates"
    assert address(page, "All hits of pets") == "/zoo/-/vec/pets?q=parse+dates"
    assert re.search(r'role="status">5 hits of 2 indexes in [\d.]+ ms', page)
    one = (await datasette.client.get("/zoo/-/vec.json?q=parse+dates")).json()
    assert [group["index"] for group in one["groups"]] == ["pets"]


@pytest.mark.asyncio
async def test_the_page_asks_nothing_by_itself_and_lists_what_there_is(site, library, zoo) -> None:
    datasette = site(library, zoo)
    page = (await datasette.client.get("/-/vec")).text
    assert address(page, "library / docs") == "/library/-/vec/docs"
    assert address(page, "zoo / pets") == "/zoo/-/vec/pets"
    assert 'role="search"' in page
    assert (await datasette.client.get("/-/vec.json")).json()["groups"] == []


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("parameters", "message"), [("_size=0", "_size is 0"), ("mode=best", "mode is 'best'"), ("_next=x", "_next is 'x'")]
)
async def test_a_wrong_request_is_refused_with_the_reason(site, library, parameters, message) -> None:
    datasette = site(library)
    response = await datasette.client.get(f"/-/vec.json?q=dates&{parameters}")
    assert response.status_code == 400
    assert message in response.json()["error"]
    assert (await datasette.client.get(f"/-/vec?q=dates&{parameters}")).status_code == 400


@pytest.mark.asyncio
async def test_an_index_without_its_model_does_not_silence_the_others(site, library, zoo) -> None:
    conn = connect(zoo)
    conn.execute("update _vec_indexes set embedder = 'absent'")
    conn.commit()
    conn.close()
    datasette = site(library, zoo)
    words = (await datasette.client.get("/-/vec.json?q=parse")).json()["groups"]
    assert [(group["mode"], len(group["hits"]), len(group["notices"])) for group in words] == [
        ("hybrid", 3, 0),
        ("keyword", 1, 1),
    ]
    meaning = (await datasette.client.get("/-/vec.json?q=parse&mode=semantic")).json()["groups"]
    assert [(len(group["hits"]), "no embedder" in (group["error"] or "")) for group in meaning] == [
        (3, False),
        (0, True),
    ]


@pytest.mark.asyncio
async def test_a_damaged_index_names_its_remedy_and_does_not_silence_the_others(site, library, zoo) -> None:
    with closing(connect(library)) as conn:
        conn.execute("drop table _vec_docs_1_queue")
    datasette = site(library, zoo)
    damaged, whole = (await datasette.client.get("/-/vec.json?q=parse")).json()["groups"]
    remedy = "datasette vec verify library.db docs --repair"
    assert damaged["error"] == f"a table of index 'docs' is gone: run `{remedy}`"
    assert whole["hits"]
    assert remedy in (await datasette.client.get("/-/vec?q=parse")).text
    response = await datasette.client.get("/library/-/vec/docs.json?q=parse")
    assert (response.status_code, response.json()["error"]) == (503, damaged["error"])
    assert CliRunner().invoke(vec, ["verify", str(library), "docs", "--repair"]).exit_code == 0
    assert (await datasette.client.get("/library/-/vec/docs.json?q=parse")).json()["hits"]


@pytest.mark.asyncio
async def test_only_what_one_may_see_is_searched_listed_or_led_to(site, library, zoo) -> None:
    metadata = {"databases": {"library": {"tables": {"docs": {"allow": {"id": "root"}}}}, "zoo": {"allow": False}}}
    datasette = site(library, zoo, metadata=metadata)
    for path in ("/-/vec?q=parse", "/-/vec.json?q=parse", "/-/vec", "/library/-/vec?q=parse"):
        text = (await datasette.client.get(path)).text
        assert not re.search(r"docs|pets|dates|fish", text)
    assert "/-/vec" not in (await datasette.client.get("/")).text
    assert (await datasette.client.get("/zoo/-/vec")).status_code == 404
    absent = await datasette.client.get("/absent/-/vec")
    assert absent.text == (await datasette.client.get("/zoo/-/vec")).text
    root = cookies(datasette)
    body = (await datasette.client.get("/-/vec.json?q=parse", cookies=root)).json()
    assert [group["index"] for group in body["groups"]] == ["docs"]
    assert address((await datasette.client.get("/", cookies=root)).text, "Semantic search") == "/-/vec"


@pytest.mark.asyncio
async def test_without_an_index_the_page_has_the_command_that_makes_one(site, tmp_path, monkeypatch) -> None:
    file = tmp_path / "my data.db"
    conn = connect(file, create=True)
    conn.executescript(
        """
        create table numbers (id integer primary key, n integer);
        create table "it's" (id integer primary key, title text, "full text" text);
        insert into "it's" values (1, 'fish', 'a red fish');
        """
    )
    conn.close()
    datasette = site(file)
    response = await datasette.client.get("/-/vec")
    assert response.status_code == 200
    (command,) = re.findall(r"<pre><code>([^<]*)</code></pre>", response.text)
    command = shlex.split(html.unescape(command))
    assert command == ["datasette", "vec", "index", "my data.db", "it's", "-c", "title", "-c", "full text"]
    assert str(tmp_path) not in response.text
    assert "Semantic search</a>" not in (await datasette.client.get("/")).text

    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(vec, [*command[2:], "--embedder", "hashing@64", "--name", "fish"])
    assert done.exit_code == 0, done.output
    body = (await site(file).client.get("/-/vec.json?q=fish")).json()
    assert [len(group["hits"]) for group in body["groups"]] == [1]


@pytest.mark.asyncio
async def test_who_may_index_is_led_to_where_that_is_done(site, library) -> None:
    datasette = site(library)
    anonymous = (await datasette.client.get("/-/vec")).text
    assert "/-/vec-index" not in anonymous
    if hasattr(datasette, "root_enabled"):
        datasette.root_enabled = True
    page = (await datasette.client.get("/-/vec", cookies=cookies(datasette))).text
    assert address(page, "Index a table of library") == "/library/-/vec-index"


@pytest.mark.asyncio
async def test_a_question_is_embedded_once_for_all_indexes_of_a_model(site, tmp_path, library) -> None:
    conn = connect(library)
    sync(conn, create_index(conn, "titles", table="docs", columns=["title"], embedder="hashing@64"))
    conn.close()
    datasette = site(library)
    groups = (await datasette.client.get("/-/vec.json?q=parse+dates&mode=semantic")).json()["groups"]
    assert [group["index"] for group in groups] == ["docs", "titles"]
    for group in groups:
        own = (
            await datasette.client.get(f"/library/-/vec/{group['index']}.json?q=parse+dates&mode=semantic&_size=3")
        ).json()
        assert plain(own["hits"]) == plain(group["hits"])


@pytest.mark.asyncio
async def test_links_keep_the_base_url(site, library) -> None:
    datasette = site(library, settings={"base_url": "/under/"})
    page = (await datasette.client.get("/-/vec?q=dates")).text
    links = [address(page, "All hits of docs"), address(page, "json"), *hrefs(page)]
    assert all(link.startswith("/under/") for link in links)
    assert 'action="/under/-/vec"' in page


@pytest.mark.asyncio
async def test_vectors_that_something_else_has_cut_name_the_same_remedy(site, library, zoo) -> None:
    with closing(connect(library)) as conn:
        conn.execute("update _vec_docs_1_chunks set embedding = x'00'")
        conn.commit()
    datasette = site(library, zoo)
    damaged, whole = (await datasette.client.get("/-/vec.json?q=parse")).json()["groups"]
    remedy = "datasette vec verify library.db --repair"
    assert damaged["error"] == f"an index is damaged: run `{remedy}`"
    assert whole["hits"]
    assert (await datasette.client.get("/library/-/vec/docs?q=parse")).status_code == 503
    repaired = CliRunner().invoke(vec, ["verify", str(library), "--repair"])
    assert repaired.exit_code == 0, repaired.output
    assert (await datasette.client.get("/library/-/vec/docs.json?q=parse&mode=semantic")).json()["hits"]
