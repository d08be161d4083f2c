"""The pages of a real `datasette` over 10,000 rows with the local model: how quick they are, how large, and under load.

The clients are threads of this process, on the same machine: what they take of its processors is in the figures.
"""

import http.client
import json
import os
import platform
import re
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from itertools import count
from pathlib import Path
from statistics import median, quantiles
from urllib.parse import urlencode

import datasette
import numpy as np
from datasette.app import Datasette

from datasette_vec_gemini import connect, create_index, sqlite3, sync
from datasette_vec_gemini.store import jobs

from .corpus import documentation
from .questions import QUESTIONS
from .targets import finish, report

ROWS, MAP_ROWS = 10_000, 60_000
SEARCHES, ROUNDS, EDITED = 150, 5, 60
EDITED_AT_ONCE = 600  # which takes some seconds to embed
CLIENTS, LOAD_SECONDS = 16, 60.0
ABUSIVE, OTHER_PAGES = 20, 40
OTHERS = ("/", "/docs/docs?_size=10", "/docs/docs/17")
"""Pages of Datasette itself."""
SEARCH = "/docs/-/vec/docs"


@dataclass(frozen=True)
class Reply:
    status: int
    seconds: float
    size: int
    error: str = ""


class Site:
    """A server at a port of this machine."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.is_one = hasattr(Datasette, "allowed")

    def get(self, path: str, **parameters: object) -> Reply:
        if parameters:
            path = f"{path}{'&' if '?' in path else '?'}{urlencode(parameters, doseq=True)}"
        began = time.perf_counter()
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)) as connection:
            connection.request("GET", path)
            response = connection.getresponse()
            body = response.read()
        seconds = time.perf_counter() - began
        text = body.decode() if response.status >= 400 else ""
        told = re.search(r'role="alert">(.*?)</|class="message-error">(.*?)</|"error": "(.*?)"', text, re.DOTALL)
        return Reply(response.status, seconds, len(body), next(filter(None, told.groups()), "") if told else text[:200])

    def sql(self, sql: str) -> Reply:
        return self.get("/docs/-/query" if self.is_one else "/docs", sql=sql)


@contextmanager
def served(*files: Path) -> Iterator[Site]:
    """`datasette FILES…`, which looks for changed rows every second."""
    settings = files[0].with_name("settings.json")
    settings.write_text(json.dumps({"plugins": {"datasette-vec-gemini": {"sync_interval_seconds": 1}}}))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = ["-m", "datasette", *map(str, files), "-m", str(settings), "-p", str(port)]
    with subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        for line in process.stdout:
            if "running on" in line:
                break
        # Read on, or the server would wait for its pipe.
        threading.Thread(target=process.stdout.read, daemon=True).start()
        try:
            yield Site(port)
        finally:
            process.terminate()


def build(directory: Path) -> tuple[Path, Path]:
    """`docs.db`, 10,000 rows for the local model, and `big.db` for a map of 60,000."""
    docs, big = directory / "docs.db", directory / "big.db"
    rows = documentation(ROWS)
    with closing(connect(docs, create=True)) as conn:
        conn.execute("create table docs (id integer primary key, name text, module text, kind text, doc text)")
        conn.executemany("insert into docs (name, module, kind, doc) values (?, ?, ?, ?)", rows)
        conn.commit()
        columns = ["name", "doc"]
        sync(conn, create_index(conn, "docs", table="docs", columns=columns, filter_columns=["kind", "module"]))
    words = np.array([f"word{number}" for number in range(3_000)])
    drawn = words[np.random.default_rng(0).zipf(1.3, (MAP_ROWS, 30)) % 3_000]
    with closing(connect(big, create=True)) as conn:
        conn.execute("create table docs (id integer primary key, title text, body text, kind text)")
        conn.executemany(
            "insert into docs (title, body, kind) values (?, ?, ?)",
            [(f"The document of number {n}", " ".join(row), f"kind {n % 7}") for n, row in enumerate(drawn)],
        )
        conn.commit()
        index = create_index(
            conn, "docs", table="docs", columns=["title", "body"], embedder="hashing@256", filter_columns=["kind"]
        )
        sync(conn, index)
    return docs, big


_numbers = count()


def question() -> str:
    """One that nobody has asked yet."""
    number = next(_numbers)
    return f"{QUESTIONS[number % 100]} in step {number}"


def searched(site: Site) -> Reply:
    return site.get(SEARCH, q=question(), _facet="kind")


def p95_ms(replies: list[Reply]) -> float:
    return 1000 * quantiles([reply.seconds for reply in replies], n=20)[-1]


def told(replies: list[Reply]) -> str:
    statuses = ", ".join(f"{n} × {status}" for status, n in sorted(Counter(r.status for r in replies).items()))
    errors = "".join(f"\n    {n} × {error}" for error, n in Counter(r.error for r in replies if r.error).items())
    return (
        f"{statuses}; median {1000 * median(r.seconds for r in replies):.0f} ms, p95 {p95_ms(replies):.0f} ms{errors}"
    )


class Writer:
    """Edits rows of `docs.db`, as another program would; the server's sync takes them up."""

    def __init__(self, file: Path) -> None:
        self.conn = connect(file)
        self.edits = 0

    def edit(self, rows: int) -> None:
        self.edits += 1
        first = self.edits * rows % (ROWS - rows)
        with self.conn:
            self.conn.execute(
                "update docs set doc = doc || ? where id > ? and id <= ?", (f" {self.edits}", first, first + rows)
            )

    def is_synced(self) -> bool:
        """Whether the index is as its table is, and nothing is done for it any more."""
        (queued,) = self.conn.execute("select exists (select 1 from _vec_docs_1_queue)").fetchone()
        return not queued and not any(job.state in jobs.UNDER_WAY for job in jobs.of_index(self.conn, "docs"))

    def wait(self, *, synced: bool) -> None:
        while self.is_synced() != synced:
            time.sleep(0.05)


def alone(site: Site) -> None:
    """One client, who asks one question after another."""
    replies = [searched(site) for _ in range(SEARCHES)]
    print(f"search page, 1 client: {told(replies)}")
    report("search page, 1 client: p95", p95_ms(replies), "ms", at_most=150)
    report("search page: HTML", max(reply.size for reply in replies) / 1000, "KB", at_most=60)
    report("search page: errors", sum(reply.status != 200 for reply in replies), at_most=0)


def beside_a_sync(site: Site, writer: Writer) -> None:
    """One client while rows are embedded, and while nothing is done: in turn, since a shared machine is noisy."""
    idle, busy = list[Reply](), list[Reply]()
    for _ in range(ROUNDS):
        writer.wait(synced=True)
        idle += [searched(site) for _ in range(SEARCHES // ROUNDS)]
        writer.edit(EDITED_AT_ONCE)
        time.sleep(1.2)
        while not writer.is_synced():
            busy.append(searched(site))
    print(f"idle: {told(idle)}\nbeside a sync: {told(busy)}")
    report("search page beside a sync over idle: p95", p95_ms(busy) / p95_ms(idle), "times", at_most=2)
    report("search page beside a sync: errors", sum(reply.status != 200 for reply in busy), at_most=0)


def crowd(site: Site, writer: Writer) -> None:
    """Sixteen clients for a minute, with a sync at work all the while."""
    until = time.monotonic() + LOAD_SECONDS

    def ask() -> list[Reply]:
        replies = []
        while time.monotonic() < until:
            replies.append(searched(site))
        return replies

    with ThreadPoolExecutor(CLIENTS) as pool:
        asked = [pool.submit(ask) for _ in range(CLIENTS)]
        looks = list[bool]()
        while time.monotonic() < until:
            looks.append(not writer.is_synced())
            if not looks[-1]:
                writer.edit(EDITED)
            time.sleep(0.2)
        replies = [reply for client in asked for reply in client.result()]
    print(f"{CLIENTS} clients, a sync under way {100 * sum(looks) / len(looks):.0f} % of the time: {told(replies)}")
    report(f"search pages a second, {CLIENTS} clients and a sync", len(replies) / LOAD_SECONDS, "/s")
    report(f"{CLIENTS} clients and a sync: errors", sum(reply.status != 200 for reply in replies), at_most=0)
    writer.wait(synced=True)


def map_page(site: Site) -> None:
    """The map of 60,000 documents: the page, and all of its points."""
    for path, bound in (("/big/-/vec/docs/map", 200), ("/big/-/vec/docs/map.json", None)):
        replies = [site.get(path, _color="kind") for _ in range(5)]
        report(
            f"{path.rpartition('/')[2]} of {MAP_ROWS:,} rows: median", 1000 * median(r.seconds for r in replies), "ms"
        )
        report(f"{path.rpartition('/')[2]} of {MAP_ROWS:,} rows: size", replies[0].size / 1000, "KB", at_most=bound)


ABUSES: dict[str, Callable[[Site], Reply]] = {
    "searches with facets": lambda s: s.get(SEARCH, q=question(), _size=100, _facet=["kind", "module", "name", "doc"]),
    "near-duplicates": lambda s: s.get(SEARCH, q=question(), _size=1_000),
    "maps of 50,000 points": lambda s: s.get("/big/-/vec/docs/map.json", q=question(), _color="kind"),
    "map pages": lambda s: s.get("/big/-/vec/docs/map", _color="kind", _size=1_000, _next=next(_numbers)),
    "status": lambda s: s.get("/big/-/vec/docs/status"),
    "status of all": lambda s: s.get("/-/vec/status"),
    "similar rows": lambda s: s.get(
        "/big/-/vec/docs/similar", key=next(_numbers), _size=1_000, _facet=["kind", "body"]
    ),
    "searches everywhere": lambda s: s.get("/-/vec", q=question(), _size=1_000),
    "semantic_search in SQL": lambda s: s.sql(f"select semantic_search('docs', name || '{question()}') from docs"),
}


def beside_abuse(site: Site, abuses: list[Callable[[Site], Reply]]) -> tuple[list[Reply], list[Reply]]:
    """Other pages while these requests arrive at once and until all are answered; both kinds of replies.

    Four other pages a second are asked for, whether those before have come or not, and what comes late counts whole.
    """
    asked, answers = list[Future[Reply]](), list[Reply]()
    with ThreadPoolExecutor(len(abuses)) as pool, ThreadPoolExecutor(200) as visitors:
        while len(asked) < OTHER_PAGES:
            arrived = [pool.submit(abuse, site) for abuse in abuses]
            while not all(request.done() for request in arrived):
                asked.append(visitors.submit(site.get, OTHERS[len(asked) % len(OTHERS)]))
                time.sleep(0.25)
            answers += [request.result() for request in arrived]
        return [request.result() for request in asked], answers


def abused(site: Site) -> None:
    """Twenty costly requests at once, of one kind and of all kinds."""
    idle = [site.get(OTHERS[number % len(OTHERS)]) for number in range(OTHER_PAGES)]
    print(f"other pages alone: {told(idle)}; load average {os.getloadavg()[0]:.1f}")
    mixed = [list(ABUSES.values())[number % len(ABUSES)] for number in range(ABUSIVE)]
    for name, abuses in [*((name, [abuse] * ABUSIVE) for name, abuse in ABUSES.items()), ("all of these", mixed)]:
        others, answers = beside_abuse(site, abuses)
        print(f"  {name}: {told(answers)}; others: {told(others)}")
        report(f"p95 of other pages beside {ABUSIVE} × {name}", p95_ms(others), "ms", at_most=1_000)
        wrong = sum(reply.status != 200 for reply in others) + sum(r.status not in {200, 400, 503} for r in answers)
        report(f"errors beside {ABUSIVE} × {name}", wrong, at_most=0)


def main() -> None:
    print(
        f"python -m benchmarks pages: datasette-vec-gemini {version('datasette-vec-gemini')}, "
        f"datasette {datasette.__version__}, SQLite {sqlite3.sqlite_version}, Python {platform.python_version()}"
    )
    files = build(Path(sys.argv[1]))
    writer = Writer(files[0])
    with served(*files) as site:
        began = time.perf_counter()
        site.get("/")
        first = searched(site)
        report("the first search page of a server", 1000 * (time.perf_counter() - began), "ms")
        print(f"of that the search page: {1000 * first.seconds:.0f} ms, status {first.status}")
        writer.wait(synced=True)
        for _ in range(20):
            searched(site)
        alone(site)
        map_page(site)
        abused(site)
        beside_a_sync(site, writer)
        crowd(site, writer)
    writer.conn.close()
    finish()


if __name__ == "__main__":
    main()
