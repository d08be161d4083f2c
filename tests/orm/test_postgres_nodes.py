"""One table on three servers, made as docs/postgres.md says: what a program that talks to the coordinator sees."""

import asyncio
import random
import re
from contextlib import ExitStack
from pathlib import Path

import oracle
import pytest

pytest.importorskip("sqlalchemy", reason="needs SQLAlchemy: pip install 'datasette-vec-gemini[sqlalchemy]'")
from explaining import EXPLAIN, plan
from sqlalchemy import insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from datasette_vec_gemini.sqlalchemy import Vector, VectorIndex, create_async_engine, create_engine, nearest

PAGE = Path(__file__).parents[2].joinpath("docs", "postgres.md").read_text(encoding="utf-8")
SQL = re.search(r"```sql\n([^`]+)```", PAGE)[1]
DIMENSIONS = 8
_chance = random.Random(6)
ROWS = {key: [_chance.gauss(0, 1) for _ in range(DIMENSIONS)] for key in range(1, 1_201)}
QUERY = [1.0, -0.5] * (DIMENSIONS // 2)


class Base(DeclarativeBase):
    pass


class Document(Base):
    __tablename__ = "document"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    lang: Mapped[str]
    embedding: Mapped[list[float] | None] = mapped_column(Vector(DIMENSIONS))
    __table_args__ = (VectorIndex("document_embedding_idx", "embedding", exact_rows=50),)


def lang(key):
    return "ru" if key % 20 == 0 else "en"


@pytest.fixture(scope="module")
def cluster(nodes):
    """Three servers with an empty table that is spread over them; the first one coordinates."""
    coordinator, *others = nodes
    with ExitStack() as stack:
        for node in nodes:
            stack.enter_context(node.database("app"))
        script = SQL.replace("vector(3)", f"vector({DIMENSIONS})").replace(
            "user 'app', password", "user 'postgres', password"
        )
        for number, node in enumerate(others, start=1):
            engine = create_engine(node.url("app"))
            Base.metadata.create_all(engine)
            engine.dispose()
            assert script.count(f"node{number}.example.com") == 1
            script = script.replace(f"node{number}.example.com", str(node.directory))
        coordinator.execute(script, database="app")
        yield nodes


@pytest.fixture
def engine(cluster):
    engine = create_engine(cluster[0].url("app"))
    with engine.begin() as conn:
        conn.execute(text("delete from document"))
        conn.execute(
            insert(Document).values(
                [{"id": key, "title": f"t{key}", "lang": lang(key), "embedding": ROWS[key]} for key in ROWS]
            )
        )
        conn.execute(text("analyze document"))
        conn.execute(text("select setval(pg_get_serial_sequence('document', 'id'), 100000)"))
    yield engine
    engine.dispose()


def found(session, statement):
    return [
        (document.id, pytest.approx(distance, rel=1e-5, abs=1e-6)) for document, distance in session.execute(statement)
    ]


def held(node, condition="true"):
    """How many rows of its own a node holds."""
    table = (
        "document_0" if node.execute("select to_regclass('document_0')", database="app") != [(None,)] else "document"
    )
    ((rows,),) = node.execute(f"select count(*) from {table} where {condition}", database="app")
    return rows


def test_the_rows_are_spread_over_all_nodes(cluster, engine):
    counts = [held(node) for node in cluster]
    assert sum(counts) == len(ROWS)
    assert min(counts) > len(ROWS) / 4


@pytest.mark.parametrize("where", [{}, {"lang": "ru"}, {"lang": "en"}, {"id": 77}, {"lang": "fr"}])
def test_nearest_answers_exactly_whatever_the_filter_leaves(engine, where):
    matching = {
        key: vector
        for key, vector in ROWS.items()
        if {"id": key, "lang": lang(key)} == {"id": key, "lang": lang(key)} | where
    }
    conditions = [getattr(Document, name) == value for name, value in where.items()]
    statement = nearest(Document.embedding, QUERY, k=10, where=conditions)
    with Session(engine) as session:
        assert found(session, statement) == oracle.nearest(matching, QUERY, k=10, metric="cosine")
        page = statement.limit(5).offset(7)
        assert found(session, page) == oracle.nearest(matching, QUERY, k=5, offset=7, metric="cosine")


def test_asyncpg_answers_alike(cluster, engine):
    async def ask():
        asynchronous = create_async_engine(cluster[0].url("app", driver="asyncpg"))
        async with AsyncSession(asynchronous) as session:
            statement = nearest(Document.embedding, QUERY, k=10, where=[Document.lang == "ru"])
            rows = (await session.execute(statement)).all()
        await asynchronous.dispose()
        return [document.id for document, _ in rows]

    matching = {key: vector for key, vector in ROWS.items() if lang(key) == "ru"}
    assert asyncio.run(ask()) == [key for key, _ in oracle.nearest(matching, QUERY, k=10, metric="cosine")]


def test_the_nodes_search_their_own_index_for_the_rows_that_the_filter_leaves(cluster, engine):
    """With nodes that would rather use the index than read a small table whole: k rows, nearly all of them right."""
    for number in (1, 2):
        cluster[0].execute(
            f"alter server node{number} options (set options '-c hnsw.iterative_scan=strict_order "
            "-c hnsw.ef_search=200 -c enable_seqscan=off -c enable_sort=off')",
            database="app",
        )
    try:
        scans = "select sum(idx_scan) from pg_stat_user_indexes where indexrelname = 'document_embedding_idx'"
        before = [node.execute(scans, database="app") for node in cluster[1:]]
        recalls = []
        with Session(engine) as session:
            session.execute(text("set local enable_seqscan = off"))
            for query in list(ROWS.values())[:20]:
                statement = nearest(Document.embedding, query, k=10, where=[Document.lang == "en"])
                matching = {key: vector for key, vector in ROWS.items() if lang(key) == "en"}
                expected = {key for key, _ in oracle.nearest(matching, query, k=10, metric="cosine")}
                keys = [document.id for document, _ in session.execute(statement)]
                assert len(keys) == 10
                recalls.append(len(expected & set(keys)) / 10)
        engine.dispose()  # statistics arrive when a session ends
        assert sum(recalls) / len(recalls) >= 0.99
        for node, was in zip(cluster[1:], before, strict=True):
            assert node.execute(scans, database="app") > was
    finally:
        for number in (1, 2):
            cluster[0].execute(
                f"alter server node{number} options (set options '-c hnsw.iterative_scan=strict_order')", database="app"
            )


def test_a_transaction_sees_its_own_writes_and_a_rollback_leaves_none_on_any_node(cluster, engine):
    with Session(engine) as session:
        added = [Document(title="new", lang="new", embedding=QUERY) for _ in range(9)]
        session.add_all(added)
        session.flush()
        assert min(document.id for document in added) > len(ROWS)
        mine = nearest(Document.embedding, QUERY, k=20, where=[Document.lang == "new"])
        assert found(session, mine) == [(document.id, 0.0) for document in added]
        assert [held(node, "lang = 'new'") for node in cluster] == [0, 0, 0]
        session.rollback()
        assert found(session, mine) == []
    assert sum(held(node) for node in cluster) == len(ROWS)


def test_what_is_added_changed_and_deleted_through_the_coordinator_is_so_on_the_nodes(cluster, engine):
    with Session(engine) as session:
        added = [Document(title="new", lang="new", embedding=QUERY) for _ in range(9)]
        session.add_all(added)
        session.commit()
        assert sum(held(node, "lang = 'new'") for node in cluster) == 9
        added[0].embedding = [-number for number in QUERY]
        added[1].embedding = None
        session.delete(added[2])
        with session.begin_nested() as savepoint:
            session.execute(update(Document).where(Document.lang == "new").values(lang="newest"))
            savepoint.rollback()
        session.commit()
        mine = nearest(Document.embedding, QUERY, k=20, where=[Document.lang == "new"])
        assert found(session, mine) == [*((document.id, 0.0) for document in added[3:]), (added[0].id, 2.0)]
    assert sum(held(node, "lang = 'new'") for node in cluster) == 8
    assert sum(held(node, "lang = 'new' and embedding is null") for node in cluster) == 1


def sent(explained):
    """How many rows the nodes sent for a statement."""
    return sum(float(rows) for rows in re.findall(r"Foreign Scan on .*\(actual rows=([0-9.]+)", explained))


def test_the_nodes_send_candidates_and_not_their_tables(engine):
    statement = nearest(Document.embedding, QUERY, k=10, where=[Document.lang == "en"])
    with engine.connect() as conn:
        assert 0 < sent(plan(conn, statement)) < len(ROWS) / 3


def test_peewee_answers_alike(cluster, engine):
    pytest.importorskip("peewee", reason="needs Peewee: pip install 'datasette-vec-gemini[peewee]'")
    from peewee import Model, PostgresqlDatabase, TextField

    from datasette_vec_gemini import peewee as door

    db = PostgresqlDatabase("app", host=str(cluster[0].directory), user="postgres", prefer_psycopg3=True)

    class Entity(Model):
        title = TextField()
        lang = TextField()
        embedding = door.VectorField(dimensions=DIMENSIONS, null=True)

        class Meta:
            database = db
            table_name = "document"

    Entity.add_index(door.VectorIndex(Entity.embedding, exact_rows=50))
    with db:
        query = door.nearest(Entity.embedding, QUERY, k=10).where(Entity.lang == "en")
        matching = {key: vector for key, vector in ROWS.items() if lang(key) == "en"}
        assert [entity.id for entity in query] == [
            key for key, _ in oracle.nearest(matching, QUERY, k=10, metric="cosine")
        ]
        sql, parameters = query.sql()
        explained = "\n".join(line for (line,) in db.execute_sql(EXPLAIN + sql, parameters))
    assert 0 < sent(explained) < len(ROWS) / 3


def test_the_order_and_the_filter_travel_to_the_nodes(engine):
    distance = Document.embedding.cosine_distance(QUERY)
    statement = select(Document.id).where(Document.lang == "en").order_by(distance).limit(5)
    with engine.connect() as conn:
        remote = re.findall(r"Remote SQL: (.+)", plan(conn, statement))
    assert len(remote) == 2
    for sql in remote:
        assert re.search(r"WHERE \(\(lang = .+ ORDER BY \(embedding .*<=>", sql)
