"""Laws of the derived index where the file is not as it expects: names in use, odd keys, migrations, raw values."""

import numpy as np
import pytest

from datasette_vec_gemini import sqlite3
from datasette_vec_gemini.errors import ColumnNotFound, IndexExists, TableNotFound
from datasette_vec_gemini.vector_index import DISTANCES, DerivedIndex, catch_up, prepare, stored, sync
from datasette_vec_gemini.vectors import pack

COUNT = 300
VECTORS = np.random.default_rng(3).normal(size=(COUNT, 4)).astype(np.float32)
FAR = [90, 91, 92, 93]


def index(**options):
    options = {"name": "near", "table": "docs", "key": "id", "column": "vector", "metric": "l2"} | options
    return DerivedIndex(dimensions=4, exact_rows=0, **options)


@pytest.fixture
def docs(conn):
    prepare(conn)
    fill(conn, "create table docs (id integer primary key, url text unique, vector blob)")
    return conn


def fill(conn, schema, table="docs"):
    conn.execute(schema)
    rows = [(n, str(n), pack(vector)) for n, vector in enumerate(VECTORS, 1)]
    conn.executemany(f"insert into {table} (id, url, vector) values (?, ?, ?)", rows)
    conn.commit()


def search(conn, near, query, k):
    sql = f"""
        select {near.key} from {near.table}
        where {near.key} in ({"".join(near.candidates(":query", ":wanted"))}) and {near.present(near.column)}
        order by {DISTANCES[near.metric]}({near.column}, :query), {near.key} limit :wanted
    """
    return [key for (key,) in conn.execute(sql, {"query": pack(query), "wanted": k})]


def number(conn, sql):
    return conn.execute(sql).fetchone()[0]


def triggers(conn, table="docs"):
    return number(conn, f"select count(*) from sqlite_master where type = 'trigger' and tbl_name = '{table}'")


TAKEN = [
    "create table near (id integer primary key, note text)",
    "create table NEAR_dirty (id integer primary key, note text)",
    "create table near_rowids (note text)",
    "create view near as select 1",
    "create index near_dirty on docs (url)",
    "create trigger near_update after update on docs begin select 1; end",
]


@pytest.mark.parametrize("taken", TAKEN)
def test_what_has_a_name_that_the_index_needs_is_never_touched(docs, taken):
    docs.execute(taken)
    before = docs.execute("select type, name, sql from sqlite_master order by 2").fetchall()
    with pytest.raises(IndexExists, match="another name"):
        index().create(docs)
    with pytest.raises(IndexExists, match="another name"):
        index().sync(docs)
    index().drop(docs)
    assert docs.execute("select type, name, sql from sqlite_master order by 2").fetchall() == before


def test_a_name_belongs_to_one_table(docs):
    fill(docs, "create table others (id integer primary key, url text, vector blob)", "others")
    index().create(docs)
    sync(docs)
    other = index(table="others")
    for attempt in (other.create, other.sync):
        with pytest.raises(IndexExists, match="'docs' already and cannot be on 'others'"):
            attempt(docs)
    other.drop(docs)
    assert [each.table for each in stored(docs)] == ["docs"]
    docs.execute("update others set vector = ? where id = 9", [pack(FAR)])
    assert search(docs, other, FAR, 1) == [9]
    assert search(docs, index(), VECTORS[4], 1) == [5]
    index(table="DOCS").create(docs)
    assert number(docs, "select rows from _vec_derived") == COUNT


@pytest.mark.parametrize("missing", [{"table": "nowhere"}, {"column": "nothing"}, {"key": "nothing"}])
def test_an_index_of_what_is_not_there_is_refused(docs, missing):
    with pytest.raises((TableNotFound, ColumnNotFound), match=r"noth|nowhere"):
        index(**missing).create(docs)
    assert stored(docs) == []
    docs.execute("update docs set vector = null")


@pytest.fixture
def texts(conn):
    prepare(conn)
    fill(conn, "create table docs (id text primary key, url text, vector blob)")
    return conn


def test_a_blob_among_keys_of_text_is_found_and_stops_nothing(texts):
    near = index(key_type="text")
    near.create(texts)
    texts.execute("insert into docs values (x'01ff', null, ?)", [pack(FAR)])
    texts.commit()
    assert near.sync(texts) == COUNT
    assert (near.sync(texts), sync(texts)) == (0, 0)
    assert search(texts, near, FAR, 1) == [b"\x01\xff"]
    texts.execute("delete from docs where id = x'01ff'")
    assert search(texts, near, VECTORS[7], 1) == ["8"]


def test_rows_without_a_key_are_not_noted(texts):
    texts.executemany("insert into docs values (null, null, ?)", [[pack(FAR)]] * 3_000)
    near = index(key_type="text")
    near.create(texts)
    texts.execute("insert into docs values (null, null, ?)", [pack(FAR)])
    texts.execute("update docs set vector = null where id is null")
    texts.execute("delete from docs where id is null")
    texts.commit()
    assert number(texts, "select count(*) from near_dirty") == COUNT
    assert (near.sync(texts), number(texts, "select count(*) from near_dirty")) == (COUNT, 0)


def test_a_key_that_is_no_integer_keeps_nobody_from_writing(conn):
    prepare(conn)
    fill(conn, "create table docs (id int primary key, url text, vector blob)")
    index().create(conn)
    for key in (None, 1.5, "x", b"x"):
        conn.execute("insert into docs values (?, null, ?)", [key, pack(FAR)])
    conn.execute("update docs set id = 1000 where id = 'x'")
    conn.commit()
    assert index().sync(conn) == COUNT + 1
    assert search(conn, index(), FAR, 1) == [1000]


def test_an_index_whose_table_is_gone_goes_too_and_stops_no_other(docs):
    fill(docs, "create table gone (id integer primary key, url text, vector blob)", "gone")
    lost = index(name="lost", table="gone")
    lost.create(docs)
    index().create(docs)
    sync(docs)
    docs.execute("drop table gone")
    docs.execute("update docs set vector = ? where id = 3", [pack(FAR)])
    docs.commit()
    catch_up(docs)
    assert (number(docs, "select count(*) from near_dirty"), len(stored(docs))) == (0, 2)
    assert sync(docs) == 0
    assert [each.name for each in stored(docs)] == ["near"]
    assert number(docs, "select count(*) from sqlite_master where name like 'lost%'") == 0


def test_an_index_whose_column_is_gone_says_so_when_the_others_are_synced(docs):
    index(name="another").create(docs)
    docs.execute("alter table docs rename column vector to embedding")
    near = index(column="embedding")
    near.create(docs)
    with pytest.raises(ColumnNotFound, match=r"'another' needs the column 'vector'.*new name"):
        sync(docs)
    assert number(docs, "select count(*) from near_dirty") == 0
    index(name="another", column="embedding").create(docs)
    assert sync(docs) == COUNT


def test_an_index_follows_its_table_to_another_name(docs):
    index().create(docs)
    sync(docs)
    docs.execute("alter table docs rename to papers")
    docs.execute("update papers set vector = ? where id = 3", [pack(FAR)])
    docs.commit()
    assert sync(docs) == 1
    assert [each.table for each in stored(docs)] == ["papers"]
    assert search(docs, index(table="papers"), FAR, 1) == [3]


def test_a_new_table_of_the_old_name_gets_the_index(docs):
    index().create(docs)
    sync(docs)
    docs.execute("alter table docs rename to old")
    docs.execute("create table docs (id integer primary key, vector blob)")
    docs.execute("insert into docs values (7, ?)", [pack(FAR)])
    index().create(docs)
    sync(docs)
    assert (triggers(docs), triggers(docs, "old"), number(docs, "select rows from _vec_derived")) == (3, 0, 1)
    assert search(docs, index(), FAR, 2) == [7]


def test_catching_up_makes_triggers_again_that_a_migration_lost(docs):
    index().create(docs)
    sync(docs)
    docs.execute("create table copied (id integer primary key, url text unique, vector blob, more)")
    docs.execute("insert into copied select *, null from docs where id <> 5")
    docs.execute("drop table docs")
    docs.execute("alter table copied rename to docs")
    docs.commit()
    catch_up(docs, waiting=1_000)
    assert (triggers(docs), number(docs, "select count(*) from near_dirty")) == (3, COUNT)
    catch_up(docs)
    assert (number(docs, "select rows from _vec_derived"), sync(docs)) == (COUNT - 1, 0)


def replace(conn, times):
    for _ in range(times):
        rows = [(str(n), pack(vector)) for n, vector in enumerate(VECTORS, 1)]
        conn.executemany("insert or replace into docs (url, vector) values (?, ?)", rows)
        conn.commit()
        yield


def test_codes_of_replaced_rows_are_cleared_away(docs):
    index().create(docs)
    sync(docs)
    docs.execute("insert or replace into docs (url, vector) values ('3', ?)", [pack(FAR)])
    docs.commit()
    assert sync(docs) == 1
    assert number(docs, "select count(*) from near") == number(docs, "select rows from _vec_derived") == COUNT
    for _ in replace(docs, 5):
        catch_up(docs)
        assert number(docs, "select count(*) from near") == COUNT
    assert search(docs, index(), VECTORS[0], 1) == [number(docs, "select id from docs where url = '1'")]


def test_a_key_changed_as_rowid_is_noted(docs):
    index().create(docs)
    sync(docs)
    docs.execute("update docs set rowid = 5000 where id = 1")
    docs.execute("update docs set url = 'other' where id = 2")
    assert docs.execute("select id from near_dirty order by id").fetchall() == [(1,), (5000,)]
    assert search(docs, index(), VECTORS[0], 1) == [5000]


@pytest.mark.parametrize("kind", ["stored", "virtual"])
def test_a_generated_column_is_followed(conn, kind):
    prepare(conn)
    conn.execute(f"create table docs (id integer primary key, raw, vector blob generated always as (raw) {kind})")
    conn.executemany("insert into docs (raw) values (?)", [[pack(vector)] for vector in VECTORS])
    index().create(conn)
    sync(conn)
    conn.execute("update docs set raw = ? where id = 100", [pack(FAR)])
    assert search(conn, index(), FAR, 1) == [100]


def test_preparing_switches_off_what_somebody_left_on(path):
    sqlite_vec = pytest.importorskip("sqlite_vec")
    conn = sqlite3.connect(path)
    conn.enable_load_extension(True)
    sqlite_vec.load(conn)
    prepare(conn)
    with pytest.raises(sqlite3.OperationalError, match="not authorized"):
        conn.execute("select load_extension('/nowhere')")
    conn.close()
