"""Before the first visitor asks: a model on this machine takes a second to load, and nobody should wait for that."""

from __future__ import annotations

import logging
import time
from contextlib import closing

from datasette.database import Database

from .. import embedders
from ..connection import connect
from ..paid import PaidEmbedder
from ..store import registry
from .site import Site

_log = logging.getLogger("datasette_vec_gemini")


def warm(own: Site, db: Database) -> None:
    """Have the models of a database's indexes embed a word, but for those that cost money. Raises VecError."""
    if not db.path:
        return
    with closing(connect(db.path, read_only=True, require_vec=False)) as conn:
        wanted = dict.fromkeys(index.embedder for index in registry.indexes(conn))
    for specification in wanted:
        model = embedders.load(specification, own.access)
        if not isinstance(model, PaidEmbedder):
            began = time.perf_counter()
            model.embed_query("ready")
            _log.debug("Model %s is ready after %.1f s", specification, time.perf_counter() - began)
