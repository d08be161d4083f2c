"""The estimate is what the run then takes: chunks exactly, tokens and dollars never less than what is charged."""

import re

import pytest
from fake_gemini import KEY, FakeGemini
from hypothesis import given, settings
from hypothesis import strategies as st

from datasette_vec_gemini import Access, connect, create_index, estimate, load_embedder, rebuild, sync
from datasette_vec_gemini.budget import PRICES, PRICES_AS_OF
from datasette_vec_gemini.embedders.batching import WITNESS
from datasette_vec_gemini.errors import ConfirmationNeeded
from datasette_vec_gemini.estimating import preview
from datasette_vec_gemini.indexing import plan_index

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_certificate")]

WORDS = re.findall(r"\w+", "the quick brown fox jumps over a lazy dog while seven wizards quietly boil parsnips")


@pytest.fixture
def fake():
    with FakeGemini() as served:
        yield served


@pytest.fixture
def access(fake):
    return Access(api_key=KEY, base_url=fake.url, patience_seconds=2, texts_per_minute=10**6, tokens_per_minute=10**9)


@pytest.fixture
def model(access):
    return load_embedder("gemini", access)


def prose(n, words=30):
    return " ".join([f"number {n}", *(WORDS[(n * 7 + i) % len(WORDS)] for i in range(words))])


def table(conn, texts, model, **options):
    conn.execute("create table docs (id integer primary key, body text)")
    conn.executemany("insert into docs (body) values (?)", [(text,) for text in texts])
    conn.commit()
    return create_index(conn, "docs", table="docs", columns=["body"], embedder=model, **options)


def text_stage(conn, index, model):
    def refuse(expected):
        raise ConfirmationNeeded("only the text stage")

    with pytest.raises(ConfirmationNeeded):
        sync(conn, index, embedder=model, approve=refuse)


def charged(conn):
    return conn.execute("select coalesce(sum(tokens), 0), coalesce(sum(usd), 0) from _vec_usage").fetchone()


def bought(fake):
    """Texts that were paid for, without the witnesses."""
    return sum(n for text, n in fake.embedded.items() if WITNESS not in text)


def prove(conn, fake, index, model):
    """Estimate, run, compare."""
    fake.embedded.clear()
    before = charged(conn)
    expected = estimate(conn, index, embedder=model)
    assert charged(conn) == before
    report = sync(conn, index, embedder=model)
    after = charged(conn)
    tokens, usd = after[0] - before[0], after[1] - before[1]
    assert expected.chunks == report.embedded == bought(fake)
    assert tokens <= expected.tokens
    assert usd <= expected.usd + 1e-12
    assert expected.usd == pytest.approx(expected.tokens * PRICES["gemini-embedding-2"] / 1e6)
    return expected


@pytest.mark.parametrize("rows", [0, 1, 2, 99, 500, 502])
@pytest.mark.parametrize("stage", ["queued", "pending"])
def test_of_any_number_of_rows_none_is_forgotten(conn, fake, model, rows, stage):
    index = table(conn, map(prose, range(rows)), model)
    if stage == "pending" and rows:
        text_stage(conn, index, model)
    expected = prove(conn, fake, index, model)
    assert (expected.rows, expected.chunks, expected.prices_as_of) == (rows, rows, PRICES_AS_OF)
    if rows >= 100:
        assert charged(conn)[0] >= 0.8 * expected.tokens


@pytest.mark.parametrize("words", [1, 5, 300, 2_000])
def test_short_and_long_texts_are_charged_no_more_than_was_said(conn, fake, model, words):
    index = table(conn, (prose(n, words) for n in range(120)), model)
    prove(conn, fake, index, model)


def test_a_run_that_may_spend_what_was_said_comes_to_its_end(conn, fake, access):
    for name in ("gemini", "gemini:gemini-embedding-001"):
        model = load_embedder(name, access)
        conn.execute("drop table if exists docs")
        index = table(conn, map(prose, range(300)), model)
        expected = estimate(conn, index, embedder=model)
        assert sync(conn, index, embedder=model, max_usd=expected.usd).embedded == 300
        conn.execute("delete from docs")
        conn.commit()
        from datasette_vec_gemini import drop

        drop(conn, index)


def test_equal_and_owned_texts_cost_nothing(conn, fake, model):
    index = table(conn, [prose(1)] * 5 + [prose(2), "", "   "], model)
    assert prove(conn, fake, index, model).chunks == 2
    conn.executemany("insert into docs (body) values (?)", [(prose(1),), (prose(3),), (prose(3),)])
    conn.commit()
    assert prove(conn, fake, index, model).chunks == 1
    assert prove(conn, fake, index, model).chunks == 0


def test_a_row_that_is_pending_and_changed_or_gone_is_counted_once_as_it_is_now(conn, fake, model):
    index = table(conn, map(prose, range(10)), model)
    text_stage(conn, index, model)
    conn.execute("update docs set body = 'now another text' where id = 1")
    conn.execute("update docs set body = body || '' where id = 2")
    conn.execute("update docs set id = 77 where id = 3")
    conn.execute("delete from docs where id = 4")
    conn.execute("insert into docs (id, body) values (90, 'one more')")
    conn.commit()
    assert prove(conn, fake, index, model).chunks == 10


def test_a_text_that_was_given_up_is_not_counted_and_one_that_is_tried_again_is(conn, fake, model):
    index = table(conn, ["POISON of a text", prose(1)], model)
    fake.poison.add("POISON")
    for left in (2, 1, 1):
        assert estimate(conn, index, embedder=model).chunks == left
        sync(conn, index, embedder=model)
    assert estimate(conn, index, embedder=model).chunks == 0


def test_of_a_view_every_row_is_compared(conn, fake, model):
    conn.executescript(
        """
        create table a (id integer primary key, body text);
        create view v as select id, body || ' of a view' as body from a;
        """
    )
    conn.executemany("insert into a (body) values (?)", [(prose(n),) for n in range(520)])
    conn.commit()
    index = create_index(conn, "docs", table="v", columns=["body"], key=["id"], embedder=model)
    assert prove(conn, fake, index, model).chunks == 520
    conn.execute("update a set body = 'changed' where id in (3, 4)")
    conn.execute("insert into a (body) values ('new')")
    conn.execute("delete from a where id = 5")
    conn.commit()
    assert prove(conn, fake, index, model).chunks == 2


def test_of_another_model_every_text_is_counted_with_those_that_wait(conn, fake, access, model):
    index = table(conn, map(prose, range(300)), model)
    sync(conn, index, embedder=model)
    conn.execute("update docs set body = 'changed' where id = 3")
    conn.execute("delete from docs where id = 4")
    conn.executemany("insert into docs (body) values (?)", [(prose(1_000),), (prose(1),)])
    conn.commit()
    other = load_embedder("gemini:gemini-embedding-001", access)
    expected = estimate(conn, index, embedder=other)
    fake.embedded.clear()
    _, report = rebuild(conn, index, embedder=other)
    assert expected.chunks == report.embedded == bought(fake) == 300
    tokens = conn.execute("select sum(tokens) from _vec_usage where model = 'gemini-embedding-001'").fetchone()[0]
    assert tokens <= expected.tokens
    assert expected.usd == pytest.approx(expected.tokens * PRICES["gemini-embedding-001"] / 1e6)


def test_fewer_dimensions_cost_only_what_is_not_embedded_yet(conn, fake, access, model):
    index = table(conn, map(prose, range(50)), model)
    sync(conn, index, embedder=model)
    conn.execute("update docs set body = 'changed' where id = 3")
    conn.commit()
    short = load_embedder("gemini@256", access)
    expected = estimate(conn, index, embedder=short)
    fake.embedded.clear()
    _, report = rebuild(conn, index, embedder=short)
    assert expected.chunks == report.embedded == bought(fake) == 1


def test_a_model_on_this_machine_costs_nothing(conn, fake):
    free = load_embedder("hashing@64")
    index = table(conn, map(prose, range(5)), free)
    expected = estimate(conn, index, embedder=free)
    assert (expected.chunks, expected.tokens, expected.usd, expected.minutes) == (5, 0, 0.0, 0.0)


def test_the_time_is_what_the_limits_demand(conn, fake):
    slow = load_embedder("gemini", Access(api_key=KEY, base_url=fake.url, texts_per_minute=10))
    index = table(conn, map(prose, range(50)), slow)
    assert estimate(conn, index, embedder=slow).minutes == pytest.approx(5.0)


def test_it_asks_nobody_and_writes_nothing_and_needs_no_key(conn, path, fake, contents):
    model = load_embedder("gemini", Access(base_url=fake.url))
    index = table(conn, map(prose, range(5)), model)
    before = contents()
    assert estimate(conn, index, embedder=model).chunks == 5
    reader = connect(path, read_only=True)
    assert estimate(reader, index, embedder=model).chunks == 5
    reader.close()
    assert (fake.requests, contents()) == ([], before)


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=400))
def test_a_text_of_ascii_is_never_counted_for_less_than_it_is_charged(text):
    model = load_embedder("gemini", Access(api_key=KEY))
    assert model.count_tokens([text]) >= -(-len(f"title: none | text: {text}") // 4)


def test_the_preview_of_an_index_is_the_estimate_of_the_one_that_is_made_then(conn, fake, model, contents):
    conn.execute("create table docs (id integer primary key, body text)")
    texts = [prose(1)] * 3 + [prose(n, words=900) for n in range(2, 5)] + ["", None, "  "]
    conn.executemany("insert into docs (body) values (?)", [[text] for text in texts])
    conn.commit()
    before = contents()
    planned = plan_index(conn, "docs", table="docs", columns=["body"], embedder=model)
    found = preview(conn, planned, model)
    assert contents() == before
    assert (found.is_exact, found.table_rows, found.first) == (True, 9, prose(1))
    made = estimate(conn, create_index(conn, "docs", table="docs", columns=["body"], embedder=model), embedder=model)
    assert (found.estimate.chunks, found.estimate.tokens, found.estimate.usd) == (made.chunks, made.tokens, made.usd)
    assert found.estimate.rows == 6  # equal texts are bought once, and each row has one
    assert fake.requests == []


@pytest.mark.parametrize(("rows", "most", "read"), [(100, 100, 100), (101, 100, 51), (1_000, 90, 84), (0, 10, 0)])
def test_of_many_rows_some_are_read_that_lie_evenly_spread(conn, model, rows, most, read):
    conn.execute("create table docs (id integer primary key, n text, body text)")
    texts = [[prose(n) if n % 2 else prose(n, words=60)] for n in range(rows)]
    conn.executemany("insert into docs (body) values (?)", texts)
    conn.commit()
    planned = plan_index(conn, "docs", table="docs", columns=["body"], filter_columns=["n"], embedder=model)
    found = preview(conn, planned, model, most_rows=most)
    assert (found.read, found.table_rows, found.estimate.chunks) == (read, rows, rows)
    assert found.is_exact is (read == rows)


def test_a_model_on_this_machine_is_timed(conn):
    conn.execute("create table docs (id integer primary key, body text)")
    conn.executemany("insert into docs (body) values (?)", [[prose(n)] for n in range(5_000)])
    conn.commit()
    planned = plan_index(conn, "docs", table="docs", columns=["body"], embedder="local")
    found = preview(conn, planned, load_embedder("local")).estimate
    assert (found.usd, found.tokens) == (0, 0)
    assert 0.05 < found.minutes < 500
