"""Text in, entities out: what holds in every ORM for a class that is tied to an index."""

import random
from contextlib import closing
from itertools import chain

import fake_gemini
import pytest
from fake_gemini import FakeGemini
from semantic_doors import DOORS, KEYS, SEMANTIC

from datasette_vec_gemini import connect, indexes, status
from datasette_vec_gemini.errors import (
    ColumnNotFound,
    ConfirmationNeeded,
    IndexExists,
    InvalidName,
    InvalidQuery,
    InvalidSetting,
    TransactionOpen,
    UsageError,
)

ROWS = (
    ("strptime", "parse a date from text", "en"),
    ("ZoneInfo", "convert a time zone", "en"),
    ("reader", "read comma separated values", "en"),
    ("empty", None, "de"),
)


def row(n, title, body, lang="en", *, key="integer"):
    return KEYS[key][0](n) | {"title": title, "body": body, "lang": lang}


@pytest.fixture(params=DOORS)
def open_door(request, path):
    opened = []

    def opening(key="integer", **options):
        opened.append(DOORS[request.param](path, key, **options))
        return opened[-1]

    yield opening
    for door in opened:
        door.close()


@pytest.fixture
def door(open_door):
    """A door with four rows and an index that no sync has filled yet."""
    opened = open_door()
    opened.create_all()
    opened.add(*(row(n, *values) for n, values in enumerate(ROWS, 1)))
    return opened


@pytest.fixture
def many(open_door):
    """600 rows of which every hundredth is in German, none of them near the top of any ranking."""
    opened = open_door()
    opened.create_all()
    words = random.Random(1)
    vocabulary = [f"w{n}" for n in range(40)]
    opened.insert(
        *(
            row(n, f"t{n}", " ".join(words.choices(vocabulary, k=8)), "de" if n % 100 == 0 else "en")
            for n in range(1, 601)
        )
    )
    opened.sync()
    return opened


@pytest.fixture
def fake(monkeypatch):
    """Gemini, with a key in the environment and no daily limit."""
    with FakeGemini() as service:
        monkeypatch.delenv("GOOGLE_API_KEY", raising=False)
        monkeypatch.delenv("DATASETTE_VEC_DAILY_USD", raising=False)
        monkeypatch.setenv("GEMINI_API_KEY", fake_gemini.KEY)
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", service.url)
        yield service


def titles(found):
    return [entity.title for entity, _ in found]


@pytest.mark.parametrize("key", KEYS)
def test_a_question_finds_entities_with_their_hits_whatever_their_key_is(open_door, key):
    door = open_door(key)
    door.create_all()
    door.add(*(row(n, *values, key=key) for n, values in enumerate(ROWS, 1)))
    found = door.search("parse a date", k=3)
    assert titles(found)[0] == "strptime"
    assert all(isinstance(entity, door.Document) for entity, _ in found)
    assert [hit.row["content"] for _, hit in found] == [entity.body for entity, _ in found]
    number = {title: n for n, (title, _, _) in enumerate(ROWS, 1)}
    assert [hit.key for _, hit in found] == [KEYS[key][1](number[entity.title]) for entity, _ in found]
    assert sorted((hit.score for _, hit in found), reverse=True) == [hit.score for _, hit in found]
    of_reader = door.Document.title == "reader"
    for where in (of_reader, of_reader | (door.Document.title == "no such")):
        assert titles(door.search("parse a date", where=where)) == ["reader"]
    assert len(door.search("parse a date", where=None)) > 1
    chosen = door.search("parse a date", where=[of_reader])
    assert titles(chosen) == ["reader"]


@pytest.mark.parametrize("wrong", ["title = 'reader'", [5], [None]])
def test_what_is_no_condition_is_refused_before_anything_is_indexed(door, path, wrong):
    door.search("parse a date")
    door.add(row(9, "waits", "for an index"))
    with pytest.raises(InvalidQuery, match="is no condition: give such as"):
        door.search("parse a date", where=wrong)
    with closing(connect(path)) as conn:
        (index,) = indexes(conn)
        assert status(conn, index).pending == 1


def test_whoever_writes_a_row_it_is_found_as_it_is_now(door, write):
    assert titles(door.search("comma separated", k=1)) == ["reader"]
    door.insert(row(5, "bulk", "volcanic ash"), row(6, "bulk too", "glacial ice", "fr"))
    assert titles(door.search("volcanic ash", k=1)) == ["bulk"]
    door.update("fr", body="tidal waves")
    assert titles(door.search("tidal waves", k=1)) == ["bulk too"]
    assert "bulk too" not in titles(door.search("glacial ice", k=9, mode="keyword"))
    door.run("update document set content = 'desert sand' where id = 1")
    assert titles(door.search("desert sand", k=1)) == ["strptime"]
    write("insert into document (id, title, content, lang) values (7, 'other', 'polar light', 'en')")
    assert titles(door.search("polar light", k=1)) == ["other"]
    door.delete("fr")
    assert titles(door.search("tidal waves", mode="keyword")) == []
    door.run("insert or replace into document (id, title, content, lang) values (7, 'other', 'moon dust', 'en')")
    assert titles(door.search("moon dust", k=1)) == ["other"]
    assert titles(door.search("polar light", mode="keyword")) == []


def test_a_filter_acts_inside_the_search(many):
    Document = many.Document
    everything = many.search("w1 w2 w3", k=600, mode="semantic")
    german = [entity.id for entity, _ in everything if entity.lang == "de"]
    assert len(german) == 6

    def ids(*where, **options):
        return [e.id for e, _ in many.search("w1 w2 w3", k=10, mode="semantic", where=where, **options)]

    assert ids(Document.lang == "de") == german
    assert ids(Document.lang == "de", Document.id.in_([100, 300, 301])) == [n for n in german if n in {100, 300}]
    assert ids((Document.id == 400) | (Document.title == "t7")) == [e.id for e, _ in everything if e.id in {7, 400}]
    assert ids(Document.id == 500) == [500]
    assert ids(Document.lang == "la") == []
    assert len(many.search("w1 w2 w3", k=6, where=[Document.lang == "de"])) == 6


def test_pages_are_cuts_of_one_ranking(many):
    whole = [hit.key for _, hit in many.search("w4 w5 w6", k=60)]
    pages = [[hit.key for _, hit in many.search("w4 w5 w6", k=20, offset=at)] for at in (0, 20, 40)]
    assert list(chain(*pages)) == whole
    assert len(set(whole)) == 60


def test_what_is_not_committed_is_found_by_words_and_by_meaning_after_the_commit(door):
    door.search("anything")
    with door.transaction() as session:
        door.add(row(8, "new", "parse a date of the aztecs"), within=session)
        (entity, hit), *_ = door.search("date of the aztecs", within=session)
        assert (entity.title, hit.why.semantic) == ("new", None)
        assert "new" not in titles(door.search("date of the aztecs", within=session, mode="semantic"))
    (entity, hit), *_ = door.search("date of the aztecs")
    assert (entity.title, hit.why.semantic.rank) == ("new", 1)


def test_a_rollback_takes_everything_back(door):
    door.search("anything")
    before = door.run("select k0, text, embedding from _vec_document_1_chunks order by id")

    class Undone(Exception):
        pass

    def write_and_fail():
        with door.transaction() as session:
            door.add(row(8, "new", "parse a date of the aztecs"), within=session)
            assert titles(door.search("aztecs", within=session, mode="keyword")) == ["new"]
            raise Undone

    with pytest.raises(Undone):
        write_and_fail()
    assert titles(door.search("aztecs", mode="keyword")) == []
    assert door.run("select k0, text, embedding from _vec_document_1_chunks order by id") == before


def test_no_sync_while_a_transaction_is_open_in_which_a_model_would_hold_the_lock(door):
    with door.transaction() as session:
        door.add(row(9, "open", "transaction"), within=session)
        door.search("transaction", within=session)  # flushed, and so begun
        with pytest.raises(TransactionOpen, match="commit it or roll it back"):
            door.sync(within=session)
    assert door.sync().embedded == 5


def test_the_index_comes_and_goes_with_the_table(open_door):
    door = open_door()
    door.create_all()
    assert [name for (name,) in door.run("select name from _vec_indexes")] == ["document"]
    door.add(row(1, *ROWS[0]))
    assert door.run("select count(*) from _vec_document_1_queue") == [(1,)]
    door.create_all()
    assert titles(door.search("date")) == ["strptime"]
    door.drop_all()
    assert door.run("select name from sqlite_master where name like '%document%'") == []
    door.drop_all()
    door.create_all()
    assert door.search("date") == []


def test_a_table_that_was_there_before_gets_its_index_by_the_first_search(open_door, path):
    door = open_door(name="texts")
    conn = connect(path, create=True)
    conn.execute("create table DOCUMENT (id integer primary key, Title text, content text, lang text)")
    conn.execute("insert into document values (3, 'old', 'written before', 'en')")
    conn.commit()
    assert titles(door.search("written")) == ["old"]
    (index,) = indexes(conn)
    assert (index.name, index.table, index.columns) == ("texts", "DOCUMENT", ("Title", "content"))
    assert status(conn, index).pending == 0
    conn.close()


def test_a_missing_index_is_made_within_an_open_transaction_and_goes_with_it(open_door, path):
    door = open_door()
    conn = connect(path, create=True)
    conn.execute("create table document (id integer primary key, title text, content text, lang text)")
    conn.execute("insert into document values (3, 'old', 'written before', 'en')")
    conn.commit()

    class Undone(Exception):
        pass

    def search(*, undo):
        with door.transaction() as session:
            door.add(row(8, "new", "written within"), within=session)
            assert sorted(titles(door.search("written", within=session))) == ["new", "old"]
            if undo:
                raise Undone

    with pytest.raises(Undone):
        search(undo=True)
    assert indexes(conn) == []
    search(undo=False)
    assert [index.name for index in indexes(conn)] == ["document"]
    conn.close()
    assert door.sync().embedded == 2


def test_a_sync_refuses_an_open_transaction_before_it_makes_the_index(open_door, path):
    door = open_door()
    conn = connect(path, create=True)
    conn.execute("create table document (id integer primary key, title text, content text, lang text)")
    with door.transaction() as session:
        door.add(row(1, *ROWS[0]), within=session)
        flush = getattr(session, "flush", None)
        if flush:
            flush()
        with pytest.raises(TransactionOpen):
            door.sync(within=session)
    assert indexes(conn) == []
    conn.close()
    assert door.sync().embedded == 1


def test_lost_triggers_are_mended_and_what_they_missed_is_found(door):
    door.search("anything")
    for (name,) in door.run("select name from sqlite_master where type = 'trigger' and tbl_name = 'document'"):
        door.run(f"drop trigger {name}")
    door.run("update document set content = 'behind the back' where id = 2")
    door.run("delete from document where id = 3")
    found = door.search("behind the back", k=9)
    assert titles(found)[0] == "ZoneInfo"
    assert "reader" not in titles(found)
    door.add(row(5, "later", "a new row"))
    assert titles(door.search("a new row", k=1)) == ["later"]


def test_without_sync_nothing_is_written(door):
    assert titles(door.search("date", sync=False)) == []
    assert door.run("select count(*) from _vec_document_1_queue") == [(4,)]
    door.sync()
    assert titles(door.search("date", k=1, sync=False)) == ["strptime"]


def test_a_file_that_cannot_be_written_is_searched_as_it_is(open_door, path, caplog):
    door = open_door()
    door.create_all()
    door.add(row(1, *ROWS[0]))
    door.sync()
    door.add(row(2, "late", "parse a date too late"))
    conn = connect(path)
    conn.execute("begin immediate")  # another program that writes
    door.run("pragma busy_timeout = 50")
    assert titles(door.search("parse a date")) == ["strptime"]
    assert "is searched as it is: the database is locked" in caplog.text
    conn.execute("rollback")
    conn.close()
    assert sorted(titles(door.search("parse a date"))) == ["late", "strptime"]


def test_another_model_is_built_beside_and_takes_over_by_a_sync(open_door, path):
    door = open_door()
    door.create_all()
    door.add(*(row(n, *values) for n, values in enumerate(ROWS, 1)))
    door.sync()
    later = open_door(embedder="hashing@128", quantize="int8")
    assert titles(later.search("parse a date", k=1, mode="semantic")) == ["strptime"]
    assert later.sync().embedded == 4
    conn = connect(path)
    (index,) = indexes(conn)
    assert (index.embedder, index.quantize, index.generation) == ("hashing@128", "int8", 2)
    conn.close()
    assert titles(later.search("parse a date", k=1, mode="semantic")) == ["strptime"]


def test_an_embedder_of_ones_own_is_asked_once_for_each_text(open_door, recorder):
    door = open_door(embedder=recorder)
    door.create_all()
    door.add(*(row(n, *values) for n, values in enumerate(ROWS, 1)))
    assert titles(door.search("parse a date", k=1)) == ["strptime"]
    assert sorted(recorder.texts) == [
        "ZoneInfo\n\nconvert a time zone",
        "empty",
        "reader\n\nread comma separated values",
        "strptime\n\nparse a date from text",
    ]
    door.search("again")
    door.sync(full=True)
    assert len(recorder.texts) == 4


def test_a_template_names_attributes_by_their_names_in_the_class(open_door):
    door = open_door(columns=[], template="On {title}: {body}")
    door.create_all()
    door.add(row(1, *ROWS[0]))
    ((_, hit),) = door.search("date")
    assert hit.chunk.text == "On strptime: parse a date from text"


def test_a_class_that_wants_other_columns_than_the_index_has_is_told_so(open_door):
    door = open_door()
    door.create_all()
    other = open_door(columns=["title"])
    with pytest.raises(IndexExists, match="over title, content of 'document' and the class wants title of"):
        other.search("date")
    named = open_door(columns=["title"], name="titles")
    named.add(row(1, *ROWS[0]))
    assert titles(named.search("strptime")) == ["strptime"]


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"columns": ["titel"]}, ColumnNotFound, "'titel'; it has .*title"),
        ({"columns": []}, ColumnNotFound, "Document: name"),
        ({"columns": "title"}, UsageError, "columns is 'title': give a list of them"),
        ({"name": "not a name"}, InvalidName, "not a name"),
        ({"quantize": "half"}, InvalidSetting, "half"),
    ],
)
def test_a_wrong_declaration_is_refused_at_once(open_door, options, error, says):
    with pytest.raises(error, match=says):
        open_door(**options)


def test_a_wrong_question_is_refused_before_anything_is_written(door):
    for options in ({"k": 0}, {"k": 1_001}, {"offset": -1}, {"mode": "magic"}):
        with pytest.raises(InvalidQuery):
            door.search("date", **options)
    with pytest.raises(InvalidQuery, match="empty"):
        door.search("  ")
    for question in (None, 5, b"date", ["date"]):
        with pytest.raises(InvalidQuery, match="it has to be text"):
            door.search(question)
    assert door.run("select count(*) from _vec_document_1_queue") == [(4,)]


def test_a_class_without_an_index_says_how_to_get_one(door):
    door.Document = door.undeclared()
    with pytest.raises(UsageError, match=r"Plain has no semantic index: .*semantic\(Plain"):
        door.search("date")


class TestMoney:
    """No document is sent to a model that costs money unless a limit was set."""

    @pytest.fixture
    def door(self, open_door, fake):
        opened = open_door(embedder="gemini@768")
        opened.create_all()
        opened.add(*(row(n, *values) for n, values in enumerate(ROWS[:2], 1)))
        return opened

    @staticmethod
    def documents(fake):
        return [text for text in fake.embedded.elements() if "strptime" in text]

    def test_search_buys_no_documents_and_finds_them_by_words(self, door, fake, caplog):
        (entity, hit), *_ = door.search("parse a date")
        assert (entity.title, hit.why.semantic) == ("strptime", None)
        assert self.documents(fake) == []
        assert "call sync_entities with max_usd, or set daily_usd" in caplog.text

    def test_sync_needs_a_limit_and_keeps_to_it(self, door, fake):
        with pytest.raises(ConfirmationNeeded, match=r"about .* for 2 chunks"):
            door.sync()
        assert self.documents(fake) == []
        report = door.sync(max_usd=0.01)
        assert (report.embedded, 0 < report.usd < 0.01) == (2, True)
        (_, hit), *_ = door.search("parse a date")
        assert hit.why.semantic.rank == 1

    def test_a_daily_limit_that_somebody_has_set_is_the_yes(self, door, fake, monkeypatch):
        monkeypatch.setenv("DATASETTE_VEC_DAILY_USD", "0.50")
        (_, hit), *_ = door.search("parse a date")
        assert hit.why.semantic.rank == 1
        assert len(self.documents(fake)) == 1


def test_the_default_model_costs_nothing():
    from datasette_vec_gemini import load_embedder

    assert not load_embedder("local").paid
    assert SEMANTIC["embedder"] != "local"
