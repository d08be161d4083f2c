"""Laws of the source that no linter states; the layers of imports are checked by import-linter itself."""

import ast
from pathlib import Path

import pytest

import datasette_vec_gemini

PACKAGE = Path(datasette_vec_gemini.__file__).parent
MODULES = {path.relative_to(PACKAGE).as_posix(): path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")}


def imported(source):
    """The top-level packages that a module imports from, wherever in it the import stands."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.partition(".")[0]


def test_one_module_decides_which_sqlite_library_a_process_uses():
    drivers = {"sqlite3", "pysqlite3", "_sqlite3", "sqlean", "apsw"}
    assert {name for name, source in MODULES.items() if drivers.intersection(imported(source))} == set()
    assert "sqlite_utils" in imported(MODULES["driver.py"])


def test_the_library_never_prints():
    """The command line has click.echo, which knows pipes and encodings; everybody else raises or returns."""
    writers = {"print", "pprint", "breakpoint"}
    printing = {
        name
        for name, source in MODULES.items()
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in writers
    }
    assert printing == set()
    speaking = {name for name, source in MODULES.items() if "click.echo" in source}
    assert {name.partition("/")[0] for name in speaking} <= {"cli", "printing.py"}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_a_module_can_be_read_in_one_sitting(name):
    assert len(MODULES[name].splitlines()) <= 400


@pytest.mark.parametrize("name", sorted(MODULES))
def test_a_module_says_what_it_is_for(name):
    assert ast.get_docstring(ast.parse(MODULES[name]))
