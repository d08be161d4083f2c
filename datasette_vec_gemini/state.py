"""What all processes of a user share: what each key has used today, and the errors that nobody could see.

It lies in one small SQLite file in the user's state directory, or in `DATASETTE_VEC_STATE_DIR`. A key is known there by
a hash. While the file cannot be used, each process counts for itself, and adds that when it can be used again.
"""

from __future__ import annotations

import atexit
import logging
import math
import os
import threading
import time
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
WAIT_MS = 2_000
"""How long a request waits for other processes, each of which needs less than a millisecond."""
RETURN_SECONDS = 30.0
"""How long a process counts for itself before it tries the file again."""

_log = logging.getLogger("datasette_vec_gemini")
_FILE = "state.db"
_SCHEMA = """
    create table if not exists used (
        account text, day text, purpose text, requests integer, texts integer, tokens integer, usd real,
        primary key (account, day, purpose)
    );
    create table if not exists errors (message text primary key, at text);
"""


class State:
    """One such file, or none. Its methods may be called from any thread, and never fail because of the file."""

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory
        self.lock = threading.RLock()
        self._conn: sqlite3.Connection | None = None
        self._alone_until: float | None = None if directory else math.inf
        self._seen: dict[tuple[str, str], dict[str, Usage]] = {}
        self._owed: list[tuple[str, str, str, Usage]] = []
        self._has_warned = False

    @property
    def is_shared(self) -> bool:
        """Whether this process counts together with the others now."""
        return self._alone_until is None

    def count(
        self,
        account: str,
        day: str,
        purpose: str,
        more: Usage,
        *,
        check: Callable[[dict[str, Usage]], None] = lambda _: None,
    ) -> None:
        """Add what is about to be used, if `check` does not object to what is used already, by purpose.

        Less than nothing corrects the count where more was reserved than used.
        """
        with self.lock:
            with self._file() as conn:
                if conn:
                    with transaction(conn):
                        self._seen[account, day] = _used(conn, account, day)
                        check(self._seen[account, day])
                        _add(conn, account, day, purpose, more)
                    self._see(account, day, purpose, more)
                    return
            self._warn()
            known = self._seen.setdefault((account, day), {})
            check(known)
            self._see(account, day, purpose, more)
            self._owed.append((account, day, purpose, more))

    def used(self, account: str, day: str) -> dict[str, Usage]:
        """Purpose -> what the key has used and reserved that day, in all processes."""
        with self.lock:
            with self._file() as conn:
                if conn:
                    self._seen[account, day] = _used(conn, account, day)
            return dict(self._seen.get((account, day), {}))

    def note(self, message: str, at: str) -> None:
        """Keep an error, if that is possible at once; the oldest goes when there are more than 20."""
        with self.lock, self._file() as conn:
            if conn:
                conn.execute("pragma busy_timeout = 50").fetchone()
                try:
                    with transaction(conn):
                        conn.execute("insert or replace into errors values (?, ?)", [message, at])
                        conn.execute(
                            "delete from errors where rowid not in "
                            "(select rowid from errors order by rowid desc limit ?)",
                            [ERRORS_KEPT],
                        )
                finally:
                    conn.execute(f"pragma busy_timeout = {WAIT_MS}").fetchone()

    def errors(self) -> list[tuple[str, str]]:
        """(time in UTC, message) of the last different errors, the newest first."""
        found: list[tuple[str, str]] = []
        if not self._directory or not (self._directory / _FILE).exists():
            return found
        with self.lock, self._file() as conn:
            if conn:
                found = conn.execute("select at, message from errors order by rowid desc").fetchall()
        return found

    def close(self) -> None:
        """Close the file; it is opened again when it is needed."""
        with self.lock, suppress(sqlite3.Error):
            if self._conn is not None:
                self._conn.close()
                self._conn = None

    def _see(self, account: str, day: str, purpose: str, more: Usage) -> None:
        seen = self._seen[account, day]
        seen[purpose] = seen.get(purpose, Usage()) + more

    @contextmanager
    def _file(self) -> Iterator[sqlite3.Connection | None]:
        """The file's connection, or None while there is none; what goes wrong with it ends the block, not the work."""
        conn = None
        if self._directory and (self._alone_until is None or time.monotonic() >= self._alone_until):
            try:
                conn = self._opened(self._directory)
            except sqlite3.Error:
                self._leave()
        try:
            yield conn
        except sqlite3.Error:
            self._leave()

    def _opened(self, directory: Path) -> sqlite3.Connection:
        if self._conn is None:
            try:
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                raise sqlite3.OperationalError(str(error)) from error
            self._conn = sqlite3.connect(
                directory / _FILE, check_same_thread=False, isolation_level=None, timeout=WAIT_MS / 1000
            )
            _use_wal(self._conn)
            self._conn.execute("pragma synchronous = normal")
            self._conn.executescript(_SCHEMA)
            self._conn.execute("delete from used where day < date('now', '-7 days')")
        if self._owed:
            with transaction(self._conn):
                for owed in self._owed:
                    _add(self._conn, *owed)
            self._owed = []
        self._alone_until = None
        return self._conn

    def _leave(self) -> None:
        """Count alone for a while, on top of what was seen last."""
        self.close()
        self._alone_until = time.monotonic() + RETURN_SECONDS

    def _warn(self) -> None:
        if not self._has_warned:
            self._has_warned = True
            _log.warning(
                "Daily caps hold for this process only while state.db in the user's state directory cannot be used; "
                "%sSTATE_DIR can name another directory",
                PREFIX,
            )


def _use_wal(conn: sqlite3.Connection) -> None:
    """Of processes that open a new file at one moment only one can set this, and the others are not made to wait."""
    until = time.monotonic() + WAIT_MS / 1000
    while True:
        try:
            conn.execute("pragma journal_mode = wal").fetchone()
        except sqlite3.OperationalError:
            if time.monotonic() > until:
                raise
            time.sleep(0.01)
        else:
            return


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
        insert into used (account, day, purpose, requests, texts, tokens, usd) values (?, ?, ?, ?, ?, ?, ?)
        on conflict do update set requests = requests + excluded.requests, texts = texts + excluded.texts,
            tokens = tokens + excluded.tokens, usd = usd + excluded.usd
        """,
        [account, day, purpose, *astuple(more)],
    )


_states: dict[Path | None, State] = {}
_states_lock = threading.Lock()


def shared() -> State:
    """The state of this user; one without a home has none."""
    directory = None
    if chosen := os.environ.get(f"{PREFIX}STATE_DIR"):
        directory = Path(chosen)
    else:
        with suppress(RuntimeError, OSError):
            directory = user_state_path("datasette-vec-gemini", appauthor=False)
    with _states_lock:
        return _states.setdefault(directory, State(directory))


def _close() -> None:
    for state in list(_states.values()):
        state.close()


def _before_fork() -> None:
    """Neither a lock that is held nor a connection may come along into a child."""
    _states_lock.acquire()
    for state in _states.values():
        state.lock.acquire()
        state.close()


def _after_fork() -> None:
    for state in _states.values():
        state.lock.release()
    _states_lock.release()


atexit.register(_close)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)
