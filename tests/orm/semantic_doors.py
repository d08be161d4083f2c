"""The ORM doors to semantic search behind one face, so that each of their laws is stated once."""

import asyncio
import datetime as dt
from contextlib import contextmanager

import peewee
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

import datasette_vec_gemini.peewee as on_peewee
import datasette_vec_gemini.sqlalchemy as on_sqlalchemy

DAY = dt.date(2026, 1, 31)
# What makes up a row's key, by number: as the class has it, and as SQLite stores it.
KEYS = {
    "integer": (lambda n: {"id": n}, lambda n: (n,)),
    "text": (lambda n: {"code": f"k/{n},é"}, lambda n: (f"k/{n},é",)),
    "composite": (lambda n: {"day": DAY, "id": n}, lambda n: (DAY.isoformat(), n)),
}
SEMANTIC = {"columns": ["title", "body"], "embedder": "hashing@64"}


class SQLAlchemy:
    """Documents in SQLAlchemy; every call is a session of its own unless one is given."""

    def __init__(self, path, key="integer", **options):
        self.engine = on_sqlalchemy.register_vector(on_sqlalchemy.create_engine(f"sqlite:///{path}"))
        self.Base, self.Document = self._classes(key)
        on_sqlalchemy.semantic(self.Document, **SEMANTIC | options)

    @staticmethod
    def _classes(key):
        class Base(DeclarativeBase):
            pass

        class Keyed:
            if key == "integer":
                id: Mapped[int] = mapped_column(primary_key=True)
            elif key == "text":
                code: Mapped[str] = mapped_column(primary_key=True)
            else:
                day: Mapped[dt.date] = mapped_column("on_day", primary_key=True)
                id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)

        class Document(Keyed, Base):
            __tablename__ = "document"
            title: Mapped[str]
            body: Mapped[str | None] = mapped_column("content")
            lang: Mapped[str] = mapped_column(default="en")

        return Base, Document

    def undeclared(self):
        class Plain(self.Base):
            __tablename__ = "plain"
            id: Mapped[int] = mapped_column(primary_key=True)

        return Plain

    def create_all(self):
        self.Base.metadata.create_all(self.engine)

    def drop_all(self):
        self.Base.metadata.drop_all(self.engine)

    def run(self, sql):
        with self.engine.begin() as connection:
            result = connection.exec_driver_sql(sql)
            return [tuple(row) for row in result] if result.returns_rows else None

    @contextmanager
    def transaction(self):
        """A transaction that is rolled back where it is left by an error."""
        with Session(self.engine) as session, session.begin():
            yield session

    def add(self, *rows, within=None):
        if within is None:
            with self.transaction() as session:
                session.add_all(self.Document(**row) for row in rows)
        else:
            within.add_all(self.Document(**row) for row in rows)

    def insert(self, *rows):
        with self.transaction() as session:
            session.execute(sa.insert(self.Document), list(rows))

    def update(self, lang, **values):
        with self.transaction() as session:
            session.execute(sa.update(self.Document).where(self.Document.lang == lang).values(values))

    def delete(self, lang):
        with self.transaction() as session:
            session.execute(sa.delete(self.Document).where(self.Document.lang == lang))

    def search(self, question, *, within=None, **options):
        if within is not None:
            return on_sqlalchemy.search_entities(within, self.Document, question, **options)
        with Session(self.engine) as session:
            return on_sqlalchemy.search_entities(session, self.Document, question, **options)

    def sync(self, *, within=None, **options):
        if within is not None:
            return on_sqlalchemy.sync_entities(within, self.Document, **options)
        with Session(self.engine) as session:
            return on_sqlalchemy.sync_entities(session, self.Document, **options)

    def close(self):
        self.engine.dispose()


class Aiosqlite(SQLAlchemy):
    """The same classes, searched in async sessions over aiosqlite."""

    def __init__(self, path, key="integer", **options):
        super().__init__(path, key, **options)
        self.runner = asyncio.Runner()
        self.aio = on_sqlalchemy.register_vector(on_sqlalchemy.create_async_engine(f"sqlite+aiosqlite:///{path}"))

    def run(self, sql):
        async def execute():
            async with self.aio.begin() as connection:
                result = await connection.exec_driver_sql(sql)
                return [tuple(row) for row in result] if result.returns_rows else None

        return self.runner.run(execute())

    async def _call(self, function, *arguments, **options):
        async with AsyncSession(self.aio) as session:
            return await session.run_sync(function, self.Document, *arguments, **options)

    def search(self, question, *, within=None, **options):
        if within is not None:
            return super().search(question, within=within, **options)
        return self.runner.run(self._call(on_sqlalchemy.search_entities, question, **options))

    def sync(self, *, within=None, **options):
        if within is not None:
            return super().sync(within=within, **options)
        return self.runner.run(self._call(on_sqlalchemy.sync_entities, **options))

    def close(self):
        self.runner.run(self.aio.dispose())
        self.runner.close()
        super().close()


class Peewee:
    """Documents in Peewee."""

    def __init__(self, path, key="integer", **options):
        self.db = on_peewee.VectorSqliteDatabase(path)
        self.Document = self._model(key)
        on_peewee.semantic(self.Document, **SEMANTIC | options)

    def _model(self, key):
        fields = {
            "title": peewee.TextField(),
            "body": peewee.TextField(column_name="content", null=True),
            "lang": peewee.TextField(default="en"),
            "Meta": type("Meta", (), {"database": self.db, "table_name": "document"}),
        }
        if key == "text":
            fields["code"] = peewee.TextField(primary_key=True)
        elif key == "composite":
            fields |= {"day": peewee.DateField(column_name="on_day"), "id": peewee.IntegerField()}
            fields["Meta"].primary_key = peewee.CompositeKey("day", "id")
        return type("Document", (peewee.Model,), fields)

    def undeclared(self):
        return type("Plain", (self.Document,), {})  # what its parent is tied to is another table

    def create_all(self):
        self.db.create_tables([self.Document])

    def drop_all(self):
        self.db.drop_tables([self.Document])

    def run(self, sql):
        return self.db.execute_sql(sql).fetchall()

    @contextmanager
    def transaction(self):
        with self.db.atomic():
            yield self.db

    def add(self, *rows, within=None):
        for row in rows:
            self.Document.create(**row)

    def insert(self, *rows):
        self.Document.insert_many(list(rows)).execute()

    def update(self, lang, **values):
        self.Document.update(**values).where(self.Document.lang == lang).execute()

    def delete(self, lang):
        self.Document.delete().where(self.Document.lang == lang).execute()

    def search(self, question, *, within=None, **options):
        return on_peewee.search_entities(self.db, self.Document, question, **options)

    def sync(self, *, within=None, **options):
        return on_peewee.sync_entities(self.db, self.Document, **options)

    def close(self):
        self.db.close()


DOORS = {"sqlalchemy": SQLAlchemy, "aiosqlite": Aiosqlite, "peewee": Peewee}
