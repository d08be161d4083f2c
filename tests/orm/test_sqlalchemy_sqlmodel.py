"""SQLModel's classes have vectors as SQLAlchemy's have."""

import oracle
import pytest
from documents import DIMENSIONS, EXACTLY, QUERY, VECTORS

sqlmodel = pytest.importorskip("sqlmodel", reason="needs SQLModel: pip install sqlmodel")

from datasette_vec_gemini.sqlalchemy import Vector, VectorIndex, create_engine, nearest


def test_a_model_is_written_and_searched(path):
    class Article(sqlmodel.SQLModel, table=True):
        __table_args__ = (VectorIndex("article_embedding_idx", "embedding", exact_rows=0),)
        id: int | None = sqlmodel.Field(default=None, primary_key=True)
        lang: str = "en"
        embedding: list[float] | None = sqlmodel.Field(default=None, sa_type=Vector(DIMENSIONS))

    engine = create_engine(f"sqlite:///{path}")
    sqlmodel.SQLModel.metadata.create_all(engine, tables=[Article.__table__])
    with sqlmodel.Session(engine) as session:
        for key, value in VECTORS.items():
            session.add(Article(id=key, embedding=value if key % 5 else None, lang="en" if key % 2 else "de"))
        session.commit()
        found = [
            (a.id, d) for a, d in session.exec(nearest(Article.embedding, QUERY, k=5, where=[Article.lang == "de"]))
        ]
    rows = {key: value for key, value in VECTORS.items() if key % 5 and key % 2 == 0}
    expected = oracle.nearest(rows, QUERY, k=5, metric="cosine")
    assert found == [(key, pytest.approx(distance, **EXACTLY)) for key, distance in expected]
    engine.dispose()
