"""Settings of the plugin: what a configuration says at the instance, the database and the table, merged and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from .domain import MAX_HITS, MODES, Mode
from .errors import InvalidSetting, shown


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """`mode` and `page_size` are what the search page and its JSON begin with."""

    mode: Mode = "hybrid"
    page_size: int = 10


def settings(*layers: tuple[str, object]) -> Settings:
    """Merge layers of (where, mapping), the most general first. Raises InvalidSetting that names the place.

    Datasette itself does not merge plugin configuration: the innermost block would hide the others whole.
    """
    known = {field.name for field in fields(Settings)}
    merged: dict[str, Any] = {}
    for where, layer in layers:
        if not isinstance(layer, Mapping | None):
            raise InvalidSetting(f"{where}: expected settings such as page_size: 10, found {shown(layer)}")
        for name, value in (layer or {}).items():
            if name not in known:
                raise InvalidSetting(
                    f"{where}: there is no setting {shown(name)}; there are {', '.join(sorted(known))}"
                )
            _check(where, name, value)
            merged[name] = value
    return Settings(**merged)


def _check(where: str, name: str, value: object) -> None:
    if name == "mode" and value not in MODES:
        raise InvalidSetting(f"{where}: mode is {shown(value)}; it can be {', '.join(MODES)}")
    if name == "page_size" and not (type(value) is int and 1 <= value <= MAX_HITS):
        raise InvalidSetting(f"{where}: page_size is {shown(value)}; it can be 1 to {MAX_HITS:,}")
