"""Text in, entities out: a model tied to an index of this library, and searched by a question."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from peewee import SQL, Database, EnclosedNodeList, Field, Model, Node, NodeList, SchemaManager, SqliteDatabase

from .. import entities
from ..chunking import placeholders, respell
from ..domain import Embedder, Hit, Index, Mode, Quantize, Query, SyncReport
from ..driver import sqlite3
from ..entities import Semantic
from ..errors import ColumnNotFound, InvalidKey, InvalidQuery, UsageError, shown
from ..schema import source_key

if TYPE_CHECKING:
    from ..keys import Key
    from ..syncing import OnProgress

_M = TypeVar("_M", bound=Model)


def semantic(
    model: type[Model],
    columns: Sequence[str | Field] = (),
    *,
    template: str | None = None,
    embedder: str | Embedder = "local",
    quantize: Quantize = "bit",
    name: str | None = None,
) -> None:
    """Tie a model to a semantic index over these fields of it, or over those that `template` names.

    The index has the table's name unless `name` is given. `create_tables` makes it with the table and `drop_tables`
    removes it; for a table that is there already the first sync or search makes it. Triggers queue what any program
    writes. Raises ColumnNotFound, InvalidKey, InvalidName.
    """
    _refuse_no_model(model)
    meta = model._meta
    if isinstance(columns, str):
        raise UsageError(f"columns is {shown(columns)}: give a list of them")
    named = [field if isinstance(field, str) else field.name for field in columns]
    found = {each: _column(model, each) for each in (*named, *(placeholders(template) if template else ()))}
    if not found:
        raise ColumnNotFound(f"{model.__name__}: name at least one field; it has {', '.join(meta.fields)}")
    if meta.schema not in {None, "main"}:
        raise UsageError(f"{model.__name__}: its table is in schema {meta.schema!r}; an index is of one file, main")
    if not meta.primary_key:
        raise InvalidKey(f"{model.__name__}: the model has no primary key: declare one")
    declared = Semantic(
        name=name or meta.table_name,
        table=meta.table_name,
        columns=tuple(found[each] for each in named),
        key=tuple(field.column_name for field in meta.get_primary_keys()),
        template=template and respell(template, found.__getitem__),
        embedder=embedder,
        quantize=quantize,
    )
    setattr(model, entities.ATTRIBUTE, declared)
    if not isinstance(model._schema, _WithIndex):
        kind = type(model._schema)
        model._schema.__class__ = type(f"Semantic{kind.__name__}", (_WithIndex, kind), {})


def sync_entities(
    db: Database,
    model: type[Model],
    *,
    full: bool = False,
    max_usd: float | None = None,
    on_progress: OnProgress | None = None,
) -> SyncReport:
    """Bring the index of a model up to what is committed; `full` compares every row. See `datasette_vec_gemini.sync`.

    Only this call pays for documents where no daily limit is set: give `max_usd`. A model that names another embedder
    than the index has gets its next generation built here. Raises TransactionOpen inside of `atomic()`.
    """
    declared = _declared(model)
    return declared.sync(_connection(db), full=full, max_usd=max_usd, on_progress=on_progress)


def search_entities(
    db: Database,
    model: type[_M],
    question: str,
    *,
    k: int = 5,
    where: Iterable[Node] | Node | None = (),
    mode: Mode = "hybrid",
    offset: int = 0,
    sync: bool = True,
) -> list[tuple[_M, Hit]]:
    """The k entities that answer a question best, each with its hit: score, snippet and why; best first.

    `where` is a condition, or several, as `model.select().where(...)` takes them. It acts inside the search: k entities
    come whenever k match. With `sync` what changed since the last one is indexed first, unless it would cost money that
    nobody has allowed. What an open `atomic()` has written is found by words at once, by meaning after its commit.
    Raises UsageError, EmbedderError, DatabaseUnavailable.
    """
    query = Query(question, k=k, mode=mode, offset=offset)
    filters = _conditions(where)
    declared = _declared(model)
    conn = _connection(db)
    if sync:
        declared.catch_up(conn)
    index, asked = declared.asked(conn, query)
    only = _keys(db, model, index, filters) if filters else None
    return entities.matched(
        lambda deeper: entities.hits(conn, index, deeper, only=only),
        lambda keys: _load(db, model, index, keys),
        asked,
    )


class _WithIndex(SchemaManager):
    """Mixed into the schema manager of a semantic model: the index comes and goes with the table."""

    def create_all(self, *args: Any, **options: Any) -> None:
        super().create_all(*args, **options)
        if isinstance(self.database, SqliteDatabase):
            _declared(self.model).open(_connection(self.database))

    def drop_all(self, *args: Any, **options: Any) -> None:
        if isinstance(self.database, SqliteDatabase):
            _declared(self.model).drop(_connection(self.database))
        super().drop_all(*args, **options)


def _declared(model: type[Model]) -> Semantic:
    _refuse_no_model(model)
    return entities.declared(model, "peewee", [model._meta.table_name])


def _refuse_no_model(model: object) -> None:
    if not (isinstance(model, type) and issubclass(model, Model)):
        raise UsageError(f"{shown(model)} is no model: give the class itself, not an alias or a row of it")


def _conditions(where: Any) -> Sequence[Node]:
    """Those given: several, one by itself, or None for none. Peewee would take other values as such, true or false."""
    if where is None:
        return ()
    # A class of a model can be walked through: that reads its table.
    is_one = isinstance(where, str | bytes | Mapping | Node | type)
    given = tuple(where) if isinstance(where, Iterable) and not is_one else (where,)
    for each in given:
        if not isinstance(each, Node) or isinstance(each, Model):
            raise InvalidQuery(f"{shown(each)} is no condition: give such as [Document.category == 'poem']")
    return given


def _connection(db: Database) -> sqlite3.Connection:
    entities.refuse_dialect("sqlite" if isinstance(db, SqliteDatabase) else type(db).__name__)
    return entities.driven(db.connection())


def _column(model: type[Model], name: str) -> str:
    field = model._meta.fields.get(name)
    if field is None:
        raise ColumnNotFound(f"{model.__name__} has no field {shown(name)}; it has {', '.join(model._meta.fields)}")
    column: str = field.column_name
    return column


def _key_fields(model: type[Model], index: Index) -> list[Field]:
    """The fields of the primary key in the order of the index's."""
    by_name = {field.column_name.casefold(): field for field in model._meta.get_primary_keys()}
    return [by_name[name.casefold()] for name in source_key(index)]


def _keys(db: Database, model: type[Model], index: Index, where: Sequence[Node]) -> tuple[str, Sequence[object]]:
    """A statement that yields the keys of the entities that fulfil the conditions, and its values."""
    query = model.select(*_key_fields(model, index)).where(*where)
    sql, values = db.get_sql_context().parse(query)
    return sql, values


def _load(db: Database, model: type[_M], index: Index, keys: Sequence[Key]) -> Mapping[Key, _M]:
    """The entities of these keys."""
    if not keys:
        return {}
    # Keys are compared and read as SQLite stores them: what stands in a list of nodes meets no field's converter.
    fields = _key_fields(model, index)
    own = [NodeList((field,)).alias(f"_vec_k{n}") for n, field in enumerate(fields)]
    marks = f"({', '.join('?' * len(fields))})"
    values = SQL(f"values {', '.join([marks] * len(keys))}", [part for key in keys for part in key])
    found = model.select(model, *own).where(EnclosedNodeList(fields).in_(EnclosedNodeList([values])))
    return {tuple(vars(each).pop(f"_vec_k{n}") for n in range(len(own))): each for each in found.execute(db)}
