"""What all processes of a user share: what each key has used today, and the errors that nobody could see.

It lies in one small SQLite file in the user's state directory, or in `DATASETTE_VEC_STATE_DIR`. A key is known there by
a hash. Where no such file can be written, one in memory takes its place: caps then hold for this process.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import astuple
from pathlib import Path

from platformdirs import user_state_path

from .access import PREFIX
from .driver import sqlite3
from .store.transactions import transaction
from .store.usage import Usage

ERRORS_KEPT = 20

_log = logging.getLogger("datasette_vec_gemini")
_SCHEMA = """
    create table if not exists used (
        account text, day text, purpose text, requests integer, texts integer, tokens integer, usd real,
        primary key (account, day, purpose)
    );
    create table if not exists errors (message text primary key, at text);
"""


class State:
    """One such file. Its methods may be called from any thread, and never fail because of the file."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = threading.RLock()
        self._conn: sqlite3.Connection | None = None
        self._process = 0
        self.is_shared = True

    def reserve(
        self, account: str, day: str, purpose: str, wanted: Usage, *, check: Callable[[dict[str, Usage]], None]
    ) -> None:
        """Count what is about to be used, if `check` does not object to what is used already, by purpose."""

        def work(conn: sqlite3.Connection) -> None:
            check(_used(conn, account, day))
            _add(conn, account, day, purpose, wanted)

        self._do(work)

    def add(self, account: str, day: str, purpose: str, more: Usage) -> None:
        """Correct the count: by less than nothing where more was reserved than used."""
        self._do(lambda conn: _add(conn, account, day, purpose, more))

    def used(self, account: str, day: str) -> dict[str, Usage]:
        """Purpose -> what the key has used and reserved that day, in all processes."""
        found: dict[str, Usage] = {}
        self._do(lambda conn: found.update(_used(conn, account, day)))
        return found

    def note(self, message: str, at: str) -> None:
        """Keep an error; the oldest goes when there are more than 20."""

        def work(conn: sqlite3.Connection) -> None:
            conn.execute("insert or replace into errors values (?, ?)", [message, at])
            conn.execute(
                "delete from errors where rowid not in (select rowid from errors order by rowid desc limit ?)",
                [ERRORS_KEPT],
            )

        self._do(work)

    def errors(self) -> list[tuple[str, str]]:
        """(time in UTC, message) of the last different errors, the newest first."""
        found: list[tuple[str, str]] = []
        self._do(lambda conn: found.extend(conn.execute("select at, message from errors order by rowid desc")))
        return found

    def close(self) -> None:
        """Close the file; it is opened again when it is needed."""
        with self._lock, suppress(sqlite3.Error):
            if self._conn is not None and self._process == os.getpid():
                self._conn.close()
            self._conn = None

    def _do(self, work: Callable[[sqlite3.Connection], None]) -> None:
        with self._lock:
            try:
                with self._transaction() as conn:
                    work(conn)
            except sqlite3.Error:
                self._leave()
                with self._transaction() as conn:
                    work(conn)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        if self._conn is None or self._process != os.getpid():  # a connection does not survive a fork
            self._conn, self._process = self._opened(), os.getpid()
        with transaction(self._conn):
            yield self._conn

    def _opened(self) -> sqlite3.Connection:
        if not self.is_shared:
            conn = sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
        else:
            try:
                self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                raise sqlite3.OperationalError(str(error)) from error
            conn = sqlite3.connect(
                self._directory / "state.db", check_same_thread=False, isolation_level=None, timeout=2
            )
            conn.execute("pragma journal_mode = wal")
            conn.execute("pragma synchronous = normal")
        conn.executescript(_SCHEMA)
        conn.execute("delete from used where day < date('now', '-7 days')")
        return conn

    def _leave(self) -> None:
        """Go on in memory, with what can still be read."""
        rows: list[tuple[object, ...]] = []
        with suppress(sqlite3.Error):
            if self._conn is not None:
                rows = self._conn.execute("select * from used").fetchall()
        self.close()
        self.is_shared = False
        with self._transaction() as conn:
            conn.executemany("insert into used values (?, ?, ?, ?, ?, ?, ?)", rows)
        _log.warning(
            "Daily caps hold for this process only: state.db in the user's state directory cannot be written; "
            "%sSTATE_DIR can name another directory",
            PREFIX,
        )


def _used(conn: sqlite3.Connection, account: str, day: str) -> dict[str, Usage]:
    cursor = conn.execute(
        "select purpose, requests, texts, tokens, usd from used where account = ? and day = ?", [account, day]
    )
    return {
        purpose: Usage(requests=requests, texts=texts, tokens=tokens, usd=usd)
        for purpose, requests, texts, tokens, usd in cursor
    }


def _add(conn: sqlite3.Connection, account: str, day: str, purpose: str, more: Usage) -> None:
    conn.execute(
        """
        insert into used values (?, ?, ?, ?, ?, ?, ?)
        on conflict do update set requests = requests + excluded.requests, texts = texts + excluded.texts,
            tokens = tokens + excluded.tokens, usd = usd + excluded.usd
        """,
        [account, day, purpose, *astuple(more)],
    )


_states: dict[Path, State] = {}
_states_lock = threading.Lock()


def shared() -> State:
    """The state of this user."""
    chosen = os.environ.get(f"{PREFIX}STATE_DIR")
    directory = Path(chosen) if chosen else user_state_path("datasette-vec-gemini", appauthor=False)
    with _states_lock:
        return _states.setdefault(directory, State(directory))


@atexit.register
def _close() -> None:
    for state in list(_states.values()):
        state.close()
