"""Settings of the plugin: what a configuration says at the instance, the database and the table, merged and checked."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from . import embedders
from .access import PREFIX, SETTINGS, Access
from .domain import MAX_HITS, MODES, Mode, Quantize, check_name, check_quantize
from .errors import InvalidName, InvalidSetting, shown
from .gate import SQL_EMBEDDING, TEXTS_PER_MINUTE, Gate


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """`mode` and `page_size` are what the search page and its JSON begin with.

    `columns_shown` stand under each hit of the page; None is the index's filter columns.
    """

    mode: Mode = "hybrid"
    page_size: int = 10
    columns_shown: Sequence[str] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Declaration:
    """An index that the configuration of a table wants to be there; the fields are the arguments of `create_index`."""

    name: str
    table: str
    columns: tuple[str, ...] = ()
    template: str | None = None
    key: tuple[str, ...] = ()
    filter_columns: tuple[str, ...] = ()
    embedder: str = "local"
    quantize: Quantize = "bit"


SYNC_SECONDS = 5.0
_GATE = ("sql_embedding", "sql_texts_per_minute")
OF_INSTANCE = (*SETTINGS, *_GATE, "sync_interval_seconds")
"""What can only stand at the top: keys, addresses, limits and dollars are no matter of one table."""
_TABLE = 2
_OF_LEVEL = {0: OF_INSTANCE, _TABLE: ("index",)}
_DAY = 86_400


def settings(*layers: tuple[str, object]) -> Settings:
    """Merge layers of (where, mapping), the instance first. Raises InvalidSetting that names the place.

    Datasette itself does not merge plugin configuration: the innermost block would hide the others whole.
    """
    own = [field.name for field in fields(Settings)]
    merged: dict[str, Any] = {}
    for level, (where, layer) in enumerate(layers):
        for name, value in _mapping(where, layer).items():
            if name in own:
                _check(where, name, value)
                merged[name] = value
            elif name == "index":
                if level != _TABLE:
                    raise InvalidSetting(f"{where}: an index can only be declared in the block of a table")
            elif name not in OF_INSTANCE:
                known = ", ".join(sorted([*own, *_OF_LEVEL.get(level, ())]))
                raise InvalidSetting(f"{where}: there is no setting {shown(name)}; there are {known}")
            elif level:
                raise InvalidSetting(f"{where}: {name} can only be set for the whole instance")
    return Settings(**merged)


def declarations(where: str, layer: object, table: str) -> list[Declaration]:
    """The indexes that a table's settings declare: `index` is one, or a list of them. Raises InvalidSetting."""
    declared = _mapping(where, layer).get("index", [])
    several = isinstance(declared, list)
    found = [
        _declaration(f"{where}: index {n}" if several else f"{where}: index", block, table)
        for n, block in enumerate(declared if several else [declared], 1)
    ]
    for name, count in Counter(declaration.name.lower() for declaration in found).items():
        if count > 1:
            raise InvalidSetting(f"{where}: {count} indexes have the name {name!r}: give each a name of its own")
    return found


def _declaration(where: str, block: object, table: str) -> Declaration:
    if not isinstance(block, Mapping):
        raise InvalidSetting(
            f"{where}: expected what an index is made of, such as columns: [title], found {shown(block)}"
        )
    values: dict[str, Any] = {"name": table, "table": table}
    for name, value in block.items():
        if name in {"columns", "key", "filter_columns"}:
            if not (isinstance(value, list) and value and all(isinstance(each, str) for each in value)):
                raise InvalidSetting(f"{where}: {name} is {shown(value)}; it must be a list of columns")
            values[name] = tuple(value)
        elif name in {"name", "template", "embedder", "quantize"}:
            if not isinstance(value, str):
                raise InvalidSetting(f"{where}: {name} is {shown(value)}; it must be text")
            values[name] = value
        else:
            known = ", ".join(sorted(f.name for f in fields(Declaration) if f.name != "table"))
            raise InvalidSetting(f"{where}: there is no setting {shown(name)}; there are {known}")
    if not values.get("columns") and not values.get("template"):
        raise InvalidSetting(f"{where}: name the columns whose text is searched, such as columns: [title, body]")
    try:
        check_name(values["name"])
        check_quantize(values.get("quantize", "bit"))
    except (InvalidName, InvalidSetting) as error:
        raise InvalidSetting(f"{where}: {error}") from None
    _check_text(where, values.get("template", ""), values.get("embedder", "local"))
    return Declaration(**values)


def _check_text(where: str, template: str, embedder: str) -> None:
    """Raise InvalidSetting unless a declared template and embedder can be what was meant."""
    if template.count("{") > template.count("}"):
        raise InvalidSetting(f"{where}: template is {shown(template)}; each {{ must be closed, as in {{title}}")
    known = embedders.factories()
    if re.sub(r"[^A-Za-z0-9_-].*", "", embedder, flags=re.DOTALL) not in known:
        raise InvalidSetting(f"{where}: there is no embedder {shown(embedder)}; there are {', '.join(sorted(known))}")


def check_names(places: Sequence[tuple[str, Declaration]]) -> None:
    """Raise InvalidSetting where two tables of a database declare an index of one name; each has where it stands."""
    first: dict[str, str] = {}
    for where, declaration in places:
        table = first.setdefault(declaration.name.lower(), declaration.table)
        if table != declaration.table:
            raise InvalidSetting(
                f"{where}: table {table} declares an index {declaration.name!r} too: an index has its name in the "
                "whole database, give each another"
            )


def sync_interval(where: str, layer: object) -> float:
    """Every how many seconds a server looks for changes, 0 for never. Raises InvalidSetting."""
    value = _mapping(where, layer).get("sync_interval_seconds", SYNC_SECONDS)
    if type(value) not in {int, float} or not (value == 0 or 1 <= value <= _DAY):
        raise InvalidSetting(
            f"{where}: sync_interval_seconds is {shown(value)}; it can be 1 to {_DAY:,}, or 0 to look for no changes"
        )
    return float(value)


def access(where: str, layer: object) -> Access:
    """How paid services are reached: by the instance's settings, else by the environment. Raises InvalidSetting."""
    given = {name: value for name, value in _mapping(where, layer).items() if name in SETTINGS}
    try:
        return Access.from_settings(given)
    except InvalidSetting as error:
        raise InvalidSetting(f"{_culprit(where, given)}: {error}") from None


def _culprit(where: str, given: Mapping[str, Any]) -> str:
    """Where the setting stands that `Access` refuses."""
    try:
        Access.from_settings(given, {})
    except InvalidSetting:
        return where
    return "the environment"


def gate(
    layer: Mapping[str, object],
    *,
    where: str = "the environment",
    may_embed: Callable[[], bool] = lambda: True,
    environment: Mapping[str, str] = os.environ,
) -> Gate:
    """The gate of SQL functions by `sql_embedding` and `sql_texts_per_minute`. Raises InvalidSetting."""
    found = {name: environment.get(PREFIX + name.upper()) if layer.get(name) is None else layer[name] for name in _GATE}
    places = {name: "the environment" if layer.get(name) is None else where for name in _GATE}
    mode, count = found["sql_embedding"], found["sql_texts_per_minute"]
    # YAML reads a bare on and off as true and false.
    if isinstance(mode, bool):
        mode = "on" if mode else "off"
    elif mode is None or mode == "":
        mode = "auto"
    if mode not in SQL_EMBEDDING:
        known = ", ".join(SQL_EMBEDDING)
        raise InvalidSetting(f"{places['sql_embedding']}: sql_embedding is {shown(mode)}; it can be {known}")
    text = str(TEXTS_PER_MINUTE if count is None else count)
    if isinstance(count, bool) or not text.isdecimal():
        place = places["sql_texts_per_minute"]
        raise InvalidSetting(f"{place}: sql_texts_per_minute is {shown(count)}; it must be a whole number from 0")
    return Gate(mode=mode, texts_per_minute=int(text), may_embed=may_embed)


def _mapping(where: str, layer: object) -> Mapping[str, Any]:
    if not isinstance(layer, Mapping | None):
        raise InvalidSetting(f"{where}: expected settings such as page_size: 10, found {shown(layer)}")
    return layer or {}


def _check(where: str, name: str, value: object) -> None:
    if name == "mode" and value not in MODES:
        raise InvalidSetting(f"{where}: mode is {shown(value)}; it can be {', '.join(MODES)}")
    if name == "columns_shown" and not (isinstance(value, list) and all(isinstance(each, str) for each in value)):
        raise InvalidSetting(f"{where}: columns_shown is {shown(value)}; it must be a list of columns")
    if name == "page_size" and not (type(value) is int and 1 <= value <= MAX_HITS):
        raise InvalidSetting(f"{where}: page_size is {shown(value)}; it can be 1 to {MAX_HITS:,}")
