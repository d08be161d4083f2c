"""What is not installed is asked for by the command that installs it."""

import subprocess
import sys

import pytest

pytest.importorskip("sqlalchemy", reason="needs SQLAlchemy: pip install 'datasette-vec-gemini[sqlalchemy]'")

ENGINE = "from datasette_vec_gemini.sqlalchemy import create_engine, create_async_engine; "


@pytest.mark.parametrize(
    ("missing", "statement", "remedy"),
    [
        ("sqlalchemy", "import datasette_vec_gemini.sqlalchemy", "'datasette-vec-gemini[sqlalchemy]'"),
        ("sqlalchemy", "import datasette_vec_gemini.sqlalchemy.alembic", "'datasette-vec-gemini[sqlalchemy]'"),
        ("alembic", "import datasette_vec_gemini.sqlalchemy.alembic", "'alembic>=1.18'"),
        ("aiosqlite", f"{ENGINE} create_async_engine('sqlite+aiosqlite://')", "'datasette-vec-gemini[aiosqlite]'"),
        ("asyncpg", f"{ENGINE} create_async_engine('postgresql+asyncpg://')", "'datasette-vec-gemini[postgres]'"),
        ("psycopg", f"{ENGINE} create_engine('postgresql+psycopg://')", "'datasette-vec-gemini[postgres]'"),
    ],
)
def test_a_package_that_is_missing_is_named_with_what_installs_it(missing, statement, remedy):
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.modules[{missing!r}] = None; {statement}"],
        capture_output=True,
        text=True,
        check=False,
    )
    *_, error = done.stderr.splitlines()
    assert error.startswith("ImportError: ")
    assert missing in error.lower()
    assert error.endswith(f": pip install {remedy}")
