"""What one key has used today, as far as can be known here, and how that gets into the ledgers of databases.

What was used lies in memory until it is written to the ledger of the database that it was used for. Beside that the
user's state has the key's day over all files and processes (`state`); whichever says more is believed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Literal

from . import state
from .access import Access
from .driver import sqlite3
from .limiting import Limiter
from .store import usage
from .store.usage import Usage

Purpose = Literal["bulk", "search"]

_NOTHING = Usage()
_Waiting = dict[tuple[str, str, str], Usage]
"""(ledger, day, model) -> what was used and is not written there yet."""


def today() -> str:
    """The day of the ledger, in UTC."""
    return datetime.now(UTC).date().isoformat()


class Account:
    """What one key has used today, and its rate limits. Shared by all threads.

    `reserved` is what this process has set aside, `unwritten` what no ledger has yet, `under_way` what is asked for
    just now.
    """

    def __init__(self, access: Access, *, day: Callable[[], str] = today) -> None:
        self.name = access.account
        self.limiter = Limiter(texts=access.texts_per_minute, tokens=access.tokens_per_minute)
        self.lock = threading.Lock()
        self.reserved = Usage()
        self.day = day
        self._ledgers: dict[tuple[str, str], dict[str, Usage]] = {}
        self.unwritten: _Waiting = {}
        self._being_written: list[_Waiting] = []
        self.under_way: dict[int, tuple[str, str, Usage]] = {}

    def used(self) -> Usage:
        """The day's sum over the ledgers that were read, and over what is not written yet. The caller has the lock."""
        day = self.day()
        written = (u for (_, of), models in self._ledgers.items() if of == day for u in models.values())
        waiting = (u for some in (self.unwritten, *self._being_written) for (_, of, _), u in some.items() if of == day)
        return sum([*written, *waiting], Usage())

    def reserve(self, purpose: Purpose, wanted: Usage, check: Callable[[Usage, float], None]) -> str:
        """Set aside what a request may use, if `check` does not object to the day's total and the searches' dollars.

        Returns the day that it counts for. The caller has the lock.
        """
        day = self.day()

        def look(by_purpose: Mapping[str, Usage]) -> None:
            check(self._most(by_purpose), by_purpose.get("search", Usage()).usd)

        state.shared().count(self.name, day, purpose, wanted, check=look)
        self.reserved += wanted
        return day

    def release(self, purpose: Purpose, day: str, wanted: Usage, *, used: Usage = _NOTHING) -> None:
        """Take back what was set aside, but for what was used of it. The caller has the lock."""
        state.shared().count(self.name, day, purpose, used + wanted * -1)
        self.reserved += wanted * -1

    def of_day(self) -> tuple[Usage, float]:
        """The day's total with what is set aside, and the searches' dollars in it. The caller has the lock."""
        by_purpose = state.shared().used(self.name, self.day())
        return self._most(by_purpose), by_purpose.get("search", Usage()).usd

    def _most(self, by_purpose: Mapping[str, Usage]) -> Usage:
        """The greater of what the ledgers and what the user's state say: each may have been lost, or know of more."""
        here, everywhere = self.used() + self.reserved, sum(by_purpose.values(), Usage())
        return Usage(**{name: max(value, getattr(everywhere, name)) for name, value in asdict(here).items()})

    def note(self, ledger: str, model: str, used: Usage) -> None:
        """Keep what was used until it is written. The caller has the lock."""
        key = (ledger, self.day(), model)
        self.unwritten[key] = self.unwritten.get(key, Usage()) + used

    def read(self, ledger: str, conn: sqlite3.Connection) -> None:
        """Take over the day's rows of a ledger, to which other processes write too; none to one in memory."""
        if not ledger:  # any number of databases, each with a part of what is known here already
            return
        day = self.day()
        rows = usage.of_day(conn, day)
        with self.lock:
            self._ledgers[ledger, day] = rows

    @property
    def is_being_written(self) -> bool:
        """Whether a thread is writing to a ledger just now."""
        return bool(self._being_written)

    @contextmanager
    def settling(self, ledger: str) -> Iterator[list[tuple[str, str, Usage]]]:
        """Hand over what was used for a ledger, to be written and committed in the block; if it fails, take it back."""
        with self.lock:
            taken = {key: self.unwritten.pop(key) for key in list(self.unwritten) if key[0] == ledger}
            self._being_written.append(taken)  # it counts all the while
        try:
            yield [(day, model, used) for (_, day, model), used in taken.items()]
        except BaseException:
            with self.lock:
                self._being_written = [some for some in self._being_written if some is not taken]
                for key, used in taken.items():
                    self.unwritten[key] = self.unwritten.get(key, Usage()) + used
            raise
        with self.lock:
            self._being_written = [some for some in self._being_written if some is not taken]
            for (_, day, model), used in taken.items():
                rows = self._ledgers.setdefault((ledger, day), {})
                rows[model] = rows.get(model, Usage()) + used


_accounts: dict[str, Account] = {}
_accounts_lock = threading.Lock()


def account(access: Access) -> Account:
    """The one account of a key in this process."""
    with _accounts_lock:
        return _accounts.setdefault(access.account, Account(access))


def accounts() -> list[Account]:
    """The accounts that this process has used."""
    with _accounts_lock:
        return list(_accounts.values())
