"""Text in, entities out: a mapped class tied to an index of this library, and searched by a question.

Async sessions call these through `run_sync`: `await session.run_sync(search_entities, Document, "a question")`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import Column, Connection, Dialect, Engine, Select, Table, event, inspect, select, tuple_, type_coerce
from sqlalchemy.orm import InstrumentedAttribute, Mapper, Session, scoped_session
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.types import NullType

from .. import entities
from ..chunking import placeholders, respell
from ..domain import Embedder, Hit, Index, Mode, Quantize, Query, SyncReport
from ..entities import Semantic
from ..errors import ColumnNotFound, InvalidKey, UsageError, shown
from ..schema import source_key
from .conditions import as_conditions
from .engine import on_driver
from .index import is_for_good

if TYPE_CHECKING:
    from ..keys import Key
    from ..syncing import OnProgress
    from .conditions import Conditions

_E = TypeVar("_E")
_R = TypeVar("_R")


def semantic(
    entity: type[Any],
    columns: Sequence[str | InstrumentedAttribute[Any]] = (),
    *,
    template: str | None = None,
    embedder: str | Embedder = "local",
    quantize: Quantize = "bit",
    name: str | None = None,
) -> None:
    """Tie a mapped class to a semantic index over these attributes of it, or over those that `template` names.

    The index has the table's name unless `name` is given. `create_all` makes it with the table and `drop_all` removes
    it; for a table that is there already the first sync or search makes it. Triggers queue what any program writes.
    Raises ColumnNotFound, InvalidKey, InvalidName.
    """
    mapper = _mapper(entity)
    if isinstance(columns, str):
        raise UsageError(f"columns is {shown(columns)}: give a list of them")
    named = [attribute if isinstance(attribute, str) else attribute.key for attribute in columns]
    found = {each: _column(mapper, each) for each in (*named, *(placeholders(template) if template else ()))}
    tables = {column.table for column in found.values()}
    table = next(iter(tables), None)
    if len(tables) != 1 or not isinstance(table, Table):
        raise ColumnNotFound(
            f"{entity.__name__}: name columns of one table, found {', '.join(map(shown, found)) or 'none'}"
        )
    if table.schema not in {None, "main"}:
        raise UsageError(f"{entity.__name__}: its table is in schema {table.schema!r}; an index is of one file, main")
    if not table.primary_key.columns:
        raise InvalidKey(f"{entity.__name__}: table {table.name!r} has no primary key: declare one")
    declared = Semantic(
        name=name or table.name,
        table=table.name,
        columns=tuple(found[each].name for each in named),
        key=tuple(column.name for column in table.primary_key.columns),
        template=template and respell(template, lambda each: found[each].name),
        embedder=embedder,
        quantize=quantize,
    )
    is_again = entities.ATTRIBUTE in vars(entity)
    setattr(entity, entities.ATTRIBUTE, declared)
    if not is_again:
        event.listen(table, "after_create", partial(_create, entity))
        event.listen(table, "before_drop", partial(_drop, entity))


def _create(entity: type[Any], _: Table, connection: Connection, **__: object) -> None:
    if connection.dialect.name == "sqlite":
        on_driver(connection, _declared(entity).open)


def _drop(entity: type[Any], _: Table, connection: Connection, **options: object) -> None:
    if connection.dialect.name == "sqlite" and is_for_good(options):
        on_driver(connection, _declared(entity).drop)


def sync_entities(
    session: Session | scoped_session[Any],
    entity: type[Any],
    *,
    full: bool = False,
    max_usd: float | None = None,
    on_progress: OnProgress | None = None,
) -> SyncReport:
    """Bring the index of a class up to what is committed; `full` compares every row. See `datasette_vec_gemini.sync`.

    Only this call pays for documents where no daily limit is set: give `max_usd`. A class that names another model than
    the index has gets its next generation built here. Raises TransactionOpen while the session has uncommitted changes.
    """
    declared, session = _declared(entity), _checked(session, entity)
    return _apart(
        session,
        entity,
        lambda raw: declared.sync(raw, full=full, max_usd=max_usd, on_progress=on_progress),
    )


def search_entities(
    session: Session | scoped_session[Any],
    entity: type[_E],
    question: str,
    *,
    k: int = 5,
    where: Conditions = (),
    mode: Mode = "hybrid",
    offset: int = 0,
    sync: bool = True,
) -> list[tuple[_E, Hit]]:
    """The k entities that answer a question best, each with its hit: score, snippet and why; best first.

    `where` is a condition, or several, as `select(entity).where(...)` takes them. It acts inside the search: k entities
    come whenever k match. With `sync` what changed since the last one is indexed first, unless it would cost money that
    nobody has allowed. What the session itself has not committed is flushed and found by words at once, by meaning
    after the commit. Raises UsageError, EmbedderError, DatabaseUnavailable.
    """
    query = Query(question, k=k, mode=mode, offset=offset)
    conditions = as_conditions(where)
    declared, session = _declared(entity), _checked(session, entity)
    if session.autoflush:
        session.flush()
    if sync:
        _apart(session, entity, declared.catch_up)
    index, asked = _within(session, entity, lambda raw: declared.asked(raw, query))
    only = _keys(session, entity, index, conditions)
    return entities.matched(
        lambda deeper: _within(session, entity, lambda raw: entities.hits(raw, index, deeper, only=only)),
        lambda keys: _load(session, entity, index, keys),
        asked,
    )


def _declared(entity: type[Any]) -> Semantic:
    return entities.declared(entity, "sqlalchemy", [each.name for each in _mapper(entity).tables])


def _mapper(entity: type[Any]) -> Mapper[Any]:
    """Of a mapped class. Raises UsageError for anything else."""
    mapper = inspect(entity, raiseerr=False)
    if not isinstance(mapper, Mapper):
        raise UsageError(f"{shown(entity)} is no mapped class: give the class itself, not an alias or a table of it")
    return mapper


def _checked(session: Session | scoped_session[Any], entity: type[Any]) -> Session:
    """The session, if it is one of a SQLite database that can be asked here. Raises UsageError."""
    if hasattr(session, "run_sync"):
        raise UsageError("an async session searches by `await session.run_sync(search_entities, Document, question)`")
    own = session() if isinstance(session, scoped_session) else session
    if not isinstance(own, Session):
        raise UsageError(
            f"{shown(session)} is no session: `with Session(engine) as session: search_entities(session, "
            f"{entity.__name__}, question)`, or sync_entities(session, {entity.__name__})"
        )
    entities.refuse_dialect(own.get_bind(inspect(entity)).dialect.name)
    return own


def _within(session: Session, entity: type[Any], work: Callable[[Any], _R]) -> _R:
    """Do something with the driver's connection that the session uses, in its transaction."""
    return on_driver(session.connection(bind_arguments={"mapper": inspect(entity)}), work)


def _apart(session: Session, entity: type[Any], work: Callable[[Any], _R]) -> _R:
    """Do something with a connection that is in no transaction, where the session itself is in none."""
    bind = session.get_bind(inspect(entity))
    if session.in_transaction() or not isinstance(bind, Engine):
        return _within(session, entity, work)
    with bind.connect() as connection:
        return on_driver(connection, work)


def _column(mapper: Mapper[Any], attribute: str) -> Column[Any]:
    column = mapper.columns.get(attribute)
    if not isinstance(column, Column):
        raise ColumnNotFound(
            f"{mapper.class_.__name__} has no column {shown(attribute)}; it has {', '.join(mapper.columns.keys())}"
        )
    return column


def _key_columns(entity: type[Any], index: Index) -> list[Column[Any]]:
    """The columns of the table's primary key in the order of the index's."""
    by_name = {
        column.name.casefold(): column
        for table in inspect(entity).tables
        if isinstance(table, Table) and table.name.casefold() == index.table.casefold()
        for column in table.primary_key.columns
    }
    return [by_name[name.casefold()] for name in source_key(index)]


def _keys(
    session: Session, entity: type[Any], index: Index, where: Sequence[Any]
) -> tuple[str, Sequence[object]] | None:
    """A statement that yields the keys of the entities that fulfil the conditions, and its values; None for all."""
    mapper = inspect(entity)
    if not where and not mapper.inherits:
        return None
    statement: Select[Any] = select(entity).where(*where)
    statement = statement.with_only_columns(*_key_columns(entity, index), maintain_column_froms=True)
    return _bound(statement, session.get_bind(mapper).dialect)


def _bound(statement: Select[Any], dialect: Dialect) -> tuple[str, list[object]]:
    """A statement as the driver takes it: its SQL, and its values by position."""
    compiled = statement.compile(dialect=dialect)
    if not isinstance(compiled, SQLCompiler):
        raise TypeError(f"a select compiles to SQL, not to {type(compiled).__name__}")
    state = compiled.construct_expanded_state()

    def value(name: str) -> object:
        processor = state.processors.get(name)
        if name in compiled.binds:
            processor = compiled.binds[name].type.dialect_impl(dialect).bind_processor(dialect)
        return processor(state.parameters[name]) if processor else state.parameters[name]

    return state.statement, [value(name) for name in state.positiontup or ()]


def _load(session: Session, entity: type[_E], index: Index, keys: Sequence[Key]) -> Mapping[Key, _E]:
    """The entities of these keys, as the session has them."""
    if not keys:
        return {}
    # Keys are compared and read as SQLite stores them, whatever Python type the class gives them.
    own = [type_coerce(column, NullType()) for column in _key_columns(entity, index)]
    matches = own[0].in_([key[0] for key in keys]) if len(own) == 1 else tuple_(*own).in_(keys)
    statement = select(entity, *(each.label(f"_vec_k{n}") for n, each in enumerate(own))).where(matches)
    return {tuple(key): found for found, *key in session.execute(statement).unique()}
