"""nearest() in Peewee: exact answers, whatever is added to the select."""

import pytest

pytest.importorskip("peewee", reason="needs Peewee: pip install 'datasette-vec-gemini[peewee]'")
import oracle
from peewee import JOIN, SQL, ForeignKeyField, Model, fn, prefetch
from peewee_documents import (
    FAR,
    QUERY,
    ROWS,
    VECTORS,
    Author,
    Comment,
    Document,
    db,
    expect,
    found,
    opened,
    search,
    store,
)

from datasette_vec_gemini.errors import InvalidQuery, InvalidVector
from datasette_vec_gemini.peewee import VectorField, nearest

__all__ = ["db", "expect", "opened", "store"]


def test_the_nearest_are_exact(expect):
    assert found(search()) == expect(5)
    assert found(search(k=1)) == expect(1)
    assert found(search(k=ROWS * 2)) == expect(ROWS)


def test_rows_are_whole_entities(expect):
    (key, _), *_ = expect(1)
    row = search(k=1).get()
    assert (type(row), row.embedding, row.author.name) == (Document, list(oracle.stored(VECTORS[key])), row.author.name)
    assert row.is_dirty() is False
    row.title = "changed"
    assert row.save() == 1
    assert Document.get_by_id(key).title == "changed"


@pytest.mark.parametrize(
    ("conditions", "only"),
    [
        (lambda: [Document.lang == "en"], lambda row: row.lang == "en"),
        (lambda: [Document.lang == "en", Document.id > 60], lambda row: row.lang == "en" and row.id > 60),
        (lambda: [(Document.lang == "en") | (Document.id < 9)], lambda row: row.lang == "en" or row.id < 9),
        (lambda: [Document.title.startswith("title 3")], lambda row: row.title == "title 3"),
        (lambda: [Document.id == 77], lambda row: row.id == 77),
        (lambda: [Document.id.in_([77])], lambda row: row.id == 77),
        (lambda: [Document.id.in_([77, 78])], lambda row: row.id in {77, 78}),
        (lambda: [Document.id.in_(Document.select(Document.id).where(Document.id < 4))], lambda row: row.id < 4),
        (lambda: [Document.lang == "xx"], lambda row: False),
        (lambda: [Document.slug.is_null()], lambda row: False),
        (lambda: [fn.length(Document.title) > 7], lambda row: len(row.title) > 7),
    ],
)  # fmt: skip
def test_a_filter_acts_inside_the_search(expect, conditions, only):
    assert found(search(k=6).where(*conditions())) == expect(6, only=only)


def test_filters_add_up_and_may_be_widened(expect):
    query = search().where(Document.id > 50).where(Document.lang == "en")
    assert found(query) == expect(5, only=lambda row: row.id > 50 and row.lang == "en")
    assert found(query.orwhere(Document.id == 3)) == expect(
        5, only=lambda row: (row.id > 50 and row.lang == "en") or row.id == 3
    )
    assert found(search().filter(author__name="bo")) == expect(5, only=lambda row: row.author_id == 2)


def test_limit_makes_fewer_and_offset_goes_on(expect):
    assert found(search(k=10).limit(3)) == expect(3)
    assert found(search(k=10).limit(50)) == expect(10)
    assert found(search(k=10).offset(7)) == expect(10, offset=7)
    assert found(search(k=10).limit(4).offset(4)) == expect(4, offset=4)
    assert [found(search(k=10).paginate(page, 10)) for page in (1, 2, 3)] == [expect(10, offset=n) for n in (0, 10, 20)]
    assert found(search(k=10).offset(ROWS - 3)) == expect(10, offset=ROWS - 3)
    assert found(search(k=10).offset(ROWS)) == []
    assert found(search(k=10).limit(0)) == []


def test_an_order_of_ones_own_sorts_the_k_nearest(expect):
    best = [key for key, _ in expect(8)]
    query = search(k=8).order_by(Document.id.desc())
    assert [row.id for row in query] == sorted(best, reverse=True)
    assert [row.id for row in query.limit(3).offset(2)] == sorted(best, reverse=True)[2:5]
    assert found(search(k=8).order_by(SQL("distance").desc())) == expect(8)[::-1]
    assert found(search(k=8).order_by_extend(Document.title)) == expect(8)
    assert query.count() == 8
    assert query.offset(6).count() == 2


def test_count_exists_first_get_and_len(expect):
    (best, *_) = expect(1)
    assert (search().count(), len(search()), search().exists()) == (5, 5, True)
    nothing = search().where(Document.lang == "xx")
    assert (nothing.count(), nothing.exists(), nothing.first(), nothing.get_or_none()) == (0, False, None, None)
    with pytest.raises(Document.DoesNotExist):
        nothing.get()
    assert [found([row]) for row in (search().first(), search().get(), search()[0], search().get_or_none())] == [
        [best]
    ] * 4
    assert found(search().first(n=3)) == expect(3)
    assert search().limit(2).count() == 2
    assert search().count(clear_limit=True) == 5


def test_shapes_of_rows(expect):
    keys = [key for key, _ in expect(5)]
    assert [(row["id"], row["distance"]) for row in search().dicts()] == expect(5)
    assert [(row.id, row.distance) for row in search().namedtuples()] == expect(5)
    assert [row[0] for row in search().tuples()] == keys
    assert [row.id for row in search().select(Document.id)] == keys
    titles = search().select(Document.title, search().distance.alias("far")).dicts()
    assert [(row["title"], row["far"]) for row in titles] == [
        (Document.get_by_id(key).title, distance) for key, distance in expect(5)
    ]
    assert [row.id for row in search().iterator()] == keys


def test_a_joined_table_filters_and_comes_along(db, expect):
    query = search().select_extend(Author).join(Author).where(Author.name == "ada")
    assert found(query) == expect(5, only=lambda row: row.author_id == 1)
    assert [row.__rel__["author"].name for row in query] == ["ada"] * 5
    assert query.count() == 5


def test_a_left_join_keeps_rows_without_a_partner(expect):
    assert found(search().join(Comment, JOIN.LEFT_OUTER).where(Comment.id.is_null())) == expect(
        5, only=lambda row: row.id % 20 != 0
    )


def test_a_join_to_many_finds_k_entities_and_repeats_them_as_sql_does(expect):
    query = search(k=2).select_extend(Comment.text).join(Comment)
    assert found(query.order_by(Document.id, Comment.id)) == sorted(
        expect(2, only=lambda row: row.id % 20 == 0) * 3, key=lambda pair: pair[0]
    )
    assert query.count() == 6
    grouped = search(k=2).select_extend(fn.count(Comment.id).alias("comments")).join(Comment).group_by(Document)
    assert [(row.id, row.comments) for row in grouped] == [
        (key, 3) for key, _ in expect(2, only=lambda row: row.id % 20 == 0)
    ]


def test_a_page_beyond_all_rows_is_empty_however_far_it_is(db):
    for limit, offset in ((1, 2**62), (2**63 - 1, 2**63 - 1)):
        assert found(search().limit(limit).offset(offset)) == []


def test_an_alias_of_the_model_is_searched_like_the_model(expect):
    Other = Document.alias("other")
    query = nearest(Other.embedding, QUERY, k=4).where(Other.lang == "en")
    assert found(query) == expect(4, only=lambda row: row.lang == "en")


def test_a_search_inside_another_statement(expect):
    keys = [key for key, _ in expect(5)]
    inside = Document.select().where(Document.id.in_(search())).order_by(Document.id)
    assert [row.id for row in inside] == sorted(keys)
    best = search().select(Document.id, Document.author).alias("best")
    joined = Author.select(Author.name, best.c.id.alias("document")).join(best, on=(best.c.author_id == Author.id))
    assert sorted(row.best["document"] if hasattr(row, "best") else row.document for row in joined.objects()) == sorted(
        keys
    )
    cte = search().cte("best")
    assert sorted(key for (key,) in cte.select_from(cte.c.id).tuples()) == sorted(keys)
    both = search(k=2) | search(k=2, query=FAR)
    assert sorted(row.id for row in both) == sorted(key for key, _ in expect(2) + expect(2, query=FAR))
    mine = Document.select(Document.id).where(Document.lang == "en").cte("mine")
    assert found(search(k=3).with_cte(mine).where(Document.id.in_(mine.select_from(mine.c.id)))) == expect(
        3, only=lambda row: row.lang == "en"
    )


def test_related_rows_are_loaded_as_of_any_select(expect):
    authors = prefetch(Author.select().order_by(Author.id), search())
    assert sorted(row.id for author in authors for row in author.documents) == sorted(key for key, _ in expect(5))
    assert len([comment for row in search(k=ROWS).prefetch(Comment) for comment in row.comment_set]) == 18


@pytest.mark.parametrize("metric", ["l2", "cosine", "inner_product"])
def test_distances_of_pgvectors_names_are_exact_in_any_select(expect, metric):
    field = Document.embedding
    distance = {
        "l2": field.l2_distance, "cosine": field.cosine_distance, "inner_product": field.max_inner_product
    }[metric](QUERY)  # fmt: skip
    query = Document.select(Document, distance.alias("distance")).where(field.is_null(False))
    assert found(query.order_by(distance).limit(5)) == expect(5, metric=metric)
    assert found(nearest(field, QUERY, k=3, metric=metric)) == expect(3, metric=metric)
    furthest = Document.select(fn.max(distance)).where(field.is_null(False)).scalar()
    assert found(query.where(distance >= furthest)) == expect(1, offset=ROWS - 1, metric=metric)


@pytest.mark.parametrize("metric", ["l2", "cosine", "inner_product"])
def test_a_row_without_a_vector_has_no_distance_and_sorts_last(expect, metric):
    field = Document.embedding
    distance = {
        "l2": field.l2_distance, "cosine": field.cosine_distance, "inner_product": field.max_inner_product
    }[metric](QUERY)  # fmt: skip
    query = Document.select(Document.id, distance.alias("distance")).order_by(distance)
    assert found(query) == [*expect(ROWS, metric=metric), (ROWS + 1, None)]
    assert [row.id for row in query.where(distance < 1e9)] == [key for key, _ in expect(ROWS, metric=metric)]
    (third, limit) = expect(3, metric=metric)[2]
    near = found(search(k=5).where(distance < limit.expected + 1e-4))
    assert third in [key for key, _ in near]


def test_the_distance_of_two_columns(expect):
    Other = Document.alias("other")
    joined = Document.select(Document.id, Other.id.alias("other")).join(Other, on=(Other.id.in_([1, 121])))
    for distance in (Document.embedding.l2_distance(Other.embedding), Other.embedding.l2_distance(Document.embedding)):
        rows = joined.select_extend(distance.alias("distance")).order_by(distance, Document.id, Other.id).tuples()
        assert [(key, far) for key, _, far in rows[:ROWS]] == expect(ROWS, query=VECTORS[1], metric="l2")
        assert [far for *_, far in rows[ROWS:]] == [None] * (ROWS + 2)


def test_a_column_of_other_dimensions_has_no_distance_and_a_search_asks_for_a_vector():
    class Short(Model):
        embedding = VectorField(dimensions=3)

    with pytest.raises(InvalidVector, match="embedding has 3 dimensions, and embedding 16"):
        Document.embedding.l2_distance(Short.embedding)
    with pytest.raises(InvalidVector, match="expected a vector of 16 numbers"):
        nearest(Document.embedding, Document.embedding)


@pytest.mark.parametrize("name", ["candidates", "enough", "fits", "near", "settings"])
def test_a_filter_may_name_any_table(db, expect, name):
    class Marked(Model):
        document = ForeignKeyField(Document)

        class Meta:
            table_name = name

    with db.bind_ctx([Marked]):
        db.create_tables([Marked])
        Marked.insert_many([(key,) for key in range(7, 40)], [Marked.document]).execute()
        expected = expect(5, only=lambda row: 7 <= row.id < 40)
        assert found(search().where(Document.id.in_(Marked.select(Marked.document)))) == expected
        assert found(search().join(Marked)) == expected


def test_a_metric_that_there_is_not_is_refused_with_those_there_are():
    with pytest.raises(InvalidQuery, match="metric is 'hamming'; it can be cosine, l2, inner_product"):
        nearest(Document.embedding, QUERY, metric="hamming")
