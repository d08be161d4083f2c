"""The door for SQLAlchemy: columns of vectors, indexes of them, and the nearest rows."""

try:
    import sqlalchemy as _sqlalchemy  # noqa: F401
except ImportError as error:
    raise ImportError(
        "datasette_vec_gemini.sqlalchemy needs SQLAlchemy: pip install 'datasette-vec-gemini[sqlalchemy]'"
    ) from error

from . import bulk as _bulk  # noqa: F401  # it listens to sessions
from . import postgres as _postgres  # noqa: F401  # how PostgreSQL spells what the others declare
from .engine import create_async_engine, create_engine, register_vector
from .index import VectorIndex, sync_indexes
from .nearest import nearest
from .semantic import search_entities, semantic, sync_entities
from .types import Vector
from .vec0 import Vec0Table

__all__ = [
    "Vec0Table",
    "Vector",
    "VectorIndex",
    "create_async_engine",
    "create_engine",
    "nearest",
    "register_vector",
    "search_entities",
    "semantic",
    "sync_entities",
    "sync_indexes",
]
