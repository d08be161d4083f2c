"""Whether this machine can do what the library needs, and how to mend it if not."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from . import embedders, state
from .access import Access
from .budget import SEARCH_DAILY_USD
from .connection import connect
from .driver import sqlite3
from .embedders.remote import RemoteEmbedder
from .errors import InvalidSetting, VecError

SHOWN = 5
"""Of the errors that SQL could not show."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing that was looked at; `remedy` is empty where nothing is wrong."""

    what: str
    found: str
    remedy: str = ""


def examine() -> Iterator[Finding]:
    """Try Python, SQLite, sqlite-vec, FTS5, the local model and Gemini: changes and costs nothing.

    The last errors that SQL functions and pages of this user's sites and programs had are told too.
    """
    yield Finding(what="Python", found=f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    for package in ("datasette", "sqlite-utils", "sqlite-vec", "google-genai"):
        yield Finding(what=package, found=_version(package))
    yield Finding(
        what="SQLite", found=f"{sqlite3.sqlite_version} from {sqlite3.__name__}; Datasette uses the same library"
    )
    yield _examine_fts5()
    yield _examine_vec()
    yield _examine_local()
    yield from _examine_gemini()
    for at, message in state.shared().errors()[:SHOWN]:
        yield Finding(what="not embedded", found=f"{at}: {message}")


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
        return _problem("vectors", error)
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
        return _problem("local model", error)
    took = time.perf_counter() - started
    return Finding(what="local model", found=f"{len(vector)} dimensions, loaded and used in {took:.2f} s")


def _examine_gemini() -> Iterator[Finding]:
    """Whether key, address and model are good, and what may be asked and spent; nothing is wrong without a key."""
    try:
        access = Access.from_settings({})
        if not access.api_key and not access.project:
            yield Finding(what="Gemini", found="no key: the local model is used")
            return
        model = embedders.load("gemini", access)
        if isinstance(model, RemoteEmbedder):
            model.check()
    except VecError as error:
        yield _problem("Gemini", error)
        return
    by = f"key from {access.key_source}" if access.api_key else f"project {access.project} on Vertex AI"
    at = f" at {access.base_url}" if access.base_url else ""
    yield Finding(what="Gemini", found=f"{by} is good{at} for {model.name}, {model.dimensions} dimensions")
    capped = f"${access.daily_usd or 0:,.2f} a day"
    if access.daily_usd is None:
        capped = f"${SEARCH_DAILY_USD:.2f} a day for searches, as agreed to for indexing"
    rate = f"{access.texts_per_minute:,} texts and {access.tokens_per_minute:,} tokens a minute"
    yield Finding(what="Gemini limits", found=f"{rate}; {capped} (DATASETTE_VEC_DAILY_USD)")


def _problem(what: str, error: VecError) -> Finding:
    found, _, remedy = str(error).partition(": ")
    if isinstance(error, InvalidSetting) or not remedy:
        return Finding(what=what, found=str(error), remedy="correct that")
    return Finding(what=what, found=found, remedy=remedy)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
