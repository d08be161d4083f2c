"""What one Datasette instance has: its access and the gates before paid models, jobs, turns and declarations."""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any
from weakref import WeakKeyDictionary

from click import ClickException
from datasette.app import Datasette
from datasette.database import Database
from datasette.utils import StartupError

from .. import config, embedders
from ..access import Access
from ..errors import InvalidSetting, ServiceUnavailable, VecError
from ..functions import GEMINI, Functions
from ..gate import Gate
from ..paid import PaidEmbedder
from . import compat, visitors
from .jobs import Jobs
from .sentences import Sentences
from .turns import Turns

PLUGIN = "datasette-vec-gemini"
PAGE_TEXTS_PER_MINUTE = 30
"""New questions that the pages of a site embed; the daily cap stands behind it."""
_THREADS = 64
_log = logging.getLogger("datasette_vec_gemini")


class Site:
    """One instance. `gate` is that of SQL, `page_gate` that of the pages; they share what went wrong last.

    `fault` is what is wrong with its settings; then nothing that costs money works. On `threads` the pages wait
    for paid models: asyncio's own are few, and twenty visitors of a service that is down would wait for each other.
    What costs much takes turns, so that one of Datasette's three threads for SQL is left to other pages: `searching`,
    `lasting` what takes longer, which is to count what an index holds, and `searching_sql` visitors' own. One question
    at a time is embedded by a model on this machine, which uses all of its processors: `embedding`.
    `settings` are those of the pages, by database and table, read once: a file that holds one may be gone later.
    `declarations` are those of each database; `problems` has by database and index what is not as declared, and why.
    """

    def __init__(self, datasette: Datasette) -> None:
        self.fault: InvalidSetting | None = None
        try:
            ((where, layer),) = _layers(datasette)
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

        self.jobs = Jobs()
        self.sentences = Sentences()
        self.sync_seconds = 0.0
        self.settings: dict[tuple[str | None, str | None], config.Settings] = {}
        self.declarations: dict[str, list[config.Declaration]] = {}
        self.problems: dict[tuple[str, str], str] = {}
        self.threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="vec-embed")
        self.searching = Turns(max(1, datasette.setting("num_sql_threads") - 2))
        self.lasting = Turns(1)
        self.searching_sql = Turns(1)
        self.embedding = Turns(1)
        self._warming: threading.Thread | None = None
        self._lock = threading.Lock()

    @property
    def is_busy(self) -> bool:
        """Whether visitors wait for their turn to search."""
        return bool(self.searching.waiting)

    def settings_of(self, database: str | None = None, table: str | None = None) -> config.Settings:
        """The settings for a table, or for a database or the instance."""
        levels = [(database, table), (database, None), (None, None)]
        return next((self.settings[level] for level in levels if level in self.settings), config.Settings())

    def functions(self, database: Database | None) -> Functions:
        """The SQL functions for connections to a database."""
        immutable = database is not None and not database.is_mutable
        return Functions(self.gate, access=self.access, ledger=ledger(database), immutable=immutable)

    def is_paid(self, embedder: str) -> bool:
        """Whether a model costs money; of one that cannot be loaded, whoever asks it says what is wrong with it."""
        try:
            return isinstance(embedders.load(embedder, self.access), PaidEmbedder)
        except VecError:
            return False

    def warm_up(self) -> None:
        """Load Google's SDK, which takes a second or more, before the first question waits for it."""
        if (self.access.api_key or self.access.project) and self.page_gate.mode in {"auto", "on"}:
            with suppress(VecError):
                model = embedders.load(GEMINI[0], self.access)
                if isinstance(model, PaidEmbedder):
                    self._warm(model)

    def ready(self, model: PaidEmbedder, seconds: float) -> float:
        """Wait until a model's SDK is loaded; the time that is left of so many seconds.

        Raises InvalidSetting where the settings are wrong, EmbedderUnavailable without a key, ServiceUnavailable.
        """
        if self.fault:
            raise self.fault
        model.require_key()
        until = time.monotonic() + seconds
        warming = self._warm(model)
        warming.join(seconds)
        if warming.is_alive():
            raise ServiceUnavailable("the model's software is still being loaded: ask again in a moment")
        return max(round(until - time.monotonic(), 1), 0.1)

    def _warm(self, model: PaidEmbedder) -> threading.Thread:
        """The thread that loads what all models of the service have in common; started once."""

        def load() -> None:
            with suppress(VecError):
                model.prepare()

        with self._lock:
            if self._warming is None:
                self._warming = threading.Thread(target=load, daemon=True)
                self._warming.start()
            return self._warming


class Misconfigured(StartupError, ClickException):  # type: ignore[misc]  # Datasette has no types
    """The settings are wrong, or show a key to everybody.

    As one of click's exceptions it ends `datasette` with its message alone: with a traceback, rich would print the
    local variables of Datasette's functions, and a key among them.
    """


_sites: WeakKeyDictionary[Datasette, Site] = WeakKeyDictionary()
_lock = threading.Lock()


def of(datasette: Datasette) -> Site:
    """The site of an instance. Raises Misconfigured where its configuration has no shape that Datasette could read."""
    with _lock:
        if datasette not in _sites:
            try:
                compat.check_configuration(datasette)
            except InvalidSetting as error:
                raise Misconfigured(str(error)) from None
            _sites[datasette] = Site(datasette)
        return _sites[datasette]


def start(datasette: Datasette) -> None:
    """Refuse wrong settings and a key that everybody could read, and warm up. Raises Misconfigured."""
    if any(isinstance(layer.get("api_key"), str) for layer in compat.public_settings(datasette, PLUGIN)):
        raise Misconfigured(
            f"plugins: {PLUGIN}: api_key stands in the metadata, which this version of Datasette shows to everybody at "
            "/-/metadata.json. Put the key into an environment variable and write api_key: {$env: GEMINI_API_KEY}"
        )
    own = of(datasette)
    try:
        _configure(datasette, own)
    except InvalidSetting as error:
        raise Misconfigured(str(error)) from None
    for database, declared in own.declarations.items():
        if declared and database not in datasette.databases:
            _log.warning("An index is declared in database %s, which is not served: check its name", database)
    own.warm_up()


def _configure(datasette: Datasette, own: Site) -> None:
    """Check the settings of every level and take over what the server works by. Raises InvalidSetting."""
    if own.fault:
        raise own.fault
    ((where, layer),) = _layers(datasette)
    own.settings[None, None] = config.settings((where, layer))
    own.sync_seconds = config.sync_interval(where, layer)
    places: dict[str, list[tuple[str, config.Declaration]]] = {}
    for database, table in compat.configured(datasette, PLUGIN):
        layers = _layers(datasette, database, table)
        own.settings[database, table] = config.settings(*layers)
        if table is not None:
            where, layer = layers[-1]
            found = [(where, declaration) for declaration in config.declarations(where, layer, table)]
            places.setdefault(database, []).extend(found)
    for declared in places.values():
        config.check_names(declared)
    own.declarations = {name: [declaration for _, declaration in declared] for name, declared in places.items()}


def _layers(datasette: Datasette, database: str | None = None, table: str | None = None) -> list[tuple[str, Any]]:
    """What the configuration says at each level down to this one, the instance first, with where it stands.

    Raises InvalidSetting where a file or variable that stands for a value cannot be read.
    """
    levels: list[tuple[str, dict[str, Any]]] = [(f"plugins: {PLUGIN}", {})]
    if database is not None:
        levels.append((f"plugins: {PLUGIN} of database {database}", {"database": database, "fallback": False}))
    if table is not None:
        of_table = {"database": database, "table": table, "fallback": False}
        levels.append((f"plugins: {PLUGIN} of table {table}", of_table))
    layers = []
    for where, level in levels:
        try:
            layers.append((where, datasette.plugin_config(PLUGIN, **level)))
        except (OSError, TypeError, ValueError) as error:
            raise InvalidSetting(f"{where}: what $file or $env name there cannot be read: {error}") from None
    return layers


def ledger(database: Database | None) -> str:
    """The file that spending for a database is written to; none for one in memory, or that is served as immutable."""
    return str(database.path) if database and database.path and database.is_mutable else ""
