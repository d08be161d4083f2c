"""Laws of Vec0Table: the ORM's own table, vectors in vec0 and nowhere else, joined by id."""

import oracle
import pytest
from documents import DIMENSIONS, EXACTLY, FAR, NEAR, QUERY, VECTORS

sa = pytest.importorskip("sqlalchemy", reason="needs SQLAlchemy: pip install 'datasette-vec-gemini[sqlalchemy]'")
from sqlalchemy import Column, Float, Integer, MetaData, String, insert, inspect, or_, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from datasette_vec_gemini.errors import InvalidName, InvalidQuery, InvalidSetting, InvalidVector
from datasette_vec_gemini.sqlalchemy import Vec0Table, Vector, create_engine


class World:
    """A table of documents, a vec0 table beside it, and a class mapped to another one."""

    def __init__(self, path, metric):
        class Base(DeclarativeBase):
            pass

        class Document(Base):
            __tablename__ = "documents"
            id: Mapped[int] = mapped_column(primary_key=True)
            category: Mapped[str]

        self.items = Vec0Table(
            "vec_items",
            Base.metadata,
            Column("item_id", Integer, primary_key=True),
            Column("embedding", Vector(DIMENSIONS)),
            metric=metric,
        )

        class Item(Base):
            __table__ = Vec0Table(
                "vec_rich",
                Base.metadata,
                Column("code", String, primary_key=True),
                Column("embedding", Vector(DIMENSIONS)),
                Column("genre", String),
                Column("year", Integer),
                Column("score", Float),
                Column("fine", sa.Boolean),
                metric=metric,
            )

        self.Base, self.Document, self.Item, self.metric = Base, Document, Item, metric
        self.engine = create_engine(f"sqlite:///{path}")
        Base.metadata.create_all(self.engine)
        Base.metadata.create_all(self.engine)

    def fill(self):
        with Session(self.engine) as session:
            session.add_all(self.Document(id=key, category="ab"[key % 2]) for key in VECTORS)
            session.execute(insert(self.items), [{"item_id": key, "embedding": v} for key, v in VECTORS.items()])
            session.commit()

    def expected(self, only=lambda key: True, k=5, rows=VECTORS):
        rows = {key: value for key, value in rows.items() if only(key)}
        return [
            (key, pytest.approx(distance, **EXACTLY))
            for key, distance in oracle.nearest(rows, QUERY, k=k, metric=self.metric)
        ]


@pytest.fixture(params=["cosine", "l2"])
def world(request, path):
    made = World(path, request.param)
    yield made
    made.engine.dispose()


def test_the_nearest_are_joined_with_their_documents(world):
    world.fill()
    document = world.Document
    near = world.items.nearest(QUERY, k=5)
    statement = select(document.id, near.c.distance).join(near, near.c.item_id == document.id)
    with Session(world.engine) as session:
        ranked = statement.order_by(near.c.distance)
        assert [tuple(row) for row in session.execute(ranked)] == world.expected()
        # vec0 takes k or LIMIT, and none of these gets in its way.
        assert tuple(session.execute(ranked.limit(2)).first()) == world.expected()[0]
        assert session.execute(ranked.limit(2).offset(1)).all() == world.expected()[1:3]
        assert session.execute(statement.order_by(near.c.distance.desc())).first()[0] == world.expected()[-1][0]


@pytest.mark.parametrize("category", ["a", "b", "no such"])
def test_a_filter_on_documents_acts_inside_the_search(world, category):
    world.fill()
    document = world.Document
    near = world.items.nearest(QUERY, k=5, among=select(document.id).where(document.category == category))
    statement = select(near.c.item_id, near.c.distance).order_by(near.c.distance)
    with Session(world.engine) as session:
        found = [tuple(row) for row in session.execute(statement)]
    assert found == world.expected(lambda key: "ab"[key % 2] == category)


def test_a_mapped_class_is_added_read_changed_filtered_and_deleted(world):
    item = world.Item
    values = {"genre": "x", "year": 1999, "score": 0.5, "fine": True}
    with Session(world.engine) as session:
        session.add_all(
            item(code=f"k{key}", embedding=value, **values | {"year": key}) for key, value in VECTORS.items()
        )
        session.commit()
        one = session.get(item, "k3")
        assert (one.embedding, one.genre, one.year, one.score, one.fine) == (
            pytest.approx(VECTORS[3]),
            "x",
            3,
            0.5,
            True,
        )
        one.embedding = NEAR
        session.delete(session.get(item, "k4"))
        session.commit()
        rows = VECTORS | {3: NEAR}
        del rows[4]
        near = item.__table__.nearest(QUERY, k=5, where=[item.year > 2, item.fine == 1, item.genre == "x"])
        statement = select(item.year, near.c.distance).join(near, near.c.code == item.code).order_by(near.c.distance)
        found = [tuple(row) for row in session.execute(statement)]
        either = item.__table__.nearest(QUERY, k=500, where=or_(item.year == 3, item.year == 7))
        of_two = session.scalars(select(item.year).join(either, either.c.code == item.code)).all()
    assert found == world.expected(lambda key: key > 2, rows=rows)
    assert sorted(of_two) == [3, 7]


def test_a_rollback_takes_vectors_back_too(world):
    world.fill()
    with Session(world.engine) as session:
        session.execute(insert(world.items).values(item_id=5000, embedding=NEAR))
        with session.begin_nested() as savepoint:
            session.execute(insert(world.items).values(item_id=5001, embedding=FAR))
            savepoint.rollback()
        assert session.scalars(select(world.items.c.item_id).where(world.items.c.item_id >= 5000)).all() == [5000]
        session.rollback()
        assert session.scalars(select(world.items.c.item_id).where(world.items.c.item_id >= 5000)).all() == []


def test_drop_all_leaves_nothing(world):
    assert {"vec_items", "vec_rich", "documents"} <= set(inspect(world.engine).get_table_names())
    world.Base.metadata.drop_all(world.engine)
    assert inspect(world.engine).get_table_names() == []


def test_what_is_no_vector_is_refused_before_anything_is_written(world):
    with Session(world.engine) as session:
        for value in (QUERY[1:], [float("nan")] * DIMENSIONS, "text"):
            with pytest.raises(sa.exc.StatementError) as caught:
                session.execute(
                    insert(world.items), [{"item_id": 1, "embedding": QUERY}, {"item_id": 2, "embedding": value}]
                )
            assert isinstance(caught.value.orig, InvalidVector)
            session.rollback()
            with pytest.raises(InvalidVector):
                world.items.nearest(value)
        assert session.execute(select(world.items.c.item_id)).all() == []


@pytest.mark.parametrize(("k", "message"), [(0, "a whole number from 1"), (4097, "vec0's limit is 4,096")])
def test_k_has_vec0s_limits(world, k, message):
    with pytest.raises(InvalidQuery, match=f"k is {k}: .*{message}"):
        world.items.nearest(QUERY, k=k)


KEY, VECTOR = Column("id", Integer, primary_key=True), Column("embedding", Vector(8))


@pytest.mark.parametrize(
    ("name", "columns", "options", "error", "message"),
    [
        ("a b", [KEY, VECTOR], {}, InvalidName, "a b: vec0 takes no name but"),
        ("t", [KEY, Column("ü", Vector(8))], {}, InvalidName, "vec0 takes no name but"),
        ("t", [KEY, VECTOR, Column("K", Integer)], {}, InvalidName, "distance and k are its own"),
        ("t", [KEY], {}, InvalidSetting, "needs a key of one column and a Vector"),
        ("t", [VECTOR], {}, InvalidSetting, "needs a key of one column and a Vector"),
        ("t", [KEY, VECTOR], {"metric": "inner_product"}, InvalidSetting, "metric='inner_product' is unknown"),
        ("t", [KEY, VECTOR, Column("blob", sa.LargeBinary)], {}, InvalidSetting, "vec0 has no LargeBinary"),
        ("t", [Column("id", Float, primary_key=True), VECTOR], {}, InvalidSetting, "vec0 has no Float"),
    ],
)
def test_what_vec0_cannot_hold_is_refused(name, columns, options, error, message):
    with pytest.raises(error, match=message):
        Vec0Table(name, MetaData(), *(column._copy() for column in columns), **options)


def test_another_database_has_no_such_table():
    table = Vec0Table("t", MetaData(), KEY._copy(), VECTOR._copy())
    mock = sa.create_mock_engine("postgresql+psycopg://", lambda *_, **__: None)
    with pytest.raises(InvalidSetting, match="which SQLite alone has: for postgresql too"):
        table.metadata.create_all(mock, checkfirst=False)


def test_a_copy_of_the_table_is_one_too(world, tmp_path):
    copy = world.items.to_metadata(MetaData())
    assert copy.to_metadata(copy.metadata, name="other").metric == world.metric
    with pytest.warns(sa.exc.SAWarning, match="not copying"):
        assert copy.to_metadata(copy.metadata) is copy
    engine = create_engine(f"sqlite:///{tmp_path}/copy.db")
    copy.create(engine)
    with engine.begin() as conn:
        conn.execute(insert(copy), [{"item_id": key, "embedding": vector} for key, vector in VECTORS.items()])
        near = copy.nearest(QUERY, k=5)
        assert conn.execute(select(near).order_by(near.c.distance)).all() == world.expected()
    engine.dispose()
    with pytest.raises(InvalidSetting, match="which SQLite alone has"):
        copy.create(sa.create_mock_engine("postgresql+psycopg://", print))
