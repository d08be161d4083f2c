"""Laws of nearest() with all that classes and statements of SQLAlchemy can be: inheritance, subqueries, threads."""

from concurrent.futures import ThreadPoolExecutor

import oracle
import pytest
from documents import DIMENSIONS, EXACTLY, FAR, QUERY, VECTORS, models, vector

sa = pytest.importorskip("sqlalchemy", reason="needs SQLAlchemy: pip install 'datasette-vec-gemini[sqlalchemy]'")
from sqlalchemy import ForeignKey, exists, func, insert, select, text, union_all, update
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    aliased,
    mapped_column,
    with_loader_criteria,
    with_polymorphic,
)

from datasette_vec_gemini.sqlalchemy import Vector, VectorIndex, create_engine, nearest


class Base(DeclarativeBase):
    pass


class Person(Base):
    __tablename__ = "person"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    face: Mapped[list[float] | None] = mapped_column(Vector(DIMENSIONS), deferred=True)
    is_gone: Mapped[bool] = mapped_column(default=False)
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "person"}  # noqa: RUF012 - SQLAlchemy's way
    __table_args__ = (VectorIndex("person_face_idx", "face", exact_rows=0),)


class Manager(Person):
    __mapper_args__ = {"polymorphic_identity": "manager"}  # noqa: RUF012


class Engineer(Person):
    __tablename__ = "engineer"
    id: Mapped[int] = mapped_column(ForeignKey("person.id"), primary_key=True)
    skill: Mapped[list[float] | None] = mapped_column(Vector(DIMENSIONS))
    lang: Mapped[str] = mapped_column(default="c")
    __mapper_args__ = {"polymorphic_identity": "engineer"}  # noqa: RUF012
    __table_args__ = (VectorIndex("engineer_skill_idx", "skill", metric="l2", exact_rows=0),)


def is_manager(key):
    return key % 3 == 1


def is_engineer(key):
    return key % 3 == 2


def knows_python(key):
    return is_engineer(key) and key % 2 == 1


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    made = create_engine(f"sqlite:///{tmp_path_factory.mktemp('people') / 'test.db'}")
    Base.metadata.create_all(made)
    with Session(made) as session:
        for key, face in VECTORS.items():
            if is_manager(key):
                session.add(Manager(id=key, face=face, is_gone=key % 2 == 0))
            elif is_engineer(key):
                lang = "python" if knows_python(key) else "c"
                session.add(Engineer(id=key, face=face, skill=face[::-1], lang=lang))
            else:
                session.add(Person(id=key, face=face))
        session.commit()
    yield made
    made.dispose()


def expected(only=lambda key: True, *, k=6, metric="cosine", turn=1):
    rows = {key: face[::turn] for key, face in VECTORS.items() if only(key)}
    return [
        (key, pytest.approx(distance, **EXACTLY)) for key, distance in oracle.nearest(rows, QUERY, k=k, metric=metric)
    ]


OTHER, FLAT, ANY = aliased(Engineer), aliased(Engineer, flat=True), with_polymorphic(Person, [Engineer])
BY_SKILL = {"metric": "l2", "turn": -1}
LATER = select(Person.id).where(Person.id > 100).cte("later")


@pytest.mark.parametrize(
    ("statement", "answer"),
    [
        (nearest(Person.face, QUERY, k=6), expected()),
        (nearest(Manager.face, QUERY, k=6), expected(is_manager)),
        (nearest(Engineer.face, QUERY, k=6), expected(is_engineer)),
        (nearest(Engineer.skill, QUERY, k=6), expected(is_engineer, **BY_SKILL)),
        (
            nearest(Engineer.skill, QUERY, k=6, where=[Engineer.lang == "python", ~Engineer.is_gone]),
            expected(knows_python, **BY_SKILL),
        ),
        (nearest(OTHER.skill, QUERY, k=6, where=[OTHER.lang == "python"]), expected(knows_python, **BY_SKILL)),
        (nearest(FLAT.face, QUERY, k=6, where=[FLAT.lang == "python"]), expected(knows_python)),
        (nearest(ANY.face, QUERY, k=6, where=[ANY.Engineer.lang == "python"]), expected(knows_python)),
        (
            nearest(Person.face, QUERY, k=6).options(with_loader_criteria(Person, lambda cls: cls.is_gone.is_(False))),
            expected(lambda key: not (is_manager(key) and key % 2 == 0)),
        ),
        (nearest(Person.face, QUERY, k=6, where=[Person.id.in_(select(LATER.c.id))]), expected(lambda key: key > 100)),
        (nearest(Person.face, QUERY, k=6).distinct(), expected()),
        (nearest(Person.face, QUERY, k=6).execution_options(yield_per=2), expected()),
        (nearest(Person.face, QUERY, k=6).where(Person.face.cosine_distance(FAR) > 1e9), []),
    ],
    ids=[
        "class", "single table", "joined, column above", "joined, own column", "joined, filtered", "alias",
        "flat alias", "with_polymorphic", "loader criteria", "cte", "distinct", "yield_per", "distance",
    ],
)  # fmt: skip
def test_every_kind_of_class_and_statement_is_searched_whole(engine, statement, answer):
    with Session(engine) as session:
        assert [(person.id, distance) for person, distance in session.execute(statement)] == answer


def test_a_search_is_part_of_larger_statements(engine):
    near, far = (nearest(Person.face, query, k=3).subquery() for query in (QUERY, FAR))
    with Session(engine) as session:
        both = session.scalars(union_all(select(near.c.id), select(far.c.id))).all()
        found = session.scalars(select(Person.id).where(exists().where(near.c.id == Person.id))).all()
        count = session.scalar(select(func.count()).select_from(near))
        gone = update(Person).where(Person.id.in_(select(near.c.id))).values(is_gone=True)
        changed = session.execute(gone, execution_options={"synchronize_session": False}).rowcount
        session.rollback()
    keys = [key for key, _ in expected(k=3)]
    assert both[:3] == keys
    assert sorted(found) == sorted(keys)
    assert (count, changed) == (3, 3)


def test_a_search_for_each_row_of_another_select_is_refused(engine):
    other = aliased(Person)
    each = nearest(Person.face, QUERY, k=1).where(Person.kind == other.kind).with_only_columns(Person.id)
    with Session(engine) as session, pytest.raises(sa.exc.CompileError, match="cannot be correlated"):
        session.execute(select(other.id, each.correlate(other).scalar_subquery()))


def test_a_distance_further_off_is_searched_for_too(engine):
    distance = Person.face.cosine_distance(QUERY)
    with Session(engine) as session:
        found = [person.id for person in session.scalars(nearest(Person.face, QUERY, k=6).where(distance > 1.0))]
    everything = oracle.nearest(VECTORS, QUERY, k=len(VECTORS), metric="cosine")
    assert found == [key for key, value in everything if value > 1.0][:6]


@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_threads_write_and_search_at_once(path, journal):
    engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": 60})
    Base, _, document = models(exact_rows=0)
    with engine.connect() as conn:
        conn.exec_driver_sql(f"pragma journal_mode = {journal}")
    Base.metadata.create_all(engine)
    rows = {key: vector() for key in range(1, 81)}

    def work(start):
        for key in range(start, 81, 4):
            with Session(engine) as session:
                session.add(document(id=key, embedding=rows[key]))
                session.commit()
                found, distance = session.execute(nearest(document.embedding, rows[key], k=1)).one()
                assert (found.id, distance) == (key, pytest.approx(0, abs=1e-5))

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, range(1, 5)))
    with engine.connect() as conn:
        assert conn.scalar(text("select count(*) from document_embedding_idx_dirty")) == 0
        found = [row.id for row in conn.execute(nearest(document.__table__.c.embedding, QUERY, k=20))]
        conn.execute(insert(document), [{"id": 100, "embedding": QUERY}])
    assert found == [key for key, _ in oracle.nearest(rows, QUERY, k=20, metric="cosine")]
    engine.dispose()
