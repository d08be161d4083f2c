"""What the way to a paid model costs: against a fake of Google's API in a process of its own, over the real SDK.

10,000 texts with 50 ms latency and 6,000 texts a minute: the quota lets 6,000 through at once and the others when their
minute is over, so that nobody is done before 60 s. CPU is that of this process, beside the SDK's own for the same texts
in the same requests, in turn.
"""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from statistics import median

from google import genai
from google.genai import types

from datasette_vec_gemini import Access, Query, connect, create_index, load_embedder, status, sync
from datasette_vec_gemini.demo.rows import standard_library
from datasette_vec_gemini.searching import embed_or_words

from .targets import finish, report

FAKE = Path(__file__).parent.parent / "tests" / "fake_gemini.py"
KEY = "AIzaSyCANARY-7f1d0c5b9e"
TEXTS, PER_MINUTE, ROUNDS = 10_000, 6_000, 8


@contextmanager
def fake(*options: str) -> Iterator[str]:
    command = [sys.executable, str(FAKE), "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()


def throughput(directory: Path, texts: list[str]) -> None:
    conn = connect(directory / "quota.db", create=True)
    conn.execute("create table docs (id integer primary key, doc text)")
    conn.executemany("insert into docs (doc) values (?)", [(text,) for text in texts])
    conn.commit()
    with fake("--latency", "0.05", "--texts-per-minute", str(PER_MINUTE)) as url:
        access = Access(api_key=KEY, base_url=url, texts_per_minute=PER_MINUTE, tokens_per_minute=5_000_000)
        model = load_embedder("gemini", access)
        model.prepare()
        index = create_index(conn, "docs", table="docs", columns=["doc"], embedder=model)
        started, cpu = time.perf_counter(), time.process_time()
        done = sync(conn, index, embedder=model)
        took, cpu = time.perf_counter() - started, time.process_time() - cpu
    rows = status(conn, index)
    print(f"{done.embedded:,} texts embedded, {rows.failed} failed, in {took:.1f} s; CPU of sync {cpu:.1f} s")
    full_minutes = -(-TEXTS // PER_MINUTE) - 1
    report("share of what the quota allows", 100 * full_minutes * 60 / took, "%", at_least=90)
    report("texts embedded", done.embedded, at_least=TEXTS)
    conn.close()


def overhead(texts: list[str]) -> None:
    with fake() as url:
        model = load_embedder(
            "gemini", Access(api_key=KEY, base_url=url, texts_per_minute=10**6, tokens_per_minute=10**9)
        )
        model.prepare()
        client = genai.Client(api_key=KEY, http_options=types.HttpOptions(base_url=url, api_version="v1beta"))
        config = types.EmbedContentConfig(output_dimensionality=768)
        ours, theirs = [], []
        size = model.batch_size
        for number in range(ROUNDS):
            part = texts[number * size : (number + 1) * size]
            began = time.process_time()
            model.embed_documents(part)
            ours.append(time.process_time() - began)
            worded = [f"title: none | text: {text}" for text in part] + ["a witness"]
            began = time.process_time()
            contents = [types.Content(role="user", parts=[types.Part(text=text)]) for text in worded]
            client.models.embed_content(model="gemini-embedding-2", contents=contents, config=config)
            theirs.append(time.process_time() - began)
    print(f"CPU a request of {size} texts: ours {1e3 * median(ours):.1f} ms, SDK alone {1e3 * median(theirs):.1f} ms")
    report("CPU beyond the SDK's own", 1e3 * (median(ours) - median(theirs)) / size, "ms a text", at_most=1)


def outage() -> None:
    access = Access(api_key=KEY, base_url="http://127.0.0.1:9", query_seconds=2.5)
    model = load_embedder("gemini", access)
    model.prepare()
    conn = connect(":memory:")
    conn.execute("create table docs (id integer primary key, doc text)")
    index = create_index(conn, "docs", table="docs", columns=["doc"], embedder=model)
    conn.close()
    started = time.perf_counter()
    query, notices = embed_or_words(index, Query("anything"), embedder=model)
    if query.mode != "keyword" or not notices:
        raise SystemExit("the question was answered by a model that is not there")
    report("a question while nobody answers, before keywords", time.perf_counter() - started, "s", at_most=3)


def main() -> None:
    texts = [f"{row['name']} {row['doc']}"[:1_500] for row in islice(standard_library(), 4_000)]
    texts = list(dict.fromkeys(f"{number} {texts[number % len(texts)]}" for number in range(TEXTS)))
    overhead(texts)
    outage()
    throughput(Path(sys.argv[1]), texts)
    finish()


if __name__ == "__main__":
    main()
