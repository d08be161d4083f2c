"""The first stage of a sync: the changes of the table become chunks, which words find at once and no model has seen.

The queue is drained, each row's document compared with its chunks, those removed whose text is gone and new ones added.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import cast

from .chunking import covers, digest, render, split
from .domain import Embedder, Index, Progress, SyncReport
from .driver import sqlite3
from .keys import Key
from .schema import source_key
from .store import counting, generations, picture, reading, registry, source, writing
from .store.transactions import mapped_errors, transaction
from .store.writing import Change

TEXT_ROWS = 256
TEXT_CHARACTERS = 4_000_000
"""A batch of the text stage ends at so many rows or, after at least one row, so many characters."""
ATTEMPTS = 3
"""A chunk that the model refused is tried again by so many syncs; `full` starts to count anew."""


def is_behind(conn: sqlite3.Connection, index: Index, *, text_only: bool = False, thorough: bool = False) -> bool:
    """Whether a sync would find something to do, looked up cheaply; of a view nothing is known, and it never is.

    With `text_only` chunks that wait for their vector do not count. Those that another process has claimed never do.
    A `thorough` look counts the rows, as a sync does, in case some changed behind the triggers.
    """
    with mapped_errors():
        return not index.is_view and (
            bool(_reason_for_distrust(conn, index) if thorough else reading.wrong_triggers(conn, index))
            or counting.has_queue(conn, index)
            or (not text_only and counting.has_unclaimed(conn, index, now=time.time()))
        )


def _reason_for_distrust(conn: sqlite3.Connection, index: Index) -> str | None:
    """Why the queue may not have every change; None where it has."""
    if index.is_view:
        return "a view has no triggers"
    if reading.wrong_triggers(conn, index):
        return "the triggers on the table had been lost and were made again"
    before = registry.checked(conn, index)
    if before is None or before == (now := registry.observe(conn, index)):
        return None
    if index.has_rowid_key and now.schema_version != before.schema_version:
        return "the table has no primary key and VACUUM or a change of the schema may have renumbered its rows"
    if not counting.count_queue(conn, index) and not now.same_rows(before):
        return "rows appeared or vanished without firing a trigger"
    return None


def plan_change(seq: int, key: Key, document: str, stored: Sequence[reading.StoredChunk], embedder: Embedder) -> Change:
    """What has to happen to a document's chunks so that they are a cut of this text: nothing, if they are one."""
    # An equal key may be written otherwise: in another case under NOCASE.
    if all(old.key == key for old in stored) and covers(document, [old.chunk for old in stored]):
        return Change(seq=seq, key=key)
    wanted = {(chunk, digest(chunk.text, embedder.fingerprint)) for chunk in split(document, embedder)}
    kept = {(old.chunk, old.digest) for old in stored if old.key == key} & wanted
    return Change(
        seq=seq,
        key=key,
        remove=[old.id for old in stored if old.key != key or (old.chunk, old.digest) not in kept],
        add=sorted(wanted - kept, key=lambda pair: pair[0].position),
    )


@dataclass
class Texting:
    """One run of the stage; `report` says what it has done."""

    conn: sqlite3.Connection
    index: Index
    embedder: Embedder
    on_progress: Callable[[Progress], None]
    report: SyncReport = field(default_factory=SyncReport)
    _planned: int = 0

    @property
    def _batch_rows(self) -> int:
        return source.VIEW_KEYS if self.index.is_view else TEXT_ROWS

    def _count(self, **more: int) -> None:
        self.report = replace(self.report, **{name: getattr(self.report, name) + n for name, n in more.items()})

    def run(self, *, full: bool) -> None:
        """Make the chunks those of the table as it is now; `full` compares every row. Raises IndexNotFound."""
        conn, index = self.conn, self.index
        self._prepare(full=full)
        # Of before the rows are read: a VACUUM from now on must be seen by the next sync.
        schema_version = registry.observe(conn, index).schema_version
        total = counting.count_queue(conn, index)
        writing.begin_text_stage(conn)
        try:
            while True:
                # Rows that are there first: a text that moved finds its vector in the chunk that stands yet.
                self._drain(total, removing=False)
                self._drain(total, removing=True)
                if self._is_complete(schema_version, swept=bool(total)):
                    break
        finally:
            writing.end_text_stage(conn)

    def _drain(self, total: int, *, removing: bool) -> None:
        last = 0
        while entries := writing.queued(self.conn, self.index, after=last, limit=self._batch_rows):
            changes = self._plan(entries, removing=removing)
            last = max(seq for seq, _ in entries[: self._planned])
            if changes:
                with self._writing():
                    added, removed, reused = writing.apply_changes(self.conn, self.index, changes)
                self._count(documents=len(changes), chunks_added=added, chunks_removed=removed, reused=reused)
                self.on_progress(Progress(stage="text", done=min(self.report.documents, total), total=total))

    def _is_complete(self, schema_version: int, *, swept: bool) -> bool:
        """Look for documents whose row is gone; if nothing is left to do, record what the table is like now."""
        conn, index = self.conn, self.index
        before = registry.checked(conn, index)
        seen = replace(registry.observe(conn, index), schema_version=schema_version)
        if not swept and seen == before:
            return True
        with self._writing():
            generations.enqueue_orphans(conn, index)
            if counting.count_queue(conn, index):
                return False
            registry.record(conn, index, replace(registry.observe(conn, index), schema_version=schema_version))
        return True

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """A transaction on the index as it is now. Raises IndexNotFound when it was dropped or replaced meanwhile."""
        with transaction(self.conn):
            self.index = registry.reread(self.conn, self.index)
            yield

    def _prepare(self, *, full: bool) -> None:
        """Mend what the queue depends on, and queue every row if it cannot be trusted."""
        conn, index = self.conn, self.index
        source.check(conn, index)
        reason = _reason_for_distrust(conn, index)
        if reason:
            self.report = replace(self.report, notes=(f"{reason}: every row was compared",))
        if picture.is_broken(conn, index):
            with self._writing():
                picture.create(conn, index)
        retry = counting.count_chunks(conn, index, only=counting.FAILED)
        if full or reason or retry:
            with self._writing():
                generations.install_triggers(conn, index)
                if full or reason:
                    generations.enqueue_all(conn, index)
                writing.retry_failures(conn, index, attempts=None if full else ATTEMPTS)

    def _plan(self, entries: Sequence[tuple[int, Key]], *, removing: bool) -> list[Change]:
        """The changes of rows that exist, or of those that do not, for as many entries as a batch may hold."""
        index, changes, characters = self.index, list[Change](), 0
        step = len(entries) if index.is_view else 16
        columns = dict.fromkeys([*index.columns, *source_key(index)])
        self._planned = 0
        for start in range(0, len(entries), step):
            part = entries[start : start + step]
            keys = [key for _, key in part]
            rows = source.rows(self.conn, index, keys, columns=columns)
            stored = reading.chunks_of(self.conn, index, keys)
            self._planned += len(part)
            for (seq, key), row, chunks in zip(part, rows, stored, strict=True):
                if (row is None) is not removing:
                    continue
                document = render(row, columns=index.columns, template=index.template) if row else ""
                own = cast("Key", tuple(row[name] for name in source_key(index))) if row else key
                changes.append(plan_change(seq, own, document, chunks, self.embedder))
                characters += len(document)
            if characters > TEXT_CHARACTERS:
                break
        return changes
