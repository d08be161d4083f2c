"""The map of an index as it is stored: its axes, and the place of each document. All SQL over `_map` and `_axes`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .. import schema
from ..domain import Index
from ..driver import sqlite3
from ..keys import Key
from ..schema import in_main, key_names, quote_identifier, source_key
from ..vectors import Vector, pack, unpack
from . import source
from .filters import Condition

ROWS = 256
"""Chunks that are read at once: a document may have any number of them."""
BATCH = 1_000
LABEL_CHARACTERS = 100
"""So much of a text names a document or a category."""
READ_CHARACTERS = 400
"""So much of it is read, white space and all: cells may hold whole books."""

Place = tuple[Key, float, float, float]
"""A document's key, where it stands among the samples (0 to 1), x and y."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Axes:
    """What a map is drawn by: a document's place is (vector - mean) times the two `directions`, shape (2, dimensions).

    `variance` is the share of the documents' differences that each axis shows. `fitted` documents were there when the
    axes were computed, `projected` were placed since. The map holds the `share` (0 to 1) of all `documents` that comes
    first in the order of samples. `version` grows with every write.
    """

    version: int
    documents: int
    share: float
    fitted: int
    projected: int
    variance: tuple[float, float]
    mean: Vector
    directions: Vector


def create(conn: sqlite3.Connection, index: Index) -> None:
    """Create the tables and triggers, all anew if some were lost; nothing where their names are taken."""
    if is_broken(conn, index):
        drop(conn, index)
    if not is_taken(conn, index):
        for statement in schema.picture(index):
            conn.execute(statement)


def begin(conn: sqlite3.Connection, index: Index) -> bool:
    """Create what is missing and note from now on which documents change; False where the names are taken."""
    create(conn, index)
    if not _exists(conn, index):
        return False
    conn.execute(f"insert into {_axes(index)} (id) values (1) on conflict do nothing")
    return True


def drop(conn: sqlite3.Connection, index: Index) -> None:
    """Remove the tables and triggers that are there; what merely has the name of one stays."""
    expected = _expected(index)
    for name in sorted(_found(conn, index), key=lambda name: expected[name] == "table"):
        conn.execute(f"drop {expected[name]} {quote_identifier(name)}")


def is_broken(conn: sqlite3.Connection, index: Index) -> bool:
    """Whether only some of the tables and triggers are there: without its tables a trigger stops every sync."""
    return 0 < len(_found(conn, index)) < len(_expected(index))


def is_taken(conn: sqlite3.Connection, index: Index) -> bool:
    """Whether something else has a name that the map needs, as the view of an index `docs_1_map` beside `docs`."""
    expected = _expected(index)
    return any(expected[name] != type_ for name, type_ in _objects(conn, index) if type_ != "trigger")


def has_begun(conn: sqlite3.Connection, index: Index) -> bool:
    """Whether changes are noted already."""
    return not is_broken(conn, index) and _exists(conn, index) and bool(_rows_of_axes(conn, index))


def _exists(conn: sqlite3.Connection, index: Index) -> bool:
    return {index.object("map"), index.object("axes")} <= _found(conn, index)


def _rows_of_axes(conn: sqlite3.Connection, index: Index) -> list[tuple[int]]:
    return conn.execute(f"select version from {_axes(index)}").fetchall()


def _expected(index: Index) -> dict[str, str]:
    """Name -> type of what a map is made of, in SQLite's words."""
    points = index.object("map")
    return {
        points: "table",
        index.object("axes"): "table",
        f"{points}_waiting": "index",
        **dict.fromkeys(schema.picture_triggers(index), "trigger"),
    }


def _objects(conn: sqlite3.Connection, index: Index) -> list[tuple[str, str]]:
    """Name and type of everything in the file that has one of these names, spelled as ours."""
    names = {name.casefold(): name for name in _expected(index)}
    sql = f"select lower(name), type from sqlite_master where lower(name) in ({', '.join('?' * len(names))})"
    return [(names[name], type_) for name, type_ in conn.execute(sql, list(names))]


def _found(conn: sqlite3.Connection, index: Index) -> set[str]:
    expected = _expected(index)
    return {name for name, type_ in _objects(conn, index) if expected[name] == type_}


def axes(conn: sqlite3.Connection, index: Index) -> Axes | None:
    """The axes of the map; None where none was computed yet."""
    if not _exists(conn, index):
        return None
    row = conn.execute(
        f"""
        select version, documents, share, fitted, projected, variance_x, variance_y, mean, directions
        from {_axes(index)} where directions is not null
        """
    ).fetchone()
    if row is None:
        return None
    version, documents, share, fitted, projected, variance_x, variance_y, mean, both = row
    return Axes(
        version=version,
        documents=documents,
        share=share,
        fitted=fitted,
        projected=projected,
        variance=(variance_x, variance_y),
        mean=unpack(mean),
        directions=unpack(both).reshape(2, -1),
    )


def version(conn: sqlite3.Connection, index: Index) -> int:
    """How often the map was written; -1 where it was forgotten."""
    return max((found for (found,) in _rows_of_axes(conn, index)), default=-1)


def waiting(conn: sqlite3.Connection, index: Index) -> tuple[int, list[Key]]:
    """The documents that changed since they were placed, and the greatest of their turns, 0 where there are none."""
    cursor = conn.execute(f"select turn, {', '.join(key_names(index))} from {_map(index)} where turn is not null")
    rows = cursor.fetchall()
    return max((turn for turn, *_ in rows), default=0), [tuple(key) for _, *key in rows]


def count(conn: sqlite3.Connection, index: Index) -> int:
    """How many documents have their place."""
    (found,) = conn.execute(f"select count(*) from {_map(index)} where turn is null").fetchone()
    return int(found)


def keys(conn: sqlite3.Connection, index: Index) -> Iterator[Key]:
    """The key of every document that has a vector."""
    return (tuple(key) for key in conn.execute(_keys(index)))


def count_documents(conn: sqlite3.Connection, index: Index) -> int:
    """How many documents have a vector."""
    (found,) = conn.execute(f"select count(*) from ({_keys(index)})").fetchone()
    return int(found)


def _keys(index: Index) -> str:
    chunks = quote_identifier(index.object("chunks"))
    # So that only indexes are read: the table holds the vectors.
    return f"""
        select distinct {", ".join(key_names(index))} from {chunks}
        where id not in (select id from {chunks} where embedding is null)
        """


def documents(
    conn: sqlite3.Connection, index: Index, keys: Sequence[Key]
) -> Iterator[tuple[list[Key], NDArray[np.float32]]]:
    """In batches, those of the documents that have a vector, and the mean of each one's, shape (n, dimensions).

    The means have unit length, but for one of vectors that cancel each other out. What is damaged is left out.
    """
    matches = " and ".join(f"c.{name} = wanted.{name}" for name in key_names(index))
    for first in range(0, len(keys), source.KEYS):
        part = keys[first : first + source.KEYS]
        sums = np.zeros((len(part), index.dimensions))
        cursor = conn.execute(
            f"""
            {source.wanted(index, len(part))}
            select wanted.n, c.embedding from wanted cross join {quote_identifier(index.object("chunks"))} as c
            on {matches} where length(c.embedding) = {4 * index.dimensions}
            """,
            [value for key in part for value in key],
        )
        found = np.zeros(len(part), bool)
        while rows := cursor.fetchmany(ROWS):
            for number, blob in rows:
                sums[number] += np.frombuffer(blob, "<f4")
                found[number] = True
        lengths = np.linalg.norm(sums, axis=1)
        found &= np.isfinite(lengths)
        units = sums[found] / np.maximum(lengths[found], np.finfo(np.float32).tiny)[:, None]
        yield [key for key, has_vector in zip(part, found, strict=True) if has_vector], units.astype(np.float32)


def replace_all(conn: sqlite3.Connection, index: Index, places: Iterable[Place], *, until: int, axes: Axes) -> None:
    """Draw the map anew; documents that changed after the turn `until` go on waiting."""
    conn.execute(f"delete from {_map(index)} where turn is null or turn <= ?", [until])
    _write(conn, index, places, axes)


def replace_waiting(conn: sqlite3.Connection, index: Index, places: Iterable[Place], *, until: int, axes: Axes) -> None:
    """Give the documents that waited up to the turn `until` these places; those without one are on the map no more."""
    conn.execute(f"delete from {_map(index)} where turn <= ?", [until])
    _write(conn, index, places, axes)


def _write(conn: sqlite3.Connection, index: Index, places: Iterable[Place], axes: Axes) -> None:
    conn.executemany(
        f"""
        insert into {_map(index)} ({", ".join(key_names(index))}, sample, x, y)
        values ({", ".join("?" * len(index.key))}, ?, ?, ?) on conflict do nothing
        """,
        ((*key, *place) for key, *place in places),
    )
    conn.execute(
        f"""
        update {_axes(index)} set version = version + 1, documents = ?, share = ?, fitted = ?, projected = ?,
            variance_x = ?, variance_y = ?, mean = ?, directions = ?
        """,
        [
            axes.documents,
            axes.share,
            axes.fitted,
            axes.projected,
            *axes.variance,
            pack(axes.mean),
            pack(axes.directions),
        ],
    )


def clear(conn: sqlite3.Connection, index: Index) -> None:
    """Forget the map, as if none had ever been drawn."""
    conn.execute(f"delete from {_axes(index)}")
    conn.execute(f"delete from {_map(index)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawn:
    """Which points are asked for: those of rows that stand and fulfil the condition, with these columns of the row."""

    condition: Condition | None = None
    titles: Sequence[str] = ()
    color: str | None = None


def points(
    conn: sqlite3.Connection, index: Index, drawn: Drawn, *, order: Sequence[str], limit: int, offset: int = 0
) -> Iterator[list[tuple[float, float, object, Key, list[object]]]]:
    """(x, y, colour value, key, values of the title columns) of up to `limit` points in the order of these columns.

    They come in batches, so that who has seen enough can stop. A point whose row has gone since the last sync counts
    towards the limit, and is left out.
    """
    named = [f"t.{quote_identifier(name)}" for name in source_key(index)]
    columns = [*named, *(_label(f"t.{quote_identifier(name)}") for name in drawn.titles)]
    where, values = _where(drawn.condition)
    width = len(index.key)
    # A cross join goes through its left side in order; to sort again would read every row before the first one.
    cursor = conn.execute(
        f"""
        select m.x, m.y, {_category(drawn.color)}, {", ".join(columns)}
        from (
            select * from {_map(index)} where {where} order by {", ".join([*order, *key_names(index)])} limit ? offset ?
        ) as m
        cross join {in_main(index.table)} as t on {source.matching(index, left="t", right="m")}
        """,
        [*values, limit, offset],
    )
    while rows := cursor.fetchmany(BATCH):
        yield [(x, y, value, tuple(rest[:width]), rest[width:]) for x, y, value, *rest in rows]


def categories(conn: sqlite3.Connection, index: Index, drawn: Drawn) -> list[tuple[object, int]]:
    """The values of the colour's column among the points, each with its number of points, the most frequent first."""
    where, values = _where(drawn.condition)
    return conn.execute(
        f"""
        select {_category(drawn.color)}, count(*)
        from (select * from {_map(index)} where {where}) as m
        cross join {in_main(index.table)} as t on {source.matching(index, left="t", right="m")}
        group by 1 order by 2 desc, 1
        """,
        values,
    ).fetchall()


def _where(condition: Condition | None) -> tuple[str, list[object]]:
    # A filter's keys are those of our tables, without a prefix: it must stand where the source is out of sight.
    return ("turn is null", []) if condition is None else (f"turn is null and {condition.sql}", [*condition.values])


def _label(column: str) -> str:
    text = f"substr({column}, 1, {READ_CHARACTERS})"
    return f"case typeof({column}) when 'text' then {text} when 'blob' then null else {column} end"


def _category(color: str | None) -> str:
    if color is None:
        return "null"
    column = f"t.{quote_identifier(color)}"
    return f"""
        case typeof({column}) when 'text' then substr({column}, 1, {LABEL_CHARACTERS})
        when 'blob' then 'binary data' else {column} end
        """


def _map(index: Index) -> str:
    return quote_identifier(index.object("map"))


def _axes(index: Index) -> str:
    return quote_identifier(index.object("axes"))
