"""Laws of search, against a brute-force oracle in numpy where there is something to compute."""

import json
import threading

import numpy as np
import pytest

from datasette_vec_gemini import (
    Query,
    connect,
    create_index,
    drop,
    embed,
    find_index,
    load_embedder,
    rebuild,
    search,
    similar,
    sqlite3,
    sync,
    verify,
)
from datasette_vec_gemini.errors import (
    DocumentNotFound,
    EmbedderError,
    FingerprintMismatch,
    InvalidFilter,
    InvalidQuery,
)
from datasette_vec_gemini.store import nearest
from datasette_vec_gemini.store.filters import OPERATORS

WORDS = [f"w{n}" for n in range(300)]


def fill(conn):
    """300 rows of ten words each, a tenth of them in category c0, and an index on them."""
    rng = np.random.default_rng(7)
    conn.execute("create table t (id integer primary key, body text, category text, year integer, loose)")
    conn.executemany(
        "insert into t values (?, ?, ?, ?, ?)",
        [(n, " ".join(rng.choice(WORDS, 10)), f"c{n % 10}", 2000 + n % 7, n % 3) for n in range(300)],
    )
    conn.commit()
    index = create_index(conn, "t", table="t", columns=["body"], filter_columns=["category"], embedder="hashing@128")
    sync(conn, index)
    return index


@pytest.fixture
def many(conn):
    return fill(conn)


def oracle(conn, index, text, where="1"):
    """Key -> cosine of every row by plain arithmetic, best first."""
    model = load_embedder(index.embedder)
    rows = conn.execute(f"select id, body from t where {where} and trim(body) <> ''").fetchall()
    cosines = model.embed_documents([body for _, body in rows]) @ model.embed_query(text)
    return dict(sorted(zip([id_ for id_, _ in rows], cosines.tolist(), strict=True), key=lambda item: -item[1]))


def ids(hits):
    return [hit.key[0] for hit in hits]


@pytest.fixture(scope="module", params=["exact", "two-pass", "int8", "float32", "no vec0 table", "no extension"])
def way(request, tmp_path_factory):
    """(connection, index) for each way of the planner; the coded ways need more rows than an exact scan takes."""
    path = tmp_path_factory.mktemp("way") / "way.db"
    conn = connect(path, create=True)
    index = fill(conn)
    if request.param in {"two-pass", "int8", "float32"}:
        extra = range(1_000, 1_001 + nearest.EXACT_MATCHES)
        conn.executemany(
            "insert into t (id, body, category) values (?, ?, 'far')", [(n, f"far{n - 1000} away{n}") for n in extra]
        )
        conn.commit()
        sync(conn, index)
    if request.param in {"int8", "float32"}:
        index, _ = rebuild(conn, index, quantize=request.param)
    if request.param in {"no vec0 table", "no extension"}:
        drop(conn, index, vec0_only=True)
    if request.param == "no extension":
        conn.close()
        conn = sqlite3.connect(path)
    yield conn, index
    conn.close()


def test_every_way_of_the_planner_finds_the_nearest_with_their_exact_cosines(way):
    conn, index = way
    expected = oracle(conn, index, "w1 w2 w3 w4 w5")
    hits = search(conn, index, Query("w1 w2 w3 w4 w5", k=10, mode="semantic"))
    assert [round(hit.score, 4) for hit in hits] == [round(cosine, 4) for cosine in list(expected.values())[:10]]
    assert all(abs(hit.score - expected[hit.key[0]]) < 1e-5 for hit in hits)


@pytest.mark.parametrize("where", ["category = 'c3'", "category = 'c3' and year = 2004", "id = 77", "category = 'far'"])
def test_a_filter_acts_inside_the_search_so_that_k_rows_come_whenever_k_match(way, where):
    conn, index = way
    filters = dict(part.replace("'", "").split(" = ") for part in where.split(" and "))
    expected = oracle(conn, index, "w1 w2 w3 far7", where)
    hits = search(conn, index, Query("w1 w2 w3 far7", k=50, mode="semantic", filters=filters))
    assert len(hits) == min(50, len(expected))
    scores, exact = [
        [round(c, 4) for c in cosines] for cosines in ([h.score for h in hits], list(expected.values())[:50])
    ]
    assert scores[:10] == exact[:10]
    # Beyond the ten neighbours that fix its radius, the two-pass way may miss a few.
    assert sum(score >= exact[-1] for score in scores) >= 0.9 * len(exact)
    assert set(ids(hits)) <= set(expected)


def test_pages_hold_every_hit_once_and_do_not_depend_on_their_size(way):
    conn, index = way
    whole = ids(search(conn, index, Query("w1 w2 w3 w4", k=240)))
    assert len(set(whole)) == 240
    for size in (7, 100):
        pages = [
            key
            for offset in range(0, 240, size)
            for key in ids(search(conn, index, Query("w1 w2 w3 w4", k=min(size, 240 - offset), offset=offset)))
        ]
        assert pages == whole


def test_scores_fall_within_an_answer_in_every_mode(conn, many):
    for mode in ("hybrid", "semantic", "keyword"):
        scores = [hit.score for hit in search(conn, many, Query("w1 w2 w3 w4", k=200, mode=mode))]
        assert scores == sorted(scores, reverse=True)


OPERATIONS = {
    "category": ("c3", "category = 'c3'"),
    "category__exact": ("c3", "category = 'c3'"),
    "category__not": ("c3", "category <> 'c3'"),
    "year__gt": ("2004", "year > 2004"),
    "year__gte": (2004, "year >= 2004"),
    "year__lt": ("2002", "year < 2002"),
    "year__lte": ("2002", "year <= 2002"),
    "category__in": ("c1, c2", "category in ('c1', 'c2')"),
    "year__in": ([2001, 2002], "year in (2001, 2002)"),
    "category__isnull": ("1", "category is null"),
    "year__isnull": (False, "year is not null"),
    "loose": ("2", "loose = 2"),
    "CATEGORY": (None, "category is null"),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operator_means_what_it_means_in_sql(conn, many, name):
    conn.execute("update t set category = null where id < 20")
    conn.commit()
    sync(conn, many)
    value, where = OPERATIONS[name]
    expected = {id_ for (id_,) in conn.execute(f"select id from t where {where}")}
    assert set(ids(search(conn, many, Query("w1", k=300, mode="semantic", filters={name: value})))) == expected
    keyword = search(conn, many, Query(" ".join(WORDS[:150]), k=300, mode="keyword", filters={name: value}))
    assert set(ids(keyword)) <= expected


def test_every_operator_is_covered_by_the_test_above():
    assert {name.partition("__")[2] or "exact" for name in OPERATIONS} == set(OPERATORS)


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ({"colour": "red"}, "'t' has no column 'colour'"),
        ({"year__near": "1"}, "no column 'year__near'"),
        ({"year__isnull": "maybe"}, "write 1 or 0"),
        ({"year__in": "[1, 2"}, "not a JSON array"),
        ({"year__in": []}, "1 to 1,000"),
        ({"year": {"a": 1}}, "type dict"),
        ({"year__gt": None}, "year__isnull=1"),
        ({'x" or 1=1 --': "1"}, "no column"),
    ],
)
def test_a_bad_filter_is_refused_with_the_remedy(conn, many, filters, message):
    with pytest.raises(InvalidFilter, match=message.replace("(", r"\(")):
        search(conn, many, Query("w1", filters=filters))


def test_a_filter_sees_the_row_as_it_is_now(conn, many):
    conn.execute("update t set category = 'moved' where id = 5")
    conn.commit()
    assert ids(search(conn, many, Query("w1", filters={"category": "moved"}))) == [5]


@pytest.mark.parametrize(
    "text",
    [
        '"',
        '"" "',
        "NEAR(",
        "NEAR(a b, 3)",
        "*",
        "a*",
        "a AND",
        "NOT",
        "^a",
        "col:a",
        "{a b}: c",
        "👩‍🚀",
        "-",
        "'; drop table t",
        "(" * 500,
        "w1 " * 3_000,
        "\uff37\uff29\uff24\uff25",
        "\u202e",
        "é",
        "a.b.c",
        "SELECT * FROM t",
        "%",
        "\\",
        "x" * 10_000,
    ],
)
@pytest.mark.parametrize("mode", ["hybrid", "keyword", "semantic"])
def test_any_text_can_be_asked(conn, many, text, mode):
    hits = search(conn, many, Query(text, mode=mode))
    assert len(hits) == 10 or mode == "keyword"


def test_a_quoted_phrase_is_looked_for_as_one(conn, many):
    conn.execute("update t set body = 'blue green red' where id = 1")
    conn.execute("update t set body = 'green blue red' where id = 2")
    conn.commit()
    sync(conn, many)
    assert ids(search(conn, many, Query('"green blue"', mode="keyword"))) == [2]


def test_why_says_what_each_side_found(conn, many):
    conn.execute("update t set body = 'unique pair' where id = 1")
    conn.commit()
    sync(conn, many)
    hit = search(conn, many, Query("unique pair", k=1))[0]
    assert (hit.key, hit.score, hit.why.fused) == ((1,), 1.0, 1.0)
    assert (hit.why.keyword.rank, hit.why.semantic.rank, round(hit.why.semantic.cosine, 5)) == (1, 1, 1.0)
    assert hit.why.keyword.bm25 > 0
    (keyword,) = search(conn, many, Query("unique pair", mode="keyword"))
    assert (keyword.score, keyword.why.semantic, keyword.why.fused) == (keyword.why.keyword.bm25, None, None)
    semantic = search(conn, many, Query("unique pair", k=1, mode="semantic"))[0]
    assert (semantic.score, semantic.why.keyword, semantic.why.fused) == (semantic.why.semantic.cosine, None, None)


def test_hybrid_keeps_what_only_one_side_finds(conn, many):
    hits = search(conn, many, Query("w7", k=300))
    with_word = {id_ for (id_,) in conn.execute("select id from t where ' ' || body || ' ' like '% w7 %'")}
    assert {hit.key[0] for hit in hits if hit.why.keyword} == with_word
    assert all(hit.why.semantic for hit in hits)
    assert len(hits) == 300


def test_a_row_whose_vector_is_pending_is_judged_by_its_words(conn, many, recorder):
    def no_quota():
        raise EmbedderError("no quota")

    conn.execute("insert into t (id, body) values (900, 'w1 w2 w3 peculiar')")
    conn.commit()
    recorder = type(recorder)(name="hashing@128")
    recorder.meanwhile = no_quota
    with pytest.raises(EmbedderError):
        sync(conn, many, embedder=recorder)
    hit = search(conn, many, Query("w1 w2 w3 peculiar", k=1))[0]
    assert (hit.key, hit.why.semantic, hit.score) == ((900,), None, 1.0)


def test_a_model_that_does_not_speak_the_language_does_not_drag_keywords_down(conn, recorder):
    recorder.speaks = lambda text: False
    conn.execute("create table t (id integer primary key, body text)")
    conn.executemany("insert into t (body) values (?)", [("мама мыла раму",), ("папа мыл пол",), ("кот",)])
    conn.commit()
    index = create_index(conn, "t", table="t", columns=["body"], embedder=recorder)
    sync(conn, index, embedder=recorder)
    hits = search(conn, index, Query("раму"), embedder=recorder)
    assert [(hit.key, hit.why.semantic) for hit in hits] == [((1,), None)]
    assert len(search(conn, index, Query("раму", mode="semantic"), embedder=recorder)) == 3


def test_similar_gives_the_neighbours_of_a_row_without_itself_and_without_a_model(conn, many):
    expected = oracle(conn, many, conn.execute("select body from t where id = 9").fetchone()[0])
    hits = similar(conn, many, [9], k=5)
    assert [round(hit.score, 4) for hit in hits] == [round(c, 4) for key, c in expected.items() if key != 9][:5]
    assert 9 not in ids(similar(conn, many, ["9"], k=299))
    assert (
        ids(similar(conn, many, [9], k=5, filters={"category": "c1"}))
        == [key for key in expected if key != 9 and key % 10 == 1][:5]
    )


def test_similar_says_when_a_row_is_missing_or_pending(conn, many):
    with pytest.raises(DocumentNotFound, match="no row with the key 12345"):
        similar(conn, many, [12345])
    with pytest.raises(DocumentNotFound, match="no row with the key 1,2"):
        similar(conn, many, [1, 2])
    conn.execute("insert into t (id, body) values (900, 'w1')")
    conn.commit()
    with pytest.raises(DocumentNotFound, match="no vector"):
        similar(conn, many, [900])
    with pytest.raises(InvalidQuery):
        similar(conn, many, [9], k=0)


def test_a_vector_can_be_asked_instead_of_a_text(conn, many):
    query = embed(many, Query("w1 w2"))
    assert query.vector is not None
    assert ids(search(conn, many, query)) == ids(search(conn, many, Query("w1 w2")))
    assert embed(many, Query("w1", mode="keyword")).vector is None


def test_another_model_is_refused_but_keywords_are_answered(conn, many):
    other = load_embedder("hashing@64")
    with pytest.raises(FingerprintMismatch, match="datasette vec rebuild DB t --embedder hashing@64"):
        search(conn, many, Query("w1"), embedder=other)
    assert search(conn, many, Query("w1", mode="keyword"), embedder=other)


def test_a_rebuild_with_another_model_answers_by_the_old_one_until_it_is_complete(conn, many, recorder):
    before = ids(search(conn, many, Query("w1 w2 w3")))
    seen = []

    def meanwhile():
        seen.append(ids(search(conn, find_index(conn, "t"), Query("w1 w2 w3"))))
        conn.execute("update t set body = 'zebra' where id = 3")
        conn.commit()

    recorder.batch_size, recorder.meanwhile = 100, meanwhile
    rebuilt, report = rebuild(conn, many, embedder=recorder)
    assert report.embedded >= 300
    assert seen == [[key for key in before if key != 3]] * len(seen) or seen[0] == before
    assert (rebuilt.generation, rebuilt.fingerprint) == (2, recorder.fingerprint)
    sync(conn, rebuilt)
    assert verify(conn, rebuilt) == []
    assert ids(search(conn, rebuilt, Query("zebra", k=1))) == [3]
    names = [name for (name,) in conn.execute("select name from sqlite_master")]
    assert not [name for name in names if "_vec_t_1" in name]


def test_an_interrupted_rebuild_goes_on_and_pays_nothing_twice(conn, many, recorder):
    class Stop(Exception):
        pass

    def stop():
        if len(recorder.texts) > 100:
            raise Stop

    recorder.batch_size, recorder.meanwhile = 50, stop
    with pytest.raises(Stop):
        rebuild(conn, many, embedder=recorder)
    assert find_index(conn, "t").fingerprint == many.fingerprint
    kept = sum(recorder.batches[:-1])
    assert 0 < kept < 300
    recorder.meanwhile, recorder.texts = None, []
    rebuilt, _ = rebuild(conn, many, embedder=recorder)
    assert len(recorder.texts) == 300 - kept
    assert verify(conn, rebuilt) == []


@pytest.mark.parametrize("goes_on", [True, False])
def test_an_interrupted_rebuild_goes_on_without_arguments_and_is_given_up_for_the_active_model(conn, many, goes_on):
    def stop(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rebuild(conn, many, embedder="hashing@64", on_progress=stop)
    rebuilt, _ = rebuild(conn, many) if goes_on else rebuild(conn, many, embedder="hashing@128")
    assert (rebuilt.embedder, rebuilt.generation) == (("hashing@64", 2) if goes_on else ("hashing@128", 1))
    generations = conn.execute("select generation, state from _vec_indexes").fetchall()
    assert generations == [(rebuilt.generation, "active")]
    assert verify(conn, rebuilt) == []
    assert not conn.execute(
        f"select name from sqlite_master where name like '\\_vec\\_t\\_{3 - rebuilt.generation}%' escape '\\'"
    ).fetchall()


@pytest.mark.parametrize("quantize", ["int8", "float32"])
def test_a_change_of_codes_copies_every_vector(conn, many, recorder, quantize):
    rebuilt, report = rebuild(conn, many, quantize=quantize)
    assert (report.embedded, report.reused, rebuilt.quantize) == (0, 300, quantize)
    assert verify(conn, rebuilt) == []


def test_dropping_leaves_the_table_and_nothing_of_ours_but_the_registry(conn, many):
    rows = conn.execute("select * from t").fetchall()
    drop(conn, many)
    assert conn.execute("select * from t").fetchall() == rows
    left = {
        name for (name,) in conn.execute("select name from sqlite_master where type in ('table', 'trigger', 'view')")
    }
    assert left == {"t", "_vec_indexes", "_vec_usage", "_vec__jobs", "_sqlite_migrations", "sqlite_sequence"}


def test_semantic_search_in_sql_gives_the_same_hits(conn, many):
    expected = [hit.to_dict() for hit in search(conn, many, Query("w1 w2", k=3, filters={"category": "c1"}, offset=1))]
    (answer,) = conn.execute(
        "select semantic_search('t', 'w1 w2', 3, 'hybrid', ?, 1)", [json.dumps({"category": "c1"})]
    ).fetchone()
    assert json.loads(answer) == expected
    joined = conn.execute(
        "select t.id from json_each(semantic_search('t', 'w1 w2', 3)) as hit join t on t.id = hit.value->>'$.key[0]'"
    ).fetchall()
    assert len(joined) == 3
    assert conn.execute("select semantic_search('t', null)").fetchone() == (None,)


def test_the_view_gives_people_who_write_sql_the_vectors_of_the_active_generation(conn, many):
    rows = conn.execute(
        """
        select t.id, vec_distance_cosine(v.embedding, (select embedding from _vec_t where id = 9)) as distance
        from t join _vec_t as v using (id) order by distance limit 3
        """
    ).fetchall()
    assert rows[0][0] == 9
    assert [round(1 - distance, 4) for _, distance in rows[1:]] == [
        round(h.score, 4) for h in similar(conn, many, [9], k=2)
    ]


def test_a_read_only_connection_searches(conn, many, path):
    other = connect(path, read_only=True)
    assert ids(search(other, many, Query("w1 w2"))) == ids(search(conn, many, Query("w1 w2")))
    other.close()


def test_searches_and_rebuilds_do_not_disturb_each_other(conn, many, path):
    expected = ids(search(conn, many, Query("w1 w2 w3")))
    stop, failures, answers = threading.Event(), [], []

    def ask():
        reader = connect(path)
        while not stop.is_set():
            try:
                answers.append(ids(search(reader, find_index(reader, "t"), Query("w1 w2 w3"))))
            except Exception as error:  # noqa: BLE001 - every failure is what is looked for
                failures.append(error)
        reader.close()

    asking = threading.Thread(target=ask)
    asking.start()
    index = many
    for quantize in ("int8", "bit", "float32", "bit", "int8", "bit"):
        index, _ = rebuild(conn, index, quantize=quantize)
    stop.set()
    asking.join()
    assert failures == []
    assert len(answers) > 1
    assert all(answer == expected for answer in answers)
