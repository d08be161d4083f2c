"""Commands that may cost money: who is asked first, and what is said when they stop."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress

from . import checking, embedders, evaluating, indexing
from .account import today
from .budget import dollars, ledger_of
from .consent import Consent, paid
from .domain import Embedder, Estimate, Index, Mode, Quantize, Query, SyncReport
from .driver import sqlite3
from .errors import (
    BudgetReached,
    DatabaseUnavailable,
    EmbedderError,
    QuotaReached,
    ServiceUnavailable,
    VecError,
    counted,
)
from .estimating import estimate, reckon
from .paid import PaidEmbedder
from .printing import print_aside, print_report, progress_bars
from .searching import checked_embedder
from .store import counting, registry, usage
from .store.counting import FAILED, PENDING
from .store.usage import Usage
from .syncing import sync


@contextmanager
def _metered(
    conn: sqlite3.Connection, chosen: Index, consent: Consent, *, goes_on: str, is_rebuild: bool = False
) -> Iterator[None]:
    """Count what the block spends, by the ledger, and when it stops say what it has come to and how to go on."""
    day, before = today(), usage.of_day(conn, today())

    def spent_usd() -> float:
        used = [usage.of_day(conn, of) for of in {day, today()}]
        return sum((u for models in used for u in models.values()), Usage()).usd - sum(before.values(), Usage()).usd

    try:
        yield
    except EmbedderError as error:
        if error is not consent.stopped_by:
            at_work = registry.building(conn, chosen.name) if is_rebuild else None
            _say_stopped(conn, at_work or chosen, spent_usd(), goes_on=goes_on)
        raise
    finally:
        with suppress(sqlite3.Error):  # which must not hide the first
            consent.spent_usd += spent_usd()


def _say_stopped(conn: sqlite3.Connection, at_work: Index, usd: float, *, goes_on: str) -> None:
    chunks, pending, failed = (counting.count_chunks(conn, at_work, only=only) for only in ("1", PENDING, FAILED))
    spent = f", {dollars(usd)} spent by this run" if usd else ""
    wrong = f", {failed:,} failed" if failed else ""
    print_aside(
        f"{at_work.name}: {chunks - pending - failed:,} of {chunks:,} chunks are embedded and kept, {pending:,} pending"
        f"{wrong}{spent}. To go on: {goes_on}"
    )


def sync_one(
    conn: sqlite3.Connection, chosen: Index, consent: Consent, *, full: bool = False, is_quiet: bool = False
) -> SyncReport:
    """Sync an index, with bars unless `is_quiet`, and print what it did, then only if it did something."""
    goes_on = consent.command("sync", chosen.name)

    def approve(expected: Estimate) -> None:
        consent.approve(expected, otherwise=f"search by keywords is ready. To go on: {goes_on}")

    with _metered(conn, chosen, consent, goes_on=goes_on), progress_bars(hidden=is_quiet) as on_progress:
        report = sync(conn, chosen, full=full, max_usd=consent.left_usd, approve=approve, on_progress=on_progress)
    if not is_quiet or report.embedded or report.chunks_added or report.chunks_removed:
        print_report(chosen, report)
    return report


def sync_all(
    conn: sqlite3.Connection, chosen: Sequence[Index], consent: Consent, *, full: bool = False, is_quiet: bool = False
) -> tuple[list[SyncReport], list[VecError]]:
    """Sync indexes and collect what stopped some of them: the others are synced, or their text stage is, all the same.

    Once a service or a budget has given out nothing more is spent on any of them.
    """
    reports, errors = list[SyncReport](), list[VecError]()
    for each in chosen:
        try:
            reports.append(sync_one(conn, each, consent, full=full, is_quiet=is_quiet))
        except VecError as error:
            if error not in errors:
                errors.append(error)
            if isinstance(error, BudgetReached | QuotaReached | ServiceUnavailable):
                consent.stopped_by = error
    return reports, errors


def verify(conn: sqlite3.Connection, chosen: Index, consent: Consent, *, repair: bool) -> list[checking.Problem]:
    """Check an index and mend it; a paid model is asked for damaged vectors when that is agreed to."""
    goes_on = consent.command("sync", chosen.name)

    def approve(expected: Estimate) -> None:
        consent.approve(expected, otherwise=f"all else was mended. To go on: {goes_on}")

    with _metered(conn, chosen, consent, goes_on=goes_on) if repair else nullcontext():
        return checking.verify(conn, chosen, repair=repair, max_usd=consent.left_usd, approve=approve)


def watch_once(
    conn: sqlite3.Connection, chosen: Sequence[Index], consent: Consent, *, full: bool = False, is_quiet: bool = True
) -> tuple[list[VecError], bool]:
    """One look for changes: patient with what may be over in a moment, and silent when there are none.

    The errors that end the watch, and whether nothing was in the way.
    """
    consent.require_cap(chosen)
    consent.stopped_by = None
    _, errors = sync_all(conn, chosen, consent, full=full, is_quiet=is_quiet)
    for each in errors:
        if isinstance(each, DatabaseUnavailable | ServiceUnavailable):
            print_aside(f"Trying again: {each}")
    return [each for each in errors if not isinstance(each, DatabaseUnavailable | ServiceUnavailable)], not errors


def rebuild(
    conn: sqlite3.Connection,
    chosen: Index,
    consent: Consent,
    *,
    embedder: str | None,
    quantize: Quantize | None,
    keep_old: bool,
) -> tuple[Index, SyncReport]:
    """Rebuild an index, when what it costs is agreed to: before anything is changed."""
    goes_on = consent.command("rebuild", chosen.name)
    begun = registry.building(conn, chosen.name) if embedder is None and quantize is None else None
    model = paid(embedder or (begun or chosen).embedder)
    expected = estimate(conn, chosen, embedder=model) if model else None
    agreed_usd = 0.0
    if expected and expected.chunks:
        consent.approve(expected, otherwise="nothing was changed")
        agreed_usd = expected.usd

    def approve(expected: Estimate) -> None:
        """Ask again when much more has come in, or was found, than was agreed to."""
        if expected.usd > 1.2 * agreed_usd:
            consent.approve(expected, otherwise=f"to go on: {goes_on}")

    with _metered(conn, chosen, consent, goes_on=goes_on, is_rebuild=True), progress_bars() as on_progress:
        return indexing.rebuild(
            conn,
            chosen,
            embedder=embedder,
            quantize=quantize,
            keep_old=keep_old,
            max_usd=consent.left_usd,
            approve=approve,
            on_progress=on_progress,
        )


def evaluate(
    conn: sqlite3.Connection,
    chosen: Index,
    queries: Mapping[str, str],
    judgements: evaluating.Judgements,
    consent: Consent,
) -> dict[Mode, dict[str, float]]:
    """Evaluate an index; with a paid model each judged question is embedded once, when that is agreed to."""
    model = checked_embedder(chosen)
    judged = [text for id_, text in queries.items() if any(score > 0 for score in judgements.get(id_, {}).values())]
    if not isinstance(model, PaidEmbedder) or not judged:
        return evaluating.evaluate(conn, chosen, queries, judgements)
    questions = sorted({Query(text).text for text in judged})
    count = len(questions)
    expected = reckon(chosen, model, rows=count, chunks=count, tokens=model.count_tokens(questions))
    consent.approve(expected, what=f"{counted(count, 'question')} to embed", otherwise="nothing was asked")
    model = model.charged_to(ledger_of(conn), max_usd=consent.left_usd, bulk=True)
    try:
        return evaluating.evaluate(conn, chosen, queries, judgements, embedder=model)
    finally:
        spent = model.budget.spent
        print_aside(
            f"{counted(spent.texts, 'question')} embedded, {counted(spent.tokens, 'token')}, {dollars(spent.usd)}"
        )


def expect(conn: sqlite3.Connection, chosen: Index, embedder: str | None) -> tuple[Estimate, Embedder]:
    """What a sync would cost, or a rebuild with that embedder, which is loaded but not asked."""
    model = embedders.load(embedder or chosen.embedder)
    return estimate(conn, chosen, embedder=model if embedder else None), model
