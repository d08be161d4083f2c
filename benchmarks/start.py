"""What a user waits for before anything happens: the import, and a cold search from the command line."""

import statistics
import subprocess
import sys
import time
from pathlib import Path

from datasette_vec_gemini import connect, create_index, sync

from .targets import finish, report

ROUNDS = 7


def seconds(*command: str) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started


def main() -> None:
    path = Path(sys.argv[1], "small.db")
    conn = connect(path, create=True)
    conn.execute("create table docs (id integer primary key, body text)")
    conn.executemany(
        "insert into docs (body) values (?)", [(f"A short note about subject number {n}",) for n in range(50)]
    )
    conn.commit()
    index = create_index(conn, "docs", table="docs", columns=["body"])
    sync(conn, index)
    conn.close()
    bare, imported, searched = [], [], []
    for _ in range(ROUNDS):
        bare.append(seconds(sys.executable, "-c", "pass"))
        imported.append(seconds(sys.executable, "-c", "import datasette_vec_gemini"))
        searched.append(seconds(sys.executable, "-m", "datasette", "vec", "search", str(path), "subject seven"))
    added = 1000 * (statistics.median(imported) - statistics.median(bare))
    report("import datasette_vec_gemini over bare Python", added, "ms", at_most=100)
    report("datasette vec search, cold, 50 rows", statistics.median(searched), "s", at_most=2)
    finish()


if __name__ == "__main__":
    main()
