"""Vec0Model: the hybrid of an entity's table and a vec0 table beside it, joined by id."""

import pytest

pytest.importorskip("peewee", reason="needs Peewee: pip install 'datasette-vec-gemini[peewee]'")
import oracle
from peewee import (
    SQL,
    BlobField,
    BooleanField,
    CharField,
    DateField,
    DecimalField,
    FloatField,
    ForeignKeyField,
    IntegerField,
    Model,
    NotSupportedError,
    OperationalError,
    PostgresqlDatabase,
    TextField,
    fn,
)

from datasette_vec_gemini.errors import InvalidSetting, InvalidVector, UsageError
from datasette_vec_gemini.peewee import Vec0Model, VectorField, VectorSqliteDatabase, bulk_insert, nearest

VECTORS = [[1.0, n, n * n / 10] for n in range(12)]
QUERY = [1.0, 4.4, 0.3]


@pytest.fixture
def db(path):
    database = VectorSqliteDatabase(str(path))
    yield database
    database.close()


@pytest.fixture
def models(db):
    """The specification's pair: metadata that the ORM keeps, and vectors in a table of vec0's."""

    class DocMetadata(Model):
        content = TextField()
        category = CharField(null=True)

        class Meta:
            database = db

    class VecIndex(Vec0Model):
        rowid = IntegerField(primary_key=True)
        embedding = VectorField(dimensions=3)

        class Meta:
            database = db
            table_name = "vec_index"
            primary_key = False
            metric = "l2"

    db.create_tables([DocMetadata, VecIndex])
    with db.atomic():
        for number, vector in enumerate(VECTORS):
            document = DocMetadata.create(content=f"text {number}", category="ab"[number % 2])
            VecIndex.create(rowid=document.id, embedding=vector)
    return DocMetadata, VecIndex


def expected(keys, *, k, metric="l2", offset=0):
    rows = {key: VECTORS[key - 1] for key in keys}
    return [
        (key, pytest.approx(score, abs=1e-5))
        for key, score in oracle.nearest(rows, QUERY, k=k, metric=metric, offset=offset)
    ]


def found(query):
    return [(row.rowid, row.distance) for row in query]


def test_the_table_is_what_vec0_reads(db, models):
    ((sql,),) = db.execute_sql("select sql from sqlite_master where name = 'vec_index'")
    columns = "rowid integer primary key, embedding float[3] distance_metric=l2"
    assert sql == f'CREATE VIRTUAL TABLE "vec_index" USING vec0({columns})'


def test_the_entity_and_its_distance_come_by_a_join(models):
    DocMetadata, VecIndex = models
    query = (
        nearest(VecIndex.embedding, QUERY, k=3)
        .select_extend(DocMetadata)
        .join(DocMetadata, on=(VecIndex.rowid == DocMetadata.id), attr="document")
        .where(DocMetadata.category == "a")
    )
    assert [(row.document.content, row.distance) for row in query] == [
        (f"text {key - 1}", distance) for key, distance in expected(range(1, 13, 2), k=3)
    ]


def test_the_specifications_own_statement_runs_with_the_marks_of_sqlite(models):
    DocMetadata, VecIndex = models
    blob = VecIndex.embedding.db_value(QUERY)
    query = (
        VecIndex.select(DocMetadata.content, fn.vec_distance_L2(VecIndex.embedding, blob).alias("distance"))
        .join(DocMetadata, on=(VecIndex.rowid == DocMetadata.id))
        .where(SQL("embedding MATCH ?", [blob]), SQL("k = ?", [4]))
        .order_by(SQL("distance"))
    )
    assert [(row.docmetadata.content, row.distance) for row in query] == [
        (f"text {key - 1}", distance) for key, distance in expected(range(1, 13), k=4)
    ]


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_a_search_is_exact_by_either_metric(models, metric):
    _, VecIndex = models
    assert found(nearest(VecIndex.embedding, QUERY, k=5, metric=metric)) == expected(range(1, 13), k=5, metric=metric)


def test_limit_offset_order_count_first_and_get(models):
    _, VecIndex = models
    everything = range(1, 13)
    query = nearest(VecIndex.embedding, QUERY, k=4)
    assert found(query.paginate(2, 4)) == expected(everything, k=4, offset=4)
    assert found(query.offset(10)) == expected(everything, k=2, offset=10)
    assert found(query.order_by(VecIndex.rowid.desc())) == sorted(expected(everything, k=4), key=lambda pair: -pair[0])
    assert query.count() == 4
    assert found(nearest(VecIndex.embedding, QUERY, k=5_000)) == expected(everything, k=12)
    assert [found([query.first()]), found([query.get()])] == [expected(everything, k=1)] * 2


@pytest.mark.parametrize("keys", [[3], [3, 9], []])
def test_a_filter_by_key_acts_inside_the_search(models, keys):
    _, VecIndex = models
    assert found(nearest(VecIndex.embedding, QUERY, k=3).where(VecIndex.rowid.in_(keys))) == expected(keys, k=3)


def test_save_updates_or_inserts(models):
    _, VecIndex = models
    row = VecIndex.get_by_id(3)
    row.embedding = [9, 9, 9]
    assert (row.save(), VecIndex.get_by_id(3).embedding) == (1, [9.0, 9.0, 9.0])
    assert (VecIndex(rowid=77, embedding=[7, 7, 7]).save(), VecIndex.get_by_id(77).embedding) == (1, [7.0, 7.0, 7.0])
    fresh = VecIndex(embedding=[8, 8, 8])
    assert (fresh.save(), fresh.rowid) == (1, 78)
    assert VecIndex.select().count() == 14


def test_writes_in_bulk_and_deletes(models):
    _, VecIndex = models
    VecIndex.insert_many([{"rowid": 50 + n, "embedding": [n, n, n + 1]} for n in range(3)]).execute()
    VecIndex.bulk_create([VecIndex(rowid=60, embedding=[1, 2, 3])])
    rows = list(VecIndex.select().where(VecIndex.rowid >= 50))
    for row in rows:
        row.embedding = [row.rowid, 0, 0]
    assert VecIndex.bulk_update(rows, [VecIndex.embedding]) == 4
    assert VecIndex.delete().where(VecIndex.rowid < 50).execute() == 12
    assert [(row.rowid, row.embedding) for row in VecIndex.select()] == [(key, [key, 0, 0]) for key in (50, 51, 52, 60)]
    assert VecIndex.get_by_id(60).delete_instance() == 1
    assert [row.rowid for row in nearest(VecIndex.embedding, [51, 0, 0], k=1)] == [51]


def test_a_transaction_takes_the_vectors_back(db, models):
    _, VecIndex = models
    with db.atomic() as transaction:
        VecIndex.create(rowid=99, embedding=QUERY)
        with db.atomic() as savepoint:
            VecIndex.delete().where(VecIndex.rowid == 1).execute()
            savepoint.rollback()
        assert nearest(VecIndex.embedding, QUERY, k=1).get().rowid == 99
        transaction.rollback()
    assert found(nearest(VecIndex.embedding, QUERY, k=12)) == expected(range(1, 13), k=12)


def test_what_vec0_cannot_do_is_said(models):
    _, VecIndex = models
    for refused in (lambda: VecIndex.replace(rowid=1, embedding=QUERY), lambda: VecIndex.replace_many([])):
        with pytest.raises(NotSupportedError, match=r"save\(\) updates the row or inserts it"):
            refused()
    for refused in (lambda: VecIndex.update(rowid=5), lambda: VecIndex.update({VecIndex.rowid: 5})):
        with pytest.raises(NotSupportedError, match="vec0 cannot change a key"):
            refused()
    with pytest.raises(OperationalError, match="UNIQUE constraint failed"):
        VecIndex.create(rowid=1, embedding=QUERY)


@pytest.mark.parametrize("vector", [[1, 2], [1, 2, float("nan")], "1,2,3", [[1], [2, 3]]])
def test_what_is_no_vector_is_refused_before_it_is_written(models, vector):
    _, VecIndex = models
    with pytest.raises(InvalidVector):
        VecIndex.create(embedding=vector)
    assert VecIndex.select().count() == 12


def test_columns_of_vec0_filter_inside_the_search(db):
    class Author(Model):
        name = TextField(primary_key=True)

        class Meta:
            database = db

    class Entry(Vec0Model):
        author = ForeignKeyField(Author, primary_key=True)
        embedding = VectorField(dimensions=3)
        lang = CharField(max_length=8)
        stars = IntegerField()
        score = FloatField()
        open = BooleanField()
        day = DateField()

        class Meta:
            database = db

    db.create_tables([Author, Entry])
    columns = (
        "author_id text primary key, embedding float[3] distance_metric=cosine, lang text, stars integer, score float, "
        "open boolean, day text"
    )
    assert Entry._schema._create_table().query()[0].endswith(f"({columns})")
    for number, vector in enumerate(VECTORS):
        Entry(
            author=Author.create(name=f"n{number:02}"), embedding=vector, lang="de" if number % 3 else "en",
            stars=number, score=number, open=number > 2, day="2026-01-02",
        ).save()  # fmt: skip
    query = nearest(Entry.embedding, QUERY, k=3).where(Entry.lang == "en", Entry.score > 0, Entry.stars < 9)
    rows = {f"n{n:02}": VECTORS[n] for n in (3, 6)}
    assert [(row.author_id, row.distance, row.open, row.day.year) for row in query] == [
        (key, pytest.approx(score, abs=1e-5), True, 2026)
        for key, score in oracle.nearest(rows, QUERY, k=3, metric="cosine")
    ]
    joined = nearest(Entry.embedding, QUERY, k=1).join(Author).where(Author.name == "n11")
    assert [row.author.name for row in joined] == ["n11"]


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (TextField(null=True), "Entry.extra: vec0 holds no NULL"),
        (TextField(column_name="no good"), "Entry.extra: vec0 takes no name but of ASCII letters"),
        (IntegerField(column_name="K"), "distance and k are its own"),
        (BlobField(), "Entry.extra: vec0 has no type for a BlobField"),
        (DecimalField(), "Entry.extra: vec0 has no type for a DecimalField"),
    ],
)
def test_a_column_that_vec0_cannot_have_is_refused_with_its_name(db, column, message):
    class Entry(Vec0Model):
        embedding = VectorField(dimensions=3)
        extra = column

        class Meta:
            database = db

    with pytest.raises(UsageError, match=message):
        db.create_tables([Entry])


def test_a_metric_that_vec0_has_not_is_refused(db):
    class Entry(Vec0Model):
        embedding = VectorField(dimensions=3)

        class Meta:
            database = db
            metric = "inner_product"

    with pytest.raises(InvalidSetting, match="Entry: metric='inner_product' is unknown: use cosine or l2"):
        db.create_tables([Entry])


def test_a_vec0_table_belongs_to_sqlite():
    class Entry(Vec0Model):
        embedding = VectorField(dimensions=3)

        class Meta:
            database = PostgresqlDatabase("nowhere")

    with pytest.raises(NotSupportedError, match="put the vector into a VectorField of the entity, which both can"):
        Entry.create_table()


def test_drop_and_truncate(db, models):
    _, VecIndex = models
    VecIndex.truncate_table()
    assert VecIndex.select().count() == 0
    VecIndex.create(rowid=1, embedding=QUERY)
    assert found(nearest(VecIndex.embedding, QUERY)) == [(1, 0.0)]
    db.drop_tables(models)
    assert db.execute_sql("select name from sqlite_master where name not glob 'sqlite_*'").fetchall() == []


def test_a_vector_without_direction_is_refused_where_directions_are_compared(db):
    class Entry(Vec0Model):
        embedding = VectorField(dimensions=3)

        class Meta:
            database = db

    db.create_tables([Entry])
    for write in (Entry.insert(embedding=[0, 0, 0]).execute, lambda: bulk_insert(Entry, [{"embedding": [0, 0, 0]}])):
        with pytest.raises(InvalidVector, match="no direction"):
            write()
    assert bulk_insert(Entry, [{"embedding": [0, 0, 1]}, {"embedding": [0, 1, 1]}]) == 2
    assert [entry.id for entry in nearest(Entry.embedding, [0, 1, 0], k=1)] == [2]
