"""What indexing costs over the model alone, on the same texts: rounds in turn, since a shared machine is noisy."""

import sys
import time
from itertools import islice
from pathlib import Path

from datasette_vec_gemini import connect, create_index, load_embedder, sync
from datasette_vec_gemini.demo.rows import standard_library

from .targets import finish, report

ROUNDS, ROWS = 4, 1_000


def main() -> None:
    model = load_embedder("local")
    model.embed_query("load it")
    rows = list(islice(standard_library(), ROUNDS * ROWS))
    bare = indexed = 0.0
    for number in range(ROUNDS):
        conn = connect(Path(sys.argv[1], f"{number}.db"), create=True)
        conn.execute("create table docs (id text primary key, doc text)")
        conn.executemany("insert into docs values (:name, :doc)", rows[number * ROWS : (number + 1) * ROWS])
        conn.commit()
        started = time.perf_counter()
        index = create_index(conn, "docs", table="docs", columns=["doc"], embedder="local")
        sync(conn, index)
        took = time.perf_counter() - started
        texts = [text for (text,) in conn.execute("select text from _vec_docs")]
        started = time.perf_counter()
        model.embed_documents(texts)
        alone = time.perf_counter() - started
        print(f"round {number + 1}: {len(texts)} chunks, model {alone:.2f} s, index and sync {took:.2f} s")
        bare, indexed = bare + alone, indexed + took
        conn.close()
    report("indexing over the bare model", indexed / bare, "times", at_most=1.1)
    finish()


if __name__ == "__main__":
    main()
