"""What paid embeddings may cost: prices, and the budget of one run or search.

Every request is reserved before it is sent, by an estimate of its tokens, and settled by what was used.
"""

from __future__ import annotations

import atexit
import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from .access import Access
from .account import Purpose, account, accounts
from .driver import sqlite3
from .errors import BudgetReached, InvalidSetting, QuotaReached
from .limiting import Permit
from .store import registry, usage
from .store.transactions import transaction
from .store.usage import Usage

PRICES_AS_OF = "2026-11-22"
PRICES = {"gemini-embedding-2": 0.20, "gemini-embedding-001": 0.15}
"""US dollars for a million tokens of text (ai.google.dev/gemini-api/docs/pricing); the free tier is not assumed."""
SEARCH_DAILY_USD = 1.00
"""The daily cap of searches where none is set."""

_NOTHING = Usage()
_log = logging.getLogger("datasette_vec_gemini")


def price(model: str) -> float:
    """US dollars for a token; of a model that is not in the list, that of the dearest one."""
    return PRICES.get(model, max(PRICES.values())) / 1e6


def dollars(usd: float) -> str:
    """With four decimals, or as many as show two digits of it."""
    decimals = 4 if usd >= 0.001 or usd <= 0 else min(12, 1 - math.floor(math.log10(usd)))
    return f"${usd:,.{decimals}f}"


@dataclass(eq=False, slots=True)
class Reservation:
    """Dollars, texts and tokens set aside for one request, on that day."""

    usage: Usage
    permit: Permit
    day: str


class Budget:
    """What may be spent on one model for one purpose, written down in one ledger (a database's file; "" is memory).

    `max_usd` holds for this budget, `daily_usd` for the key. `spent` is what went through this budget. `bulk` is for
    runs that were agreed to: they have patience, and no daily cap but one that somebody has set.
    """

    def __init__(
        self, access: Access, model: str, *, ledger: str = "", max_usd: float | None = None, bulk: bool = False
    ) -> None:
        if max_usd is not None and not max_usd >= 0:
            raise InvalidSetting(f"max_usd is {max_usd}; it must be a number of dollars from 0")
        self.account = account(access)
        self.model = model
        self.ledger = ledger
        self.max_usd = max_usd
        self.bulk = bulk
        self._purpose: Purpose = "bulk" if bulk else "search"
        self.daily_usd = access.daily_usd
        self.texts_per_day = access.texts_per_day
        self.spent = Usage()
        self.is_stopped = threading.Event()
        self._reserved_usd = 0.0

    def reserve(self, *, texts: int, tokens: int, until: float) -> Reservation:
        """Set aside a request's cost and wait for the rate limit, at most until that moment of `time.monotonic`.

        Raises BudgetReached, QuotaReached, ServiceUnavailable; nothing is set aside then.
        """
        wanted = Usage(requests=1, texts=texts, tokens=tokens, usd=tokens * price(self.model))
        with self.account.lock:
            day = self.account.reserve(self._purpose, wanted, lambda *of_day: self._check(wanted, *of_day))
            self._reserved_usd += wanted.usd
        try:
            permit = self.account.limiter.acquire(texts=texts, tokens=tokens, until=until, stop=self.is_stopped.is_set)
        except BaseException:
            with self.account.lock:
                self._release(wanted, day)
            raise
        reservation = Reservation(usage=wanted, permit=permit, day=day)
        with self.account.lock:
            self.account.under_way[id(reservation)] = (self.ledger, self.model, wanted)
        return reservation

    def settle(self, reservation: Reservation, *, tokens: int | None = None) -> None:
        """The request was answered, or may have been: count it, by its true number of tokens where that is known."""
        wanted = reservation.usage
        tokens = wanted.tokens if tokens is None else tokens
        used = Usage(requests=1, texts=wanted.texts, tokens=tokens, usd=tokens * price(self.model))
        with self.account.lock:
            self.account.under_way.pop(id(reservation), None)
            self._release(wanted, reservation.day, used)
            self.account.note(self.ledger, self.model, used)
            self.spent += used
        self.account.limiter.finish(reservation.permit, tokens=tokens)

    def cancel(self, reservation: Reservation) -> None:
        """The request was refused and costs nothing."""
        with self.account.lock:
            self.account.under_way.pop(id(reservation), None)
            self._release(reservation.usage, reservation.day)
        self.account.limiter.finish(reservation.permit, counted=False)

    def stop(self) -> None:
        """Let nothing more be reserved and nobody wait any longer."""
        self.is_stopped.set()
        self.account.limiter.wake()

    def _check(self, wanted: Usage, used: Usage, searched_usd: float) -> None:
        if self.texts_per_day is not None and used.texts + wanted.texts > self.texts_per_day:
            raise QuotaReached(
                f"{used.texts:,} of {self.texts_per_day:,} texts a day (texts_per_day) are used: go on tomorrow (UTC)"
            )
        if self.max_usd is not None and self.spent.usd + self._reserved_usd + wanted.usd > self.max_usd:
            raise BudgetReached(
                f"{dollars(self.spent.usd)} of the {dollars(self.max_usd)} allowed for this run are spent, and the "
                f"next request could cost {dollars(wanted.usd)}",
                remedy="what was embedded is kept; go on with a greater --max-usd",
                of_run=True,
            )
        spent, daily_usd = self._against_cap(used, searched_usd)
        if spent + wanted.usd > daily_usd:
            raise BudgetReached(
                f"{dollars(spent)} of the {dollars(daily_usd)} a day (daily_usd) are spent, and the next "
                f"request could cost {dollars(wanted.usd)}",
                remedy="go on tomorrow (UTC), or raise daily_usd (DATASETTE_VEC_DAILY_USD)",
            )

    def _against_cap(self, used: Usage, searched_usd: float) -> tuple[float, float]:
        """What counts against the daily cap, and that cap: where none is set, searches count among themselves only."""
        if self.daily_usd is not None:
            return used.usd, self.daily_usd
        return (0.0, math.inf) if self.bulk else (searched_usd, SEARCH_DAILY_USD)

    def room(self) -> tuple[float, float]:
        """How many texts and tokens the caps leave for the next request."""
        with self.account.lock:
            used, searched_usd = self.account.of_day()
            of_run = math.inf if self.max_usd is None else self.max_usd - self.spent.usd - self._reserved_usd
        spent, daily_usd = self._against_cap(used, searched_usd)
        texts = math.inf if self.texts_per_day is None else self.texts_per_day - used.texts
        return texts, min(daily_usd - spent, of_run) / price(self.model)

    def _release(self, wanted: Usage, day: str, used: Usage = _NOTHING) -> None:
        self.account.release(self._purpose, day, wanted, used=used)
        self._reserved_usd -= wanted.usd

    def read_ledger(self) -> None:
        """Learn what the day's rows of the ledger say; one that cannot be read says nothing."""
        with _ignored(), closing(_opened(self.ledger, "ro")) as conn:
            self.account.read(self.ledger, conn)

    def write_ledger(self) -> None:
        """Write down what was used; where the file cannot be written it stays in memory, and the log says so once."""
        with _ignored(self._say_once), closing(_opened(self.ledger, "rw")) as conn:
            if not registry.has_table(conn, "_vec_usage"):
                self._say_once()
                return
            with self.settling(conn):
                pass

    @contextmanager
    def settling(self, conn: sqlite3.Connection) -> Iterator[None]:
        """A transaction of the ledger's database that writes down what was used, together with what it bought."""
        if not registry.has_table(conn, "_vec_usage"):
            self._say_once()
            with transaction(conn):
                yield
            return
        with self.account.settling(self.ledger) as used, transaction(conn):
            usage.add(conn, used)
            yield
        self.account.read(self.ledger, conn)  # other processes write there too

    def _say_once(self) -> None:
        _told[self.ledger] += 1
        if _told[self.ledger] == 1:
            name = Path(self.ledger).name or "a database in memory, or served as immutable,"
            _log.warning("spending is counted in memory only: %s has no ledger that can be written now", name)


_told: Counter[str] = Counter()


@contextmanager
def _ignored(otherwise: Callable[[], None] = lambda: None) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error:
        otherwise()


def _opened(ledger: str, mode: str) -> sqlite3.Connection:
    if not ledger:
        raise sqlite3.OperationalError("a database in memory has no file")
    return sqlite3.connect(f"file:{quote(ledger)}?mode={mode}", uri=True, timeout=0.5)


@atexit.register
def _write_what_is_left() -> None:
    """At the end of the process, write down what is not written; what nobody waits for may be billed all the same."""
    for each in accounts():
        until = time.monotonic() + 5.0
        while each.is_being_written and time.monotonic() < until:
            time.sleep(0.01)
        with each.lock:
            for ledger, model, wanted in each.under_way.values():
                each.note(ledger, model, wanted)
            each.under_way.clear()
            ledgers = {ledger for ledger, _, _ in each.unwritten if ledger}
        for ledger in ledgers:
            with _ignored(), closing(_opened(ledger, "rw")) as conn:
                conn.execute("pragma busy_timeout = 5000").fetchone()
                if registry.has_table(conn, "_vec_usage"):
                    with each.settling(ledger) as used, transaction(conn):
                        usage.add(conn, used)


def ledger_of(conn: sqlite3.Connection) -> str:
    """The file of a connection's database, whose ledger its spending goes to; "" in memory."""
    return next((file or "" for _, name, file in conn.execute("pragma database_list") if name == "main"), "")
