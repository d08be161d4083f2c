"""What a SQLite file keeps beside its tables: virtual tables, those that they keep their data in, and ours."""

from __future__ import annotations

import re

from sqlalchemy import Connection

from ...vector_index.candidates import REGISTRY

_SHADOWS = {
    "vec0": re.compile(r"_(?:chunks|rowids|info|auxiliary|(?:vector_chunks|metadatachunks|metadatatext)\d\d)$"),
    "fts5": re.compile(r"_(?:data|idx|content|docsize|config)$"),
    "fts4": re.compile(r"_(?:content|docsize|segments|segdir|stat)$"),
}
"""What each module adds to a virtual table's name for those that it keeps its data in."""

_VIRTUAL = re.compile(rf"create\s+virtual\b(?:.*?\busing\W+({'|'.join(_SHADOWS)})\b)?", re.IGNORECASE | re.DOTALL)
_OURS = re.compile(r"_vec_|_sqlite_migrations$|sqlite_")


def kept(connection: Connection) -> set[str]:
    """The tables of a SQLite file that belong to an index or a virtual table, whether or not its module is there."""
    tables = connection.exec_driver_sql("select name, sql from sqlite_master where type = 'table'").all()
    virtual = {name: (match[1] or "").lower() for name, sql in tables if (match := _VIRTUAL.match(sql or ""))}
    shadows = {
        name for name, _ in tables for module, suffix in _SHADOWS.items() if virtual.get(suffix.sub("", name)) == module
    }
    derived = set[str]()
    if any(name == REGISTRY for name, _ in tables):
        derived = {f"{name}_dirty" for (name,) in connection.exec_driver_sql(f"select name from {REGISTRY}")}
    return {*virtual, *shadows, *derived, *(name for name, _ in tables if _OURS.match(name))}
