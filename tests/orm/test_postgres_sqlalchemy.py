"""What is PostgreSQL's own under SQLAlchemy: the extension, HNSW, and k rows whatever the filter leaves."""

import asyncio
import random

import oracle
import pytest

pytest.importorskip("sqlalchemy", reason="needs SQLAlchemy: pip install 'datasette-vec-gemini[sqlalchemy]'")
import sqlalchemy
from explaining import plan
from sqlalchemy import Column, Integer, MetaData, Table, Text, insert, select, text

from datasette_vec_gemini.errors import InvalidSetting
from datasette_vec_gemini.sqlalchemy import (
    Vector,
    VectorIndex,
    create_async_engine,
    create_engine,
    nearest,
    register_vector,
)

DIMENSIONS = 16
QUERY = [1.0] + [0.5] * (DIMENSIONS - 1)
INDEXES = [
    ("cosine", "float32", "USING hnsw (embedding vector_cosine_ops)"),
    ("l2", "float32", "USING hnsw (embedding vector_l2_ops)"),
    ("inner_product", "float32", "USING hnsw (embedding vector_ip_ops)"),
    ("cosine", "int8", "USING hnsw (((embedding)::halfvec(16)) halfvec_cosine_ops)"),
    ("l2", "int8", "USING hnsw (((embedding)::halfvec(16)) halfvec_l2_ops)"),
    ("inner_product", "int8", "USING hnsw (((embedding)::halfvec(16)) halfvec_ip_ops)"),
    ("cosine", "bit", "USING hnsw (((binary_quantize(embedding))::bit(16)) bit_hamming_ops)"),
]


def vectors(count, dimensions=DIMENSIONS):
    """Reproducible vectors by their keys."""
    chance = random.Random(6)
    return {key: [chance.gauss(0, 1) for _ in range(dimensions)] for key in range(1, count + 1)}


@pytest.fixture
def engine(postgres, database):
    engine = create_engine(postgres.url(database))
    yield engine
    engine.dispose()


@pytest.fixture
def plain(postgres, database):
    """An engine that nothing has registered."""
    engine = sqlalchemy.create_engine(postgres.url(database))
    yield engine
    engine.dispose()


def documents(engine, rows, **index):
    """A table of these vectors, with an index; a tenth of them is of each kind."""
    table = Table(
        "document",
        MetaData(),
        Column("id", Integer, primary_key=True),
        Column("kind", Integer),
        Column("title", Text),
        Column("embedding", Vector(DIMENSIONS)),
        VectorIndex("document_embedding_idx", "embedding", **index),
    )
    table.metadata.create_all(engine)
    with engine.begin() as conn:
        conn.execute(
            insert(table),
            [{"id": key, "kind": key % 10, "title": f"t{key}", "embedding": v} for key, v in rows.items()],
        )
    return table


def through_the_index(conn):
    """A small table would rather be read whole; this makes what a large one does happen."""
    conn.execute(text("set local enable_seqscan = off"))
    conn.execute(text("set local enable_sort = off"))


def found(conn, statement):
    return [(row.id, pytest.approx(row.distance, rel=1e-5, abs=1e-6)) for row in conn.execute(statement)]


@pytest.mark.parametrize(("metric", "quantize", "definition"), INDEXES)
def test_create_all_brings_pgvector_and_the_index_of_each_metric_and_drop_all_takes_it_away(
    engine, metric, quantize, definition
):
    table = documents(engine, vectors(3), metric=metric, quantize=quantize)
    indexes = select(text("indexdef from pg_indexes where indexname = 'document_embedding_idx'"))
    table.metadata.create_all(engine)
    with engine.connect() as conn:
        assert definition in conn.scalar(indexes)
    table.metadata.drop_all(engine)
    with engine.connect() as conn:
        assert conn.scalar(indexes) is None


@pytest.mark.parametrize(("metric", "quantize"), [index[:2] for index in INDEXES])
def test_the_index_gives_the_exact_answer_in_the_order_of_exact_distances(engine, metric, quantize):
    rows = vectors(1_500)
    # Signs in so few dimensions tell little, so bits need more candidates than they would of real texts.
    table = documents(engine, rows, metric=metric, quantize=quantize, exact_rows=0, oversample=100)
    statement = nearest(table.c.embedding, QUERY, k=10)
    with engine.begin() as conn:
        through_the_index(conn)
        assert "Index Scan using document_embedding_idx" in plan(conn, statement)
        assert found(conn, statement) == oracle.nearest(rows, QUERY, k=10, metric=metric)
        assert found(conn, statement.limit(4).offset(8)) == oracle.nearest(rows, QUERY, k=4, offset=8, metric=metric)


@pytest.mark.parametrize("kinds", [[], [3], [3, 4, 5, 6, 7, 8, 9]])
@pytest.mark.parametrize("quantize", ["float32", "int8", "bit"])
def test_k_rows_come_whenever_k_rows_match_on_an_engine_that_nobody_registered(plain, quantize, kinds):
    rows = vectors(1_500)
    table = documents(plain, rows, quantize=quantize, exact_rows=0, oversample=25)
    statement = nearest(table.c.embedding, QUERY, k=40, where=[table.c.kind.in_(kinds)])
    matching = {key: vector for key, vector in rows.items() if key % 10 in kinds}
    with plain.begin() as conn:
        through_the_index(conn)
        assert ("Index Scan using document_embedding_idx" in plan(conn, statement)) == bool(kinds)
        expected = oracle.nearest(matching, QUERY, k=40, metric="cosine")
        assert found(conn, statement) == expected
        assert len(expected) == min(40, len(matching))


@pytest.mark.parametrize("exact_rows", [149, 150])
def test_a_filter_that_leaves_few_rows_is_answered_from_those_rows_alone(engine, exact_rows):
    rows = vectors(1_500)
    table = documents(engine, rows, exact_rows=exact_rows)
    statement = nearest(table.c.embedding, QUERY, k=10, where=[table.c.kind == 3])
    with engine.begin() as conn:
        through_the_index(conn)
        index_scan = plan(conn, statement).split("Index Scan using document_embedding_idx")[1].splitlines()[0]
        assert ("never executed" in index_scan) == (exact_rows == 150)
        expected = oracle.nearest({key: rows[key] for key in rows if key % 10 == 3}, QUERY, k=10, metric="cosine")
        assert found(conn, statement) == expected


def test_rows_are_found_when_the_index_has_too_few_of_them(engine):
    """What can never be reached through the graph, such as all that a dead end hides, is found by reading all rows."""
    rows = vectors(300)
    table = documents(engine, rows, exact_rows=0)
    statement = nearest(table.c.embedding, QUERY, k=300)
    with engine.begin() as conn:
        through_the_index(conn)
        conn.execute(text("set local work_mem = '64kB'"))  # an index that may remember little ends its search early
        assert found(conn, statement) == oracle.nearest(rows, QUERY, k=300, metric="cosine")


@pytest.mark.parametrize("k", [300_000_000, 2**31, 2**62])
def test_k_may_be_any_integer_that_the_database_has(engine, k):
    rows = vectors(50)
    table = documents(engine, rows, exact_rows=0)
    with engine.begin() as conn:
        through_the_index(conn)
        statement = nearest(table.c.embedding, QUERY, k=k)
        assert found(conn, statement) == oracle.nearest(rows, QUERY, k=50, metric="cosine")


@pytest.mark.parametrize("name", ["candidates", "enough", "near", "settings"])
def test_a_filter_may_name_any_table(engine, name):
    rows = vectors(100)
    table = documents(engine, rows)
    marked = Table(name, table.metadata, Column("id", Integer, primary_key=True))
    marked.create(engine)
    with engine.begin() as conn:
        conn.execute(insert(marked), [{"id": key} for key in range(7, 40)])
        statement = nearest(table.c.embedding, QUERY, k=10, where=[table.c.id.in_(select(marked.c.id))])
        matching = {key: rows[key] for key in range(7, 40)}
        assert found(conn, statement) == oracle.nearest(matching, QUERY, k=10, metric="cosine")


@pytest.mark.parametrize(
    ("column", "driver"),
    # SQLAlchemy itself takes the first one for a parameter under asyncpg.
    [("%(id)s", "psycopg"), *((name, driver) for name in ("100%", 'a"%\\0041') for driver in ("psycopg", "asyncpg"))],
)
def test_a_column_may_have_any_name(postgres, database, column, driver):
    pytest.importorskip(driver)
    table = Table(
        "document",
        MetaData(),
        Column("id", Integer, primary_key=True),
        Column(column, Vector(DIMENSIONS), key="embedding"),
        VectorIndex("document_idx", "embedding"),
    )
    rows = vectors(20)

    def answer(conn):
        table.metadata.create_all(conn)
        conn.execute(insert(table), [{"id": key, "embedding": vector} for key, vector in rows.items()])
        assert found(conn, nearest(table.c.embedding, QUERY, k=5)) == oracle.nearest(rows, QUERY, k=5, metric="cosine")

    async def ask():
        asynchronous = create_async_engine(postgres.url(database, driver))
        async with asynchronous.begin() as conn:
            await conn.run_sync(answer)
        await asynchronous.dispose()

    asyncio.run(ask())


SETTINGS = ("hnsw.iterative_scan", "hnsw.ef_search", "hnsw.max_scan_tuples")


def test_a_search_leaves_the_settings_of_its_transaction_as_they_were(engine):
    table = documents(engine, vectors(300), exact_rows=0)
    with engine.begin() as conn:
        through_the_index(conn)
        conn.execute(text("set local hnsw.ef_search = 77"))
        conn.execute(nearest(table.c.embedding, QUERY, k=3)).all()
        assert [conn.scalar(text(f"show {name}")) for name in SETTINGS] == ["strict_order", "77", "20000"]


def test_a_registered_engine_gives_k_rows_in_pgvectors_spelling_and_one_that_is_not_fewer(engine, plain):
    rows = vectors(1_500)
    table = documents(engine, rows)
    statement = select(table.c.id).where(table.c.kind == 3).order_by(table.c.embedding.cosine_distance(QUERY)).limit(40)
    expected = oracle.nearest({key: rows[key] for key in rows if key % 10 == 3}, QUERY, k=40, metric="cosine")
    counts = {}
    for bind in (engine, plain):
        with bind.connect() as conn:
            conn.rollback()  # of a transaction that something was set in
            through_the_index(conn)
            assert "Index Scan using document_embedding_idx" in plan(conn, statement)
            counts[bind] = len(conn.scalars(statement).all())
    assert counts == {engine: len(expected), plain: pytest.approx(4, abs=6)}


def test_registering_twice_is_registering_once(postgres, database):
    engine = register_vector(create_engine(postgres.url(database)))
    with engine.connect() as conn:
        assert conn.scalar(text("show hnsw.iterative_scan")) == "strict_order"
    engine.dispose()


def test_a_vector_without_direction_that_another_program_wrote_is_never_found(engine):
    rows = vectors(5)
    table = documents(engine, rows)
    with engine.begin() as conn:
        zero = "[" + ",".join(["0"] * DIMENSIONS) + "]"
        conn.execute(text(f"insert into document (id, kind, embedding) values (6, 1, '{zero}'), (7, 1, null)"))
        statement = nearest(table.c.embedding, QUERY, k=10)
        assert found(conn, statement) == oracle.nearest(rows, QUERY, k=10, metric="cosine")
        through_the_index(conn)
        assert found(conn, statement) == oracle.nearest(rows, QUERY, k=10, metric="cosine")


@pytest.mark.parametrize(
    ("dimensions", "quantize", "definition"),
    [
        (2_000, "float32", "(embedding vector_cosine_ops)"),
        (3_072, "float32", "(((embedding)::halfvec(3072)) halfvec_cosine_ops)"),
        (4_000, "int8", "(((embedding)::halfvec(4000)) halfvec_cosine_ops)"),
        (4_096, "bit", "(((binary_quantize(embedding))::bit(4096)) bit_hamming_ops)"),
    ],
)
def test_vectors_too_long_for_pgvectors_index_are_found_by_shorter_codes(engine, dimensions, quantize, definition):
    table = Table(
        "long",
        MetaData(),
        Column("id", Integer, primary_key=True),
        Column("embedding", Vector(dimensions)),
        VectorIndex("long_idx", "embedding", quantize=quantize),
    )
    rows = vectors(30, dimensions)
    table.metadata.create_all(engine)
    with engine.begin() as conn:
        conn.execute(insert(table), [{"id": key, "embedding": vector} for key, vector in rows.items()])
        assert conn.scalar(text("select indexdef from pg_indexes where indexname = 'long_idx'")).endswith(definition)
        statement = nearest(table.c.embedding, rows[7], k=3)
        through_the_index(conn)
        assert "Index Scan using long_idx" in plan(conn, statement)
        assert found(conn, statement) == oracle.nearest(rows, rows[7], k=3, metric="cosine")


@pytest.mark.parametrize("quantize", ["float32", "int8"])
def test_vectors_too_long_for_any_index_but_bits_are_refused_with_the_remedy(engine, quantize):
    table = Table(
        "long",
        MetaData(),
        Column("id", Integer, primary_key=True),
        Column("embedding", Vector(4_096)),
        VectorIndex("long_idx", "embedding", quantize=quantize),
    )
    with pytest.raises(
        InvalidSetting, match=r"halfvec of 4,000 dimensions at most.*4,096: use VectorIndex\(..., quantize='bit'"
    ):
        table.metadata.create_all(engine)


def test_pages_beyond_all_rows_are_empty_however_great_the_numbers(engine):
    table = documents(engine, vectors(3), exact_rows=0)
    statement = nearest(table.c.embedding, QUERY, k=2)
    with engine.connect() as conn:
        for limit, offset in ((2**63 - 1, 2**63 - 1), (2**62, 2**62), (1, 2**63 - 1)):
            assert conn.execute(statement.limit(limit).offset(offset)).all() == []
        assert len(conn.execute(statement.limit(2**63 - 1).offset(1)).all()) == 2


def test_a_copy_of_a_table_has_the_same_index_and_a_batch_operation_makes_it_again(engine):
    migration = pytest.importorskip("alembic.migration", reason="needs Alembic: pip install alembic")
    operations = pytest.importorskip("alembic.operations")
    wide = vectors(3, 768)
    table = Table(
        "document",
        MetaData(),
        Column("id", Integer, primary_key=True),
        Column("title", Text),
        Column("embedding", Vector(768)),
        VectorIndex("document_embedding_idx", "embedding", metric="l2", quantize="int8"),
    )
    copied = MetaData()
    copy = table.to_metadata(copied)
    definition = text("select indexdef from pg_indexes where indexname = 'document_embedding_idx'")
    copied.create_all(engine)
    with engine.begin() as conn:
        made = conn.scalar(definition)
        assert "halfvec_l2_ops" in made
        conn.execute(insert(copy), [{"id": key, "embedding": vector} for key, vector in wide.items()])
        op = operations.Operations(migration.MigrationContext.configure(conn))
        with op.batch_alter_table("document", recreate="always", copy_from=table) as batch:
            batch.drop_column("title")
        assert conn.scalar(definition) == made
        assert len(conn.execute(nearest(copy.c.embedding, wide[1], k=3).with_only_columns(copy.c.id)).all()) == 3
