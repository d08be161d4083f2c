"""What is PostgreSQL's own under Peewee: the extension and HNSW. The laws of reading and writing run there as well."""

import asyncio
import random

import oracle
import pytest

pytest.importorskip("peewee", reason="needs Peewee: pip install 'datasette-vec-gemini[peewee]'")
from peewee import IntegerField, Model, PostgresqlDatabase

from datasette_vec_gemini.peewee import VectorField, VectorIndex, nearest

DIMENSIONS = 16
QUERY = [1.0] + [0.5] * (DIMENSIONS - 1)
INDEX = "select indexdef from pg_indexes where indexname = 'document_embedding_idx'"


@pytest.fixture
def db(postgres, database):
    server = PostgresqlDatabase(database, host=str(postgres.directory), user="postgres", prefer_psycopg3=True)
    yield server
    server.close()


def model(db, **index):
    class Document(Model):
        kind = IntegerField()
        embedding = VectorField(dimensions=DIMENSIONS, null=True)

        class Meta:
            database = db

    Document.add_index(VectorIndex(Document.embedding, **index))
    return Document


@pytest.mark.parametrize(
    ("index", "definition"),
    [
        ({}, "USING hnsw (embedding vector_cosine_ops)"),
        ({"metric": "l2"}, "USING hnsw (embedding vector_l2_ops)"),
        ({"metric": "inner_product"}, "USING hnsw (embedding vector_ip_ops)"),
        ({"quantize": "int8"}, "USING hnsw (((embedding)::halfvec(16)) halfvec_cosine_ops)"),
        ({"quantize": "bit"}, "USING hnsw (((binary_quantize(embedding))::bit(16)) bit_hamming_ops)"),
    ],
)
def test_create_tables_brings_pgvector_and_the_index_and_drop_tables_takes_it_away(db, index, definition):
    document = model(db, **index)
    for _ in range(2):
        db.create_tables([document])
        assert db.execute_sql(INDEX).fetchone()[0].endswith(definition)
    document._schema.drop_indexes()
    assert db.execute_sql(INDEX).fetchone() is None
    document._schema.create_indexes()
    assert db.execute_sql(INDEX).fetchone()[0].endswith(definition)
    db.drop_tables([document])
    assert db.execute_sql(INDEX).fetchone() is None


@pytest.mark.parametrize("quantize", ["float32", "int8", "bit"])
@pytest.mark.parametrize("kinds", [[3], [3, 4, 5, 6, 7, 8, 9]])
def test_the_index_gives_k_rows_whenever_k_rows_match(db, quantize, kinds):
    chance = random.Random(6)
    rows = {key: [chance.gauss(0, 1) for _ in range(DIMENSIONS)] for key in range(1, 1_001)}
    # Signs in so few dimensions tell little, so bits need more candidates than they would of real texts.
    document = model(db, quantize=quantize, exact_rows=0, oversample=25)
    db.create_tables([document])
    document.insert_many([{"id": key, "kind": key % 10, "embedding": vector} for key, vector in rows.items()]).execute()
    query = nearest(document.embedding, QUERY, k=40).where(document.kind.in_(kinds))
    with db.atomic():
        # A small table would rather be read whole; this makes what a large one does happen.
        db.execute_sql("set local enable_seqscan = off")
        db.execute_sql("set local enable_sort = off")
        sql, parameters = query.sql()
        plan = [line for (line,) in db.execute_sql(f"explain analyze {sql}", parameters)]
        scan = next(line for line in plan if "Index Scan using document_embedding_idx" in line)
        assert "never executed" not in scan
        matching = {key: vector for key, vector in rows.items() if key % 10 in kinds}
        expected = oracle.nearest(matching, QUERY, k=40, metric="cosine")
        assert [(row.id, row.distance) for row in query] == [
            (key, pytest.approx(distance, rel=1e-5)) for key, distance in expected
        ]


def test_a_vector_without_direction_that_another_program_wrote_has_no_distance(db):
    document = model(db)
    db.create_tables([document])
    db.execute_sql(f"insert into document (kind, embedding) values (0, '{[0] * DIMENSIONS}')")
    document.create(kind=1, embedding=QUERY)
    distance = document.embedding.cosine_distance(QUERY)
    rows = document.select(document.kind, distance.alias("distance")).order_by(document.kind.desc())
    assert [(row.kind, row.distance) for row in rows] == [(1, pytest.approx(0, abs=1e-6)), (0, None)]
    assert [row.kind for row in nearest(document.embedding, QUERY)] == [1]


def test_peewees_asynchronous_database_answers_alike(postgres, database):
    pytest.importorskip("asyncpg", reason="needs asyncpg: pip install asyncpg")
    pwasyncio = pytest.importorskip("playhouse.pwasyncio", reason="needs greenlet: pip install greenlet")
    rows = {1: QUERY, 2: [-number for number in QUERY], 3: [*QUERY[:-1], 0.0]}

    async def ask():
        db = pwasyncio.AsyncPostgresqlDatabase(database, host=str(postgres.directory), user="postgres")
        document = model(db)
        async with db:
            await db.run(db.create_tables, [document])
            entries = [{"id": key, "kind": key % 2, "embedding": vector} for key, vector in rows.items()]
            await db.run(document.insert_many(entries).execute)
            found = await db.list(nearest(document.embedding, QUERY, k=2).where(document.kind == 1))
        await db.close_pool()
        return [(row.id, pytest.approx(row.distance, rel=1e-5, abs=1e-6), row.embedding) for row in found]

    expected = oracle.nearest({key: rows[key] for key in (1, 3)}, QUERY, k=2, metric="cosine")
    assert asyncio.run(ask()) == [(key, distance, list(oracle.stored(rows[key]))) for key, distance in expected]
