"""What the colours of a map mean: the values of a column, in as many categories as can be told apart."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from ..store.picture import LABEL_CHARACTERS

CATEGORIES = 8
"""Colours and shapes that can be told apart; other values share one."""

_RANGES = 6
_INFINITE: dict[object, str] = {math.inf: "infinity", -math.inf: "-infinity"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Category:
    """What one colour means, how many points have it, and the filters that leave just those, if filters can."""

    label: str
    count: int
    filters: Mapping[str, object] | None


class Palette:
    """The categories of a column: its values if they are few, else ranges of numbers, or the commonest and "other"."""

    def __init__(self, column: str | None, counts: Sequence[tuple[object, int]]) -> None:
        self._places: dict[object, int] = {}
        self._starts: list[float] = []
        self.categories: list[Category] = []
        found = [(value, count) for value, count in counts if isinstance(value, int | float)]
        numbers = sorted(pair for pair in found if pair[0] not in _INFINITE)
        others = [(value, count) for value, count in counts if value is None or value in _INFINITE]
        if column is None:
            self._add(Category(label="documents", count=sum(count for _, count in others), filters={}), None)
        elif len(counts) > CATEGORIES and len(numbers) + len(others) == len(counts):
            self._add_ranges(column, numbers)
            self._add_values(column, others)
        else:
            self._add_values(column, counts[:CATEGORIES])
            if rest := counts[CATEGORIES:]:
                label = f"other ({len(rest):,} values)" if len(rest) > 1 else "other (1 value)"
                self._add(Category(label=label, count=sum(count for _, count in rest), filters=None))

    def category_of(self, value: object) -> int:
        """The number of a value's category; the last one takes what has none of its own."""
        if value in self._places:
            return self._places[value]
        if self._starts and isinstance(value, int | float):
            return bisect_right(self._starts, value) - 1
        return len(self.categories) - 1

    def _add(self, category: Category, *values: object) -> None:
        self._places |= dict.fromkeys(values, len(self.categories))
        self.categories.append(category)

    def _add_values(self, column: str, counts: Sequence[tuple[object, int]]) -> None:
        for value, count in counts:
            if value is None:
                self._add(Category(label="no value", count=count, filters={f"{column}__isnull": "1"}), None)
                continue
            if value in _INFINITE:  # which neither JSON nor an address can say
                self._add(Category(label=_INFINITE[value], count=count, filters=None), value)
                continue
            # What was cut is not equal to its column any more, and a BLOB cannot stand in an address.
            is_whole = not isinstance(value, str) or (len(value) < LABEL_CHARACTERS and value != "binary data")
            label = shortened(" ".join(str(value).split()), 40) or "empty text"
            self._add(Category(label=label, count=count, filters={column: value} if is_whole else None), value)

    def _add_ranges(self, column: str, numbers: Sequence[tuple[float, int]]) -> None:
        """About as many points in each range."""
        total, seen, starts = sum(count for _, count in numbers), 0, [0]
        for place, (_, count) in enumerate(numbers):
            if seen >= total * len(starts) / _RANGES and place > starts[-1]:
                starts.append(place)
            seen += count
        for first, last in pairwise([*starts, len(numbers)]):
            low, high = numbers[first][0], numbers[last - 1][0]
            filters = {f"{column}__gte": low, f"{column}__lte": high}
            label = f"{low} to {high}" if low != high else str(low)
            self._starts.append(low)
            self._add(Category(label=label, count=sum(count for _, count in numbers[first:last]), filters=filters))


def shortened(text: str, characters: int) -> str:
    """The text, cut to so many characters, the last of them dots then."""
    return text if len(text) <= characters else f"{text[: characters - 1]}…"
