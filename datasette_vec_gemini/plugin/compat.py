"""Where Datasette 0.65 and 1.0 differ; told apart by what each has, never by its version number."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from datasette.app import Datasette


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


async def may_view(datasette: Datasette, actor: Mapping[str, Any] | None, database: str, table: str) -> bool:
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
