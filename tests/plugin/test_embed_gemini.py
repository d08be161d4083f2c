"""embed_gemini() on Datasette's SQL page, in a real `datasette` process that asks the fake of Google's API.

`Server` and `index` serve the other files of this directory too.
"""

import contextlib
import http.client
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import threading
import time
from base64 import b64decode
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pytest
from datasette.app import Datasette
from fake_gemini import KEY, FakeGemini

from datasette_vec_gemini import connect, create_index, sqlite3, sync

pytestmark = pytest.mark.slow

ONE = hasattr(Datasette, "allowed")
LOCAL = {"host": "127.0.0.1:8001"}
STRANGER = LOCAL | {"x-forwarded-for": "203.0.113.7"}
QUERY = "task: search result | query: "
TITLES = ("Parse a date", "Convert a time zone", "Read comma separated values", "Sort a list", "Draw a chart")


class Server:
    """A `datasette` process at a free port of this machine; `log` is what it wrote."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.pid = 0
        self.process: subprocess.Popen[str] | None = None
        self.log: list[str] = []
        self.is_up = threading.Event()

    def read(self, stream: Any) -> None:
        for line in stream:
            self.log.append(line)
            if "running on" in line:
                self.is_up.set()
        self.is_up.set()

    def get(
        self, path: str, parameters: dict[str, object] | None = None, *, headers: dict[str, str] = LOCAL
    ) -> tuple[int, str]:
        """Status and body of one request."""
        query = f"?{urlencode(parameters)}" if parameters else ""
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)) as connection:
            connection.request("GET", f"{path}{query}", headers=headers)
            response = connection.getresponse()
            return response.status, response.read().decode()

    def json(self, path: str, parameters: dict[str, object] | None = None, **options: Any) -> Any:
        return json.loads(self.get(path, parameters, **options)[1])

    def sql(self, sql: str, *, database: str = "data", headers: dict[str, str] = LOCAL) -> tuple[int, list[list[Any]]]:
        """Status and rows of a query of the SQL page's JSON; BLOBs as bytes."""
        path = f"/{database}/-/query.json" if ONE else f"/{database}.json"
        status, body = self.get(path, {"sql": sql, "_shape": "arrays"}, headers=headers)
        rows = json.loads(body).get("rows") or []
        return status, [[b64decode(v["encoded"]) if isinstance(v, dict) else v for v in row] for row in rows]


def sql_page(database: str = "data") -> str:
    return f"/{database}/-/query" if ONE else f"/{database}"


def environment(fake: FakeGemini | None, **more: str) -> dict[str, str]:
    """That of a person who set a key and nothing else."""
    plain = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("GOOGLE_", "GEMINI_", "DATASETTE_", "COV_")) or name == "DATASETTE_VEC_STATE_DIR"
    }
    return plain | ({"GEMINI_API_KEY": KEY, "GOOGLE_GEMINI_BASE_URL": fake.url} if fake else {}) | more


@contextlib.contextmanager
def served(
    *files: Path,
    fake: FakeGemini | None = None,
    config: dict[str, Any] | None = None,
    options: Sequence[str] = (),
    python: Sequence[str] = (sys.executable,),
    **variables: str,
) -> Iterator[Server]:
    """`datasette FILES…` with these settings; ended at the end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        server = Server(probe.getsockname()[1])
    command = [*python, "-m", "datasette", *map(str, files), "-p", str(server.port), *options]
    if config is not None:
        file = files[0].with_name(f"{server.port}-config.json")
        file.write_text(json.dumps(config))
        # "permissions:" and "plugins:" stand in the metadata of 0.65, which 1.0 calls its configuration.
        command += ["-c" if ONE else "-m", str(file)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment(fake, **variables)
    ) as process:
        server.pid, server.process = process.pid, process
        reader = threading.Thread(target=server.read, args=[process.stdout])
        reader.start()
        try:
            assert server.is_up.wait(30)
            yield server
        finally:
            process.terminate()
            reader.join(10)
            process.kill()


def settings(**own: object) -> dict[str, Any]:
    return {"plugins": {"datasette-vec-gemini": own}}


def index(
    file: Path, fake: FakeGemini, monkeypatch: pytest.MonkeyPatch, titles: Sequence[str] = TITLES, **options: Any
) -> Path:
    """A table `docs` with these titles and an index on it made by Gemini; what that asked of the fake is forgotten."""
    for name, value in environment(fake).items():
        monkeypatch.setenv(name, value)
    for name in ("GOOGLE_API_KEY", "DATASETTE_VEC_SQL_EMBEDDING"):
        monkeypatch.delenv(name, raising=False)
    with contextlib.closing(connect(file, create=True)) as conn:
        conn.execute("create table docs (id integer primary key, title text)")
        conn.executemany("insert into docs (title) values (?)", [[title] for title in titles])
        conn.commit()
        sync(conn, create_index(conn, "docs", table="docs", columns=["title"], **{"embedder": "gemini"} | options))
    fake.requests.clear()
    return file


@pytest.fixture
def fake() -> Iterator[FakeGemini]:
    with FakeGemini() as fake:
        yield fake


@pytest.fixture
def data(tmp_path) -> Path:
    """`data.db`: a table of 2,000 different texts, and no index."""
    file = tmp_path / "data.db"
    with contextlib.closing(sqlite3.connect(file)) as conn:
        conn.execute("create table big (id integer primary key, text text)")
        conn.executemany("insert into big (text) values (?)", [[f"text number {n}"] for n in range(2_000)])
        conn.execute("create view seen as select id, embed_gemini(text) as vector from big")
        conn.commit()
    return file


def expected(fake: FakeGemini, text: str, **options: Any) -> bytes:
    """What embed_gemini gives: Google's vector, of unit length, as float32."""
    vector = fake.vector(text, **options)
    return (vector / np.linalg.norm(vector)).astype("<f4").tobytes()


def close(blob: bytes, other: bytes) -> bool:
    return len(blob) == len(other) and bool(
        np.allclose(np.frombuffer(blob, "<f4"), np.frombuffer(other, "<f4"), atol=1e-6)
    )


def test_with_a_key_in_the_environment_the_very_first_call_works(fake, data):
    with served(data, fake=fake) as server:
        status, rows = server.sql("select embed_gemini('hello')")
        assert status == 200
        assert close(rows[0][0], expected(fake, f"{QUERY}hello"))
        assert len(rows[0][0]) == 3072
        status, page = server.get(sql_page(), {"sql": "select embed_gemini('hello')"})
        assert status == 200
        assert re.search(r"3,?072(&nbsp;|.)bytes", page)
    assert [request.texts for request in fake.requests] == [[f"{QUERY}hello"]]
    assert fake.requests[0].headers["x-goog-api-key"] == KEY


def test_datasette_get_on_the_command_line_works_too(fake, data):
    path = f"{sql_page()}.json?{urlencode({'sql': 'select length(embed_gemini(1))', '_shape': 'arrayfirst'})}"
    run = subprocess.run(
        [sys.executable, "-m", "datasette", str(data), "--get", path],
        env=environment(fake),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, json.loads(run.stdout)) == (0, [3072]), run.stderr
    assert "Traceback" not in run.stderr


def test_what_it_takes_and_what_it_gives(fake, data):
    # Two new texts in one statement may pass Datasette's second on a busy machine.
    with served(data, fake=fake, options=["--setting", "sql_time_limit_ms", "10000"]) as server:
        for sql in ("null", "''", "'  '", "null, 'CLUSTERING'"):
            assert server.sql(f"select embed_gemini({sql})") == (200, [[None]])
        assert fake.requests == []
        for sql, text in [
            ("42", f"{QUERY}42"),
            ("1.5", f"{QUERY}1.5"),
            ("'a', 'RETRIEVAL_DOCUMENT'", "title: none | text: a"),
            ("'a', 'retrieval_query'", f"{QUERY}a"),
            ("'a', null", f"{QUERY}a"),
            ("'naïve ☃ 𝄞 { }'", f"{QUERY}naïve ☃ 𝄞 {{ }}"),
        ]:
            status, rows = server.sql(f"select embed_gemini({sql})")
            assert (status, close(rows[0][0], expected(fake, text))) == (200, True), sql
        calls = len(fake.requests)
        assert calls == 5  # the same text for the same task is asked for once
        for sql in ("x'00'", "zeroblob(3)", "'a', 'RETRIEVAL'"):
            assert server.sql(f"select embed_gemini({sql})")[0] == 400, sql
        # Where an answer takes longer than a second it comes all the same, and is there when it is asked for again.
        pairs = "select embed_gemini('same') = embed_gemini('same'), embed_gemini('a') = embed_gemini('b')"
        assert [[1, 0]] in (server.sql(pairs)[1] for _ in range(5))
        assert server.sql("select embed_gemini()")[0] == 400
    assert len(fake.requests) == calls + 2


@pytest.mark.parametrize(("threads", "warm"), [("0", False), ("1", False), ("3", True)])
def test_the_number_of_sql_threads_does_not_matter_at_home(fake, data, threads, warm):
    with served(data, fake=fake, options=["--setting", "num_sql_threads", threads]) as server:
        if warm:
            server.sql("select 1")
        assert [server.sql(f"select length(embed_gemini('{n}'))") for n in range(3)] == [(200, [[3072]])] * 3
        assert server.sql("select embed_gemini('x')", headers=STRANGER)[0] == 400
    assert len(fake.requests) == 3


NEAREST = """
select d.title from docs d join _vec_docs v using (id)
order by vec_distance_cosine(v.embedding, embed_gemini('{}')) limit 5
"""
MATCH = """
select d.title, c.distance from _vec_docs_1_codes c join _vec_docs_1_chunks k using (id) join docs d on d.id = k.k0
where c.embedding match {} and k = 10 order by c.distance limit 5
"""


def test_both_documented_forms_order_rows_by_meaning_for_one_paid_call(fake, tmp_path, monkeypatch):
    titles = [*TITLES, *(f"filler number {n}" for n in range(500))]
    file = index(tmp_path / "data.db", fake, monkeypatch, titles)
    with served(file, fake=fake) as server:
        status, rows = server.sql(NEAREST.format("how to parse a date"))
        assert (status, len(rows), rows[0]) == (200, 5, ["Parse a date"])
        assert len(fake.requests) == 1
        status, rows = server.sql(MATCH.format("vec_quantize_binary(embed_gemini('convert a zone'))"))
        assert (status, len(rows), rows[0][0]) == (200, 5, "Convert a time zone")
        assert len(fake.requests) == 2
        page = server.get(sql_page(), {"sql": NEAREST.format("how to parse a date")})
        assert page[0] == 200
        assert "Parse a date" in page[1]
    assert len(fake.requests) == 2


def test_float32_codes_are_matched_without_quantising(fake, tmp_path, monkeypatch):
    file = index(tmp_path / "data.db", fake, monkeypatch, quantize="float32")
    with served(file, fake=fake) as server:
        status, rows = server.sql(MATCH.format("embed_gemini('convert a zone')"))
        assert (status, rows[0][0]) == (200, "Convert a time zone")
    assert len(fake.requests) == 1


@pytest.mark.parametrize(
    ("embedder", "text", "asked"),
    [
        ("gemini:gemini-embedding-001", "hello", {"model": "gemini-embedding-001", "task_type": "RETRIEVAL_QUERY"}),
        ("gemini@256", f"{QUERY}hello", {"model": "gemini-embedding-2", "dimensions": 256}),
    ],
)
def test_the_model_and_the_size_are_those_of_the_database_s_index(
    *, fake, tmp_path, monkeypatch, embedder, text, asked
):
    file = index(tmp_path / "data.db", fake, monkeypatch, embedder=embedder)
    with served(file, fake=fake) as server:
        _, rows = server.sql("select embed_gemini('hello')")
        assert server.sql(NEAREST.format("parse a date"))[1][0] == ["Parse a date"]
    assert close(rows[0][0], expected(fake, text, **asked))
    assert all(f"/models/{asked['model']}:" in request.path for request in fake.requests)


ABUSES = {
    "bare": "select embed_gemini('abuse')",
    "a column": "select embed_gemini(text) from big",
    "order by": "select id from big order by embed_gemini(text) limit 3",
    "where": "select id from big where length(embed_gemini(text)) > 0",
    "group by": "select count(*) from big group by embed_gemini(text)",
    "recursive": (
        "with recursive n(i) as (select 1 union all select i + 1 from n limit 5000)"
        " select embed_gemini('r' || i) from n"
    ),
    "cross join": "select embed_gemini(a.text || b.text) from big a cross join big b",
    "coalesce": "select coalesce(embed_gemini(text), 0) from big",
    "random": "select embed_gemini(hex(randomblob(9))) from big",
    "the view": "select * from seen",
    "semantic_search": "select semantic_search('docs', 'abuse ' || text) from big",
}


def stranger_requests(sql: str) -> list[tuple[str, dict[str, object]]]:
    """Every way in which a visitor's request runs this SQL."""
    path = sql_page()
    return [
        (path, {"sql": sql}),
        (f"{path}.json", {"sql": sql}),
        (f"{path}.csv", {"sql": sql}),
        (f"{path}.csv", {"sql": sql, "_stream": "on"}),
        (path, {"sql": sql, "_nocache": "1"}),
    ]


def test_strangers_cause_no_paid_call_by_any_way(fake, data, monkeypatch):
    file = index(data, fake, monkeypatch)
    config = {
        "databases": {
            "data": {
                "queries": {
                    "canned": {"sql": "select embed_gemini(:q)"},
                    "listed": {"sql": "select embed_gemini(text) from big"},
                }
            }
        }
    }
    with served(file, fake=fake, config=config) as server:
        assert server.sql("select length(embed_gemini('paid by the owner'))") == (200, [[3072]])
        assert len(fake.requests) == 1
        server.get("/", headers=STRANGER)  # the latch
        started = time.perf_counter()
        for sql in ABUSES.values():
            for path, parameters in stranger_requests(sql):
                for headers in (STRANGER, LOCAL):
                    server.get(path, parameters, headers=headers)
        for path, parameters in [
            ("/data/canned", {"q": "abuse"}),
            ("/data/canned.json", {"q": "abuse"}),
            ("/data/listed", {}),
            ("/data/listed.csv", {"_stream": "on"}),
            ("/data/seen", {}),
            ("/data/seen.json", {}),
            ("/data/seen", {"_facet": "vector"}),
            ("/data/seen.csv", {"_stream": "on"}),
            ("/data/seen", {"_sort": "vector"}),
            ("/data/seen", {"_where": "embed_gemini(id) is not null"}),
            ("/data/big", {"_where": "embed_gemini(text) is not null"}),
            ("/data/big", {"_facet": "text", "_where": "embed_gemini(text) is not null"}),
            ("/data/big/1", {}),
            ("/data/-/vec/docs", {"q": "abuse by the page"}),
            ("/data/-/vec/docs.json", {"q": "abuse by the page", "mode": "semantic"}),
        ]:
            server.get(path, parameters, headers=STRANGER)
        seconds = time.perf_counter() - started
        # What the owner paid for is known to everybody.
        assert server.sql("select length(embed_gemini('paid by the owner'))", headers=STRANGER) == (200, [[3072]])
    assert len(fake.requests) == 1
    sys.stdout.write(f"{len(ABUSES) * 10 + 15} requests of strangers: {seconds:.1f} s\n")


def test_at_home_a_column_costs_ten_calls_a_minute_and_fails_quickly(fake, data):
    fake.latency_seconds = 0.05
    with served(data, fake=fake) as server:
        for _ in range(3):
            started = time.perf_counter()
            assert server.sql("select embed_gemini(text) from big")[0] == 400
            # A second for the SDK; half a second each while the statement's own lock keeps the ledger waiting.
            assert time.perf_counter() - started < 9
    assert len(fake.requests) == 10


def p95(server: Server, sql: str) -> float:
    """Seconds that other pages take meanwhile 20 requests with this SQL arrive at once; the slowest 20th."""
    times = []
    with ThreadPoolExecutor(24) as pool:
        abuse = [pool.submit(server.sql, sql.replace("NUMBER", str(number))) for number in range(20)]
        while not all(request.done() for request in abuse) or len(times) < 40:
            started = time.perf_counter()
            status, _ = server.get("/data/big?_size=10")
            assert status == 200
            times.append(time.perf_counter() - started)
        assert {request.result()[0] for request in abuse} <= {200, 400, 503}
    return statistics.quantiles(times, n=20)[-1]


@pytest.mark.slow
@pytest.mark.parametrize("fault", [None, "hang", "503"])
@pytest.mark.parametrize(
    "sql",
    [
        "select embed_gemini(text || 'NUMBER') from big",
        "select embed_gemini(text) from big",
        "select embed_gemini('the same') from big",
        "select semantic_search('docs', text) from big",
    ],
)
def test_twenty_abusive_requests_at_once_leave_other_pages_quick(fake, data, monkeypatch, fault, sql):
    file = index(data, fake, monkeypatch)
    with served(file, fake=fake) as server:
        server.sql("select embed_gemini('warm')")
        fake.latency_seconds, fake.always = 0.3, fault
        found = p95(server, sql)
    sys.stdout.write(f"p95 of other pages, fault {fault}, {sql}: {found:.3f} s, {len(fake.requests)} calls\n")
    assert found <= 1.0
    assert len(fake.requests) <= 14
