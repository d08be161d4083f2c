"""Vectors on PostgreSQL with pgvector 0.8 under SQLAlchemy: the extension, type, distances, HNSW index and search."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine, Table, event, select, text
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import CreateIndex
from sqlalchemy.sql import visitors
from sqlalchemy.types import NullType, TypeEngine

from ..vector_index.hnsw import CREATE_EXTENSION, OPERATORS, SESSION_SETTINGS, Hnsw, from_text, to_text
from .index import VectorIndex
from .nearest import Candidates, Search
from .types import Distance, StoredVector, Vector

if TYPE_CHECKING:
    from sqlalchemy import Connection, Dialect
    from sqlalchemy.dialects.postgresql.base import PGCompiler, PGDDLCompiler
    from sqlalchemy.engine.interfaces import DBAPIConnection
    from sqlalchemy.pool import ConnectionPoolEntry


class PostgresVector(StoredVector):
    """pgvector's `vector(n)`: a float32 array in, a list of floats out, as text, so that no driver needs an adapter."""

    stored = staticmethod(to_text)
    literal = staticmethod("'{}'".format)
    render_bind_cast = True

    def get_col_spec(self, **_: Any) -> str:
        """The type in DDL and in casts."""
        return f"VECTOR({self.dimensions})"

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], list[float] | None]:
        """From text."""
        del dialect, coltype
        return lambda text: None if text is None else from_text(text)


def register(engine: Engine) -> None:
    """Set every session of an engine up for statements that order by a distance; `nearest` needs nothing set up."""
    if not event.contains(engine, "connect", _set_up):
        event.listen(engine, "connect", _set_up)
        dialect: Any = engine.dialect
        dialect.ischema_names = {"vector": _reflected, **dialect.ischema_names}


def _reflected(dimensions: int | None = None) -> TypeEngine[Any]:
    """The type of a column that a table is found to have."""
    return NullType() if dimensions is None else Vector(dimensions)


def _set_up(connection: DBAPIConnection, entry: ConnectionPoolEntry) -> None:
    del entry
    cursor = connection.cursor()
    for name, value in SESSION_SETTINGS.items():
        cursor.execute(f"set {name} = {value}")
    cursor.close()
    connection.commit()  # or the first rollback takes the settings with it


@event.listens_for(Table, "before_create")
def _create_extension(table: Table, connection: Connection, **_: Any) -> None:
    if connection.dialect.name == "postgresql" and any(isinstance(column.type, Vector) for column in table.columns):
        connection.execute(text(CREATE_EXTENSION))


@compiles(Distance, "postgresql")
def _distance(element: Distance, compiler: PGCompiler, **options: Any) -> str:
    column, other = (compiler.process(each, **options) for each in element.clauses)
    distance = f"({column} {OPERATORS[element.metric]} {other})"
    # Around a search the rows are found already, and the planner must not ask the index for them again, which may have
    # fewer: adding 0 makes it another expression than the index is ordered by.
    return f"({distance} + 0)" if _surrounds_search(compiler) else distance


def _surrounds_search(compiler: PGCompiler) -> bool:
    statement = compiler.stack[-1].get("selectable") if compiler.stack else None
    conditions = getattr(statement, "_where_criteria", ())
    return any(isinstance(each, Candidates) for condition in conditions for each in visitors.iterate(condition))


@compiles(CreateIndex, "postgresql")
def _create_index(element: CreateIndex, compiler: PGDDLCompiler, **options: Any) -> str:
    index = element.element
    if not isinstance(index, VectorIndex):
        statement: str = compiler.visit_create_index(element, **options)  # type: ignore[no-untyped-call]
        return statement
    table = compiler.preparer.format_table(index.key.table)
    return Hnsw(index=index.derived).create_statement(table, safe=element.if_not_exists)


@compiles(Candidates, "postgresql")
def _candidates(element: Candidates, compiler: PGCompiler, **options: Any) -> str:
    search = Search.around(element, compiler)
    key, column, vector = element.parts
    if search.wanted is None:
        return compiler.process(column.is_not(None), **options)
    rows = select(key.label("id"), column.label("embedding")).where(column.is_not(None)).correlate(None)
    if search.matching is not None:
        if search.matching.get_final_froms() == [key.table]:
            rows = rows.where(*search.matching._where_criteria)  # noqa: SLF001  # there is no public way to it
        else:
            rows = rows.where(key.in_(search.matching))
    asked, wanted, matching = (compiler.process(each, **options) for each in (vector, search.wanted, rows))
    pieces = Hnsw(index=element.index).candidates(asked, wanted, matching)
    # As an array the keys are a constant of the statement, which postgres_fdw can send to other nodes.
    return f"{compiler.process(key, **options)} = any(array({''.join(pieces)}))"
