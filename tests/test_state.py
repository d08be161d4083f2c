"""Laws of what all processes share: a key's caps hold over files and processes, whatever becomes of the file."""

import logging
import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from itertools import count

import pytest
from click.testing import CliRunner
from fake_gemini import KEY

from datasette_vec_gemini import Access, state
from datasette_vec_gemini.account import Account, today
from datasette_vec_gemini.budget import SEARCH_DAILY_USD, Budget, price
from datasette_vec_gemini.cli import vec
from datasette_vec_gemini.errors import BudgetReached, InvalidQuery, QuotaReached, ServiceUnavailable
from datasette_vec_gemini.gate import Gate
from datasette_vec_gemini.store.usage import Usage

MODEL = "gemini-embedding-2"
SPEND = """
import sys, time
from datasette_vec_gemini import Access
from datasette_vec_gemini.budget import Budget
from datasette_vec_gemini.errors import BudgetReached
access = Access(api_key="one key", texts_per_minute=10**6, tokens_per_minute=10**9, daily_usd=float(sys.argv[1]))
budget = Budget(access, "gemini-embedding-2", ledger=sys.argv[2], bulk=True)
try:
    while True:
        reservation = budget.reserve(texts=1, tokens=1_000, until=time.monotonic() + 5)
        if sys.argv[3] == "hang":
            print("reserved", flush=True)
            time.sleep(60)
        budget.settle(reservation, tokens=700)
except BudgetReached:
    print(budget.spent.usd)
"""


def spender(tmp_path, *arguments):
    program = [sys.executable, "-c", SPEND, *map(str, arguments)]
    return subprocess.Popen(program, stdout=subprocess.PIPE, text=True, cwd=tmp_path)


_numbers = count()


def access(**limits):
    """A key that this process has not used yet, and so an account without a past."""
    limits.setdefault("api_key", f"key of the state {next(_numbers)}")
    return Access(**{"texts_per_minute": 10**6, "tokens_per_minute": 10**9} | limits)


def soon():
    return time.monotonic() + 5


def test_processes_with_one_key_never_spend_more_than_its_day_allows(tmp_path):
    cap = 0.02
    running = [spender(tmp_path, cap, tmp_path / f"{n}.db", "go") for n in range(4)]
    spent = [float(process.communicate(timeout=60)[0]) for process in running]
    assert [process.returncode for process in running] == [0] * 4
    assert cap - 4 * 1_000 * price(MODEL) <= sum(spent) <= cap
    with pytest.raises(BudgetReached, match="a day"):
        Budget(access(api_key="one key", daily_usd=cap), MODEL).reserve(texts=1, tokens=1_000, until=soon())


def test_what_a_killed_process_had_asked_for_counts(tmp_path):
    process = spender(tmp_path, 1.0, "", "hang")
    assert process.stdout.readline() == "reserved\n"
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=10)
    (used,) = state.shared().used(access(api_key="one key").account, today()).values()
    assert used == Usage(requests=1, texts=1, tokens=1_000, usd=pytest.approx(1_000 * price(MODEL)))


def test_searches_of_all_processes_share_their_cap_and_runs_that_were_agreed_to_do_not_count():
    mine, others = access(), state.shared()
    others.count(mine.account, today(), "bulk", Usage(usd=50.0))
    others.count(mine.account, today(), "search", Usage(usd=SEARCH_DAILY_USD - 0.1))
    search, run = Budget(mine, MODEL), Budget(mine, MODEL, bulk=True)
    assert search.room()[1] == pytest.approx(0.1 / price(MODEL))
    search.cancel(search.reserve(texts=1, tokens=400_000, until=soon()))
    with pytest.raises(BudgetReached, match=r"\$0\.9000 of the \$1\.0000"):
        search.reserve(texts=1, tokens=600_000, until=soon())
    run.cancel(run.reserve(texts=1, tokens=600_000, until=soon()))
    assert others.used(mine.account, today())["bulk"].usd == pytest.approx(50.0)


def test_a_days_texts_are_counted_over_processes():
    mine = access(texts_per_day=100)
    state.shared().count(mine.account, today(), "bulk", Usage(texts=99))
    budget = Budget(mine, MODEL)
    budget.settle(budget.reserve(texts=1, tokens=1, until=soon()))
    with pytest.raises(QuotaReached, match="100 of 100"):
        budget.reserve(texts=1, tokens=1, until=soon())


def test_a_request_that_ends_tomorrow_counts_for_the_day_it_began():
    day = ["2026-11-22"]
    account = Account(access(), day=lambda: day[0])
    wanted = Usage(requests=1, texts=2, tokens=10, usd=0.5)
    with account.lock:
        began = account.reserve("search", wanted, lambda used, searched: None)
        day[0] = "2026-11-23"
        account.release("search", began, wanted, used=Usage(requests=1, texts=2, tokens=5, usd=0.25))
        assert account.of_day() == (Usage(), 0.0)
    used = state.shared().used(account.name, "2026-11-22")["search"]
    assert (used.requests, used.texts, used.tokens, used.usd) == (1, 2, 5, pytest.approx(0.25))


def test_what_is_refused_or_waited_for_in_vain_leaves_nothing_behind():
    mine = access(texts_per_minute=1, daily_usd=1.0)
    budget = Budget(mine, MODEL)
    budget.settle(budget.reserve(texts=1, tokens=0, until=soon()))
    with pytest.raises(ServiceUnavailable):
        budget.reserve(texts=1, tokens=1_000, until=time.monotonic())
    with pytest.raises(BudgetReached):
        budget.reserve(texts=1, tokens=10**9, until=soon())
    assert state.shared().used(mine.account, today())["search"].usd == pytest.approx(0.0)


@pytest.mark.parametrize("fault", ["a file stands there", "it is no database", "its table is another"])
def test_without_a_file_the_caps_hold_in_this_process_and_the_log_says_so_once(state_dir, caplog, fault):
    if fault == "a file stands there":
        state_dir.write_text("not a directory")
    else:
        state_dir.mkdir()
    if fault == "it is no database":
        (state_dir / "state.db").write_text("neither a database " * 100)
    if fault == "its table is another":
        with state.sqlite3.connect(state_dir / "state.db") as other:
            other.execute("create table used (other)")
        other.close()
    mine = access(daily_usd=0.001)
    with caplog.at_level(logging.WARNING):
        budget = Budget(mine, MODEL)
        budget.settle(budget.reserve(texts=1, tokens=4_000, until=soon()))
        with pytest.raises(BudgetReached):
            budget.reserve(texts=1, tokens=4_000, until=soon())
        Gate().note(ServiceUnavailable("it is down"))
    assert state.shared().errors() == []
    assert [record.message.split(" while")[0].split(":")[0] for record in caplog.records] == [
        "Daily caps hold for this process only",
        "A text was not embedded",
    ]
    assert str(state_dir) not in caplog.text


def test_a_file_that_can_no_longer_be_written_is_believed_and_left(state_dir, caplog):
    mine = access(daily_usd=0.001)
    first = Budget(mine, MODEL)
    first.settle(first.reserve(texts=1, tokens=3_000, until=soon()))
    shared = state.shared()
    with closing(state.sqlite3.connect(state_dir / "state.db")) as other:
        other.execute("create trigger full before insert on used begin select raise(abort, 'full'); end")
    with caplog.at_level(logging.WARNING):
        first.settle(first.reserve(texts=1, tokens=1_000, until=soon()))
    assert not shared.is_shared
    with closing(state.sqlite3.connect(state_dir / "state.db")) as other:
        other.execute("drop trigger full")
    assert shared.used(mine.account, today())["search"].tokens == 4_000
    with pytest.raises(BudgetReached):
        first.reserve(texts=1, tokens=3_000, until=soon())
    assert len(caplog.records) == 1


def test_what_was_counted_alone_is_added_when_the_file_can_be_used_again(state_dir, monkeypatch):
    monkeypatch.setattr(state, "WAIT_MS", 10)
    monkeypatch.setattr(state, "RETURN_SECONDS", 0.2)
    mine, shared = access(), state.shared()
    shared.count(mine.account, today(), "search", Usage(texts=1))
    with closing(state.sqlite3.connect(state_dir / "state.db", isolation_level=None)) as other:
        other.execute("begin immediate")
        shared.count(mine.account, today(), "search", Usage(texts=1))
        assert not shared.is_shared
        shared.count(mine.account, today(), "search", Usage(texts=1))
        other.execute("commit")
        assert shared.used(mine.account, today())["search"].texts == 3
        time.sleep(0.25)
        shared.count(mine.account, today(), "search", Usage(texts=1))
        assert shared.is_shared
        assert other.execute("select texts from used").fetchall() == [(4,)]


def test_a_file_that_is_damaged_while_it_is_used_resets_no_cap(state_dir):
    mine = access()
    search = Budget(mine, MODEL)
    search.settle(search.reserve(texts=1, tokens=4_500_000, until=soon()))
    open_ = search.reserve(texts=1, tokens=100_000, until=soon())
    state.shared().close()
    for file in state_dir.iterdir():
        file.write_bytes(b"damaged" * 1_000)
    search.settle(open_)
    with pytest.raises(BudgetReached, match=r"\$0\.9200 of the \$1\.0000"):
        search.reserve(texts=1, tokens=1_000_000, until=soon())


def test_a_user_without_a_home_counts_alone(monkeypatch, caplog):
    def homeless(*_, **__):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("DATASETTE_VEC_STATE_DIR")
    monkeypatch.setattr(state, "user_state_path", homeless)
    search = Budget(access(), MODEL)
    search.settle(search.reserve(texts=1, tokens=4_500_000, until=soon()))
    with pytest.raises(BudgetReached):
        search.reserve(texts=1, tokens=1_000_000, until=soon())
    assert [record.message.partition(" while")[0] for record in caplog.records] == [
        "Daily caps hold for this process only"
    ]


OPEN = """
import sys, time
from datasette_vec_gemini import state
from datasette_vec_gemini.store.usage import Usage
print("ready", flush=True)
for line in sys.stdin:
    shared = state.State(state.Path(line.strip()))
    shared.count("account", "day", "search", Usage(texts=1))
    print(shared.is_shared, flush=True)
    shared.close()
"""


def test_processes_that_make_the_file_at_one_moment_all_count_in_it(tmp_path):
    program = [sys.executable, "-c", OPEN]
    running = [subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    try:
        assert [process.stdout.readline() for process in running] == ["ready\n"] * 3
        for n in range(30):
            for process in running:
                process.stdin.write(f"{tmp_path / str(n)}\n")
                process.stdin.flush()
            assert [process.stdout.readline() for process in running] == ["True\n"] * 3
            with closing(state.sqlite3.connect(tmp_path / str(n) / "state.db")) as conn:
                assert conn.execute("select texts from used").fetchall() == [(3,)]
    finally:
        for process in running:
            process.communicate(timeout=10)


def test_only_the_user_can_read_it(state_dir):
    state.shared().note("something", "now")
    assert (state_dir / "state.db").exists()
    assert state_dir.stat().st_mode & 0o077 == 0


FORK = """
import os, sys, threading
from datasette_vec_gemini import state
from datasette_vec_gemini.store.usage import Usage
def count(times):
    for _ in range(times):
        state.shared().count("account", "day", "search", Usage(texts=1))
thread = threading.Thread(target=count, args=[300])
thread.start()
children = []
for _ in range(5):
    child = os.fork()
    if not child:
        count(20)
        os._exit(0)
    children.append(child)
thread.join()
assert [os.waitpid(child, 0)[1] for child in children] == [0] * 5
print(state.shared().used("account", "day")["search"].texts)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_fork_loses_nothing_and_hangs_nowhere():
    forking = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, timeout=60, check=False)
    assert forking.stdout == "400\n", forking.stderr


# Errors.


def test_the_last_different_errors_are_kept_the_newest_first():
    gate = Gate()
    for n in range(25):
        gate.note(ServiceUnavailable(f"fault {n}"))
    gate.note(ServiceUnavailable("fault 24"))
    assert [error for _, error in gate.errors] == [f"fault {n}" for n in range(5, 25)]
    assert [error for _, error in state.shared().errors()] == [f"fault {n}" for n in range(24, 4, -1)]


def test_one_reason_given_often_does_not_hide_the_others():
    gate = Gate()
    gate.note(ServiceUnavailable("the model is down"))
    for _ in range(50):
        gate.note(ServiceUnavailable("refused"))
    assert [error for _, error in gate.errors] == ["the model is down", "refused"]


def test_what_somebody_has_typed_is_not_written_to_the_disk():
    gate = Gate()
    gate.note(InvalidQuery("task type 'patient Doe' is not known"))
    assert len(gate.errors) == 1
    assert state.shared().errors() == []


def test_doctor_tells_what_sql_could_not_show(monkeypatch):
    monkeypatch.delenv("GEMINI_API_KEY", raising=False)
    monkeypatch.delenv("GOOGLE_API_KEY", raising=False)
    Gate().note(ServiceUnavailable("the daily quota is used up: go on tomorrow"))
    result = CliRunner().invoke(vec, ["doctor"])
    assert "the daily quota is used up: go on tomorrow" in result.output
    assert KEY not in result.output
