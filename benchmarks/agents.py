"""The MCP server beside the Python API and the bare model: a start, searches, and a hundred documents at once."""

import asyncio
import os
import statistics
import sys
import time
from contextlib import closing
from pathlib import Path

from mcp import Client, StdioServerParameters

from datasette_vec_gemini import Query, connect, create_index, find_index, load_embedder, search, sync
from datasette_vec_gemini.demo.rows import standard_library
from mcp_server.file import FileLibrary, make_memory
from mcp_server.server import build_server

from .corpus import documentation
from .questions import QUESTIONS
from .targets import finish, report

STARTS, ROWS, FEW_ROWS, BATCHES, BATCH = 5, 10_000, 2_000, 4, 100


async def started(path: Path) -> float:
    """Seconds from the start of the process to the list of its tools."""
    began = time.perf_counter()
    server = StdioServerParameters(command=sys.executable, args=["-m", "mcp_server", str(path)], env=dict(os.environ))
    async with Client(server, mode="legacy") as client:
        await client.list_tools()
        return time.perf_counter() - began


async def searched(path: Path) -> tuple[float, float, float]:
    """Milliseconds of a search through a client over stdio, of the same one through the Python API, and of a bare call.

    They take turns at going first.
    """
    server = StdioServerParameters(command=sys.executable, args=["-m", "mcp_server", str(path)], env=dict(os.environ))
    times: dict[str, list[float]] = {"stdio": [], "python": [], "bare": []}
    with closing(connect(path, read_only=True)) as conn:
        index = find_index(conn, "docs")
        search(conn, index, Query("load the model"))
        async with Client(server) as client:
            await client.call_tool("search_documents", {"query": "load the model", "mode": "semantic"})
            for number, question in enumerate(QUESTIONS[:100]):
                for way in ("stdio", "python") if number % 2 else ("python", "stdio"):
                    began = time.perf_counter()
                    if way == "stdio":
                        await client.call_tool("search_documents", {"query": question})
                    else:
                        search(conn, index, Query(question))
                    times[way].append(time.perf_counter() - began)
                began = time.perf_counter()
                await client.call_tool("list_indexes", {})
                times["bare"].append(time.perf_counter() - began)
    stdio, python, bare = (1000 * statistics.median(each) for each in times.values())
    return stdio, python, bare


async def added(path: Path, texts: list[str]) -> tuple[float, float]:
    """Seconds for batches of documents through the tool, and for the model alone on the same texts, in turn."""
    make_memory(path, embedder="local")
    library, model = FileLibrary(path), load_embedder("local")
    library.start()
    model.embed_query("load it")
    whole = bare = 0.0
    async with Client(build_server(library, writes=True)) as client:
        await client.call_tool("search_documents", {"query": "load the model", "mode": "semantic"})
        for number in range(BATCHES):
            documents = [{"text": text} for text in texts[number * BATCH : (number + 1) * BATCH]]
            began = time.perf_counter()
            answer = await client.call_tool("add_documents", {"documents": documents})
            whole += time.perf_counter() - began
            keys = [item["key"] for item in answer.structured_content["items"]]
            assert len(set(keys)) == BATCH
            with closing(connect(path, read_only=True)) as conn:
                marks = ", ".join("?" * BATCH)
                chunks = [
                    text for (text,) in conn.execute(f"select text from _vec_documents where id in ({marks})", keys)
                ]
            began = time.perf_counter()
            model.embed_documents(chunks)
            bare += time.perf_counter() - began
    library.close()
    return whole, bare


def built(path: Path, count: int) -> Path:
    """A file with an index by the local model over so many rows."""
    with closing(connect(path, create=True)) as conn:
        conn.execute("create table docs (id integer primary key, name text, module text, kind text, doc text)")
        rows = documentation(count)
        conn.executemany("insert into docs (name, module, kind, doc) values (?, ?, ?, ?)", rows)
        conn.commit()
        sync(conn, create_index(conn, "docs", table="docs", columns=["name", "doc"]))
    return path


def main() -> None:
    directory = Path(sys.argv[1])
    path = built(directory / "docs.db", ROWS)
    report(
        "stdio start to the list of tools",
        statistics.median(asyncio.run(started(path)) for _ in range(STARTS)),
        "s",
        at_most=3,
    )
    for rows, file in ((ROWS, path), (FEW_ROWS, built(directory / "few.db", FEW_ROWS))):
        stdio, python, bare = asyncio.run(searched(file))
        print(
            f"a search of {rows:,} rows: {stdio:.1f} ms over stdio, {python:.1f} ms in Python; "
            f"list_indexes, which does next to nothing: {bare:.1f} ms over stdio"
        )
        report(f"a search call over the Python API, {rows:,} rows", stdio / python, "times", at_most=1.3)
    texts = list(dict.fromkeys(row["doc"] for row in standard_library()))
    whole, bare = asyncio.run(added(directory / "memory.db", texts))
    print(f"{BATCHES} × {BATCH} documents: {whole:.2f} s through the tool, {bare:.2f} s of the model")
    report("adding documents over the bare model", whole / bare, "times", at_most=1.2)
    finish()


if __name__ == "__main__":
    main()
