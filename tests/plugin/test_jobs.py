"""Background jobs of a real server: to the end, paused, cancelled, killed, restarted; and what a paid one may spend."""

import contextlib
import json
import os
import re
import signal
import statistics
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from fake_gemini import FakeGemini
from serving import Browser, served, table, until
from test_embed_gemini import LOCAL, ONE, settings

from datasette_vec_gemini import connect, create_index, find_index, indexes, sqlite3, status, sync, verify
from datasette_vec_gemini.errors import IndexExists
from datasette_vec_gemini.store import jobs

pytestmark = pytest.mark.slow

STATUS = "/data/-/vec/docs/status"
NO_WATCH = settings(sync_interval_seconds=0)
GEMINI = [("column", "body"), ("embedder", "gemini")]


@pytest.fixture
def fake():
    with FakeGemini() as fake:
        yield fake


@pytest.fixture
def file(tmp_path):
    return table(tmp_path / "data.db", 1_200)


def job(browser, kind="sync"):
    return next((job for job in browser.json(f"{STATUS}.json")["jobs"] if job["kind"] == kind), {"state": None})


def press(browser, label, **typed):
    answer = browser.press(browser.get(STATUS), label, **typed)
    assert answer[:2] == (303, STATUS)


def declared(file, *, embedder="local"):
    with contextlib.closing(connect(file)) as conn:
        return create_index(conn, "docs", table="docs", columns=["title", "body"], embedder=embedder)


def paid(fake):
    """How often each text of a row was embedded; the line by which the order of answers is told is none."""
    return Counter({text.partition("text: ")[2]: n for text, n in fake.embedded.items() if "number" in text})


def is_whole(file):
    with contextlib.closing(connect(file)) as conn:
        index = find_index(conn, "docs")
        assert verify(conn, index) == []
        found = status(conn, index)
        return (found.indexed, found.pending, found.failed) == (found.rows, 0, 0)


def test_a_job_is_paused_resumed_and_cancelled_and_says_how_far_it_is(file):
    declared(file)
    with served(file, config=NO_WATCH) as server:
        browser = Browser(server)
        press(browser, "Sync now")
        working = until(lambda: (found := job(browser))["stage"] == "vectors" and found["per_second"] and found)
        assert 0 < working["done"] < working["total"] == 1_200
        assert working["seconds_left"] > 0
        press(browser, "Pause")
        until(lambda: job(browser)["state"] == "paused")
        before = browser.json(f"{STATUS}.json")
        states = before["chunk_states"]
        assert 0 < states["embedded"] < states["chunks"] == states["embedded"] + states["pending"] + states["failed"]
        assert before["rows"] == sum(before[name] for name in ("indexed", "pending", "failed", "empty"))
        with contextlib.closing(connect(file)) as conn:
            assert conn.execute("select count(*) from _vec_docs_1_chunks where claim is not null").fetchone() == (0,)
        press(browser, "Resume")
        until(lambda: job(browser)["state"] == "running")
        press(browser, "Cancel")
        until(lambda: job(browser)["state"] == "cancelled")
        assert browser.json(f"{STATUS}.json")["chunk_states"]["embedded"] >= states["embedded"]
        press(browser, "Sync now")
        until(lambda: job(browser)["state"] == "finished")
        press(browser, "Verify")
        checked = until(lambda: (found := job(browser, "verify"))["state"] == "finished" and found)
        assert checked["message"] == "all checks hold"
    assert is_whole(file)


def test_one_job_at_a_time_for_an_index_and_a_second_one_is_refused_in_words(file):
    declared(file)
    with served(file, config=NO_WATCH) as server:
        browser = Browser(server)
        page = browser.get(STATUS)
        assert browser.press(page, "Sync now")[0] == 303
        code, _, body = browser.press(page, "Verify")
        assert code == 400
        assert "index &#39;docs&#39; has a job already" in body


@pytest.mark.parametrize("way", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_server_that_is_stopped_ends_at_once_and_the_next_one_goes_on(file, way):
    declared(file)
    with served(file, config=NO_WATCH) as server:
        browser = Browser(server)
        press(browser, "Sync now")
        until(lambda: job(browser)["stage"] == "vectors" and job(browser)["done"])
        started = time.monotonic()
        os.kill(server.pid, way)
        until(lambda: not is_answering(server))
        server.process.wait(20)
        assert time.monotonic() - started < 8  # two seconds are allowed, on a machine that does nothing else
    assert not is_whole(file)
    assert "Traceback" not in "".join(server.log)
    with served(file, config=NO_WATCH) as server:
        browser = Browser(server)
        until(lambda: job(browser)["state"] == "finished")
    assert is_whole(file)


def is_answering(server):
    try:
        return server.get("/-/versions.json")[0] == 200
    except OSError:
        return False


def test_what_was_paused_stays_paused_when_the_server_starts_again(file):
    declared(file)
    with served(file, config=NO_WATCH) as server:
        browser = Browser(server)
        press(browser, "Sync now")
        until(lambda: job(browser)["done"])
        press(browser, "Pause")
        until(lambda: job(browser)["state"] == "paused")
    with served(file, config=settings(sync_interval_seconds=1)) as server:
        browser = Browser(server)
        done = job(browser)["done"]
        time.sleep(2.5)
        assert (job(browser)["state"], job(browser)["done"]) == ("paused", done)
        press(browser, "Resume")
        until(lambda: job(browser)["state"] == "finished")
    assert is_whole(file)


def test_a_second_server_on_the_file_leaves_the_first_one_s_job_alone(file):
    declared(file)
    watching = settings(sync_interval_seconds=1)
    with served(file, config=NO_WATCH) as first:
        browser = Browser(first)
        press(browser, "Sync now")
        until(lambda: job(browser)["stage"] == "vectors")
        with contextlib.closing(connect(file)) as conn:
            owner = conn.execute("select owner from _vec__jobs").fetchone()
            with served(file, config=watching) as second:
                found = until(lambda: job(Browser(second)))
                assert (found["state"], found["is_live"]) == ("running", False)
                until(lambda: job(browser)["state"] == "finished")
            assert conn.execute("select owner from _vec__jobs").fetchone() == owner
    assert is_whole(file)


def test_of_two_servers_one_works_and_the_other_refuses_and_can_end_the_job(file):
    declared(file)
    with served(file, config=NO_WATCH) as first, served(file, config=NO_WATCH) as second:
        browser, other = Browser(first), Browser(second)
        page = other.get(STATUS)
        press(browser, "Sync now")
        until(lambda: job(browser)["stage"] == "vectors")
        code, _, body = other.press(page, "Sync now")
        assert code == 400
        assert "has a job already" in body
        assert job(other)["state"] == "running"
        press(other, "Pause")
        until(lambda: job(browser)["state"] == "paused" and not job(browser)["is_live"])
        assert (job(other)["state"], job(other)["asked"]) == ("paused", None)
        done = job(browser)["done"]
        press(other, "Resume")
        until(lambda: job(other)["state"] == "finished")
        assert done < 1_200
    assert is_whole(file)


def test_an_index_called_jobs_is_worked_on_as_any_other(file):
    with contextlib.closing(connect(file)) as conn:
        create_index(conn, "jobs", table="docs", columns=["body"], embedder="hashing@64")
    path = "/data/-/vec/jobs/status"
    with served(file, config=NO_WATCH) as server:
        browser = Browser(server)
        assert browser.press(browser.get(path), "Sync now")[0] == 303
        until(lambda: [job["state"] for job in browser.json(f"{path}.json")["jobs"]] == ["finished"])


def test_a_run_writes_only_what_is_its_own_and_hears_what_it_is_asked(file):
    declared(file)
    mine = jobs.Job(index="docs", kind="sync", state="running", started="2026", owner="mine")
    theirs = replace(mine, kind="verify", owner="theirs")
    with contextlib.closing(connect(file)) as conn:
        jobs.begin(conn, mine, lives=bool)
        with pytest.raises(IndexExists):
            jobs.begin(conn, theirs, lives=bool)
        assert jobs.tell(conn, replace(mine, done=5)) is None
        jobs.ask(conn, "DOCS", "paused", ended="2027", lives=bool)
        assert jobs.jobs(conn) == [replace(mine, done=5, asked="paused")]
        assert jobs.tell(conn, replace(mine, done=6)) == "paused"
        jobs.ask(conn, "docs", "cancelled", ended="2027", lives=bool)  # a second time it is not waited for
        assert [(job.state, job.ended) for job in jobs.jobs(conn)] == [("cancelled", "2027")]
        jobs.begin(conn, replace(theirs, kind="sync"), lives=bool)
        assert jobs.tell(conn, replace(mine, state="finished", ended="2028")) == "cancelled"
        assert jobs.jobs(conn) == [replace(theirs, kind="sync")]


def test_a_paid_job_that_is_killed_goes_on_with_what_is_left_of_its_budget_and_pays_for_nothing_twice(file, fake):
    fake.latency_seconds = 0.4
    with served(file, fake=fake, config=NO_WATCH) as server:
        browser = Browser(server)
        page = browser.get("/data/-/vec-index/docs", GEMINI)
        assert browser.press(page, "Create and start", max_usd="0.50")[:2] == (303, STATUS)
        until(lambda: (found := job(browser))["stage"] == "vectors" and found["done"] >= 200)
        os.kill(server.pid, signal.SIGKILL)
        server.process.wait(20)
    with contextlib.closing(connect(file)) as conn:
        ((agreed, spent),) = conn.execute("select max_usd, spent_usd from _vec__jobs where kind = 'sync'").fetchall()
        texts = dict(conn.execute("select text, embedding is not null from _vec_docs_1_chunks").fetchall())
    owned = {text for text, has_vector in texts.items() if has_vector}
    assert agreed == 0.5
    assert 0 < spent < 0.5
    asked_before = paid(fake)
    fake.latency_seconds = 0
    with served(file, fake=fake, config=NO_WATCH) as server:
        browser = Browser(server)
        last = until(lambda: (found := job(browser))["state"] == "finished" and found)
    assert last["max_usd"] == 0.5
    assert last["spent_usd"] > spent
    assert is_whole(file)
    again = paid(fake) - asked_before
    assert owned.isdisjoint(again)
    assert set(paid(fake)) == set(texts)
    assert sum(paid(fake).values()) <= 1_200 + 1_000  # what was under way when it died


def test_a_budget_that_is_used_up_stops_the_job_and_a_greater_one_finishes_it(file, fake):
    with served(file, fake=fake, config=NO_WATCH) as server:
        browser = Browser(server)
        page = browser.get("/data/-/vec-index/docs", GEMINI)
        assert browser.press(page, "Create and start", max_usd="0.001")[0] == 303
        stopped = until(lambda: (found := job(browser))["state"] == "waiting" and found)
        assert stopped["spent_usd"] <= stopped["max_usd"] == 0.001
        assert re.search(r"\$[0-9.]+ allowed for this run are spent", stopped["message"])
        assert stopped["message"].endswith("agree to more here, and it goes on from there")
        assert "--max-usd" not in browser.get(STATUS)
        for path in (f"{STATUS}.json", STATUS, "/-/vec/status.json"):
            _, _, told = Browser(server, None).send("GET", path, headers={"x-forwarded-for": "203.0.113.7"})
            assert "allowed for this run are spent" in told
            assert not re.search(r"\$\d", told)
        press(browser, "Resume", max_usd="1")
        until(lambda: job(browser)["state"] == "finished")
    assert is_whole(file)
    assert max(paid(fake).values()) == 1


@pytest.mark.parametrize("typed", ["", "many", "-1", "0", "nan", "inf"])
def test_a_paid_job_is_not_started_without_dollars(file, fake, typed):
    declared(file, embedder="gemini")
    with served(file, fake=fake, config=NO_WATCH) as server:
        browser = Browser(server)
        code, _, body = browser.press(browser.get(STATUS), "Sync now", max_usd=typed)
        assert code == 400
        assert "dollars" in body
        assert job(browser)["state"] is None
    assert fake.requests == []


def test_while_a_service_does_not_answer_a_job_can_be_paused_and_the_server_be_stopped(file, fake):
    fake.always = "503"
    with served(file, fake=fake, config=NO_WATCH) as server:
        browser = Browser(server)
        page = browser.get("/data/-/vec-index/docs", GEMINI)
        assert browser.press(page, "Create and start", max_usd="1")[0] == 303
        until(lambda: fake.requests)
        press(browser, "Pause")
        until(lambda: job(browser)["state"] == "paused", 30)
        press(browser, "Resume")
        until(lambda: job(browser)["state"] == "running")
        os.kill(server.pid, signal.SIGTERM)
        server.process.wait(20)
    fake.always = None
    with served(file, fake=fake, config=NO_WATCH) as server:
        browser = Browser(server)
        until(lambda: job(browser)["state"] == "finished")
    assert is_whole(file)


def test_readers_stay_quick_while_a_job_works(tmp_path):
    file = table(tmp_path / "data.db", 8_000)
    declared(file)
    with served(file, config=NO_WATCH) as server:
        browser = Browser(server)

        def seconds(path):
            started = time.perf_counter()
            assert server.get(path)[0] == 200, "".join(server.log)[-3000:]
            return time.perf_counter() - started

        press(browser, "Sync now")
        until(lambda: job(browser)["done"])
        paths = ["/data/docs", "/", "/data/docs/7.json", "/data/-/vec/docs.json?q=date&mode=keyword"] * 15
        with ThreadPoolExecutor(4) as pool:
            found = sorted(pool.map(seconds, paths))
        assert job(browser)["state"] == "running"
        assert statistics.quantiles(found, n=20)[-1] < 3  # no wait for the job, which takes a minute
        press(browser, "Cancel")
        until(lambda: job(browser)["state"] == "cancelled")


def test_two_jobs_at_once_and_the_third_waits_for_its_turn_and_can_be_paused_there(tmp_path):
    files = [table(tmp_path / f"{name}.db", 2_000) for name in ("a", "b", "c")]
    for file in files:
        declared(file)
    with served(*files, config=NO_WATCH) as server:
        browser = Browser(server)
        paths = [f"/{file.stem}/-/vec/docs/status" for file in files]

        def states():
            return [browser.json(f"{path}.json")["jobs"][0]["state"] for path in paths]

        for path in paths:
            assert browser.press(browser.get(path), "Sync now")[0] == 303
        assert until(lambda: (found := states()) == ["running", "running", "queued"] and found)
        browser.press(browser.get(paths[2]), "Pause")
        assert states() == ["running", "running", "paused"]


def test_a_failed_row_is_told_with_its_reason_and_tried_again(file, fake):
    fake.poison.add("number 77")
    with served(file, fake=fake, config=NO_WATCH) as server:
        browser = Browser(server)
        page = browser.get("/data/-/vec-index/docs", GEMINI)
        assert browser.press(page, "Create and start", max_usd="1")[0] == 303
        until(lambda: job(browser)["state"] == "finished")
        found = browser.json(f"{STATUS}.json")
        assert (found["failed"], found["indexed"]) == (len(found["failures"]), 1_200 - found["failed"])
        assert found["failures"][0][0] == "77"
        fake.poison.clear()
        press(browser, "Retry failed rows", max_usd="1")
        until(lambda: job(browser)["state"] == "finished" and browser.json(f"{STATUS}.json")["failed"] == 0)
    assert is_whole(file)


def test_a_generation_that_is_being_built_is_shown_beside_the_one_in_use_and_finished(file):
    from datasette_vec_gemini import Progress, rebuild

    with contextlib.closing(connect(file)) as conn:
        index = create_index(conn, "docs", table="docs", columns=["title"], embedder="hashing@64")
        sync(conn, index)

        def stop(progress: Progress) -> None:
            if progress.stage == "vectors" and progress.done:
                raise InterruptedError

        with contextlib.suppress(InterruptedError):
            rebuild(conn, index, embedder="hashing@128", on_progress=stop)
    with served(file, config=NO_WATCH) as server:
        browser = Browser(server)
        building = browser.json(f"{STATUS}.json")["building"]
        assert (building["generation"], building["embedder"], building["chunks"]) == (2, "hashing@128", 1_200)
        assert 0 < building["embedded"] < 1_200
        press(browser, "Go on building")
        until(lambda: job(browser, "rebuild")["state"] == "finished")
        found = browser.json(f"{STATUS}.json")
        assert (found["generation"], found["dimensions"], found["building"]) == (2, 128, None)
    assert is_whole(file)


CROSS = [
    {"sec-fetch-site": "cross-site", "origin": "https://evil.example"},
    {"origin": "https://evil.example"},
    {"sec-fetch-site": "same-site"},
]


@pytest.mark.parametrize("headers", CROSS)
def test_another_web_page_can_start_nothing_whoever_the_browser_is_signed_in_as(file, headers):
    declared(file)
    everybody = NO_WATCH | {"permissions": {"vec-index": True}}
    with served(file, config=everybody) as server:
        for browser in (Browser(server), Browser(server, None)):
            fields = [("action", "start"), ("kind", "sync")]
            assert browser.send("POST", STATUS, fields, headers)[0] == 403
            fields = [("column", "body"), ("name", "other"), ("embedder", "hashing")]
            assert browser.send("POST", "/data/-/vec-index/docs", fields, headers)[0] == 403
        assert server.json("/-/vec/status.json")["databases"][0]["indexes"][0]["job"] is None


@pytest.mark.skipif(ONE, reason="1.0 has no tokens")
def test_without_its_token_a_form_is_refused_by_0_65(file):
    declared(file)
    with served(file, config=NO_WATCH) as server:
        browser = Browser(server)
        assert browser.send("POST", STATUS, [("action", "start"), ("kind", "sync")])[0] == 403
        assert job(browser)["state"] is None


def test_who_may_not_index_has_no_buttons_and_a_post_is_as_to_nothing(file):
    declared(file)
    with served(file, config=NO_WATCH) as server:
        for actor in ("bob", None):
            browser = Browser(server, actor)
            page = browser.get(STATUS)
            assert "<form" not in page.partition("<h1>")[2].partition("<footer")[0]
            token = [("csrftoken", browser.cookies.get("ds_csrftoken", ""))]
            answers = [
                browser.send("POST", path, [*token, ("action", "start"), ("kind", "sync")])
                for path in (STATUS, "/data/-/vec/nothing/status")
            ]
            assert [code for code, _, _ in answers] in ([404, 404], [403, 403])
            assert answers[0][2].replace("docs", "nothing") == answers[1][2]
        assert server.json(f"{STATUS}.json", headers=LOCAL)["jobs"] == []


def test_a_file_that_is_served_as_immutable_is_searched_and_not_synced(file):
    declared(file)
    with contextlib.closing(sqlite3.connect(file)) as conn:
        conn.execute("pragma wal_checkpoint(truncate)")
    before = file.read_bytes()
    with served(options=["-i", str(file)]) as server:
        browser = Browser(server)
        found = browser.json(f"{STATUS}.json")["write_through"]
        assert found["on"] is False
        assert "immutable" in found["reason"]
        assert "served as immutable" in browser.get("/-/vec/status")
        code, _, body = browser.press(browser.get(STATUS), "Sync now")
        assert code == 400
        assert "immutable" in body
    assert file.read_bytes() == before


def tables(file):
    with contextlib.closing(connect(file)) as conn:
        return {
            name
            for (name,) in conn.execute("select name from sqlite_master where name like '\\_vec\\_docs%' escape '\\'")
        }


def rows(file):
    with contextlib.closing(connect(file)) as conn:
        return conn.execute("select * from docs").fetchall()


DROP = [("action", "drop"), ("name", "docs")]


@pytest.mark.parametrize("during", [None, "here", "elsewhere"])
def test_an_index_is_dropped_by_its_name_also_during_a_job_and_its_table_stays(file, during):
    declared(file)
    before = rows(file)
    with served(file, config=NO_WATCH) as server, served(file, config=NO_WATCH) as other:
        browser = Browser(server)
        page = browser.get(STATUS)
        for wrong in ("", "doc", "DOCS "):
            code, _, body = browser.press(page, "Drop the index", name=wrong)
            assert code == 400
            assert "nothing was dropped: type the name of the index, docs" in body
        if during:
            press(browser if during == "here" else Browser(other), "Sync now")
            until(lambda: job(browser)["stage"] == "vectors")
        code, location, _ = browser.press(page, "Drop the index", name="docs")
        assert (code, location) == (303, "/data/-/vec")
        assert "The index docs was dropped; table docs is as it was" in browser.get(location)
        for each in (browser, Browser(other)):
            until(lambda each=each: each.send("GET", STATUS)[0] == 404)
        assert tables(file) == set()
        # The table can be indexed anew, under the same name.
        page = browser.get("/data/-/vec-index/docs", [("column", "title"), ("embedder", "hashing")])
        assert browser.press(page, "Create and start")[:2] == (303, STATUS)
        until(lambda: job(browser)["state"] == "finished")
    for log in (server.log, other.log):  # Datasette prints a traceback for every page that is not there
        assert "has failed" not in "".join(log)
    assert rows(file) == before
    assert is_whole(file)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("alter table docs rename column body to words", "drop index &#39;docs&#39; and make it again"),
        ("drop table _vec_docs_1_chunks", "a table of index &#39;docs&#39; is gone"),
        ("drop table docs", "&#39;seen&#39; cannot be read"),
    ],
)
def test_an_index_that_cannot_be_read_is_dropped_from_its_page_all_the_same(file, damage, words):
    with contextlib.closing(connect(file)) as conn:
        conn.execute("create view seen as select id, body from docs")
        source = {"table": "seen", "key": ["id"]} if "seen" in words else {"table": "docs"}
        sync(conn, create_index(conn, "docs", columns=["body"], embedder="hashing@64", **source))
        conn.execute(damage)
        with served(file, config=NO_WATCH) as server:
            browser = Browser(server)
            code, _, body = browser.send("GET", f"{STATUS}.json")
            assert (code, set(json.loads(body))) == (503, {"ok", "error", "status"})
            code, _, page = browser.send("GET", STATUS)
            assert (code, words in page) == (503, True)
            code, _, other = Browser(server, actor=None).send("GET", STATUS)
            assert (code, words in other, "Drop the index" in other) == (503, True, False)
            code, _, page = browser.press(page, "Drop the index", name="x")
            assert (code, "nothing was dropped" in page) == (400, True)
            assert browser.press(page, "Drop the index", name="docs")[:2] == (303, "/data/-/vec")
        assert indexes(conn) == []


def test_a_declared_index_that_is_dropped_says_when_it_comes_back(file):
    block = {"plugins": {"datasette-vec-gemini": {"index": {"columns": ["title"], "embedder": "hashing"}}}}
    config = NO_WATCH | {"databases": {"data": {"tables": {"docs": block}}}}
    with served(file, config=config) as server:
        browser = Browser(server)
        until(lambda: browser.send("GET", STATUS)[0] == 200 and job(browser)["state"] == "finished")
        _, location, _ = browser.press(browser.get(STATUS), "Drop the index", name="docs")
        assert "the next start of the server makes it again" in browser.get(location)
        time.sleep(1.5)
        assert browser.send("GET", STATUS)[0] == 404
    with served(file, config=config) as server:
        until(lambda: Browser(server).send("GET", STATUS)[0] == 200)


def test_what_is_derived_is_made_anew_for_nothing_and_what_was_wrong_is_right_then(file, fake):
    with served(file, fake=fake, config=NO_WATCH) as server:
        browser = Browser(server)
        page = browser.get("/data/-/vec-index/docs", GEMINI)
        assert browser.press(page, "Create and start", max_usd="1")[0] == 303
        until(lambda: job(browser)["state"] == "finished")
        with contextlib.closing(connect(file)) as conn:
            conn.execute("delete from _vec_docs_1_codes where id < 50")
            conn.execute("insert into _vec_docs_1_fts (_vec_docs_1_fts) values ('delete-all')")
            conn.commit()
        press(browser, "Verify")
        found = until(lambda: (found := job(browser, "verify"))["state"] == "finished" and found)["message"]
        assert "codes: 49 chunks whose code is missing" in found
        requests = len(fake.requests)
        press(browser, "Rebuild")
        told = until(lambda: (found := job(browser, "rebuild"))["state"] == "finished" and found)["message"]
        assert told.startswith("the keyword index and the codes were made anew")
        press(browser, "Verify")
        until(lambda: job(browser, "verify")["message"] == "all checks hold")
        assert len(fake.requests) == requests
    assert is_whole(file)


def test_while_a_job_is_under_way_no_other_is_started_and_a_rebuild_is_told_so(file):
    declared(file)
    with served(file, config=NO_WATCH) as server:
        browser = Browser(server)
        page = browser.get(STATUS)
        press(browser, "Sync now")
        code, _, body = browser.press(page, "Rebuild")
        assert code == 400
        assert "index &#39;docs&#39; has a job already" in body


def test_a_sync_by_another_program_is_the_last_one_that_the_page_tells_of(file):
    declared(file, embedder="hashing@64")
    with served(file, config=NO_WATCH) as server:
        browser = Browser(server)
        assert job(browser)["state"] is None
        with contextlib.closing(connect(file)) as conn:
            sync(conn, find_index(conn, "docs"))
        first = job(browser)
        assert (first["state"], first["is_live"]) == ("finished", False)
        assert first["message"].startswith("1,200 documents read, 1,200 chunks embedded, ")
        with contextlib.closing(connect(file)) as conn:
            sync(conn, find_index(conn, "docs"))  # had nothing to do
            assert job(browser) == first
            conn.execute("delete from docs where id > 1")
            conn.execute("update docs set title = 'other'")
            conn.commit()
            sync(conn, find_index(conn, "docs"))
        assert "1 chunk embedded" in job(browser)["message"]
        assert "sync finished <time" in browser.get("/-/vec/status")


def test_what_somebody_paused_stays_paused_though_another_program_syncs(file):
    declared(file, embedder="hashing@64")
    with contextlib.closing(connect(file)) as conn:
        mine = jobs.Job(index="docs", kind="sync", state="paused", started="2026", owner="mine")
        jobs.begin(conn, mine, lives=bool)
        sync(conn, find_index(conn, "docs"))
        assert jobs.jobs(conn) == [mine]


@pytest.mark.parametrize("way", ["immutable", "read-only"])
def test_what_cannot_be_written_has_no_way_to_be_changed(file, way, request):
    declared(file, embedder="hashing@64")
    with contextlib.closing(connect(file)) as conn:
        sync(conn, find_index(conn, "docs"))
        conn.execute("pragma journal_mode = delete")
    before = file.read_bytes()
    if way == "immutable":
        serving = served(options=["-i", str(file)])
    else:
        file.chmod(0o444)
        serving = served(file, config=NO_WATCH, python=request.getfixturevalue("unprivileged_python"))
    with serving as server:
        browser = Browser(server)
        assert browser.json("/data/-/vec/docs.json?q=date")["hits"]
        assert browser.json(f"{STATUS}.json")["write_through"]["on"] is False
        page = browser.get(STATUS)
        for label, typed in [("Sync now", {}), ("Verify", {}), ("Rebuild", {}), ("Drop the index", {"name": "docs"})]:
            code, _, body = browser.press(page, label, **typed)
            assert code == 400
            assert "searching works" in body
    assert file.read_bytes() == before


ACTIONS = [
    [("action", "start"), ("kind", "sync")],
    [("action", "start"), ("kind", "rebuild")],
    [("action", "start"), ("kind", "verify")],
    [("action", "resume"), ("kind", "sync")],
    [("action", "pause")],
    [("action", "cancel")],
    DROP,
    [("action", "nonsense")],
    [],
]


def test_every_post_is_for_those_who_may_index_and_from_our_own_pages_only(file):
    """By actor, sender and form: nobody else changes anything, and is told nothing of what is there."""
    declared(file, embedder="hashing@64")
    everybody = NO_WATCH | {"permissions": {"vec-index": {"id": ["root", "bob"]}}}
    everybody |= {"databases": {"data": {"tables": {"docs": {"allow": {"id": ["root", "eve"]}}}}}}
    create = [("column", "body"), ("name", "other"), ("embedder", "hashing")]
    forms = [(STATUS, fields) for fields in ACTIONS] + [("/data/-/vec-index/docs", create)]
    with served(file, config=everybody) as server:
        for path, fields in forms:
            for headers in CROSS:
                assert Browser(server).send("POST", path, fields, headers)[0] == 403
                assert Browser(server, None).send("POST", path, fields, headers)[0] in {403, 404}
            for actor in ("bob", "eve", None):  # who may not view the table, who may not index it, and nobody
                browser = Browser(server, actor)
                browser.get("/-/vec")
                token = [("csrftoken", browser.cookies.get("ds_csrftoken", ""))]
                absent = path.replace("docs", "absent")
                answers = [browser.send("POST", each, [*token, *fields]) for each in (path, absent)]
                assert answers[0][0] == answers[1][0] in {403, 404}
                assert answers[0][2].replace("docs", "absent") == answers[1][2]
        browser = Browser(server)
        assert job(browser)["state"] is None
        assert browser.send("GET", "/data/-/vec/other/status")[0] == 404
        assert browser.send("GET", f"{STATUS}?action=drop&name=docs")[0] == 200
    assert tables(file)
