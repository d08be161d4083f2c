"""Laws of the budget: what is spent is written down once, and no cap is ever passed, however many spend at once."""

import logging
import math
import threading
import time
from collections import defaultdict
from contextlib import closing

import pytest
from fake_gemini import KEY, FakeGemini
from fakes import written_down
from hypothesis import given, settings
from hypothesis import strategies as st

from datasette_vec_gemini import Access, Query, connect, create_index, load_embedder, search, sqlite3, sync
from datasette_vec_gemini.account import Account, today
from datasette_vec_gemini.budget import PRICES, SEARCH_DAILY_USD, Budget, ledger_of, price
from datasette_vec_gemini.errors import BudgetReached, DatabaseUnavailable, QuotaReached, ServiceUnavailable
from datasette_vec_gemini.functions import Functions
from datasette_vec_gemini.gate import Gate
from datasette_vec_gemini.store import registry, usage
from datasette_vec_gemini.store.usage import Usage

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_certificate")]

MODEL = "gemini-embedding-2"
_numbers = iter(range(10**9))


def fresh(**limits) -> Access:
    """A key that nobody has used, so that its account is new."""
    return Access(api_key=f"key-{next(_numbers)}", texts_per_minute=10**6, tokens_per_minute=10**9, **limits)


@pytest.fixture
def fake():
    with FakeGemini() as served:
        yield served


@pytest.fixture
def access(fake):
    return Access(api_key=KEY, key_source="GEMINI_API_KEY", base_url=fake.url, patience_seconds=2)


def soon():
    return time.monotonic() + 5


def ledger(conn):
    written_down()
    return conn.execute("select day, model, requests, texts, tokens, round(usd, 9) from _vec_usage").fetchall()


def counts(fake):
    """(requests, texts, tokens) of what the service has answered."""
    answered = [received for received in fake.requests if received.status == 200]
    texts = [text for received in answered for text in received.texts]
    return len(answered), len(texts), sum(math.ceil(len(text.encode()) / 4) for text in texts)


def table(conn, rows, *, access, embedder="gemini"):
    conn.execute("create table docs (id integer primary key, body text)")
    conn.executemany("insert into docs (body) values (?)", [(f"alpha{n} beta{n} gamma",) for n in range(rows)])
    conn.commit()
    model = load_embedder(embedder, access)
    return create_index(conn, "docs", table="docs", columns=["body"], embedder=model), model


# Arithmetic.


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["reserve", "settle", "settle", "cancel"]),
            st.integers(1, 100),
            st.integers(1, 50_000),
            st.integers(0, 50_000) | st.none(),
        ),
        max_size=40,
    ),
    st.floats(0, 0.02),
    st.floats(0, 0.02),
)
def test_what_is_set_aside_comes_back_and_the_spent_is_the_sum_of_the_settled(steps, max_usd, daily_usd):
    budget = Budget(fresh(daily_usd=daily_usd), MODEL, max_usd=max_usd, bulk=True)
    account, open_, spent = budget.account, [], Usage()
    for step, texts, tokens, true in steps:
        if step == "reserve":
            wanted = tokens * price(MODEL)
            try:
                open_.append(budget.reserve(texts=texts, tokens=tokens, until=soon()))
            except BudgetReached:
                aside = sum(reservation.usage.usd for reservation in open_)
                assert spent.usd + aside + wanted > min(max_usd, daily_usd) - 1e-12
        elif open_:
            reservation = open_.pop(0)
            if step == "settle":
                # Google's own count may be less than the estimate, which is on the safe side.
                counted = None if true is None else min(true, reservation.usage.tokens)
                budget.settle(reservation, tokens=counted)
                known = reservation.usage.tokens if counted is None else counted
                spent += Usage(requests=1, texts=reservation.usage.texts, tokens=known, usd=known * price(MODEL))
            else:
                budget.cancel(reservation)
        aside = sum((reservation.usage for reservation in open_), Usage())
        reserved = account.reserved
        assert (reserved.requests, reserved.texts, reserved.tokens) == (aside.requests, aside.texts, aside.tokens)
        assert reserved.usd == pytest.approx(aside.usd, abs=1e-12)
        assert budget.spent == spent
        assert account.used() == spent
        assert spent.usd + aside.usd <= min(max_usd, daily_usd) + 1e-12
    for reservation in open_:
        budget.cancel(reservation)
    assert (account.reserved.requests, account.reserved.texts, account.reserved.tokens) == (0, 0, 0)
    assert abs(account.reserved.usd) < 1e-12


def test_threads_together_never_pass_a_cap_at_any_moment():  # noqa: C901 - two kinds of threads
    """Ten threads that settle less than they reserve, with two budgets of one key that write to one file."""
    cap, tokens = 0.01, 1_000
    access = fresh(daily_usd=cap)
    budgets = [Budget(access, MODEL, ledger=name, bulk=True) for name in ("one", "two")]
    account, most, stop = budgets[0].account, [], threading.Event()

    def work(number):
        budget = budgets[number % 2]
        while not stop.is_set():
            try:
                reservation = budget.reserve(texts=1, tokens=tokens, until=soon())
            except BudgetReached:
                return
            with account.lock:
                most.append((account.used() + account.reserved).usd)
            budget.settle(reservation, tokens=tokens // 2)

    def write():
        """A ledger that is being written all the time, and fails every other time."""
        for n in range(10**9):
            if stop.is_set():
                return
            try:
                with account.settling("one") as rows:
                    assert isinstance(rows, list)
                    if n % 2:
                        raise sqlite3.OperationalError("database is locked")  # noqa: TRY301 - as the driver does
            except sqlite3.OperationalError:
                continue

    writer = threading.Thread(target=write)
    threads = [threading.Thread(target=work, args=[number]) for number in range(10)]
    for thread in [writer, *threads]:
        thread.start()
    for thread in threads:
        thread.join(30)
    stop.set()
    writer.join(5)
    assert max(most) <= cap + 1e-12
    spent = sum(budget.spent.usd for budget in budgets)
    assert account.used().usd == pytest.approx(spent)
    assert cap - tokens * price(MODEL) - 1e-12 <= spent <= cap


def test_what_is_being_written_down_counts_all_the_while():
    budget = Budget(fresh(daily_usd=1.0), MODEL, ledger="file", bulk=True)
    budget.settle(budget.reserve(texts=1, tokens=4_000_000, until=soon()))
    with budget.account.settling("file"), pytest.raises(BudgetReached, match=r"\$0\.8000 of the \$1\.0000 a day"):
        budget.reserve(texts=1, tokens=2_000_000, until=soon())
    with pytest.raises(BudgetReached):
        budget.reserve(texts=1, tokens=2_000_000, until=soon())


def test_yesterdays_spending_does_not_count_today(tmp_path):
    day = ["2026-11-22"]
    account = Account(fresh(), day=lambda: day[0])
    with closing(connect(tmp_path / "a.db", create=True)) as conn:
        registry.migrate(conn)
        usage.add(conn, [("2026-11-22", MODEL, Usage(requests=1, texts=9, tokens=90, usd=0.9))])
        conn.commit()
        account.read("a", conn)
    account.note("b", MODEL, Usage(requests=1, texts=1, tokens=1, usd=0.1))
    assert account.used().usd == pytest.approx(1.0)
    day[0] = "2026-11-23"
    assert account.used() == Usage()
    with account.settling("b") as rows:
        assert [(when, model) for when, model, _ in rows] == [("2026-11-22", MODEL)]
    account.note("a", MODEL, Usage(requests=1, texts=1, tokens=1, usd=0.1))
    assert account.used().usd == pytest.approx(0.1)


def test_a_wait_for_the_rate_limit_that_ends_in_vain_sets_nothing_aside():
    access = Access(api_key=f"key-{next(_numbers)}", texts_per_minute=1)
    budget = Budget(access, MODEL)
    budget.settle(budget.reserve(texts=1, tokens=1, until=soon()))
    with pytest.raises(ServiceUnavailable):
        budget.reserve(texts=1, tokens=1, until=time.monotonic())
    assert budget.account.reserved == Usage()


def test_a_stopped_budget_gives_nothing_more_and_others_of_its_key_go_on():
    access = fresh()
    one, other = Budget(access, MODEL), Budget(access, MODEL)
    one.stop()
    with pytest.raises(ServiceUnavailable, match="stopped"):
        one.reserve(texts=1, tokens=1, until=soon())
    other.cancel(other.reserve(texts=1, tokens=1, until=soon()))
    assert one.account.reserved == Usage()


def test_prices_are_those_of_the_list_and_for_a_model_that_is_not_in_it_the_dearest():
    assert {name: price(name) * 1e6 for name in PRICES} == pytest.approx(PRICES)
    assert price("gemini-embedding-9") * 1e6 == pytest.approx(max(PRICES.values()))


def test_searches_have_a_cap_where_none_is_set_and_confirmed_runs_have_none():
    access = fresh()
    token = price(MODEL)
    assert Budget(access, MODEL).room() == (math.inf, SEARCH_DAILY_USD / token)
    assert Budget(access, MODEL, bulk=True).room() == (math.inf, math.inf)
    indexing = Budget(access, MODEL, bulk=True)
    indexing.settle(indexing.reserve(texts=1, tokens=9_000_000, until=math.inf))
    assert Budget(access, MODEL).room() == (math.inf, SEARCH_DAILY_USD / token)
    searching = Budget(access, MODEL)
    searching.settle(searching.reserve(texts=1, tokens=1_000_000, until=math.inf))
    assert Budget(access, MODEL).room()[1] == pytest.approx((SEARCH_DAILY_USD - 0.2) / token)
    assert Budget(fresh(daily_usd=5.0), MODEL).daily_usd == 5.0
    assert Budget(fresh(daily_usd=0.0), MODEL, bulk=True).daily_usd == 0.0


def test_a_days_texts_are_counted_over_every_purpose():
    access = fresh(texts_per_day=100)
    run, question = Budget(access, MODEL, ledger="a", bulk=True), Budget(access, MODEL, ledger="b")
    run.settle(run.reserve(texts=99, tokens=1, until=soon()))
    question.settle(question.reserve(texts=1, tokens=1, until=soon()))
    with pytest.raises(QuotaReached, match="100 of 100 texts a day"):
        question.reserve(texts=1, tokens=1, until=soon())


# The ledger.


def test_a_sync_writes_down_what_the_service_has_answered(conn, fake, access):
    index, model = table(conn, 250, access=access)
    report = sync(conn, index, embedder=model)
    requests, texts, tokens = counts(fake)
    assert (requests, texts, tokens) != (0, 0, 0)
    assert ledger(conn) == [(today(), MODEL, requests, texts, tokens, round(tokens * 0.2e-6, 9))]
    assert (report.tokens, report.usd) == (tokens, pytest.approx(tokens * 0.2e-6))


def test_what_is_refused_is_not_written_down_and_what_may_be_charged_is(conn, fake, access):
    access = Access(api_key=KEY, base_url=fake.url, patience_seconds=10)
    index, model = table(conn, 20, access=access)
    fake.faults.extend(["truncated", "429"])
    sync(conn, index, embedder=model)
    answered = [received for received in fake.requests if received.fault != "429"]
    assert ledger(conn)[0][2:4] == (len(answered), sum(len(received.texts) for received in answered))
    assert len(answered) == 2


def test_questions_and_sql_are_written_down_in_the_file_they_were_asked_of(conn, fake, access):
    index, model = table(conn, 3, access=access)
    sync(conn, index, embedder=model)
    search(conn, index, Query("what is alpha1"), embedder=model)
    search(conn, index, Query("what is alpha1"), embedder=model)
    Functions(Gate(mode="on"), access=access).register(conn)
    assert conn.execute("select length(embed_gemini('something new'))").fetchone() == (4 * 768,)
    requests, texts, tokens = counts(fake)
    assert requests == 3
    assert ledger(conn) == [(today(), MODEL, requests, texts, tokens, round(tokens * 0.2e-6, 9))]


def test_two_databases_with_one_key_share_the_day(tmp_path, fake):
    access = Access(api_key=KEY, base_url=fake.url, daily_usd=0.0003, patience_seconds=1)
    spent = []
    for name in ("one.db", "two.db"):
        with closing(connect(tmp_path / name, create=True)) as conn:
            index, model = table(conn, 130, access=access)
            try:
                sync(conn, index, embedder=model)
            except BudgetReached as error:
                assert "daily_usd" in str(error)  # noqa: PT017 - the first of the two may pass
            spent.append(sum(row[-1] for row in ledger(conn)))
    assert spent[0] > 0
    assert sum(spent) <= 0.0003
    assert counts(fake)[2] * 0.2e-6 == pytest.approx(sum(spent))


def test_the_days_cap_stops_a_search_and_words_still_answer(conn, fake):
    access = Access(api_key=KEY, base_url=fake.url, daily_usd=0.0, query_seconds=1)
    index, model = table(conn, 3, access=access)
    with pytest.raises(BudgetReached):
        search(conn, index, Query("alpha1"), embedder=model)
    assert [hit.key for hit in search(conn, index, Query("alpha1", mode="keyword"))] == []
    assert counts(fake) == (0, 0, 0)


def test_what_another_process_has_spent_counts(conn, path, fake):
    access = Access(api_key=KEY, base_url=fake.url, daily_usd=0.01, patience_seconds=1)
    index, model = table(conn, 3, access=access)
    with closing(sqlite3.connect(path)) as other:
        other.execute("insert into _vec_usage values (?, 'gemini-embedding-001', 1, 1, 1, 0.0099999)", [today()])
        other.commit()
    with pytest.raises(BudgetReached):
        sync(conn, index, embedder=model)
    with pytest.raises(BudgetReached):
        search(conn, index, Query("alpha1"), embedder=model)
    assert counts(fake) == (0, 0, 0)


def test_databases_in_memory_know_what_each_other_have_spent(fake):
    access = Access(api_key=KEY, base_url=fake.url, daily_usd=0.00004, patience_seconds=1)
    spent = []
    for _ in range(3):
        with closing(connect(":memory:")) as conn:
            assert ledger_of(conn) == ""
            index, model = table(conn, 5, access=access)
            try:
                sync(conn, index, embedder=model)
            except BudgetReached:
                spent.append(None)
            else:
                spent.append(ledger(conn)[0][-1])
    assert counts(fake)[2] * 0.2e-6 <= 0.00004
    assert spent[0]
    assert spent[-1] is None


def test_a_file_that_cannot_be_written_keeps_its_spending_in_memory_until_it_can(conn, path, fake, access, caplog):
    index, model = table(conn, 3, access=access)
    sync(conn, index, embedder=model)
    before = ledger(conn)
    with closing(sqlite3.connect(path)) as other:
        other.execute("begin immediate")
        started = time.monotonic()
        with caplog.at_level(logging.WARNING), closing(connect(path, read_only=True)) as reader:
            search(reader, index, Query("a question"), embedder=model)
            search(reader, index, Query("another question"), embedder=model)
            written_down()
        assert time.monotonic() - started < 2.5
        other.rollback()
    assert ledger(conn) == before
    assert [record.message for record in caplog.records if "in memory only" in record.message] == [
        "spending is counted in memory only: test.db has no ledger that can be written now"
    ]
    assert model.budget.account.used().requests == 3
    search(conn, index, Query("a third question"), embedder=model)
    assert ledger(conn) == [(today(), MODEL, *counts(fake), round(counts(fake)[2] * 0.2e-6, 9))]


def test_a_file_without_a_ledger_is_searched_all_the_same(conn, fake, access, caplog):
    index, model = table(conn, 3, access=access)
    sync(conn, index, embedder=model)
    conn.execute("drop table _vec_usage")
    conn.commit()
    assert search(conn, index, Query("alpha1"), embedder=model)
    assert model.budget.account.used().requests == 1
    assert not registry.has_table(conn, "_vec_usage")


@pytest.mark.parametrize("failing", [sqlite3.OperationalError("database or disk is full"), KeyboardInterrupt()])
def test_a_transaction_that_fails_leaves_the_spending_to_the_next(conn, failing):
    registry.migrate(conn)
    budget = Budget(fresh(), MODEL, ledger=ledger_of(conn))
    budget.settle(budget.reserve(texts=2, tokens=30, until=soon()))
    with pytest.raises(type(failing)), budget.settling(conn):
        raise failing
    assert ledger(conn) == []
    assert budget.account.used().texts == 2
    with budget.settling(conn):
        assert budget.account.used().texts == 2
    assert ledger(conn) == [(today(), MODEL, 1, 2, 30, round(30 * 0.2e-6, 9))]
    with budget.settling(conn):
        pass
    assert len(ledger(conn)) == 1
    assert budget.account.used().texts == 2


def test_a_locked_database_fails_the_sync_and_its_spending_is_written_by_the_next(conn, path, fake, access):
    index, model = table(conn, 3, access=access)
    conn.execute("pragma busy_timeout = 10")
    blocker = sqlite3.connect(path)

    def lock(progress):
        if progress.stage == "text":
            fake.latency_seconds = 0.2
            threading.Timer(0.1, begin).start()

    began = threading.Event()

    def begin():
        with closing(sqlite3.connect(path)) as other:
            other.execute("begin immediate")
            began.wait(1.0)
            other.rollback()

    with pytest.raises(DatabaseUnavailable):
        sync(conn, index, embedder=model, on_progress=lock)
    began.set()
    blocker.close()
    conn.execute("pragma busy_timeout = 5000")
    assert model.budget.account.used().requests == 1
    sync(conn, index, embedder=model)
    assert ledger(conn) == [(today(), MODEL, *counts(fake), round(counts(fake)[2] * 0.2e-6, 9))]


def test_writers_of_one_ledger_at_once_lose_nothing_and_write_nothing_twice(path):
    with closing(connect(path, create=True)) as conn:
        registry.migrate(conn)
        file = ledger_of(conn)
    budget = Budget(fresh(), MODEL, ledger=file)

    def spend():
        for _ in range(20):
            budget.settle(budget.reserve(texts=1, tokens=10, until=soon()))
            budget.write_ledger()

    threads = [threading.Thread(target=spend) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    budget.write_ledger()
    with closing(connect(path)) as conn:
        assert ledger(conn) == [(today(), MODEL, 100, 100, 1_000, round(1_000 * 0.2e-6, 9))]
    budget.read_ledger()
    assert budget.account.used().texts == 100


def test_accounts_differ_by_key_project_and_address():
    accesses = [
        Access(api_key="a"),
        Access(api_key="b"),
        Access(api_key="a", base_url="https://other"),
        Access(project="p"),
        Access(project="q"),
    ]
    assert len({access.account for access in accesses}) == 5
    assert Access(api_key="a", daily_usd=3).account == Access(api_key="a").account
    assert all(access.account != "a" and len(access.account) == 16 for access in accesses)


# The cap of a run.


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.9])
def test_a_run_stops_below_its_cap_with_everything_kept_and_goes_on_without_paying_again(conn, fake, access, share):
    index, model = table(conn, 400, access=access)
    whole = 400 * 11 * 0.2e-6
    with pytest.raises(BudgetReached, match="--max-usd"):
        sync(conn, index, embedder=model, max_usd=whole * share)
    (spent,) = conn.execute("select coalesce(sum(usd), 0) from _vec_usage").fetchone()
    assert spent <= whole * share
    stored = conn.execute("select count(*) from _vec_docs where embedding is not null").fetchone()[0]
    witnesses = sum(n for text, n in fake.embedded.items() if "in order" in text)
    assert stored == sum(fake.embedded.values()) - witnesses
    # Words are there already.
    assert [hit.key for hit in search(conn, index, Query("alpha399", mode="keyword"))] == [(400,)]
    report = sync(conn, index, embedder=model)
    assert report.embedded == 400 - stored
    assert max(n for text, n in fake.embedded.items() if "in order" not in text) == 1


def test_a_bill_is_by_model(conn, fake, access):
    for name, spec in (("two", "gemini"), ("one", "gemini:gemini-embedding-001")):
        conn.execute(f"create table {name} (id integer primary key, body text)")
        conn.execute(f"insert into {name} (body) values ('some words')")
        conn.commit()
        model = load_embedder(spec, access)
        sync(conn, create_index(conn, name, table=name, columns=["body"], embedder=model), embedder=model)
    rows = defaultdict(tuple, {model: (tokens, usd) for _, model, _, _, tokens, usd in ledger(conn)})
    assert rows.keys() == {"gemini-embedding-2", "gemini-embedding-001"}
    for model, (tokens, usd) in rows.items():
        assert usd == pytest.approx(tokens * PRICES[model] / 1e6)
        assert tokens > 0
