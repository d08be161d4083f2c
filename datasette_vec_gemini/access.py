"""How a paid service is reached and what it may be asked for: key, address, limits, dollars."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from hashlib import sha256
from ipaddress import ip_address
from typing import Any, Literal
from urllib.parse import urlsplit

from .errors import InvalidSetting, shown

PREFIX = "DATASETTE_VEC_"
"""Every setting but the key can stand in the environment under this prefix: `DATASETTE_VEC_DAILY_USD=2.50`."""
KEY_VARIABLES = ("GOOGLE_API_KEY", "GEMINI_API_KEY")
"""Where a key is looked for, in this order, as Google's SDK does."""

TaskScheme = Literal["prefix", "task_type"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Access:
    """A key with the limits that go with it.

    `key_source` says where the key came from. With `project` (and `location`) Vertex AI is asked, with Google's
    application default credentials instead of a key. The limits per minute are those of Google's Tier 1: one text is
    one request there, however many go in a batch. `daily_usd` holds for everything done with the key in a day (UTC);
    None means 1.00 for searches and no limit for runs that were confirmed. A search waits `query_seconds` for its
    vector; indexing tries a request again for `patience_seconds`. `task_scheme` is needed for models that are not known
    here. Raises InvalidSetting on birth, never with the key in its message.
    """

    api_key: str | None = field(default=None, repr=False)
    key_source: str = ""
    base_url: str | None = None
    project: str | None = None
    location: str | None = None
    texts_per_minute: int = 3_000
    tokens_per_minute: int = 1_000_000
    texts_per_day: int | None = None
    texts_per_request: int = 100
    tokens_per_request: int = 20_000
    daily_usd: float | None = None
    query_seconds: float = 2.5
    patience_seconds: float = 600.0
    task_scheme: TaskScheme | None = None

    def __post_init__(self) -> None:
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.isprintable()):
            raise InvalidSetting(f"the API key from {self.key_source} has characters that no key has: copy it again")
        for name in ("texts_per_minute", "tokens_per_minute", "tokens_per_request"):
            _check_number(name, getattr(self, name), whole=True, least=1)
        _check_number("texts_per_request", self.texts_per_request, whole=True, least=1, most=100)
        _check_number("query_seconds", self.query_seconds, least=0.1, most=60)
        _check_number("patience_seconds", self.patience_seconds, least=0)
        if self.texts_per_day is not None:
            _check_number("texts_per_day", self.texts_per_day, whole=True, least=0)
        if self.daily_usd is not None:
            _check_number("daily_usd", self.daily_usd, least=0)
        if self.task_scheme not in {None, "prefix", "task_type"}:
            raise InvalidSetting(f"task_scheme is {shown(self.task_scheme)}; it can be prefix or task_type")
        for name in ("base_url", "project", "location"):
            if not isinstance(getattr(self, name), str | None):
                raise InvalidSetting(f"{name} is {shown(getattr(self, name))}; it must be text")
        if self.location and not self.project:
            raise InvalidSetting("location is set without project: Vertex AI needs both, a key needs neither")
        if self.base_url is not None:
            _check_url(self.base_url)

    @property
    def account(self) -> str:
        """Tells accounts apart without telling the key: what is limited and counted together has the same."""
        secret = f"{self.project or self.api_key}\0{self.base_url or ''}"
        return sha256(secret.encode()).hexdigest()[:16]

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], environment: Mapping[str, str] | None = None) -> Access:
        """Settings by name, then `GOOGLE_GEMINI_BASE_URL` and the environment's `DATASETTE_VEC_…`, then defaults.

        The key is the setting `api_key`, else that of `GOOGLE_API_KEY`, else of `GEMINI_API_KEY`.
        """
        environment = os.environ if environment is None else environment
        values: dict[str, Any] = {}
        if base_url := environment.get("GOOGLE_GEMINI_BASE_URL", "").strip():
            values["base_url"] = base_url
        for name in SETTINGS:
            if name != "api_key" and (text := environment.get(PREFIX + name.upper(), "").strip()):
                values[name] = _number(text) if name in _NUMBERS else text
        values |= {name: value for name, value in settings.items() if value is not None}
        for source, key in (("api_key", values.get("api_key")), *((v, environment.get(v)) for v in KEY_VARIABLES)):
            if not isinstance(key, str | None):
                raise InvalidSetting("api_key must be text, such as {$env: GEMINI_API_KEY}")
            if key and key.strip():
                where = "the setting api_key" if source == "api_key" else source
                return cls(**values | {"api_key": key.strip(), "key_source": where})
        return cls(**values | {"api_key": None})


SETTINGS = tuple(f.name for f in fields(Access) if f.name != "key_source")
_NUMBERS = {f.name for f in fields(Access) if str(f.type).startswith(("int", "float"))}


def _number(text: str) -> float | str:
    try:
        value = float(text)
    except ValueError:
        return text
    return int(value) if value.is_integer() and "." not in text else value


def _check_number(name: str, value: object, *, whole: bool = False, least: float, most: float = math.inf) -> None:
    is_number = type(value) is int or (not whole and isinstance(value, float) and math.isfinite(value))
    if not is_number or not least <= float(str(value)) <= most:
        kind = "a whole number" if whole else "a number"
        bounds = f"from {least:g}" if most == math.inf else f"from {least:g} to {most:g}"
        raise InvalidSetting(f"{name} is {shown(value)}; it must be {kind} {bounds}")


def _check_url(url: str) -> None:
    """Https, or http to this machine: a key goes there, and the texts."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        _ = parts.port
    except ValueError as error:
        raise InvalidSetting(f"base_url is no address ({error}): write https://HOST[:PORT]") from error
    if parts.username or parts.password or parts.query or parts.fragment:
        raise InvalidSetting("base_url has a user, a query or a fragment: write https://HOST[:PORT][/PATH]")
    if not host or not (parts.scheme == "https" or (parts.scheme == "http" and _is_loopback(host))):
        raise InvalidSetting(
            f"base_url is {shown(url)}; it must begin with https://, or with http:// for this machine only: the key "
            "and the texts go there"
        )


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
