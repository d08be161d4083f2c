"""The status page of an index: who sees it, and what went wrong that SQL could not say."""

import contextlib
import time

import pytest
from fake_gemini import KEY, FakeGemini
from test_embed_gemini import LOCAL, STRANGER, index, served

from datasette_vec_gemini import connect

STATUS = "/data/-/vec/docs/status"


@pytest.fixture
def fake():
    with FakeGemini() as fake:
        yield fake


@pytest.fixture
def file(tmp_path, fake, monkeypatch):
    return index(tmp_path / "data.db", fake, monkeypatch)


def used(server):
    """What the page tells of the ledger, which is written a moment after an answer."""
    return server.json(f"{STATUS}.json")["spending"]["used"]


def until(condition):
    return any(condition() or time.sleep(0.1) for _ in range(100))


def test_it_tells_rows_model_spending_and_hidden_errors_newest_first(fake, file):
    with served(file, fake=fake) as server:
        assert server.sql("select embed_gemini('hello') is null")[0] == 200
        fake.always = "403"
        assert server.sql("select embed_gemini('world')")[0] == 400
        assert server.sql("select embed_gemini(x'00')")[0] == 400
        assert server.sql("select semantic_search('nothing', 'x')")[0] == 400
        status = server.json(f"{STATUS}.json")
        assert status["ok"]
        assert (status["rows"], status["indexed"], status["embedder"]) == (5, 5, "gemini")
        spending = status["spending"]
        errors = [item["error"] for item in spending["errors"]]
        assert "nothing" in errors[0]
        assert errors[1] == "embed_gemini takes text, this is a BLOB"
        assert errors[2].startswith("Google refuses the API key from GEMINI_API_KEY (403")
        assert len(errors) == 3
        assert (spending["key"], spending["daily_usd"], spending["sql_embedding"]) == ("GEMINI_API_KEY", 1.0, "auto")
        assert spending["elsewhere"] == ""
        assert until(lambda: [(row["model"], row["requests"]) for row in used(server)] == [("gemini-embedding-2", 2)])
        code, page = server.get(STATUS)
        assert code == 200
        for text in ("Status of the index docs", "that of GEMINI_API_KEY", "embed_gemini takes text", "(403"):
            assert text in page
        assert page.index("takes text") < page.index("(403")
        assert KEY not in page
        search = server.get("/data/-/vec/docs")[1]
        assert f'<a href="{STATUS}">Status of the index</a>' in search


def test_strangers_see_the_rows_but_neither_spending_nor_errors(fake, file):
    with served(file, fake=fake) as server:
        server.sql("select embed_gemini(x'00')")
        status = server.json(f"{STATUS}.json", headers=STRANGER)
        assert (status["rows"], status["spending"]) == (5, None)
        page = server.get(STATUS, headers=STRANGER)[1]
        assert "Status of the index docs" in page
        for text in ("GEMINI_API_KEY", "takes text", "$"):
            assert text not in page.partition("<footer")[0]


@pytest.mark.parametrize(
    "path", ["/data/-/vec/nothing/status", "/data/-/vec/nothing/status.json", "/x/-/vec/docs/status"]
)
def test_what_is_not_there_is_not_found(fake, file, path):
    with served(file, fake=fake) as server:
        assert server.get(path)[0] == 404


def test_who_may_not_view_the_table_finds_no_status(fake, file):
    config = {"databases": {"data": {"tables": {"docs": {"allow": {"id": "alice"}}}}}}
    with served(file, fake=fake, config=config) as server:
        for path in (STATUS, f"{STATUS}.json", "/data/-/vec/docs"):
            assert server.get(path, headers=LOCAL)[0] == 404


def test_failed_and_pending_rows_are_told(fake, file, monkeypatch):
    with contextlib.closing(connect(file)) as conn:
        conn.execute("insert into docs (title) values ('not indexed yet')")
        conn.commit()
    with served(file, fake=fake) as server:
        assert server.json(f"{STATUS}.json")["pending"] == 1
