"""Bulk inserts of plain rows with vectors go past the ORM; to their caller nothing is different from the ORM's own."""

from contextlib import contextmanager
from types import MappingProxyType

import numpy as np
import pytest

sa = pytest.importorskip("sqlalchemy", reason="needs SQLAlchemy: pip install 'datasette-vec-gemini[sqlalchemy]'")
from sqlalchemy import JSON, ForeignKey, String, bindparam, event, func, insert, select
from sqlalchemy.dialects import sqlite
from sqlalchemy.ext.horizontal_shard import ShardedSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, column_property, mapped_column, synonym

from datasette_vec_gemini.sqlalchemy import Vector, VectorIndex, bulk, create_engine, nearest


class Spelled(sa.TypeDecorator):
    """What makes something of NULL, too."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value, dialect):
        return f"<{value}>"


class Base(DeclarativeBase):
    pass


class Doc(Base):
    __tablename__ = "doc"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str | None] = mapped_column(unique=True)
    rank: Mapped[int] = mapped_column(default=lambda context: len(str(context.get_current_parameters().get("title"))))
    lang: Mapped[str | None] = mapped_column(default="en")
    state: Mapped[str | None] = mapped_column(server_default="new")
    spelled: Mapped[str | None] = mapped_column(Spelled)
    extra: Mapped[dict | None] = mapped_column(JSON)
    attribute: Mapped[str | None] = mapped_column("column")
    vector: Mapped[list[float] | None] = mapped_column(Vector(2))
    other = synonym("title")
    length = column_property(func.length(title))
    __table_args__ = (VectorIndex("doc_idx", "vector", quantize="int8"),)


class Swapped(Base):
    """Whose attributes have the names of each other's columns."""

    __tablename__ = "swapped"
    id: Mapped[int] = mapped_column(primary_key=True)
    one: Mapped[str] = mapped_column("two")
    two: Mapped[str] = mapped_column("one")
    vector: Mapped[list[float]] = mapped_column(Vector(2))


class Versioned(Base):
    __tablename__ = "versioned"
    id: Mapped[int] = mapped_column(primary_key=True)
    version: Mapped[int] = mapped_column()
    vector: Mapped[list[float]] = mapped_column(Vector(2))
    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012 - SQLAlchemy's way


class Animal(Base):
    __tablename__ = "animal"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    vector: Mapped[list[float]] = mapped_column(Vector(2))
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "animal"}  # noqa: RUF012


class Cat(Animal):
    __mapper_args__ = {"polymorphic_identity": "cat"}  # noqa: RUF012


class Dog(Animal):
    __tablename__ = "dog"
    id: Mapped[int] = mapped_column(ForeignKey("animal.id"), primary_key=True)
    breed: Mapped[str]
    __mapper_args__ = {"polymorphic_identity": "dog"}  # noqa: RUF012


class Shape(Base):
    __tablename__ = "shape"
    id: Mapped[int] = mapped_column(primary_key=True)


class Circle(Shape):
    __tablename__ = "circle"
    id: Mapped[int] = mapped_column(primary_key=True)
    vector: Mapped[list[float]] = mapped_column(Vector(2))
    __mapper_args__ = {"concrete": True}  # noqa: RUF012


class Word(Base):
    """Without vectors."""

    __tablename__ = "word"
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]


ARRAY = np.array([0.5, 1], dtype=np.float32)
ROWS = [{"title": title, "vector": vector} for title, vector in (("a", [1, 0]), ("b", ARRAY), ("c", (1, 1)))]


def rows(**more):
    return [row | more for row in ROWS]


PLAIN = {
    "rows": (insert(Doc), ROWS),
    "one row": (insert(Doc), ROWS[:1]),
    "more columns": (insert(Doc), rows(rank=5, lang="de", state="old", spelled="x", extra={"n": None})),
    "no vectors": (insert(Doc), [{"title": "a"}, {"title": "b"}]),
    "keys": (insert(Doc), [{"id": 9, **ROWS[0]}, {"id": 7, **ROWS[1]}]),
    "another order": (insert(Doc), [ROWS[0], dict(reversed(ROWS[1].items()))]),
    "a title twice": (insert(Doc), [*ROWS, ROWS[0]]),
    "no vector": (insert(Doc), [*ROWS, {"title": "d", "vector": [1, float("nan")]}]),
    "rows without names": (insert(Doc), [{}, {}]),
    "an SQL expression": (insert(Doc), [{"title": func.lower("A"), "vector": [1, 1]}, ROWS[1]]),
}
LEFT = {
    "NULL": (insert(Doc), [*ROWS, {"title": "d", "vector": None}, {"title": None, "vector": [1, 1]}]),
    "NULL where there is a default": (insert(Doc), rows(lang=None, state=None, spelled=None, extra=None)),
    "unlike rows": (insert(Doc), [*ROWS, {"title": "d"}, {"title": "e", "vector": [1, 1], "lang": "fr"}]),
    "an attribute's own name": (insert(Doc), rows(attribute="x")),
    "a column's name": (insert(Doc), [{**row, "column": "x"} for row in ROWS]),
    "no such column": (insert(Doc), rows(colour="x")),
    "a synonym": (insert(Doc), [{"other": "x", "vector": [1, 1]}]),
    "a computed attribute": (insert(Doc), rows(length=5)),
    "names of each other": (insert(Swapped), [{"one": "1", "two": "2", "vector": [1, 1]}] * 2),
    "versions": (insert(Versioned), [{"vector": [1, 1]}] * 2),
    "a single table of several classes": (insert(Cat), [{"vector": [1, 1]}] * 2),
    "two tables of one class": (insert(Dog), [{"vector": [1, 1], "breed": "pug"}] * 2),
    "its base": (insert(Animal), [{"vector": [1, 1]}] * 2),
    "a table of its own below another": (insert(Circle), [{"vector": [1, 1]}] * 2),
    "a class without vectors": (insert(Word), [{"text": "a"}] * 2),
    "returning": (insert(Doc).returning(Doc.id, Doc.rank), ROWS),
    "values": (insert(Doc).values(lang=func.upper("fr")), ROWS),
    "values of parameters": (insert(Doc).values(lang=func.upper(bindparam("given"))), rows(given="it")),
    "ignored": (insert(Doc).prefix_with("or ignore"), [*ROWS, ROWS[0]]),
    "upsert": (sqlite.insert(Doc).on_conflict_do_update(index_elements=["title"], set_={"rank": 7}), [*ROWS, ROWS[0]]),
    "no rows": (insert(Doc), []),
    "a row that is no list": (insert(Doc), ROWS[0]),
    "rows that are no dicts": (insert(Doc), [MappingProxyType(row) for row in ROWS]),
    "rows that are tuples": (insert(Doc), [("a", [1, 1])]),
    "attributes as names": (insert(Doc), [{Doc.title: "a"}, {Doc.title: "b"}]),
    "numbers as names": (insert(Doc), [{1: "a"}, {1: "b"}]),
    "classes of an insert": (select(Doc).from_statement(insert(Doc).returning(Doc)), ROWS),
    "another strategy": (insert(Doc).execution_options(dml_strategy="bulk"), ROWS),
    "a table": (insert(Doc.__table__), ROWS),
}
CASES = PLAIN | LEFT


@pytest.fixture
def engine(tmp_path):
    made = create_engine(f"sqlite:///{tmp_path / 'test.db'}")
    Base.metadata.create_all(made)
    yield made
    made.dispose()


@contextmanager
def as_sqlalchemy_does_it():
    event.remove(Session, "do_orm_execute", bulk.take_the_short_way)
    try:
        yield
    finally:
        event.listen(Session, "do_orm_execute", bulk.take_the_short_way)


def outcome(engine, case):
    """What the caller sees and the file holds; and whether the rows went past the ORM."""
    statement, given = CASES[case]
    before = str(given)
    told, strategies = [], []

    @event.listens_for(engine, "before_execute")
    def note(connection, clause, multiparams, params, options):
        if clause.is_insert:
            strategies.append(options.get("dml_strategy"))

    with Session(engine) as session:
        session.add(Doc(title="first", vector=[1, 0]))
        try:
            result = session.execute(statement, given)
            told += [type(result), [*map(str, result.scalars())] if statement._returning else result.scalar()]
        except Exception as error:  # noqa: BLE001 - whatever it is, both are to raise the same
            told += [type(error), str(getattr(error, "orig", error))]
            session.rollback()
        told += [session.execute(select(table)).all() for table in Base.metadata.sorted_tables]
        told.append([(doc.id, distance) for doc, distance in session.execute(nearest(Doc.vector, [1, 0.5], k=9))])
        session.rollback()
    event.remove(engine, "before_execute", note)
    assert str(given) == before
    return told, "raw" in strategies


@pytest.mark.parametrize("case", CASES)
def test_what_happens_is_what_happens_sqlalchemys_own_way(engine, case):
    ours, is_short = outcome(engine, case)
    with as_sqlalchemy_does_it():
        assert (ours, False) == outcome(engine, case)
    assert is_short == (case in PLAIN)


def test_a_table_of_a_session_that_is_told_the_class_is_a_table(engine):
    with Session(engine) as session:
        session.execute(insert(Doc.__table__), ROWS, bind_arguments={"mapper": Doc})
        assert session.scalar(select(func.count(Doc.id))) == len(ROWS)


def strategy(session, rows=ROWS, **options):
    """By which strategy rows are inserted through that session."""
    taken = []

    @event.listens_for(session.get_bind(Doc), "before_execute")
    def note(connection, clause, multiparams, params, options):
        taken.append(options.get("dml_strategy"))

    session.execute(insert(Doc), rows, **options)
    assert len(taken) == 1
    event.remove(session.get_bind(Doc), "before_execute", note)
    return taken[0]


def test_whoever_may_change_rows_on_their_way_can(engine):
    class Own(Session):
        pass

    class Routed(Session):
        def get_bind(self, mapper=None, **options):
            return super().get_bind(mapper, **options)

    @event.listens_for(Own, "do_orm_execute")
    def change(state):
        if state.is_insert:
            state.parameters[1]["lang"] = None

    with Session(engine) as plain, Own(engine) as own, Routed(engine) as routed:
        assert strategy(plain) == "raw"
        plain.rollback()
        assert strategy(plain, bind_arguments={"bind": engine}) is None
        plain.rollback()
        assert strategy(routed) is None
        routed.rollback()
        own.execute(insert(Doc), [dict(row) for row in ROWS])
        assert own.scalars(select(Doc.lang)).all() == ["en"] * 3


def test_rows_that_listeners_of_core_write_to_are_not_the_callers(engine):
    @event.listens_for(engine, "before_execute", retval=True)
    def stamp(connection, clause, multiparams, params, options):
        for row in multiparams:
            row["lang"] = "la"
        return clause, multiparams, params

    given = [dict(row) for row in ROWS]
    with Session(engine) as session:
        session.execute(insert(Doc), given)
        event.remove(engine, "before_execute", stamp)
        assert session.scalars(select(Doc.lang)).all() == ["la"] * 3
    assert str(given) == str(ROWS)


def test_rows_of_shards_are_left_to_sqlalchemy(engine):
    choosers = {"shard_chooser": lambda *_, **__: "a", "identity_chooser": lambda *_, **__: ["a"]}
    with (
        ShardedSession(shards={"a": engine}, execute_chooser=lambda _: ["a"], **choosers) as session,
        pytest.raises(NotImplementedError),
    ):
        session.execute(insert(Doc), ROWS)


@pytest.mark.parametrize(
    ("version", "is_safe"),
    [("2.0.0", False), ("2.0.49", False), ("2.0.50", True), ("2.1.0b2", True), ("2.1.9", True), ("3.0", True)],
)
def test_nothing_listens_where_that_harms_others(version, is_safe):
    assert bulk.can_listen(version) == is_safe


def test_one_listens_in_this_version():
    assert event.contains(Session, "do_orm_execute", bulk.take_the_short_way)
