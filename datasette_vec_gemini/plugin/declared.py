"""Indexes that the configuration of a table declares: made where they are missing, never changed where they differ."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

from datasette.database import Database

from .. import embedders
from ..config import Declaration
from ..connection import connect
from ..domain import Index
from ..driver import sqlite3
from ..errors import IndexNotFound, VecError
from ..indexing import create_index, plan_index
from ..paid import PaidEmbedder
from ..schema import source_key
from ..store import registry
from .site import Site

_log = logging.getLogger("datasette_vec_gemini")


def obstacle(db: Database) -> str:
    """Why nothing can be indexed in a database here; empty where it can."""
    if not db.path:
        return "the database lives in memory only: indexing needs a file"
    if not db.is_mutable:
        return "the database is served as immutable: indexing is off, searching works"
    if not os.access(db.path, os.W_OK) or not os.access(Path(db.path).absolute().parent, os.W_OK):
        return "the file or its directory cannot be written: indexing is off, searching works"
    return ""


def make(own: Site, db: Database) -> None:
    """Make the declared indexes of a database that are missing, and note what stands in the way of the others."""
    _note(own, db, makes=True)


def compare(own: Site, db: Database) -> None:
    """Note anew what is not as declared, and make nothing."""
    _note(own, db, makes=False)


def _note(own: Site, db: Database, *, makes: bool) -> None:
    for declaration in own.declarations.get(db.name, ()):
        place = db.name, declaration.name.lower()
        before = own.problems.get(place)
        try:
            problem = _problem(own, db, declaration, makes=makes)
        except (VecError, sqlite3.Error) as error:
            problem = str(error)
        own.problems[place] = problem
        if problem and problem != before:
            _log.warning("Declared index %s of database %s: %s", declaration.name, db.name, problem)


def _problem(own: Site, db: Database, declaration: Declaration, *, makes: bool) -> str:
    """Make a declared index, or say why it is not there as declared."""
    model = embedders.load(declaration.embedder, own.access)
    arguments = asdict(declaration) | {"embedder": model}
    blocked = obstacle(db)
    if not db.path:
        return blocked
    with closing(connect(db.path, read_only=True, require_vec=False)) as conn:
        wanted = plan_index(conn, **arguments)
        found = _found(conn, declaration.name)
    if found or blocked:
        return " ".join(_differences(found, wanted, db)) if found else blocked
    if isinstance(model, PaidEmbedder):
        if own.access.daily_usd is None:
            return (
                f"it is not made, because {model.name} costs money and nobody is there to agree to that: set "
                "daily_usd, or make it by hand with a budget"
            )
        model.require_key()
    if not makes:
        return "it is not there: the next start of the server makes it"
    with closing(connect(db.path)) as conn:
        create_index(conn, **arguments)
    own.jobs.start(db.path, declaration.name, "sync", own.access)
    return ""


def _found(conn: sqlite3.Connection, name: str) -> Index | None:
    try:
        return registry.find(conn, name)
    except IndexNotFound:
        return None


def _differences(found: Index, wanted: Index, db: Database) -> Iterator[str]:
    """What is not as declared, with the command that changes it."""
    file = Path(db.path).name
    fixed = {
        "table": (found.table, wanted.table),
        "columns": (", ".join(found.columns), ", ".join(wanted.columns)),
        "template": (found.template, wanted.template),
        "filter_columns": (", ".join(found.filter_columns), ", ".join(wanted.filter_columns)),
        "key": (", ".join(source_key(found)), ", ".join(source_key(wanted))),
    }
    for name, (has, declares) in fixed.items():
        if has != declares:
            yield (
                f"Its {name} is {has or 'not set'}, declared is {declares or 'none'}: run `datasette vec drop {file} "
                f"{found.name}` and start the server again, or change the declaration."
            )
    if (found.fingerprint, found.quantize) != (wanted.fingerprint, wanted.quantize):
        yield (
            f"It was made with {found.embedder} and {found.quantize} codes, declared are {wanted.embedder} and "
            f"{wanted.quantize}: run `datasette vec rebuild {file} {found.name} --embedder {wanted.embedder} "
            f"--quantize {wanted.quantize}`, or change the declaration."
        )
