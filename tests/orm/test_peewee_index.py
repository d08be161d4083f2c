"""VectorIndex in Peewee: made, dropped and found with its table, for every kind of key and model."""

import uuid

import pytest

pytest.importorskip("peewee", reason="needs Peewee: pip install 'datasette-vec-gemini[peewee]'")
from peewee import (
    AutoField,
    BigAutoField,
    BlobField,
    CharField,
    CompositeKey,
    ForeignKeyField,
    IntegerField,
    Model,
    OperationalError,
    SchemaManager,
    TextField,
    UUIDField,
)

from datasette_vec_gemini.errors import InvalidKey, InvalidName, InvalidQuery, InvalidSetting, InvalidVector
from datasette_vec_gemini.peewee import (
    VectorField,
    VectorIndex,
    VectorSchemaManager,
    VectorSqliteDatabase,
    nearest,
    sync_indexes,
)


@pytest.fixture
def db(path):
    database = VectorSqliteDatabase(str(path))
    yield database
    database.close()


def objects(db):
    """Everything that somebody made, shadow tables and automatic indexes aside."""
    rows = db.execute_sql(
        """
        select name from sqlite_master where name not glob 'sqlite_*' and name not in (
            select name from pragma_table_list where type = 'shadow') and name not glob '*_vector_chunks00'
        """
    )
    return {name for (name,) in rows}


INDEX_OBJECTS = {
    "_vec_derived",
    "document_embedding_idx",
    "document_embedding_idx_dirty",
    "document_embedding_idx_insert",
    "document_embedding_idx_update",
    "document_embedding_idx_delete",
}


def document(db, *indexes, **options):
    class Document(Model):
        title = TextField(default="", index=True)
        embedding = VectorField(dimensions=4, null=True)

        class Meta:
            database = db

    for index in indexes or [VectorIndex(Document.embedding, exact_rows=0, **options)]:
        Document.add_index(index)
    return Document


def keys(query):
    return [row.get_id() for row in query]


@pytest.mark.parametrize("names_its_manager", [False, True])
def test_the_sample_of_the_documentation_runs(db, names_its_manager):
    class Document(Model):
        title = TextField()
        lang = TextField()
        embedding = VectorField(dimensions=4, null=True)

        class Meta:
            database = db
            schema_manager_class = VectorSchemaManager if names_its_manager else SchemaManager

    Document.add_index(VectorIndex(Document.embedding, metric="cosine", quantize="int8"))
    db.create_tables([Document])
    Document.create(title="t", lang="en", embedding=[1, 2, 3, 4])
    Document.create(title="u", lang="de", embedding=[1, 2, 3, 4])
    q = [1, 2, 3, 5]
    (found,) = nearest(Document.embedding, q, k=5).where(Document.lang == "en")
    assert (found.title, found.distance) == ("t", pytest.approx(0.006001, abs=1e-6))
    d = Document.embedding.cosine_distance(q)
    assert [row.title for row in Document.select(Document, d.alias("distance")).order_by(d).limit(5)] == ["t", "u"]
    assert objects(db) >= INDEX_OBJECTS


def test_create_and_drop_are_complete_and_may_be_repeated(db):
    Document = document(db)
    for _ in range(2):
        db.create_tables([Document])
        db.create_tables([Document])
        assert objects(db) == {"document", "document_title", *INDEX_OBJECTS}
        Document.create(embedding=[1, 0, 0, 0])
        sync_indexes(db)
        assert keys(nearest(Document.embedding, [1, 0, 0, 0])) == [1]
        db.drop_tables([Document])
        db.drop_tables([Document])
        assert objects(db) == set()


def test_an_index_is_made_for_the_rows_that_a_table_has(db):
    class Plain(Model):
        title = TextField(default="")
        embedding = BlobField(null=True)

        class Meta:
            database = db
            table_name = "document"

    Document = document(db)
    db.create_tables([Plain])
    with db.atomic():
        for number in range(300):
            Plain.create(embedding=Document.embedding.db_value([1, number, 0, 0]))
    with pytest.raises(
        OperationalError, match=r"'document_embedding_idx' is declared, but .* create_tables\(\) makes it"
    ):
        nearest(Document.embedding, [0, 1, 0, 0]).first()
    db.create_tables([Document])
    for _ in range(2):
        assert keys(nearest(Document.embedding, [0, 1, 0, 0], k=3)) == [300, 299, 298]
        sync_indexes(db)


def test_an_index_goes_and_comes_back_alone(db):
    index = VectorIndex("embedding", exact_rows=0)
    Document = document(db, index)
    db.create_tables([Document])
    Document.create(embedding=[1, 0, 0, 0])
    Document._schema.drop_index(index=index)
    assert objects(db) == {"document", "document_title"}
    Document.create(embedding=[1, 1, 0, 0])
    Document._schema.create_indexes()
    Document._schema.drop_index(field=Document.title)
    assert objects(db) == {"document", *INDEX_OBJECTS}
    assert keys(nearest(Document.embedding, [1, 1, 0, 0])) == [2, 1]
    Document._schema.create_indexes()
    Document._schema.drop_indexes()
    assert objects(db) == {"document"}


def test_unsafe_creation_says_that_it_exists(db):
    Document = document(db)
    db.create_tables([Document])
    Document._schema.drop_index(field=Document.title)
    with pytest.raises(OperationalError, match="document_embedding_idx already exists"):
        Document._schema.create_indexes(safe=False)


def test_creation_in_a_transaction_is_taken_back_with_it(db):
    Document = document(db)
    with db.atomic() as transaction:
        db.create_tables([Document])
        Document.create(embedding=[1, 0, 0, 0])
        transaction.rollback()
    assert objects(db) == set()
    db.create_tables([Document])
    with db.atomic() as transaction:
        db.drop_tables([Document])
        transaction.rollback()
    Document.create(embedding=[1, 0, 0, 0])
    assert keys(nearest(Document.embedding, [1, 0, 0, 0])) == [1]


def test_truncate_empties_the_index_too(db):
    Document = document(db)
    db.create_tables([Document])
    Document.create(embedding=[1, 0, 0, 0])
    sync_indexes(db)
    Document.truncate_table()
    assert keys(nearest(Document.embedding, [1, 0, 0, 0])) == []
    sync_indexes(db)
    assert db.execute_sql("select count(*) from document_embedding_idx").fetchone() == (0,)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        (AutoField(), [7, 3, 5]),
        (BigAutoField(), [2**40, 3, 5]),
        (IntegerField(primary_key=True), [-7, 3, 5]),
        (CharField(primary_key=True), ["seven", "it's", ""]),
        (TextField(primary_key=True, column_name="the key"), ["seven", "三", "5"]),
        (UUIDField(primary_key=True), [uuid.UUID(int=n) for n in (7, 3, 5)]),
    ],
    ids=["auto", "bigauto", "integer", "char", "text", "uuid"],
)
def test_keys_of_integers_and_of_text(db, field, values):
    class Document(Model):
        key = field
        embedding = VectorField(dimensions=4, column_name="the vector", null=True)

        class Meta:
            database = db

    Document.add_index(VectorIndex(Document.embedding, name="by_meaning", exact_rows=0))
    db.create_tables([Document])
    for number, value in enumerate(values):
        Document.create(key=value, embedding=[1, number, 0, 0])
    for _ in range(2):
        found = nearest(Document.embedding, [1, 0, 0, 0], k=2)
        assert [row.key for row in found] == values[:2]
        assert [row.key for row in found.where(Document.key == values[2])] == values[2:]
        sync_indexes(db)
    Document.delete().where(Document.key == values[0]).execute()
    assert [row.key for row in nearest(Document.embedding, [1, 0, 0, 0], k=1)] == values[1:2]


def test_a_key_that_is_a_foreign_key(db):
    class Thing(Model):
        name = TextField()

        class Meta:
            database = db

    class Vector(Model):
        thing = ForeignKeyField(Thing, primary_key=True)
        embedding = VectorField(dimensions=2)

        class Meta:
            database = db
            indexes = (VectorIndex("embedding", exact_rows=0),)

    db.create_tables([Thing, Vector])
    for number in range(3):
        Vector.create(thing=Thing.create(name=f"thing {number}"), embedding=[1, number])
    sync_indexes(db)
    query = nearest(Vector.embedding, [0, 1], k=1).select_extend(Thing).join(Thing).where(Thing.name != "thing 2")
    assert [row.thing.name for row in query] == ["thing 1"]


@pytest.mark.parametrize("key", ["composite", "none", "blob"])
def test_a_key_that_an_index_cannot_use_is_refused(db, key):
    class Document(Model):
        number = BlobField(primary_key=True) if key == "blob" else IntegerField()
        title = TextField()
        embedding = VectorField(dimensions=4)

        class Meta:
            database = db

            if key != "blob":
                primary_key = CompositeKey("number", "title") if key == "composite" else False

    Document.add_index(VectorIndex(Document.embedding))
    with pytest.raises(InvalidKey, match="key"):
        db.create_tables([Document])


def test_an_index_in_meta_is_inherited_and_each_model_has_its_own(db):
    class Base(Model):
        embedding = VectorField(dimensions=2)

        class Meta:
            database = db
            indexes = (VectorIndex("embedding", metric="l2", exact_rows=0),)

    class Left(Base):
        pass

    class Right(Base):
        pass

    db.create_tables([Left, Right])
    Left.create(embedding=[0, 1])
    Right.create(embedding=[0, 3])
    sync_indexes(db)
    assert {"left_embedding_idx", "right_embedding_idx"} < objects(db)
    for model, distance in ((Left, 1.0), (Right, 3.0)):
        assert [row.distance for row in nearest(model.embedding, [0, 0])] == [distance]
    db.drop_tables([Left])
    assert [row.distance for row in nearest(Right.embedding, [0, 0])] == [3.0]


def test_a_field_with_two_indexes_is_asked_by_its_metric(db):
    Document = document(
        db, VectorIndex("embedding", name="by_angle"), VectorIndex("embedding", name="by_line", metric="l2")
    )
    db.create_tables([Document])
    Document.create(embedding=[3, 0, 0, 0])
    Document.create(embedding=[1, 1, 0, 0])
    with pytest.raises(InvalidQuery, match="embedding has 2 indexes, of cosine and l2: say which metric"):
        nearest(Document.embedding, [1, 0, 0, 0])
    assert keys(nearest(Document.embedding, [1, 0, 0, 0], metric="cosine")) == [1, 2]
    assert keys(nearest(Document.embedding, [1, 0, 0, 0], metric="l2")) == [2, 1]


def test_a_schema_manager_of_ones_own_is_kept(db):
    created = []

    class Counting(SchemaManager):
        def create_table(self, *args, **options):
            created.append(self.model.__name__)
            super().create_table(*args, **options)

    class Document(Model):
        embedding = VectorField(dimensions=4)

        class Meta:
            database = db
            schema_manager_class = Counting
            indexes = (VectorIndex("embedding"),)

    db.create_tables([Document])
    assert created == ["Document"]
    assert objects(db) >= INDEX_OBJECTS


def test_a_model_moves_to_another_database_with_its_index(db):
    Document = document(db)
    db.create_tables([Document])
    Document.create(title="here", embedding=[1, 0, 0, 0])
    other = VectorSqliteDatabase(":memory:")
    with other.bind_ctx([Document]):
        other.create_tables([Document])
        Document.create(title="there", embedding=[1, 0, 0, 0])
        assert [row.title for row in nearest(Document.embedding, [1, 0, 0, 0])] == ["there"]
    assert [row.title for row in nearest(Document.embedding, [1, 0, 0, 0])] == ["here"]
    other.close()


def test_an_index_changed_in_the_model_is_made_anew(db):
    document(db).create_table()
    document(db)._meta.database.execute_sql("insert into document (title, embedding) values ('', zeroblob(16))")
    Document = document(db, metric="l2")
    Document.create(embedding=[1, 0, 0, 0])
    for _ in range(2):
        assert [row.distance for row in nearest(Document.embedding, [0, 0, 0, 0])] == [0.0, 1.0]
        Document.create_table()
        sync_indexes(db)


@pytest.mark.parametrize("where", ["aux", "temp"])
def test_an_index_serves_the_main_file_only_and_without_one_all_rows_are_scored(db, where):
    db.attach(":memory:", "aux")

    class Document(Model):
        embedding = VectorField(dimensions=2)

        class Meta:
            database = db
            schema = where if where == "aux" else None
            temporary = where == "temp"

    Document.add_index(VectorIndex(Document.embedding))
    with pytest.raises(
        InvalidSetting, match=f"Document is in '{where}', and on SQLite a VectorIndex serves tables of the main"
    ):
        db.create_tables([Document])
    Document._meta.indexes.clear()
    db.create_tables([Document])
    Document.insert_many([{"embedding": [1, n]} for n in range(4)]).execute()
    assert keys(nearest(Document.embedding, [0, 1], k=2)) == [4, 3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "manhattan"}, "metric='manhattan' is unknown"),
        ({"quantize": "half"}, "quantize='half' is unknown"),
        ({"quantize": "bit", "metric": "l2"}, "quantize='bit' keeps directions only"),
        ({"metric": "inner_product"}, "inner product"),
    ],
)
def test_what_an_index_cannot_be_is_said_when_it_is_made(db, options, message):
    Document = document(db, **options)
    with pytest.raises(InvalidSetting, match=message):
        db.create_tables([Document])


def test_a_vector_equals_a_vector(db):
    Document = document(db)
    db.create_tables([Document])
    Document.insert_many([{"embedding": [1, 0, 0, n]} for n in range(3)]).execute()
    assert keys(Document.select().where(Document.embedding == [1, 0, 0, 2])) == [3]
    assert keys(Document.select().where(Document.embedding != [1, 0, 0, 2])) == [1, 2]
    assert Document.get_or_create(embedding=[1, 0, 0, 1])[1] is False
    assert Document.get_or_create(embedding=[1, 0, 0, 9])[1] is True
    Document.create()
    assert keys(Document.select().where(Document.embedding == None)) == [5]  # noqa: E711  # how Peewee spells it
    with pytest.raises(InvalidVector):
        Document.select().where(Document.embedding == [1, 2]).execute()


def test_an_ordinary_index_on_a_vector_is_refused():
    with pytest.raises(InvalidSetting, match=r"add_index\(VectorIndex"):
        VectorField(dimensions=3, index=True)
    with pytest.raises(InvalidSetting, match="dimensions=0: a vector has a whole number of them"):
        VectorField(dimensions=0)


def test_a_name_that_cannot_be_is_refused_before_there_is_a_table_and_hinders_no_drop(db):
    class Odd(Model):
        embedding = VectorField(dimensions=3)

        class Meta:
            database = db
            table_name = "we ird"

    Odd.add_index(VectorIndex(Odd.embedding))
    with pytest.raises(InvalidName, match="we ird_embedding_idx"):
        db.create_tables([Odd])
    assert db.get_tables() == []
    db.drop_tables([Odd])


def test_only_a_field_of_vectors_is_searched(db):
    Document = document(db)
    for field in (Document.id, "embedding", None):
        with pytest.raises(InvalidQuery, match="is no VectorField"):
            nearest(field, [1, 0, 0, 0])
