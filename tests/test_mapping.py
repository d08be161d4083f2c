"""Laws of the map: what it shows is a principal component analysis of what is stored, kept up to date for little."""

import json
import tracemalloc
from contextlib import closing

import numpy as np
import pytest

from datasette_vec_gemini import connect, create_index, drop, find_index, rebuild, sync, verify
from datasette_vec_gemini.errors import IndexNotFound, InvalidFilter
from datasette_vec_gemini.mapping import project, refresh, sample
from datasette_vec_gemini.mapping.components import principal_axes
from datasette_vec_gemini.mapping.plotting import columns, map_points
from datasette_vec_gemini.searching import document_vector
from datasette_vec_gemini.store import picture

TOPICS = ["parse dates and times", "read comma separated files", "open a socket and wait", "sort numbers in lists"]


def fill(conn, count, *, start=0):
    conn.executemany(
        "insert into docs (id, title, body, category, year) values (?, ?, ?, ?, ?)",
        [
            (n, f"Title {n}", f"{TOPICS[n % 4]} word{n % 17} word{n % 5}", TOPICS[n % 4].split()[0], 1990 + n % 20)
            for n in range(start, start + count)
        ],
    )
    conn.commit()


@pytest.fixture
def index(conn):
    """400 documents of four topics, synced."""
    conn.execute("create table docs (id integer primary key, title text, body text, category text, year integer)")
    fill(conn, 400)
    made = create_index(
        conn, "docs", table="docs", columns=["title", "body"], embedder="hashing@64", filter_columns=["category"]
    )
    sync(conn, made)
    return made


def stored(conn, index):
    """Key -> place, of every point."""
    names = ", ".join(f"k{n}" for n in range(len(index.key)))
    rows = conn.execute(f'select x, y, {names} from "{index.object("map")}" where turn is null')
    return {tuple(key): (x, y) for x, y, *key in rows}


def vectors(conn, index, keys):
    return np.stack([document_vector(conn, index, key) for key in keys])


def oracle(matrix):
    """Coordinates, up to their signs, and shares of variance, by numpy's decomposition."""
    centred = matrix - matrix.mean(axis=0)
    left, strengths, _ = np.linalg.svd(centred.astype(np.float64), full_matrices=False)
    return left[:, :2] * strengths[:2], strengths[:2] ** 2 / (strengths**2).sum()


def correlation(one, other):
    return abs(np.corrcoef(one, other)[0, 1])


def test_the_map_is_the_principal_component_analysis_of_the_documents_vectors(conn, index):
    places = stored(conn, index)
    assert set(places) == {(n,) for n in range(400)}
    expected, variance = oracle(vectors(conn, index, list(places)))
    np.testing.assert_allclose(np.abs(list(places.values())), np.abs(expected), atol=2e-4)
    axes = picture.axes(conn, index)
    np.testing.assert_allclose(axes.variance, variance, atol=1e-4)
    np.testing.assert_allclose(axes.directions @ axes.directions.T, np.eye(2), atol=1e-5)
    assert (axes.documents, axes.fitted, axes.projected, axes.share) == (400, 400, 0, 1.0)


@pytest.mark.parametrize("shape", [(1, 64), (2, 64), (3, 64), (500, 8), (300, 768), (60, 3072)])
def test_axes_are_those_of_a_full_decomposition(shape):
    random = np.random.default_rng(1)
    matrix = random.standard_normal(shape).astype(np.float32) / (1 + np.arange(shape[1], dtype=np.float32))
    matrix -= matrix.mean(axis=0)
    axes = principal_axes(matrix)
    assert axes.shape == (2, shape[1])
    assert np.isfinite(axes).all()
    seen = np.square(matrix @ axes.T).sum(axis=0)
    best = np.linalg.svd(matrix, compute_uv=False)[:2] ** 2
    np.testing.assert_allclose(seen[: len(best)], best, rtol=1e-3, atol=1e-6)


def test_a_question_stands_where_a_document_of_the_same_vector_does(conn, index):
    axes = picture.axes(conn, index)
    for key, place in list(stored(conn, index).items())[:5]:
        assert project(axes, document_vector(conn, index, key)) == pytest.approx(place, abs=1e-5)


def test_a_document_of_several_chunks_is_one_point_at_their_mean(conn, index):
    conn.execute("update docs set body = ? where id = 7", [" ".join(f"word{n}" for n in range(900))])
    conn.commit()
    sync(conn, index)
    assert conn.execute("select count(*) from _vec_docs where id = 7").fetchone()[0] > 1
    expected = project(picture.axes(conn, index), document_vector(conn, index, (7,)))
    assert stored(conn, index)[(7,)] == pytest.approx(expected, abs=1e-5)


def test_the_same_rows_make_the_same_map(conn, index, tmp_path):
    with closing(connect(tmp_path / "other.db", create=True)) as other:
        other.execute("create table docs (id integer primary key, title text, body text, category text, year integer)")
        fill(other, 400)
        sync(other, create_index(other, "docs", table="docs", columns=["title", "body"], embedder="hashing@64"))
        assert stored(other, index) == stored(conn, index)


def test_a_sync_that_changes_nothing_writes_nothing(conn, index, contents):
    before = contents()
    sync(conn, index)
    refresh(conn, index)
    assert contents() == before


def test_only_what_changed_moves(conn, index):
    before, axes = stored(conn, index), picture.axes(conn, index)
    conn.executescript(
        """
        update docs set body = 'sort numbers in lists' where id = 4;
        update docs set category = 'x' where id = 5;
        delete from docs where id = 6;
        update docs set id = 1000 where id = 8;
        insert into docs values (2000, 'New', 'open a socket', 'open', 1);
        """
    )
    sync(conn, index)
    after = stored(conn, index)
    assert set(after) == set(before) - {(6,), (8,)} | {(1000,), (2000,)}
    assert {key for key in before.keys() & after.keys() if before[key] != after[key]} == {(4,)}
    assert after[(1000,)] == pytest.approx(before[(8,)], abs=1e-6)
    now = picture.axes(conn, index)
    np.testing.assert_array_equal(now.directions, axes.directions)
    assert (now.documents, now.fitted, now.projected) == (400, 400, 5)
    assert picture.waiting(conn, index) == (0, [])


def test_a_fifth_of_new_documents_makes_new_axes_that_do_not_flip(conn, index):
    before = stored(conn, index)
    fill(conn, 79, start=400)
    sync(conn, index)
    assert picture.axes(conn, index).fitted == 400
    fill(conn, 1, start=500)
    sync(conn, index)
    axes, after = picture.axes(conn, index), stored(conn, index)
    assert (axes.fitted, axes.projected) == (480, 0)
    for place in (0, 1):
        one, other = ([found[key][place] for key in before] for found in (before, after))
        assert np.corrcoef(one, other)[0, 1] > 0.9


@pytest.mark.parametrize("turned", [[[-1, 0], [0, 1]], [[0, 1], [1, 0]], [[0.6, 0.8], [-0.8, 0.6]]])
def test_new_axes_are_turned_to_fit_the_ones_before(conn, index, turned):
    before = np.array(list(stored(conn, index).values())) @ np.array(turned).T
    directions = np.array(turned, np.float32) @ picture.axes(conn, index).directions
    conn.execute("update _vec_docs_1_axes set directions = ?, fitted = 0", [directions.astype("<f4").tobytes()])
    conn.execute("update docs set body = body || '.' where id = 1")
    conn.commit()
    sync(conn, index)
    assert picture.axes(conn, index).fitted == 400
    np.testing.assert_allclose(list(stored(conn, index).values()), before, atol=0.01)


def test_placing_new_documents_comes_close_to_drawing_all_anew(conn, index):
    fill(conn, 60, start=400)
    sync(conn, index)
    placed = stored(conn, index)
    expected, _ = oracle(vectors(conn, index, list(placed)))
    found = np.array(list(placed.values()))
    assert min(correlation(found[:, axis], expected[:, axis]) for axis in (0, 1)) > 0.95


def test_of_many_documents_there_is_a_sample_that_grows_and_is_halved(conn, index):
    conn.execute("delete from _vec_docs_1_axes")
    refresh(conn, index, most=150)
    axes, first = picture.axes(conn, index), stored(conn, index)
    assert (axes.documents, axes.share) == (400, 0.25)
    assert set(first) == {(n,) for n in range(400) if sample((n,)) < 0.25}
    conn.execute("update docs set body = body || ' more' where id < 20")
    fill(conn, 20, start=400)
    index_of_text = [key for key in ((n,) for n in range(420)) if sample(key) < 0.25]
    sync(conn, index)  # with the usual limit: the share stays
    assert sorted(stored(conn, index)) == index_of_text
    assert picture.axes(conn, index).documents == 420
    fill(conn, 40, start=420)
    sync(conn, index)
    conn.execute("update _vec_docs_1_chunks set embedding = embedding where k0 < 3")
    conn.commit()
    refresh(conn, index, most=len(index_of_text) - 40)
    assert picture.axes(conn, index).share < 0.25
    assert len(stored(conn, index)) <= len(index_of_text) - 40


def test_memory_does_not_grow_with_the_documents(conn, index):
    """The axes may be computed from fewer documents than are drawn."""
    random, count = np.random.default_rng(2), 8_000
    blobs = [(n, random.standard_normal(64).astype("<f4").tobytes()) for n in range(1_000, 1_000 + count)]
    conn.executemany(
        """
        insert into _vec_docs_1_chunks (k0, position, start, "end", text, digest, embedding)
        values (?, 0, 0, 1, 'x', x'00', ?)
        """,
        blobs,
    )
    conn.commit()
    del blobs
    tracemalloc.start()
    try:
        refresh(conn, index, numbers=64 * 500)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(stored(conn, index)) == count + 400
    # A point takes about 400 bytes of Python; the vectors would take 2 MB, and their products as much again.
    assert peak < 500 * 64 * 4 * 8 + (count + 400) * 450


def test_pending_and_failed_chunks_are_not_on_the_map(conn, docs, recorder):
    recorder.refused = {"Zones\n\nconvert a time zone"}
    sync(conn, docs, embedder=recorder)
    assert set(stored(conn, docs)) == {(1,), (3,), (4,)}
    recorder.refused = set()
    sync(conn, docs, embedder=recorder)
    assert set(stored(conn, docs)) == {(1,), (2,), (3,), (4,)}


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_hardly_any_documents_make_hardly_any_map(conn, rows):
    conn.execute("create table docs (id integer primary key, body text)")
    conn.executemany("insert into docs (body) values (?)", [(f"word{n}",) for n in range(rows)])
    conn.commit()
    index = create_index(conn, "docs", table="docs", columns=["body"], embedder="hashing@64")
    sync(conn, index)
    assert len(stored(conn, index)) == rows
    assert np.isfinite(list(stored(conn, index).values())).all()
    assert (picture.axes(conn, index) is None) == (rows == 0)
    conn.execute("delete from docs")
    conn.commit()
    sync(conn, index)
    assert stored(conn, index) == {}
    conn.execute("insert into docs (body) values ('again')")
    conn.commit()
    sync(conn, index)
    assert len(stored(conn, index)) == 1


def test_damaged_vectors_have_no_place_until_they_are_mended(conn, index):
    nan = np.full(64, np.nan, "<f4").tobytes()
    conn.executemany("update _vec_docs_1_chunks set embedding = ? where k0 = ?", [(nan, 3), (b"short", 4)])
    conn.commit()
    refresh(conn, index)
    assert {(3,), (4,)}.isdisjoint(stored(conn, index))
    verify(conn, index, repair=True)
    assert {(3,), (4,)} <= set(stored(conn, index))


def names(conn):
    return {
        name for (name,) in conn.execute("select name from sqlite_master where name like '%map%' or name like '%axes%'")
    }


def test_dropping_leaves_nothing_of_the_map(conn, index):
    assert {"_vec_docs_1_map", "_vec_docs_1_axes"} <= names(conn)
    drop(conn, index)
    assert names(conn) == set()


@pytest.mark.parametrize("keep_old", [False, True])
def test_a_rebuild_has_a_map_of_its_own_and_the_old_one_goes(conn, index, keep_old):
    rebuilt, _ = rebuild(conn, index, embedder="hashing@128", keep_old=keep_old)
    assert all(name.startswith("_vec_docs_2_") for name in names(conn))
    assert picture.axes(conn, rebuilt).directions.shape == (2, 128)
    assert set(stored(conn, rebuilt)) == {(n,) for n in range(400)}
    drop(conn, find_index(conn, "docs"))
    assert names(conn) == set()


def test_an_index_from_before_there_were_maps_gets_one_with_its_next_sync(conn, index):
    before = stored(conn, index)
    for kind in ("ins", "upd", "del"):
        conn.execute(f"drop trigger _vec_docs_1_map_{kind}")
    conn.executescript("drop table _vec_docs_1_map; drop table _vec_docs_1_axes")
    assert picture.axes(conn, index) is None
    sync(conn, index)
    assert stored(conn, index) == before
    conn.execute("delete from docs where id = 1")
    conn.commit()
    sync(conn, index)
    assert set(stored(conn, index)) == set(before) - {(1,)}


@pytest.mark.parametrize("lost", [["map"], ["axes"], ["map", "axes"]])
@pytest.mark.parametrize("mend", [sync, lambda c, i: verify(c, i, repair=True)], ids=["sync", "repair"])
def test_tables_of_the_map_that_were_dropped_by_hand_are_made_anew(conn, index, lost, mend):
    for kind in lost:
        conn.execute(f"drop table _vec_docs_1_{kind}")
    conn.execute("update docs set body = 'sort numbers' where id = 4")
    conn.commit()
    assert [problem.check for problem in verify(conn, index)] == ["map"]
    mend(conn, index)
    assert set(stored(conn, index)) == {(n,) for n in range(400)}
    assert verify(conn, index) == []


def test_a_map_that_cannot_be_drawn_is_a_note_of_a_sync_that_has_embedded(conn, index):
    conn.execute("create trigger full before update on _vec_docs_1_axes begin select raise(abort, 'no place'); end")
    conn.execute("update docs set body = 'sort numbers' where id = 4")
    conn.commit()
    report = sync(conn, index)
    assert (report.documents, report.embedded) == (1, 1)
    assert report.notes == ("the map was not brought up to date, the next sync tries again: no place",)
    conn.execute("drop trigger full")
    assert sync(conn, index).notes == ()
    assert picture.waiting(conn, index) == (0, [])


@pytest.mark.parametrize("name", ["docs_1_map", "docs_1_axes", "docs_1_map_waiting"])
@pytest.mark.parametrize("had_triggers", [True, False])
def test_an_index_whose_view_has_the_name_of_our_table_leaves_us_without_a_map(conn, index, name, had_triggers):
    if not had_triggers:
        for kind in ("ins", "upd", "del"):
            conn.execute(f"drop trigger _vec_docs_1_map_{kind}")
    conn.executescript("drop table _vec_docs_1_map; drop table _vec_docs_1_axes")
    other = create_index(conn, name, table="docs", columns=["title"], embedder="hashing@64")
    conn.execute("update docs set body = 'sort numbers' where id = 4")
    conn.commit()
    report = sync(conn, index)
    assert (report.documents, report.embedded, report.notes) == (1, 1, ())
    assert picture.is_taken(conn, index)
    assert picture.axes(conn, index) is None
    assert verify(conn, index) == []
    sync(conn, other)
    assert picture.axes(conn, other).documents == 400
    drop(conn, index)
    assert conn.execute(f"select count(*) from _vec_{name}").fetchone() == (400,)


def test_a_small_table_keeps_its_axes_until_it_has_doubled_or_twenty_documents_changed(conn):
    conn.execute("create table docs (id integer primary key, title text, body text, category text, year integer)")
    fill(conn, 5)
    index = create_index(conn, "docs", table="docs", columns=["title", "body"], embedder="hashing@64")
    sync(conn, index)
    for n in range(1, 20):
        conn.execute("update docs set body = ? where id = 1", [f"word{n}"])
        conn.commit()
        sync(conn, index)
        assert picture.axes(conn, index).projected == n
    conn.execute("delete from docs where id = 1")
    conn.commit()
    sync(conn, index)
    assert (picture.axes(conn, index).fitted, picture.axes(conn, index).projected) == (4, 0)
    fill(conn, 4, start=10)
    sync(conn, index)
    assert (picture.axes(conn, index).fitted, picture.axes(conn, index).projected) == (8, 0)


def interrupted(conn, action):
    """Run an action in the middle of the next refresh, once, when it begins to read documents."""
    state = {"left": True}

    def trace(sql):
        if state["left"] and "with wanted" in sql:
            state["left"] = False
            action()

    conn.set_trace_callback(trace)


def test_what_changes_while_the_map_is_drawn_waits_for_the_next_time(conn, index, path):
    conn.execute("delete from _vec_docs_1_axes")
    conn.commit()

    def change():
        with closing(connect(path)) as other:
            other.execute("delete from docs where id = 1")
            other.execute("update docs set body = 'sort numbers' where id = 2")
            other.commit()
            # As far as the text stage, and the vector of the new chunk by hand: a sync would draw the map itself.
            other.execute("delete from _vec_docs_1_chunks where k0 = 1")
            other.execute(
                """
                update _vec_docs_1_chunks set embedding = (select embedding from _vec_docs_1_chunks where k0 = 3)
                where k0 = 2
                """
            )
            other.commit()

    interrupted(conn, change)
    refresh(conn, index)
    conn.set_trace_callback(None)
    _, waiting = picture.waiting(conn, index)
    assert sorted(waiting) == [(1,), (2,)]
    assert {(1,), (2,)}.isdisjoint(stored(conn, index))
    refresh(conn, index)
    places = stored(conn, index)
    assert (1,) not in places
    assert places[(2,)] == pytest.approx(places[(3,)], abs=1e-6)


def test_two_runs_at_once_leave_a_map_of_one_piece(conn, index, path):
    conn.execute("delete from _vec_docs_1_axes")
    conn.commit()

    def other_run():
        with closing(connect(path)) as other:
            fill(other, 200, start=400)
            sync(other, find_index(other, "docs"))

    interrupted(conn, other_run)
    refresh(conn, index)
    conn.set_trace_callback(None)
    axes, places = picture.axes(conn, index), stored(conn, index)
    assert set(places) == {(n,) for n in range(600)}
    expected = (vectors(conn, index, list(places)) - axes.mean) @ axes.directions.T
    np.testing.assert_allclose(list(places.values()), expected, atol=1e-4)


@pytest.mark.parametrize("change", [lambda c, i: rebuild(c, i, embedder="hashing@128"), drop])
def test_an_index_that_goes_while_its_map_is_drawn_is_said_to_be_gone(conn, index, path, change):
    conn.execute("delete from _vec_docs_1_axes")
    conn.commit()

    def act():
        with closing(connect(path)) as other:
            change(other, find_index(other, "docs"))

    interrupted(conn, act)
    with pytest.raises(IndexNotFound, match="dropped or rebuilt meanwhile"):
        refresh(conn, index)
    conn.set_trace_callback(None)
    assert not any(name.startswith("_vec_docs_1_") for name in names(conn))


def test_points_are_those_of_rows_that_exist_and_fulfil_the_filters(conn, index):
    conn.execute("delete from docs where id = 1")
    shown = map_points(conn, index, filters={"category": "read"}, color="category")
    assert {point.key for point in shown.points} == {(n,) for n in range(5, 400, 4)}
    assert shown.count == 99
    places = stored(conn, index)
    assert all((point.x, point.y) == places[point.key] for point in shown.points)
    assert {point.title for point in shown.points} == {f"Title {n}" for n in range(5, 400, 4)}
    assert [(c.label, c.count, c.filters) for c in shown.categories] == [("read", 99, {"category": "read"})]


def test_a_limit_gives_a_sample_and_across_goes_from_left_to_right(conn, index):
    everything = map_points(conn, index)
    assert map_points(conn, index, limit=50).points == everything.points[:50]
    assert [point.key for point in everything.points] == sorted(((n,) for n in range(400)), key=sample)
    pages = [map_points(conn, index, across=range(first, first + 150)) for first in (0, 150, 300)]
    assert [point for page in pages for point in page.across] == sorted(
        everything.points, key=lambda point: (point.x, point.y, point.key)
    )
    assert {page.count for page in pages} == {400}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["a", "b", "a"], [("a", 2, 0), ("b", 1, 1)]),
        (["a", None, "a"], [("a", 2, 0), ("no value", 1, 1)]),
        ([*"aabcdefghij"], [("a", 2, 0), *((c, 1, n) for n, c in enumerate("bcdefgh", 1)), ("other (2 values)", 2, 8)]),
        ([*range(1, 13), None], [*((f"{n} to {n + 1}", 2, (n - 1) // 2) for n in range(1, 13, 2)), ("no value", 1, 6)]),
        ([b"x", b"y"], [("binary data", 2, 0)]),
        ([""], [("empty text", 1, 0)]),
        ([1e999, -1e999, -1e999, 2.5], [("-infinity", 2, 0), ("2.5", 1, 1), ("infinity", 1, 2)]),
        (
            [*range(1, 13), 1e999, -1e999, -1e999],
            [*((f"{n} to {n + 1}", 2, n // 2) for n in range(1, 13, 2)), ("-infinity", 2, 6), ("infinity", 1, 7)],
        ),
    ],
    ids=["values", "null", "other", "numbers", "binary", "empty", "infinities", "numbers and infinities"],
)
def test_colours_are_values_ranges_or_the_commonest_and_other(conn, values, expected):
    conn.execute("create table docs (id integer primary key, title text, body text, tag)")
    conn.executemany("insert into docs (title, body, tag) values ('t', 'word', ?)", [(value,) for value in values])
    conn.commit()
    index = create_index(conn, "docs", table="docs", columns=["body"], embedder="hashing@64")
    sync(conn, index)
    shown = map_points(conn, index, color="tag")
    counted = [0] * len(shown.categories)
    for point in shown.points:
        counted[point.category] += 1
    assert [(c.label, c.count, n) for n, c in enumerate(shown.categories)] == expected
    assert counted == [category.count for category in shown.categories]
    for number, category in enumerate(shown.categories):
        if category.filters:
            left = map_points(conn, index, filters=category.filters)
            assert {p.key for p in left.points} == {p.key for p in shown.points if p.category == number}


def test_when_the_time_is_over_the_points_read_so_far_are_shown(conn, index):
    fill(conn, 1_500, start=400)
    sync(conn, index)
    shown = map_points(conn, index, seconds=0)
    assert (shown.count, len(shown.points)) == (1_900, picture.BATCH)
    assert shown.points == map_points(conn, index, limit=picture.BATCH).points


def test_what_can_be_coloured_by_is_neither_key_nor_text(conn, index):
    assert columns(conn, index) == ["category", "year"]
    with pytest.raises(InvalidFilter, match=r"'body' is no column to colour by; there are category, year"):
        map_points(conn, index, color="body")


@pytest.mark.parametrize(
    ("ddl", "insert"),
    [
        (
            "create table docs (k0 text collate nocase primary key, x text, turn text)",
            "insert into docs values ('A', 'one', 'p'), ('b', 'two', 'q')",
        ),
        (
            "create table docs (a integer, b text, x text, turn text, primary key (a, b)) without rowid",
            "insert into docs values (1, 'z', 'one', 'p'), (1, 'y', 'two', 'q')",
        ),
        ("create table docs (x text, turn text)", "insert into docs values ('one', 'p'), ('two', 'q')"),
    ],
    ids=["nocase", "compound", "rowid"],
)
def test_any_key_and_columns_named_like_ours(conn, ddl, insert):
    conn.execute(ddl)
    conn.execute(insert)
    conn.commit()
    index = create_index(conn, "docs", table="docs", columns=["x"], embedder="hashing@64")
    sync(conn, index)
    shown = map_points(conn, index, filters={"turn": "p"}, color="turn")
    assert [(category.label, category.count) for category in shown.categories] == [("p", 1)]
    conn.execute("update docs set x = 'three' where turn = 'p'")
    conn.commit()
    sync(conn, index)
    assert map_points(conn, index, color="turn").count == 2


def test_a_view_has_a_map_too(conn, index):
    conn.execute("create view recent as select id, title, body, category from docs where year > 2000")
    over = create_index(conn, "recent", table="recent", columns=["body"], key=["id"], embedder="hashing@64")
    sync(conn, over)
    wanted = conn.execute("select count(*) from recent").fetchone()[0]
    shown = map_points(conn, over, color="category")
    assert shown.count == len(shown.points) == wanted
    assert json.dumps(shown.points[0].key)


def test_a_connection_reads_by_its_memory_map_again_when_the_map_is_drawn(path) -> None:
    with closing(connect(path, create=True)) as conn:
        (before,) = conn.execute("pragma mmap_size").fetchone()
        conn.execute("create table docs (id integer primary key, title text, body text, category text, year integer)")
        fill(conn, 30)
        sizes = set()
        conn.set_trace_callback(lambda sql: sizes.add(sql) if "mmap_size =" in sql else None)
        index = create_index(conn, "docs", table="docs", columns=["body"], embedder="hashing@64")
        sync(conn, index)
        assert sizes == {"pragma mmap_size = 0", f"pragma mmap_size = {before}"}
        assert picture.axes(conn, index) is not None
        assert conn.execute("pragma mmap_size").fetchone() == (before,) != (0,)
