"""Where Datasette 0.65 and 1.0 differ; told apart by what each has, never by its version number."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from inspect import signature
from typing import Any, TypeVar
from urllib.parse import urlencode

from datasette.app import Datasette
from datasette.database import Database
from datasette.utils import actor_matches_allow, tilde_decode

from ..driver import sqlite3
from ..errors import InvalidSetting, shown
from .ownership import fold

Actor = Mapping[str, Any] | None
T = TypeVar("T")


def public_settings(datasette: Datasette, plugin: str) -> list[dict[str, Any]]:
    """A plugin's settings at every level, where this version shows its metadata unredacted; else none."""
    if hasattr(datasette, "allowed"):
        return []

    def found(block: object) -> Iterator[dict[str, Any]]:
        if not isinstance(block, dict):
            return
        plugins = block.get("plugins")
        if isinstance(plugins, dict) and isinstance(plugins.get(plugin), dict):
            yield plugins[plugin]
        for level in ("databases", "tables"):
            for inner in (block.get(level) or {}).values() if isinstance(block.get(level), dict) else ():
                yield from found(inner)

    return list(found(datasette.metadata()))


def check_configuration(datasette: Datasette) -> None:
    """Raise InvalidSetting where a block of the configuration is none.

    Datasette itself fails there without saying where: 1.0 as it starts, 0.65 at every visit of the table.
    """
    for _ in _plugins(datasette):
        pass


def configured(datasette: Datasette, plugin: str) -> list[tuple[str, str | None]]:
    """The (database, None) and (database, table) that have settings for a plugin. Raises InvalidSetting."""
    return [
        (database, table)
        for database, table, plugins in _plugins(datasette)
        if database is not None and plugin in plugins
    ]


def _plugins(datasette: Datasette) -> Iterator[tuple[str | None, str | None, Mapping[str, Any]]]:
    """The `plugins` of the instance, of each database and of each table."""
    is_strict = hasattr(datasette, "allowed")
    root = datasette.config if is_strict else datasette.metadata()

    def block(found: object, where: str, what: str) -> Mapping[str, Any]:
        if not isinstance(found, Mapping):
            raise InvalidSetting(f"{where}: expected {what}, found {shown(found)}")
        return found

    def plugins(of: Mapping[str, Any], where: str = "") -> Mapping[str, Any]:
        return block(of.get("plugins") or {}, f"plugins{where}", "the name of each plugin with its settings")

    yield None, None, plugins(root)
    databases = root.get("databases", {})
    if databases is None and not is_strict:
        return
    for database, found in block(databases, "databases", "the name of each database with its settings").items():
        name = f"database {database}"
        own = block(found, name, "its settings")
        yield database, None, plugins(own, f" of {name}")
        tables = own.get("tables", {})
        for table, inner in block(tables, f"tables of {name}", "the name of each table with its settings").items():
            where = f"table {table} of {name}"
            yield database, table, plugins(block(inner, where, "its settings"), f" of {where}")


async def may_view(datasette: Datasette, actor: Actor, database: str, table: str) -> bool:
    """Whether the actor may see a table or view, by the rules of the table, of its database and of the instance."""
    allowed: bool
    if hasattr(datasette, "allowed"):
        from datasette.resources import TableResource

        resource = TableResource(database=database, table=table)
        allowed = await datasette.allowed(action="view-table", resource=resource, actor=actor)
    else:
        # 0.65 asks a plain `view-table` of the table's own rules only; this is how its table page asks.
        permissions = [("view-table", (database, table)), ("view-database", database), "view-instance"]
        allowed, _ = await datasette.check_visibility(actor, permissions=permissions)
    return allowed


async def may_run_sql(datasette: Datasette, actor: Actor, database: str) -> bool:
    """Whether the actor may run any SQL over a database."""
    if hasattr(datasette, "allowed"):
        from datasette.resources import DatabaseResource

        resource = DatabaseResource(database=database)
        return bool(await datasette.allowed(action="execute-sql", resource=resource, actor=actor))
    return await may_view_database(datasette, actor, database) and bool(
        await datasette.permission_allowed(actor, "execute-sql", database, default=True)
    )


async def permitted(datasette: Datasette, actor: Actor, action: str, *, default: bool = False) -> bool:
    """Whether the actor has one of our permissions on the whole instance; `default` as in `permitted_on`."""
    if hasattr(datasette, "allowed"):
        return bool(await datasette.allowed(action=action, actor=actor))
    verdict = _verdict(datasette, actor, action, default=default)
    return bool(await datasette.permission_allowed(actor, action, default=verdict))


async def permitted_on(
    datasette: Datasette, actor: Actor, action: str, database: str, table: str, *, default: bool = False
) -> bool:
    """Whether the actor has one of our permissions on a table, which nobody has who may not view the table.

    On 0.65, which knows no declared permissions, `default` is the answer where no rule has one.
    """
    if hasattr(datasette, "allowed"):
        from datasette.resources import TableResource

        resource = TableResource(database=database, table=table)
        return bool(await datasette.allowed(action=action, resource=resource, actor=actor))
    verdict = _verdict(datasette, actor, action, database, table, default=default)
    if not await datasette.permission_allowed(actor, action, resource=(database, table), default=verdict):
        return False
    return await may_view(datasette, actor, database, table)


async def tables_permitted(
    datasette: Datasette, actor: Actor, action: str, database: str, *, default: bool = False
) -> list[str]:
    """The tables and views of a database on which the actor has one of our permissions."""
    if hasattr(datasette, "allowed"):
        page = await datasette.allowed_resources(action, actor, parent=database, limit=1000)
        return [resource.child async for resource in page.all()]
    db = datasette.databases[database]
    names = [*await db.table_names(), *await db.view_names()]
    return [name for name in names if await permitted_on(datasette, actor, action, database, name, default=default)]


def _verdict(
    datasette: Datasette, actor: Actor, action: str, database: str = "", table: str = "", *, default: bool
) -> bool:
    """What 1.0 would say by the `permissions:` blocks of the metadata, which 0.65 does not read itself.

    The innermost block that names the action decides; root has every right that the outermost does not take away.
    """
    root = _block(datasette.metadata())
    levels = [root]
    if database:
        inner = _block(root, "databases", database)
        names = _block(inner, "tables")
        # SQLite and 1.0 take no notice of the case of a table's name; of two spellings the stricter counts.
        spellings = [_block(block) for name, block in names.items() if fold(str(name)) == fold(table)]
        if verdicts := [_matches(actor, block, action) for block in spellings if _has_rule(block, action)]:
            return all(verdicts)
        levels.insert(0, inner)
    for block in levels:
        if _has_rule(block, action):
            return _matches(actor, block, action)
    return default or (actor is not None and actor.get("id") == "root")


def _block(found: object, *path: str) -> Mapping[str, Any]:
    """What stands at a path of the configuration; nothing where that is no mapping."""
    for name in path:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _has_rule(block: Mapping[str, Any], action: str) -> bool:
    rules = block.get("permissions")
    return rules.get(action) is not None if isinstance(rules, Mapping) else rules is not None


def _matches(actor: Actor, block: Mapping[str, Any], action: str) -> bool:
    """Whether a block's rule lets the actor; one that cannot be understood lets nobody."""
    allow = _block(block, "permissions").get(action)
    if isinstance(allow, int):  # numbers come from the command line's `-s`
        return bool(allow)
    return isinstance(allow, Mapping) and bool(actor_matches_allow(actor, allow))


def declared(name: str, description: str, *, of_tables: bool) -> Any:
    """One of our permissions as 1.0 wants it declared; who may not view a table has none on it."""
    from datasette.permissions import Action
    from datasette.resources import TableResource

    if of_tables:
        return Action(name=name, description=description, resource_class=TableResource, also_requires="view-table")
    return Action(name=name, description=description)


def is_about_tables(datasette: Datasette, action: str) -> bool:
    """Whether a permission of 1.0 is one on tables: to see, change or drop them."""
    from datasette.resources import TableResource

    declaration = datasette.actions.get(action)
    return declaration is not None and declaration.resource_class is TableResource


def allow_everybody(reason: str) -> Any:
    """A rule of 1.0 that any other one of the instance, a database or a table goes over."""
    from datasette.permissions import PermissionSQL

    return PermissionSQL.allow(reason=reason)


def deny(pairs: Iterable[tuple[str, str]], reason: str) -> Any:
    """A rule of 1.0 against these tables, each with its database; no rule that allows goes over it."""
    from datasette.permissions import PermissionSQL

    rows = json.dumps([[database, table, reason] for database, table in pairs])
    # Datasette repeats each statement with other parameters for the anonymous actor, by plain replacement: a name that
    # begins another one would break it.
    return PermissionSQL(
        sql="""
        select json_extract(value, '$[0]') as parent, json_extract(value, '$[1]') as child, 0 as allow,
            json_extract(value, '$[2]') as reason
        from json_each(:datasette_vec_gemini_denied)
        """,
        params={"datasette_vec_gemini_denied": rows},
    )


def sql_url(datasette: Datasette, database: str, sql: str) -> str:
    """The address of the page that runs a statement over a database and shows it for changing."""
    page = "/-/query" if hasattr(datasette, "allowed") else ""
    return f"{datasette.urls.database(database)}{page}?{urlencode({'sql': sql})}"


async def saved_sql(datasette: Datasette, path: str) -> str:
    """The statement of the query whose page has this path; empty where it is another page's."""
    prefix = datasette.setting("base_url").rstrip("/")
    found = re.fullmatch(r"/([^/]+)/([^/.]+)(\.\w+)?", path.removeprefix(prefix))
    if not found:
        return ""
    database, name = map(tilde_decode, found.groups()[:2])
    if database not in datasette.databases:
        return ""
    if hasattr(datasette, "get_query"):
        query = await datasette.get_query(database, name)
        return query.sql if query else ""
    query = await datasette.get_canned_query(database, name, None)
    return str(query.get("sql", "")) if query else ""


async def may_view_database(datasette: Datasette, actor: Actor, database: str) -> bool:
    """Whether the actor may see that there is a database."""
    if hasattr(datasette, "allowed"):
        from datasette.resources import DatabaseResource

        resource = DatabaseResource(database=database)
        return bool(await datasette.allowed(action="view-database", resource=resource, actor=actor))
    visible, _ = await datasette.check_visibility(actor, permissions=[("view-database", database), "view-instance"])
    return bool(visible)


def has_row_menu(datasette: Datasette) -> bool:
    """Whether the page of a row has a menu of actions."""
    return hasattr(datasette, "allowed")


async def written(db: Database, work: Callable[[sqlite3.Connection], T]) -> T:
    """What `work` comes to on the thread that writes, with no transaction around it: it makes its own."""
    # 1.0 begins one unless told not to, in which `pragma foreign_keys` has no effect.
    is_told = "transaction" in signature(Database.execute_write_fn).parameters
    result: T = await db.execute_write_fn(work, **({"transaction": False} if is_told else {}))
    return result
