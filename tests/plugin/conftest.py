from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from datasette_vec_gemini import connect, create_index, sync


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
