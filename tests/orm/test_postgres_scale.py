"""A hundred thousand rows on a real PostgreSQL, with the plans that it makes by itself."""

import sys
import time

import numpy as np
import pytest

pytest.importorskip("sqlalchemy", reason="needs SQLAlchemy: pip install 'datasette-vec-gemini[sqlalchemy]'")
from explaining import plan
from sqlalchemy import Column, Integer, MetaData, Table, create_engine

from datasette_vec_gemini.sqlalchemy import Vector, VectorIndex, nearest

pytestmark = pytest.mark.slow

ROWS, DIMENSIONS, K = 100_000, 64, 10


DOCUMENT = Table(
    "document",
    MetaData(),
    Column("id", Integer, primary_key=True),
    Column("kind", Integer),
    Column("embedding", Vector(DIMENSIONS)),
)
INDEX = VectorIndex("document_embedding_idx", DOCUMENT.c.embedding)


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def vectors():
    """Texts on two hundred subjects, as vectors, and as many questions about them as are asked."""
    chance = np.random.default_rng(1)
    subjects = chance.normal(size=(200, DIMENSIONS))
    rows = unit(subjects[chance.integers(0, len(subjects), ROWS)] + chance.normal(size=(ROWS, DIMENSIONS)))
    questions = unit(rows[chance.integers(0, ROWS, 30)] + 0.1 * chance.normal(size=(30, DIMENSIONS)))
    return rows, questions


@pytest.fixture(scope="module")
def engine(postgres, vectors):
    """An engine as SQLAlchemy makes it, on a table that was loaded and then indexed."""
    with postgres.database() as database:
        plain = create_engine(postgres.url(database))
        DOCUMENT.create(plain)
        INDEX.drop(plain)
        with plain.begin() as conn, conn.connection.cursor() as cursor, cursor.copy("copy document from stdin") as copy:
            for key, vector in enumerate(vectors[0].tolist()):
                copy.write_row((key, key % 100, str(vector)))
        INDEX.create(plain)
        with plain.begin() as conn:
            conn.exec_driver_sql("analyze document")
        yield plain
        plain.dispose()


@pytest.mark.parametrize(("percent", "least"), [(1, 1.0), (4, 1.0), (10, 0.9), (100, 0.85)])
def test_k_rows_come_at_once_whatever_the_filter_leaves(engine, vectors, capsys, percent, least):
    rows, questions = vectors
    where = [] if percent == 100 else [DOCUMENT.c.kind < percent]
    keys = np.flatnonzero(np.arange(ROWS) % 100 < percent)
    recalls, seconds = [], []
    with engine.connect() as conn:
        for question in questions:
            statement = nearest(DOCUMENT.c.embedding, question, k=K, where=where)
            began = time.perf_counter()
            found = [row.id for row in conn.execute(statement)]
            seconds.append(time.perf_counter() - began)
            assert len(found) == K
            best = keys[np.argsort(rows[keys] @ -question, kind="stable")[:K]]
            recalls.append(len(set(best.tolist()) & set(found)) / K)
        explained = plan(conn, statement)
    figures = f"{K} rows in {1000 * np.median(seconds):.1f} ms, recall {np.mean(recalls):.3f}"
    with capsys.disabled():
        sys.stdout.write(f"\n{ROWS:,} rows, {percent} % match: {figures}\n")
    assert np.mean(recalls) >= least
    scan = next(line for line in explained.splitlines() if "Index Scan using document_embedding_idx" in line)
    assert ("never executed" in scan) == (percent * ROWS / 100 <= 5_000)
