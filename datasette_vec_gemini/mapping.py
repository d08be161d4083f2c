"""The map: an index's documents as points in the plane, by the two directions in which their vectors differ the most.

That is a principal component analysis of the documents' vectors, each the mean of its chunks' ones. It is computed at
the end of a sync from what is stored, without any model, and it is kept: documents that change are placed by the axes
there are, and the axes are computed anew once a fifth of the documents is new. They are turned to fit the ones before,
so that a picture that somebody knows does not flip.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .domain import Index
from .driver import sqlite3
from .errors import InvalidFilter, shown
from .keys import Key
from .schema import source_key
from .searching import TITLES, title
from .store import picture, registry, source
from .store.filters import compile_filters
from .store.picture import LABEL_CHARACTERS, Axes, Place
from .store.transactions import transaction
from .vectors import Vector

MAX_POINTS = 50_000
"""Of more documents a sample is on the map: those whose keys have the smallest digests."""
FIT_NUMBERS = 16_000_000
"""The axes are computed from so many numbers (documents x dimensions) at most, which take 64 MB."""
GROWTH = 0.2
"""The share of the fitted documents that may be placed anew before the axes are computed again,"""
FEW = 20
"""or so many of a small table, as long as it has not doubled."""
CATEGORIES = 8
"""Colours and shapes that can be told apart; other values share one."""

_ATTEMPTS = 3
_RANGES = 6
_BLOCK, _STEPS, _RESTARTS, _TOLERANCE = 8, 6, 6, 1e-3
_EXACT = 64
_PRODUCT = 2**18
"""OpenBLAS shares greater products among threads, and on a busy machine each then waits for milliseconds."""
_TITLE_CHARACTERS = 60
_INFINITE: dict[object, str] = {math.inf: "infinity", -math.inf: "-infinity"}


class Point(NamedTuple):
    """A document on the map; `category` counts the picture's categories from 0."""

    key: Key
    x: float
    y: float
    category: int
    title: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Category:
    """What one colour means, how many points have it, and the filters that leave just those, if filters can."""

    label: str
    count: int
    filters: Mapping[str, object] | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """Points of a map, of the `count` rows that fulfil the filters; without a colour all have the one category."""

    points: Sequence[Point] = ()
    count: int = 0
    color: str | None = None
    categories: Sequence[Category] = ()
    across: Sequence[Point] = ()


def refresh(conn: sqlite3.Connection, index: Index, *, most: int = MAX_POINTS, numbers: int = FIT_NUMBERS) -> None:
    """Bring the map up to the vectors that are stored; where nothing has changed this is a look at one empty index.

    Nothing is written while it computes. What changes meanwhile, or is written by another run, is left to the next one.
    Raises IndexNotFound when the index was dropped or rebuilt meanwhile.
    """
    try:
        for _ in range(_ATTEMPTS):
            if _refreshed(conn, index, most, numbers):
                return
    except sqlite3.OperationalError:  # of an index that was dropped the tables are missing
        registry.reread(conn, index)
        raise


def _refreshed(conn: sqlite3.Connection, index: Index, most: int, numbers: int) -> bool:
    """One attempt; False where another run wrote the map meanwhile."""
    if not picture.has_begun(conn, index):
        if next(picture.keys(conn, index), None) is None:
            return True
        with transaction(conn):
            registry.reread(conn, index)
            if not picture.begin(conn, index):
                return True
    version, (until, changed) = picture.version(conn, index), picture.waiting(conn, index)
    axes = picture.axes(conn, index)
    if axes and not changed:
        return True
    redraw = axes is None
    if axes:
        changed = [key for key in changed if sample(key) < axes.share]
        projected, there = axes.projected + len(changed), picture.count(conn, index)
        now = there + len(changed)
        redraw = not there or projected >= max(FEW, GROWTH * axes.fitted) or now >= 2 * axes.fitted or now > most
    if axes is None or redraw:
        total, share, chosen = _sampled(conn, index, most)
        axes, places = _drawn(conn, index, chosen, axes, numbers)
        axes = axes and replace(axes, documents=total, share=share)
    else:
        places = _placed(conn, index, changed, axes)
        total = there + len(places) if axes.share == 1 else picture.count_documents(conn, index)
        axes = replace(axes, projected=projected, documents=total)
    with transaction(conn):
        registry.reread(conn, index)
        if picture.version(conn, index) != version:
            return False
        if axes is None:
            picture.clear(conn, index)
        elif redraw:
            picture.replace_all(conn, index, places, until=until, axes=axes)
        else:
            picture.replace_waiting(conn, index, places, until=until, axes=axes)
    return True


def sample(key: Key) -> float:
    """Where a document stands among the samples, 0 to 1: as good as random, and the same for ever."""
    digest = blake2b(repr(key).encode("utf-8", "surrogatepass"), digest_size=6).digest()
    return int.from_bytes(digest) / 2**48


def _sampled(conn: sqlite3.Connection, index: Index, most: int) -> tuple[int, float, list[Key]]:
    """How many documents there are, which share of them goes on the map, and their keys in the order of samples."""
    total, share, kept = 0, 1.0, list[tuple[float, Key]]()
    for key in picture.keys(conn, index):
        total += 1
        if (place := sample(key)) < share:
            kept.append((place, key))
        while len(kept) > most:
            share /= 2
            kept = [pair for pair in kept if pair[0] < share]
    kept.sort(key=lambda pair: pair[0])
    return total, share, [key for _, key in kept]


def _drawn(
    conn: sqlite3.Connection, index: Index, keys: Sequence[Key], before: Axes | None, numbers: int
) -> tuple[Axes | None, list[Place]]:
    """New axes from the first of these documents, and the places of all of them; no axes without documents."""
    most = max(2, numbers // index.dimensions)
    fitting = np.empty((min(most, len(keys)), index.dimensions), np.float32)
    count, fitted = 0, list[Key]()
    for found, vectors in picture.documents(conn, index, keys[:most]):
        fitting[count : count + len(found)] = vectors
        fitted += found
        count += len(found)
    if not count:
        return None, []
    centred = fitting[:count]
    mean = centred.mean(axis=0, dtype=np.float64).astype(np.float32)
    centred -= mean
    axes = principal_axes(centred)
    axes = _oriented(axes, before.directions if before and before.directions.shape == axes.shape else None)
    coordinates = centred @ axes.T
    total = float(np.einsum("ij,ij->", centred, centred, dtype=np.float64)) or 1.0
    variance = np.square(coordinates, dtype=np.float64).sum(axis=0) / total
    drawn = Axes(
        version=0,
        documents=0,
        share=1.0,
        fitted=len(keys),
        projected=0,
        variance=(float(variance[0]), float(variance[1])),
        mean=mean,
        directions=axes,
    )
    del centred, fitting
    return drawn, _places(fitted, coordinates) + _placed(conn, index, keys[most:], drawn)


def _placed(conn: sqlite3.Connection, index: Index, keys: Sequence[Key], axes: Axes) -> list[Place]:
    """The places of those documents that have vectors."""
    places: list[Place] = []
    for found, vectors in picture.documents(conn, index, keys):
        places += _places(found, (vectors - axes.mean) @ axes.directions.T)
    return places


def _places(keys: Sequence[Key], coordinates: NDArray[np.floating]) -> list[Place]:
    return [(key, sample(key), x, y) for key, (x, y) in zip(keys, coordinates.tolist(), strict=True)]


def principal_axes(centred: NDArray[np.float32]) -> Vector:
    """The two directions of greatest variance, orthonormal, shape (2, d), of vectors (n, d) whose mean is zero.

    By block Krylov iteration, restarted from the best directions so far (Musco and Musco 2015, "Randomized Block Krylov
    Methods for Stronger and Faster Approximate Singular Value Decomposition"): the cost grows with n x d, where that of
    an exact decomposition grows with n x d x d. It begins with the same random numbers each time. Of a few vectors
    their products with each other are decomposed, which is exact and needs no iteration.
    """
    if len(centred) <= _EXACT:
        return _exact_axes(centred.astype(np.float64))
    dimensions = centred.shape[1]
    block = np.random.default_rng(0).standard_normal((dimensions, min(_BLOCK, dimensions)), np.float32)
    axes: Vector = block[:, :2]
    for _ in range(_RESTARTS):
        basis: list[NDArray[np.float32]] = []
        for _ in range(_STEPS):
            block = np.linalg.qr(block)[0]
            basis.append(block)
            block = _spread(centred, block)
        space = np.linalg.qr(np.hstack(basis))[0]
        seen = (centred @ space).astype(np.float64)
        turns = np.linalg.eigh(seen.T @ seen)[1][:, ::-1]
        block = (space @ turns[:, : block.shape[1]]).astype(np.float32)
        before, axes = axes, block[:, :2]
        if np.linalg.norm(before - axes @ (axes.T @ before)) < _TOLERANCE:  # the plane stands still
            break
    return np.ascontiguousarray(axes.T)


def _exact_axes(centred: NDArray[np.float64]) -> Vector:
    rows, dimensions = centred.shape
    directions = np.zeros((dimensions, 2))
    directions[:, : min(rows, 2)] = centred.T @ np.linalg.eigh(centred @ centred.T)[1][:, :-3:-1]
    # Where the vectors have fewer directions than two, this finds others at right angles.
    return np.ascontiguousarray(np.linalg.qr(directions)[0].T, np.float32)


def _spread(centred: NDArray[np.float32], block: NDArray[np.float32]) -> NDArray[np.float32]:
    """The covariance, not divided by n, times a block (d, b); each part of the vectors is read once, by one thread."""
    step, total = max(1, _PRODUCT // block.size), np.zeros_like(block)
    for first in range(0, len(centred), step):
        part = centred[first : first + step]
        total += part.T @ (part @ block)
    return total


def _oriented(axes: Vector, before: Vector | None) -> Vector:
    """The axes turned within their plane so that they come nearest to earlier ones (an orthogonal Procrustes problem).

    Without earlier ones the greatest number of each is positive.
    """
    if before is None:
        greatest = np.take_along_axis(axes, np.abs(axes).argmax(axis=1, keepdims=True), axis=1)
        return axes * np.where(greatest < 0, -1, 1).astype(np.float32)
    left, _, right = np.linalg.svd(before.astype(np.float64) @ axes.T.astype(np.float64))
    turned: Vector = ((left @ right) @ axes).astype(np.float32)
    return turned


def project(axes: Axes, vector: Vector) -> tuple[float, float]:
    """Where a vector of unit length stands on the map."""
    x, y = ((vector - axes.mean) @ axes.directions.T).tolist()
    return x, y


def positions(
    conn: sqlite3.Connection, index: Index, axes: Axes, keys: Sequence[Key]
) -> dict[Key, tuple[float, float]]:
    """Where these documents stand by their present vectors, on the map or not; without those that have no vector."""
    return {key: (x, y) for key, _, x, y in _placed(conn, index, keys, axes)}


def columns(conn: sqlite3.Connection, index: Index) -> list[str]:
    """What points can be coloured by: the declared filter columns, then others that are neither key nor indexed."""
    table = source.find(conn, index.table)
    skipped = {*index.columns, *source_key(index)}
    return list(dict.fromkeys([*index.filter_columns, *(name for name in table.columns if name not in skipped)]))


def map_points(
    conn: sqlite3.Connection,
    index: Index,
    *,
    filters: Mapping[str, object] | None = None,
    color: str | None = None,
    limit: int = MAX_POINTS,
    seconds: float = math.inf,
    across: range = range(0),
) -> Picture:
    """Points of rows that exist now and fulfil the filters, in the order of samples: the first are a fair choice.

    Reading them ends at the limit, or after so many seconds with those that there are; counts are of all. `across` asks
    for those in a range of places from left to right besides. The index must have axes. Raises InvalidFilter.
    """
    until = time.monotonic() + seconds
    table = source.find(conn, index.table)
    if color is not None and color not in (offered := columns(conn, index)):
        raise InvalidFilter(f"{shown(color)} is no column to colour by; there are {', '.join(offered) or 'none'}")
    titles = [name for name in table.columns if name.casefold() in TITLES or name in index.columns[:1]]
    drawn = picture.Drawn(condition=compile_filters(conn, index, filters or {}), titles=titles, color=color)
    values = picture.categories(conn, index, drawn)
    palette = _Palette(color, values)

    def points(*order: str, limit: int, offset: int = 0) -> list[Point]:
        rows = list[tuple[float, float, object, Key, list[object]]]()
        for batch in picture.points(conn, index, drawn, order=order, limit=limit, offset=offset):
            rows += batch
            if time.monotonic() > until:
                break
        return [
            Point(
                key,
                x,
                y,
                palette.category_of(value),
                _short(title(index, key, dict(zip(titles, cells, strict=True))), _TITLE_CHARACTERS),
            )
            for x, y, value, key, cells in rows
        ]

    listed = points("x", "y", limit=len(across), offset=across.start) if across else []
    return Picture(
        points=points("sample", limit=limit),
        count=sum(count for _, count in values),
        color=color,
        categories=palette.categories,
        across=listed,
    )


def _short(text: str, characters: int) -> str:
    return text if len(text) <= characters else f"{text[: characters - 1]}…"


class _Palette:
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
            label = _short(" ".join(str(value).split()), 40) or "empty text"
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
