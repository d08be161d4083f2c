"""100,000 rows with the hashing embedder: memory, steadiness, and what a sync with nothing to do costs."""

import resource
import sys
import time
from pathlib import Path

import numpy as np

from datasette_vec_gemini import connect, create_index, sync, verify

from .targets import finish, report

ROWS = 100_000


def main() -> None:
    rng = np.random.default_rng(1)
    words = np.array([f"word{n}" for n in range(20_000)])
    conn = connect(Path(sys.argv[1], "scale.db"), create=True)
    conn.execute("create table docs (id integer primary key, body text)")
    for _ in range(ROWS // 1_000):
        conn.executemany(
            "insert into docs (body) values (?)",
            [(" ".join(row),) for row in words[rng.zipf(1.3, (1_000, 40)) % 20_000]],
        )
    conn.commit()
    index = create_index(conn, "docs", table="docs", columns=["body"], embedder="hashing")
    marks: dict[tuple[str, int], float] = {}
    started = time.perf_counter()

    def mark(progress) -> None:
        half = 1 if progress.done <= progress.total / 2 else 2
        marks[progress.stage, half] = time.perf_counter()

    done = sync(conn, index, on_progress=mark)
    first = marks["text", 1] - started + marks["vectors", 1] - marks["text", 2]
    second = marks["text", 2] - marks["text", 1] + marks["vectors", 2] - marks["vectors", 1]
    print(f"{done.documents:,} rows, {done.embedded:,} vectors in {done.seconds:.1f} s")
    report("microseconds a row", done.seconds / ROWS * 1e6, "us")
    report("second half over the first", second / first, "times", at_most=1.3)
    unit = 1 if sys.platform == "darwin" else 1024
    report("peak memory", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6, "MB", at_most=300)
    size = sum(path.stat().st_size for path in Path(sys.argv[1]).iterdir())
    report("bytes a row on disk", size / ROWS, "bytes")
    again = sync(conn, index)
    report("a second sync embeds", again.embedded + again.documents, "rows", at_most=0)
    report("a second sync takes", again.seconds, "s", at_most=1)
    report("a full comparison takes", sync(conn, index, full=True).seconds, "s")
    started = time.perf_counter()
    problems = verify(conn, index)
    report("verify takes", time.perf_counter() - started, "s")
    report("verify finds", len(problems), "problems", at_most=0)
    conn.close()
    finish()


if __name__ == "__main__":
    main()
