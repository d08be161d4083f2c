"""Making, rebuilding and dropping an index."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from uuid import uuid4

from . import embedders
from .chunking import placeholders, respell
from .domain import Embedder, Estimate, Index, Quantize, SyncReport
from .driver import sqlite3
from .errors import ColumnNotFound, ExtensionUnavailable, IndexExists, InvalidKey, InvalidName, shown
from .store import counting, generations, reading, registry, source, writing
from .store.transactions import mapped_errors, refuse_open_transaction, transaction
from .syncing import OnProgress, Stop, sync


def create_index(
    conn: sqlite3.Connection,
    name: str,
    *,
    table: str,
    columns: Sequence[str] = (),
    template: str | None = None,
    key: Sequence[str] = (),
    filter_columns: Sequence[str] = (),
    embedder: str | Embedder = "local",
    quantize: Quantize = "bit",
) -> Index:
    """Declare an index over columns of a table or view and queue all its rows; `sync` then fills it.

    A `template` such as `"{title}: {body}"` says how columns become a document; without one they are joined by blank
    lines. `key` is needed for views, and only for them. `filter_columns` are offered for filtering. The file is put
    into WAL mode, so that readers and a sync do not wait for each other. Raises UsageError, and changes nothing then.
    """
    refuse_open_transaction(conn)
    with mapped_errors():
        _require_vec(conn)
        index = plan_index(
            conn,
            name,
            table=table,
            columns=columns,
            template=template,
            key=key,
            filter_columns=filter_columns,
            embedder=embedder,
            quantize=quantize,
        )
        with transaction(conn):
            registry.migrate(conn)
            if registry.generations(conn, name):
                raise IndexExists(
                    f"the database has an index {name!r} already: sync it, drop it, or use another --name"
                )
            generations.create(conn, index)
        conn.execute("pragma journal_mode = wal").fetchone()
    return index


def plan_index(
    conn: sqlite3.Connection,
    name: str,
    *,
    table: str,
    columns: Sequence[str] = (),
    template: str | None = None,
    key: Sequence[str] = (),
    filter_columns: Sequence[str] = (),
    embedder: str | Embedder = "local",
    quantize: Quantize = "bit",
) -> Index:
    """The index that `create_index` would make of the same arguments, which it checks; nothing is written."""
    with mapped_errors():
        model = embedders.load(embedder) if isinstance(embedder, str) else embedder
        found = source.find(conn, table)
        named = [*columns, *(placeholders(template) if template else ())]
        if not named:
            what = "no column" if template is None else f"template {shown(template)} has no {{column}}: none"
            raise ColumnNotFound(f"{what} of {found.name!r} was named: choose from {', '.join(found.columns)}")
        if key and not found.is_view:
            raise InvalidKey(f"{found.name!r} is a table and has its own key, {_spelled(found)}: leave the key out")
        index = Index(
            name=name,
            table=found.name,
            columns=tuple(dict.fromkeys(map(found.column, named))),
            template=template and respell(template, found.column),
            key=source.view_key(conn, found, key) if found.is_view else found.key,
            filter_columns=tuple(dict.fromkeys(map(found.column, filter_columns))),
            embedder=model.name,
            fingerprint=model.fingerprint,
            dimensions=model.dimensions,
            quantize=quantize,
            is_view=found.is_view,
        )
        _check_dimensions(index)
    return index


def rebuild(
    conn: sqlite3.Connection,
    index: Index,
    *,
    embedder: str | Embedder | None = None,
    quantize: Quantize | None = None,
    keep_old: bool = False,
    max_usd: float | None = None,
    approve: Callable[[Estimate], None] | None = None,
    on_progress: OnProgress | None = None,
    stop: Stop | None = None,
) -> tuple[Index, SyncReport]:
    """Make the keyword index and the codes anew from the truth; with another embedder or quantizer, a new generation.

    The next generation is built beside the active one, which answers searches until the new one is complete; then they
    change places in one transaction. Interrupted, the next call without arguments goes on with what is there; one that
    names the active embedder gives it up. When the new model refuses more chunks than the old one did, the report
    counts them and the old generation stays. Vectors of the same model are copied, those of the same model with more
    dimensions cut. With `keep_old` the vectors of earlier generations stay, so that going back costs nothing, until a
    rebuild without it. `max_usd` and `approve` are as in `sync`. Raises like `sync`.
    """
    refuse_open_transaction(conn)
    with mapped_errors():
        _require_vec(conn)
        registry.migrate(conn)
        index, begun = registry.find(conn, index.name), registry.building(conn, index.name)
        if embedder is None:
            goes_on = begun if begun and quantize is None else None
            model = embedders.load((goes_on or index).embedder)
            quantize = goes_on.quantize if goes_on else quantize
        else:
            model = embedders.load(embedder) if isinstance(embedder, str) else embedder
        wanted = replace(
            index,
            embedder=model.name,
            fingerprint=model.fingerprint,
            dimensions=model.dimensions,
            quantize=quantize or index.quantize,
        )
        if wanted == index:
            with transaction(conn):
                if begun:
                    generations.drop(conn, begun)
                _drop_retired(conn, index, keep_old=keep_old, besides=index)
                writing.rebuild_fts(conn, index)
                writing.rebuild_codes(conn, index)
            return index, sync(
                conn, index, embedder=model, max_usd=max_usd, approve=approve, on_progress=on_progress, stop=stop
            )
        _check_dimensions(wanted)
        successor = _successor(conn, wanted, begun)
        report = sync(
            conn, successor, embedder=model, max_usd=max_usd, approve=approve, on_progress=on_progress, stop=stop
        )
        refused = counting.count_chunks(conn, index, only=counting.FAILED)
        if report.failed > refused:
            return index, report
        with transaction(conn):
            successor = registry.reread(conn, successor)
            _drop_retired(conn, index, keep_old=keep_old, besides=successor)
            if keep_old:
                generations.retire(conn, registry.reread(conn, index))
            else:
                generations.drop(conn, registry.reread(conn, index))
            registry.update(conn, successor, state="active")
            generations.replace_view(conn, successor)
        return registry.find(conn, index.name), report


def drop(conn: sqlite3.Connection, index: Index, *, vec0_only: bool = False) -> None:
    """Remove an index with all its generations; or only its vec0 tables, so that any SQLite program can open the file.

    The second leaves the truth: search scans it, and `rebuild` makes the vec0 table again. The user's table is not
    touched but for our triggers. Needs sqlite-vec, which alone can remove its tables. Raises ExtensionUnavailable.
    """
    refuse_open_transaction(conn)
    with mapped_errors():
        _require_vec(conn)
        with transaction(conn):
            for generation in registry.generations(conn, index.name):
                if vec0_only:
                    writing.drop_codes(conn, generation)
                else:
                    generations.drop(conn, generation)


def _drop_retired(conn: sqlite3.Connection, index: Index, *, keep_old: bool, besides: Index) -> None:
    """Drop the generations that were kept, or only those whose vectors these two have as well."""
    for generation in registry.generations(conn, index.name):
        is_double = generation.fingerprint in {index.fingerprint, besides.fingerprint}
        if generation.state == "retired" and (is_double or not keep_old):
            generations.drop(conn, generation)


def _successor(conn: sqlite3.Connection, wanted: Index, begun: Index | None) -> Index:
    """The generation under construction, if it is the one wanted; else a new one, and what was begun is dropped."""
    newest = begun.generation if begun else wanted.generation
    successor = replace(wanted, generation=newest + 1, uid=uuid4().hex, state="building", int8_scale=None)
    if begun:
        same = replace(successor, generation=begun.generation, uid=begun.uid, int8_scale=begun.int8_scale)
        if begun == same:
            return begun
    with transaction(conn):
        if begun:
            generations.drop(conn, begun)
        generations.create(conn, successor)
    return successor


def _require_vec(conn: sqlite3.Connection) -> None:
    if not reading.has_vec(conn):
        raise ExtensionUnavailable(
            "this connection has no sqlite-vec: open it with datasette_vec_gemini.connect(); "
            "`datasette vec doctor` tells what this machine can do"
        )


def _check_dimensions(index: Index) -> None:
    if index.quantize == "bit" and index.dimensions % 8:
        raise InvalidName(
            f"bit codes need a multiple of 8 dimensions, {index.embedder} has {index.dimensions}: use int8 or float32"
        )


def _spelled(found: source.Source) -> str:
    return ", ".join(column.name for column in found.key)
