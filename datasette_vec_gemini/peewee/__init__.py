"""Vectors in Peewee: the names of `datasette_vec_gemini.sqlalchemy`, in Peewee's ways.

::

    db = VectorSqliteDatabase("app.db")

    class Document(Model):
        title = TextField()
        embedding = VectorField(dimensions=384, null=True)

        class Meta:
            database = db

    Document.add_index(VectorIndex(Document.embedding, metric="cosine", quantize="int8"))
    db.create_tables([Document])
    for document in nearest(Document.embedding, vector, k=5).where(Document.title != ""):
        print(document.title, document.distance)
"""

try:
    import peewee as _peewee  # noqa: F401
except ImportError as error:
    raise ImportError("datasette_vec_gemini.peewee needs Peewee: pip install 'datasette-vec-gemini[peewee]'") from error

from .bulk import bulk_insert
from .database import PooledVectorSqliteDatabase, VectorSqliteDatabase, VectorSqliteMixin, sync_indexes
from .fields import Distance, VectorField
from .index import VectorIndex, VectorSchemaManager
from .nearest import Nearest, nearest
from .semantic import search_entities, semantic, sync_entities
from .vec0 import Vec0Model

__all__ = [
    "Distance",
    "Nearest",
    "PooledVectorSqliteDatabase",
    "Vec0Model",
    "VectorField",
    "VectorIndex",
    "VectorSchemaManager",
    "VectorSqliteDatabase",
    "VectorSqliteMixin",
    "bulk_insert",
    "nearest",
    "search_entities",
    "semantic",
    "sync_entities",
    "sync_indexes",
]
