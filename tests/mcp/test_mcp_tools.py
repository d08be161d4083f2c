"""Laws of the tools, in both eras of the protocol: what they answer, refuse and leave as it was."""

import asyncio
import threading
import time

import jsonschema
import pytest
from callers import ERAS, calling
from fakes import Recorder
from mcp import Client
from mcp.shared.exceptions import MCPError
from mcp.types import ResourceTemplateReference

from datasette_vec_gemini import (
    NewDocument,
    Query,
    Stop,
    add_documents,
    connect,
    create_memory,
    find_index,
    load_embedder,
    search,
    sqlite3,
)
from datasette_vec_gemini.errors import EmbedderUnavailable
from mcp_server.catching_up import Refused, catch_up
from mcp_server.file import READERS
from mcp_server.server import build_server

pytestmark = pytest.mark.asyncio
both_eras = pytest.mark.parametrize("mode", ERAS)


@both_eras
async def test_what_is_added_is_found_in_the_next_call_with_who_added_it(memory, mode):
    async with calling(memory, mode=mode) as call:
        document = {"text": "strptime parses a date", "title": "strptime", "category": "time", "metadata": {"a": 1}}
        added = await call("add_documents", documents=[document, {"text": "a deque is quick at both ends"}])
        assert [item["status"] for item in added["items"]] == ["created", "created"]
        assert (added["pending"], added["notes"]) == (0, [])
        found = await call("search_documents", query="parse a date", response_format="detailed", limit=1)
        (hit,) = found["hits"]
        assert (hit["key"], hit["title"], hit["uri"]) == (
            added["items"][0]["key"],
            "strptime",
            added["items"][0]["uri"],
        )
        assert hit["fields"]["added_by"] == "the tester"
        assert await call("search_documents", query="date", filters={"added_by": "somebody"}) == {
            "index": "documents",
            "mode": "hybrid",
            "hits": [],
            "pending": 0,
            "notes": ["Nothing was found: ask with fewer filters, or other words"],
        }


@both_eras
async def test_an_answer_is_what_the_library_answers(shelves, path, mode):
    conn = connect(path)
    index = find_index(conn, "notes")
    async with calling(shelves, mode=mode) as call:
        for kind in ("hybrid", "semantic", "keyword"):
            expected = search(
                conn, index, Query("fish that sleeps", k=7, mode=kind, offset=2, filters={"stars__gte": 3})
            )
            found = await call(
                "search_documents",
                query="fish that sleeps", index="notes", mode=kind, limit=7, offset=2, filters={"stars__gte": 3},
            )  # fmt: skip
            assert [(hit["key"], hit["score"]) for hit in found["hits"]] == [
                (str(hit.key[0]), round(hit.score, 4)) for hit in expected
            ]
    conn.close()


@both_eras
async def test_every_answer_fits_its_schema_and_its_text_says_the_same(shelves, mode):
    async with calling(shelves, mode=mode) as call:
        schemas = {tool.name: tool.output_schema for tool in (await call.client.list_tools()).tools}
        calls = [
            ("search_documents", {"query": "fish", "index": "notes", "response_format": "detailed"}),
            ("search_documents", {"query": "nothing like it", "index": "notes", "mode": "keyword"}),
            ("get_document", {"key": "1", "index": "notes"}),
            ("find_similar", {"key": 1, "index": "notes"}),
            ("list_indexes", {}),
            ("add_documents", {"index": "notes", "documents": [{"text": "x", "title": "y"}, {"text": " "}]}),
            ("delete_documents", {"index": "notes", "keys": ["2", "no"]}),
        ]
        assert {name for name, _ in calls} == set(schemas)
        for name, arguments in calls:
            answer = await call.client.call_tool(name, arguments)
            jsonschema.validate(answer.structured_content, schemas[name])
            (block,) = answer.content
            for hit in answer.structured_content.get("hits", []):
                assert f"key={hit['key']} " in block.text
                assert hit["uri"] in block.text


@both_eras
async def test_a_long_answer_is_cut_and_says_how_to_get_more(shelves, mode):
    async with calling(shelves, mode=mode) as call:
        keys, offset = [], 0
        while offset is not None:
            found = await call(
                "search_documents", query="fish", index="notes", limit=50, offset=offset, response_format="detailed"
            )
            assert 0 < len(str(found)) < 12_000
            keys += [hit["key"] for hit in found["hits"]]
            offset = found.get("next_offset")
        assert len(keys) == len(set(keys)) == 60


async def test_a_long_document_comes_in_parts_that_make_it_whole(memory):
    text = "\n".join(f"line {n}\u200b of it" for n in range(3_000))
    async with calling(memory) as call:
        (item,) = (await call("add_documents", documents=[{"text": text, "id": "long"}]))["items"]
        parts, offset = [], 0
        while offset is not None:
            part = await call("get_document", key=item["key"], offset=offset, max_chars=7_001)
            assert part["total_chars"] == len(text)
            parts.append(part["text"])
            offset = part.get("next_offset")
        assert "".join(parts) == text.replace("\u200b", "▯")
        beyond = await call("get_document", key="long", offset=10**6)
        assert (beyond["text"], "smaller offset" in beyond["notes"][0]) == ("", True)


@pytest.mark.parametrize(
    ("tool", "arguments", "words"),
    [
        ("search_documents", {"query": "x"}, "several indexes: call again with index set to one of notes, places"),
        ("search_documents", {"query": "x", "index": "nope"}, "there is no index 'nope'; there are notes, places"),
        ("search_documents", {"query": "x", "colection": "notes"}, "colection: there is no such argument. The arguments are query, index"),
        ("search_documents", {"query": "x", "index": "notes", "limit": 51}, "limit: Input should be less than or equal to 50"),
        ("search_documents", {"query": "x", "index": "notes", "filters": {"color": 1}}, "no column 'color'; it has id, title"),
        ("search_documents", {"query": "x", "index": "notes", "filters": {"stars__like": 1}}, "operators are exact, not"),
        ("search_documents", {"query": "   ", "index": "notes"}, "the query is empty"),
        ("search_documents", {"query": "x", "index": "notes", "mode": "fuzzy"}, "'hybrid', 'semantic' or 'keyword'"),
        ("search_documents", {}, "query: Field required"),
        ("get_document", {"key": "99", "index": "notes"}, "notes has no row with the key '99' (its key is id). Take a key from search_documents"),
        ("get_document", {"key": "1,2", "index": "notes"}, "no row with the key '1,2' (its key is id)"),
        ("find_similar", {"key": "none", "index": "places"}, "no row with the key 'none'"),
        ("add_documents", {"index": "notes", "documents": []}, "documents: List should have at least 1 item"),
        ("add_documents", {"index": "notes", "documents": [{"txt": "x"}]}, "documents.0.txt: there is no such argument"),
        ("add_documents", {"index": "notes", "documents": [{"text": "x" * 600_000}] * 2}, "1,000,000 fit into one call"),
        ("add_documents", {"index": "notes", "documents": [{"text": "x", "title": "t", "fields": {"stars": 9}}]}, "stars INTEGER"),
        ("delete_documents", {"index": "notes", "keys": []}, "keys: List should have at least 1 item"),
    ],
)  # fmt: skip
async def test_an_error_says_what_was_wrong_and_what_to_do(shelves, tool, arguments, words):
    async with calling(shelves) as call:
        assert words.lower() in (await call.error(tool, **arguments)).lower()


async def test_keys_of_every_kind_come_back_as_they_were_given(shelves):
    async with calling(shelves) as call:
        for hit in (await call("search_documents", query="a city, a slash", index="places"))["hits"]:
            read = await call("get_document", key=hit["key"], index="places")
            assert read["key"] == hit["key"]
            resource = await call.client.read_resource(hit["uri"])
            assert resource.contents[0].text == read["text"]
        assert hit["key"] in {"Rome~2C+Italy", "a~2Fb"}


async def test_parts_go_to_the_tables_own_columns(shelves, path):
    async with calling(shelves) as call:
        documents = [
            {"text": "a new whale", "title": "Whale", "fields": {"stars": 5}},
            {"text": "double", "title": "t", "fields": {"slug": "fish-1"}},
        ]
        created, refused = (await call("add_documents", index="notes", documents=documents))["items"]
        assert (created["key"], created["status"]) == ("61", "created")
        assert "UNIQUE constraint failed: notes.slug" in refused["error"]
        skipped = [{"id": 61, "text": "another"}]
        assert (await call("add_documents", index="notes", documents=skipped, on_conflict="skip"))["items"][0][
            "status"
        ] == "unchanged"
        assert (await call("get_document", key="61", index="notes"))["text"] == "Whale\n\na new whale"


async def test_deleted_is_gone_from_every_tool(shelves):
    async with calling(shelves) as call:
        before = await call("search_documents", query="an old city", index="places")
        assert before["hits"][0]["key"] == "Rome~2C+Italy"
        gone = await call("delete_documents", keys=["Rome~2C+Italy", "Rome~2C+Italy"], index="places")
        assert [item["status"] for item in gone["items"]] == ["deleted", "absent"]
        after = await call("search_documents", query="an old city", index="places")
        assert [hit["key"] for hit in after["hits"]] == ["a~2Fb"]
        assert "no row" in await call.error("get_document", key="Rome~2C+Italy", index="places")


@both_eras
async def test_read_only_has_no_tools_that_write_and_cannot_be_talked_into_it(memory, open_library, mode):
    library = open_library(read_only=True)
    async with calling(library, mode=mode, writes=False) as call:
        names = {tool.name for tool in (await call.client.list_tools()).tools}
        assert names == {"search_documents", "get_document", "find_similar", "list_indexes"}
        assert "Unknown tool" in await call.error("add_documents", documents=[{"text": "x"}])
    async with calling(library, mode=mode) as call:
        assert "read-only" in await call.error("add_documents", documents=[{"text": "x"}])


async def test_what_tools_say_of_themselves_holds(memory):
    async with calling(memory) as call:
        tools = {tool.name: tool for tool in (await call.client.list_tools()).tools}
        hints = {name: tool.annotations for name, tool in tools.items()}
        assert {name for name, hint in hints.items() if hint.read_only_hint} == {
            "search_documents",
            "get_document",
            "find_similar",
            "list_indexes",
        }
        assert hints["add_documents"].destructive_hint
        assert hints["delete_documents"].destructive_hint
        assert hints["delete_documents"].idempotent_hint
        for tool in tools.values():
            assert 100 < len(tool.description) < 2_000
            assert tool.output_schema["type"] == "object"
            assert tool.input_schema["additionalProperties"] is False
            for schema in tool.input_schema["properties"].values():
                assert schema["description"]
                assert "anyOf" not in schema
                assert schema.get("default", 0) is not None


async def test_json_in_strings_and_numbers_for_keys_are_understood(shelves):
    async with calling(shelves) as call:
        found = await call("search_documents", query="fish", index="notes", filters='{"stars": 3}', limit="2")
        assert len(found["hits"]) == 2
        assert (await call("get_document", key=1, index="notes"))["key"] == "1"


async def test_a_filter_of_many_values_is_answered_or_explained(shelves):
    async with calling(shelves) as call:
        found = await call("search_documents", query="fish", index="notes", filters={"id__in": list(range(1, 5))})
        assert {hit["key"] for hit in found["hits"]} == {"1", "2", "3", "4"}
        many = {"id__in": list(range(400_000))}
        answer = await call.client.call_tool("search_documents", {"query": "fish", "index": "notes", "filters": many})
        assert "could not do this" not in answer.content[0].text


async def test_a_document_that_is_too_long_for_a_resource_is_read_in_parts(shelves, path):
    conn = connect(path)
    conn.execute("insert into places values ('long', ?)", ["word " * 50_000])
    conn.commit()
    conn.close()
    async with calling(shelves) as call:
        with pytest.raises(MCPError, match="get_document"):
            await call.client.read_resource("doc://places/long")
        assert (await call("get_document", key="long", index="places"))["total_chars"] == 250_000


async def test_min_score_leaves_weaker_hits_out(shelves):
    async with calling(shelves) as call:
        everything = await call("search_documents", query="fish 3", index="notes", limit=20)
        least = everything["hits"][4]["score"]
        kept = await call("search_documents", query="fish 3", index="notes", limit=20, min_score=least)
        assert kept["hits"] == [hit for hit in everything["hits"] if hit["score"] >= least]


async def test_one_index_can_be_served_alone(shelves, open_library):
    library = open_library(only="PLACES")
    async with calling(library) as call:
        assert [each["name"] for each in (await call("list_indexes"))["indexes"]] == ["places"]
        assert (await call("search_documents", query="city"))["index"] == "places"
        assert "no index 'notes'" in await call.error("search_documents", query="fish", index="notes")


async def test_a_library_that_is_read_only_cannot_write_by_any_statement(shelves, open_library):
    shelf = (await shelves.shelves())[0]
    for library in (shelves, open_library(read_only=True)):
        for statement in ("delete from notes", "create table t (a)", "pragma user_version = 7"):
            with pytest.raises(sqlite3.OperationalError, match=r"readonly|read-only"):
                await library.read(shelf, lambda conn, sql=statement: conn.execute(sql).fetchall())


async def test_a_model_that_cannot_be_had_leaves_words(shelves, path, open_library):
    def fails(name):
        raise EmbedderUnavailable(f"{name} is not here: pip install it")

    async with calling(open_library(load=fails)) as call:
        found = await call("search_documents", query="fish", index="notes")
        assert (found["mode"], bool(found["hits"])) == ("keyword", True)
        assert found["notes"] == ["Searched by exact words only: hashing@64 is not here: pip install it"]
        assert "pip install it" in await call.error("search_documents", query="fish", index="notes", mode="semantic")
        added = await call("add_documents", documents=[{"text": "a new bird", "title": "t"}], index="notes")
        assert (added["items"][0]["status"], added["pending"]) == ("created", 1)
        assert "cannot be searched yet: hashing@64 is not here" in added["notes"][0]


async def test_embedding_stops_between_two_batches(path, conn):
    index, slow, stop = create_memory(conn, embedder="hashing@64"), Recorder(), Stop()
    add_documents(conn, index, [NewDocument(text=f"document number {n}") for n in range(40)])
    slow.meanwhile = lambda: stop.request(Refused("the call was cancelled"))
    notes = catch_up(conn, index, model=slow, tell=lambda *_: None, stop=stop)
    assert notes == ["Everything is saved and found by words; by meaning not all of it yet: the call was cancelled"]
    assert slow.batches == [4]


async def test_what_a_cancelled_call_has_saved_stays_and_is_embedded_once(memory, open_library):
    slow = Recorder()
    begun, go_on = threading.Event(), threading.Event()

    def wait():
        begun.set()
        go_on.wait(30)

    slow.meanwhile = wait
    library = open_library(load=lambda _: slow)
    async with calling(library) as call:
        documents = [{"text": f"document number {n}"} for n in range(40)]
        adding = asyncio.create_task(call("add_documents", documents=documents))
        await asyncio.to_thread(begun.wait, 30)
        adding.cancel()
        await asyncio.gather(adding, return_exceptions=True)
        go_on.set()
        (index,) = (await call("list_indexes"))["indexes"]
        assert index["documents"] == 40
        await call("add_documents", documents=[{"text": "one more"}])
        assert (await call("list_indexes"))["indexes"][0]["pending"] == 0
        assert len(slow.texts) <= 45


@both_eras
async def test_resources_complete_and_say_when_there_is_none(shelves, mode):
    async with calling(shelves, mode=mode) as call:
        reference = ResourceTemplateReference(uri="doc://{index}/{key}")
        for given, expected in [("", ["notes", "places"]), ("PL", ["places"]), ("x", [])]:
            found = await call.client.complete(reference, {"name": "index", "value": given})
            assert found.completion.values == expected
        with pytest.raises(MCPError, match="no row with the key"):
            await call.client.read_resource("doc://places/nowhere")
        with pytest.raises(MCPError, match="no index"):
            await call.client.read_resource("doc://nope/1")


@both_eras
async def test_the_prompt_asks_for_citations(memory, mode):
    async with calling(memory, mode=mode) as call:
        prompt = await call.client.get_prompt("answer_with_citations", {"question": "Why?", "index": "documents"})
        text = prompt.messages[0].content.text
        assert text.endswith("Question: Why?")
        assert "[title](uri)" in text


async def test_chatgpts_tools_have_exactly_its_shape(shelves):
    async with calling(shelves, writes=False, chatgpt=True) as call:
        found = await call("search", query="an old city on seven hills")
        assert set(found) == {"results"}
        assert all(set(each) == {"id", "title", "url"} for each in found["results"])
        wanted = next(each for each in found["results"] if each["id"] == "places/Rome~2C+Italy")
        read = await call("fetch", id=wanted["id"])
        assert set(read) == {"id", "title", "text", "url", "metadata"}
        assert read["text"] == "an old city on seven hills"
        assert "no row" in await call.error("fetch", id="places/nowhere")


def held():
    """An event, and what loads no model before it."""
    loaded = threading.Event()

    def load(name):
        loaded.wait(30)
        return load_embedder(name)

    return loaded, load


async def test_a_model_that_is_still_loading_is_said_and_words_are_searched(memory, open_library):
    loaded, load = held()
    library = open_library(load=load, ready_seconds=1)
    async with calling(library) as call:
        found = await call("search_documents", query="fish")
        assert (found["mode"], "still being loaded" in found["notes"][0]) == ("keyword", True)
        assert "still being loaded" in await call.error("search_documents", query="fish", mode="semantic")
        added = await call("add_documents", documents=[{"text": "a fish"}])
        assert (added["items"][0]["status"], added["pending"]) == ("created", 1)
        assert "saved" in added["notes"][0]
        loaded.set()
        assert (await call("search_documents", query="fish"))["mode"] == "hybrid"
        assert (await call("add_documents", documents=[{"text": "a bird"}]))["pending"] == 0


async def test_searches_that_wait_for_a_model_keep_nobody_else_waiting(memory, open_library):
    loaded, load = held()
    library = open_library(load=load, ready_seconds=20)
    async with calling(library) as call:
        waiting = [asyncio.create_task(call("search_documents", query=f"fish {n}")) for n in range(20)]
        await asyncio.sleep(0.2)
        async with asyncio.timeout(5):
            await call("list_indexes")
            assert (await call("search_documents", query="fish", mode="keyword"))["hits"] == []
        assert not any(task.done() for task in waiting)
        loaded.set()
        assert {answer["mode"] for answer in await asyncio.gather(*waiting)} == {"hybrid"}


async def test_a_slow_model_tells_how_far_it_is_and_gives_up_in_time(memory, open_library):
    slow = Recorder()
    slow.meanwhile = lambda: time.sleep(0.3)
    library = open_library(load=lambda _: slow, sync_seconds=0.7)
    told = []

    async def hear(progress, total, message):
        told.append((progress, total, message))

    async with calling(library) as call:
        documents = [{"text": f"document number {n}"} for n in range(20)]
        answer = await call.client.call_tool("add_documents", {"documents": documents}, progress_callback=hear)
        added = answer.structured_content
        assert {item["status"] for item in added["items"]} == {"created"}
        assert 0 < added["pending"] < 20
        assert "next one goes on" in added["notes"][0]
        assert any("chunks embedded" in message for _, _, message in told)
        found = await call("search_documents", query="number 19", mode="keyword")
        assert found["hits"]


async def test_a_cancelled_search_is_interrupted_and_the_next_is_answered(shelves):
    shelf = next(each for each in await shelves.shelves() if each.name == "notes")
    endless = "with recursive n(i) as (select 1 union all select i + 1 from n) select count(*) from n"
    started = threading.Event()

    def work(conn):
        started.set()
        conn.execute(endless).fetchone()

    tasks = [asyncio.create_task(shelves.read(shelf, work)) for _ in range(2 * READERS)]
    await asyncio.to_thread(started.wait, 10)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    async with calling(shelves) as call:
        assert (await call("search_documents", query="fish", index="notes"))["hits"]


async def test_who_adds_at_once_waits_for_nobodys_model(memory):
    async with calling(memory) as call:
        answers = await asyncio.gather(
            *(call("add_documents", documents=[{"text": f"note {n} by {m}"} for m in range(3)]) for n in range(8))
        )
        assert all(item["status"] == "created" for answer in answers for item in answer["items"])
        found = await call("search_documents", query="note", limit=50, mode="keyword")
        assert len(found["hits"]) == 24
        assert (await call("list_indexes"))["indexes"][0]["pending"] == 0


async def test_a_file_without_indexes_says_what_to_do(path, open_library):
    conn = connect(path, create=True)
    conn.execute("create table t (a)")
    conn.close()
    async with calling(open_library()) as call:
        assert "datasette vec index" in (await call("list_indexes"))["notes"][0]
        assert "no index here" in await call.error("search_documents", query="x")


async def test_an_index_whose_table_is_gone_hides_no_other(shelves, path):
    conn = connect(path)
    conn.execute("drop table places")
    conn.close()
    async with calling(shelves) as call:
        notes, places = (await call("list_indexes"))["indexes"]
        assert notes["documents"] == 60
        assert places["description"].startswith("It cannot be searched: ")
        assert "'places'" in await call.error("search_documents", query="city", index="places")
        assert (await call("search_documents", query="fish", index="notes"))["hits"]


async def test_the_server_says_who_it_is(memory):
    from importlib.metadata import version

    server = build_server(memory, writes=True, names=["documents"])
    async with Client(server) as client:
        assert client.server_info.version == version("datasette-vec-gemini")
        assert "Indexes: documents." in client.instructions
    server = build_server(memory, writes=True, names=["n" * 63] * 100)
    async with Client(server) as client:
        assert len(client.instructions) < 2_000
