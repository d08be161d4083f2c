"""Semantic search for any SQLite file: in Datasette, in SQL, in Python and on the command line.

::

    from datasette_vec_gemini import Query, connect, create_index, search, sync

    conn = connect("mydb.db")
    index = create_index(conn, "docs", table="docs", columns=["title", "body"])
    sync(conn, index)
    hits = search(conn, index, Query("how do I parse a date"))

Names are imported when they are first used, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .access import Access
    from .checking import Problem, Status, status, verify
    from .connection import connect, prepare
    from .domain import Chunk, Embedder, Estimate, Hit, Index, Progress, Query, SyncReport, Why
    from .driver import sqlite3
    from .embedders import load as load_embedder
    from .errors import VecError
    from .estimating import estimate
    from .hookspecs import hookimpl
    from .indexing import create_index, drop, rebuild
    from .paid import PaidEmbedder
    from .searching import embed, search, similar
    from .store.registry import find as find_index
    from .store.registry import indexes
    from .syncing import sync

_HOMES = {
    "access": ("Access",),
    "checking": ("Problem", "Status", "status", "verify"),
    "connection": ("connect", "prepare"),
    "domain": ("Chunk", "Embedder", "Estimate", "Hit", "Index", "Progress", "Query", "SyncReport", "Why"),
    "driver": ("sqlite3",),
    "embedders": ("load_embedder",),
    "errors": ("VecError",),
    "estimating": ("estimate",),
    "hookspecs": ("hookimpl",),
    "indexing": ("create_index", "drop", "rebuild"),
    "paid": ("PaidEmbedder",),
    "searching": ("embed", "search", "similar"),
    "store.registry": ("find_index", "indexes"),
    "syncing": ("sync",),
}
_RENAMED = {"load_embedder": "load", "find_index": "find"}

__all__ = [
    "Access",
    "Chunk",
    "Embedder",
    "Estimate",
    "Hit",
    "Index",
    "PaidEmbedder",
    "Problem",
    "Progress",
    "Query",
    "Status",
    "SyncReport",
    "VecError",
    "Why",
    "connect",
    "create_index",
    "drop",
    "embed",
    "estimate",
    "find_index",
    "hookimpl",
    "indexes",
    "load_embedder",
    "prepare",
    "rebuild",
    "search",
    "similar",
    "sqlite3",
    "status",
    "sync",
    "verify",
]


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            value = getattr(import_module(f".{module}", __name__), _RENAMED.get(name, name))
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
