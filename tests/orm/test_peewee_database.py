"""Peewee's connections: sqlite-vec in each, loading off again, indexes folded after commits, one's own tables."""

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("peewee", reason="needs Peewee: pip install 'datasette-vec-gemini[peewee]'")
import sqlite_vec
from peewee import (
    DatabaseProxy,
    ImproperlyConfigured,
    IntegerField,
    Model,
    OperationalError,
    SqliteDatabase,
    TextField,
)
from playhouse.migrate import SqliteMigrator, migrate
from playhouse.pool import PooledSqliteDatabase
from playhouse.reflection import generate_models

from datasette_vec_gemini import sqlite3
from datasette_vec_gemini.peewee import (
    PooledVectorSqliteDatabase,
    Vec0Model,
    VectorField,
    VectorIndex,
    VectorSqliteDatabase,
    VectorSqliteMixin,
    nearest,
    sync_indexes,
)
from datasette_vec_gemini.peewee.database import WAITING_ROWS
from datasette_vec_gemini.peewee.index import vector_indexes


class MixedIn(VectorSqliteMixin, PooledSqliteDatabase):
    pass


@pytest.fixture
def opened(path):
    """Databases on one file, closed at the end."""
    databases = []

    def open_database(kind=VectorSqliteDatabase, **options):
        databases.append(kind(str(path), **options))
        return databases[-1]

    yield open_database
    for database in databases:
        if isinstance(database, PooledSqliteDatabase):
            database.close_all()
        else:
            database.close()


@pytest.fixture
def db(opened):
    return opened(pragmas={"journal_mode": "wal"})


def documents(db, **index):
    """A model of vectors in two dimensions, with its table."""

    class Document(Model):
        title = TextField(default="")
        rank = IntegerField(default=0)
        embedding = VectorField(dimensions=2, null=True)

        class Meta:
            database = db

    Document.add_index(VectorIndex(Document.embedding, exact_rows=0, **index))
    db.create_tables([Document])
    return Document


def loading_is_off(db):
    with pytest.raises(OperationalError, match="not authorized"):
        db.execute_sql("select load_extension('/nowhere.so')")
    return True


def folded(db, name="document_embedding_idx"):
    return [key for (key,) in db.execute_sql(f"select id from {name} order by id")]


def waiting(db, name="document_embedding_idx"):
    return [key for (key,) in db.execute_sql(f"select id from {name}_dirty order by id")]


@pytest.mark.parametrize("kind", [VectorSqliteDatabase, PooledVectorSqliteDatabase, MixedIn])
def test_each_connection_has_sqlite_vec_and_can_load_nothing_more(opened, kind):
    db = opened(kind)
    assert isinstance(db.connection(), sqlite3.Connection)
    assert db.execute_sql("select vec_length(x'0000803f')").fetchone() == (1,)
    assert loading_is_off(db)
    db.close()
    assert db.execute_sql("select vec_length(x'0000803f')").fetchone() == (1,)
    assert loading_is_off(db)


@pytest.mark.parametrize("is_open", [True, False])
def test_loading_is_off_after_an_extension_of_the_users(opened, is_open):
    db = opened()
    if is_open:
        db.connect()
    db.load_extension(sqlite_vec.loadable_path())
    assert db.execute_sql("select vec_version()").fetchone()[0].startswith("v")
    assert loading_is_off(db)
    db.close()
    db.connect()
    assert loading_is_off(db)


@pytest.mark.parametrize("is_open", [True, False])
def test_loading_is_off_after_an_extension_that_failed(opened, is_open):
    db = opened()
    if is_open:
        db.connect()
        with pytest.raises(sqlite3.OperationalError):
            db.load_extension("/nowhere.so")
        assert loading_is_off(db)
    else:
        db.load_extension("/nowhere.so")
        with pytest.raises(OperationalError):
            db.connect()
    db.unload_extension("/nowhere.so")
    db.close()
    assert loading_is_off(db)


def test_a_connection_from_the_pool_is_prepared_once(opened):
    db = opened(PooledVectorSqliteDatabase, max_connections=1)
    first = db.connection()
    db.close()
    assert db.connection() is first
    assert loading_is_off(db)


def test_threads_write_and_search_through_the_pool(opened):
    db = opened(PooledVectorSqliteDatabase, max_connections=4, timeout=30, pragmas={"journal_mode": "wal"})
    Document = documents(db)
    db.close()
    barrier = threading.Barrier(4)

    def work(worker):
        barrier.wait()
        found = []
        for number in range(25):
            with db.connection_context():
                made = Document.create(rank=worker * 100 + number, embedding=[worker + 1, number + 1])
                found.append(
                    nearest(Document.embedding, made.embedding, k=100).where(Document.id == made.id).get().rank
                )
        return found

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(work, range(4)))
    assert results == [[worker * 100 + number for number in range(25)] for worker in range(4)]
    assert Document.select().count() == 100
    assert nearest(Document.embedding, [1, 1], k=200).count() == 100


def test_a_plain_database_is_refused_before_a_table_is_made(path):
    db = SqliteDatabase(str(path))
    with pytest.raises(ImproperlyConfigured, match="VectorSqliteDatabase"):
        documents(db)
    assert db.get_tables() == []
    db.close()


def test_a_plain_database_is_refused_by_all_that_asks_for_distances_and_by_the_index(opened):
    Document = documents(opened())
    Document.create(rank=1, embedding=[1, 2])
    (index,) = vector_indexes(Document)
    with Document.bind_ctx(opened(SqliteDatabase)):
        assert Document.get().embedding == [1, 2]
        for refused in (
            lambda: list(nearest(Document.embedding, [1, 2])),
            lambda: list(Document.select().order_by(Document.embedding.cosine_distance([1, 2]))),
            Document._schema.create_indexes,
            lambda: Document._schema.drop_index(index=index),
        ):
            with pytest.raises(ImproperlyConfigured, match="VectorSqliteDatabase"):
                refused()


def test_a_connection_of_another_sqlite_library_is_refused(opened):
    class Foreign(VectorSqliteDatabase):
        def _add_conn_hooks(self, conn):
            super()._add_conn_hooks(object())

    with pytest.raises(
        Exception, match="two of them lose each other's locks on a file: pip install --upgrade pysqlite3"
    ):
        opened(Foreign).connect()


def test_a_model_behind_a_proxy_finds_its_database_when_it_has_one(opened):
    proxy = DatabaseProxy()

    class Document(Model):
        embedding = VectorField(dimensions=2)

        class Meta:
            database = proxy

    Document.add_index(VectorIndex(Document.embedding))
    proxy.initialize(opened())
    proxy.create_tables([Document])
    Document.create(embedding=[1, 0])
    assert [each.distance for each in nearest(Document.embedding, [0, 2])] == [1.0]


def test_many_rows_are_folded_in_after_the_commit_and_few_wait(db):
    Document = documents(db)
    with db.atomic():
        Document.insert_many([{"embedding": [1, n]} for n in range(WAITING_ROWS - 1)]).execute()
    assert (len(folded(db)), len(waiting(db))) == (0, WAITING_ROWS - 1)
    with db.atomic():
        Document.create(embedding=[1, 1])
        assert folded(db) == []
    assert (len(folded(db)), waiting(db)) == (WAITING_ROWS, [])


@pytest.mark.parametrize("writes", ["create", "insert_many", "update", "delete", "manual", "session"])
def test_every_way_to_commit_folds(db, writes):
    Document = documents(db)
    rows = [{"embedding": [1, n]} for n in range(WAITING_ROWS)]
    if writes == "create":
        for row in rows:
            Document.create(**row)
    elif writes == "insert_many":
        Document.insert_many(rows).execute()
    elif writes == "manual":
        with db.manual_commit():
            db.begin()
            Document.insert_many(rows).execute()
            db.commit()
    elif writes == "session":
        db.session_start()
        Document.insert_many(rows).execute()
        db.session_commit()
    else:
        Document.insert_many(rows).execute()
        if writes == "update":
            Document.update(embedding=[2, 3]).execute()
        else:
            Document.delete().execute()
    assert waiting(db) == []
    assert len(folded(db)) == (0 if writes == "delete" else WAITING_ROWS)


def test_what_is_rolled_back_leaves_nothing_to_fold(db):
    Document = documents(db)
    with db.atomic() as transaction:
        Document.insert_many([{"embedding": [1, n]} for n in range(WAITING_ROWS)]).execute()
        transaction.rollback()
    assert (folded(db), waiting(db)) == ([], [])


def test_a_fold_that_finds_the_file_locked_leaves_the_commit_as_it_is(opened, caplog):
    other = opened(pragmas={"journal_mode": "wal"})
    other.connect()

    class Overtaken(VectorSqliteDatabase):
        """Somebody else takes the write lock right after each commit."""

        def connection(self):
            # What is asked for after a commit.
            if overtaking and not self.in_transaction() and not other.connection().in_transaction:
                other.execute_sql("begin immediate")
            return super().connection()

    overtaking = False
    db = opened(Overtaken, timeout=0.1)
    Document = documents(db)
    Document.insert_many([{"embedding": [1, n + 1]} for n in range(WAITING_ROWS - 1)]).execute()
    caplog.set_level("INFO")
    overtaking = True
    with db.atomic():
        last = Document.create(embedding=[1, 0])
    overtaking = False
    assert "somebody else is writing" in caplog.text
    assert len(waiting(db)) == WAITING_ROWS
    assert nearest(Document.embedding, [2, 0], k=1).get() == last
    other.execute_sql("rollback")
    Document.create(embedding=[1, 1])
    assert waiting(db) == []


def test_another_programs_writes_are_found_before_and_after_sync(db, write):
    Document = documents(db)
    far, near = Document.create(embedding=[0, 1]), Document.create(embedding=[1, 1])
    sync_indexes(db)
    db.close()
    write(
        f"""
        insert into document (title, rank, embedding) values ('raw', 1, x'0000803f00000000');
        update document set embedding = x'0000803f0000803e' where id = {far.id};
        delete from document where id = {near.id};
        """
    )
    for _ in range(2):
        found = nearest(Document.embedding, [1, 0], k=5)
        assert [(each.id, each.title) for each in found] == [(3, "raw"), (far.id, "")]
        sync_indexes(db)
    assert folded(db) == [far.id, 3]


def test_get_tables_lists_what_is_ones_own(db):
    class Entry(Vec0Model):
        embedding = VectorField(dimensions=2)

        class Meta:
            database = db

    documents(db)
    db.create_tables([Entry])
    db.execute_sql("create virtual table words using fts5(word)")
    assert db.get_tables() == ["document", "entry", "words"]
    assert Entry.table_exists()
    assert sorted(generate_models(db)) == ["document", "entry", "words"]


def test_a_migration_that_copies_the_table_is_repaired_by_sync(db):
    Document = documents(db)
    for number in range(5):
        Document.create(rank=number, embedding=[1, number])
    sync_indexes(db)
    migrate(SqliteMigrator(db).drop_column("document", "title"))

    class Slim(Model):
        rank = IntegerField()
        embedding = VectorField(dimensions=2, null=True)

        class Meta:
            database = db
            table_name = "document"

    Slim.add_index(VectorIndex(Slim.embedding, exact_rows=0))
    Slim.create(rank=9, embedding=[1, 9])
    assert [each.rank for each in nearest(Slim.embedding, [0, 1], k=2)] == [9, 4]
    sync_indexes(db)
    Slim.create(rank=10, embedding=[1, 10])
    assert (folded(db), waiting(db)) == ([1, 2, 3, 4, 5, 6], [7])
    assert [each.rank for each in nearest(Slim.embedding, [0, 1], k=3)] == [10, 9, 4]


def test_pwiz_needs_a_connection_that_has_sqlite_vec(db, path):
    """Peewee's command opens files with its own class; `generate_models` with ours reads the same file."""
    documents(db)
    db.close()
    done = subprocess.run(
        [sys.executable, "-m", "pwiz", "-e", "sqlite", path], capture_output=True, text=True, check=False
    )
    assert "no such module: vec0" in done.stderr
    models = generate_models(db)
    assert list(models["document"]._meta.fields) == ["id", "title", "rank", "embedding"]


def test_without_peewee_the_import_says_what_to_install():
    program = "import sys; sys.modules['peewee'] = None; import datasette_vec_gemini.peewee"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "pip install 'datasette-vec-gemini[peewee]'" in done.stderr.splitlines()[-1]
