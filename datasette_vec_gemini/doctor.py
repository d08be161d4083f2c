"""Whether this machine can do what the library needs, and how to mend it if not."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from . import embedders
from .connection import connect
from .driver import sqlite3
from .errors import VecError


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing that was looked at; `remedy` is empty where nothing is wrong."""

    what: str
    found: str
    remedy: str = ""


def examine() -> Iterator[Finding]:
    """Look at Python, SQLite, sqlite-vec, FTS5 and the local model, each by using it. Changes nothing."""
    yield Finding(what="Python", found=f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    for package in ("datasette", "sqlite-utils", "sqlite-vec"):
        yield Finding(what=package, found=_version(package))
    yield Finding(
        what="SQLite", found=f"{sqlite3.sqlite_version} from {sqlite3.__name__}; Datasette uses the same library"
    )
    yield _examine_fts5()
    yield _examine_vec()
    yield _examine_local()


def _examine_fts5() -> Finding:
    with_fts5 = sqlite3.connect(":memory:")
    try:
        with_fts5.execute("create virtual table t using fts5 (text)")
    except sqlite3.OperationalError as error:
        return Finding(what="FTS5", found=str(error), remedy="pip install pysqlite3: its SQLite has FTS5")
    finally:
        with_fts5.close()
    return Finding(what="FTS5", found="works")


def _examine_vec() -> Finding:
    try:
        conn = connect(":memory:")
    except VecError as error:
        found, _, remedy = str(error).partition(": ")
        return Finding(what="vectors", found=found, remedy=remedy)
    try:
        found = conn.execute("select vec_version()").fetchone()[0]
    finally:
        conn.close()
    return Finding(what="vectors", found=f"sqlite-vec {found} is loaded")


def _examine_local() -> Finding:
    started = time.perf_counter()
    try:
        model = embedders.load("local")
        vector = model.embed_query("a short text")
    except VecError as error:
        found, _, remedy = str(error).partition(": ")
        return Finding(what="local model", found=found, remedy=remedy)
    took = time.perf_counter() - started
    return Finding(what="local model", found=f"{len(vector)} dimensions, loaded and used in {took:.2f} s")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
