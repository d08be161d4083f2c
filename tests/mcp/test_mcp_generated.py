"""Whatever a client sends, a tool answers or says what is wrong; it never fails without a word."""

import asyncio

import pytest
from callers import calling
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from datasette_vec_gemini import connect, create_index, sync

texts = st.text(max_size=30) | st.sampled_from(["", " ", "fish", '"', "a AND", "NEAR(", "\0", "\x1b[0m", "x" * 3_000])
scalars = st.none() | st.booleans() | st.integers() | st.floats() | texts
anything = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3))
indexes = st.sampled_from(["notes", "places", "NOTES", "blobs", "pairs", "nope"]) | texts
keys = st.sampled_from(["1", 1, 7, "a~2Fb", "Rome~2C+Italy", "x,1", "00ff", "", "~", "%", "9" * 20, "inf,nan"]) | texts
columns = (
    st.sampled_from(["stars", "stars__gte", "stars__in", "slug__isnull", "id", "k", "n", "nope", "title__like"]) | texts
)
filters = st.dictionaries(columns, scalars | st.lists(scalars, max_size=3), max_size=3)
documents = st.fixed_dictionaries(
    {"text": texts},
    optional={
        "id": keys | scalars,
        "title": texts,
        "category": texts,
        "url": texts,
        "metadata": st.dictionaries(texts, anything, max_size=2),
        "fields": st.dictionaries(columns, anything, max_size=3),
    },
)

ARGUMENTS = {
    "search_documents": {
        "query": texts,
        "index": indexes,
        "limit": st.integers(-1, 60),
        "offset": st.integers(-1, 1_000),
        "filters": filters,
        "mode": st.sampled_from(["hybrid", "semantic", "keyword", "other"]),
        "min_score": st.floats(),
        "response_format": st.sampled_from(["concise", "detailed", "other"]),
    },
    "get_document": {
        "key": keys,
        "index": indexes,
        "offset": st.integers(-1, 100),
        "max_chars": st.integers(0, 60_000),
    },
    "find_similar": {"key": keys, "index": indexes, "limit": st.integers(-1, 60)},
    "list_indexes": {},
    "add_documents": {
        "documents": st.lists(documents | anything, max_size=4),
        "index": indexes,
        "on_conflict": st.sampled_from(["replace", "skip", "error", "other"]),
    },
    "delete_documents": {"keys": st.lists(keys, max_size=4), "index": indexes},
}


@pytest.fixture
def tables(shelves, path):
    """Two more indexes, over tables that take every value and that roll back what they refuse."""
    conn = connect(path)
    conn.executescript(
        """
        create table blobs (k blob primary key, body text);
        insert into blobs values (x'00ff', 'a blob'), ('7', 'a text'), (7, 'a number');
        create table pairs (k text, n integer, slug text unique on conflict rollback, body text, primary key (k, n));
        insert into pairs values ('x', 1, 'fish', 'a pair');
        create trigger no_x before insert on pairs when new.body = 'fish' begin select raise(rollback, 'no fish'); end;
        """
    )
    for name in ("blobs", "pairs"):
        sync(conn, create_index(conn, name, table=name, columns=["body"], embedder="hashing@64"))
    conn.close()
    return shelves


def inputs(tool):
    """Arguments that are mostly right, some of them missing, unknown or of another kind."""
    known = {name: st.one_of(strategy, strategy, strategy, anything) for name, strategy in ARGUMENTS[tool].items()}
    right = st.fixed_dictionaries(ARGUMENTS[tool])
    return st.one_of(right, st.fixed_dictionaries({}, optional=known), st.dictionaries(texts, anything, max_size=3))


def answers_or_explains(library, tool, examples):
    async def run():
        async with calling(library) as call:
            loop = asyncio.get_running_loop()

            @settings(
                max_examples=examples,
                deadline=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
                database=None,
            )
            @given(inputs(tool))
            def ask(arguments):
                calling_tool = call.client.session.call_tool(tool, arguments)
                answer = asyncio.run_coroutine_threadsafe(calling_tool, loop).result(60)
                (block,) = answer.content
                if answer.is_error and answer.structured_content is None:
                    assert block.text.startswith(f"Error executing tool {tool}: ")
                    assert "nobody foresaw" not in block.text
                    assert "SQLite could not" not in block.text
                else:
                    assert answer.structured_content is not None

            await asyncio.to_thread(ask)
            assert len((await call("list_indexes"))["indexes"]) == 4

    asyncio.run(run())


@pytest.mark.parametrize("tool", ARGUMENTS)
def test_a_tool_answers_or_explains(tables, tool):
    answers_or_explains(tables, tool, 40)


@pytest.mark.slow
@pytest.mark.parametrize("tool", ARGUMENTS)
def test_a_tool_answers_or_explains_a_thousand_times(tables, tool):
    answers_or_explains(tables, tool, 1_000)
