"""The command line as a user meets it: sessions, exit codes, one line for every bad input."""

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

from datasette_vec_gemini import connect, create_index, sync
from datasette_vec_gemini.cli import vec
from datasette_vec_gemini.errors import DatabaseUnavailable


@pytest.fixture
def run(path):
    """Run `datasette vec ARGUMENTS`, where DB stands for the test database."""

    def invoke(*arguments, code=0):
        result = CliRunner().invoke(vec, [str(path) if a == "DB" else a for a in arguments])
        assert result.exit_code == code, result.output
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return result

    return invoke


@pytest.fixture
def table(conn):
    conn.executescript(
        """
        create table docs (id integer primary key, title text, body text, year integer);
        insert into docs values (1, 'Dates', 'parse a date from text', 2001), (2, 'Zones', 'convert a time zone', 2002),
            (3, 'Tables', 'read comma separated values', 2003), (4, null, null, 2004);
        create view v as select id, body from docs;
        create table "a""b" (id integer primary key, "b""c" text); insert into "a""b" values (1, 'quoted words');
        create table привет (id integer primary key, текст text); insert into привет values (1, 'русский текст');
        """
    )
    return conn


def test_similar_takes_a_key_as_the_row_s_address_spells_it(run, conn):
    conn.executescript(
        """
        create table docs (id primary key, body text);
        insert into docs values (x'ff01', 'read bytes'), (7, 'read numbers');
        """
    )
    sync(conn, create_index(conn, "docs", table="docs", columns=["body"], embedder="hashing"))
    assert "1. 7\n" in run("similar", "DB", "docs", "ff01").stdout
    assert "1. ff01  [ff01]\n" in run("similar", "DB", "docs", "7").stdout


@pytest.fixture
def indexed(table):
    index = create_index(table, "docs", table="docs", columns=["title", "body"], embedder="hashing")
    sync(table, index)
    return index


def test_a_session_from_a_table_to_an_answer(run, table):
    made = run("index", "DB", "docs", "-c", "title", "-c", "body", "--embedder", "hashing", "--filter-column", "year")
    assert made.stdout.splitlines()[0] == "Index docs on docs (title, body), embedder hashing"
    assert "4 documents read, 3 chunks embedded" in made.stdout
    assert made.stderr == ""
    found = run("search", "DB", "parse a date", "-k", "1").stdout.splitlines()
    assert found[0] == "  1. Dates  [1]"
    assert found[1].strip() == "parse a date from text"
    assert "words: #1" in found[2]
    assert run("search", "DB", "time", "--filter", "year__gte=2003", "--mode", "semantic").stdout.count("score") == 1
    assert "  1. " in run("similar", "DB", "docs", "1", "-k", "2").stdout
    assert "4 rows = 3 indexed + 0 pending + 0 failed + 1 empty" in run("status", "DB").stdout
    assert run("verify", "DB").stdout == "docs: all checks hold\n"
    assert "generation 2" in run("rebuild", "DB", "docs", "--embedder", "hashing@64").stdout
    assert "generation 2" in run("rebuild", "DB", "docs").stdout
    assert "0 documents read" in run("sync", "DB").stdout
    assert "4 documents read" in run("sync", "DB", "docs", "--full").stdout
    assert run("drop", "DB", "docs", "--vec0-only").stdout == "Dropped the vec0 table of index docs\n"
    assert "  1. Dates" in run("search", "DB", "parse a date", "-k", "1").stdout
    assert run("drop", "DB", "docs").stdout == "Dropped index docs\n"


def test_search_prints_json_in_its_documented_shape(run, indexed):
    answer = json.loads(run("search", "DB", "parse a date", "-k", "1", "--json").stdout)
    assert list(answer) == ["query", "index", "mode", "took_ms", "pending", "notices", "hits"]
    assert answer | {"took_ms": 0, "hits": []} == {
        "query": "parse a date",
        "index": "docs",
        "mode": "hybrid",
        "took_ms": 0,
        "pending": 0,
        "notices": [],
        "hits": [],
    }
    (hit,) = answer["hits"]
    assert list(hit) == ["key", "score", "title", "snippet", "chunk", "row", "why"]
    assert hit["key"] == [1]
    assert hit["chunk"] == {"position": 0, "start": 0, "end": 29}
    assert hit["row"] == {"id": 1, "title": "Dates", "body": "parse a date from text", "year": 2001}
    assert {side: list(value) for side, value in hit["why"].items() if side != "fused"} == {
        "keyword": ["rank", "bm25"],
        "semantic": ["rank", "cosine"],
    }


def test_pending_rows_are_said(run, indexed, table):
    table.execute("insert into docs values (5, 'New', 'not indexed yet', 2005)")
    table.commit()
    assert json.loads(run("search", "DB", "date", "--json").stdout)["pending"] == 1
    assert "1 row not indexed yet" in run("search", "DB", "date").stderr
    assert "1 pending" in run("status", "DB").stdout
    assert json.loads(run("status", "DB", "--json").stdout)[0]["pending"] == 1


def test_verify_finds_damage_and_repair_mends_it(run, indexed, table):
    table.executescript(
        """
        drop trigger _vec_docs_1_upd;
        update docs set body = 'behind the triggers' where id = 1;
        update _vec_docs_1_chunks set embedding = zeroblob(12) where k0 = 2;
        delete from _vec_docs_1_codes where id = (select id from _vec_docs_1_chunks where k0 = 3);
        insert into _vec_docs_1_fts (_vec_docs_1_fts, rowid, text) select 'delete', id, text from _vec_docs_1_chunks limit 1;
        update _vec_docs_1_chunks set digest = x'00' where k0 = 3;
        """
    )
    problems = {problem["check"] for problem in json.loads(run("verify", "DB", "--json", code=1).stdout)["docs"]}
    assert problems >= {"triggers", "documents", "digests", "vectors", "codes", "keywords"}
    assert run("verify", "DB", "--repair").stdout.count("(mended)") == len(problems)
    assert run("verify", "DB").stdout == "docs: all checks hold\n"


def test_the_names_of_a_file_may_be_anything(run, table):
    run("index", "DB", 'a"b', "-c", 'b"c', "--name", "quoted", "--embedder", "hashing")
    run("index", "DB", "привет", "-c", "текст", "--name", "hello", "--embedder", "hashing")
    run("index", "DB", "v", "-c", "body", "--key", "id", "--embedder", "hashing")
    assert "quoted words" in run("search", "DB", "words", "--index", "quoted").stdout
    assert "русский текст" in run("search", "DB", "текст", "--index", "HELLO").stdout
    assert run("verify", "DB").stdout.count("all checks hold") == 3


HASHING = ("--embedder", "hashing")
BAD = {
    "missing table": (
        ["index", "DB", "nope", "-c", "x", *HASHING],
        2,
        "no table or view 'nope'; it has a\"b, docs, v, v2, привет",
    ),
    "missing column": (
        ["index", "DB", "docs", "-c", "nope", *HASHING],
        2,
        "'docs' has no column 'nope'; it has id, title",
    ),
    "no column": (["index", "DB", "docs", *HASHING], 2, "choose from id, title, body, year"),
    "missing filter column": (
        ["index", "DB", "docs", "-c", "body", "--filter-column", "x", *HASHING],
        2,
        "no column 'x'",
    ),
    "bad template": (["index", "DB", "docs", "--template", "{nope}", *HASHING], 2, "no column 'nope'"),
    "existing index": (["index", "DB", "docs", "-c", "body", *HASHING], 2, "'docs' already"),
    "existing index in capitals": (["index", "DB", "docs", "-c", "body", "--name", "DOCS", *HASHING], 2, "already"),
    "colliding name": (
        ["index", "DB", "docs", "-c", "body", "--name", "docs_1_codes", *HASHING],
        2,
        "use another --name",
    ),
    "registry's name": (["index", "DB", "docs", "-c", "body", "--name", "indexes", *HASHING], 2, "use another --name"),
    "quotes in a name": (["index", "DB", "docs", "-c", "body", "--name", 'a"b', *HASHING], 2, "--name"),
    "unicode in a name": (["index", "DB", "привет", "-c", "текст", *HASHING], 2, "--name"),
    "empty name": (["index", "DB", "docs", "-c", "body", "--name", " ", *HASHING], 2, "--name"),
    "view without key": (["index", "DB", "v", "-c", "body", "--name", "v", *HASHING], 2, "--key"),
    "key of a view twice": (["index", "DB", "v2", "-c", "body", "--key", "n", *HASHING], 2, "more than one row"),
    "key for a table": (
        ["index", "DB", "docs", "-c", "body", "--key", "id", "--name", "x", *HASHING],
        2,
        "its own key",
    ),
    "unknown embedder": (
        ["index", "DB", "docs", "-c", "body", "--name", "x", "--embedder", "gpt"],
        2,
        "there are: gemini, google-generativeai, hashing, local",
    ),
    "embedder's option": (
        ["index", "DB", "docs", "-c", "body", "--name", "x", "--embedder", "hashing@7"],
        2,
        "multiple of 8",
    ),
    "unknown quantizer": (
        ["index", "DB", "docs", "-c", "body", "--quantize", "int4", *HASHING],
        2,
        "'int4' is not one of",
    ),
    "k of -1": (["search", "DB", "date", "-k", "-1"], 2, "k is -1; it can be 1 to 1,000"),
    "k of 0": (["search", "DB", "date", "-k", "0"], 2, "k is 0; it can be 1 to 1,000"),
    "k of a milliard": (["search", "DB", "date", "-k", "1000000000"], 2, "k is 1000000000; it can be 1 to 1,000"),
    "negative offset": (["search", "DB", "date", "--offset", "-1"], 2, "offset is -1"),
    "deep offset": (["search", "DB", "date", "--offset", "995"], 2, "narrow it with filters"),
    "empty query": (["search", "DB", "  "], 2, "say what to search for"),
    "a megabyte": (["search", "DB", "x" * 1_000_000], 2, "1,000,000 characters; the limit is 10,000"),
    "NUL": (["search", "DB", "a\0b"], 2, "U+0000 at position 1"),
    "lone surrogate": (["search", "DB", "a\udc80b"], 2, "U+DC80 at position 1"),
    "unknown mode": (["search", "DB", "date", "--mode", "magic"], 2, "'magic' is not one of"),
    "unknown filter": (["search", "DB", "date", "--filter", "colour=red"], 2, "no column 'colour'"),
    "filter without value": (["search", "DB", "date", "--filter", "year"], 2, "COLUMN=VALUE"),
    "filter twice": (["search", "DB", "date", "--filter", "year=1", "--filter", "year=2"], 2, "year__in=A,B"),
    "missing index": (["search", "DB", "date", "--index", "nope"], 2, "no index 'nope'; it has docs"),
    "missing key": (["similar", "DB", "docs", "99"], 2, "no row with the key 99"),
    "sync of a missing index": (["sync", "DB", "nope"], 2, "no index 'nope'"),
    "drop of a missing index": (["drop", "DB", "nope"], 2, "no index 'nope'"),
    "another model": (
        ["search", "DB", "date", "--index", "foreign", "--mode", "semantic"],
        1,
        "rebuild the index with `datasette vec rebuild DB foreign",
    ),
    "no path": (["status", ""], 1, "'.' is a directory: name the database file"),
    "a directory": (["search", "..", "x"], 1, "'..' is a directory"),
    "a memory without a path": (["mcp", ""], 1, "is a directory"),
    "a demo of less than nothing": (["demo", "DB", "--limit", "-1"], 2, "-1 is not in the range x>=1"),
    "bytes that are no text": (["index", "DB", "caf\udce9", "-c", "x"], 2, "is not UTF-8: write it as text"),
    "a template without a column": (["index", "DB", "docs", "--template", "{title"], 2, "'{title' has no {column}"),
    "missing file": (["search", "nowhere/nothing.db", "x"], 1, "there is no file 'nothing.db'"),
    "queries that are missing": (
        ["eval", "DB", "docs", "--queries", "none.jsonl", "--qrels", "none.tsv"],
        2,
        "none.jsonl cannot be read",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gives_one_line_with_the_remedy_and_changes_nothing(run, indexed, table, contents, case):
    table.execute("create view v2 as select 1 as n, body from docs")
    if case == "another model":
        create_index(table, "foreign", table="docs", columns=["body"], embedder="hashing")
        table.execute("update _vec_indexes set fingerprint = 'hashing/an older version' where name = 'foreign'")
        table.commit()
    arguments, code, message = BAD[case]
    before = contents()
    result = run(*arguments, code=code)
    assert message in result.stderr
    assert result.stdout == ""
    if not result.stderr.startswith("Usage:"):
        assert result.stderr.startswith("Error: ")
        assert result.stderr.count("\n") == 1
        assert len(result.stderr) < 400
    assert contents() == before


def test_a_file_that_is_no_database_is_said_to_be_one_and_left_alone(run, path):
    path.write_bytes(b"just some text, long enough to be looked at as a header of a database file" * 20)
    before = path.read_bytes()
    for arguments in (["index", "DB", "docs", "-c", "x"], ["search", "DB", "x"], ["sync", "DB"], ["status", "DB"]):
        assert "not a SQLite database" in run(*arguments, code=1).stderr
    assert path.read_bytes() == before


def test_a_database_without_an_index_says_how_to_make_one(run, table):
    for command in (["search", "DB", "x"], ["status", "DB"], ["sync", "DB"], ["verify", "DB"]):
        assert "datasette vec index DB TABLE -c COLUMN" in run(*command, code=2).stderr


def test_an_index_whose_table_is_gone_does_not_stop_the_others(run, indexed, table):
    create_index(table, "others", table='a"b', columns=['b"c'], embedder="hashing")
    table.execute("drop table docs")
    table.commit()
    for command, told in (
        (["sync", "DB"], "Synced others: 1 document read"),
        (["status", "DB"], "others"),
        (["verify", "DB"], "others: all checks hold"),
    ):
        result = run(*command, code=2)
        assert told in result.stdout
        assert result.stderr.startswith("Error: ")
        assert "docs" in result.stderr
    assert [each["name"] for each in json.loads(run("status", "DB", "--json", code=2).stdout)] == ["others"]


def test_a_row_of_the_registry_that_cannot_be_read_is_named(run, indexed, table):
    table.execute("update _vec_indexes set columns = '[title'")
    table.commit()
    for command in (["search", "DB", "x"], ["status", "DB"], ["sync", "DB"], ["verify", "DB"]):
        assert "the row of index 'docs' in _vec_indexes is damaged" in run(*command, code=1).stderr


def test_a_query_of_brackets_alone_is_refused_with_its_line(run, indexed, tmp_path):
    (queries := tmp_path / "queries.jsonl").write_text("[" * 100_000)
    (qrels := tmp_path / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\n")
    refused = run("eval", "DB", "docs", "--queries", str(queries), "--qrels", str(qrels), code=2)
    assert "queries.jsonl, line 1" in refused.stderr


def test_several_indexes_have_to_be_told_apart(run, indexed, table):
    create_index(table, "more", table="docs", columns=["body"], embedder="hashing")
    assert "docs, more: name one with --index" in run("search", "DB", "x", code=2).stderr


def test_rows_that_fail_end_with_code_3_and_are_listed(run, indexed, table):
    table.execute("update _vec_docs_1_chunks set embedding = null, error = 'too hot', attempts = 3 where k0 = 2")
    table.commit()
    assert "1 chunk failed" in run("sync", "DB", code=3).stderr
    assert "failed: 2: too hot" in run("status", "DB").stdout


def test_a_read_only_database_is_said_to_be_read_only(indexed, table, path):
    table.execute("update docs set body = 'changed'")
    table.commit()
    reader = connect(path, read_only=True)
    with pytest.raises(
        DatabaseUnavailable, match="the database is read-only: make the file and its directory writable"
    ):
        sync(reader, indexed)
    reader.close()


@pytest.mark.slow
def test_a_locked_database_is_said_to_be_locked(run, indexed, path):
    """Another process holds the write lock for longer than anybody waits."""
    program = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('begin immediate'); print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", program, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout.readline() == b"held\n"
        result = run("sync", "DB", "--full", code=1)
        assert "  1. " in run("search", "DB", "date").stdout
        holder.stdin.close()
    assert "locked by another program" in result.stderr


def test_eval_prints_the_quality_of_every_mode(run, indexed, tmp_path):
    queries, qrels = tmp_path / "q.jsonl", tmp_path / "q.tsv"
    queries.write_text(
        '{"_id": "a", "text": "parse a date"}\n{"_id": "b", "text": "comma"}\n{"_id": "c", "text": "unjudged"}\n'
    )
    qrels.write_text("query-id\tcorpus-id\tscore\na\t1\t1\nb\t3\t1\n")
    lines = run("eval", "DB", "docs", "--queries", str(queries), "--qrels", str(qrels)).stdout.splitlines()
    assert lines[0].split() == ["mode", "nDCG@10", "recall@10", "2", "queries"]
    assert [line.split() for line in lines[1:]] == [
        [mode, "1.0000", "1.0000"] for mode in ("hybrid", "semantic", "keyword")
    ]


def test_the_doctor_finds_this_machine_well(run, monkeypatch):
    for name in ("GOOGLE_API_KEY", "GEMINI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    lines = run("doctor").stdout.splitlines()
    assert all(line.startswith("ok") for line in lines)
    assert {line.split()[1] for line in lines} >= {"Python", "SQLite", "FTS5", "vectors", "local"}


def test_the_demo_builds_answers_and_goes_on_where_it_stopped(run, tmp_path):
    demo = str(tmp_path / "demo.db")
    first = run("demo", demo, "--no-serve", "--limit", "40").stdout
    assert "40 docstrings" in first
    assert first.count("$ datasette vec search") == 3
    assert "0 documents read, 0 chunks embedded" in run("demo", demo, "--no-serve", "--limit", "40").stdout
    assert "20 documents read" in run("demo", demo, "--no-serve", "--limit", "60").stdout
    assert run("verify", demo).stdout == "stdlib: all checks hold\n"


def test_datasette_carries_the_command(path):
    result = subprocess.run(
        [sys.executable, "-m", "datasette", "vec", "--help"], capture_output=True, text=True, check=True
    )
    commands = result.stdout.partition("Commands:")[2].split("\n")
    listed = {line.split()[0] for line in commands if line.startswith("  ") and not line.startswith("   ")}
    assert listed == {
        "index",
        "sync",
        "search",
        "similar",
        "status",
        "verify",
        "rebuild",
        "drop",
        "estimate",
        "eval",
        "doctor",
        "mcp",
        "demo",
    }
