"""What one Datasette instance has for paid embedders: its access, and the gates before them."""

from __future__ import annotations

import threading
from contextlib import suppress
from weakref import WeakKeyDictionary

from datasette.app import Datasette
from datasette.database import Database
from datasette.utils import StartupError

from .. import config, embedders
from ..access import Access
from ..errors import InvalidSetting, VecError
from ..functions import GEMINI, Functions
from ..gate import Gate
from ..paid import PaidEmbedder
from . import compat, visitors

PLUGIN = "datasette-vec-gemini"
PAGE_TEXTS_PER_MINUTE = 30
"""New questions that the pages of a site embed; the daily cap stands behind it."""


class Site:
    """One instance. `gate` is that of SQL, `page_gate` that of the pages; they share what went wrong last.

    `fault` is what is wrong with its settings; then nothing that costs money works.
    """

    def __init__(self, datasette: Datasette) -> None:
        where, layer = f"plugins: {PLUGIN}", datasette.plugin_config(PLUGIN)
        self.fault: InvalidSetting | None = None
        try:
            self.access = config.access(where, layer)
            self.gate = config.gate(layer or {}, where=where, may_embed=lambda: visitors.may_embed(datasette))
        except InvalidSetting as error:
            self.fault, self.access, self.gate = error, Access(), Gate(mode="off")
            self.gate.note(error)
        self.page_gate = Gate(
            mode="auto" if self.gate.mode == "off" else self.gate.mode,
            texts_per_minute=PAGE_TEXTS_PER_MINUTE,
            queueing=True,
            errors=self.gate.errors,
        )

    def functions(self, database: Database | None) -> Functions:
        """The SQL functions for connections to a database."""
        return Functions(self.gate, access=self.access, ledger=ledger(database))

    def warm_up(self) -> None:
        """Load Google's SDK, which takes a second or more, before the first question waits for it."""
        if self.access.api_key and self.gate.mode in {"auto", "on"}:

            def load() -> None:
                with suppress(VecError):
                    model = embedders.load(GEMINI[0], self.access)
                    if isinstance(model, PaidEmbedder):
                        model.prepare()

            threading.Thread(target=load, daemon=True).start()


_sites: WeakKeyDictionary[Datasette, Site] = WeakKeyDictionary()
_lock = threading.Lock()


def of(datasette: Datasette) -> Site:
    """The site of an instance."""
    with _lock:
        if datasette not in _sites:
            _sites[datasette] = Site(datasette)
        return _sites[datasette]


def start(datasette: Datasette) -> None:
    """Refuse a key that everybody could read, and warm up."""
    layer = compat.public_settings(datasette, PLUGIN)
    if isinstance(layer, dict) and isinstance(layer.get("api_key"), str):
        raise StartupError(
            f"plugins: {PLUGIN}: api_key stands in the metadata, which this version of Datasette shows to everybody at "
            "/-/metadata.json. Put the key into an environment variable and write api_key: {$env: GEMINI_API_KEY}"
        )
    of(datasette).warm_up()


def ledger(database: Database | None) -> str:
    """The file that spending for a database is written to; none for one in memory, or that is served as immutable."""
    return str(database.path) if database and database.path and database.is_mutable else ""
