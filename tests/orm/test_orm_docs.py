"""What docs/orm.md shows is what happens, on 25 lines at most."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2].joinpath("docs", "orm.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n([^`]+)```\n```\n([^`]+)```", PAGE)


@pytest.mark.parametrize(("program", "output"), EXAMPLES)
def test_an_example_prints_what_stands_below_it(tmp_path, program, output):
    result = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (result.stderr, result.stdout) == ("", output)


@pytest.mark.parametrize(("program", "output"), EXAMPLES)
def test_an_example_has_at_most_25_lines_of_code(program, output):
    assert len([line for line in program.splitlines() if line.strip()]) <= 25


def test_both_frameworks_have_an_example_of_text_and_one_of_vectors():
    kinds = {
        (framework, way)
        for program, _ in EXAMPLES
        for framework in ("sqlalchemy", "peewee")
        for way in ("search_entities(", "nearest(")
        if f"datasette_vec_gemini.{framework}" in program and way in program
    }
    assert len(kinds) == 4
    assert len(EXAMPLES) == 4


def test_every_name_that_the_page_imports_exists():
    import datasette_vec_gemini.peewee
    import datasette_vec_gemini.sqlalchemy

    for framework, module in (("sqlalchemy", datasette_vec_gemini.sqlalchemy), ("peewee", datasette_vec_gemini.peewee)):
        for names in re.findall(rf"from datasette_vec_gemini\.{framework} import (.+)", PAGE):
            assert {name.partition(" as ")[0] for name in names.split(", ")} <= {*module.__all__, "alembic"}
