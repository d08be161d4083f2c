"""Sync: bring an index up to its table, in two stages.

Text, without any model: drain the queue, compare each row's document with its chunks, remove chunks whose text is gone
and add new ones, so that keyword search is current. Vectors (`filling`): claim chunks that have none, embed them with
no transaction open, and write each vector only where its chunk still stands. Chunks are immutable, so nothing that
happens to a row meanwhile can give it a vector of another text.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from typing import cast

from . import mapping
from .budget import Budget, ledger_of
from .chunking import covers, digest, render, split
from .domain import Embedder, Estimate, Index, Progress, SyncReport
from .driver import sqlite3
from .errors import EmbedderError, ExtensionUnavailable, VecError, counted
from .estimating import estimate_pending
from .filling import ATTEMPTS, FAILED, Filling
from .keys import Key
from .paid import PaidEmbedder
from .schema import source_key
from .searching import checked_embedder
from .store import counting, generations, jobs, picture, reading, registry, source, writing
from .store.transactions import mapped_errors, refuse_open_transaction, transaction
from .store.usage import Usage
from .store.writing import Change

TEXT_ROWS = 256
TEXT_CHARACTERS = 4_000_000
"""A batch of the text stage ends at so many rows or, after at least one row, so many characters."""

OnProgress = Callable[[Progress], None]


class Stop:
    """How another thread ends a sync: between two batches, or while it waits for a service."""

    def __init__(self) -> None:
        self.reason: BaseException | None = None
        self.budget: Budget | None = None

    def request(self, reason: BaseException) -> None:
        """Let the sync raise this; what is under way then is waited for as after any failure, and kept."""
        self.reason = reason
        if self.budget:
            self.budget.stop()

    def check(self) -> None:
        """Raise the reason if there is one."""
        if self.reason:
            raise self.reason

    @contextmanager
    def watching(self, budget: Budget) -> Iterator[None]:
        """Let no request wait in the block once the end was asked for; what comes of that is the reason."""
        self.budget = budget
        try:
            self.check()
            yield
        except EmbedderError:
            self.check()
            raise


def sync(
    conn: sqlite3.Connection,
    index: Index,
    *,
    embedder: Embedder | None = None,
    full: bool = False,
    max_usd: float | None = None,
    approve: Callable[[Estimate], None] | None = None,
    on_progress: OnProgress | None = None,
    stop: Stop | None = None,
) -> SyncReport:
    """Index what has changed since the last sync, and remove what is gone; running it again changes nothing.

    `full` compares every row instead of trusting the triggers; that happens by itself when they were lost, or when rows
    appeared or vanished behind them. Interrupted at any moment, the next sync goes on where this one stopped. Chunks
    that another process is embedding are waited for.

    With a paid embedder, `approve` is called with the estimate before anything is spent and can refuse by raising;
    `max_usd` and the daily cap stop the run. The text stage is finished in any case, and so is what was paid for kept.
    What another thread has asked `stop` for is raised.
    Raises TransactionOpen, FingerprintMismatch, EmbedderError, DatabaseUnavailable, ExtensionUnavailable.
    """
    started, began = time.monotonic(), jobs.now()
    refuse_open_transaction(conn)
    with mapped_errors():
        index = registry.reread(conn, index)
        model = checked_embedder(index, embedder)
        tell, stop, last = on_progress or (lambda _: None), stop or Stop(), list[Progress]()

        def progressed(progress: Progress) -> None:
            progress = replace(progress, usd=stop.budget.spent.usd) if stop.budget else progress
            if last != [progress]:  # who waits for others has nothing new to say, and may be stopped
                last[:] = [progress]
                tell(progress)
            stop.check()

        if reading.has_codes(conn, index) and not reading.has_vec(conn):
            raise ExtensionUnavailable(
                f"index {index.name!r} has a vec0 table and this connection has no sqlite-vec: open it with "
                "datasette_vec_gemini.connect(), or run `datasette vec drop DB INDEX --vec0-only` where that works"
            )
        run = _Run(conn, index, model, progressed)
        run.sync_text(full=full)
        spent = Usage()
        if isinstance(model, PaidEmbedder):
            if approve and (expected := estimate_pending(conn, index, model)).chunks:
                approve(expected)
            model = model.charged_to(ledger_of(conn), max_usd=max_usd, bulk=True)
            model.budget.account.read(model.budget.ledger, conn)
        filling = Filling(conn, run.index, model, progressed)
        with stop.watching(model.budget) if isinstance(model, PaidEmbedder) else nullcontext():
            filling.run()
        if isinstance(model, PaidEmbedder):
            spent = model.budget.spent
        notes = (*run.report.notes, *_draw(conn, run.index))
    report = replace(
        run.report,
        notes=notes,
        embedded=filling.embedded,
        reused=run.report.reused + filling.reused,
        failed=filling.failed,
        pending=filling.pending,
        tokens=spent.tokens,
        usd=spent.usd,
        seconds=time.monotonic() - started,
    )
    _note(conn, index, report, began=began)
    return report


def told(report: SyncReport) -> str:
    """What a sync did, in words."""
    parts = [
        f"{counted(report.documents, 'document')} read",
        f"{counted(report.embedded, 'chunk')} embedded",
        *([f"{report.reused:,} reused"] if report.reused else []),
        *([f"{report.failed:,} failed"] if report.failed else []),
        f"{report.seconds:.1f} s",
    ]
    return ", ".join([*parts, *report.notes])


def _note(conn: sqlite3.Connection, index: Index, report: SyncReport, *, began: str) -> None:
    """Let servers tell of a sync that has done something; it is not at fault where that cannot be written."""
    if index.state == "active" and (report.documents or report.embedded):
        job = jobs.Job(
            index=index.name,
            kind="sync",
            state="finished",
            started=began,
            ended=jobs.now(),
            done=report.documents,
            total=report.documents,
            message=told(report),
            spent_usd=report.usd,
        )
        with suppress(VecError, sqlite3.Error):
            jobs.note(conn, job)


def sync_text(conn: sqlite3.Connection, index: Index, *, embedder: Embedder | None = None) -> SyncReport:
    """The text stage alone, which calls no model; also in an open transaction, with whose commit it comes to hold.

    What has changed is found by words then, by meaning after the next `sync`. Raises like it.
    """
    with mapped_errors():
        index = registry.reread(conn, index)
        run = _Run(conn, index, checked_embedder(index, embedder), lambda _: None)
        run.sync_text(full=False)
    return run.report


def _draw(conn: sqlite3.Connection, index: Index) -> Iterator[str]:
    """Bring the map up to date, or say why not: what was embedded is kept in any case, and the map can wait."""
    try:
        with mapped_errors():
            mapping.refresh(conn, index)
    except (VecError, sqlite3.Error) as error:
        yield f"the map was not brought up to date, the next sync tries again: {error}"


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
class _Run:
    """The text stage of one sync."""

    conn: sqlite3.Connection
    index: Index
    embedder: Embedder
    on_progress: OnProgress
    report: SyncReport = field(default_factory=SyncReport)
    _planned: int = 0

    @property
    def _batch_rows(self) -> int:
        return source.VIEW_KEYS if self.index.is_view else TEXT_ROWS

    def count(self, **more: int) -> None:
        self.report = replace(self.report, **{name: getattr(self.report, name) + n for name, n in more.items()})

    def sync_text(self, *, full: bool) -> None:
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
                with self.writing():
                    added, removed, reused = writing.apply_changes(self.conn, self.index, changes)
                self.count(documents=len(changes), chunks_added=added, chunks_removed=removed, reused=reused)
                self.on_progress(Progress(stage="text", done=min(self.report.documents, total), total=total))

    def _is_complete(self, schema_version: int, *, swept: bool) -> bool:
        """Look for documents whose row is gone; if nothing is left to do, record what the table is like now."""
        conn, index = self.conn, self.index
        before = registry.checked(conn, index)
        seen = replace(registry.observe(conn, index), schema_version=schema_version)
        if not swept and seen == before:
            return True
        with self.writing():
            generations.enqueue_orphans(conn, index)
            if counting.count_queue(conn, index):
                return False
            registry.record(conn, index, replace(registry.observe(conn, index), schema_version=schema_version))
        return True

    @contextmanager
    def writing(self) -> Iterator[None]:
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
            with self.writing():
                picture.create(conn, index)
        retry = counting.count_chunks(conn, index, only=FAILED)
        if full or reason or retry:
            with self.writing():
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
