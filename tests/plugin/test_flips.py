"""An index that is rebuilt, dropped or made anew by another program between being looked up and being read."""

from contextlib import closing

import pytest
from datasette import hookimpl
from test_turns import Plugin, plugged

from datasette_vec_gemini import connect, create_index, drop, find_index, rebuild, sync

PAGES = [
    "/library/-/vec/docs",
    "/library/-/vec/docs.json",
    "/library/-/vec/docs?q=parse+dates",
    "/library/-/vec/docs.json?q=parse+dates",
    "/library/-/vec/docs.json?q=parse+dates&mode=semantic",
    "/library/-/vec/docs.json?q=parse+dates&mode=keyword",
    "/library/-/vec/docs.json?q=nothing+of+it&mode=keyword",
    "/library/-/vec/docs/similar.json?key=3",
    "/library/-/vec/docs/map.json",
    "/library/-/vec/docs/map.json?q=parse+dates",
    "/library/-/vec/docs/map?q=parse+dates",
    "/library/-/vec/docs/status.json",
    "/library/-/vec/docs/status",
]


class Meanwhile(Plugin):
    """Changes the file when it is asked for the first time who may search: that is once an index was looked up."""

    def __init__(self, file, change) -> None:
        self.file, self.change = file, change

    def _asked(self, action) -> None:
        if action == "vec-search" and self.change:
            change, self.change = self.change, None
            with closing(connect(self.file)) as conn:
                change(conn)

    @hookimpl
    def permission_allowed(self, action) -> None:
        self._asked(action)

    @hookimpl
    def permission_resources_sql(self, action) -> None:
        self._asked(action)


def flip(conn):
    rebuild(conn, find_index(conn, "docs"), embedder="hashing@128")


def same_model(conn):
    rebuild(conn, find_index(conn, "docs"), quantize="int8", embedder="hashing@64")


def gone(conn):
    drop(conn, find_index(conn, "docs"))


def of_another_table(conn):
    gone(conn)
    conn.executescript("create table secret (id integer primary key, body text); insert into secret values (1, 'hush')")
    sync(conn, create_index(conn, "docs", table="secret", columns=["body"], embedder="hashing@64"))


async def answered(datasette, file, change, path):
    """The answer during the change and the one after it."""
    plugin = Meanwhile(file, change)
    with plugged(plugin):
        response = await datasette.client.get(path)
    assert plugin.change is None
    return response, await datasette.client.get(path)


@pytest.mark.asyncio
@pytest.mark.parametrize("change", [flip, same_model])
@pytest.mark.parametrize("path", PAGES)
async def test_a_generation_that_takes_over_meanwhile_answers(site, library, path, change) -> None:
    during, after = await answered(site(library), library, change, path)
    assert (during.status_code, after.status_code) == (200, 200)
    if ".json" in path:
        during, after = during.json(), after.json()
        for part in ("hits", "nearest", "notices", "rows", "embedder", "points"):
            assert during.get(part) == after.get(part)


@pytest.mark.asyncio
@pytest.mark.parametrize("change", [gone, of_another_table])
@pytest.mark.parametrize("path", PAGES)
async def test_an_index_that_is_gone_meanwhile_is_answered_as_one_that_never_was(site, library, path, change) -> None:
    private = {"databases": {"library": {"tables": {"secret": {"allow": False}}}}}
    during, after = await answered(site(library, metadata=private), library, change, path)
    assert (during.status_code, after.status_code) == (404, 404)
    assert "secret" not in during.text


@pytest.mark.asyncio
@pytest.mark.parametrize("path", ["/-/vec.json?q=parse+dates", "/-/vec?q=parse+dates", "/-/vec/status.json"])
async def test_what_lists_all_indexes_answers_whatever_happens_to_one(site, library, path) -> None:
    during, after = await answered(site(library), library, flip, path)
    assert (during.status_code, after.status_code) == (200, 200)
    if path.startswith("/-/vec.json"):
        assert during.json()["groups"] == after.json()["groups"]
        assert during.json()["groups"][0]["hits"]
    elif path.endswith(".json"):
        (row,) = during.json()["databases"][0]["indexes"]
        assert row["documents"] == 25
    during, _ = await answered(site(library), library, gone, path)
    assert during.status_code == 200
    if path.startswith("/-/vec.json"):
        assert during.json()["groups"] == []
