"""embed_gemini() and semantic_search() on a connection of connect(), with the fake of Google's API."""

import contextlib
import gc
import logging
import os
import subprocess
import sys
import threading
import weakref

import numpy as np
import pytest
from fake_gemini import KEY, FakeGemini
from sqlite_utils import Database

from datasette_vec_gemini import Access, connect, connection, create_index, sqlite3, sync
from datasette_vec_gemini.functions import Functions
from datasette_vec_gemini.gate import Gate


@pytest.fixture(autouse=True)
def nothing_is_kept(monkeypatch):
    """The standard library's driver tells sys.unraisablehook of what a function did, and pytest's own keeps it."""
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)


@pytest.fixture
def fake():
    with FakeGemini() as fake:
        yield fake


@pytest.fixture
def gate():
    return Gate(mode="on")


@pytest.fixture
def functions(fake, gate):
    return Functions(gate, access=Access(api_key=KEY, key_source="a test", base_url=fake.url))


@pytest.fixture
def raw(path, functions):
    """A connection of the driver's own with our functions."""
    with contextlib.closing(sqlite3.connect(path)) as conn:
        functions.register(conn)
        yield conn


def test_connect_gives_the_function_the_environment_s_key(fake, path, monkeypatch):
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", fake.url)
    monkeypatch.delenv("GOOGLE_API_KEY", raising=False)
    with contextlib.closing(connect(path, create=True)) as conn:
        (blob,) = conn.execute("select embed_gemini('hello')").fetchone()
    assert np.linalg.norm(np.frombuffer(blob, "<f4")) == pytest.approx(1, abs=1e-6)
    assert len(blob) == 3072


def test_the_function_is_deterministic_so_that_a_constant_is_one_call_and_may_stand_in_an_index(raw, fake):
    raw.execute("create table many (id integer primary key, text text)")
    raw.executemany("insert into many (id) values (?)", [[n] for n in range(500)])
    raw.commit()
    assert raw.execute("select count(distinct embed_gemini('constant')) from many").fetchone() == (1,)
    assert len(fake.requests) == 1
    raw.execute("create index vectors on many (embed_gemini(text))")


@pytest.mark.parametrize(
    "sql", ["embed_gemini(x'00')", "embed_gemini('a', 'NO TASK')", "semantic_search('no index', 'a')"]
)
def test_what_the_driver_hides_is_noted_once_with_its_reason(raw, gate, caplog, sql):
    for _ in range(2):
        with pytest.raises(sqlite3.OperationalError, match="user-defined function raised exception"):
            raw.execute(f"select {sql}").fetchone()
    assert len(gate.errors) == 1
    assert len({error for _, error in gate.errors}) == 1
    assert [record.message.partition(":")[0] for record in caplog.records] == ["A text was not embedded"]


def test_a_bug_is_told_in_the_log_and_noted_in_general_words(path, gate, caplog):
    class Broken(Access):
        @property
        def account(self):
            raise ZeroDivisionError(KEY)

    with contextlib.closing(sqlite3.connect(path)) as conn:
        Functions(gate, access=Broken(api_key=KEY)).register(conn)
        with pytest.raises(sqlite3.OperationalError):
            conn.execute("select embed_gemini('hello')").fetchone()
    assert [error for _, error in gate.errors] == ["embed_gemini failed unexpectedly: the log has the reason"]
    assert "ZeroDivisionError" in caplog.text


STATEMENTS = """
import sys, threading
from datasette_vec_gemini import connect, sqlite3

sqlite3.enable_callback_tracebacks(True)  # as Datasette does

def ask(number):
    conn = connect(sys.argv[1])
    for _ in range(300):
        try:
            conn.execute("select embed_gemini('a private text')").fetchone()
        except sqlite3.OperationalError as error:
            assert str(error) == "user-defined function raised exception"

threads = [threading.Thread(target=ask, args=[number], daemon=True) for number in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(hasattr(sys, "last_traceback"))
"""


def test_statements_that_fail_at_one_time_do_not_block_each_other_and_print_no_variables(path):
    connect(path, create=True).close()
    variables = {n: v for n, v in os.environ.items() if n not in {"GOOGLE_API_KEY", "GEMINI_API_KEY"}}
    done = subprocess.run(
        [sys.executable, "-c", STATEMENTS, str(path)],
        env=variables,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == "False\n"
    assert done.stderr.count("set GEMINI_API_KEY") >= 1
    assert "private" not in done.stderr


GARBAGE = """
import sys, threading, time
from datasette_vec_gemini import connect, sqlite3, state
from datasette_vec_gemini.functions import Functions
from datasette_vec_gemini.gate import Gate

gate = Gate(mode="on")
conn = sqlite3.connect(sys.argv[1], check_same_thread=False)
Functions(gate).register(conn)
garbage = [conn.cursor()]
try:
    garbage[0].execute("select json('this is none')").fetchone()
except sqlite3.OperationalError:
    pass

def hold():
    with state.shared().lock:
        is_held.set()
        while not gate.errors:
            time.sleep(0.01)
        garbage.clear()

is_held = threading.Event()
threading.Thread(target=hold).start()
is_held.wait()
try:
    conn.execute("select embed_gemini('a')").fetchone()
except sqlite3.OperationalError as error:
    print(error)
"""


def test_who_holds_a_lock_may_collect_a_failed_statement_s_cursor_while_a_function_needs_the_lock(path):
    """Datasette keeps what failed in circles, and any thread of the process may collect them at any time."""
    connect(path, create=True).close()
    variables = {n: v for n, v in os.environ.items() if n not in {"GOOGLE_API_KEY", "GEMINI_API_KEY"}}
    command = [sys.executable, "-c", GARBAGE, str(path)]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == "user-defined function raised exception\n", done.stderr


@pytest.mark.parametrize("fault", ["403", "503", "hang"])
@pytest.mark.parametrize("sql", ["embed_gemini('a')", "embed_gemini(x'00')", "semantic_search('no index', 'a')"])
def test_a_statement_that_fails_leaves_its_cursor_to_no_garbage_collector(raw, fake, fault, sql):
    fake.always = fault

    class Cursor(sqlite3.Cursor):
        """One that takes a weak reference."""

    def ask():
        cursor = Cursor(raw)
        try:
            cursor.execute(f"select {sql}").fetchone()
        except sqlite3.OperationalError as error:
            error.__traceback__ = None
        return weakref.ref(cursor)

    gc.disable()
    try:
        assert ask()() is None
    finally:
        gc.enable()


def test_the_fault_of_the_database_is_noted_too(raw, gate):
    raw.execute("create table _vec_indexes (name text)")
    with pytest.raises(sqlite3.OperationalError):
        raw.execute("select semantic_search('docs', 'x')").fetchone()
    assert gate.errors


def test_what_is_refused_for_want_of_a_key_is_not_counted(path, gate):
    with contextlib.closing(sqlite3.connect(path)) as conn:
        Functions(gate, access=Access()).register(conn)
        for _ in range(30):
            with pytest.raises(sqlite3.OperationalError):
                conn.execute("select embed_gemini('hello')").fetchone()
    assert {"set GEMINI_API_KEY" in error for _, error in gate.errors} == {True}


def test_the_model_follows_the_database_s_indexes_and_is_none_where_they_differ(fake, path, functions, monkeypatch):
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", fake.url)
    with contextlib.closing(connect(path, create=True)) as conn:
        functions.register(conn)
        conn.execute("create table docs (id integer primary key, title text)")
        conn.execute("insert into docs (title) values ('a title')")
        conn.commit()
        assert conn.execute("select length(embed_gemini('x'))").fetchone() == (4 * 768,)
        sync(conn, create_index(conn, "docs", table="docs", columns=["title"], embedder="gemini@256"))
        assert conn.execute("select length(embed_gemini('x'))").fetchone() == (4 * 256,)
        hits = conn.execute("select semantic_search('docs', 'a title', 1)").fetchone()[0]
        assert '"a title"' in hits
        # Two that differ cannot be compared with each other.
        sync(conn, create_index(conn, "two", table="docs", columns=["title"], embedder="gemini@128"))
        with pytest.raises(sqlite3.OperationalError, match="user-defined function raised exception"):
            conn.execute("select length(embed_gemini('x'))").fetchone()


def test_equal_texts_at_one_time_are_one_call_or_an_error_at_once_never_a_wrong_vector(fake, path, functions):
    fake.latency_seconds = 0.2
    answers = []

    def ask():
        with contextlib.closing(sqlite3.connect(path)) as conn:
            functions.register_embed_gemini(conn)
            try:
                answers.append(conn.execute("select embed_gemini('same')").fetchone()[0])
            except sqlite3.OperationalError:
                answers.append(None)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(fake.requests) == 1
    assert len(set(answers)) == 1
    assert len(answers[0]) == 3072


def test_embed_gemini_keeps_no_connection_alive(functions, path):
    class Connection(sqlite3.Connection):
        """One that takes a weak reference."""

    conn = sqlite3.connect(path, factory=Connection)
    functions.register_embed_gemini(conn)
    seen = weakref.ref(conn)
    conn.close()
    del conn
    gc.collect()
    assert seen() is None


def test_wrong_settings_in_the_environment_close_the_gate_and_nothing_else(path, monkeypatch, caplog):
    connection._gate.cache_clear()  # noqa: SLF001
    monkeypatch.setenv("DATASETTE_VEC_SQL_EMBEDDING", "perhaps")
    try:
        with caplog.at_level(logging.WARNING), contextlib.closing(connect(path, create=True)) as conn:
            assert conn.execute("select 1").fetchone() == (1,)
            with pytest.raises(sqlite3.OperationalError):
                conn.execute("select embed_gemini('x')").fetchone()
        assert "the environment: sql_embedding is 'perhaps'" in caplog.text
    finally:
        connection._gate.cache_clear()  # noqa: SLF001


def test_a_connection_that_has_the_function_keeps_it_when_sqlite_utils_prepares_it(path) -> None:
    """Datasette 1.0 does that on its own connections, where the function asks who the visitor is."""
    with contextlib.closing(sqlite3.connect(path)) as conn:
        conn.create_function("embed_gemini", 1, lambda _: "of the site")
        Database(conn)
        assert conn.execute("select embed_gemini('x')").fetchone() == ("of the site",)
