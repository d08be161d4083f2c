"""The rows of the demonstration database: one per documented object of the standard library, the same on every run."""

import json
import os
import re
import subprocess
import sys
import warnings
from functools import cache
from itertools import islice
from pathlib import Path

import pytest

from datasette_vec_gemini.demo.rows import standard_library

ROOT = Path(__file__).parents[1]
DUMP = (
    "import json; from datasette_vec_gemini.demo.rows import standard_library; print(json.dumps([*standard_library()]))"
)

Row = dict[str, str]


@cache
def all_rows() -> list[Row]:
    return list(standard_library())


def dump_rows_in_new_process(*, warning_filter: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", warning_filter, "-c", DUMP]
    return subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=True, timeout=60
    )


def test_names_are_unique() -> None:
    names = [row["name"] for row in all_rows()]
    assert len(names) == len(set(names))


def test_rows_are_ordered_by_module_then_name() -> None:
    keys = [(row["module"], row["name"]) for row in all_rows()]
    assert keys == sorted(keys)


def test_there_are_thousands_but_not_too_many() -> None:
    assert 4_000 <= len(all_rows()) <= 5_000


def test_every_row_has_its_five_fields_and_a_doc_worth_reading() -> None:
    for row in all_rows():
        assert list(row) == ["name", "module", "kind", "signature", "doc"]
        assert row["kind"] in {"module", "class", "function", "method", "property"}
        assert len(row["doc"]) >= 20, row
        assert row["doc"] == row["doc"].strip("\n"), row


def test_two_processes_yield_the_same_rows_and_print_nothing_whatever_their_hash_seed_and_warning_filter() -> None:
    dumps = [
        dump_rows_in_new_process(warning_filter="always", PYTHONHASHSEED="1"),
        dump_rows_in_new_process(warning_filter="error", PYTHONHASHSEED="2"),
    ]
    assert [dump.stderr for dump in dumps] == ["", ""]
    first, second = (json.loads(dump.stdout) for dump in dumps)
    assert first == second


def test_rows_say_nothing_about_this_process_or_machine() -> None:
    for row in all_rows():
        assert not re.search(r"\b0x[0-9a-f]", row["signature"], re.IGNORECASE), row
        assert not re.search(r" at 0x[0-9a-f]+>", row["doc"]), row
        assert sys.executable not in row["signature"], row
        assert "environ(" not in row["signature"], row


@pytest.mark.parametrize(
    ("name", "module", "kind"),
    [
        ("json", "json", "module"),
        ("json.loads", "json", "function"),
        ("json.JSONDecoder.decode", "json", "method"),
        ("datetime.datetime", "datetime", "class"),
        ("pathlib.Path.mkdir", "pathlib", "method"),
        ("pathlib.PurePath.parent", "pathlib", "property"),
        ("re.compile", "re", "function"),
        ("itertools.groupby", "itertools", "class"),
        ("collections.OrderedDict", "collections", "class"),
        ("asyncio.gather", "asyncio", "function"),
        ("concurrent.futures.ThreadPoolExecutor", "concurrent.futures", "class"),
        ("argparse.ArgumentParser.add_argument", "argparse", "method"),
        ("subprocess.run", "subprocess", "function"),
        ("sqlite3.connect", "sqlite3", "function"),
        ("os.walk", "os", "function"),
        ("os.path.join", "os.path", "function"),
        ("shutil.copytree", "shutil", "function"),
        ("urllib.parse.urlsplit", "urllib.parse", "function"),
        ("threading.Thread", "threading", "class"),
        ("logging.getLogger", "logging", "function"),
        ("random.choice", "random", "function"),
        ("str.split", "builtins", "method"),
        ("dict.get", "builtins", "method"),
        ("print", "builtins", "function"),
        ("open", "builtins", "function"),
        ("KeyError", "builtins", "class"),
    ],
)
def test_what_people_search_for_is_there_under_the_name_they_type(name: str, module: str, kind: str) -> None:
    assert [(row["module"], row["kind"]) for row in all_rows() if row["name"] == name] == [(module, kind)]


def test_a_signature_is_given_where_python_knows_one() -> None:
    signatures = {row["name"]: row["signature"] for row in all_rows()}
    assert signatures["json.loads"].startswith("(s, *, cls=None")
    assert signatures["json.JSONDecoder.decode"] == "(self, s, _w=...)"
    assert signatures["json"] == ""


@pytest.mark.parametrize("module", ["antigravity", "idlelib", "posixpath", "test", "this", "tkinter", "turtledemo"])
def test_modules_that_act_on_import_or_are_no_library_are_left_out(module: str) -> None:
    assert not [row for row in all_rows() if row["module"].split(".")[0] == module]


def test_output_and_warnings_are_held_back_only_while_importing() -> None:
    before = sys.stdout, sys.stderr, list(warnings.filters)
    rows = standard_library()
    for _ in islice(rows, 50):
        assert (sys.stdout, sys.stderr, list(warnings.filters)) == before
    rows.close()  # type: ignore[attr-defined]
    assert (sys.stdout, sys.stderr, list(warnings.filters)) == before


def test_modules_are_imported_as_the_rows_are_read() -> None:
    code = (
        "import sys; from datasette_vec_gemini.demo.rows import standard_library; before = set(sys.modules); "
        "next(standard_library()); print(len(set(sys.modules) - before) < 20)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout == "True\n"
