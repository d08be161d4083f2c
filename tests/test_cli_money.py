"""What the command line may spend: asked first, capped, written down, and nothing paid for twice or lost."""

import json
import os
import re
import subprocess
import sys
import time

import fake_gemini
import pytest
from click.testing import CliRunner
from fake_gemini import FakeGemini
from fakes import written_down

from datasette_vec_gemini.cli import vec

pytestmark = pytest.mark.slow

GEMINI = ("--embedder", "gemini")
WRONG = "AIzaSyCANARY-of-nobody"
CANARY = re.compile("CANARY")
VARIABLES = ("GOOGLE_API_KEY", "GEMINI_API_KEY", "GOOGLE_GEMINI_BASE_URL", "DATASETTE_VEC_DAILY_USD")


@pytest.fixture
def fake():
    with FakeGemini() as service:
        yield service


@pytest.fixture
def key(fake, monkeypatch):
    """The environment of somebody who has a key."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GEMINI_API_KEY", fake_gemini.KEY)
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", fake.url)
    return monkeypatch


@pytest.fixture
def run(path, key):
    """Run `datasette vec ARGUMENTS` where nobody can be asked; DB stands for the test database."""

    def invoke(*arguments, code=0):
        result = CliRunner().invoke(vec, [str(path) if a == "DB" else a for a in arguments])
        assert result.exit_code == code, result.output
        assert not CANARY.search(result.output)
        return result

    return invoke


@pytest.fixture
def terminal(path, key):
    """Run a command in a process of its own whose input, output and errors are a terminal, and type an answer."""
    pty = pytest.importorskip("pty", exc_type=ImportError)

    def invoke(answer, *arguments, code):
        main, side = pty.openpty()
        program = [sys.executable, "-c", "from datasette_vec_gemini.cli import vec; vec(prog_name='vec')"]
        arguments = [str(path) if a == "DB" else a for a in arguments]
        with subprocess.Popen([*program, *arguments], stdin=side, stdout=side, stderr=side) as process:
            os.close(side)
            os.write(main, answer)
            shown = bytearray()
            while part := _read(main):
                shown += part
        os.close(main)
        text = shown.decode()
        assert process.returncode == code, text
        assert not CANARY.search(text)
        return text

    return invoke


def _read(descriptor):
    try:
        return os.read(descriptor, 65_536)
    except OSError:  # Linux says so when the other side is closed
        return b""


@pytest.fixture
def table(conn):
    """Three hundred rows that are all different, four requests' worth of them."""
    conn.execute("create table docs (id integer primary key, title text, body text)")
    rows = [(n, f"Title {n}", f"a body about {'fish' if n % 2 else 'birds'}, number {n}") for n in range(1, 301)]
    conn.executemany("insert into docs values (?, ?, ?)", rows)
    conn.execute("create table other (id integer primary key, body text)")
    conn.executemany("insert into other values (?, ?)", [(n, f"another text, number {n}") for n in range(5)])
    conn.commit()
    return conn


@pytest.fixture
def declared(run, table):
    run("index", "DB", "docs", "-c", "title", "-c", "body", *GEMINI, "--no-sync")
    return table


@pytest.fixture
def filled(run, declared):
    run("sync", "DB", "--yes")
    return declared


def paid_texts(fake):
    """The texts that were paid for, with how often; what goes along to prove the order is left out."""
    return {text: times for text, times in fake.embedded.items() if "came back in order" not in text}


def ledger(conn):
    written_down()
    found = conn.execute("select sum(requests), sum(texts), sum(tokens), sum(usd) from _vec_usage").fetchone()
    return dict(zip(("requests", "texts", "tokens", "usd"), found, strict=True))


def vectors(conn, name="docs", generation=1):
    return conn.execute(f"select count(embedding) from _vec_{name}_{generation}_chunks").fetchone()[0]


def dollars(text):
    return float(re.search(r"\$([\d.]+)", text)[1])


# estimate


def test_an_estimate_needs_no_key_asks_nobody_and_changes_nothing(run, fake, declared, key, contents):
    key.delenv("GEMINI_API_KEY")
    before = contents()
    lines = run("estimate", "DB", "docs").stdout.splitlines()
    assert lines[0] == "docs with gemini: 300 chunks of 300 rows to embed"
    assert re.fullmatch(r"About \d,\d{3} tokens, \$0.\d+ \(prices as of 2026-11-22\), less than a minute", lines[1])
    assert lines[2].startswith("Nothing was spent; to go on: datasette vec sync ")
    assert lines[2].endswith(" docs --max-usd 0.01")
    assert contents() == before
    assert fake.requests == []


def test_an_estimate_as_json_has_every_figure(run, declared):
    expected = json.loads(run("estimate", "DB", "docs", "--json").stdout)
    assert list(expected) == ["index", "embedder", "rows", "chunks", "tokens", "usd", "minutes", "prices_as_of"]
    assert expected["usd"] == pytest.approx(expected["tokens"] * 0.20 / 1e6)


def test_an_estimate_of_another_model_names_the_rebuild(run, declared):
    assert "rebuild" in run("estimate", "DB", "docs", "--embedder", "gemini:gemini-embedding-001").stdout


@pytest.mark.parametrize("embedder", ["local", "hashing"])
def test_an_estimate_of_a_model_that_is_not_paid_says_that_it_costs_nothing(run, declared, embedder):
    said = run("estimate", "DB", "docs", "--embedder", embedder).stdout
    assert "It costs nothing" in said
    assert "$" not in said


def test_an_estimate_of_what_is_complete_says_that_it_costs_nothing(run, filled):
    assert "It costs nothing: every vector is there" in run("estimate", "DB", "docs").stdout


# index


def test_a_paid_index_without_a_word_on_its_cost_changes_not_a_byte(run, fake, table, path, contents):
    before, raw = contents(), path.read_bytes()
    said = run("index", "DB", "docs", "-c", "body", *GEMINI, code=2).stderr
    for remedy in ("--yes", "--max-usd", "--no-sync", "datasette vec estimate"):
        assert remedy in said
    assert said.count("\n") == 1
    assert (contents(), path.read_bytes()) == (before, raw)
    assert fake.requests == []


def test_a_paid_index_without_a_key_changes_not_a_byte(run, table, key, path):
    key.delenv("GEMINI_API_KEY")
    before = path.read_bytes()
    said = run("index", "DB", "docs", "-c", "body", *GEMINI, "--yes", code=1).stderr
    assert "set GEMINI_API_KEY" in said
    assert "local" in said
    assert path.read_bytes() == before


def test_a_paid_index_can_be_declared_without_a_key_and_without_spending(run, fake, table, key):
    key.delenv("GEMINI_API_KEY")
    run("index", "DB", "docs", "-c", "body", *GEMINI, "--no-sync")
    assert "300 pending" in run("status", "DB").stdout
    assert fake.requests == []


@pytest.mark.parametrize("word", [["--yes"], ["--max-usd", "0.01"], ["--yes", "--max-usd", "0.01"]], ids=" ".join)
def test_with_a_word_on_its_cost_an_index_is_filled_and_every_token_is_written_down(run, fake, table, word):
    said = run("index", "DB", "docs", "-c", "title", "-c", "body", *GEMINI, *word).stdout
    assert vectors(table) == 300
    answered = [received for received in fake.requests if received.status == 200]
    tokens = sum(-(-len(text.encode()) // 4) for received in answered for text in received.texts)
    assert ledger(table) == {
        "requests": len(answered),
        "texts": sum(len(received.texts) for received in answered),
        "tokens": tokens,
        "usd": pytest.approx(tokens * 0.20 / 1e6),
    }
    assert f"300 chunks embedded, {tokens:,} tokens, $" in said
    assert dollars(said) == pytest.approx(tokens * 0.20 / 1e6, rel=0.05)
    assert set(paid_texts(fake).values()) == {1}


@pytest.mark.parametrize("usd", ["nan", "inf", "-1", "much"])
@pytest.mark.parametrize("command", [["sync", "DB"], ["index", "DB", "docs", "-c", "body", *GEMINI]], ids=" ".join)
def test_what_is_no_amount_of_dollars_is_refused(run, table, contents, command, usd):
    before = contents()
    assert "--max-usd" in run(*command, "--max-usd", usd, code=2).stderr
    assert contents() == before


def test_a_model_on_this_machine_is_never_asked_about(run, fake, table):
    run("index", "DB", "docs", "-c", "body", "--embedder", "hashing")
    run("rebuild", "DB", "docs", "--embedder", "hashing@64")
    assert "$" not in run("sync", "DB", "--full").output
    assert fake.requests == []


# sync


def test_a_sync_that_nobody_agreed_to_finishes_the_words_and_spends_nothing(run, fake, declared):
    said = run("sync", "DB", code=2).stderr
    for part in ("300 chunks of 300 rows", "tokens", "prices as of 2026-11-22", "--yes", "--max-usd 0.01"):
        assert part in said
    assert "search by keywords is ready" in said
    assert said.count("\n") == 1
    assert fake.requests == []
    assert "Title 7 " in run("search", "DB", "title 7", "--mode", "keyword", "-k", "1").stdout


def test_a_sync_without_anything_to_embed_needs_no_word_and_no_key(run, fake, filled, key):
    key.delenv("GEMINI_API_KEY")
    asked = len(fake.requests)
    filled.execute("delete from docs where id > 290")
    filled.commit()
    assert "10 chunks removed" in run("sync", "DB").stdout
    assert len(fake.requests) == asked


def test_a_run_stops_at_its_cap_with_code_4_and_the_next_pays_for_nothing_twice(run, fake, declared):
    stopped = run("sync", "DB", "--max-usd", "0.0008", code=4)
    kept = vectors(declared)
    assert 0 < kept < 300
    assert len(paid_texts(fake)) == kept
    assert ledger(declared)["usd"] <= 0.0008
    told, error = stopped.stderr.splitlines()
    assert f"{kept:,} of 300 chunks are embedded and kept, {300 - kept:,} pending" in told
    assert dollars(told) == pytest.approx(ledger(declared)["usd"], rel=0.05)
    assert "datasette vec sync " in told
    assert error.startswith("Error: ")
    run("sync", "DB", "--yes")
    assert vectors(declared) == 300
    assert set(paid_texts(fake).values()) == {1}
    assert run("verify", "DB").stdout == "docs: all checks hold\n"


def test_a_cap_of_nothing_spends_nothing(run, fake, declared):
    assert "0 of 300 chunks" in run("sync", "DB", "--max-usd", "0", code=4).stderr
    assert fake.embedded == {}


def test_the_cap_of_a_day_holds_for_all_runs_together(run, fake, declared, key):
    key.setenv("DATASETTE_VEC_DAILY_USD", "0.0008")
    assert "DATASETTE_VEC_DAILY_USD" in run("sync", "DB", "--yes", code=4).stderr
    spent = ledger(declared)["usd"]
    assert 0 < spent <= 0.0008
    run("sync", "DB", "--yes", code=4)
    assert spent <= ledger(declared)["usd"] <= 0.0008  # a small text may still have fitted
    key.delenv("DATASETTE_VEC_DAILY_USD")
    run("sync", "DB", "--yes")
    assert set(paid_texts(fake).values()) == {1}


def test_a_quota_that_is_used_up_ends_with_code_4_and_says_how_to_go_on(run, fake, declared):
    fake.texts_per_day = 150
    stopped = run("sync", "DB", "--yes", code=4).stderr
    kept = vectors(declared)
    assert 0 < kept < 150
    assert f"{kept} of 300 chunks are embedded and kept" in stopped
    assert "used up for today" in stopped
    fake.texts_per_day = None
    run("sync", "DB", "--yes")
    assert set(paid_texts(fake).values()) == {1}


def test_a_key_that_is_refused_ends_with_code_1_after_one_call(run, fake, declared, key):
    key.setenv("GEMINI_API_KEY", WRONG)
    assert "refuses the API key from GEMINI_API_KEY" in run("sync", "DB", "--yes", code=1).stderr
    assert len(fake.requests) <= 2  # as many as are under way at once
    assert ledger(declared)["usd"] in {None, 0}


def test_one_cap_holds_for_all_indexes_of_a_run(run, fake, declared):
    run("index", "DB", "docs", "-c", "body", *GEMINI, "--name", "bodies", "--no-sync")
    run("sync", "DB", "--max-usd", "0.0015", code=4)
    assert vectors(declared, "bodies") == 300
    assert 0 < vectors(declared) < 300
    assert ledger(declared)["usd"] <= 0.0015


def test_when_one_index_stops_the_words_of_the_others_are_indexed_all_the_same(run, fake, declared):
    run("index", "DB", "other", "-c", "body", *GEMINI, "--name", "paid", "--no-sync")
    run("index", "DB", "other", "-c", "body", "--embedder", "hashing", "--name", "unpaid", "--no-sync")
    stopped = run("sync", "DB", "--max-usd", "0.0001", code=4)
    assert stopped.stderr.count("Error: ") == 1
    assert vectors(declared, "paid") == 0
    assert vectors(declared, "unpaid") == 5
    for name in ("paid", "unpaid"):
        assert "  1. " in run("search", "DB", "another", "--index", name, "--mode", "keyword").stdout


def test_what_nobody_agreed_to_is_told_of_every_index(run, fake, declared):
    run("index", "DB", "other", "-c", "body", *GEMINI, "--no-sync")
    said = run("sync", "DB", code=2).stderr
    assert [line.split(" with ")[0] for line in said.splitlines()] == ["Error: docs", "Error: other"]
    assert fake.requests == []


# On a terminal


def test_on_a_terminal_a_yes_to_the_exact_estimate_fills_the_index(terminal, table):
    shown = terminal(b"y\n", "index", "DB", "docs", "-c", "title", "-c", "body", *GEMINI, code=0)
    question = shown.index("Spend this? [y/N]:")
    assert "docs with gemini: 300 chunks of 300 rows to embed, about" in shown[:question]
    assert "300 chunks embedded" in shown[question:]
    assert vectors(table) == 300


@pytest.mark.parametrize("answer", [b"n\n", b"\n", b"\x04"], ids=["no", "enter", "end"])
def test_on_a_terminal_anything_but_a_yes_spends_nothing(terminal, run, fake, table, answer):
    shown = terminal(answer, "index", "DB", "docs", "-c", "body", *GEMINI, code=2)
    assert "nothing was spent" in shown
    assert "datasette vec sync" in shown
    assert fake.requests == []
    assert "  1. " in run("search", "DB", "fish", "--mode", "keyword").stdout


def test_on_a_terminal_every_index_is_asked_about(terminal, run, fake, declared):
    run("index", "DB", "other", "-c", "body", *GEMINI, "--no-sync")
    shown = terminal(b"n\ny\n", "sync", "DB", code=2)
    assert shown.count("Spend this?") == 2
    assert (vectors(declared), vectors(declared, "other")) == (0, 5)


def test_on_a_terminal_an_option_that_says_yes_saves_the_question(terminal, declared):
    assert "Spend this?" not in terminal(b"", "sync", "DB", "--max-usd", "0.01", code=0)
    assert vectors(declared) == 300


# rebuild


def test_a_rebuild_that_nobody_agreed_to_changes_nothing(run, fake, filled, contents):
    before, asked = contents(), len(fake.requests)
    said = run("rebuild", "DB", "docs", "--embedder", "gemini:gemini-embedding-001", code=2).stderr
    assert "300 chunks of 300 rows" in said
    assert "nothing was changed" in said
    assert (contents(), len(fake.requests)) == (before, asked)


def test_a_rebuild_with_a_paid_model_and_no_key_changes_nothing(run, table, key, contents):
    run("index", "DB", "docs", "-c", "body", "--embedder", "hashing")
    key.delenv("GEMINI_API_KEY")
    before = contents()
    assert "no API key" in run("rebuild", "DB", "docs", *GEMINI, "--yes", code=1).stderr
    assert contents() == before


def test_a_rebuild_that_was_declined_on_a_terminal_changes_nothing(terminal, run, fake, table, contents):
    run("index", "DB", "docs", "-c", "body", "--embedder", "hashing")
    before = contents()
    assert "nothing was changed" in terminal(b"n\n", "rebuild", "DB", "docs", *GEMINI, code=2)
    assert contents() == before
    assert fake.requests == []


def test_a_rebuild_is_asked_about_once(terminal, run, table):
    run("index", "DB", "other", "-c", "body", "--embedder", "hashing")
    shown = terminal(b"y\n", "rebuild", "DB", "other", *GEMINI, code=0)
    assert shown.count("Spend this?") == 1
    assert vectors(table, "other", 2) == 5


def test_a_cut_to_fewer_dimensions_needs_no_word_no_key_and_no_call(run, fake, filled, key):
    key.delenv("GEMINI_API_KEY")
    asked = len(fake.requests)
    said = run("rebuild", "DB", "docs", "--embedder", "gemini@256").stdout
    assert "generation 2" in said
    assert "0 chunks embedded, 300 reused" in said
    assert len(fake.requests) == asked


def test_a_rebuild_that_stops_at_its_cap_goes_on_without_naming_the_model(run, fake, filled):
    fake.embedded.clear()
    stopped = run("rebuild", "DB", "docs", "--embedder", "gemini:gemini-embedding-001", "--max-usd", "0.0005", code=4)
    assert "of 300 chunks are embedded and kept" in stopped.stderr
    assert re.search("To go on: datasette vec rebuild .* docs$", stopped.stderr, re.MULTILINE)
    kept = vectors(filled, generation=2)
    assert 0 < kept < 300
    assert "  1. Title 7" in run("search", "DB", "title 7", "-k", "1").stdout
    assert f"{300 - kept} chunks" in run("rebuild", "DB", "docs", code=2).stderr
    assert "generation 2" in run("rebuild", "DB", "docs", "--yes").stdout
    assert len(paid_texts(fake)) >= 300
    assert vectors(filled, generation=2) == 300
    assert set(paid_texts(fake).values()) == {1}


def test_going_back_to_what_was_kept_is_free(run, fake, filled):
    run("rebuild", "DB", "docs", "--embedder", "gemini:gemini-embedding-001", "--keep-old", "--yes")
    asked = len(fake.requests)
    assert "0 chunks embedded, 300 reused" in run("rebuild", "DB", "docs", *GEMINI).stdout
    assert len(fake.requests) == asked


# search


def test_a_repair_that_has_to_buy_vectors_anew_wants_a_word_on_its_cost(run, fake, filled):
    filled.execute("update _vec_docs_1_chunks set embedding = zeroblob(12) where id <= 5")
    filled.commit()
    before = len(fake.requests)
    refused = run("verify", "DB", "--repair", code=2)
    assert "5 chunks of 5 rows" in refused.stderr
    assert len(fake.requests) == before
    run("sync", "DB", "--yes")
    assert len(fake.requests) == before + 1
    filled.execute("update _vec_docs_1_chunks set embedding = zeroblob(12) where id = 7")
    filled.commit()
    run("verify", "DB", "--repair", "--yes")
    assert len(fake.requests) == before + 2
    assert run("verify", "DB").stdout == "docs: all checks hold\n"


def test_a_search_without_the_model_answers_by_words_and_says_why(run, fake, filled, key):
    key.delenv("GEMINI_API_KEY")
    found = run("search", "DB", "title 7", "-k", "1")
    assert found.stdout.startswith("  1. Title 7")
    assert found.stderr.startswith("(Searched by exact words only: there is no API key")
    answer = json.loads(run("search", "DB", "title 7", "-k", "1", "--json").stdout)
    assert answer["mode"] == "keyword"
    assert len(answer["notices"]) == 1
    assert answer["hits"][0]["key"] == [7]
    assert "no API key" in run("search", "DB", "title 7", "--mode", "semantic", code=1).stderr
    assert run("search", "DB", "title 7", "--mode", "keyword").stderr == ""


@pytest.mark.parametrize("fault", ["hang", "503", "429-daily", "nan", "400-key"])
def test_a_search_while_the_service_fails_answers_by_words_in_its_time(run, fake, filled, key, fault):
    key.setenv("DATASETTE_VEC_QUERY_SECONDS", "1.5")
    fake.always = fault
    started = time.monotonic()
    answer = json.loads(run("search", "DB", "title 7", "-k", "1", "--json").stdout)
    assert time.monotonic() - started < 3
    assert (answer["mode"], answer["hits"][0]["key"], len(answer["notices"])) == ("keyword", [7], 1)


def test_searches_are_written_down_and_stop_at_the_cap_of_the_day(run, fake, filled, key):
    before = ledger(filled)
    assert json.loads(run("search", "DB", "a new question", "--json").stdout)["mode"] == "hybrid"
    assert ledger(filled)["texts"] == before["texts"] + 1
    key.setenv("DATASETTE_VEC_DAILY_USD", "0.0000001")
    answer = json.loads(run("search", "DB", "another question", "--json").stdout)
    assert answer["mode"] == "keyword"
    assert "daily_usd" in answer["notices"][0]
    assert "daily_usd" in run("search", "DB", "another question", "--mode", "semantic", code=4).stderr


# eval


@pytest.fixture
def judged(tmp_path):
    queries, qrels = tmp_path / "q.jsonl", tmp_path / "q.tsv"
    asked = {"a": "title 7", "b": "title 8", "c": "title 8", "d": "is not judged"}
    queries.write_text("\n".join(json.dumps({"_id": id_, "text": text}) for id_, text in asked.items()))
    qrels.write_text("query-id\tcorpus-id\tscore\na\t7\t1\nb\t8\t1\nc\t8\t1\n")
    return ["--queries", str(queries), "--qrels", str(qrels)]


def test_an_evaluation_that_nobody_agreed_to_asks_nothing(run, fake, filled, judged):
    asked = len(fake.requests)
    said = run("eval", "DB", "docs", *judged, code=2).stderr
    assert "2 questions to embed" in said
    assert "--max-usd 0.01" in said
    assert len(fake.requests) == asked


def test_an_evaluation_asks_each_question_once_for_all_modes(run, fake, filled, judged):
    before, asked = ledger(filled), len(fake.requests)
    result = run("eval", "DB", "docs", *judged, "--yes")
    assert "3 queries" in result.stdout
    assert len(fake.requests) == asked + 2
    assert ledger(filled)["texts"] == before["texts"] + 2
    assert result.stderr.startswith("2 questions embedded, ")


def test_an_evaluation_stops_at_its_cap(run, fake, filled, judged):
    asked = len(fake.requests)
    said = run("eval", "DB", "docs", *judged, "--max-usd", "0.000003", code=4)
    assert said.stdout == ""
    assert said.stderr.startswith("1 question embedded, ")
    assert len(fake.requests) == asked + 1


# sync --watch


def test_a_watch_over_a_paid_index_needs_a_cap_and_a_yes_is_none(run, fake, declared, contents):
    before = contents()
    for word in ([], ["--yes"]):
        said = run("sync", "DB", "--watch", *word, code=2).stderr
        assert "--max-usd" in said
        assert "DATASETTE_VEC_DAILY_USD" in said
    assert contents() == before
    assert fake.requests == []


@pytest.mark.parametrize("cap", ["--max-usd", pytest.param("DATASETTE_VEC_DAILY_USD", marks=pytest.mark.slow)])
def test_a_watch_that_reaches_its_cap_ends_with_code_4(fake, filled, key, path, cap):
    spent = ledger(filled)["usd"]
    filled.execute("insert into docs values (1000, 'first', 'while nobody watched')")
    filled.commit()
    program = [sys.executable, "-c", "from datasette_vec_gemini.cli import vec; vec(prog_name='vec')"]
    arguments = ["sync", str(path), "--watch"]
    if cap == "--max-usd":
        arguments += [cap, "0.00001"]
    else:
        key.setenv(cap, str(spent + 0.00001))
    with subprocess.Popen([*program, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watch:
        first = watch.stdout.readline()
        filled.execute("insert into docs values (1001, 'second', 'under the eyes')")
        filled.execute("insert into docs values (1002, 'third', ?)", ["dear " * 60])
        filled.commit()
        rest, said = watch.communicate(timeout=30)
    assert watch.returncode == 4, said
    assert "1 chunk embedded" in first
    assert not CANARY.search(first + rest + said)
    assert "2 pending" in said or "1 pending" in said
    assert ledger(filled)["usd"] <= spent + 0.00001


def test_a_watch_that_begins_while_the_service_is_down_waits_for_it(fake, filled, key, path):
    key.setenv("DATASETTE_VEC_PATIENCE_SECONDS", "0")
    filled.execute("insert into docs values (1000, 'first', 'while nobody watched')")
    filled.commit()
    fake.faults.extend(["503", "503"])
    program = [sys.executable, "-c", "from datasette_vec_gemini.cli import vec; vec(prog_name='vec')"]
    arguments = ["sync", str(path), "--watch", "--max-usd", "1"]
    with subprocess.Popen([*program, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watch:
        try:
            first = watch.stdout.readline()
        finally:
            watch.kill()
        _, said = watch.communicate(timeout=30)
    assert "1 chunk embedded" in first
    assert said.count("Trying again: ") == 2


def test_a_full_watch_compares_every_row_even_if_the_file_is_locked_at_first(fake, filled, key, path):
    key.setenv("DATASETTE_VEC_DAILY_USD", "1")
    # A change that no trigger has seen, and that leaves the triggers as they were.
    triggers = filled.execute("select name, sql from sqlite_master where type = 'trigger'").fetchall()
    filled.executescript(";".join(f"drop trigger [{name}]" for name, _ in triggers))
    filled.execute("update docs set body = 'nobody was told of this' where rowid = 1")
    for _, sql in triggers:
        filled.execute(sql)
    filled.commit()
    filled.execute("begin immediate")
    program = [sys.executable, "-c", "from datasette_vec_gemini.cli import vec; vec(prog_name='vec')"]
    arguments = ["sync", str(path), "--watch", "--full"]
    with subprocess.Popen([*program, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watch:
        try:
            assert watch.stderr.readline().startswith("Trying again: ")
            filled.rollback()
            found = watch.stdout.readline()
        finally:
            watch.kill()
    assert "1 chunk embedded" in found


# doctor


def test_the_doctor_says_that_without_a_key_the_local_model_is_used(run, key):
    key.delenv("GEMINI_API_KEY")
    (line,) = [line for line in run("doctor").stdout.splitlines() if "Gemini" in line]
    assert line.split(maxsplit=2) == ["ok", "Gemini", "no key: the local model is used"]


def test_the_doctor_tries_the_key_by_one_call_that_is_free(run, fake):
    said = run("doctor").stdout
    assert re.search(r"^ok +google-genai +3\.", said, re.MULTILINE)
    assert "key from GEMINI_API_KEY is good" in said
    assert "3,000 texts" in said
    assert "$1.00 a day" in said
    assert [(received.method, received.path) for received in fake.requests] == [
        ("GET", "/v1beta/models/gemini-embedding-2")
    ]


@pytest.mark.parametrize(
    ("variable", "value", "remedy"),
    [
        ("GEMINI_API_KEY", WRONG, "check it at https://aistudio.google.com/apikey"),
        ("GOOGLE_GEMINI_BASE_URL", "http://127.0.0.1:9", "no connection"),
        ("GOOGLE_GEMINI_BASE_URL", "http://example.com", "correct that"),
    ],
)
def test_the_doctor_finds_what_is_wrong_with_key_or_address(run, key, variable, value, remedy):
    key.setenv(variable, value)
    said = run("doctor", code=1).stdout
    assert "PROBLEM Gemini" in said
    assert remedy in said


def test_the_doctor_tells_the_cap_of_the_day(run, key):
    key.setenv("DATASETTE_VEC_DAILY_USD", "2.5")
    assert "$2.50 a day" in run("doctor").stdout


def test_no_key_stands_in_the_database(run, filled, path):
    for file in path.parent.glob(f"{path.name}*"):
        assert b"CANARY" not in file.read_bytes()
