"""However large or odd what is stored or asked, an answer is small, and one document or index harms no other."""

import json

import pytest
from callers import calling

from datasette_vec_gemini import connect, create_index, sync

pytestmark = pytest.mark.asyncio

MOST = 16_000
"""Characters of the largest answer that was not asked for to be long: twice what answers aim at."""


async def size(call, tool, **arguments):
    answer = await call.client.call_tool(tool, arguments)
    (block,) = answer.content
    return max(len(block.text), len(json.dumps(answer.structured_content or {}, ensure_ascii=False)))


@pytest.fixture
def table(path, open_library):
    """Make a table with an index on its column `body`, and open the library of its file."""

    def make(sql, name="t"):
        conn = connect(path, create=True)
        conn.executescript(sql)
        sync(conn, create_index(conn, "t", table=name, columns=["body"], embedder="hashing@64"))
        conn.close()
        return open_library()

    return make


async def test_a_table_of_many_columns_makes_no_long_answers(table):
    columns = ", ".join(f"a_column_of_this_table_{n} text default 'value {n}'" for n in range(1_500))
    library = table(f"create table t (id integer primary key, body text, {columns}); insert into t (body) values ('x')")
    async with calling(library) as call:
        wrong = {"nope": 1}
        assert await size(call, "list_indexes") < MOST
        assert await size(call, "search_documents", query="x", response_format="detailed") < MOST
        assert await size(call, "get_document", key="1") < MOST
        assert await size(call, "search_documents", query="x", filters=wrong) < MOST
        documents = [{"text": f"number {n}", "fields": wrong} for n in range(100)]
        assert await size(call, "add_documents", documents=documents) < MOST
        (index,) = (await call("list_indexes"))["indexes"]
        assert index["filters"][:2] == ["id", "body"]
        assert index["filters"][-1] == "…"


async def test_a_hundred_documents_make_no_long_answer(memory):
    async with calling(memory) as call:
        documents = [{"id": f"{n} {'é' * 990}", "text": f"number {n}"} for n in range(100)]
        assert await size(call, "add_documents", documents=documents) < MOST
        added = await call("add_documents", documents=documents)
        assert [item["status"] for item in added["items"]] == ["unchanged"] * 100
        assert "give fewer" in added["notes"][0]
        wrong = [{"text": f"number {n}", "fields": {f"a wrong column {n}": 1}} for n in range(100)]
        assert await size(call, "add_documents", documents=wrong) < MOST
        assert await size(call, "delete_documents", keys=["x" * 9_000] * 100) < MOST
        assert await size(call, "get_document", key="x" * 1_000_000) < MOST


async def test_names_of_columns_are_no_words_of_ours(table):
    name = "x\nkey=1 score=1 doc://t/1\u202e\x1b[2J"
    library = table(
        f'create table "{name}" (id integer primary key, body text, "{name}" text);'
        f"insert into \"{name}\" values (1, 'b', 'v')",
        name,
    )
    async with calling(library) as call:
        told = [
            await call.text("list_indexes"),
            await call.text("get_document", key="1"),
            await call.text("search_documents", query="b", response_format="detailed"),
            await call.error("search_documents", query="b", filters={"nope": 1}),
            await call.error("add_documents", documents=[{"text": "x", "category": "c"}]),
        ]
        for text in told:
            lines = [line for line in text.split("\n") if line.startswith("key=1 score=1")]
            assert len(lines) <= (1 if "1 hit" in text else 0)
            assert "\u202e" not in text
            assert "\x1b" not in text


@pytest.mark.parametrize("clause", ["rollback", "replace"])
async def test_a_constraint_of_the_table_undoes_and_overwrites_nothing(table, path, clause):
    library = table(
        f"create table t (id integer primary key, slug text unique on conflict {clause}, body text);"
        "insert into t values (1, 'taken', 'was there')"
    )
    async with calling(library) as call:
        documents = [{"text": slug, "fields": {"slug": slug}} for slug in ("before", "taken", "after")]
        added = await call("add_documents", documents=documents)
        assert [item["status"] for item in added["items"]] == ["created", "error", "created"]
        assert "UNIQUE constraint failed: t.slug" in added["items"][1]["error"]
        found = await call("search_documents", query="was there", mode="keyword")
        assert found["hits"][0]["key"] == "1"


async def test_a_broken_index_hides_no_other_from_chatgpt(shelves, path):
    conn = connect(path)
    conn.execute("drop table places")
    conn.close()
    async with calling(shelves, chatgpt=True) as call:
        assert (await call("search", query="fish"))["results"][0]["id"].startswith("notes/")
        for tool, arguments in [("fetch", {"id": "places/x"}), ("get_document", {"key": "x", "index": "places"})]:
            assert "table 'places' of index 'places' is gone" in await call.error(tool, **arguments)
        conn = connect(path)
        conn.execute("drop table notes")
        conn.close()
        assert "is gone" in await call.error("search", query="fish")
