"""The pages on which a table is indexed: what they offer, estimate and refuse, and that a GET is free."""

import contextlib
import hashlib
import re

import pytest
from fake_gemini import FakeGemini
from serving import Browser, served, table, until
from test_embed_gemini import settings

from datasette_vec_gemini import connect, create_index, find_index, indexes, sqlite3

pytestmark = pytest.mark.slow

PAGE = "/data/-/vec-index"
DOCS = f"{PAGE}/docs"
STATUS = "/data/-/vec/docs/status"
NO_WATCH = settings(sync_interval_seconds=0)


@pytest.fixture
def fake():
    with FakeGemini() as fake:
        yield fake


@pytest.fixture
def file(tmp_path):
    file = table(tmp_path / "data.db", 60)
    with contextlib.closing(sqlite3.connect(file)) as conn:
        conn.executescript(
            """
            create view seen as select id, body from docs;
            create table numbers (a integer, b real, c blob);
            insert into numbers values (1, 2.5, x'00');
            create table "odd ~ name, really?" ("a ""b"" <i>" text);
            insert into "odd ~ name, really?" values ('some <b>text</b> here');
            create table codes (code text);
            insert into codes values ('a1'), ('b2');
            """
        )
    return file


@pytest.fixture
def root(file):
    with served(file, config=NO_WATCH) as server:
        yield Browser(server)


def digest(file):
    return hashlib.sha256(file.read_bytes()).hexdigest(), sorted(path.name for path in file.parent.iterdir())


def checked(page, name):
    return re.findall(rf'name="{name}" value="([^"]*)" checked', page)


def test_a_table_is_indexed_to_the_end_through_the_forms_and_searched(file, root):
    assert f'href="{DOCS}"' in root.get(PAGE)
    page = root.get(DOCS)
    assert checked(page, "column") == ["title", "body"]
    assert checked(page, "embedder") == ["local"]
    page = root.get(DOCS, [("column", "title"), ("column", "body"), ("filter", "category"), ("name", "stories")])
    for text in ("60 of 60", "nothing: the model runs on this machine", "how to parse date number 1"):
        assert text in page
    code, location, _ = root.press(page, "Create and start")
    assert (code, location) == (303, "/data/-/vec/stories/status")
    done = until(lambda: (found := root.json(f"{location}.json"))["indexed"] == 60 and found)
    assert (done["rows"], done["pending"], done["failed"], done["columns"]) == (60, 0, 0, ["title", "body"])
    hits = root.json("/data/-/vec/stories.json", [("q", "title 7"), ("category", "data")])["hits"]
    assert hits[0]["key"] == [7]
    listed = root.get(PAGE)
    assert 'has the index <a href="/data/-/vec/stories">stories</a>' in listed


def test_gets_write_nothing_and_ask_no_service(file, fake):
    with served(file, fake=fake, config=NO_WATCH) as server:
        root = Browser(server)
        root.get("/")
        before = digest(file)
        for path in (PAGE, DOCS, f"{DOCS}.json", "/-/vec/status", "/-/vec/status.json", "/data/docs", "/data"):
            root.get(path)
        found = root.json(f"{DOCS}.json", [("column", "body"), ("embedder", "gemini")])["estimate"]
        assert (found["rows"], found["chunks"], found["is_exact"]) == (60, 60, True)
        assert 0 < found["usd"] < 0.01
        page = root.get(DOCS, [("column", "body"), ("embedder", "gemini"), ("dimensions", "256")])
        assert "These texts are sent to Google" in page
        assert digest(file) == before
    assert fake.requests == []


def test_an_estimate_is_what_create_index_and_sync_then_do(file, fake):
    with served(file, fake=fake, config=NO_WATCH) as server:
        root = Browser(server)
        fields = [("template", "{title}: {body}"), ("embedder", "gemini"), ("dimensions", "256"), ("name", "docs")]
        found = root.json(f"{DOCS}.json", fields)["estimate"]
        assert found["first"] == "Title 1: how to parse date number 1"
        page = root.get(DOCS, fields)
        assert root.press(page, "Create and start", max_usd="0.01")[:2] == (303, STATUS)
        until(lambda: root.json(f"{STATUS}.json")["indexed"] == 60)
    with contextlib.closing(connect(file)) as conn:
        index = find_index(conn, "docs")
        chunks = conn.execute("select count(*) from _vec_docs_1_chunks").fetchone()[0]
        usd = conn.execute("select usd from _vec_usage").fetchone()[0]
    assert (index.embedder, index.dimensions, index.template) == (
        "gemini:gemini-embedding-2@256",
        256,
        "{title}: {body}",
    )
    assert (found["chunks"], found["rows"]) == (chunks, 60)
    assert usd <= found["usd"] * 1.2 + 0.0001


@pytest.mark.parametrize("way", ["GET", "POST"])
@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ([("name", "docs")], "choose at least one column"),
        ([("column", "nothing")], "has no column"),
        ([("template", "{nothing}")], "has no column"),
        ([("column", "body"), ("name", "1st")], "cannot be the name of an index"),
        ([("column", "body"), ("name", "taken")], "already"),
        ([("column", "body"), ("quantize", "byte")], "quantize is"),
        ([("column", "body"), ("embedder", "nobody")], "there is no embedder"),
        ([("column", "body"), ("embedder", "hashing@63")], "multiple of 8"),
        ([("column", "body"), ("filter", "nothing")], "has no column"),
        ([("column", "body"), ("key", "id")], "has its own key"),
    ],
)
def test_a_wrong_choice_is_told_in_words_and_changes_nothing(tmp_path, way, fields, words):
    file = table(tmp_path / "data.db", 3)
    with contextlib.closing(connect(file)) as conn:
        create_index(conn, "taken", table="docs", columns=["body"], embedder="hashing@64")
        before = indexes(conn)
    with served(file, config=NO_WATCH) as server:
        root = Browser(server)
        root.get(DOCS)
        token = [("csrftoken", root.cookies.get("ds_csrftoken", ""))] if way == "POST" else []
        code, _, body = root.send(way, DOCS, [*token, *fields])
        assert code == 400
        assert words in body
        assert "Traceback" not in "".join(server.log)
    with contextlib.closing(connect(file)) as conn:
        assert indexes(conn) == before


def test_a_view_needs_a_key_and_gets_one(root):
    code, _, body = root.send("GET", f"{PAGE}/seen", [("column", "body")])
    assert code == 400
    assert "name the columns that identify a row" in body
    page = root.get(f"{PAGE}/seen", [("column", "body"), ("key", "id"), ("embedder", "hashing")])
    assert root.press(page, "Create and start")[0] == 303
    until(lambda: root.json("/data/-/vec/seen/status.json")["indexed"] == 60)


def test_what_is_proposed_is_prose_and_without_any_all_text(root):
    assert checked(root.get(f"{PAGE}/codes"), "column") == ["code"]
    page = root.get(f"{PAGE}/numbers")
    assert checked(page, "column") == []
    assert "No column of numbers has any text" in page


def test_odd_names_are_offered_and_indexed(root):
    path = re.search(rf'href="({PAGE}/odd[^"]*)"', root.get(PAGE))[1]
    page = root.get(path)
    assert checked(page, "column") == ["a &#34;b&#34; &lt;i&gt;"]
    assert "<b>text</b>" not in page
    page = root.get(path, [("column", 'a "b" <i>'), ("embedder", "hashing"), ("name", "odd")])
    assert root.press(page, "Create and start")[0] == 303
    until(lambda: root.json("/data/-/vec/odd/status.json")["indexed"] == 1)


def test_gemini_is_offered_where_there_is_a_key_and_hashing_last(file, fake):
    with served(file, config=NO_WATCH) as server:
        assert 'value="gemini"' not in Browser(server).get(DOCS)
    with served(file, fake=fake, config=NO_WATCH) as server:
        offered = re.findall(r'name="embedder" value="([^"]*)"', Browser(server).get(DOCS))
        assert (offered[:2], offered[-1]) == (["local", "gemini"], "hashing")


def test_the_budget_is_asked_for_and_without_it_nothing_is_made(file, fake):
    with served(file, fake=fake, config=NO_WATCH) as server:
        root = Browser(server)
        page = root.get(DOCS, [("column", "body"), ("embedder", "gemini")])
        for typed in ("", "a lot", "-1", "inf"):
            code, _, body = root.press(page, "Create and start", max_usd=typed)
            assert code == 400
            assert "dollars" in body
            assert "What it takes" in body
        assert root.json("/-/vec/status.json")["databases"] == []
    assert fake.requests == []


@pytest.mark.parametrize("actor", ["bob", None])
def test_who_may_not_index_gets_the_same_answer_as_for_what_is_not_there(file, actor):
    with served(file, config=NO_WATCH) as server:
        browser = Browser(server, actor)
        answers = [browser.send("GET", path) for path in (PAGE, DOCS, f"{PAGE}/nothing", "/nobody/-/vec-index/docs")]
        assert {code for code, _, _ in answers} == {404}
        assert len({re.sub(r"\s+", " ", body.partition("<h1>")[2]) for _, _, body in answers}) == 1
        assert PAGE not in browser.get("/data") + browser.get("/data/docs")
        root = Browser(server)
        assert root.send("GET", f"{PAGE}/nothing")[0] == 404


def test_the_menus_lead_there(root):
    assert f'href="{PAGE}"' in root.get("/data")
    assert f'href="{DOCS}"' in root.get("/data/docs")
    assert f'href="{PAGE}/seen"' in root.get("/data/seen")


def test_who_may_index_one_table_sees_that_one_only(file):
    of_docs = {"databases": {"data": {"tables": {"docs": {"permissions": {"vec-index": {"id": "alice"}}}}}}}
    with served(file, config=NO_WATCH | of_docs) as server:
        alice = Browser(server, "alice")
        assert [item["table"] for item in alice.json(f"{PAGE}.json")["tables"]] == ["docs"]
        assert alice.send("GET", f"{PAGE}/codes")[0] == 404
        assert alice.send("GET", DOCS)[0] == 200
