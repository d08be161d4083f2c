"""What a search has to answer, in plain Python: no SQL, no NumPy, no index."""

import math
import struct
from collections.abc import Hashable, Mapping, Sequence


def stored(vector: Sequence[float]) -> tuple[float, ...]:
    """The vector as float32 holds it."""
    return struct.unpack(f"<{len(vector)}f", struct.pack(f"<{len(vector)}f", *vector))


def distance(metric: str, left: Sequence[float], right: Sequence[float]) -> float:
    """Lower for nearer; the inner product's is negative."""
    left, right = stored(left), stored(right)
    if metric == "l2":
        return math.dist(left, right)
    product = math.fsum(x * y for x, y in zip(left, right, strict=True))
    if metric == "inner_product":
        return -product
    return 1 - product / (math.hypot(*left) * math.hypot(*right))


def nearest(
    rows: Mapping[Hashable, Sequence[float] | None], query: Sequence[float], *, k: int, metric: str, offset: int = 0
) -> list[tuple[Hashable, float]]:
    """Keys and distances of the k rows nearest, after the `offset` nearest; ties in the order of their keys."""
    scored = [(distance(metric, vector, query), key) for key, vector in rows.items() if vector is not None]
    return [(key, score) for score, key in sorted(scored)[offset : offset + k]]
