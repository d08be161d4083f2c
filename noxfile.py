"""Checks and tests: `nox` runs them all, `nox -s tests -- -k sync` one session with pytest's own arguments."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

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
    """The newest interpreter that works here, other than the one that runs nox."""
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


def run_tests(session: nox.Session, *requirements: str, without: str | None = None) -> None:
    """Install the package, the tests' needs and these requirements; run pytest with the arguments after `--`."""
    session.install("--editable", ".", "--group", "test", *requirements)
    if without:
        session.run("python", "-m", "pip", "uninstall", "--quiet", "--yes", without)
    session.run("pytest", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Format, lint, types, layers."""
    session.install("--editable", ".", "--group", "lint")
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
    run_tests(session, "datasette>=1.0a41")


@nox.session
def tests_google_generativeai(session: nox.Session) -> None:
    """The adapter of Google's retired SDK, with that SDK."""
    session.install("--editable", ".[google-generativeai]", "--group", "test")
    session.run("pytest", "tests/test_google_generativeai.py", *session.posargs)


# python=False: no environment is made for a session that will only say why it is skipped.
@nox.session(python=False if SYSTEM_FAULT else SYSTEM_PYTHON)
def tests_sqlite340(session: nox.Session) -> None:
    """The suite on the standard library's SQLite: 3.40.1 in Debian 12."""
    if SYSTEM_FAULT:
        session.skip(f"{SYSTEM_PYTHON} {SYSTEM_FAULT}")
    run_tests(session, without="pysqlite3")


@nox.session(python=NEWER_PYTHON or False)
def tests_python313(session: nox.Session) -> None:
    """The suite on the newest other Python."""
    if not NEWER_PYTHON:
        session.skip("no other Python found: neither 3.13 nor 3.12")
    run_tests(session)
