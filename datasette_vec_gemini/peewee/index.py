"""VectorIndex, and the schema manager that creates and drops it with its table."""

from __future__ import annotations

from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Any

from peewee import CompositeKey, Index, Model, SchemaManager, SqliteDatabase

from ..errors import InvalidKey, InvalidName, InvalidSetting
from ..vector_index import DerivedIndex, Metric
from .dialects import base, bound_database, dialect_of

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from .fields import VectorField


# What Peewee stores in SQLite for a field of this type.
STORED = {
    "AUTO": "integer", "BIGAUTO": "integer", "INT": "integer", "BIGINT": "integer", "SMALLINT": "integer",
    "FLOAT": "float", "DOUBLE": "float", "BOOL": "boolean",
    "TEXT": "text", "VARCHAR": "text", "CHAR": "text", "UUID": "text",
    "DATE": "text", "TIME": "text", "DATETIME": "text",
}  # fmt: skip


class VectorIndex(Index):
    """An index of a VectorField: `Document.add_index(VectorIndex(Document.embedding, metric="cosine"))`.

    Where there is no model yet, in the `indexes` of a Meta, the field goes by its name. On SQLite the index is a vec0
    table, on PostgreSQL an HNSW index; both can be made again from the column at any time. `quantize` and what else
    there is are those of `DerivedIndex`.
    """

    def __init__(
        self, field: VectorField | str, *, name: str | None = None, metric: Metric = "cosine", **tuning: Any
    ) -> None:
        self.field = field
        self.name = name
        self.metric: Metric = metric
        self.tuning = tuning
        super().__init__(name, "", [field])

    def field_of(self, model: type[Model]) -> VectorField:
        """The field in this model, which may have inherited the index."""
        field: VectorField = model._meta.combined[self._field_name]
        return field

    def serves(self, field: VectorField) -> bool:
        """Whether it is an index of this field, or of the one that the field was inherited from."""
        return bool(field.name == self._field_name)

    @property
    def _field_name(self) -> str:
        return self.field if isinstance(self.field, str) else self.field.name

    def of(self, model: type[Model]) -> DerivedIndex:
        """What the index is in this model. Raises InvalidName, InvalidKey, InvalidSetting."""
        meta = model._meta
        field = self.field_of(model)
        key = meta.primary_key
        if not key or isinstance(key, CompositeKey):
            raise InvalidKey(f"{model.__name__} has no key of one column, which a VectorIndex refers to its rows by")
        inherited = not isinstance(self.field, str) and self.field.model is not model
        return DerivedIndex(
            name=f"{meta.table_name}_{field.column_name}_idx" if inherited or self.name is None else self.name,
            table=meta.table_name,
            key=key.column_name,
            key_type=STORED.get(key.field_type, key.field_type),
            column=field.column_name,
            dimensions=field.dimensions,
            metric=self.metric,
            **self.tuning,
        )


def vector_indexes(model: type[Model]) -> list[VectorIndex]:
    """The vector indexes of a model."""
    return [index for index in model._meta.indexes if isinstance(index, VectorIndex)]


def indexes_of(field: VectorField) -> list[VectorIndex]:
    """The vector indexes of a field, which may be that of an alias."""
    return [index for index in vector_indexes(base(field.model)) if index.serves(field)]


class VectorSchemaManager(SchemaManager):
    """Creates and drops vector indexes with their tables. A VectorField brings it; it need not be named in a Meta."""

    @classmethod
    def take_over(cls, model: type[Model]) -> None:
        """Become the schema manager of a model, keeping what another class of its own does."""
        manager = model._schema
        if isinstance(manager, VectorSchemaManager):
            return
        kind = type(manager)
        both = cls if kind is SchemaManager else type(f"Vector{kind.__name__}", (cls, kind), {})
        model._schema = both(model, **manager.context_options)

    def create_table(self, safe: bool = True, **options: Any) -> None:
        """Peewee's, in a database that has been made ready for vectors.

        Raises InvalidName, InvalidKey, InvalidSetting before there is a table.
        """
        database = bound_database(self.model)
        dialect_of(database).prepare(database)
        for index in vector_indexes(self.model):
            index.of(self.model)
        super().create_table(safe, **options)

    def _create_indexes(self, safe: bool = True) -> list[Any]:
        return [self._create_index(index, safe) for index in self._plain_indexes()]

    def _drop_indexes(self, safe: bool = True) -> list[Any]:
        return [self._drop_index(index, safe) for index in self._plain_indexes() if isinstance(index, Index)]

    def _plain_indexes(self) -> list[Any]:
        return [index for index in self.model._meta.fields_to_index() if not isinstance(index, VectorIndex)]

    def create_indexes(self, safe: bool = True) -> None:
        """Peewee's; vector indexes too, with the rows that the table has."""
        super().create_indexes(safe)
        database = bound_database(self.model)
        for index in vector_indexes(self.model):
            self._refuse_elsewhere(database)
            with self._at_once():
                dialect_of(database).create_index(database, index.of(self.model), safe=safe)

    def drop_index(self, field: Any = None, index: Any = None, safe: bool = True) -> Any:
        """Peewee's; a VectorIndex too."""
        if not isinstance(index, VectorIndex):
            return super().drop_index(field, index, safe)
        database = bound_database(self.model)
        with self._at_once():
            dialect_of(database).drop_index(database, index.of(self.model))
        return None

    def drop_indexes(self, safe: bool = True) -> None:
        """Peewee's; vector indexes too."""
        super().drop_indexes(safe)
        for index in vector_indexes(self.model):
            self.drop_index(index=index, safe=safe)

    def drop_table(self, safe: bool = True, **options: Any) -> None:
        """Peewee's; what its vector indexes are made of goes with the table."""
        with self._at_once():
            for index in vector_indexes(self.model):
                with suppress(InvalidName):  # no index was ever made by it
                    self.drop_index(index=index, safe=safe)
            super().drop_table(safe, **options)

    def _at_once(self) -> AbstractContextManager[Any]:
        """All or nothing; in a transaction of the caller's, its affair."""
        database = bound_database(self.model)
        return nullcontext() if database.in_transaction() else database.atomic()

    def _refuse_elsewhere(self, database: Any) -> None:
        meta = self.model._meta
        if isinstance(database, SqliteDatabase) and (meta.schema or meta.temporary):
            raise InvalidSetting(
                f"{self.model.__name__} is in {meta.schema or 'temp'!r}, and on SQLite a VectorIndex serves tables of "
                "the main file only: without one, nearest() scores all rows"
            )
