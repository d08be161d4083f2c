"""Peewee's SQLite database with sqlite-vec in every connection, and loading of extensions off again afterwards."""

from __future__ import annotations

import re
from typing import Any

from peewee import Delete, Field, Insert, ModelInsert, OperationalError, SqliteDatabase, Update
from playhouse.pool import PooledSqliteDatabase

from .. import vector_index
from ..driver import sqlite3
from ..errors import ExtensionUnavailable
from ..vector_index.candidates import REGISTRY
from .bulk import at_once
from .fields import VectorField

WAITING_ROWS = 250
"""So many changed rows are left to be scored one by one, which costs less than folding each into vec0 as it comes."""


class VectorSqliteMixin(SqliteDatabase):
    """Put before another class of SQLite databases: `class Mine(VectorSqliteMixin, PooledSqliteDatabase)`.

    Not before SqliteQueueDatabase, which has no transactions.

    Each connection has sqlite-vec. Loading of extensions is off again after that, after Peewee has loaded others and
    after `load_extension`. Where a commit leaves many rows waiting for a vector index, they are folded into it.
    """

    def get_tables(self, schema: str | None = None) -> list[str]:
        """The tables that are somebody's own: not what virtual tables and vector indexes keep their data in."""
        derived = {name for index in self._derived(schema) for name in (index.name, index.dirty)}
        rows = self.execute_sql(
            """
            select name from pragma_table_list as listed
            where schema = ? and type in ('table', 'virtual') and name not glob 'sqlite_*' and not exists (
                select 1 from pragma_table_list as owner where owner.schema = listed.schema and owner.type = 'virtual'
                and listed.name glob owner.name || '_vector_chunks[0-9][0-9]'
            )
            order by name
            """,
            (schema or "main",),
        )
        return [name for (name,) in rows if name not in {*derived, REGISTRY}]

    def _derived(self, schema: str | None) -> list[vector_index.DerivedIndex]:
        return [*vector_index.stored(self.connection())] if schema in {None, "main"} else []

    def load_extension(self, extension: str) -> None:
        """Load an extension into this thread's connection and every later one; loading is off again afterwards."""
        try:
            super().load_extension(extension)
        finally:
            if not self.is_closed():
                self.connection().enable_load_extension(False)

    def execute(self, query: Any, **options: Any) -> Any:
        """Peewee's; a statement outside of a transaction is a commit of its own."""
        try:
            cursor = self._executed(query, options)
        except OperationalError as error:
            if missing := re.fullmatch("no such table: (.+)_dirty", str(error)):
                raise OperationalError(
                    f"the vector index {missing[1]!r} is declared, but not in this file: create_tables() makes it, "
                    "also where the table is there already"
                ) from error
            raise
        if isinstance(query, Insert | Update | Delete) and not query._returning:
            vector_index.catch_up(self.connection(), waiting=WAITING_ROWS)
        return cursor

    def _executed(self, query: Any, options: dict[str, Any]) -> Any:
        """Peewee's, but quicker for rows of vectors."""
        if not options and isinstance(query, ModelInsert) and any(map(_is_vector, query.model._meta.sorted_fields)):
            made = at_once(self, query)
            if isinstance(made, tuple):
                return self.execute_sql(*made)
            query = made
        return super().execute(query, **options)

    def commit(self) -> None:
        """Peewee's; many changed rows are folded into their vector indexes after it."""
        super().commit()
        vector_index.catch_up(self.connection(), waiting=WAITING_ROWS)

    def _add_conn_hooks(self, conn: sqlite3.Connection) -> None:
        if not isinstance(conn, sqlite3.Connection):
            raise ExtensionUnavailable(
                f"Peewee takes the SQLite of {type(conn).__module__}, everything else in this process that of "
                f"{sqlite3.__name__} {sqlite3.sqlite_version}, and two of them lose each other's locks on a file: "
                "pip install --upgrade pysqlite3"
            )
        super()._add_conn_hooks(conn)
        vector_index.prepare(conn)

    def _load_extensions(self, conn: sqlite3.Connection) -> None:
        try:
            super()._load_extensions(conn)
        finally:
            conn.enable_load_extension(False)


def _is_vector(field: Field) -> bool:
    return isinstance(field, VectorField)


class VectorSqliteDatabase(VectorSqliteMixin):
    """`SqliteDatabase` whose connections have sqlite-vec."""


class PooledVectorSqliteDatabase(VectorSqliteMixin, PooledSqliteDatabase):
    """`PooledSqliteDatabase` whose connections have sqlite-vec; one serves several threads, one after another."""

    def init(self, database: str | None, **options: Any) -> None:
        """Peewee's; Python need not refuse a connection to another thread than made it."""
        super().init(database, **{"check_same_thread": False} | options)


def sync_indexes(database: SqliteDatabase) -> int:
    """Bring every vector index of the file up to its table, repaired if need be; tells how many rows that took.

    Right answers do not wait for it, only quick ones: after other programs' writes, or a migration that copied a table.
    On PostgreSQL, whose indexes follow their tables, it does nothing.
    """
    connection = database.connection()
    return vector_index.sync(connection) if isinstance(connection, sqlite3.Connection) else 0
