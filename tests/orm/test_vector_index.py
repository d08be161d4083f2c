"""Laws of the index that both ORMs derive from a column, without an ORM: values, SQL, folding, recall."""

import math
from array import array

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasette_vec_gemini import connect, sqlite3
from datasette_vec_gemini.errors import InvalidVector
from datasette_vec_gemini.vector_index import DISTANCES, DerivedIndex, catch_up, prepare, stored, sync
from datasette_vec_gemini.vectors import checked, pack, unpack

floats = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(st.lists(floats, min_size=1, max_size=40))
def test_what_goes_in_as_numbers_comes_back_as_the_same_numbers(numbers):
    for value in (numbers, tuple(numbers), np.array(numbers), np.array(numbers, np.float32), array("f", numbers)):
        vector = checked(value, len(numbers))
        assert vector.dtype == np.float32
        assert vector.tolist() == numbers
        assert checked(pack(vector), len(numbers)).tolist() == numbers
        assert unpack(pack(vector)).tolist() == numbers


@given(st.lists(floats, min_size=2, max_size=8), st.sampled_from([math.nan, math.inf, -math.inf]), st.data())
def test_one_number_that_is_none_spoils_a_vector(numbers, bad, data):
    numbers[data.draw(st.integers(0, len(numbers) - 1))] = bad
    for value in (numbers, np.array(numbers), np.array(numbers, np.float32), pack(numbers)):
        with pytest.raises(InvalidVector, match="NaN or infinity"):
            checked(value, len(numbers))


@pytest.mark.parametrize("numbers", [[1e-40, 0], [1e-30, 1e-30], [0, -1e-45]])
def test_the_smallest_vector_has_a_direction_and_zero_has_none(numbers):
    assert checked(numbers, 2, nonzero=True).tolist() == np.array(numbers, np.float32).tolist()
    assert checked([3e38, 3e38], 2, nonzero=True).tolist() == np.array([3e38, 3e38], np.float32).tolist()
    assert checked([0, 0.0], 2).tolist() == [0, 0]
    with pytest.raises(InvalidVector, match="all zeros"):
        checked([0.0, -0.0], 2, nonzero=True)


DIMENSIONS = 64


def clustered(count, seed=1):
    """Vectors as texts have them: around topics."""
    chance = np.random.default_rng(seed)
    topics = chance.normal(size=(40, DIMENSIONS))
    return (topics[chance.integers(0, 40, count)] + 0.6 * chance.normal(size=(count, DIMENSIONS))).astype(np.float32)


VECTORS = clustered(4_000)
QUERIES = clustered(60, seed=2)


def index(**options):
    return DerivedIndex(name="near", table="docs", key="id", column="vector", dimensions=DIMENSIONS, **options)


@pytest.fixture
def docs(conn):
    prepare(conn)
    conn.execute("create table docs (id integer primary key, kind text, vector blob)")
    conn.executemany("insert into docs values (?, ?, ?)", [(n, "ab"[n % 2], pack(v)) for n, v in enumerate(VECTORS, 1)])
    conn.commit()
    return conn


def search(conn, near, query, k, *, matching=None):
    """The statement as a door makes it, with everything bound by name."""
    pieces = near.candidates(":query", ":wanted", matching and f"select id from docs where {matching}")
    sql = f"""
        select id from docs where id in ({"".join(pieces)}) and {near.present("vector")} and {matching or 1}
        order by {DISTANCES[near.metric]}(vector, :query), id limit :wanted
    """
    return [key for (key,) in conn.execute(sql, {"query": pack(query), "wanted": k})]


def truth(metric, query, k, keys=None):
    matrix = VECTORS.astype(np.float64)
    if metric == "cosine":
        scores = 1 - matrix @ query / np.linalg.norm(matrix, axis=1)
    else:
        scores = np.linalg.norm(matrix - query, axis=1)
    order = np.argsort(scores, kind="stable") + 1
    return [int(key) for key in order if keys is None or key in keys][:k]


@pytest.mark.parametrize("matching", [None, "kind = 'a'", "id % 100 = 0"])
@pytest.mark.parametrize(
    ("metric", "quantize"),
    [("cosine", "float32"), ("l2", "float32"), ("cosine", "int8"), ("l2", "int8"), ("cosine", "bit")],
)
def test_codes_find_the_ten_nearest(docs, metric, quantize, matching):
    """Recall of what the index finds by itself, without the exact scan that so few rows would get."""
    near = index(metric=metric, quantize=quantize, exact_rows=0)
    near.create(docs)
    assert near.sync(docs) == len(VECTORS)
    keys = {None: None, "kind = 'a'": set(range(2, 4001, 2)), "id % 100 = 0": set(range(100, 4001, 100))}[matching]
    hits = 0
    for query in QUERIES:
        found = search(docs, near, query, 10, matching=matching)
        assert len(found) == 10
        hits += len(set(found) & set(truth(metric, query, 10, keys)))
    assert hits / (10 * len(QUERIES)) >= (1.0 if quantize == "float32" else 0.99)


@pytest.mark.parametrize("quantize", ["float32", "int8", "bit"])
def test_syncing_twice_is_syncing_once(docs, quantize):
    near = index(quantize=quantize)
    near.create(docs)
    assert (sync(docs), sync(docs)) == (len(VECTORS), 0)
    docs.execute("update docs set vector = null where id < 11")
    docs.execute("delete from docs where id between 11 and 20")
    docs.execute("update docs set kind = 'c'")
    docs.commit()
    near.create(docs)
    assert (near.sync(docs), near.sync(docs)) == (20, 0)
    assert docs.execute("select count(*), min(id) from near").fetchone() == (len(VECTORS) - 20, 21)
    assert docs.execute("select rows from _vec_derived").fetchone() == (len(VECTORS) - 20,)


def test_a_sync_within_a_transaction_is_part_of_it(docs):
    near = index()
    near.create(docs)
    docs.execute("begin")
    assert near.sync(docs) == len(VECTORS)
    docs.rollback()
    assert docs.execute("select count(*) from near").fetchone() == (0,)
    assert near.sync(docs) == len(VECTORS)


def test_two_indexes_know_each_other_by_the_registry_and_go_one_by_one(docs):
    cosine, other = index(), DerivedIndex(**{**vars(index(metric="l2")), "name": "other"})
    cosine.create(docs)
    other.create(docs)
    assert [(each.name, each.metric, each.table) for each in stored(docs)] == [
        ("near", "cosine", "docs"),
        ("other", "l2", "docs"),
    ]
    assert sync(docs) == 2 * len(VECTORS)
    cosine.drop(docs)
    cosine.drop(docs)
    assert [each.name for each in stored(docs)] == ["other"]
    other.drop(docs)
    assert stored(docs) == []
    names = docs.execute("select name from sqlite_master where name not like 'sqlite_%'").fetchall()
    assert names == [("docs",)]


def test_catching_up_waits_for_nobody_and_leaves_the_patience_as_it_was(docs, path):
    index().create(docs)
    docs.execute("pragma busy_timeout = 60000")
    other = connect(path)
    other.execute("begin immediate")
    catch_up(docs)
    assert docs.execute("select count(*) from near").fetchone() == (0,)
    other.rollback()
    other.close()
    assert docs.execute("pragma busy_timeout").fetchone() == (60_000,)
    docs.execute("begin")
    catch_up(docs)
    assert docs.execute("select count(*) from near").fetchone() == (0,)
    docs.rollback()
    catch_up(docs)
    assert docs.execute("select count(*) from near").fetchone() == (len(VECTORS),)


def test_preparing_writes_nothing_and_leaves_loading_off(path):
    conn = sqlite3.connect(path)
    prepare(conn)
    prepare(conn)
    assert conn.total_changes == 0
    with pytest.raises(sqlite3.OperationalError, match="not authorized"):
        conn.execute("select load_extension('/nowhere')")
    assert conn.execute("select vec_negative_inner_product(?, ?)", [pack([1, 2]), pack([3, 4])]).fetchone() == (-11.0,)
    assert conn.execute("select vec_negative_inner_product(null, ?)", [pack([3, 4])]).fetchone() == (None,)
    conn.close()
