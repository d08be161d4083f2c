"""Semantic search in SQLAlchemy: what only its classes, sessions and engines can do."""

import asyncio
import enum
import sqlite3 as standard_library
import uuid

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    joinedload,
    mapped_column,
    relationship,
    scoped_session,
    sessionmaker,
    with_loader_criteria,
)

import datasette_vec_gemini
from datasette_vec_gemini.errors import ExtensionUnavailable, InvalidKey, UsageError
from datasette_vec_gemini.sqlalchemy import (
    create_async_engine,
    create_engine,
    register_vector,
    search_entities,
    semantic,
    sync_entities,
)


class Mood(enum.Enum):
    CALM = "calm"
    WILD = "wild"


class Base(DeclarativeBase):
    pass


class Person(Base):
    __tablename__ = "person"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    bio: Mapped[str]
    mood: Mapped[Mood] = mapped_column(default=Mood.CALM)
    pets: Mapped[list["Pet"]] = relationship(back_populates="owner", order_by="Pet.name")
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "person"}  # noqa: RUF012


class Manager(Person):
    __mapper_args__ = {"polymorphic_identity": "manager"}  # noqa: RUF012


class Engineer(Person):
    __tablename__ = "engineer"
    person_id: Mapped[int] = mapped_column(sa.ForeignKey("person.id"), primary_key=True)
    skill: Mapped[str]
    __mapper_args__ = {"polymorphic_identity": "engineer"}  # noqa: RUF012


class Pet(Base):
    __tablename__ = "pet"
    uid: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    name: Mapped[str]
    owner_id: Mapped[int | None] = mapped_column(sa.ForeignKey("person.id"))
    owner: Mapped[Person | None] = relationship(back_populates="pets")
    tags: Mapped[list[str]] = mapped_column(sa.JSON, default=list)


class Tag(Base):
    __tablename__ = "tag"
    name: Mapped[str] = mapped_column(sa.String(collation="NOCASE"), primary_key=True)
    about: Mapped[str]


semantic(Person, ["bio"], embedder="hashing@64")
semantic(Pet, [Pet.name], embedder="hashing@64")
semantic(Tag, ["about"], embedder="hashing@64")


@pytest.fixture
def engine(path):
    made = register_vector(create_engine(f"sqlite:///{path}"))
    Base.metadata.create_all(made)
    yield made
    made.dispose()


@pytest.fixture
def session(engine):
    with Session(engine) as opened:
        yield opened


@pytest.fixture
def people(session):
    session.add_all(
        [
            Person(bio="likes tea", pets=[Pet(uid=uuid.UUID(int=1), name="Rex the dog", tags=["big"])]),
            Manager(bio="likes tea very much", mood=Mood.WILD),
            Engineer(bio="likes tea and solder", skill="copper"),
        ]
    )
    session.commit()
    return session


def bios(found):
    return sorted(entity.bio for entity, _ in found)


def test_a_subclass_finds_its_own_entities_only(people):
    assert {type(entity) for entity, _ in search_entities(people, Person, "tea")} == {Person, Manager, Engineer}
    assert bios(search_entities(people, Manager, "tea")) == ["likes tea very much"]
    assert bios(search_entities(people, Engineer, "tea", where=[Engineer.skill == "copper"])) == [
        "likes tea and solder"
    ]
    assert search_entities(people, Engineer, "tea", where=[Engineer.skill == "tin"]) == []


def test_conditions_are_any_that_a_select_takes(people):
    assert bios(search_entities(people, Person, "tea", where=[Person.mood == Mood.WILD])) == ["likes tea very much"]
    assert bios(search_entities(people, Person, "tea", where=[Person.pets.any(Pet.name.like("Rex%"))])) == ["likes tea"]
    found = search_entities(people, Pet, "dog", where=[Pet.uid.in_([uuid.UUID(int=1)]), Pet.owner.has(bio="likes tea")])
    assert [(pet.uid, hit.key) for pet, hit in found] == [(uuid.UUID(int=1), (uuid.UUID(int=1).hex,))]
    assert len(search_entities(people, Pet, "dog", where=[Pet.tags == ["big"]])) == 1
    assert search_entities(people, Pet, "dog", where=[sa.text("owner_id > :n").bindparams(n=7)]) == []
    assert search_entities(people, Pet, "dog", where=[sa.false()]) == []


def test_entities_are_those_of_the_session(people):
    ((pet, _),) = search_entities(people, Pet, "dog")
    assert pet is people.get(Pet, uuid.UUID(int=1))
    pet.name = "Rex the hound"
    ((again, hit),) = search_entities(people, Pet, "hound", mode="keyword")
    assert (again, hit.row["name"]) == (pet, "Rex the hound")
    people.rollback()
    assert search_entities(people, Pet, "hound", mode="keyword") == []


def test_without_autoflush_nothing_is_flushed(people):
    with people.no_autoflush:
        people.add(Pet(uid=uuid.UUID(int=2), name="Tom the cat"))
        assert search_entities(people, Pet, "cat", mode="keyword") == []
        assert len(people.new) == 1


def test_what_the_session_hides_is_passed_over_and_k_come_all_the_same(session):
    session.add_all(Tag(name=f"t{n}", about="common words") for n in range(300))
    session.commit()

    @sa.event.listens_for(session, "do_orm_execute")
    def hide(state):
        state.statement = state.statement.options(with_loader_criteria(Tag, Tag.name.like("%7")))

    assert len(search_entities(session, Tag, "common words", k=30)) == 30
    first, second = (search_entities(session, Tag, "common words", k=15, offset=at) for at in (0, 15))
    assert len({tag.name for tag, _ in first + second}) == 30


def test_keys_that_differ_in_case_only_are_one_key_as_in_the_table(session):
    session.add(Tag(name="Straße", about="a road"))
    session.commit()
    ((tag, hit),) = search_entities(session, Tag, "road")
    assert (tag.name, hit.key) == ("Straße", ("Straße",))
    session.execute(sa.update(Tag).values(name="STRAße"))
    session.commit()
    ((_, hit),) = search_entities(session, Tag, "road", where=[Tag.name == "straße"])
    assert hit.key == ("STRAße",)


def test_a_session_of_any_make_will_do(engine, people):
    makers = scoped_session(sessionmaker(engine)), sessionmaker(engine, expire_on_commit=False)()
    for session in makers:
        assert len(search_entities(session, Person, "tea", k=2)) == 2
        session.close()
    with engine.connect() as connection, Session(connection) as session:
        assert len(search_entities(session, Person, "tea", k=2)) == 2


def test_eager_loading_of_collections_gives_each_entity_once(engine, people):
    people.add(Pet(uid=uuid.UUID(int=3), name="Ada", owner_id=1))
    people.commit()

    @sa.event.listens_for(people, "do_orm_execute")
    def eager(state):
        if state.is_select and state.bind_mapper is sa.inspect(Person):
            state.statement = state.statement.options(joinedload(Person.pets))

    found = search_entities(people, Person, "tea")
    assert len(found) == 3
    assert [len(person.pets) for person, _ in found if person.id == 1] == [2]


def test_a_session_that_reads_already_still_finds_what_others_have_committed(engine, people):
    assert people.scalar(sa.select(sa.func.count()).select_from(Pet)) == 1
    with Session(engine) as other, other.begin():
        other.add(Pet(uid=uuid.UUID(int=4), name="Coco the parrot"))
    ((pet, hit), *_) = search_entities(people, Pet, "parrot", k=1)
    assert (pet.name, hit.why.semantic.rank) == ("Coco the parrot", 1)


def test_an_engine_that_begins_every_transaction_itself_makes_the_index_and_finds_all(path):
    """The recipe of SQLAlchemy's documentation for serializable isolation."""
    engine = register_vector(create_engine(f"sqlite:///{path}"))

    @sa.event.listens_for(engine, "connect")
    def connect(dbapi_connection, _):
        dbapi_connection.isolation_level = None

    @sa.event.listens_for(engine, "begin")
    def begin(connection):
        connection.exec_driver_sql("BEGIN")

    Base.metadata.create_all(engine)
    with engine.connect() as connection:
        assert {"pet", "person"} <= set(connection.exec_driver_sql("select name from _vec_indexes").scalars())
    with Session(engine) as session:
        session.add(Pet(uid=uuid.UUID(int=5), name="Coco the parrot"))
        session.commit()
        assert session.scalars(sa.select(Pet)).one().name == "Coco the parrot"
        ((pet, hit),) = search_entities(session, Pet, "parrot")
        assert (pet.name, hit.why.keyword.rank) == ("Coco the parrot", 1)
        session.rollback()
        ((pet, hit),) = search_entities(session, Pet, "parrot")
        assert (pet.name, hit.why.semantic.rank) == ("Coco the parrot", 1)
    Base.metadata.drop_all(engine)
    with engine.connect() as connection:
        assert connection.exec_driver_sql("select name from sqlite_master where name like '%pet%'").all() == []
    engine.dispose()


def test_a_batch_operation_on_the_models_table_keeps_the_vectors(engine, people):
    migration = pytest.importorskip("alembic.migration", reason="needs Alembic: pip install alembic")
    operations = pytest.importorskip("alembic.operations")
    assert sync_entities(people, Pet).embedded == 1
    people.commit()
    with engine.begin() as connection:
        op = operations.Operations(migration.MigrationContext.configure(connection))
        with op.batch_alter_table(Pet.__tablename__, recreate="always", copy_from=Pet.__table__) as batch:
            batch.alter_column("name", nullable=True)
    report = sync_entities(people, Pet, full=True)
    assert (report.documents, report.embedded) == (1, 0)
    assert search_entities(people, Pet, "dog")[0][0].name == "Rex the dog"


@pytest.mark.parametrize("function", [search_entities, sync_entities])
def test_an_engine_or_a_connection_is_no_session(engine, function):
    question = ["dog"] if function is search_entities else []
    with engine.connect() as connection:
        for bind in (engine, connection):
            with pytest.raises(UsageError, match=r"is no session: `with Session\(engine\) as session"):
                function(bind, Pet, *question)


def test_a_database_in_memory():
    engine = register_vector(create_engine("sqlite://"))
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add(Pet(uid=uuid.UUID(int=6), name="Coco the parrot"))
        session.commit()
        assert sync_entities(session, Pet).embedded == 1
        assert len(search_entities(session, Pet, "parrot")) == 1
    Base.metadata.drop_all(engine)
    engine.dispose()


def test_twenty_async_sessions_each_find_what_they_wrote(path):
    async def scenario():
        engine = register_vector(create_async_engine(f"sqlite+aiosqlite:///{path}"))
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)

        async def visit(n):
            async with AsyncSession(engine) as session:
                session.add(Pet(uid=uuid.UUID(int=n), name=f"pet{n} of visitor{n}"))
                await session.commit()
                found = await session.run_sync(search_entities, Pet, f"pet{n} of visitor{n}", k=1)
                return found[0][0].uid.int

        try:
            assert await asyncio.gather(*map(visit, range(20))) == list(range(20))
            async with AsyncSession(engine) as session:
                with pytest.raises(UsageError, match=r"await session\.run_sync"):
                    search_entities(session, Pet, "pet")
        finally:
            await engine.dispose()

    asyncio.run(scenario())


def test_a_sqlmodel_class(path):
    sqlmodel = pytest.importorskip("sqlmodel")

    class Note(sqlmodel.SQLModel, table=True):
        id: int | None = sqlmodel.Field(default=None, primary_key=True)
        text: str

    semantic(Note, ["text"], embedder="hashing@64")
    engine = register_vector(create_engine(f"sqlite:///{path}"))
    sqlmodel.SQLModel.metadata.create_all(engine, tables=[Note.__table__])
    with sqlmodel.Session(engine) as session:
        session.add(Note(text="buy tea"))
        session.commit()
        ((note, _),) = search_entities(session, Note, "tea", where=[Note.id == 1])
        assert note.text == "buy tea"
    engine.dispose()


def test_on_another_database_the_error_names_the_remedy():
    pytest.importorskip("psycopg", reason="needs psycopg: pip install 'psycopg[binary]'")
    engine = sa.create_engine("postgresql+psycopg://nobody@localhost/nothing")
    with (
        Session(engine) as session,
        pytest.raises(UsageError, match=r"this database is postgresql.*VectorIndex.*nearest"),
    ):
        search_entities(session, Pet, "dog")
    with Session(engine) as session, pytest.raises(UsageError, match="SQLite"):
        sync_entities(session, Pet)


@pytest.mark.skipif(datasette_vec_gemini.sqlite3 is standard_library, reason="this process has one SQLite library only")
def test_an_engine_of_another_sqlite_library_is_refused(path):
    engine = sa.create_engine(f"sqlite:///{path}", module=standard_library)
    with Session(engine) as session, pytest.raises(ExtensionUnavailable, match="create_engine"):
        search_entities(session, Pet, "dog")
    engine.dispose()


def test_a_class_whose_table_has_no_key_or_is_in_another_file_is_refused():
    class Other(DeclarativeBase):
        pass

    class Keyless(Other):
        __table__ = sa.Table("keyless", Other.metadata, sa.Column("a", sa.String), sa.Column("b", sa.Integer))
        __mapper_args__ = {"primary_key": [__table__.c.b]}  # noqa: RUF012

    class Elsewhere(Other):
        __tablename__ = "elsewhere"
        __table_args__ = {"schema": "attached"}  # noqa: RUF012
        id: Mapped[int] = mapped_column(primary_key=True)
        a: Mapped[str]

    with pytest.raises(InvalidKey, match="'keyless' has no primary key"):
        semantic(Keyless, ["a"])
    with pytest.raises(UsageError, match="schema 'attached'"):
        semantic(Elsewhere, ["a"])
