from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from datasette.app import Datasette

from datasette_vec_gemini import connect, create_index, sync

Site = Callable[..., Datasette]


@pytest.fixture
def site() -> Iterator[Site]:
    """Datasette on these files, closed at the end: 1.0 can do that itself, 0.65 leaves threads and connections."""
    opened: list[Datasette] = []

    def open_site(*files: Path, **options: Any) -> Datasette:
        opened.append(Datasette([str(file) for file in files], **options))
        return opened[-1]

    yield open_site
    for datasette in opened:
        if hasattr(datasette, "close"):
            datasette.close()
        else:
            datasette.executor.shutdown()
            for database in datasette.databases.values():
                database.close()


@pytest.fixture
def build() -> Callable[..., Path]:
    """Make a database of this SQL and index one of its tables with the hashing embedder."""

    def make(
        file: Path, script: str, *, table: str = "docs", name: str = "docs", columns: Sequence[str], **options: Any
    ) -> Path:
        conn = connect(file, create=True)
        conn.executescript(script)
        options = {"embedder": "hashing@64"} | options
        sync(conn, create_index(conn, name, table=table, columns=columns, **options))
        conn.close()
        return file

    return make


@pytest.fixture
def library(tmp_path, build) -> Path:
    """`library.db`: 25 rows about dates, zones and tables, in two categories."""
    rows = ", ".join(
        f"({n}, '{title} {n}', 'how to {verb} {title} number {n}', '{category}', {2000 + n})"
        for n in range(1, 26)
        for title, verb, category in [
            (("dates", "parse", "time"), ("zones", "convert", "time"), ("tables", "read", "data"))[n % 3]
        ]
    )
    return build(
        tmp_path / "library.db",
        f"""
        create table docs (id integer primary key, title text, body text, category text, year integer);
        insert into docs values {rows};
        """,
        columns=["title", "body"],
    )
