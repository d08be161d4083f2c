"""What docs/postgres.md shows is what happens: on one server, and on three."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("sqlalchemy", reason="needs SQLAlchemy: pip install 'datasette-vec-gemini[sqlalchemy]'")

PAGE = Path(__file__).parents[2].joinpath("docs", "postgres.md").read_text(encoding="utf-8")
PROGRAM, OUTPUT = re.search(r"```python\n([^`]+)```\n```\n([^`]+)```", PAGE).groups()


def test_the_program_prints_what_stands_below_it_and_the_same_on_sqlite(postgres, database, tmp_path):
    url = "postgresql+psycopg://app:secret@db.example.com/app"
    assert PROGRAM.count(url) == 1
    for engine in (postgres.url(database), "sqlite:///app.db"):
        result = subprocess.run(
            [sys.executable, "-c", PROGRAM.replace(url, engine)],
            cwd=tmp_path, capture_output=True, text=True, encoding="utf-8", check=False,
        )  # fmt: skip
        assert (result.stderr, result.stdout) == ("", OUTPUT)
