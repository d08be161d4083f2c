"""Laws of reading: what nearest() finds, however it is filtered, paged, joined and ordered."""

import re

import numpy as np
import oracle
import pytest
from documents import EXACTLY, FAR, QUERY, ROWS, VECTORS

sa = pytest.importorskip("sqlalchemy", reason="needs SQLAlchemy: pip install 'datasette-vec-gemini[sqlalchemy]'")
from sqlalchemy import event, func, select
from sqlalchemy.orm import aliased, joinedload, selectinload

from datasette_vec_gemini.errors import InvalidQuery, InvalidVector
from datasette_vec_gemini.sqlalchemy import nearest


def english(key):
    return key % 2 == 1


def by_ada(key):
    return key % 6 == 0


@pytest.mark.parametrize("k", [1, np.int64(10), 3 * ROWS, 10**19])
def test_the_nearest_rows_come_in_the_order_of_their_exact_distances(library, k):
    for query in (QUERY, FAR, VECTORS[5]):
        found = library.run(lambda s, query=query: library.found(s, library.nearest(query, k=k)))
        assert found == library.expected(query, k=k)


@pytest.mark.parametrize(
    ("conditions", "only"),
    [
        (lambda d: [d.lang == "en"], english),
        (lambda d: [d.lang == "en", d.title.like("t1%")], lambda key: english(key) and str(key).startswith("1")),
        (lambda d: [d.id == 123], lambda key: key == 123),
        (lambda d: [d.id.in_([123])], lambda key: key == 123),
        (lambda d: [d.id.in_([3, 123, 10_000])], lambda key: key in {3, 123}),
        (lambda d: [d.id.in_([])], lambda key: False),
        (lambda d: [d.id == 7], lambda key: False),  # has no vector
        (lambda d: [d.lang == "no such"], lambda key: False),
        (lambda d: [d.author.has(name="Ada")], by_ada),
        (lambda d: [d.author_id.is_(None)], lambda key: key % 3),
        (lambda d: [sa.or_(d.id < 5, d.id > 200)], lambda key: key < 5 or key > 200),
    ],
)  # fmt: skip
def test_filters_act_inside_the_search_wherever_they_are_given(library, conditions, only):
    where = conditions(library.Document)
    inside = library.nearest(k=10, where=where)
    added = library.nearest(k=10).where(*where)
    for statement in (inside, added):
        assert library.run(lambda s, st=statement: library.found(s, st)) == library.expected(only=only)


def test_a_filter_by_itself_is_one_filter(library):
    """SQLAlchemy's own and_() and or_() are iterable, and their parts are not filters that must all hold."""
    document = library.Document
    either = sa.or_(document.id < 5, document.id > 200)
    for where, only in (
        (either, lambda key: key < 5 or key > 200),
        (document.lang == "en", english),
        ((each for each in [document.lang == "en"]), english),
        (None, lambda key: True),
    ):
        assert library.run(lambda s, w=where: library.found(s, library.nearest(k=10, where=w))) == library.expected(
            only=only
        )


@pytest.mark.parametrize("wrong", ["id = 1", b"id = 1", 5, {"id": 1}, {}])
def test_what_is_no_condition_is_refused(library, wrong):
    for where in (wrong, [wrong]):
        with pytest.raises(InvalidQuery, match=rf"^{re.escape(repr(wrong))} is no condition: give such as \["):
            library.nearest(where=where)
    with pytest.raises(InvalidQuery, match=r"^None is no condition"):
        library.nearest(where=[None])


def test_a_filter_may_be_a_lambda_of_values_that_change(library):
    document = library.Document

    def above(least):
        return library.nearest(k=10, where=lambda: document.id > least)

    for least in (200, 100):
        statement = above(least)
        found = library.run(lambda s, st=statement: library.found(s, st))
        assert found == library.expected(only=lambda key, least=least: key > least)


def test_joined_tables_filter_inside_the_search(library):
    author = library.Author
    statement = library.nearest(k=10).join(library.Document.author).where(author.name == "Ada")
    outer = library.nearest(k=10).outerjoin(library.Document.author).where(author.name == "Ada")
    inner = library.nearest(k=10).join(library.Document.author)
    assert library.run(lambda s: library.found(s, statement)) == library.expected(only=by_ada)
    assert library.run(lambda s: library.found(s, outer)) == library.expected(only=by_ada)
    assert library.run(lambda s: library.found(s, inner)) == library.expected(only=lambda key: key % 3 == 0)


@pytest.mark.parametrize("load", [joinedload, selectinload])
def test_relationships_can_be_loaded_with_the_rows(library, load):
    statement = library.nearest(k=10).options(load(library.Document.author))

    def work(session):
        rows = session.execute(statement).unique().all()
        session.expunge_all()
        return [(d.id, distance) for d, distance in rows], [d.author and d.author.name for d, _ in rows]

    found, names = library.run(work)
    assert found == library.expected()
    assert names == [{0: "Ada", 3: "Bob"}.get(key % 6) for key, _ in found]


@pytest.mark.parametrize(("limit", "offset"), [(3, 0), (5, 4), (7, 200), (10, ROWS), (50, 5)])
def test_limit_and_offset_turn_pages(library, limit, offset):
    statement = library.nearest(k=10, where=[library.Document.lang == "en"]).limit(limit).offset(offset)
    found = library.run(lambda s: library.found(s, statement))
    assert found == library.expected(k=limit, offset=offset, only=english)
    beyond = library.run(lambda s: library.found(s, library.nearest(k=limit).offset(offset)))
    assert beyond == library.expected(k=limit, offset=offset)


def test_first_one_and_scalars_are_those_of_any_select(library):
    def work(session):
        statement = library.nearest(k=5)
        first, distance = session.execute(statement).first()
        (only, _) = session.execute(statement.limit(1)).one()
        return (first.id, distance), only.id, [d.id for d in session.scalars(statement)]

    first, only, keys = library.run(work)
    assert [first] == library.expected(k=1)
    assert only == first[0]
    assert keys == [key for key, _ in library.expected(k=5)]


def test_other_orders_and_groups_are_of_all_rows_and_not_of_some(library):
    document = library.Document
    base = library.nearest(k=4)

    def work(session):
        return (
            [d.id for d in session.scalars(base.order_by(None).order_by(document.id.desc()))],
            [d.id for d in session.scalars(base.order_by(None).order_by(document.embedding.l2_distance(QUERY).desc()))],
            [d.id for d in session.scalars(base.order_by(None).order_by(-document.embedding.l2_distance(QUERY)))],
            [d.id for d in session.scalars(base.order_by(None).order_by(document.embedding.l2_distance(FAR)))],
            session.scalar(select(func.count()).select_from(base.limit(None).subquery())),
            session.scalar(select(func.count()).select_from(base.subquery())),
        )

    last, farthest, negated, other, everything, four = library.run(work)
    present = {key: vector for key, vector in library.rows.items() if vector}
    assert last == sorted(present, reverse=True)[:4]
    assert farthest == [key for key, _ in oracle.nearest(present, QUERY, k=ROWS, metric="l2")][::-1][:4]
    assert negated == farthest
    assert other == [key for key, _ in oracle.nearest(present, FAR, k=4, metric="l2")]
    assert (everything, four) == (len(present), 4)


def test_an_alias_and_a_plain_table_are_searched_alike(library):
    other = aliased(library.Document)
    table = library.Document.__table__

    def work(session):
        by_alias = library.found(session, nearest(other.embedding, QUERY, k=10, where=[other.lang == "en"]))
        rows = session.execute(nearest(table.c.embedding, QUERY, k=10, where=[table.c.lang == "en"])).all()
        assert list(rows[0]._mapping) == [*table.c.keys(), "distance"]
        return by_alias, [(row.id, row.distance) for row in rows]

    assert library.run(work) == (library.expected(only=english), library.expected(only=english))


def test_it_is_a_subquery_like_any_other(library):
    near = library.nearest(k=5, where=[library.Document.lang == "en"]).subquery()
    statement = select(library.Document.title, near.c.distance).join(near, near.c.id == library.Document.id)
    found = library.run(lambda s: s.execute(statement.order_by(near.c.distance)).all())
    assert [(int(title[1:]), distance) for title, distance in found] == library.expected(k=5, only=english)


def test_one_compiled_statement_serves_every_k_vector_and_value_of_a_filter(library):
    hits = []
    engine = getattr(library.engine, "sync_engine", library.engine)

    def note(*details):
        hits.append(details[4].cache_hit.name)

    library.run(lambda s: s.execute(library.nearest(k=1, where=[library.Document.lang == "de"])).all())
    event.listen(engine, "before_cursor_execute", note)
    for k, lang, query in [(1, "en", QUERY), (9, "de", VECTORS[5]), (40, "en", FAR)]:
        only = english if lang == "en" else lambda key: not english(key)
        statement = library.nearest(query, k=k, where=[library.Document.lang == lang])
        assert library.run(lambda s, st=statement: library.found(s, st)) == library.expected(query, k=k, only=only)
    event.remove(engine, "before_cursor_execute", note)
    assert hits == ["CACHE_HIT"] * 3


@pytest.mark.parametrize("metric", ["cosine", "l2", "inner_product"])
def test_the_comparators_of_pgvector_are_exact_and_put_rows_without_a_vector_last(library, metric):
    document = library.Document
    name = {"cosine": "cosine_distance", "l2": "l2_distance", "inner_product": "max_inner_product"}[metric]
    distance = getattr(document.embedding, name)(QUERY)

    def work(session):
        statement = select(document.id, distance.label("d")).order_by(distance, document.id)
        near = select(document.id).where(distance < -1e9 if metric == "inner_product" else distance < 0)
        return session.execute(statement).all(), session.scalars(near).all()

    rows, none = library.run(work)
    empty = [key for key, vector in library.rows.items() if vector is None]
    expected = oracle.nearest(library.rows, QUERY, k=ROWS, metric=metric)
    assert [tuple(row) for row in rows] == [
        *((key, pytest.approx(value, **EXACTLY)) for key, value in expected),
        *((key, None) for key in empty),
    ]
    assert none == []


def test_columns_are_compared_with_each_other(library):
    one, other = aliased(library.Document), aliased(library.Document)
    statement = select(one.embedding.l2_distance(other.embedding)).where(one.id == 1)
    rows = library.run(lambda s: [s.scalar(statement.join(other, other.id == key)) for key in (1, 2, 7)])
    distance = oracle.distance("l2", VECTORS[1], VECTORS[2])
    assert rows == [pytest.approx(0, **EXACTLY), pytest.approx(distance, **EXACTLY), None]


@pytest.mark.parametrize("k", [0, -1])
def test_a_search_for_no_rows_is_refused(library, k):
    with pytest.raises(InvalidQuery, match=f"k is {k}"):
        library.nearest(k=k)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ([1.0], "expected 16 dimensions, not 1"),
        ([float("nan")] * 16, "holds NaN or infinity"),
        ("[1,2,3]", "expected a vector of 16 numbers, got '"),
        (None, "expected a vector of 16 numbers, got None"),
    ],
)
def test_what_is_no_vector_is_refused_before_anything_is_asked(library, query, message):
    with pytest.raises(InvalidVector) as caught:
        library.nearest(query)
    assert message in str(caught.value)
    assert isinstance(caught.value, ValueError)


def test_a_zero_vector_has_no_direction_to_search_in(library):
    zero = [0.0] * 16
    if library.metric == "cosine":
        with pytest.raises(InvalidVector, match="all zeros"):
            library.nearest(zero)
    else:
        assert library.run(lambda s: library.found(s, library.nearest(zero))) == library.expected(zero)
    with pytest.raises(sa.exc.StatementError) as caught:
        library.run(
            lambda s: s.scalars(select(library.Document).order_by(library.Document.embedding.cosine_distance(zero)))
        )
    assert isinstance(caught.value.orig, InvalidVector)


def test_a_column_without_an_index_of_that_metric_is_refused_with_the_remedy(library):
    with pytest.raises(InvalidQuery, match=r"has no vector index by l1.*VectorIndex"):
        library.nearest(metric="l1")
    with pytest.raises(InvalidQuery, match=r"title is no Vector: nearest\(Document.embedding, vector\)"):
        nearest(library.Document.title, QUERY)
    with pytest.raises(InvalidQuery, match=r"is no column"):
        nearest(library.Document, QUERY)


def test_a_search_cannot_be_torn_out_of_its_select(library):
    (condition,) = library.nearest()._where_criteria
    with pytest.raises(sa.exc.CompileError, match=r"nearest\(\) is a select"):
        library.run(lambda s: s.execute(sa.delete(library.Document).where(condition)))
