from collections.abc import Callable, Iterator
from typing import Any

import pytest

from datasette_vec_gemini import connect, create_index, create_memory, sync
from mcp_server.file import FileLibrary


@pytest.fixture
def open_library(path) -> Iterator[Callable[..., FileLibrary]]:
    """Open the library of the test's file; closed at the end."""
    opened: list[FileLibrary] = []

    def make(**options: Any) -> FileLibrary:
        opened.append(FileLibrary(path, **options))
        opened[-1].start()
        return opened[-1]

    yield make
    for library in opened:
        library.close()


@pytest.fixture
def memory(path, open_library) -> FileLibrary:
    """The library of an empty memory."""
    conn = connect(path, create=True)
    create_memory(conn, embedder="hashing@64")
    conn.close()
    return open_library()


@pytest.fixture
def shelves(path, open_library) -> FileLibrary:
    """Two indexes: `notes` over a table with columns and constraints of its own, and `places`."""
    conn = connect(path, create=True)
    conn.executescript(
        """
        create table notes (
            id integer primary key, title text not null, body text, stars integer check (stars between 1 and 5),
            slug text unique
        );
        create table places (name text primary key, about text);
        insert into places values ('Rome, Italy', 'an old city on seven hills'), ('a/b', 'a slash and a comma');
        """
    )
    rows = [
        (f"{kind} {n}", f"how the {kind} number {n} swims or sleeps", n % 5 + 1, f"{kind}-{n}")
        for n in range(30)
        for kind in ("fish", "bird")
    ]
    conn.executemany("insert into notes (title, body, stars, slug) values (?, ?, ?, ?)", rows)
    conn.commit()
    sync(
        conn,
        create_index(
            conn, "notes", table="notes", columns=["title", "body"], filter_columns=["stars"], embedder="hashing@64"
        ),
    )
    sync(conn, create_index(conn, "places", table="places", columns=["about"], embedder="hashing@64"))
    conn.close()
    return open_library()
