"""Laws of what a search leaves out and refuses: idle joins, aliases of less than a table, other files, wrong words."""

import io
import pickle
import random

import numpy as np
import oracle
import pytest
from documents import EXACTLY

sa = pytest.importorskip("sqlalchemy", reason="needs SQLAlchemy: pip install 'datasette-vec-gemini[sqlalchemy]'")
from sqlalchemy import Column, ForeignKey, Integer, MetaData, Table, literal_column, or_, select, text
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.exc import OperationalError, UnsupportedCompilationError
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    aliased,
    joinedload,
    mapped_column,
    relationship,
)

from datasette_vec_gemini.driver import sqlite3
from datasette_vec_gemini.errors import ExtensionUnavailable, InvalidQuery, UsageError
from datasette_vec_gemini.sqlalchemy import (
    Vec0Table,
    Vector,
    VectorIndex,
    create_engine,
    nearest,
    search_entities,
    semantic,
)
from datasette_vec_gemini.vectors import pack

DIMENSIONS = 8
_random = random.Random(3)
VECTORS = {key: [_random.gauss(0, 1) for _ in range(DIMENSIONS)] for key in range(1, 301)}
QUERY = VECTORS[1]
RANKED = [key for key, _ in oracle.nearest(VECTORS, QUERY, k=len(VECTORS), metric="l2")]
FAR = set(RANKED[260:])
"""So far from the query that an index which is not told of the filter finds none of them."""


class Base(DeclarativeBase):
    pass


tagged = Table("tagged", Base.metadata, Column("d", ForeignKey("document.id")), Column("t", ForeignKey("tag.id")))


class Tag(Base):
    __tablename__ = "tag"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


class Person(Base):
    __tablename__ = "person"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    kind: Mapped[str]
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "person"}  # noqa: RUF012 - SQLAlchemy's way


class Editor(Person):
    __tablename__ = "editor"
    id: Mapped[int] = mapped_column(ForeignKey("person.id"), primary_key=True)
    desk: Mapped[str]
    __mapper_args__ = {"polymorphic_identity": "editor"}  # noqa: RUF012


class Document(Base):
    __tablename__ = "document"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    lang: Mapped[str]
    editor_id: Mapped[int | None] = mapped_column(ForeignKey("editor.id"))
    editor: Mapped[Editor | None] = relationship()
    tags: Mapped[list[Tag]] = relationship(secondary=tagged)
    embedding: Mapped[list[float] | None] = mapped_column(Vector(DIMENSIONS))
    __table_args__ = (VectorIndex("document_embedding_idx", "embedding", metric="l2", exact_rows=0),)
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "document"}  # noqa: RUF012


class Report(Document):
    __tablename__ = "report"
    id: Mapped[int] = mapped_column(ForeignKey("document.id"), primary_key=True)
    __mapper_args__ = {"polymorphic_identity": "report"}  # noqa: RUF012


@pytest.fixture(scope="module", params=["sqlite", "psycopg"])
def engine(request, tmp_path_factory):
    """Documents of which those far off, and they alone, are reports in German of an editor, tagged x."""
    if request.param == "sqlite":
        made = create_engine(f"sqlite:///{tmp_path_factory.mktemp('guards') / 'test.db'}")
        yield from filled(made)
    else:
        pytest.importorskip("psycopg", reason="needs psycopg: pip install psycopg")
        server = request.getfixturevalue("postgres")
        with server.database() as name:
            yield from filled(create_engine(server.url(name)))


def filled(engine):
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        x, y, editor = Tag(id=1, name="x"), Tag(id=2, name="y"), Editor(id=1, name="Ada", desk="far")
        for key, embedding in VECTORS.items():
            rest = {"lang": "de", "editor": editor, "tags": [x]} if key in FAR else {"lang": "en", "tags": [y]}
            session.add((Report if key in FAR else Document)(id=key, embedding=embedding, **rest))
        session.commit()
    yield engine
    engine.dispose()


def expected(only=lambda key: True, k=5):
    rows = {key: vector for key, vector in VECTORS.items() if only(key)}
    return [(key, pytest.approx(value, **EXACTLY)) for key, value in oracle.nearest(rows, QUERY, k=k, metric="l2")]


TAGGED = nearest(Document.embedding, QUERY, k=5).outerjoin(Document.tags)
LINKED = nearest(Document.embedding, QUERY, k=5).outerjoin(tagged, tagged.c.d == Document.id)


@pytest.mark.parametrize(
    "statement",
    [
        TAGGED.where(Tag.name == "x"),
        TAGGED.where(or_(Tag.name == "x", Tag.id.is_(None))),
        TAGGED.where(text("tag.name = 'x'")),
        nearest(Document.embedding, QUERY, k=5).outerjoin(Document.editor).where(Editor.desk == "far"),
        LINKED.where(text("tagged.t = 1")),
        LINKED.where(literal_column("tagged.t") == 1),
    ],
    ids=["many to many", "or", "text on it", "joined inheritance", "text", "literal column"],
)
def test_an_outer_join_that_a_condition_refers_to_filters(engine, statement):
    with Session(engine) as session:
        assert [(found.id, distance) for found, distance in session.execute(statement)] == expected(FAR.__contains__)


GERMAN = select(Document).where(Document.lang == "de")
SUBQUERY, CTE = GERMAN.subquery(), GERMAN.cte("german")
PARTS = {
    "aliased subquery": aliased(Document, SUBQUERY).embedding,
    "aliased cte": aliased(Document, CTE).embedding,
    "subquery": SUBQUERY.c.embedding,
    "cte": CTE.c.embedding,
    "aliased class of two tables": aliased(Report).embedding,
    "the same, flat": aliased(Report, flat=True).embedding,
}


@pytest.mark.parametrize("column", PARTS.values(), ids=PARTS)
def test_an_alias_of_some_rows_is_a_filter(engine, column):
    with Session(engine) as session:
        rows = session.execute(nearest(column, QUERY, k=5)).all()
    assert [(getattr(row[0], "id", row[0]), row.distance) for row in rows] == expected(FAR.__contains__)


def test_a_join_that_only_loads_is_left_out_of_the_search(engine):
    """Also beside an EXISTS, which selects text of its own."""
    filtered = nearest(Document.embedding, QUERY, k=5).where(Document.tags.any(Tag.name == "x"))
    statement = filtered.options(joinedload(Document.editor))
    with Session(engine) as session:
        assert [(found.id, distance) for found, distance in session.execute(statement)] == expected(FAR.__contains__)
    assert str(statement.compile(engine)).count("LEFT OUTER JOIN") == 1


def test_a_subquery_without_the_key_is_refused():
    with pytest.raises(InvalidQuery, match=r"no column of document\.id"):
        nearest(select(Document.embedding).subquery().c.embedding, QUERY)


def test_a_joined_collection_is_loaded_beside_a_search_and_an_order_by_distance(engine):
    distance = Document.embedding.l2_distance(QUERY)
    for statement in (nearest(Document.embedding, QUERY, k=5), select(Document).order_by(distance).limit(5)):
        with Session(engine) as session:
            found = session.scalars(statement.options(joinedload(Document.tags))).unique().all()
            assert [(each.id, [tag.name for tag in each.tags]) for each in found] == [
                (key, ["y"]) for key in RANKED[:5]
            ]


def test_statements_are_printed_and_other_databases_refused():
    statement = nearest(Document.embedding, QUERY)
    assert "candidates(document.id, document.embedding, :param_1)" in str(statement)
    assert str(Document.embedding.l2_distance(QUERY)) == "l2_distance(document.embedding, :param_1)"
    for each in (statement, select(Document.embedding.l2_distance(QUERY))):
        with pytest.raises(UnsupportedCompilationError, match="MySQL"):
            each.compile(dialect=mysql.dialect())


VEC_ITEMS = Vec0Table(
    "vec_items",
    MetaData(),
    Column("id", Integer, primary_key=True),
    Column("embedding", Vector(DIMENSIONS)),
    Column("parity", Integer),
    metric="l2",
)
KEY, PARITY = VEC_ITEMS.c.id, VEC_ITEMS.c.parity


@pytest.mark.parametrize(
    ("where", "only"),
    [
        ([KEY == 250], lambda key: key == 250),
        ([KEY.in_([7, 250])], lambda key: key in {7, 250}),
        ([KEY.between(100, 102)], lambda key: 100 <= key <= 102),
        ([KEY > 240], lambda key: key > 240),
        ([KEY > 240, KEY != 250, PARITY == 1], lambda key: key > 240 and key % 2),
        ([or_(KEY == 250, PARITY == 1)], lambda key: key == 250 or key % 2),
        ([text("id > 240")], lambda key: key > 240),
        ([KEY.in_([])], lambda key: False),
    ],
    ids=["==", "in", "between", ">", "with a column", "or", "text", "none"],
)
def test_vec0_searches_among_the_keys_that_conditions_leave(path, where, only):
    engine = create_engine(f"sqlite:///{path}")
    VEC_ITEMS.metadata.create_all(engine)
    near = VEC_ITEMS.nearest(QUERY, k=5, where=where)
    with engine.begin() as conn:
        rows = [{"id": key, "embedding": vector, "parity": key % 2} for key, vector in VECTORS.items()]
        conn.execute(VEC_ITEMS.insert(), rows)
        found = [tuple(row) for row in conn.execute(select(near).order_by(near.c.distance))]
    engine.dispose()
    assert found == expected(only)


def documents(metadata, name="document"):
    return Table(
        name,
        metadata,
        Column("id", Integer, primary_key=True),
        Column("embedding", Vector(DIMENSIONS)),
        VectorIndex(f"{name}_idx", "embedding", metric="l2", exact_rows=0),
    )


def test_a_schema_translated_to_another_file_is_searched_there(tmp_path):
    table = documents(MetaData())
    engines = [create_engine(f"sqlite:///{tmp_path / name}") for name in ("main.db", "other.db")]
    for engine, turn in zip(engines, (1, -1), strict=True):
        table.metadata.create_all(engine)
        with engine.begin() as conn:
            conn.execute(table.insert(), [{"id": turn * key, "embedding": v[::turn]} for key, v in VECTORS.items()])
    with engines[0].connect() as conn:
        conn.exec_driver_sql("attach ? as other", (str(tmp_path / "other.db"),))
        statement = nearest(table.c.embedding, QUERY, k=3)
        for target, turn in ((None, 1), ("other", -1), (None, 1)):
            translated = conn.execution_options(schema_translate_map={None: target})
            rows = {turn * key: vector[::turn] for key, vector in VECTORS.items()}
            keys = [key for key, _ in oracle.nearest(rows, QUERY, k=3, metric="l2")]
            assert translated.execute(statement).scalars().all() == keys
        assert "_vec_plan" in str(statement.compile(engines[0]))
    for engine in engines:
        engine.dispose()


def test_an_engine_of_either_sqlite_library_that_nobody_registered_says_what_to_call(path):
    metadata = MetaData()
    documents(metadata)
    engine = sa.create_engine(f"sqlite:///{path}")
    with pytest.raises(ExtensionUnavailable, match=r"call register_vector\(engine\)"):
        metadata.create_all(engine)
    engine.dispose()


def test_a_search_by_an_index_that_was_never_made_says_so(path):
    table = documents(MetaData())
    engine = create_engine(f"sqlite:///{path}")
    with engine.connect() as conn:
        conn.exec_driver_sql("create table document (id integer primary key, embedding blob)")
        with pytest.raises(OperationalError, match=r"vector index 'document_idx' is declared.*create_all") as caught:
            conn.execute(nearest(table.c.embedding, QUERY))
        assert isinstance(caught.value.orig, sqlite3.OperationalError)
        with pytest.raises(OperationalError, match="no such table: my_dirty"):
            conn.exec_driver_sql("select * from my_dirty")
    engine.dispose()


@pytest.mark.parametrize("dialect", ["sqlite", "postgresql"])
def test_a_migration_written_as_sql_says_what_needs_the_database(dialect):
    pytest.importorskip("alembic", reason="needs Alembic: pip install alembic")
    from alembic.migration import MigrationContext
    from alembic.operations import Operations

    import datasette_vec_gemini.sqlalchemy.alembic  # noqa: F401  # registers the operations

    written = io.StringIO()
    options = {"as_sql": True, "output_buffer": written}
    migration = Operations(MigrationContext.configure(dialect_name=dialect, opts=options))
    with pytest.raises(UsageError, match="asks the database for the key of its table, and with --sql there is none"):
        migration.create_vector_index("idx", "document", "embedding", dimensions=8)
    if dialect == "sqlite":
        with pytest.raises(UsageError, match="drop_vector_index of 'idx' asks the database"):
            migration.drop_vector_index("idx", "document")
    else:
        migration.drop_vector_index("idx", "document")
        assert written.getvalue().strip() == "DROP INDEX IF EXISTS idx;"


def test_a_class_is_no_alias(path):
    class Own(DeclarativeBase):
        pass

    class Note(Own):
        __tablename__ = "note"
        id: Mapped[int] = mapped_column(primary_key=True)
        body: Mapped[str]

    semantic(Note, columns=["body"], embedder="hashing@64")
    engine = create_engine(f"sqlite:///{path}")
    Own.metadata.create_all(engine)
    with Session(engine) as session:
        for other in (aliased(Note), Note.__table__, int):
            with pytest.raises(UsageError, match="is no mapped class: give the class itself"):
                search_entities(session, other, "a question")
    engine.dispose()


@pytest.mark.parametrize("k", [0, -1, 2.5, "3", True, np.float64(3), None])
def test_k_is_a_whole_number_from_one(k):
    for search in (lambda: nearest(Document.embedding, QUERY, k=k), lambda: VEC_ITEMS.nearest(QUERY, k=k)):
        with pytest.raises(InvalidQuery, match="it has to be a whole number from 1"):
            search()


def test_a_cached_statement_forgets_nothing_of_its_types():
    engine = create_engine("sqlite://")
    zeros = [0.0] * DIMENSIONS
    plain = Vector(DIMENSIONS)
    with engine.connect() as connection:
        connection.execute(select(sa.literal(zeros, plain)))
        of_directions = plain.of_metric("cosine")
        with pytest.raises(sa.exc.StatementError, match="all zeros"):
            connection.execute(select(sa.literal(zeros, of_directions)))
        assert "nonzero=True" in repr(of_directions)
    with engine.connect() as connection:
        for _ in range(2):
            connection.execute(select(sa.literal(zeros, Vector(DIMENSIONS))))
            with pytest.raises(sa.exc.StatementError, match="all zeros"):
                connection.execute(select(sa.literal(zeros, Vector(DIMENSIONS, nonzero=True))))
    engine.dispose()


def test_a_vector_is_written_out_where_a_statement_is():
    statement = select(sa.literal(VECTORS[1], Vector(DIMENSIONS)))
    engine = create_engine("sqlite://")
    written = str(statement.compile(engine, compile_kwargs={"literal_binds": True}))
    with engine.connect() as connection:
        assert connection.execute(text(written)).scalar_one() == pack(VECTORS[1])
    engine.dispose()
    on_postgres = str(
        select(sa.literal([1.5, -2.0], Vector(2))).compile(
            dialect=postgresql.dialect(), compile_kwargs={"literal_binds": True}
        )
    )
    assert "'[1.5,-2]'" in on_postgres
    with pytest.raises(sa.exc.CompileError) as caught:
        select(sa.literal([1.0], Vector(3))).compile(engine, compile_kwargs={"literal_binds": True})
    assert "3 dimensions" in str(caught.value.__cause__)


def test_parameters_can_be_carried_elsewhere_by_errors_and_printed(path, caplog):
    engine = create_engine(f"sqlite:///{path}")
    table = Table("kept", MetaData(), Column("id", Integer, primary_key=True), Column("e", Vector(DIMENSIONS)))
    table.create(engine)
    row = {"id": 1, "e": np.ones(DIMENSIONS, dtype=np.float32)}
    with engine.begin() as connection:
        connection.execute(table.insert(), row)
    with engine.connect() as connection, pytest.raises(sa.exc.IntegrityError) as caught:
        connection.execute(table.insert(), row)
    _, vector = pickle.loads(pickle.dumps(caught.value)).params
    assert vector == row["e"].tobytes()
    assert f"{DIMENSIONS} x float32" in str(caught.value)
    engine.dispose()


def test_what_a_program_makes_of_its_own_arrays_is_not_made_of_vectors(path):
    engine = create_engine(f"sqlite:///{path}")
    table = Table("kept", MetaData(), Column("id", Integer, primary_key=True), Column("e", Vector(DIMENSIONS)))
    table.create(engine)
    sqlite3.register_adapter(np.ndarray, lambda array: "its own")
    try:
        with engine.begin() as connection:
            connection.execute(table.insert(), [{"e": np.ones(DIMENSIONS, dtype=np.float32)} for _ in range(2)])
            assert connection.scalars(text("select typeof(e) from kept")).all() == ["blob"] * 2
            assert connection.scalars(select(table.c.e)).all() == [[1.0] * DIMENSIONS] * 2
    finally:
        del sqlite3.adapters[np.ndarray, sqlite3.PrepareProtocol]
    engine.dispose()


@pytest.mark.parametrize(("url", "is_copied"), [("sqlite://", False), ("sqlite+aiosqlite://", True)])
def test_a_vector_is_copied_where_the_statement_runs_in_another_thread(url, is_copied):
    if is_copied:
        pytest.importorskip("aiosqlite", reason="needs aiosqlite: pip install 'datasette-vec-gemini[aiosqlite]'")
    dialect = sa.make_url(url).get_dialect()()
    vector = np.ones(DIMENSIONS, dtype=np.float32)
    parameter = Vector(DIMENSIONS).dialect_impl(dialect).bind_processor(dialect)(vector)
    vector[0] = 5
    assert (bytes(parameter) == np.ones(DIMENSIONS, dtype=np.float32).tobytes()) == is_copied
