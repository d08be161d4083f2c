"""What comes with a page of hits: facets, near-duplicates, and how strong each hit is."""

from dataclasses import replace

import pytest

from datasette_vec_gemini import Query, create_index, rebuild, search, sync
from datasette_vec_gemini.browsing import FACET_VALUES, Facet, browse, browse_similar, relaxed, strength
from datasette_vec_gemini.domain import Chunk, Hit, KeywordRank, SemanticRank, Why
from datasette_vec_gemini.errors import ColumnNotFound, DocumentNotFound, FingerprintMismatch, InvalidQuery
from datasette_vec_gemini.searching import embed, similar
from datasette_vec_gemini.store import counting, reading


@pytest.fixture
def pets(conn):
    conn.execute("create table pets (id integer primary key, body text, kind, year integer)")
    colours, animals = ("red", "blue", "green"), ("fish", "bird", "cat", "dog")
    pairs = [(colour, animal) for colour in colours for animal in animals]
    conn.executemany(
        "insert into pets (body, kind, year) values (?, ?, ?)",
        [(f"a {c} {a} number {n}", None if a == "dog" else a, 1990 + n % 2) for n, (c, a) in enumerate(pairs)],
    )
    conn.commit()
    made = create_index(conn, "pets", table="pets", columns=["body"], embedder="hashing@64")
    sync(conn, made)
    return made


@pytest.mark.parametrize("mode", ["hybrid", "semantic", "keyword"])
@pytest.mark.parametrize(("k", "offset"), [(3, 0), (3, 3), (2, 9), (5, 10)])
def test_a_page_is_that_of_search(conn, pets, mode, k, offset) -> None:
    query = embed(pets, Query("a red fish", k=k, offset=offset, mode=mode))
    assert list(browse(conn, pets, query, facets=["kind"]).hits) == search(conn, pets, query)


@pytest.mark.parametrize("offset", [0, 4, 9])
def test_a_page_of_similar_rows_is_that_of_similar(conn, pets, offset) -> None:
    found = browse_similar(conn, pets, (1,), k=4, offset=offset, filters={"year": 1990}, facets=["kind"])
    assert list(found.hits) == similar(conn, pets, (1,), k=4, offset=offset, filters={"year": 1990})


@pytest.mark.parametrize("keep_old", [False, True])
def test_an_index_that_was_looked_up_before_a_rebuild_is_browsed_by_the_generation_in_use(conn, pets, keep_old) -> None:
    query = embed(pets, Query("red fish"))
    before, near = browse(conn, pets, query), browse_similar(conn, pets, [3])
    rebuild(conn, pets, quantize="int8", keep_old=keep_old)
    assert browse(conn, pets, query).hits == before.hits
    assert browse_similar(conn, pets, [3]).hits == near.hits
    rebuild(conn, pets, embedder="hashing@128", keep_old=keep_old)
    with pytest.raises(FingerprintMismatch, match="ask again"):
        browse(conn, pets, query)


def test_the_rows_similar_to_none_are_not_found(conn, pets) -> None:
    with pytest.raises(DocumentNotFound):
        browse_similar(conn, pets, (99,))


def test_facets_count_values_among_the_hits_whatever_page_is_shown(conn, pets) -> None:
    counts = ((None, 3), ("bird", 3), ("cat", 3), ("fish", 3))
    expected = (
        Facet(column="kind", among=12, counts=counts, is_cut=False, is_typed=False),
        Facet(column="year", among=12, counts=((1990, 6), (1991, 6)), is_cut=False),
    )
    for offset in (0, 5):
        query = embed(pets, Query("a number", k=2, offset=offset))
        found = {facet.column: facet for facet in browse(conn, pets, query, facets=["KIND", "year", "kind"]).facets}
        assert found == {
            "kind": replace(expected[0], counts=(*counts[1:], counts[0])),
            "year": expected[1],
        } or found == {facet.column: facet for facet in expected}


def test_facets_tell_types_apart_and_stop_at_twenty_values(conn) -> None:
    conn.execute("create table t (id integer primary key, body text, v)")
    conn.executemany("insert into t (body, v) values ('word', ?)", [(1,), (1.5,), ("1",), (1,), (b"\0",), ("",)])
    conn.executemany("insert into t (body, v) values ('word', ?)", [(f"value {n}",) for n in range(30)])
    conn.commit()
    index = create_index(conn, "t", table="t", columns=["body"], embedder="hashing@64")
    sync(conn, index)
    (facet,) = browse(conn, index, Query("word", mode="keyword"), facets=["v"]).facets
    assert (facet.among, len(facet.counts), facet.is_cut) == (36, FACET_VALUES, True)
    assert facet.counts[0] == (1, 2)
    assert {(type(value), value) for value, _ in facet.counts} >= {(str, ""), (str, "1"), (float, 1.5)}


def test_a_facet_needs_a_column_and_there_is_a_limit(conn, pets) -> None:
    query = Query("red", mode="keyword")
    with pytest.raises(ColumnNotFound, match="has no column 'colour'; it has id, body, kind, year"):
        browse(conn, pets, query, facets=["colour"])
    with pytest.raises(InvalidQuery, match="11 facets; 10 can be counted"):
        browse(conn, pets, query, facets=["kind"] * 11)


def test_chunks_that_say_the_same_are_duplicates_of_the_best_of_them(conn) -> None:
    conn.execute("create table t (id integer primary key, body text)")
    conn.executemany("insert into t (body) values (?)", [("red fish",), ("fish, red",), ("red fish",), ("red bird",)])
    conn.commit()
    index = create_index(conn, "t", table="t", columns=["body"], embedder="hashing@64")
    sync(conn, index)
    found = browse(conn, index, embed(index, Query("red fish")))
    (first, *_) = [hit.key for hit in found.hits]
    assert first == (1,)
    assert found.duplicate_of == {(2,): (1,), (3,): (1,)}  # the embedder knows no order of words


def test_duplicates_are_told_by_their_text_where_vectors_are_pending(conn) -> None:
    conn.execute("create table t (id integer primary key, body text)")
    conn.executemany("insert into t (body) values (?)", [("red fish",), ("red fish",)])
    conn.commit()
    index = create_index(conn, "t", table="t", columns=["body"], embedder="hashing@64")
    sync(conn, index)
    conn.execute("update _vec_t_1_chunks set embedding = null")
    conn.commit()
    assert browse(conn, index, Query("fish", mode="keyword")).duplicate_of == {(2,): (1,)}


def hit(*, cosine: float | None = None, words: str | None = None, score: float = 1.0) -> Hit:
    return Hit(
        key=(1,),
        score=score,
        title="",
        snippet="",
        chunk=Chunk(position=0, start=0, end=1, text=words or "text"),
        row={},
        why=Why(
            keyword=None if words is None else KeywordRank(rank=1, bm25=1.0),
            semantic=None if cosine is None else SemanticRank(rank=1, cosine=cosine),
        ),
    )


@pytest.mark.parametrize(
    ("found", "usual", "word", "by_meaning"),
    [
        (hit(cosine=0.5), 0.0, "strong", True),
        (hit(cosine=0.5), 0.2, "fair", True),
        (hit(cosine=0.5), 0.45, "weak", False),
        (hit(cosine=0.9), 0.8, "strong", True),
        (hit(cosine=-0.1), 0.0, "weak", False),
        (hit(words="a red fish"), 0.0, "strong", False),
        (hit(words="a red bird"), 0.0, "fair", False),
        (hit(words="fishes"), 0.0, "fair", False),
        (hit(words="a bird"), 0.0, "weak", False),
        (hit(words="a red bird", cosine=0.5), 0.0, "strong", True),
        (hit(words="a red fish", cosine=0.1), 0.0, "strong", False),
        (hit(words="a red fish", score=0.3), 0.0, "fair", False),
        (hit(cosine=0.1, score=0.3), 0.0, "weak", False),
    ],
)
def test_a_hit_is_strong_by_itself_and_beside_the_best(found, usual, word, by_meaning) -> None:
    said = strength(found, hit(score=1.0), words=["red", "fish"], usual=usual)
    assert (said.share, said.word, said.by_meaning) == (found.score, word, by_meaning)


@pytest.mark.parametrize("score", [0.0, -0.2])
def test_where_even_the_best_hit_has_no_score_all_are_equal(score) -> None:
    assert strength(hit(score=score, cosine=score), hit(score=score)).share == 1.0


def test_a_query_without_an_answer_is_asked_by_meaning_then_without_filters() -> None:
    query = Query("x", mode="keyword", filters={"a": 1}, offset=0)
    by_meaning = relaxed(query)
    assert by_meaning == Query("x", mode="semantic", filters={"a": 1})
    assert by_meaning
    unfiltered = relaxed(by_meaning)
    assert unfiltered == Query("x", mode="semantic")
    assert unfiltered
    assert relaxed(unfiltered) is None


def test_coverage_agrees_with_the_counts_of_rows_that_have_text(conn, docs) -> None:
    for step in (
        None,
        lambda: sync(conn, docs),
        lambda: conn.execute("insert into docs (title) values ('new')"),
        lambda: conn.execute("update docs set title = 'changed' where id = 1"),
        lambda: sync(conn, docs),
        lambda: conn.execute("update _vec_docs_1_chunks set embedding = null, error = 'refused' where k0 = 2"),
        lambda: conn.execute("update docs set title = 'changed' where id = 2"),
    ):
        if step:
            step()
            conn.commit()
            found, counts = counting.coverage(conn, docs), counting.counts(conn, docs)
            assert (found.indexed, found.pending, found.failed) == (counts.indexed, counts.pending, counts.failed)
            assert found.documents == found.indexed + found.pending + found.failed


def test_a_sample_of_vectors_is_spread_over_the_index(conn, pets) -> None:
    conn.execute("delete from pets where id between 3 and 9")
    conn.commit()
    sync(conn, pets)
    ids = [id_ for id_, _ in reading.sampled_embeddings(conn, pets, 100)]
    assert ids == [1, 2, 10, 11, 12]
    few = [id_ for id_, _ in reading.sampled_embeddings(conn, pets, 2)]
    assert few == [1, 12]
    assert reading.sampled_embeddings(conn, pets, 1) != []
