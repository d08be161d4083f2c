"""A Datasette process for the browser, and the database that it serves."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from itsdangerous import URLSafeSerializer

from datasette_vec_gemini import connect, create_index, sync
from datasette_vec_gemini.demo.rows import standard_library

SECRET = "s"  # of this test's server
MODULES = {
    "array",
    "base64",
    "calendar",
    "csv",
    "datetime",
    "difflib",
    "json",
    "random",
    "statistics",
    "threading",
    "zipfile",
}


def build(file: Path) -> Path:
    """Table `stdlib` of some 300 documented objects with an index of the local model; `notes` and `letters` without."""
    rows = [row for row in standard_library() if row["module"] in MODULES]
    with contextlib.closing(connect(file, create=True)) as conn:
        conn.execute("create table stdlib (name text primary key, module text, kind text, signature text, doc text)")
        conn.executemany("insert into stdlib values (:name, :module, :kind, :signature, :doc)", rows)
        conn.execute("create table notes (id integer primary key, title text, body text)")
        conn.executemany("insert into notes (title, body) values (:name, :doc)", rows[:60])
        conn.execute("create table letters (id integer primary key, body text)")
        conn.executemany(
            "insert into letters (body) values (?)",
            [[f"{row['name']}, letter {copy}"] for copy in range(12) for row in rows],
        )
        conn.commit()
        index = create_index(
            conn, "stdlib", table="stdlib", columns=["name", "doc"], filter_columns=["module", "kind"], embedder="local"
        )
        sync(conn, index)
    return file


@contextlib.contextmanager
def served(file: Path, state: Path, *, options: Sequence[str] = ()) -> Iterator[str]:
    """The address of `datasette FILE`, which is ended at the end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    variables = {
        name: value for name, value in os.environ.items() if name not in ("GEMINI_API_KEY", "GOOGLE_API_KEY")
    } | {"DATASETTE_SECRET": SECRET, "DATASETTE_VEC_STATE_DIR": str(state), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "datasette", str(file), "-p", str(port), "--root", *options]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=variables
    ) as process:
        printed: list[str] = []
        reader = threading.Thread(target=lambda: printed.extend(process.stdout), daemon=True)
        reader.start()
        try:
            end = time.monotonic() + 60
            while not any("Uvicorn running on" in line for line in printed):
                assert process.poll() is None, "".join(printed)
                assert time.monotonic() < end, "".join(printed)
                time.sleep(0.05)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            reader.join(10)
            process.kill()


def signed_in(address: str, actor: str = "root") -> dict[str, str]:
    """The cookie of an actor, as Playwright takes it."""
    value = URLSafeSerializer(SECRET, "actor").dumps({"a": {"id": actor}})
    return {"name": "ds_actor", "value": value, "url": address}
