"""Before the first visitor asks: a model on this machine takes a second to load, and nobody should wait for that."""

from __future__ import annotations

import logging
import time
from contextlib import closing, suppress
from urllib.parse import quote

from datasette.database import Database

from .. import embedders
from ..driver import sqlite3
from ..errors import VecError
from ..paid import PaidEmbedder
from ..store import registry
from .site import Site

_log = logging.getLogger("datasette_vec_gemini")


def warm(own: Site, db: Database) -> None:
    """Have the models of a database's indexes embed a word, but for those that cost money."""
    if not db.path:
        return
    # Beside an immutable file nothing is made, which even reading does where it is in WAL mode.
    uri = f"file:{quote(str(db.path))}?mode=ro{'' if db.is_mutable else '&immutable=1'}"
    with closing(sqlite3.connect(uri, uri=True)) as conn:
        wanted = dict.fromkeys(index.embedder for index in registry.indexes(conn))
    for specification in wanted:
        with suppress(VecError):  # it is told to whoever asks
            model = embedders.load(specification, own.access)
            if not isinstance(model, PaidEmbedder):
                began = time.perf_counter()
                model.embed_query("ready")
                _log.debug("Model %s is ready after %.1f s", specification, time.perf_counter() - began)
