"""Semantic search in Peewee: what only its models and databases can do."""

import datetime as dt
import threading
import uuid

import peewee
import pytest

from datasette_vec_gemini.errors import InvalidKey, InvalidQuery, UsageError
from datasette_vec_gemini.peewee import (
    PooledVectorSqliteDatabase,
    VectorSqliteDatabase,
    search_entities,
    semantic,
    sync_entities,
)


class Author(peewee.Model):
    name = peewee.TextField()


class Post(peewee.Model):
    uid = peewee.UUIDField(primary_key=True)
    author = peewee.ForeignKeyField(Author, backref="posts", null=True)
    at = peewee.DateField(default=dt.date(2026, 1, 31))
    text = peewee.TextField()


class Line(peewee.Model):
    """Its key is of a foreign key and a number."""

    post = peewee.ForeignKeyField(Post, backref="lines")
    number = peewee.IntegerField()
    text = peewee.TextField()

    class Meta:
        primary_key = peewee.CompositeKey("post", "number")


MODELS = [Author, Post, Line]
semantic(Post, ["text"], embedder="hashing@64")
semantic(Line, [Line.text], embedder="hashing@64")


@pytest.fixture(params=[VectorSqliteDatabase, PooledVectorSqliteDatabase])
def db(request, path):
    database = request.param(path)
    with database.bind_ctx(MODELS):
        database.create_tables(MODELS)
        ann = Author.create(name="Ann")
        Post.create(uid=uuid.UUID(int=1), author=ann, text="tea and biscuits")
        Post.create(uid=uuid.UUID(int=2), text="tea without milk")
        Line.create(post=uuid.UUID(int=1), number=7, text="a pot of tea")
        yield database
    database.close()
    if isinstance(database, PooledVectorSqliteDatabase):
        database.close_all()


def uids(found):
    return [post.uid.int for post, _ in found]


def test_conditions_are_any_that_a_select_takes(db):
    assert sorted(uids(search_entities(db, Post, "tea"))) == [1, 2]
    assert uids(search_entities(db, Post, "tea", where=[Post.uid == uuid.UUID(int=2)])) == [2]
    of_ann = Post.author.in_(Author.select().where(Author.name == "Ann"))
    assert uids(search_entities(db, Post, "tea", where=[of_ann, Post.at > dt.date(2026, 1, 1)])) == [1]
    assert uids(search_entities(db, Post, "tea", where=[Post.author.is_null() | (Post.text % "%biscuits")])) != []
    assert uids(search_entities(db, Post, "tea", where=[peewee.fn.length(Post.text) > 100])) == []


@pytest.mark.parametrize(
    "wrong", ["text = 'tea'", ["text = 'tea'"], b"tea", {}, 5, [True], [None], Post, Post(), [Post()]]
)
def test_what_is_no_condition_is_refused(db, wrong):
    with pytest.raises(InvalidQuery, match="is no condition: give such as"):
        search_entities(db, Post, "tea", where=wrong)


@pytest.mark.parametrize("other", ["Post", None, Post(text="tea"), Post.alias()])
def test_what_is_no_model_is_refused(db, other):
    with pytest.raises(UsageError, match="is no model: give the class itself"):
        search_entities(db, other, "tea")
    with pytest.raises(UsageError, match="is no model: give the class itself"):
        semantic(other, columns=["text"])


def test_a_composite_key_of_a_foreign_key(db):
    ((line, hit),) = search_entities(db, Line, "pot")
    assert (line.number, line.post.text, hit.key) == (7, "tea and biscuits", (uuid.UUID(int=1).hex, 7))
    assert not [name for name in vars(line) if name.startswith("_vec")]
    line.text = "a cup of coffee"
    line.save()
    assert len(search_entities(db, Line, "coffee", mode="keyword")) == 1


def test_every_thread_has_its_own_connection(db):
    found = []

    def visit():
        with db.connection_context():
            found.append(uids(search_entities(db, Post, "biscuits", k=1)))

    threads = [threading.Thread(target=visit) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == [[1]] * 4


def test_a_model_is_searched_in_the_database_that_is_given(db, tmp_path):
    other = VectorSqliteDatabase(tmp_path / "other.db")
    with other.bind_ctx(MODELS):
        other.create_tables(MODELS)
        Post.create(uid=uuid.UUID(int=9), text="tea elsewhere")
    assert uids(search_entities(other, Post, "tea", where=[Post.uid == uuid.UUID(int=9)])) == [9]
    assert sync_entities(other, Post).documents == 0
    assert 9 not in uids(search_entities(db, Post, "tea"))
    other.close()


def test_dropped_tables_leave_nothing_behind(db):
    search_entities(db, Post, "tea")
    db.drop_tables(MODELS)
    left = [name for name in db.get_tables() if "post" in name or "line" in name]
    assert left == []


def test_on_another_database_the_error_names_the_remedy():
    elsewhere = peewee.PostgresqlDatabase("nothing")
    with pytest.raises(UsageError, match=r"this database is PostgresqlDatabase.*VectorIndex.*nearest"):
        search_entities(elsewhere, Post, "tea")


def test_a_model_without_a_key_or_of_another_file_is_refused():
    class Keyless(peewee.Model):
        text = peewee.TextField()

        class Meta:
            primary_key = False

    class Elsewhere(peewee.Model):
        text = peewee.TextField()

        class Meta:
            schema = "attached"

    with pytest.raises(InvalidKey, match="Keyless: the model has no primary key"):
        semantic(Keyless, ["text"])
    with pytest.raises(UsageError, match="schema 'attached'"):
        semantic(Elsewhere, ["text"])
