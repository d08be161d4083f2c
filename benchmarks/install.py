"""From an empty environment to the first hybrid answer over 50 rows, as a new user would go; needs a package index."""

import json
import os
import subprocess
import sys
import time
import venv
from pathlib import Path

from .targets import finish, report

PROJECT = Path(__file__).parent.parent
ROWS = """
import sqlite_utils
rows = ({"id": n, "body": f"A short note about subject number {n}"} for n in range(50))
sqlite_utils.Database("notes.db")["notes"].insert_all(rows, pk="id")
"""


def main() -> None:
    directory = Path(sys.argv[1])
    binaries = directory / "venv" / ("Scripts" if os.name == "nt" else "bin")

    def run(program: str, *arguments: str) -> str:
        command = [str(binaries / program), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, cwd=directory).stdout

    started = time.perf_counter()
    venv.create(directory / "venv", with_pip=True)
    run("python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", str(PROJECT))
    installed = time.perf_counter()
    run("python", "-c", ROWS)
    run("datasette", "vec", "index", "notes.db", "notes", "-c", "body")
    answer = json.loads(run("datasette", "vec", "search", "notes.db", "subject seven", "--json"))
    answered = time.perf_counter()
    print(f"installed in {installed - started:.1f} s; {len(answer['hits'])} hits, mode {answer['mode']}")
    report("from pip to the first hybrid answer", answered - started, "s", at_most=60)
    packages = directory / "venv" / "lib"
    size = sum(path.stat().st_size for path in packages.rglob("*") if path.is_file() and not path.is_symlink())
    report("installed, pip included", size / 1e6, "MB", at_most=400)
    finish()


if __name__ == "__main__":
    main()
