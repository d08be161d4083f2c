"""Settings of the plugin: what a configuration says at the instance, the database and the table, merged and checked."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from .access import PREFIX, SETTINGS, Access
from .domain import MAX_HITS, MODES, Mode
from .errors import InvalidSetting, shown
from .gate import SQL_EMBEDDING, TEXTS_PER_MINUTE, Gate


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """`mode` and `page_size` are what the search page and its JSON begin with."""

    mode: Mode = "hybrid"
    page_size: int = 10


_GATE = ("sql_embedding", "sql_texts_per_minute")
OF_INSTANCE = (*SETTINGS, *_GATE)
"""What can only stand at the top: keys, addresses, limits and dollars are no matter of one table."""


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
            elif name not in OF_INSTANCE:
                known = ", ".join(sorted([*own, *OF_INSTANCE] if level == 0 else own))
                raise InvalidSetting(f"{where}: there is no setting {shown(name)}; there are {known}")
            elif level:
                raise InvalidSetting(f"{where}: {name} can only be set for the whole instance")
    return Settings(**merged)


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
    if name == "page_size" and not (type(value) is int and 1 <= value <= MAX_HITS):
        raise InvalidSetting(f"{where}: page_size is {shown(value)}; it can be 1 to {MAX_HITS:,}")
