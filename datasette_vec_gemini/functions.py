"""SQL functions that a connection gets from `connect()`, from Datasette or from sqlite-utils."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import TypeVar, cast
from urllib.parse import quote

from . import embedders
from .access import Access
from .apart import apart
from .budget import ledger_of
from .domain import Embedder, Mode, Query, check_text
from .driver import sqlite3
from .embedders.service import TASKS
from .errors import InvalidFilter, InvalidQuery, ServiceUnavailable, VecError, shown
from .gate import SQL_SECONDS, Gate
from .paid import PaidEmbedder
from .searching import answer, embed
from .store import registry
from .store.transactions import mapped_errors
from .vectors import Vector, pack

GEMINI = ("gemini", "google-generativeai")
_T = TypeVar("_T")

_FAILED = object()
_SECONDS = 5.0
"""How long a statement waits for a vector at most; the first one of a process may have to load the model."""
_log = logging.getLogger("datasette_vec_gemini")


def let_go(error: BaseException | None) -> None:
    """Take the tracebacks off an exception and those behind it: their frames may point to it, in a circle."""
    while error is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__


class Functions:
    """The functions of connections to one database: what they embed with, through which gate, on whose account.

    `access` is that of the environment if None; spending is written to `ledger`, the database's own if None. Beside a
    file that is opened as `immutable` nothing is made, which even reading does where it is in WAL mode.
    """

    def __init__(
        self, gate: Gate, *, access: Access | None = None, ledger: str | None = None, immutable: bool = False
    ) -> None:
        self._gate = gate
        self._access = access
        self._ledger = ledger
        self._immutable = immutable

    def register(self, conn: sqlite3.Connection) -> None:
        """Define `embed_gemini` and `semantic_search` on a connection.

        SQLite drivers hide the message of an error raised in a function; `Gate.errors` and the log have it.
        """
        self.register_embed_gemini(conn)

        # A connection takes no weak reference: this function keeps it alive until it is closed.
        def semantic_search(index: str, text: str | None, *options: object) -> str | None:
            return self._search(conn, index, text, options)

        for arguments in range(2, 7):
            conn.create_function("semantic_search", arguments, self._bordered(semantic_search))

    def register_embed_gemini(self, conn: sqlite3.Connection) -> None:
        """Define `embed_gemini(text [, task_type])` on a connection, which it does not keep alive.

        It returns a float32 BLOB of the model of the database's Gemini indexes, gemini-embedding-2 where there is none;
        NULL for NULL and for blank text. The task type is RETRIEVAL_QUERY unless given. Equal texts give equal vectors
        within a process, and are paid for once.
        """
        file = ledger_of(conn)

        def embed_gemini(text: object, task_type: object = None) -> bytes | None:
            return apart(lambda: self._embed_gemini(file, text, task_type), seconds=_SECONDS)

        for arguments in (1, 2):
            conn.create_function("embed_gemini", arguments, self._bordered(embed_gemini), deterministic=True)

    def _bordered(self, function: Callable[..., _T]) -> Callable[..., _T]:
        """The function as SQLite gets it: it never raises, but returns what SQLite does not know: the statement fails.

        An exception would fail it in the same words. But Datasette and sqlite-utils have the driver print what is
        raised, by way of `sys.excepthook`: where rich is installed, that takes a second and prints local variables,
        such as keys and texts. `sys.last_traceback` then keeps the frames and with them the cursor of one thread until
        another thread drops them. That waits for the first one's connection, be it while holding another connection or
        a lock that the first one's function waits for: two statements could block each other, and the site, for ever.
        For the same reason nothing here leaves an exception to the garbage collector.
        """

        def bordered(*arguments: object) -> _T:
            try:
                with mapped_errors():
                    return function(*arguments)
            except Exception as error:  # noqa: BLE001 - if it is no VecError, nobody else would hear of it
                with suppress(ServiceUnavailable):
                    apart(partial(self._tell, function.__name__, error), seconds=SQL_SECONDS)
                let_go(error)
            return cast("_T", _FAILED)

        return bordered

    def _tell(self, name: str, error: Exception) -> None:
        if not isinstance(error, VecError):
            _log.error("%s failed", name, exc_info=error)
            error = VecError(f"{name} failed unexpectedly: the log has the reason")
        self._gate.note(error)

    def _embed_gemini(self, file: str, text: object, task_type: object) -> bytes | None:
        if text is None or (isinstance(text, str) and not text.strip()):
            return None
        if not isinstance(text, str | int | float):
            raise InvalidQuery("embed_gemini takes text, this is a BLOB")
        check_text(str(text))
        task = str(task_type or "RETRIEVAL_QUERY").upper()
        if task not in TASKS:
            raise InvalidQuery(f"task type {shown(task_type)} is not known; it can be {', '.join(TASKS)}")
        embedder = embedders.load(_specification(file, immutable=self._immutable), self._access)
        return pack(self._vector(embedder, str(text), task, file))

    def _vector(self, embedder: Embedder, text: str, task: str, file: str) -> Vector:
        if not isinstance(embedder, PaidEmbedder):
            return embedder.embed_query(text)
        embedder.require_key()
        charged = embedder.charged_to(file if self._ledger is None else self._ledger)
        return self._gate.vector(charged, text, task=task, timeout_seconds=SQL_SECONDS)

    def _search(
        self, conn: sqlite3.Connection, index: str, text: str | None, options: tuple[object, ...]
    ) -> str | None:
        """Hits as a JSON array for `json_each`, each as `Hit.to_dict` gives it; NULL for a NULL query.

        `options` are k, mode, filters as a JSON object of `column__op` to value, and offset.
        """
        if text is None:
            return None
        k, mode, filters, offset = (*options, *(None,) * 4)[:4]
        query = Query(
            text,
            k=_integer(k, "k", 10),
            mode=cast("Mode", mode or "hybrid"),
            filters=_filters(filters),
            offset=_integer(offset, "offset", 0),
        )
        found = registry.find(conn, index)
        file = ledger_of(conn)

        def ask(model: Embedder, text: str) -> Vector:
            return self._vector(model, text, "RETRIEVAL_QUERY", file)

        asked = apart(lambda: embed(found, query, access=self._access, ask=ask), seconds=_SECONDS)
        # Not `search`: the statement that calls this reads one state already, and a transaction would end it.
        return json.dumps([hit.to_dict() for hit in answer(conn, found, asked)], ensure_ascii=False)


_specifications: dict[str, tuple[tuple[int, ...], str]] = {}


def _specification(file: str, *, immutable: bool) -> str:
    """The embedder of the database's Gemini indexes, looked up anew when the file has changed.

    Raises InvalidQuery where they are of different models, whose vectors cannot be compared with each other.
    """
    stamp = tuple(Path(name).stat().st_mtime_ns for name in (file, f"{file}-wal") if file and Path(name).exists())
    known = _specifications.get(file)
    if known and stamp == known[0]:
        return known[1]
    found: dict[str, str] = {}
    if file:
        try:
            uri = f"file:{quote(file)}?mode=ro{'&immutable=1' if immutable else ''}"
            with closing(sqlite3.connect(uri, uri=True)) as conn:
                found = {i.fingerprint: i.embedder for i in registry.indexes(conn) if i.embedder.startswith(GEMINI)}
        except (sqlite3.Error, VecError):
            found = {}
    if len(found) > 1:
        raise InvalidQuery(
            f"the database has indexes of {len(found)} Gemini models, {', '.join(sorted(found.values()))}, whose "
            "vectors cannot be compared: ask one of them with semantic_search('INDEX', 'QUESTION')"
        )
    specification = next(iter(found.values()), GEMINI[0])
    _specifications[file] = (stamp, specification)
    return specification


def _integer(value: object, name: str, default: int) -> int:
    if value is None:
        return default
    if not isinstance(value, int):
        raise InvalidQuery(f"{name} is {value!r}; it must be a whole number")
    return value


def _filters(value: object) -> dict[str, object]:
    if value is None:
        return {}
    try:
        filters = json.loads(str(value))
    except json.JSONDecodeError as error:
        raise InvalidFilter(f"the filters are not JSON: {error}") from error
    if not isinstance(filters, dict):
        raise InvalidFilter('the filters are not a JSON object such as {"year__gte": 2000}')
    return filters
