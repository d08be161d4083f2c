"""Vec0Model: a table of sqlite-vec as a model of its own, for vectors that lie beside the entity, joined by its id.

A vector that is a column of its entity (VectorField with a VectorIndex) can do more: it may be NULL, take part in an
upsert, and move to PostgreSQL. This is for files that have such tables, and for vectors without an entity.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from peewee import Field, Model, NotSupportedError, SqliteDatabase

from ..errors import InvalidSetting
from ..vector_index.vec0 import check_name
from .dialects import bound_database
from .fields import VectorField
from .index import STORED, VectorSchemaManager

if TYPE_CHECKING:
    from peewee import Context

METRICS = ("cosine", "l2")


class Vec0SchemaManager(VectorSchemaManager):
    """Creates the table as vec0 wants it: names without quotes, types with dimensions, nothing behind the columns."""

    def create_table(self, safe: bool = True, **options: Any) -> None:
        """Peewee's. Raises NotSupportedError for any database but SQLite."""
        database = bound_database(self.model)
        if not isinstance(database, SqliteDatabase):
            raise NotSupportedError(
                f"{self.model.__name__} is a table of sqlite-vec, which {type(database).__name__} cannot have: "
                "put the vector into a VectorField of the entity, which both can"
            )
        super().create_table(safe, **options)

    def _create_table(self, safe: bool = True, **_options: Any) -> Context:
        context = self._create_context()
        context.literal("CREATE VIRTUAL TABLE IF NOT EXISTS " if safe else "CREATE VIRTUAL TABLE ").sql(self.model)
        meta = self.model._meta
        columns = ", ".join(column(field, metric=meta.metric) for field in meta.sorted_fields)
        return context.literal(f" USING vec0({columns})")


def column(field: Field, *, metric: str) -> str:
    """One column of a vec0 table in its own grammar. Raises InvalidName, InvalidSetting."""
    name = f"{field.model.__name__}.{field.name}"
    check_name(field.column_name, of=name)
    if field.null:
        raise InvalidSetting(f"{name}: vec0 holds no NULL: drop null=True, and leave out rows that have no value")
    if isinstance(field, VectorField):
        if metric not in METRICS:
            raise InvalidSetting(f"{field.model.__name__}: metric={metric!r} is unknown: use {' or '.join(METRICS)}")
        return f"{field.column_name} float[{field.dimensions}] distance_metric={metric}"
    kind = STORED.get(field.field_type)
    if kind is None:
        raise InvalidSetting(
            f"{name}: vec0 has no type for a {type(field).__name__}: keep it in a table beside this one"
        )
    if field.primary_key and kind not in {"integer", "text"}:
        raise InvalidSetting(f"{name}: vec0's key is an integer or a text")
    return f"{field.column_name} {kind}{' primary key' if field.primary_key else ''}"


class Vec0Model(Model):
    """A vec0 table: a key, vectors, and columns that its search can filter by. `Meta.metric`: l2 or cosine.

    `create`, `insert_many`, `update`, `delete` and `nearest` are what they are in other models. A key that is a
    ForeignKeyField ties each row to its entity; nothing removes it when the entity goes.
    """

    class Meta:
        """What the subclasses inherit."""

        metric = "cosine"
        schema_manager_class = Vec0SchemaManager

    def save(self, force_insert: bool = False, only: Any = None) -> int | bool:
        """Update the row that has this key, or insert it: Peewee alone would update no row, and say nothing."""
        with self._meta.database.atomic():
            rows: int | bool = super().save(force_insert, only)
            if rows == 0 and rows is not False:  # False: only_save_dirty, and nothing is.
                rows = super().save(force_insert=True, only=only)
        return rows

    @classmethod
    def update(cls, data: Any = None, /, **columns: Any) -> Any:
        """Peewee's; a key cannot be changed: vec0 would ignore that and say nothing."""
        key = cls._meta.primary_key
        if key.name in {item.name if isinstance(item, Field) else item for item in (*(data or ()), *columns)}:
            raise NotSupportedError(f"vec0 cannot change a key: delete the row and create it with the new {key.name}")
        return super().update(data, **columns)

    @classmethod
    def replace(cls, *_rows: Any, **_columns: Any) -> Any:
        """vec0 has no REPLACE. Raises NotSupportedError."""
        raise NotSupportedError("vec0 knows neither REPLACE nor ON CONFLICT: save() updates the row or inserts it")

    replace_many = replace
