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
    from .budget import ledger_of
    from .checking import Problem, Status, status, verify
    from .connection import connect, prepare
    from .documents import (
        Description,
        Written,
        add_documents,
        create_memory,
        delete_documents,
        describe_index,
    )
    from .domain import Chunk, Embedder, Estimate, Hit, Index, Progress, Query, SyncReport, Why
    from .driver import sqlite3
    from .embedders import load as load_embedder
    from .errors import VecError
    from .estimating import estimate
    from .hookspecs import hookimpl
    from .indexing import create_index, drop, rebuild
    from .keys import key_from_path, key_to_path
    from .lookup import Document, find_key, get_document
    from .paid import PaidEmbedder
    from .placing import NewDocument
    from .searching import by_words, embed, embed_or_words, search, similar
    from .store.counting import count_pending
    from .store.registry import find as find_index
    from .store.registry import indexes
    from .syncing import Stop, sync

_HOMES = {
    "access": ("Access",),
    "budget": ("ledger_of",),
    "checking": ("Problem", "Status", "status", "verify"),
    "connection": ("connect", "prepare"),
    "documents": (
        "Description",
        "Written",
        "add_documents",
        "create_memory",
        "delete_documents",
        "describe_index",
    ),
    "domain": ("Chunk", "Embedder", "Estimate", "Hit", "Index", "Progress", "Query", "SyncReport", "Why"),
    "driver": ("sqlite3",),
    "embedders": ("load_embedder",),
    "errors": ("VecError",),
    "estimating": ("estimate",),
    "hookspecs": ("hookimpl",),
    "indexing": ("create_index", "drop", "rebuild"),
    "keys": ("key_from_path", "key_to_path"),
    "lookup": ("Document", "find_key", "get_document"),
    "paid": ("PaidEmbedder",),
    "placing": ("NewDocument",),
    "searching": ("by_words", "embed", "embed_or_words", "search", "similar"),
    "store.counting": ("count_pending",),
    "store.registry": ("find_index", "indexes"),
    "syncing": ("Stop", "sync"),
}
_RENAMED = {"load_embedder": "load", "find_index": "find"}

__all__ = [
    "Access",
    "Chunk",
    "Description",
    "Document",
    "Embedder",
    "Estimate",
    "Hit",
    "Index",
    "NewDocument",
    "PaidEmbedder",
    "Problem",
    "Progress",
    "Query",
    "Status",
    "Stop",
    "SyncReport",
    "VecError",
    "Why",
    "Written",
    "add_documents",
    "by_words",
    "connect",
    "count_pending",
    "create_index",
    "create_memory",
    "delete_documents",
    "describe_index",
    "drop",
    "embed",
    "embed_or_words",
    "estimate",
    "find_index",
    "find_key",
    "get_document",
    "hookimpl",
    "indexes",
    "key_from_path",
    "key_to_path",
    "ledger_of",
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
