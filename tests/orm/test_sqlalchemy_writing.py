"""Laws of writing: whatever is written, however, the next search answers from it, before and after it is folded in."""

import random
import subprocess
import sys

import numpy as np
import pytest
from documents import DIMENSIONS, FAR, NEAR, QUERY, ROWS, vector

sa = pytest.importorskip("sqlalchemy", reason="needs SQLAlchemy: pip install 'datasette-vec-gemini[sqlalchemy]'")
from array import array

from sqlalchemy import delete, insert, select, text, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from datasette_vec_gemini.errors import InvalidVector
from datasette_vec_gemini.vectors import pack


@pytest.fixture
def filled(store):
    store.fill()
    return store


def only_on_sqlite(store):
    if not store.is_sqlite:
        pytest.skip("this is SQLite's")


def upsert(store, values):
    module = sqlite if store.is_sqlite else postgresql
    statement = module.insert(store.Document).values(values)
    return statement.on_conflict_do_update(index_elements=["id"], set_={"embedding": statement.excluded.embedding})


def add(store, session):
    session.add_all(
        [store.Document(id=1001, embedding=NEAR), store.Document(id=1002), store.Document(id=1003, embedding=FAR)]
    )
    store.rows |= {1001: NEAR, 1002: None, 1003: FAR}


def change(store, session):
    session.get(store.Document, 3).embedding = NEAR
    session.get(store.Document, 4).embedding = FAR
    session.get(store.Document, 5).title = "of no matter"
    store.rows |= {3: NEAR, 4: FAR}


def remove(store, session):
    for key in (3, 7, 100):
        session.delete(session.get(store.Document, key))
        del store.rows[key]


def forget(store, session):
    session.get(store.Document, 3).embedding = None
    session.get(store.Document, 7).embedding = NEAR
    store.rows |= {3: None, 7: NEAR}


def insert_many(store, session):
    new = {key: vector() for key in range(2000, 2300)}
    session.execute(insert(store.Document), [{"id": key, "embedding": value} for key, value in new.items()])
    store.rows |= new


def insert_without_keys(store, session):
    session.execute(text("delete from document"))
    keys = session.scalars(
        insert(store.Document).returning(store.Document.id, sort_by_parameter_order=True),
        [{"embedding": value} for value in (NEAR, FAR, None)],
    ).all()
    store.rows.clear()
    store.rows |= dict(zip(keys, (NEAR, FAR, None), strict=True))


def update_many(store, session):
    session.execute(update(store.Document).where(store.Document.id > 100).values(embedding=NEAR))
    session.execute(update(store.Document), [{"id": 5, "embedding": FAR}, {"id": 6, "embedding": None}])
    store.rows |= {key: NEAR for key in store.rows if key > 100} | {5: FAR, 6: None}


def delete_many(store, session):
    session.execute(delete(store.Document).where(store.Document.lang == "en"))
    for key in [key for key in store.rows if key % 2]:
        del store.rows[key]


def save_in_bulk(store, session):
    new = {key: vector() for key in range(3000, 3010)}
    session.bulk_save_objects([store.Document(id=key, embedding=value) for key, value in new.items()])
    session.bulk_update_mappings(store.Document, [{"id": 8, "embedding": NEAR}])
    store.rows |= new | {8: NEAR}


def insert_or_update(store, session):
    session.execute(upsert(store, [{"id": 3, "embedding": NEAR}, {"id": 5000, "embedding": FAR}]))
    store.rows |= {3: NEAR, 5000: FAR}


def replace(store, session):
    only_on_sqlite(store)
    statement = insert(store.Document).prefix_with("OR REPLACE")
    session.execute(statement, [{"id": 3, "embedding": NEAR}, {"id": 4, "embedding": None}])
    store.rows |= {3: NEAR, 4: None}


def replace_another_row(store, session):
    """Through a unique column, for which SQLite fires no trigger of the row that goes."""
    only_on_sqlite(store)
    nearest = [key for key, _ in store.expected(k=30)]
    statement = insert(store.Document).prefix_with("OR REPLACE")
    session.execute(statement, [{"id": 9000 + key, "slug": f"s{key}", "embedding": FAR} for key in nearest])
    for key in nearest:
        del store.rows[key]
        store.rows[9000 + key] = FAR


def reuse_a_key(store, session):
    session.delete(session.get(store.Document, 1))
    session.flush()
    session.add(store.Document(id=1, embedding=NEAR))
    session.delete(session.get(store.Document, 2))
    session.flush()
    session.add(store.Document(id=2))
    store.rows |= {1: NEAR, 2: None}


def change_keys(store, session):
    session.execute(update(store.Document).where(store.Document.id == 3).values(id=7003))
    session.get(store.Document, 4).id = 7004
    store.rows |= {7003: store.rows.pop(3), 7004: store.rows.pop(4)}


def swap_keys(store, session):
    for old, new in [(3, -1), (5, 3), (-1, 5)]:
        session.execute(update(store.Document).where(store.Document.id == old).values(id=new))
    store.rows |= {3: store.rows[5], 5: store.rows[3]}


def write_raw(store, session):
    blob = pack(NEAR) if store.is_sqlite else str(NEAR)
    session.execute(text("update document set embedding = :v where id in (3, 7)"), {"v": blob})
    session.execute(text("delete from document where id = 4"))
    store.rows |= {3: NEAR, 7: NEAR}
    del store.rows[4]


def empty(store, session):
    session.execute(text("delete from document"))
    store.rows.clear()


WRITES = [
    add, change, remove, forget, insert_many, insert_without_keys, update_many, delete_many, save_in_bulk,
    insert_or_update, replace, replace_another_row, reuse_a_key, change_keys, swap_keys, write_raw, empty,
]  # fmt: skip


@pytest.mark.parametrize("write", WRITES, ids=lambda write: write.__name__)
def test_a_write_is_found_at_once_and_after_the_commit(filled, write):
    def within(session):
        filled.check(session)
        write(filled, session)
        session.flush()
        filled.check(session)

    filled.run(within)
    filled.run(filled.check)
    if filled.is_sqlite:
        assert filled.waiting() == 0
        # A row that went without a trigger stays in vec0 until its key comes back; it is never shown.
        assert {key for key, value in filled.rows.items() if value} <= set(filled.coded())


@pytest.mark.parametrize("write", WRITES, ids=lambda write: write.__name__)
def test_what_is_rolled_back_was_never_there(filled, write):
    before = dict(filled.rows)

    def within(session):
        write(filled, session)
        session.flush()
        filled.check(session)
        session.rollback()
        filled.rows = dict(before)
        filled.check(session)

    filled.run(within)
    filled.run(filled.check)


def test_a_savepoint_takes_back_its_own_part_only(filled):
    def within(session):
        change(filled, session)
        session.flush()
        outer = dict(filled.rows)
        with session.begin_nested() as savepoint:
            remove(filled, session)
            insert_many(filled, session)
            filled.check(session)
            savepoint.rollback()
        filled.rows = outer
        filled.check(session)
        with session.begin_nested():
            forget(filled, session)
        filled.check(session)

    filled.run(within)
    filled.run(filled.check)


def test_a_long_random_life_agrees_with_the_oracle(filled):  # noqa: C901 - a list of what can happen
    """Writes, commits and rollbacks in an order that nobody thought of."""
    chance = random.Random(3)
    fresh = iter(range(10_000, 20_000))

    def step(session):
        keys = chance.sample(sorted(filled.rows), 5)
        value = chance.choice([vector(), NEAR, None])
        match chance.randrange(5):
            case 0:
                key = next(fresh)
                session.execute(insert(filled.Document), [{"id": key, "embedding": value}])
                filled.rows[key] = value
            case 1:
                session.execute(update(filled.Document).where(filled.Document.id.in_(keys)).values(embedding=value))
                filled.rows |= dict.fromkeys(keys, value)
            case 2:
                session.execute(delete(filled.Document).where(filled.Document.id.in_(keys)))
                for key in keys:
                    del filled.rows[key]
            case 3:
                session.execute(upsert(filled, [{"id": key, "embedding": value} for key in keys]))
                filled.rows |= dict.fromkeys(keys, value)
            case 4:
                old, new = keys[0], next(fresh)
                session.execute(update(filled.Document).where(filled.Document.id == old).values(id=new))
                filled.rows[new] = filled.rows.pop(old)

    def life(session):
        for _ in range(12):
            before = dict(filled.rows)
            for _ in range(chance.randrange(1, 6)):
                step(session)
            assert filled.found(session, filled.nearest(k=20)) == filled.expected(k=20)
            if chance.random() < 0.3:
                session.rollback()
                filled.rows = before
            else:
                session.commit()
        filled.check(session)

    filled.run(life)
    filled.run(filled.check)


@pytest.mark.parametrize(
    "value",
    [QUERY, tuple(QUERY), array("f", QUERY), np.array(QUERY), np.array(QUERY, dtype=np.float32), pack(QUERY)],
    ids=lambda value: type(value).__name__,
)
def test_a_vector_goes_in_as_any_sequence_of_numbers_and_comes_out_as_a_list(store, value):
    store.run(lambda s: s.add(store.Document(id=1, embedding=value)))
    found = store.run(lambda s: s.get(store.Document, 1).embedding)
    assert type(found) is list
    assert found == np.array(QUERY, dtype=np.float32).tolist()


def test_whole_numbers_are_numbers(store):
    store.run(lambda s: s.add(store.Document(id=1, embedding=range(1, DIMENSIONS + 1))))
    assert store.run(lambda s: s.get(store.Document, 1).embedding) == [float(n) for n in range(1, DIMENSIONS + 1)]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (QUERY[1:], "expected 16 dimensions, not 15"),
        ([*QUERY, 1.0], "expected 16 dimensions, not 17"),
        ([], "expected"),
        ([QUERY], r"array of shape \(1, 16\)"),
        ([*QUERY[1:], float("nan")], "NaN or infinity"),
        ([*QUERY[1:], float("inf")], "NaN or infinity"),
        ([*QUERY[1:], 1e300], "NaN or infinity"),
        ("a text", "expected a vector of 16 numbers, got 'a text'"),
        (str(QUERY), r"expected a vector of 16 numbers, got '\["),
        ([str(x) for x in QUERY], "expected a vector of 16 numbers, got"),
        ([None] * DIMENSIONS, "expected a vector of 16 numbers, got"),
        ([*QUERY[1:], []], "unequal length"),
        ({"a": 1}, "expected a vector of 16 numbers, got"),
        (1.5, "expected a vector of 16 numbers"),
        (object(), "expected a vector of 16 numbers, got"),
        (pack(QUERY)[:-1], "expected"),
        (pack(QUERY)[:-4], "expected 16 dimensions, not 15"),
    ],
)
def test_what_is_no_vector_is_refused_before_anything_is_written(store, value, message):
    good = {"id": 1, "embedding": QUERY}
    ways = [
        lambda s: s.add_all([store.Document(**good), store.Document(id=2, embedding=value)]),
        lambda s: s.execute(insert(store.Document), [good, {"id": 2, "embedding": value}]),
        lambda s: s.execute(update(store.Document).values(embedding=value)),
        lambda s: s.execute(upsert(store, [good, {"id": 2, "embedding": value}])),
    ]
    for way in ways:
        with pytest.raises(sa.exc.StatementError, match=message) as caught:
            store.run(way)
        assert isinstance(caught.value.orig, InvalidVector)
        assert isinstance(caught.value.orig, ValueError)
    assert store.run(lambda s: s.scalars(select(store.Document)).all()) == []


def test_a_zero_vector_is_refused_where_the_metric_compares_directions(store):
    zero = store.Document(id=1, embedding=[0.0] * DIMENSIONS)
    if store.metric == "cosine":
        with pytest.raises(sa.exc.StatementError, match="all zeros and has no direction"):
            store.run(lambda s: s.add(zero))
    else:
        store.run(lambda s: s.add(zero))
        store.rows[1] = [0.0] * DIMENSIONS
        store.run(store.check)


def test_twenty_sessions_at_once_write_and_find_what_they_wrote(filled):
    if filled._runner is None:
        pytest.skip("this is for async engines")
    new = {5000 + number: vector() for number in range(20)}

    def work(session, number):
        key = 5000 + number
        session.add(filled.Document(id=key, embedding=new[key]))
        session.commit()
        for _ in range(3):
            ((found, distance),) = session.execute(filled.nearest(new[key], k=1))
            assert (found.id, distance) == (key, pytest.approx(0, abs=1e-5))

    filled.gather(work, 20)
    filled.rows |= new
    filled.run(filled.check)
    if filled.is_sqlite:  # what met the lock of another is folded in by the next commit
        filled.run(lambda session: session.delete(session.get(filled.Document, 5000)))
        assert filled.waiting() == 0


def test_two_sessions_under_wal_see_what_was_committed_when_they_began(filled):
    only_on_sqlite(filled)
    if filled._runner is not None:
        pytest.skip("a sync engine shows it")
    with filled.engine.connect() as conn:
        conn.exec_driver_sql("pragma journal_mode = wal")
    with Session(filled.engine) as reader, Session(filled.engine) as writer:
        reader.connection().exec_driver_sql("begin")  # which Python's driver leaves out before a select
        filled.check(reader)
        before = dict(filled.rows)
        change(filled, writer)
        writer.flush()
        filled.check(writer)
        after, filled.rows = filled.rows, before
        filled.check(reader)
        writer.commit()  # and folds in, while the other one reads
        filled.check(reader)
        reader.rollback()
        filled.rows = after
        filled.check(reader)
        filled.check(writer)
    assert filled.waiting() == 0


def test_any_program_can_write_without_the_extension_and_is_found(filled, tmp_path):
    only_on_sqlite(filled)
    path = filled.engine.url.database
    script = f"""
        pragma trusted_schema = off;
        insert into document (id, title, lang, embedding) values (900, '', 'en', x'{pack(NEAR).hex()}');
        update document set embedding = x'{pack(FAR).hex()}' where id = 3;
        delete from document where id = 4;
        insert or replace into document (id, title, lang, embedding) values (5, '', 'en', x'{pack(NEAR).hex()}');
    """
    program = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.executescript(sys.argv[2]); c.close()"
    subprocess.run([sys.executable, "-c", program, path, script], check=True)
    filled.rows |= {900: NEAR, 3: FAR, 5: NEAR}
    del filled.rows[4]
    filled.run(filled.check)
    assert filled.waiting() == 4
    # Any commit through the engine brings it up to date.
    filled.run(lambda s: s.add(filled.Author(name="Cy")))
    assert filled.waiting() == 0
    filled.run(filled.check)


@pytest.mark.parametrize("junk", ["'text'", "x'00'", "42", "zeroblob(64)", "zeroblob(60)", "'[1,2,3]'"])
def test_what_other_programs_leave_in_the_column_harms_no_search(filled, junk):
    only_on_sqlite(filled)
    filled.run(lambda s: s.execute(text(f"update document set embedding = {junk} where id in (3, 5)")))
    filled.rows |= {3: None, 5: None}
    if junk == "zeroblob(64)" and filled.metric == "l2":
        filled.rows |= {3: [0.0] * DIMENSIONS, 5: [0.0] * DIMENSIONS}
    filled.run(filled.check)
    assert filled.waiting() == 0
    distance = filled.Document.embedding.cosine_distance(QUERY)
    ranked = filled.run(lambda s: s.execute(select(filled.Document.id, distance).order_by(distance)).all())
    assert len(ranked) == ROWS
    assert {row.id: row[1] for row in ranked}[3] is None
