"""Laws of VectorIndex on SQLite: its life with the table, what it survives, and how it follows commits."""

import uuid

import oracle
import pytest
from documents import DIMENSIONS, EXACTLY, FAR, INDEXES, NEAR, QUERY, ROWS, VECTORS, models, vector

sa = pytest.importorskip("sqlalchemy", reason="needs SQLAlchemy: pip install 'datasette-vec-gemini[sqlalchemy]'")
from sqlalchemy import Column, MetaData, String, Table, Uuid, func, insert, select, text
from sqlalchemy.orm import Session

from datasette_vec_gemini import connect, sqlite3
from datasette_vec_gemini.errors import InvalidKey, InvalidName, InvalidSetting
from datasette_vec_gemini.sqlalchemy import Vector, VectorIndex, create_engine, nearest, sync_indexes
from datasette_vec_gemini.vectors import pack

NAME = "document_embedding_idx"


@pytest.fixture
def engine(path):
    engine = create_engine(f"sqlite:///{path}")
    yield engine
    engine.dispose()


def schema(engine):
    with engine.connect() as conn:
        names = conn.scalars(text("select name from sqlite_master where name not like 'sqlite_%' order by name"))
        return set(names)


def number(engine, sql):
    with engine.connect() as conn:
        return conn.scalar(text(sql))


def fill(engine, document, rows=VECTORS):
    with engine.begin() as conn:
        conn.execute(insert(document), [{"id": key, "embedding": value} for key, value in rows.items()])


def check(engine, document, rows, *, metric="cosine", k=10):
    with engine.connect() as conn:
        found = [(row.id, row.distance) for row in conn.execute(nearest(document.__table__.c.embedding, QUERY, k=k))]
    expected = oracle.nearest(rows, QUERY, k=k, metric=metric)
    assert found == [(key, pytest.approx(distance, **EXACTLY)) for key, distance in expected]


@pytest.mark.parametrize("index", INDEXES.values(), ids=list(INDEXES))
def test_create_all_makes_it_once_and_drop_all_leaves_nothing(engine, index):
    Base, _, document = models(**index)
    assert schema(engine) == set()
    Base.metadata.create_all(engine)
    made = schema(engine)
    assert {NAME, f"{NAME}_dirty", f"{NAME}_insert", f"{NAME}_update", f"{NAME}_delete", "_vec_derived"} < made
    fill(engine, document)
    Base.metadata.create_all(engine)
    assert schema(engine) == made
    check(engine, document, VECTORS, metric=index.get("metric", "cosine"))
    Base.metadata.drop_all(engine)
    assert schema(engine) == set()
    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)
    assert schema(engine) == made


def test_a_table_that_is_there_with_rows_gets_its_index_by_create_all(engine):
    Base, _, document = models(exact_rows=0)
    with engine.begin() as conn:
        conn.execute(text("create table author (id integer primary key, name text)"))
        conn.execute(
            text("create table document (id integer primary key, title, lang, slug unique, author_id, embedding blob)")
        )
    fill(engine, document)
    Base.metadata.create_all(engine)
    assert number(engine, f"select count(*) from {NAME}") == len(VECTORS)
    check(engine, document, VECTORS)


def test_an_index_is_made_and_dropped_by_itself_too(engine):
    Base, _, document = models(exact_rows=0)
    Base.metadata.create_all(engine)
    fill(engine, document)
    index = VectorIndex("by_l2", document.embedding, metric="l2", exact_rows=0)
    before = schema(engine)
    index.create(engine)
    index.create(engine)
    assert number(engine, "select count(*) from by_l2") == len(VECTORS)
    with engine.connect() as conn:
        table = document.__table__
        found = [row.id for row in conn.execute(nearest(table.c.embedding, QUERY, k=5, metric="l2"))]
    assert found == [key for key, _ in oracle.nearest(VECTORS, QUERY, k=5, metric="l2")]
    index.drop(engine)
    index.drop(engine)
    assert schema(engine) == before


def test_only_the_tables_that_are_asked_for_get_their_index(engine):
    Base, author, document = models()
    with engine.begin() as conn:
        conn.execute(text("create table document (id integer primary key, embedding blob)"))
    Base.metadata.create_all(engine, tables=[author.__table__])
    assert schema(engine) == {"author", "document"}
    Base.metadata.create_all(engine, tables=[document.__table__])
    assert NAME in schema(engine)


def test_a_file_with_an_index_of_another_definition_answers_rightly_and_is_made_anew(engine):
    Base, _, document = models(metric="cosine", exact_rows=0)
    Base.metadata.create_all(engine)
    fill(engine, document)
    Base, _, other = models(metric="l2", quantize="int8", exact_rows=0, oversample=50)
    check(engine, other, VECTORS, metric="l2")
    Base.metadata.create_all(engine)
    assert number(engine, "select definition from _vec_derived") == "l2 int8[16] of embedding by integer id"
    assert number(engine, f"select count(*) from {NAME}") == len(VECTORS)
    check(engine, other, VECTORS, metric="l2")


def test_a_migration_that_copies_the_table_loses_the_triggers_but_no_answer(engine):
    Base, _, document = models(exact_rows=0)
    Base.metadata.create_all(engine)
    fill(engine, document)
    rows = VECTORS | {3: NEAR, 500: NEAR}
    del rows[4]
    with engine.begin() as conn:
        for statement in (
            "create table copied (id integer primary key, title, lang, slug, author_id, embedding blob, more)",
            "insert into copied select *, null from document",
            "drop table document",
            "alter table copied rename to document",
        ):
            conn.execute(text(statement))
        conn.execute(text("update document set embedding = :v where id = 3"), {"v": pack(NEAR)})
        conn.execute(text("insert into document (id, embedding) values (500, :v)"), {"v": pack(NEAR)})
        conn.execute(text("delete from document where id = 4"))
    check(engine, document, rows)
    (index,) = document.__table__.indexes - {i for i in document.__table__.indexes if i.name != NAME}
    with Session(engine) as session:
        assert index.sync(session) == len(VECTORS) + 1  # all that there are, and the one that is gone
        session.commit()
    assert number(engine, f"select count(*) from {NAME}") == len(rows)
    check(engine, document, rows)
    with engine.begin() as conn:
        conn.execute(text("delete from document where id = 3"))
        assert sync_indexes(conn) == 1
    del rows[3]
    check(engine, document, rows)


@pytest.mark.parametrize(
    "write",
    [
        lambda conn, document: conn.execute(insert(document).values(id=1000, embedding=NEAR)),
        lambda conn, document: conn.execute(
            insert(document), [{"id": 1000, "embedding": NEAR}, {"id": 1001, "embedding": FAR}]
        ),
        lambda conn, _: conn.execute(
            text("insert into document (id, title, lang, embedding) values (1000, '', '', :v)"), {"v": pack(NEAR)}
        ),
        lambda conn, _: conn.exec_driver_sql(
            "insert into document (id, title, lang, embedding) values (1000, '', '', ?)", (pack(NEAR),)
        ),
        lambda conn, _: conn.connection.execute(
            "insert into document (id, title, lang, embedding) values (1000, '', '', ?)", [pack(NEAR)]
        ),
    ],
    ids=["core", "bulk", "text", "driver_sql", "driver"],
)
def test_a_commit_is_followed_by_the_index_and_an_open_transaction_is_not(engine, write):
    Base, _, document = models(exact_rows=0)
    Base.metadata.create_all(engine)
    with engine.connect() as conn:
        write(conn, document)
        assert conn.scalar(text(f"select count(*) from {NAME}_dirty")) >= 1
        assert conn.scalar(text(f"select count(*) from {NAME}")) == 0
        conn.commit()
    assert number(engine, f"select count(*) from {NAME}_dirty") == 0
    assert number(engine, f"select id from {NAME} order by id limit 1") == 1000


def test_what_is_not_committed_is_not_folded_in(engine):
    Base, _, document = models()
    Base.metadata.create_all(engine)
    with engine.connect() as conn:
        conn.execute(insert(document).values(id=1, embedding=NEAR))
    assert number(engine, f"select count(*) from {NAME}") == 0
    assert number(engine, "select count(*) from document") == 0


def test_a_commit_stays_where_the_index_cannot_follow(engine, path, caplog):
    """Another program holds the lock the moment the commit is made: the row is there, is found, and folded in later."""
    Base, _, document = models(exact_rows=0)
    Base.metadata.create_all(engine)
    other = connect(path)

    def seize(_):
        other.execute("begin immediate")

    with Session(engine) as session:
        session.add(document(id=1, embedding=NEAR))
        sa.event.listen(session, "after_commit", seize, once=True)
        session.commit()
    assert number(engine, f"select count(*) from {NAME}_dirty") == 1
    assert caplog.text == ""  # nothing to worry anybody with
    check(engine, document, {1: NEAR})
    other.rollback()
    other.close()
    fill(engine, document, {2: FAR})
    assert number(engine, f"select count(*) from {NAME}_dirty") == 0
    check(engine, document, {1: NEAR, 2: FAR})


def test_a_commit_stays_where_the_index_is_broken_and_the_log_says_so(engine, caplog):
    Base, _, document = models(exact_rows=0)
    Base.metadata.create_all(engine)
    with engine.begin() as conn:
        conn.execute(text(f"drop table {NAME}_vector_chunks00"))
    fill(engine, document, {1: NEAR})
    assert number(engine, "select count(*) from document") == 1
    assert "could not be folded" in caplog.text
    assert number(engine, f"select count(*) from {NAME}_dirty") == 1


def test_an_answer_does_not_depend_on_what_is_folded_in(path):
    """Rows by the thousand that no engine has folded in, more than vec0 takes beside its answer."""
    engine = create_engine(f"sqlite:///{path}")
    Base, _, document = models(exact_rows=0)
    Base.metadata.create_all(engine)
    engine.dispose()
    rows = {key: vector() for key in range(1, 5001)}
    other = sqlite3.connect(path)
    for start in (0, 100, 4000):
        part = {key: value for key, value in rows.items() if start < key <= {0: 100, 100: 4000, 4000: 5000}[start]}
        other.executemany(
            "insert into document (id, title, lang, embedding) values (?, '', 'en', ?)",
            [(key, pack(value)) for key, value in part.items()],
        )
        other.commit()
        seen = {key: value for key, value in rows.items() if key <= max(part)}
        reader = create_engine(f"sqlite:///{path}")
        check(reader, document, seen)
        reader.dispose()
    other.close()


@pytest.mark.parametrize("quantize", ["float32", "int8"])
def test_more_equal_vectors_than_are_wanted_come_in_the_order_of_their_keys(engine, quantize):
    Base, _, document = models(quantize=quantize, exact_rows=0)
    Base.metadata.create_all(engine)
    rows = {key: vector() for key in range(1, 400)} | dict.fromkeys(range(50, 350), NEAR)
    fill(engine, document, rows)
    check(engine, document, rows, k=5)
    check(engine, document, rows, k=20)


def test_the_scale_of_int8_follows_the_data(engine):
    Base, _, document = models(metric="l2", quantize="int8", exact_rows=0, oversample=2)
    Base.metadata.create_all(engine)
    rows = {key: [x / 1000 for x in vector()] for key in range(1, 300)}
    fill(engine, document, rows)
    small = number(engine, "select scale from _vec_derived")
    more = {key: vector() for key in range(300, 900)}
    fill(engine, document, more)
    large = number(engine, "select scale from _vec_derived")
    assert small / large == pytest.approx(1000, rel=0.5)
    assert number(engine, f"select count(*) from {NAME}") == 899
    check(engine, document, rows | more, metric="l2")


@pytest.mark.parametrize(
    ("kind", "key"),
    [(String(20), lambda n: f"k'{n}"), (Uuid, lambda n: uuid.UUID(int=n)), (sa.BigInteger, lambda n: n << 40)],
    ids=["text", "uuid", "bigint"],
)
@pytest.mark.parametrize("quantize", ["float32", "int8", "bit"])
def test_keys_are_integers_or_texts(engine, kind, key, quantize):
    table = Table(
        "odd 'name\"",
        MetaData(),
        Column("the key", kind, primary_key=True),
        Column("a:vector", Vector(DIMENSIONS)),
        VectorIndex("odd_idx", "a:vector", quantize=quantize, exact_rows=0, oversample=300),
    )
    table.metadata.create_all(engine)
    rows = {key(n): value for n, value in VECTORS.items()}
    with engine.begin() as conn:
        conn.execute(insert(table), [{"the key": each, "a:vector": value} for each, value in rows.items()])
    with engine.begin() as conn:
        conn.execute(table.delete().where(table.c["the key"] == key(1)))
        del rows[key(1)]
        statement = nearest(table.c["a:vector"], QUERY, k=10, where=[table.c["the key"] != key(2)])
        found = [row[0] for row in conn.execute(statement)]
        rest = {each: value for each, value in rows.items() if each != key(2)}
        assert found == [each for each, _ in oracle.nearest(rest, QUERY, k=10, metric="cosine")]
    assert number(engine, "select count(*) from odd_idx_dirty") == 0
    table.metadata.drop_all(engine)
    assert schema(engine) == set()


def broken(**columns):
    columns = {"id": Column(sa.Integer, primary_key=True), "embedding": Column(Vector(8))} | columns
    made = (Column(name, column.type, primary_key=column.primary_key) for name, column in columns.items())
    return Table("broken", MetaData(), *made)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: VectorIndex("a b", broken().c.embedding).derived, InvalidName, "'a b' cannot be the name"),
        (lambda: VectorIndex(None, broken().c.embedding), InvalidName, "give it one"),
        (lambda: VectorIndex("i", broken().c.id), InvalidSetting, "broken.id is no Vector"),
        (
            lambda: VectorIndex("i", broken().c.embedding, metric="dot").derived,
            InvalidSetting,
            "metric='dot' is unknown",
        ),
        (lambda: VectorIndex("i", broken().c.embedding, quantize="int4").derived, InvalidSetting, "quantize='int4'"),
        (lambda: VectorIndex("i", broken().c.embedding, quantize="bit", metric="l2").derived, InvalidSetting, "cosine"),
        (lambda: VectorIndex("i", broken().c.embedding, oversample=0).derived, InvalidSetting, "oversample=0"),
        (
            lambda: VectorIndex("i", broken(b=Column(sa.Integer, primary_key=True)).c.embedding).key,
            InvalidKey,
            "2 columns",
        ),
        (
            lambda: VectorIndex("i", broken(id=Column(sa.LargeBinary, primary_key=True)).c.embedding).derived,
            InvalidKey,
            "needs a key of integers or of text",
        ),
        (lambda: Vector(0), InvalidSetting, "dimensions=0"),
        (lambda: Vector("3"), InvalidSetting, "dimensions='3': a vector has a whole number of them"),
        (lambda: Vector(3.5), InvalidSetting, "dimensions=3.5"),
        (lambda: Vector(True), InvalidSetting, "dimensions=True"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_an_inner_product_and_an_attached_file_have_no_index_on_sqlite(engine):
    table = broken()
    VectorIndex("i", table.c.embedding, metric="inner_product")
    with pytest.raises(InvalidSetting, match="vec0 has no inner product"):
        table.create(engine)
    other = Table("t", MetaData(), Column("id", sa.Integer, primary_key=True), Column("v", Vector(8)), schema="other")
    VectorIndex("j", other.c.v)
    with engine.connect() as conn:
        conn.execute(text("attach ':memory:' as other"))
        with pytest.raises(InvalidSetting, match="is in schema 'other'"):
            other.create(conn)


def test_the_sql_of_a_schema_can_be_printed_and_run_by_any_program_with_the_extension(path):
    Base, _, document = models(exact_rows=0)
    statements = []
    mock = sa.create_mock_engine(
        "sqlite://", lambda sql, *_, **__: statements.append(str(sql.compile(dialect=mock.dialect)))
    )
    Base.metadata.create_all(mock, checkfirst=False)
    conn = connect(path, create=True)
    for statement in statements:
        conn.execute(statement)
    conn.close()
    engine = create_engine(f"sqlite:///{path}")
    fill(engine, document)
    check(engine, document, VECTORS)
    statements.clear()
    Base.metadata.drop_all(mock, checkfirst=False)
    with engine.begin() as conn:
        for statement in statements:
            conn.exec_driver_sql(statement)
    assert schema(engine) == {"_vec_derived"}
    engine.dispose()


def test_an_index_costs_a_reader_nothing_to_write(engine, path):
    """Searching writes nothing: it works on a file that cannot be written."""
    Base, _, document = models(exact_rows=0)
    Base.metadata.create_all(engine)
    fill(engine, document)
    reader = create_engine(f"sqlite:///file:{path}?mode=ro&uri=true")
    check(reader, document, VECTORS)
    with reader.connect() as conn:
        assert conn.scalar(select(func.count()).select_from(document)) == len(VECTORS)
    reader.dispose()


def test_a_copy_of_a_table_has_the_same_vector_index(engine):
    _, _, document = models(metric="l2", quantize="int8", oversample=300, exact_rows=0)
    table, copied = document.__table__, MetaData()
    document.metadata.tables["author"].to_metadata(copied)
    copy = table.to_metadata(copied)
    (index,) = (index for index in copy.indexes if index.name == NAME)
    assert isinstance(index, VectorIndex)
    assert index.derived == next(index for index in table.indexes if index.name == NAME).derived
    copied.create_all(engine)
    assert {f"{NAME}_dirty", f"{NAME}_insert"} < schema(engine)
    fill(engine, document)
    check(engine, document, VECTORS, metric="l2")
    with engine.connect() as conn:
        (expected,) = oracle.nearest(VECTORS, QUERY, k=1, metric="l2")
        assert conn.execute(nearest(copy.c.embedding, QUERY)).first().id == expected[0]
    copied.drop_all(engine)
    assert schema(engine) == set()


def test_a_batch_operation_on_the_models_table_keeps_the_index(engine):
    migration = pytest.importorskip("alembic.migration", reason="needs Alembic: pip install alembic")
    operations = pytest.importorskip("alembic.operations")
    Base, _, document = models(exact_rows=0)
    Base.metadata.create_all(engine)
    fill(engine, document)
    made = schema(engine)
    with engine.begin() as conn:
        op = operations.Operations(migration.MigrationContext.configure(conn))
        with op.batch_alter_table("document", recreate="always", copy_from=document.__table__) as batch:
            batch.alter_column("title", nullable=True)
        found = conn.execute(nearest(document.__table__.c.embedding, QUERY))
        assert [row.id for row in found] == [key for key, _ in oracle.nearest(VECTORS, QUERY, k=10, metric="cosine")]
    assert schema(engine) == made - {"ix_document_lang"}  # which Alembic never copies
    fill(engine, document, {ROWS + 1: NEAR})
    check(engine, document, VECTORS | {ROWS + 1: NEAR})
    Base.metadata.drop_all(engine)
    assert schema(engine) == set()
