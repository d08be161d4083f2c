"""Who sees what: every door by every actor, and the permissions that operators set, on both versions of Datasette."""

import asyncio
import contextlib
import json
import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from datasette.app import Datasette
from datasette.database import Database

from datasette_vec_gemini import connect, create_index, drop, find_index, sync
from datasette_vec_gemini.plugin import permissions

ONE = hasattr(Datasette, "allowed")

DATABASES = {"public": "plaza", "private table": "shelf", "private database": "vault"}
ACTORS = ["anonymous", "viewer", "editor", "root", "other"]
READERS = ["viewer", "editor", "root"]
EDITORS = ["editor", "root"]
CONFIG = {
    "allow_sql": {"id": "nobody"},
    "databases": {
        "plaza": {"permissions": {"vec-index": {"id": EDITORS}}},
        "shelf": {"tables": {"shelfnotes": {"allow": {"id": READERS}, "permissions": {"vec-index": {"id": EDITORS}}}}},
        "vault": {"allow": {"id": READERS}, "permissions": {"vec-index": {"id": EDITORS}}},
    },
}
ROWS = 37


def sees(actor: str, visibility: str) -> bool:
    return visibility == "public" or actor in READERS


@dataclass(frozen=True)
class Door:
    """An address with `{db}` and `{index}`; how it answers all others, and readers, to whom it says `shows`."""

    path: str
    others: tuple[int, ...]
    readers: tuple[int, ...] = (200,)
    shows: str = ""


OURS = [
    Door("/{db}/-/vec/{index}", (404,)),
    Door("/{db}/-/vec/{index}?q={db}canary", (404,), shows="{db}canary"),
    Door("/{db}/-/vec/{index}?q={db}canary&mode=keyword", (404,), shows="{db}canary"),
    Door("/{db}/-/vec/{index}.json", (404,)),
    Door("/{db}/-/vec/{index}.json?q={db}canary", (404,), shows="{db}canary"),
    Door("/{db}/-/vec/{index}.json?q=x&_size=nonsense", (404,), readers=(400,)),
    Door("/{db}/-/vec/{index}.csv?q={db}canary", (404,), shows="{db}canary"),
    Door("/{db}/-/vec/{index}/similar?key=1", (404,), shows="{db}canary"),
    Door("/{db}/-/vec/{index}/similar.json?key=1", (404,), shows="{db}canary"),
    Door("/{db}/-/vec/{index}/similar.csv?key=1", (404,), shows="{db}canary"),
    Door("/{db}/-/vec/{index}/similar.json?key=absent", (404,), readers=(400, 404)),
    Door("/{db}/-/vec/{index}?q={db}canary&_facet=body", (404,), shows="{db}canary"),
    Door("/{db}/-/vec/{index}.json?q={db}canary&_facet=body&_size=1&_next=2", (404,), shows="{db}canary"),
    Door("/{db}/-/vec/{index}.json?q={db}canary&body={db}canary+number+1", (404,), shows="number 1"),
    Door("/{db}/-/vec/{index}.csv?q={db}canary&mode=semantic&_dl=1", (404,), shows="{db}canary"),
    Door("/{db}/-/vec/{index}/similar?key=1&_facet=body", (404,), shows="{db}canary"),
    Door("/{db}/-/vec/{index}/similar.json?key=1&_facet=body", (404,), shows="{db}canary"),
    Door("/{db}/-/vec/{index}/map", (404,)),
    Door("/{db}/-/vec/{index}/map?q={db}canary", (404,), shows="{db}canary"),
    Door("/{db}/-/vec/{index}/map.json", (404,)),
    Door("/{db}/-/vec/{index}/map.json?q={db}canary", (404,)),
    Door("/{db}/-/vec/{index}/map?_color=body", (404,), readers=(400,)),
    Door("/{db}/-/vec/{index}/map.json?_color=absent", (404,), readers=(400,)),
    Door("/{db}/-/vec/{index}?q=x&absent=1", (404,), readers=(400,)),
    Door("/{db}/-/vec/{index}.csv?q=x&_facet=absent", (404,), readers=(400,)),
    Door("/{db}/-/vec/{index}/status", (404,), shows="{db}notes"),
    Door("/{db}/-/vec/{index}/status.json", (404,), shows="{db}notes"),
]
INDEXING = [
    Door("/{db}/-/vec-index/{db}notes", (404,), shows="{db}notes"),
    Door("/{db}/-/vec-index/{db}notes.json", (404,), shows="body"),
]
CHUNKS = "/{db}/_vec_{index}_1_chunks"
RAW = [
    *(
        Door(CHUNKS + suffix, (403,), shows="{db}canary")
        for suffix in ["", ".json", "?_shape=array", "/1", "/1.json", "?_facet=position"]
    ),
    Door(CHUNKS + ".csv", (403,), shows="position"),
    Door("/{db}/_VEC_{index}_1_CHUNKS.json", (403, 404), readers=(200, 404)),
    Door("/{db}/_vec_{index}_1_queue.json", (403,)),
    Door(CHUNKS + "/1.blob?_blob_column=embedding", (403,)),
    Door("/{db}/_vec_{index}_1_codes.json?_nocount=1", (403,)),
    Door("/{db}/_vec_{index}_1_codes/1.json", (403,)),
    *(
        # 1.0 shows nobody the tables behind a full text index.
        Door(f"/{{db}}/_vec_{{index}}_1_{name}.json", (403,), readers=(200, 403))
        for name in [
            "codes_chunks",
            "codes_rowids",
            "codes_vector_chunks00",
            "codes_info",
            "fts",
            "fts_data",
            "fts_idx",
        ]
    ),
    Door("/{db}/_vec_{index}.json", (403,), shows="{db}canary"),
    # No version of Datasette shows the page of a view that has BLOBs.
    Door("/{db}/_vec_{index}", (403,), readers=(200, 500)),
    Door("/{db}/_vec_{index}.csv", (403,)),
    *(
        Door(f"/{{db}}/{name}.json", (403,), shows="{index}")
        for name in ["_vec_indexes", "_vec_indexes/{index},1", "sqlite_sequence"]
    ),
    *(Door(f"/{{db}}/{name}.json", (403,)) for name in ["_vec_usage", "_sqlite_migrations"]),
    Door("/{db}/{db}notes.json", (403,), shows="{db}canary"),
    Door("/{db}/{db}notes", (403,), shows="/{db}/-/vec/{index}"),
]
ANY = (200, 302, 400, 403, 404, 405)
LISTS = [
    Door(path, ANY, readers=ANY)
    for path in [
        "/",
        "/.json",
        "/{db}",
        "/{db}.json",
        "/{db}?_show_hidden=1",
        "/{db}/open",
        "/{db}/open.json?_size=max",
        "/{db}/open/1.json",
        "/{db}/open.json?_search={db}canary&_fts_table=_vec_{index}_1_fts",
        *(["/-/databases.json"] if ONE else []),  # 0.65 lists all
        "/-/vec",
        "/-/vec.json?q={db}canary",
        "/-/vec?q={db}canary",
        "/{db}/-/vec.json?q={db}canary",
        "/{db}/-/vec?q={db}canary",
        "/{db}/-/vec",
        "/{db}/-/vec-index",
        "/{db}/-/vec-index/_vec_{index}_1_chunks",
        "/-/vec/status",
        "/-/vec/status.json",
        "/-/vec?q={db}canary&mode=keyword",
        "/-/vec.json?q={db}canary&mode=semantic&_size=50",
        "/{db}/-/vec-index.json",
        "/{db}/open/1?q={db}canary",
        "/{db}/{db}notes/1",
        "/{db}/{db}notes/1.json",
        "/-/jump.json?q=vec",
        "/-/jump.json?q={db}",
        "/-/tables.json",
        "/-/schema.json",
        "/{db}/-/schema.json",
        "/-/api",
        "/-/allowed.json?action=view-table",
        "/-/queries.json",
        "/-/debug/autocomplete?database={db}&table=_vec_{index}_1_chunks",
        "/{db}/-/foreign-key-targets?table=open",
        CHUNKS + "/-/autocomplete?q=a",
        CHUNKS + "/-/schema.json",
        CHUNKS + "/-/count",
        CHUNKS + "/-/fragment?_row=1",
    ]
]
DOORS = [*OURS, *INDEXING, *RAW, *LISTS]


def built(file, *tables: str) -> None:
    """A table `open` and these, each with a document that tells whose it is, and indexes on all."""
    conn = connect(file, create=True)
    for table in ("open", *tables):
        word = "welcome" if table == "open" else table.replace("notes", "canary")
        conn.execute(f"create table {table} (id integer primary key, body text)")
        conn.executemany(f"insert into {table} (body) values (?)", [(f"{word} number {n}",) for n in range(ROWS)])
        conn.commit()
        index = "openidx" if table == "open" else table.replace("notes", "idx")
        sync(conn, create_index(conn, index, table=table, columns=["body"], embedder="hashing@64"))
    conn.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list:
    folder = tmp_path_factory.mktemp("permissions")
    for name in DATABASES.values():
        built(folder / f"{name}.db", f"{name}notes")
    return [folder / f"{name}.db" for name in DATABASES.values()]


@pytest.fixture
def configured(site) -> Callable[..., Datasette]:
    """Datasette on these files, with this configuration where the installed version reads it; root has its rights."""

    def make(*files, config: dict[str, Any], **options: Any) -> Datasette:
        datasette = site(*files, **({"config": config} if ONE else {"metadata": config}), **options)
        datasette.root_enabled = True
        return datasette

    return make


@pytest.fixture(autouse=True)
def quick_errors(monkeypatch) -> None:
    """Datasette prints every refusal with the local variables of all its functions, where rich is installed."""
    monkeypatch.setattr("datasette.handle_exception.rich", None)


async def get(datasette: Datasette, path: str, actor: str) -> Any:
    cookies = {} if actor == "anonymous" else {"ds_actor": datasette.sign({"a": {"id": actor}}, "actor")}
    return await datasette.client.get(path, cookies=cookies)


def address(door: Door, db: str, index: str | None = None) -> str:
    return door.path.format(db=db, index=index or f"{db}idx")


def leaks(text: str, path: str, db: str) -> list[str]:
    """The words of a private table that an answer says, but for those that the visitor said."""
    words = [f"{db}canary", f"{db}notes", f"{db}idx", *([db] if db == "vault" else [])]
    # Datasette shows addresses and what was searched for.
    return [word for word in words if word in text.casefold() and word not in path.casefold()]


@pytest.mark.asyncio
@pytest.mark.parametrize("visibility", DATABASES)
@pytest.mark.parametrize("actor", ACTORS)
async def test_every_door_shows_readers_what_it_has_and_others_nothing(configured, files, actor, visibility) -> None:
    datasette, db = configured(*files, config=CONFIG), DATABASES[visibility]
    wrong = {}
    for door in DOORS:
        path = address(door, db)
        response = await get(datasette, path, actor)
        said = [] if sees(actor, visibility) else leaks(response.text, path, db)
        if actor in EDITORS if door in INDEXING else sees(actor, visibility):
            shown = door.shows.format(db=db, index=f"{db}idx")
            right = response.status_code in door.readers and shown in response.text
        else:
            right = response.status_code in door.others and not said
        if not right:
            wrong[path] = (response.status_code, said)
    assert wrong == {}


def test_the_matrix_is_large() -> None:
    assert len(ACTORS) * len(DATABASES) * len(DOORS) >= 200


@pytest.mark.asyncio
@pytest.mark.parametrize("actor", ["anonymous", "other"])
@pytest.mark.parametrize("door", [*OURS, *INDEXING], ids=lambda door: door.path)
async def test_what_is_forbidden_is_answered_as_what_does_not_exist(configured, files, actor, door) -> None:
    datasette = configured(*files, config=CONFIG)

    async def answer(db: str, index: str) -> tuple[int, str]:
        response = await get(datasette, address(door, db, index), actor)
        body = re.sub(r"[\d.]+ms", "", response.text)
        return response.status_code, body.replace(index, "INDEX").replace(f"{db}", "DB")

    assert await answer("shelf", "shelfidx") == await answer("shelf", "absentidx")
    assert await answer("vault", "vaultidx") == await answer("nowhere", "nowhereidx")


@pytest.mark.asyncio
@pytest.mark.parametrize("actor", ["anonymous", "viewer"])
async def test_counts_are_of_what_the_actor_may_see(configured, files, actor) -> None:
    datasette = configured(*files, config=CONFIG)
    everything = {t["name"]: t["count"] for t in (await get(datasette, "/shelf.json", "root")).json()["tables"]}
    body = (await get(datasette, "/shelf.json", actor)).json()
    told = {table["name"]: table["count"] for table in body["tables"]}
    seen = everything if actor == "viewer" else [name for name in everything if "open" in name]
    assert told == {name: everything[name] for name in seen}
    home = (await get(datasette, "/.json", actor)).json()
    (entry,) = [e for e in (home["databases"] if ONE else home.values()) if e["name"] == "shelf"]
    hidden = [table for table in body["tables"] if table["hidden"]]
    assert {table["name"] for table in body["tables"] if table["name"].startswith("_")} <= {t["name"] for t in hidden}
    assert body["hidden_count"] == entry["hidden_tables_count"] == len(hidden)
    assert entry["hidden_table_rows_sum"] == sum(table["count"] for table in hidden)
    assert entry["table_rows_sum"] == sum(t["count"] for t in body["tables"] if not t["hidden"])


RULES = [
    ({}, "anonymous", (True, False, False)),
    ({}, "viewer", (True, False, False)),
    ({}, "root", (True, True, True)),
    ({"permissions": {"vec-search": {"id": "viewer"}}}, "anonymous", (False, False, False)),
    ({"permissions": {"vec-search": {"id": "viewer"}}}, "viewer", (True, False, False)),
    # Datasette 1.0 lets a rule of the same level go over the rights of root.
    ({"permissions": {"vec-search": {"id": "viewer"}}}, "root", (False, True, True)),
    ({"permissions": {"vec-search": False}, "of_database": {"vec-search": True}}, "viewer", (True, False, False)),
    ({"of_database": {"vec-search": {"id": "viewer"}}}, "other", (False, False, False)),
    ({"of_database": {"vec-search": False}, "of_table": {"vec-search": True}}, "anonymous", (True, False, False)),
    ({"of_database": {"vec-search": True}, "of_table": {"vec-search": False}}, "root", (False, True, True)),
    ({"of_table": {"vec-search": 0}}, "viewer", (False, False, False)),
    ({"permissions": {"vec-search": 0}, "of_table": {"vec-search": 1}}, "viewer", (True, False, False)),
    ({"of_table": {"vec-search": None}}, "viewer", (True, False, False)),
    ({"of_table": {"vec-index": {"id": "editor"}}}, "editor", (True, True, False)),
    ({"of_table": {"vec-index": {"id": "editor"}}}, "root", (True, False, True)),
    ({"permissions": {"vec-index": {"id": "*"}, "vec-add": {"id": "*"}}}, "other", (True, True, True)),
    ({"permissions": {"vec-index": {"id": "*"}, "vec-add": {"id": "*"}}}, "anonymous", (True, False, False)),
    ({"permissions": {"vec-index": True, "vec-add": True}, "allow": {"id": "viewer"}}, "other", (False, False, False)),
    ({"of_table": {"vec-search": True}, "allow": {"id": "viewer"}}, "anonymous", (False, False, False)),
    ({"of_table": {"vec-search": True}, "allow": {"id": "viewer"}}, "viewer", (True, False, False)),
    ({"of_table": {"vec-search": {"unauthenticated": True}}}, "viewer", (False, False, False)),
    ({"of_table": {"vec-search": {"unauthenticated": True}}}, "anonymous", (True, False, False)),
]


def configuration(rules: dict[str, Any], spelling: str = "plazanotes") -> dict[str, Any]:
    """The rules at their levels, over the table of `plaza.db`."""
    table = {"permissions": rules.get("of_table", {})} | ({"allow": rules["allow"]} if "allow" in rules else {})
    database = {"permissions": rules.get("of_database", {}), "tables": {spelling: table}}
    return {"permissions": rules.get("permissions", {}), "databases": {"plaza": database}}


def as_actor(name: str) -> dict[str, str] | None:
    return None if name == "anonymous" else {"id": name}


def the_index(file, name: str):
    with contextlib.closing(connect(file)) as conn:
        return find_index(conn, name)


@pytest.mark.asyncio
@pytest.mark.parametrize("spelling", ["plazanotes", "PlazaNotes"])
@pytest.mark.parametrize("case", RULES)
async def test_rules_mean_the_same_on_both_versions(configured, files, case, spelling) -> None:
    rules, actor, expected = case
    datasette, index = configured(files[0], config=configuration(rules, spelling)), the_index(files[0], "plazaidx")
    await datasette.invoke_startup()
    who = as_actor(actor)
    assert (
        await permissions.may_search(datasette, who, "plaza", index),
        await permissions.may_index(datasette, who, "plaza", index.table),
        await permissions.may_add(datasette, who, "plaza", index),
    ) == expected
    status = (await get(datasette, "/plaza/-/vec/plazaidx.json", actor)).status_code
    assert status == (200 if expected[0] else 404)


@pytest.mark.asyncio
async def test_some_table_can_be_indexed_or_none_and_never_one_of_ours(configured, files) -> None:
    datasette = configured(files[0], config=configuration({"of_table": {"vec-index": {"id": "editor"}}}))
    await datasette.invoke_startup()
    for actor, any_table in [("anonymous", False), ("other", False), ("editor", True), ("root", True)]:
        assert await permissions.may_index(datasette, as_actor(actor), "plaza", None) == any_table
    root = as_actor("root")
    for table in ["_vec_plazaidx_1_chunks", "_vec_plazaidx", "_VEC_INDEXES", "sqlite_sequence", "absent"]:
        assert not await permissions.may_index(datasette, root, "plaza", table)
    assert await permissions.may_index(datasette, root, "plaza", "OPEN")
    assert not await permissions.may_index(datasette, root, "nowhere", None)
    assert not await permissions.may_index(datasette, root, "nowhere", "open")


@pytest.fixture
def private(tmp_path, configured) -> Callable[..., Datasette]:
    """`site.db`, where the table `secretnotes` is for the viewer only and has no index yet."""
    conn = connect(tmp_path / "site.db", create=True)
    conn.executescript(
        """
        create table secretnotes (id integer primary key, body text);
        insert into secretnotes (body) values ('secretcanary');
        create table open (id integer primary key, body text);
        insert into open (body) values ('welcome'), ('hello');
        """
    )
    conn.close()

    def make(**more: Any) -> Datasette:
        allow = {"allow": {"id": "viewer"}}
        tables = {"tables": {"secretnotes": allow, "secretlist": allow, "moved": allow}}
        return configured(tmp_path / "site.db", config={"databases": {"site": tables}} | more)

    return make


@contextlib.contextmanager
def opened(path) -> Iterator[Any]:
    with contextlib.closing(connect(path)) as conn:
        yield conn
        conn.commit()


def indexed(path, name: str, table: str = "secretnotes", **options: Any) -> None:
    with opened(path) as conn:
        sync(conn, create_index(conn, name, table=table, columns=["body"], embedder="hashing@64", **options))


async def statuses(datasette: Datasette, actor: str, *names: str) -> list[int]:
    return [(await get(datasette, f"/site/{name}.json?_shape=array", actor)).status_code for name in names]


@pytest.mark.asyncio
async def test_an_index_is_private_from_the_moment_it_is_made_by_any_program(private, tmp_path) -> None:
    path, datasette = tmp_path / "site.db", private()
    assert await statuses(datasette, "anonymous", "open", "secretnotes", "_vec_later_1_chunks") == [200, 403, 404]
    indexed(path, "later")
    ours = ["_vec_later_1_chunks", "_vec_later_1_queue", "_vec_later", "_vec_indexes"]
    assert await statuses(datasette, "anonymous", *ours) == [403] * 4
    assert await statuses(datasette, "viewer", *ours) == [200] * 4
    # The rule is that of the name which the table has now.
    with opened(path) as conn:
        conn.execute("alter table secretnotes rename to moved")
    assert await statuses(datasette, "anonymous", *ours) == [403] * 4
    with opened(path) as conn:
        conn.execute("alter table moved rename to plain")
    assert await statuses(datasette, "anonymous", *ours) == [200] * 4
    with opened(path) as conn:
        drop(conn, find_index(conn, "later"))
    assert await statuses(datasette, "viewer", *ours) == [404, 404, 404, 200]


@pytest.mark.asyncio
async def test_a_database_that_is_attached_later_is_looked_at_too(private, configured, tmp_path) -> None:
    datasette = private()
    await datasette.invoke_startup()
    other = tmp_path / "other.db"
    built(other, "secretnotes")
    datasette.add_database(Database(datasette, path=str(other), is_mutable=True), name="site2")
    (datasette.config if ONE else datasette._metadata_local)["databases"]["site2"] = {"allow": {"id": "viewer"}}  # noqa: SLF001
    for actor, status in [("anonymous", 403), ("viewer", 200)]:
        assert (await get(datasette, "/site2/_vec_secretidx_1_chunks.json", actor)).status_code == status


@pytest.mark.asyncio
async def test_names_that_begin_alike_are_told_apart(private, tmp_path) -> None:
    path = tmp_path / "site.db"
    indexed(path, "docs", "open")
    indexed(path, "docs_2", "secretnotes")
    indexed(path, "docs_2_2", "open")
    datasette = private()
    for names, status in [
        (["_vec_docs_1_chunks", "_vec_docs", "_vec_docs_2_2_1_chunks", "_vec_docs_2_2", "_vec_docs_1_queue"], 200),
        (["_vec_docs_2_1_chunks", "_vec_docs_2", "_vec_docs_2_1_queue", "_vec_indexes", "sqlite_sequence"], 403),
    ]:
        assert await statuses(datasette, "anonymous", *names) == [status] * len(names)
        assert await statuses(datasette, "viewer", *names) == [200] * len(names)


@pytest.mark.asyncio
async def test_an_index_over_a_view_is_as_private_as_the_view_and_one_over_ours_as_its_source(
    private, tmp_path
) -> None:
    path = tmp_path / "site.db"
    with opened(path) as conn:
        conn.execute("create view secretlist as select id, body from open")
        conn.execute("create view allowed as select id, body from secretnotes")
    indexed(path, "listed", "secretlist", key=["id"])
    indexed(path, "allowed", "allowed", key=["id"])
    indexed(path, "docs", "secretnotes")
    with opened(path) as conn:
        conn.execute("update _vec_indexes set \"table\" = '_vec_docs_1_chunks' where name = 'allowed'")
        conn.execute("create table so_that_the_schema_changes (a)")
    datasette = private()
    assert await statuses(datasette, "anonymous", "_vec_listed_1_chunks", "_vec_allowed_1_chunks") == [403, 403]
    assert await statuses(datasette, "viewer", "_vec_listed_1_chunks", "_vec_allowed_1_chunks") == [200, 200]


@pytest.mark.asyncio
async def test_what_is_left_of_an_index_without_its_table_is_as_private_as_that_was(private, tmp_path) -> None:
    path = tmp_path / "site.db"
    indexed(path, "docs")
    index = the_index(path, "docs")
    with opened(path) as conn:
        conn.execute("drop table secretnotes")
    datasette = private()
    await datasette.invoke_startup()
    assert await statuses(datasette, "anonymous", "_vec_docs_1_chunks") == [403]
    assert await statuses(datasette, "viewer", "_vec_docs_1_chunks") == [200]
    for actor in ["viewer", "root"]:
        assert not await permissions.may_search(datasette, as_actor(actor), "site", index)
        assert not await permissions.may_add(datasette, as_actor(actor), "site", index)
        assert (await get(datasette, "/site/-/vec/docs", actor)).status_code == 404


@pytest.mark.asyncio
async def test_nobody_sees_the_tables_of_a_registry_that_cannot_be_read(private, tmp_path) -> None:
    path = tmp_path / "site.db"
    indexed(path, "docs", "open")
    with opened(path) as conn:
        conn.execute("update _vec_indexes set name = '!'")
        conn.execute("create table so_that_the_schema_changes (a)")
    datasette = private()
    for actor in ["anonymous", "viewer", "root"]:
        assert await statuses(datasette, actor, "_vec_docs_1_chunks", "_vec_indexes", "open") == [403, 403, 200]


@pytest.mark.asyncio
async def test_rules_of_the_operator_for_our_own_tables_add_to_ours(private, configured, tmp_path) -> None:
    indexed(tmp_path / "site.db", "docs")
    indexed(tmp_path / "site.db", "plain", "open")
    tables = {
        "secretnotes": {"allow": {"id": "viewer"}},
        "_vec_docs_1_chunks": {"allow": True},
        "_vec_plain_1_chunks": {"allow": {"id": "other"}},
    }
    datasette = configured(tmp_path / "site.db", config={"databases": {"site": {"tables": tables}}})
    names = ["_vec_docs_1_chunks", "_vec_plain_1_chunks"]
    assert await statuses(datasette, "anonymous", *names) == [403, 403]
    assert await statuses(datasette, "viewer", *names) == [200, 403]
    assert await statuses(datasette, "other", *names) == [403, 200]


@pytest.mark.asyncio
@pytest.mark.parametrize("word", ["secretcanary", "nothing"])
async def test_a_public_table_is_no_way_to_search_a_private_one(private, tmp_path, word) -> None:
    indexed(tmp_path / "site.db", "docs")
    indexed(tmp_path / "site.db", "plain", "open")
    datasette = private(allow_sql=False)
    for name in ["_vec_docs_1_fts", "_VEC_docs_1_FTS"]:
        for search in [f"_search={word}", f"_search_text={word}", ""]:
            response = await get(datasette, f"/site/open.json?_fts_table={name}&{search}", "anonymous")
            assert response.status_code == 403
    # What 0.65 lets everybody do with a public table it still does.
    found = await get(datasette, "/site/open.json?_fts_table=_vec_plain_1_fts&_fts_pk=id&_search=hello", "anonymous")
    assert found.status_code == (400 if ONE else 200)


@pytest.mark.asyncio
async def test_our_tables_are_kept_out_of_lists_and_the_operator_s_metadata_stays(configured, files) -> None:
    tables = {
        "open": {"title": "Open to all", "hidden": True},
        "_vec_plazaidx_1_chunks": {"title": "Chunks"},
        "_vec_openidx_1_chunks": {"hidden": False},
    }
    metadata = {"title": "Site", "databases": {"plaza": {"source": "Somewhere", "tables": tables}}}
    datasette = configured(files[0], config={}, **({"metadata": metadata} if ONE else {}))
    if not ONE:
        datasette._metadata_local = metadata  # noqa: SLF001 - the fixture's configuration is its metadata
    for _ in range(2):
        told = {t["name"]: t["hidden"] for t in (await get(datasette, "/plaza.json", "anonymous")).json()["tables"]}
        shown = {name for name, hidden in told.items() if not hidden}
        # 1.0 hides what begins with an underscore whatever is said.
        assert shown == {"plazanotes", "sqlite_sequence"} | (set() if ONE else {"_vec_openidx_1_chunks"})
        assert "Open to all" in (await get(datasette, "/plaza/open", "anonymous")).text
        assert "Chunks" in (await get(datasette, "/plaza/_vec_plazaidx_1_chunks", "anonymous")).text
        assert "Somewhere" in (await get(datasette, "/plaza", "anonymous")).text
    if not ONE:
        assert (await get(datasette, "/-/metadata.json", "anonymous")).json() == metadata


def warnings(caplog) -> list[str]:
    return [record.message for record in caplog.records if "private" in record.message]


@pytest.mark.asyncio
async def test_sql_that_shows_private_tables_is_warned_of_once_with_the_remedy(private, tmp_path, caplog) -> None:
    indexed(tmp_path / "site.db", "docs")
    indexed(tmp_path / "site.db", "again")
    indexed(tmp_path / "site.db", "plain", "open")
    with caplog.at_level(logging.WARNING, logger="datasette_vec_gemini"):
        datasette = private()
        await datasette.invoke_startup()
        await get(datasette, "/", "anonymous")
    (message,) = warnings(caplog)
    for words in ["'secretnotes' of database 'site' (index 'docs')", "(index 'again')", "allow_sql: {id: root}"]:
        assert words in message
    assert "plain" not in message
    assert str(tmp_path) not in message


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "more",
    [
        {"allow_sql": {"id": "root"}},
        {"allow_sql": False},
        {"default_allow_sql": False},
        {"databases": {"site": {"allow": {"id": "viewer"}}}},
        {"allow": {"id": "viewer"}},
        {"databases": {}},
    ],
)
async def test_where_sql_is_closed_or_nothing_private_there_is_no_warning(
    private, configured, tmp_path, caplog, more
) -> None:
    private()
    settings = {"default_allow_sql": False} if "default_allow_sql" in more else {}
    indexed(tmp_path / "site.db", "docs")
    rule = {"databases": {"site": {"tables": {"secretnotes": {"allow": {"id": "viewer"}}}}}}
    with caplog.at_level(logging.WARNING, logger="datasette_vec_gemini"):
        await configured(tmp_path / "site.db", config=rule | more, settings=settings).invoke_startup()
    assert warnings(caplog) == []


@pytest.mark.skipif(not ONE, reason="Datasette 0.65 writes no tables")
@pytest.mark.asyncio
async def test_who_may_write_but_not_view_neither_reads_nor_changes_an_index(configured, private, tmp_path) -> None:
    private()
    indexed(tmp_path / "site.db", "docs")
    may = {action: {"id": ["other", "viewer"]} for action in ["insert-row", "update-row", "delete-row", "drop-table"]}
    rule = {"permissions": may, "tables": {"secretnotes": {"allow": {"id": "viewer"}}}}
    datasette = configured(tmp_path / "site.db", config={"databases": {"site": rule}})

    async def post(path: str, body: dict[str, Any], actor: str) -> int:
        return (await datasette.client.post(f"/site/{path}", json=body, actor={"id": actor})).status_code

    requests = [
        ("_vec_docs_1_chunks/1/-/update", {"update": {"attempts": 1}, "return": True}),
        ("_vec_docs_1_chunks/-/insert", {"row": {"id": 1}, "ignore": True, "return": True}),
        ("_vec_indexes/docs,1/-/update", {"update": {"checked": None}}),
        ("_vec_docs_1_chunks/-/drop", {}),
    ]
    assert [await post(path, body, "other") for path, body in requests] == [403] * 4
    assert [await post(path, body, "viewer") for path, body in requests] == [200, 201, 200, 200]


@pytest.mark.asyncio
async def test_a_page_asks_about_a_source_as_often_however_many_tables_its_index_has(private, tmp_path) -> None:
    datasette = private()

    async def asked() -> int:
        datasette._permission_checks.clear()  # noqa: SLF001
        await get(datasette, "/site", "other")
        return sum("secretnotes" in str(check) for check in datasette._permission_checks)  # noqa: SLF001

    await asked()
    without = await asked()
    indexed(tmp_path / "site.db", "docs")
    # For the actor, for the anonymous one to mark what is private, and for the menu; there are a dozen tables.
    assert await asked() <= without + 5


@pytest.mark.asyncio
async def test_many_visitors_at_once_are_not_mistaken_for_each_other(configured, files) -> None:
    datasette = configured(*files, config=CONFIG)
    await datasette.invoke_startup()
    actors = ["anonymous", "viewer", "other", "editor"] * 6
    path = "/shelf/_vec_shelfidx_1_chunks.json"
    answers = await asyncio.gather(*(get(datasette, path, actor) for actor in actors))
    assert [a.status_code for a in answers] == [200 if sees(actor, "private table") else 403 for actor in actors]
    assert json.loads(answers[1].text)
