"""The map: an index's documents as points in the plane, by the two directions in which their vectors differ the most.

That is a principal component analysis of the documents' vectors, each the mean of its chunks' ones. It is computed at
the end of a sync from what is stored, without any model, and it is kept: documents that change are placed by the axes
there are, and the axes are computed anew once a fifth of the documents is new. They are turned to fit the ones before,
so that a picture that somebody knows does not flip.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from ..domain import Index
from ..driver import sqlite3
from ..keys import Key
from ..store import picture, registry
from ..store.picture import Axes, Place
from ..store.transactions import transaction
from ..vectors import Vector
from .components import oriented, principal_axes

MAX_POINTS = 50_000
"""Of more documents a sample is on the map: those whose keys have the smallest digests."""
FIT_NUMBERS = 16_000_000
"""The axes are computed from so many numbers (documents x dimensions) at most, which take 64 MB."""
GROWTH = 0.2
"""The share of the fitted documents that may be placed anew before the axes are computed again,"""
FEW = 20
"""or so many of a small table, as long as it has not doubled."""

_ATTEMPTS = 3


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
        with _unmapped(conn):
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


@contextmanager
def _unmapped(conn: sqlite3.Connection) -> Iterator[None]:
    """Read the file without a memory map, whose pages would be counted to this process beside what it computes with."""
    (size,) = conn.execute("pragma mmap_size").fetchone() or (0,)  # none for a database in memory
    conn.execute("pragma mmap_size = 0").fetchall()
    try:
        yield
    finally:
        conn.execute(f"pragma mmap_size = {size}").fetchall()


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
    axes = oriented(axes, before.directions if before and before.directions.shape == axes.shape else None)
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


def project(axes: Axes, vector: Vector) -> tuple[float, float]:
    """Where a vector of unit length stands on the map."""
    x, y = ((vector - axes.mean) @ axes.directions.T).tolist()
    return x, y


def positions(
    conn: sqlite3.Connection, index: Index, axes: Axes, keys: Sequence[Key]
) -> dict[Key, tuple[float, float]]:
    """Where these documents stand by their present vectors, on the map or not; without those that have no vector."""
    return {key: (x, y) for key, _, x, y in _placed(conn, index, keys, axes)}
