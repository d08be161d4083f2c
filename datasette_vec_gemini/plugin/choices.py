"""What somebody chooses on the page that indexes a table, and what is proposed there."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..domain import check_name, check_quantize
from ..driver import sqlite3
from ..errors import ColumnNotFound
from ..schema import in_main, quote_identifier
from ..store import source
from ..store.source import Source
from ..store.transactions import mapped_errors
from .forms import Pairs, field

_LOOKED_AT = 100
"""Rows by which columns are judged."""
_EXAMPLE = 60


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """A column as the form shows it. `is_proposed` ones hold text that people write: words with spaces between."""

    name: str
    type: str
    example: str
    has_text: bool
    is_proposed: bool


def describe(conn: sqlite3.Connection, name: str) -> tuple[Source, list[Column]]:
    """A table or view and its columns, judged by its first rows. Raises TableNotFound."""
    with mapped_errors():
        found = source.find(conn, name)
        selected = ", ".join(map(quote_identifier, found.columns))
        rows = conn.execute(f"select {selected} from {in_main(found.name)} limit ?", [_LOOKED_AT]).fetchall()
    columns = [_judged(name, found.columns[name], [row[n] for row in rows]) for n, name in enumerate(found.columns)]
    if columns and not any(column.is_proposed for column in columns):
        columns = [_with_proposal(column) for column in columns]
    return found, columns


def _judged(name: str, declared: str, values: Sequence[object]) -> Column:
    texts = [value for value in values if isinstance(value, str) and value.strip()]
    is_text = 2 * len(texts) > sum(value is not None for value in values)
    example = next((str(value) for value in values if value not in {None, ""} and not isinstance(value, bytes)), "")
    wordy = sum(len(text.split()) > 1 for text in texts)
    return Column(
        name=name,
        type=declared or "no type",
        example=example[:_EXAMPLE] + ("…" if len(example) > _EXAMPLE else ""),
        has_text=bool(texts),
        is_proposed=is_text and 2 * wordy > len(texts) and not all(map(_DATE.match, texts)),
    )


_DATE = re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d")


def _with_proposal(column: Column) -> Column:
    """Where nothing looks like prose, all text is proposed."""
    return Column(
        name=column.name,
        type=column.type,
        example=column.example,
        has_text=column.has_text,
        is_proposed=column.has_text,
    )


def suggest(usd: float) -> str:
    """A budget with which a run of that estimate ends well: a fifth more, in whole cents."""
    return f"{int(usd * 120 + 1) / 100:.2f}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Choices:
    """The fields of the form; `is_made` once somebody has sent it."""

    table: str
    is_view: bool
    columns: tuple[str, ...]
    filter_columns: tuple[str, ...]
    key: tuple[str, ...]
    template: str
    name: str
    model: str
    gemini: str
    dimensions: str
    quantize: str
    is_made: bool
    pairs: Pairs

    @classmethod
    def read(cls, pairs: Pairs, found: Source, columns: Sequence[Column]) -> Choices:
        """What was sent; before that what is proposed."""
        names = {name for name, _ in pairs}
        is_made = bool(names & {"column", "template", "name", "embedder"})
        chosen = tuple(value for name, value in pairs if name == "column")
        proposed = tuple(column.name for column in columns if column.is_proposed)
        return cls(
            table=found.name,
            is_view=found.is_view,
            columns=chosen if is_made else proposed,
            filter_columns=tuple(value for name, value in pairs if name == "filter"),
            key=tuple(value for name, value in pairs if name == "key"),
            template=field(pairs, "template"),
            name=field(pairs, "name") or _name(found.name),
            model=field(pairs, "embedder") or "local",
            gemini=field(pairs, "model"),
            dimensions=field(pairs, "dimensions"),
            quantize=field(pairs, "quantize") or "bit",
            is_made=is_made,
            pairs=pairs,
        )

    @property
    def embedder(self) -> str:
        """The specification of the embedder."""
        if self.model != "gemini":
            return self.model
        return (
            "gemini" + (f":{self.gemini}" if self.gemini else "") + (f"@{self.dimensions}" if self.dimensions else "")
        )

    def check(self) -> None:
        """Raise UsageError where it can be told without a look into the database."""
        if not self.columns and not self.template:
            raise ColumnNotFound("choose at least one column whose text is searched")
        check_name(self.name)
        check_quantize(self.quantize)

    def arguments(self) -> dict[str, Any]:
        """The arguments of `create_index`, but for the embedder."""
        return {
            "name": self.name,
            "table": self.table,
            "columns": () if self.template else self.columns,
            "template": self.template or None,
            "key": self.key,
            "filter_columns": self.filter_columns,
            "quantize": self.quantize,
        }

    def kept(self) -> list[tuple[str, str]]:
        """The fields as they go on to the next step."""
        lists = (("column", self.columns), ("filter", self.filter_columns), ("key", self.key))
        return [(name, value) for name, values in lists for value in values] + [
            ("template", self.template),
            ("name", self.name),
            ("embedder", self.model),
            ("model", self.gemini),
            ("dimensions", self.dimensions),
            ("quantize", self.quantize),
        ]

    def to_dict(self) -> dict[str, Any]:
        """The choices as JSON tells them."""
        return self.arguments() | {"columns": self.columns, "embedder": self.embedder}


def _name(table: str) -> str:
    """A name for an index of that table."""
    plain = re.sub(r"[^A-Za-z0-9_]+", "_", table).strip("_")
    return (plain if plain[:1].isalpha() else f"t_{plain}".rstrip("_"))[:63]
