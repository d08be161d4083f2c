"""Milliseconds of a search by the planner's ways, and how many of the true ten nearest the bit codes find."""

import statistics
import sys
import time
from pathlib import Path

import numpy as np

from datasette_vec_gemini import Query, connect, create_index, search, sync
from datasette_vec_gemini.vectors import normalise, pack

from .targets import finish, report

ROWS, DIMENSIONS, QUERIES = 50_000, 768, 40


class Clustered:
    """Vectors around 200 centres, as texts on 200 subjects would have: a stand-in for a model."""

    name, fingerprint, dimensions, batch_size = "clustered", "clustered", DIMENSIONS, 1_000
    chunk_capacity, tokenizer, paid = 10_000, None, False

    def __init__(self) -> None:
        self.centres = np.random.default_rng(0).normal(size=(200, DIMENSIONS))

    def embed_documents(self, texts):
        vectors = [self.centres[int(t) % 200] + np.random.default_rng(int(t)).normal(size=DIMENSIONS) for t in texts]
        return normalise(np.array(vectors), dimensions=DIMENSIONS)

    def embed_query(self, text):
        return self.embed_documents([text])[0]

    def speaks(self, _text):
        return True


def main() -> None:
    model = Clustered()
    conn = connect(Path(sys.argv[1], "latency.db"), create=True)
    conn.execute("create table docs (id integer primary key, body text, part integer)")
    conn.executemany("insert into docs values (?, ?, ?)", [(n, str(n), n % 100) for n in range(ROWS)])
    conn.commit()
    index = create_index(conn, "docs", table="docs", columns=["body"], embedder=model)
    sync(conn, index, embedder=model)
    truth = np.frombuffer(b"".join(e for (e,) in conn.execute("select embedding from _vec_docs")), "<f4").reshape(
        ROWS, -1
    )
    times: dict[str, list[float]] = {
        "two-pass": [],
        "1 % filter": [],
        "50 % filter": [],
        "exact in SQL": [],
        "numpy": [],
    }
    found = 0
    for number in range(QUERIES):
        vector = model.embed_query(str(ROWS + number * 7))
        query = Query("unused", mode="semantic", vector=vector)

        def timed(way, action):
            started = time.perf_counter()
            answer = action()
            times[way].append(1000 * (time.perf_counter() - started))
            return answer

        hits = timed("two-pass", lambda q=query: search(conn, index, q))
        nearest = timed("numpy", lambda v=vector: np.argsort(-(truth @ v))[:10])
        found += len({hit.key[0] for hit in hits} & set(nearest.tolist()))
        timed(
            "1 % filter",
            lambda v=vector: search(conn, index, Query("x", mode="semantic", vector=v, filters={"part": 7})),
        )
        timed(
            "50 % filter",
            lambda v=vector: search(conn, index, Query("x", mode="semantic", vector=v, filters={"part__lt": 50})),
        )
        sql = "select id from _vec_docs_1_chunks order by vec_distance_L2(embedding, ?) limit 10"
        timed("exact in SQL", lambda v=vector, sql=sql: conn.execute(sql, [pack(v)]).fetchall())
    print(f"{ROWS:,} rows, {DIMENSIONS} dimensions, {QUERIES} queries in turn")
    for way, values in times.items():
        report(f"{way}: median", statistics.median(values), "ms")
    report("two-pass: recall@10", found / (10 * QUERIES), at_least=0.95)
    conn.close()
    finish()


if __name__ == "__main__":
    main()
