"""Text in, entities out: what the ORM doors share to tie a mapped class to an index and to search it.

The index is made and kept by the core, over the connection that an ORM's engine gives. Nothing here knows an ORM.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from . import embedders
from .budget import dollars, ledger_of
from .chunking import placeholders
from .connection import load_vec
from .domain import MAX_HITS, Embedder, Estimate, Hit, Index, Quantize, Query, SyncReport, check_name, check_quantize
from .driver import sqlite3
from .errors import (
    ConfirmationNeeded,
    DatabaseUnavailable,
    EmbedderError,
    ExtensionUnavailable,
    IndexExists,
    IndexNotFound,
    UsageError,
)
from .indexing import create_index, plan_index, rebuild
from .keys import Key
from .paid import PaidEmbedder
from .schema import source_key
from .searching import answer, embed
from .store import generations, registry
from .store.filters import Condition, among
from .store.transactions import mapped_errors, refuse_open_transaction, snapshot, transaction
from .syncing import OnProgress, sync, sync_text
from .texting import is_behind

ATTRIBUTE = "__semantic__"
"""Where a mapped class keeps its declaration; subclasses share that of their parent."""

_T = TypeVar("_T")
_log = logging.getLogger("datasette_vec_gemini")


@dataclass(frozen=True, kw_only=True, slots=True)
class Semantic:
    """The index that a mapped class is tied to, by the names of the database; the fields are those of `create_index`.

    `key` are the key columns as the class knows them. Raises InvalidName on birth.
    """

    name: str
    table: str
    columns: tuple[str, ...]
    key: tuple[str, ...]
    template: str | None = None
    embedder: str | Embedder = "local"
    quantize: Quantize = "bit"

    def __post_init__(self) -> None:
        check_name(self.name)
        check_quantize(self.quantize)

    def open(self, conn: sqlite3.Connection) -> Index:
        """The index as the database has it, made empty with all rows queued where it is missing.

        In an open transaction it is made as a part of that. Raises ExtensionUnavailable, IndexExists where there is
        another of that name.
        """
        load_vec(driven(conn))
        try:
            index = registry.find(conn, self.name)
        except IndexNotFound:
            try:
                index = self._make(conn)
            except IndexExists:  # another process was as quick
                index = registry.find(conn, self.name)
        self._check(index)
        return index

    def sync(
        self,
        conn: sqlite3.Connection,
        *,
        full: bool = False,
        max_usd: float | None = None,
        on_progress: OnProgress | None = None,
    ) -> SyncReport:
        """Bring the index up to the table; where the class names another model now, build that one's generation.

        Raises ConfirmationNeeded before a paid model is asked for anything without `max_usd` or a daily limit,
        TransactionOpen.
        """
        refuse_open_transaction(conn)
        index, model = self.open(conn), self._model()
        approve = _approval(model, max_usd)
        if (model.fingerprint, self.quantize) == (index.fingerprint, index.quantize):
            return sync(
                conn, index, embedder=model, full=full, max_usd=max_usd, approve=approve, on_progress=on_progress
            )
        _, report = rebuild(
            conn,
            index,
            embedder=model,
            quantize=self.quantize,
            max_usd=max_usd,
            approve=approve,
            on_progress=on_progress,
        )
        return report

    def catch_up(self, conn: sqlite3.Connection) -> None:
        """Index what has changed, before a search. Where that may not be now, the log says why, and search goes on.

        In an open transaction it is the text stage alone: no transaction waits for a model. Of a model that costs money
        nothing is bought unless somebody has set a daily limit. Rows that changed are never shown by their old text.
        """
        index = self.open(conn)
        if not is_behind(conn, index):
            return
        model = self._model_of(index)
        try:
            if conn.in_transaction:
                sync_text(conn, index, embedder=model)
            else:
                sync(conn, index, embedder=model, approve=_approval(model, None))
        except (ConfirmationNeeded, DatabaseUnavailable, EmbedderError) as error:
            _log.warning("index %s is searched as it is: %s", index.name, error)

    def asked(self, conn: sqlite3.Connection, query: Query) -> tuple[Index, Query]:
        """The index and the query with its vector, to be given to `hits`. Raises EmbedderError."""
        index = self.open(conn)
        return index, embed(index, query, embedder=self._model_of(index), ledger=ledger_of(conn))

    def drop(self, conn: sqlite3.Connection) -> None:
        """Remove the index, if there is one, with all its generations; in an open transaction as a part of that."""
        load_vec(driven(conn))
        with mapped_errors(), transaction(conn):
            for generation in registry.generations(conn, self.name):
                generations.drop(conn, generation)

    def _make(self, conn: sqlite3.Connection) -> Index:
        options: dict[str, Any] = {
            "table": self.table,
            "columns": self.columns,
            "template": self.template,
            "embedder": self.embedder,
            "quantize": self.quantize,
        }
        if not conn.in_transaction:
            return create_index(conn, self.name, **options)
        # The journal mode, which create_index sets too, cannot change here.
        index = plan_index(conn, self.name, **options)
        with mapped_errors(), transaction(conn):
            registry.migrate(conn)
            generations.create(conn, index)
        return index

    def _model(self) -> Embedder:
        return embedders.load(self.embedder) if isinstance(self.embedder, str) else self.embedder

    def _model_of(self, index: Index) -> Embedder:
        """The class's own embedder while the index is of it; of another model the index knows the name."""
        model = self._model()
        return model if model.fingerprint == index.fingerprint else embedders.load(index.embedder)

    def _check(self, index: Index) -> None:
        columns = tuple(dict.fromkeys([*self.columns, *(placeholders(self.template) if self.template else ())]))
        # SQLite takes names in any case, and an index has them as the table spells them.
        asked, found = (self.table, *columns, self.template), (index.table, *index.columns, index.template)
        if _folded(*asked) != _folded(*found):
            raise IndexExists(
                f"the database has an index {self.name!r} over {', '.join(index.columns)} of {index.table!r} and the "
                f"class wants {', '.join(columns)} of {self.table!r}, or another template: drop it with "
                f"`datasette vec drop DB {self.name}`, or give the class's index another name"
            )
        if sorted(_folded(*source_key(index))) != sorted(_folded(*self.key)):
            raise UsageError(
                f"the class of {self.table!r} has the primary key {', '.join(self.key)} and the table "
                f"{', '.join(source_key(index))}: make them agree"
            )


def declared(entity: type, orm: str, tables: Collection[str]) -> Semantic:
    """What `semantic` has said of a class, or of its parent in one of these tables. Raises UsageError otherwise."""
    found = getattr(entity, ATTRIBUTE, None)
    if isinstance(found, Semantic) and found.table in tables:
        return found
    name = entity.__name__
    raise UsageError(
        f"{name} has no semantic index: after the class, call "
        f'datasette_vec_gemini.{orm}.semantic({name}, columns=["..."])'
    )


def refuse_dialect(name: str) -> None:
    """Raise UsageError unless the database is SQLite, which alone can hold an index of ours."""
    if name != "sqlite":
        raise UsageError(
            f"semantic() keeps its index in a SQLite file, and this database is {name}: give the class a Vector column "
            "and a VectorIndex, fill it with load_embedder(...).embed_documents(texts), and ask nearest() with "
            "load_embedder(...).embed_query(question); both work on PostgreSQL"
        )


def driven(conn: object) -> sqlite3.Connection:
    """The connection, if it is of the one SQLite library that this process uses. Raises ExtensionUnavailable."""
    if not isinstance(conn, sqlite3.Connection):
        raise ExtensionUnavailable(
            f"this connection is a {type(conn).__module__}.{type(conn).__qualname__}, and this process uses "
            f"{sqlite3.__name__}, as two SQLite libraries lose each other's locks: make the engine with "
            "datasette_vec_gemini.sqlalchemy.create_engine, or Peewee's with VectorSqliteDatabase"
        )
    return conn


def hits(
    conn: sqlite3.Connection, index: Index, query: Query, *, only: tuple[str, Sequence[object]] | None = None
) -> list[Hit]:
    """The answer to a query that has been `asked`, among the keys that a select statement yields with its values."""
    condition: Condition | None = among(index, *only) if only else None
    with mapped_errors(), snapshot(conn):
        return answer(conn, index, query, only=condition)


def matched(
    ask: Callable[[Query], list[Hit]], load: Callable[[Sequence[Key]], Mapping[Key, _T]], query: Query
) -> list[tuple[_T, Hit]]:
    """Each hit with its entity, k of them from the query's offset on.

    What the ORM does not find under its key, be it that it was deleted just now or that the session hides it, is passed
    over and the ranking followed further down.
    """
    wanted = query.offset + query.k
    depth = wanted
    while True:
        found = ask(replace(query, k=depth, offset=0))
        entities = load([hit.key for hit in found])
        pairs = [(entities[hit.key], hit) for hit in found if hit.key in entities]
        if len(pairs) >= wanted or len(found) < depth or depth == MAX_HITS:
            return pairs[query.offset : wanted]
        depth = min(4 * depth, MAX_HITS)


def _folded(*names: str | None) -> list[str]:
    return [(name or "").casefold() for name in names]


def _approval(model: Embedder, max_usd: float | None) -> Callable[[Estimate], None]:
    """Nobody is there to be asked whether a cost is agreed to: a limit that somebody has set is the yes."""

    def approve(expected: Estimate) -> None:
        if isinstance(model, PaidEmbedder) and max_usd is None and model.access.daily_usd is None:
            raise ConfirmationNeeded(
                f"model {expected.embedder} costs money, about {dollars(expected.usd)} for {expected.chunks:,} chunks "
                f"of index {expected.index!r}: call sync_entities with max_usd, or set daily_usd "
                "(DATASETTE_VEC_DAILY_USD); until then they are found by words"
            )

    return approve
