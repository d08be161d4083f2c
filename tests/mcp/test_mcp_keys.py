"""A document is called by one key in every tool: whatever the key is, what a hit gives is what the others take."""

import pytest
from callers import ERAS, calling

from datasette_vec_gemini import connect, create_index, sync

pytestmark = pytest.mark.asyncio

TABLES = {
    "text": ("k text primary key", ["Rome, Italy", "a/b", "50% + more", "~2F", "naïve ☕", "https://e.org/?a=1&b=2"]),
    "nocase": ("k text primary key collate nocase", ["Abc", "a~B"]),
    "whole": ("k integer primary key", [1, -5, 2**53 + 1]),
    "real": ("k real primary key", [1.5, 2.0, -0.25]),
    "blob": ("k blob primary key", [b"\0\xff\x41", b"A", "text"]),
    "any": ("k primary key", [5, 1.5, "seven", b"\xfe"]),
    "several": ("k text, n integer, primary key (k, n)", [("x,y", 1), ("p/q", 2), ("~", 3)]),
    "none": ("k text", ["no key of its own"]),
}


@pytest.fixture
def keyed(path, open_library):
    """An index over a table of each kind of key."""
    conn = connect(path, create=True)
    for name, (columns, keys) in TABLES.items():
        conn.execute(f"create table {name} (body text, {columns})")
        for number, key in enumerate(keys):
            values = [f"document {number} of {name}", *(key if isinstance(key, tuple) else [key])]
            conn.execute(f"insert into {name} values ({', '.join('?' * len(values))})", values)
        conn.commit()
        sync(conn, create_index(conn, name, table=name, columns=["body"], embedder="hashing@64"))
    conn.close()
    return open_library()


def figures(path, table):
    conn = connect(path)
    found = conn.execute(f"select count(*), count(distinct body) from {table}").fetchone()
    conn.close()
    return found


@pytest.mark.parametrize("mode", ERAS)
@pytest.mark.parametrize("table", TABLES)
async def test_the_key_of_a_hit_reads_corrects_and_deletes_that_document(keyed, path, table, mode):
    count = len(TABLES[table][1])
    async with calling(keyed, mode=mode) as call:
        hits = (await call("search_documents", query="document", index=table, limit=50))["hits"]
        assert len({hit["key"] for hit in hits}) == len({hit["uri"] for hit in hits}) == count
        for number, hit in enumerate(hits):
            key = hit["key"]
            read = await call("get_document", key=key, index=table)
            assert (read["key"], read["uri"], read["text"]) == (key, hit["uri"], hit["snippet"])
            assert (await call.client.read_resource(hit["uri"])).contents[0].text == read["text"]
            others = (await call("find_similar", key=key, index=table))["hits"]
            assert {each["key"] for each in others} == {each["key"] for each in hits} - {key}
            text = f"document {number}, corrected"
            corrected = await call("add_documents", documents=[{"id": key, "text": text}], index=table)
            (item,) = corrected["items"]
            assert (item["status"], item["key"], item["uri"]) == ("updated", key, hit["uri"])
            assert (await call("get_document", key=key, index=table))["text"] == text
            refused = {"documents": [{"id": key, "text": "x"}], "index": table, "on_conflict": "error"}
            assert (await call.client.call_tool("add_documents", refused)).is_error
        assert figures(path, table) == (count, count)
        gone = await call("delete_documents", keys=[hit["key"] for hit in hits], index=table)
        assert {item["status"] for item in gone["items"]} == {"deleted"}
    assert figures(path, table) == (0, 0)


async def test_a_key_as_it_stands_in_its_column_is_understood_too(keyed):
    async with calling(keyed) as call:
        for key in TABLES["text"][1]:
            assert (await call("get_document", key=key, index="text"))["text"].endswith("of text")
        gone = await call("delete_documents", keys=["Rome, Italy", "Rome, Italy", "a,b,c", ""], index="text")
        assert [item["status"] for item in gone["items"]] == ["deleted", "absent", "absent", "absent"]


async def test_a_new_id_is_kept_as_it_was_given(memory, path):
    ids = ["C++, or C#?", "a/b", "~2F", "5", "x" * 1_000]
    async with calling(memory) as call:
        added = await call("add_documents", documents=[{"id": each, "text": f"about {each[:20]}"} for each in ids])
        assert {item["status"] for item in added["items"]} == {"created"}
        conn = connect(path)
        assert [key for (key,) in conn.execute("select id from documents order by rowid")] == ids
        conn.close()
        again = await call(
            "add_documents", documents=[{"id": item["key"], "text": "new words"} for item in added["items"]]
        )
        assert [item["key"] for item in again["items"]] == [item["key"] for item in added["items"]]
        assert {item["status"] for item in again["items"]} == {"updated"}
        long = await call.error("add_documents", documents=[{"id": "x" * 1_001, "text": "x"}])
        assert "the limit is 1,000" in long
