"""What the buttons on the status page of an index do: start, pause, resume and cancel its jobs, and drop it."""

from __future__ import annotations

import asyncio
from contextlib import closing
from functools import partial
from typing import cast, get_args

from datasette.database import Database

from .. import embedders, indexing
from ..connection import connect
from ..domain import Index
from ..errors import InvalidSetting, UsageError
from ..paid import PaidEmbedder
from ..store import jobs as table
from ..store import registry
from ..store.jobs import JobKind, JobState
from . import forms
from .declared import obstacle
from .site import Site

_END_SECONDS = 5.0
_ENDINGS: dict[str, JobState] = {"pause": "paused", "cancel": "cancelled"}


async def act(own: Site, db: Database, index: Index, pairs: forms.Pairs) -> str:
    """Do what a button says; what to tell once the index is gone, else nothing. Raises VecError."""
    if reason := obstacle(db):
        raise UsageError(reason)
    action, kind = forms.field(pairs, "action"), forms.field(pairs, "kind")
    if action in _ENDINGS:
        await asyncio.to_thread(own.jobs.end, db.path, index.name, _ENDINGS[action])
    elif action in {"start", "resume"} and kind in get_args(JobKind):
        work = partial(_start, own, db, index, cast("JobKind", kind), pairs, resumes=action == "resume")
        await asyncio.to_thread(work)
    elif action == "drop":
        if forms.field(pairs, "name") != index.name:
            raise UsageError(f"nothing was dropped: type the name of the index, {index.name}, to confirm it")
        return await asyncio.to_thread(_drop, own, db, index)
    else:
        raise UsageError("there is no such button: go back and reload the page")
    return ""


def _start(own: Site, db: Database, index: Index, kind: JobKind, pairs: forms.Pairs, *, resumes: bool) -> None:
    with_full = forms.field(pairs, "full") == "1"
    max_usd, goes_on = forms.budget(pairs), None
    with closing(connect(db.path, read_only=True, require_vec=False)) as conn:
        if resumes:
            known = {job.kind: job for job in table.of_index(conn, index.name)}
            goes_on = known.get(kind)
        begun = registry.building(conn, index.name) if kind == "rebuild" else None
    model = embedders.load((begun or index).embedder, own.access)
    may_spend = True
    if kind != "verify" and isinstance(model, PaidEmbedder):
        # What is made anew without another model needs no vector, and what lacks one may go on lacking it.
        may_spend = begun is not None or kind == "sync"
        if may_spend:
            model.require_key()
        if max_usd is not None:
            goes_on = None
        elif may_spend and (goes_on is None or (goes_on.max_usd is None and own.access.daily_usd is None)):
            raise InvalidSetting(f"{model.name} costs money: say how many dollars this may cost at most")
    own.jobs.start(
        db.path, index.name, kind, own.access, max_usd=max_usd, full=with_full, may_spend=may_spend, goes_on=goes_on
    )


def _drop(own: Site, db: Database, index: Index) -> str:
    """Drop an index with whatever is under way for it, which finds it gone at its next step."""
    run = own.jobs.find(db.path, index.name)
    own.jobs.end(db.path, index.name, "cancelled")
    with closing(connect(db.path)) as conn:
        indexing.drop(conn, index)
    if run:  # so that the next index of that name may have a job at once
        run.over.wait(_END_SECONDS)
    told = f"The index {index.name} was dropped; table {index.table} is as it was"
    if any(declared.name.lower() == index.name.lower() for declared in own.declarations.get(db.name, ())):
        return f"{told}. The configuration declares the index, so the next start of the server makes it again"
    return told
