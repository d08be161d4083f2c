"""Laws of errors: one tree, drawn where it is defined; SQLite's failures become ours and give no path away."""

import inspect
import re
from contextlib import closing, contextmanager

import pytest

from datasette_vec_gemini import connect, errors, prepare, sqlite3
from datasette_vec_gemini.errors import (
    BudgetReached,
    DatabaseUnavailable,
    ExtensionUnavailable,
    QuotaReached,
    UsageError,
    VecError,
    counted,
)
from datasette_vec_gemini.store.transactions import mapped_errors

CLASSES = {
    name: found
    for name, found in inspect.getmembers(errors, inspect.isclass)
    if issubclass(found, BaseException) and found.__module__ == errors.__name__
}


def drawn_tree():
    """Name -> parent's name, as the module's docstring draws it by indentation."""
    parents, path = {}, []
    for indent, name in re.findall(r"^    ( *)([A-Z]\w+)(?:  .*)?$", errors.__doc__, re.MULTILINE):
        del path[len(indent) // 2 :]
        parents[name] = path[-1] if path else "Exception"
        path.append(name)
    return parents


def test_the_drawn_tree_is_the_tree():
    assert drawn_tree() == {name: found.__base__.__name__ for name, found in CLASSES.items()}
    # Beside its place in the tree an error may be what other libraries raise in its case.
    assert all(found.__bases__[1:] in {(), (ValueError,)} for found in CLASSES.values())


@pytest.mark.parametrize("error", CLASSES.values(), ids=CLASSES)
def test_what_was_asked_wrongly_exits_with_2_what_is_used_up_with_4_all_else_with_1(error):
    used_up = error in {BudgetReached, QuotaReached}
    assert error.exit_code == (4 if used_up else 2 if issubclass(error, UsageError) else 1)


@pytest.mark.parametrize("error", CLASSES.values(), ids=CLASSES)
def test_every_error_says_when_it_is_raised(error):
    assert error.__doc__
    assert error.__doc__ != error.__base__.__doc__


@pytest.fixture
def file(tmp_path):
    """A database with one table, in a directory whose name would show in a message."""
    path = tmp_path / "secret-place.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            "create table docs (id integer primary key, body text); insert into docs values (1, 'a')"
        )
    return path


@contextmanager
def opened(path, *, mode="rw", **options):
    with mapped_errors(), closing(sqlite3.connect(f"file:{path}?mode={mode}", uri=True, **options)) as connection:
        yield connection


def locked(file):
    with closing(sqlite3.connect(file)) as other:
        other.execute("begin immediate")
        with opened(file, timeout=0) as connection:
            connection.execute("insert into docs values (2, 'b')")


def read_only(file):
    with opened(file, mode="ro") as connection:
        connection.execute("insert into docs values (2, 'b')")


def no_database(file):
    file.write_bytes(b"a text that is long enough to be read as a header" * 100)
    with opened(file) as connection:
        connection.execute("select * from docs")


def damaged(file):
    with closing(sqlite3.connect(file)) as connection:
        (page_size,) = connection.execute("pragma page_size").fetchone()
    content = file.read_bytes()
    file.write_bytes(content[:page_size] + b"\xff" * (len(content) - page_size))
    with opened(file) as connection:
        connection.execute("select * from docs").fetchall()


def missing(file):
    with opened(file.with_name("missing.db")) as connection:
        connection.execute("select 1")


def full(file):
    with opened(file) as connection:
        connection.execute("pragma max_page_count = 3").fetchone()
        connection.execute("insert into docs (body) values (zeroblob(100000))")


LOCKED = "the database is locked by another program: wait until that has finished writing, then try again"
READ_ONLY = "the database is read-only: make the file and its directory writable, or work on a copy"
NO_DATABASE = "the file is not a SQLite database: check the path"
DAMAGED = "the database file is damaged: restore a backup, or try sqlite3's .recover"
NOT_OPENED = "the database cannot be opened: check the path and its permissions"
FULL = "the disk is full: free some space, then try again"
NO_VEC = (
    "this connection has no sqlite-vec: open it with datasette_vec_gemini.connect(); "
    "`datasette vec doctor` tells what this machine can do"
)
NO_FTS5 = "this SQLite was built without FTS5: pip install pysqlite3, which brings one with it"


@pytest.mark.parametrize(
    ("fail", "message"),
    [
        (locked, LOCKED),
        (read_only, READ_ONLY),
        (no_database, NO_DATABASE),
        (damaged, DAMAGED),
        (missing, NOT_OPENED),
        (full, FULL),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_file_that_fails_is_an_unavailable_database_with_a_remedy_and_without_a_path(file, fail, message):
    with pytest.raises(DatabaseUnavailable) as caught:
        fail(file)
    assert str(caught.value) == message
    assert isinstance(caught.value.__cause__, sqlite3.DatabaseError)


@pytest.mark.parametrize(
    "sql", ["create virtual table v using vec0 (e float[2])", "select vec_version()", "select vec_length(x'00000000')"]
)
def test_a_missing_sqlite_vec_is_an_unavailable_extension(sql):
    with (
        closing(sqlite3.connect(":memory:")) as connection,
        pytest.raises(ExtensionUnavailable) as caught,
        mapped_errors(),
    ):
        connection.execute(sql)
    assert str(caught.value) == NO_VEC


def test_a_missing_fts5_is_an_unavailable_extension():
    with pytest.raises(ExtensionUnavailable) as caught, mapped_errors():
        raise sqlite3.OperationalError("no such module: fts5")
    assert str(caught.value) == NO_FTS5


@pytest.mark.parametrize(
    ("sql", "error"),
    [
        ("select * from nowhere", sqlite3.OperationalError),
        ("select nothing", sqlite3.OperationalError),
        ("selekt 1", sqlite3.OperationalError),
        ("insert into docs values (1, 'again')", sqlite3.IntegrityError),
        ("create virtual table v using spatial_index (a)", sqlite3.OperationalError),
        ("select no_such_function()", sqlite3.OperationalError),
    ],
)
def test_other_errors_of_sqlite_stay_as_they_are(file, sql, error):
    with pytest.raises(error), opened(file) as connection:
        connection.execute(sql)


@pytest.mark.parametrize(
    "sql",
    [
        "select * from locked_docs",
        "select busy from docs",
        "select * from readonly",
        "select * from malformed",
        "select * from json_each('{')",
        "select json_extract('[', '$')",
    ],
)
def test_a_name_or_a_value_in_a_message_is_not_taken_for_a_failure_of_the_file(file, sql):
    with pytest.raises(sqlite3.OperationalError), opened(file) as connection:
        connection.execute(sql).fetchall()


@pytest.mark.parametrize(
    "error", [ValueError("database is locked"), KeyError("readonly"), UsageError("no such module")]
)
def test_errors_that_are_not_sqlites_pass_through(error):
    with pytest.raises(type(error)) as caught, mapped_errors():
        raise error
    assert caught.value is error


def test_connecting_to_a_file_that_is_not_there_names_only_the_file(tmp_path):
    with pytest.raises(DatabaseUnavailable) as caught:
        connect(tmp_path / "missing.db")
    assert str(caught.value) == "there is no file 'missing.db' at that path: check it"


def test_connecting_to_what_is_no_database_is_mapped_too(tmp_path, file):
    file.write_bytes(b"a text that is long enough to be read as a header" * 100)
    with pytest.raises(DatabaseUnavailable) as caught:
        connect(file)
    assert str(caught.value) == NO_DATABASE
    with pytest.raises(DatabaseUnavailable) as caught:
        connect(tmp_path)
    assert str(caught.value) == f"{tmp_path.name!r} is a directory: name the database file"


class WithoutExtensions(sqlite3.Connection):
    """A connection whose SQLite cannot load sqlite-vec, and says so as SQLite does."""

    def load_extension(self, path):
        raise sqlite3.OperationalError(f"{path}.so: cannot open shared object file")


def test_an_extension_that_cannot_be_loaded_is_unavailable_or_done_without():
    with closing(sqlite3.connect(":memory:", factory=WithoutExtensions)) as connection:
        assert prepare(connection, require_vec=False) is False
        with pytest.raises(ExtensionUnavailable, match=r"^sqlite-vec could not be loaded into .*: run `pip install"):
            prepare(connection)


def test_an_extension_that_cannot_be_loaded_is_named_without_its_path():
    import sqlite_vec

    with (
        closing(sqlite3.connect(":memory:", factory=WithoutExtensions)) as connection,
        pytest.raises(VecError) as caught,
    ):
        prepare(connection)
    assert sqlite_vec.loadable_path() not in str(caught.value)


@pytest.mark.parametrize(
    ("number", "noun", "text"), [(1, "chunk", "1 chunk"), (0, "row", "0 rows"), (2_000, "chunk", "2,000 chunks")]
)
def test_one_is_singular(number, noun, text) -> None:
    assert counted(number, noun) == text


def test_what_a_budget_says_can_be_told_without_the_remedy_of_another_door() -> None:
    error = BudgetReached("$1 of $1 are spent", remedy="go on with a greater --max-usd", of_run=True)
    assert str(error) == "$1 of $1 are spent: go on with a greater --max-usd"
    assert (error.what, error.of_run) == ("$1 of $1 are spent", True)
    assert str(BudgetReached("spent")) == "spent"
