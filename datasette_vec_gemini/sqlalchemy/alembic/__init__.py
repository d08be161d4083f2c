"""Alembic (1.18 or newer): autogenerate sees the models' tables and vector indexes, and nothing that is kept beside.

In `env.py`::

    from datasette_vec_gemini.sqlalchemy import alembic as vec, register_vector

    connectable = register_vector(engine_from_config(...))
    ...
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        include_name=vec.include_name,
        include_object=vec.include_object,
        render_item=vec.render_item,
        render_as_batch=True,  # for SQLite, which alters little
    )

Migrations then have `op.create_vector_index` and `op.drop_vector_index`, on SQLite and PostgreSQL. A batch operation
copies its table, and SQLite drops the triggers with the old one without a word. Nothing is lost by that: `nearest`
compares every row until the triggers are there again, which they are when the migration's connection goes back to its
pool, and a semantic index is mended by its next sync or search.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

try:
    from alembic.util import PriorityDispatchResult  # noqa: F401 - for its absence before 1.18
except ImportError as error:
    raise ImportError(
        "datasette_vec_gemini.sqlalchemy.alembic needs Alembic 1.18 or newer: pip install 'alembic>=1.18'"
    ) from error

from alembic import context
from sqlalchemy import Index
from sqlalchemy.schema import SchemaItem

from ..index import VectorIndex
from ..types import Vector
from ..vec0 import Vec0Table
from . import comparing as _comparing  # noqa: F401 - Alembic knows it by its import
from .kept import kept
from .operations import CreateVectorIndex, DropVectorIndex

if TYPE_CHECKING:
    from alembic.autogenerate.api import AutogenContext

__all__ = ["CreateVectorIndex", "DropVectorIndex", "include_name", "include_object", "render_item"]


def include_name(name: str | None, type_: str, parent_names: Mapping[str, str | None]) -> bool:
    """Whether autogenerate looks at a name that the database has: not at virtual tables, their tables, or ours."""
    del parent_names
    if type_ == "table" and name is not None:
        connection = context.get_bind()
        return connection.dialect.name != "sqlite" or name not in kept(connection)
    return True


def include_object(
    item: SchemaItem,
    name: str | None,
    type_: str,
    reflected: bool,  # noqa: FBT001 - Alembic passes it by position
    compare_to: SchemaItem | None,
) -> bool:
    """Whether autogenerate compares an object by its own means: neither vector indexes nor vec0 tables.

    Vector indexes have operations of ours; of a `Vec0Table` it would make an ordinary table.
    """
    del name, compare_to
    if type_ == "index" and isinstance(item, Index):
        is_hnsw = reflected and item.dialect_kwargs.get("postgresql_using") == "hnsw"
        return not (is_hnsw or isinstance(item, VectorIndex))
    return not isinstance(item, Vec0Table)


def render_item(type_: str, item: object, autogen_context: AutogenContext) -> str | Literal[False]:
    """A `Vector` as a migration writes it, with its import."""
    if type_ == "type" and isinstance(item, Vector):
        autogen_context.imports.add("from datasette_vec_gemini.sqlalchemy import Vector")
        return f"Vector({item.dimensions})"
    return False
