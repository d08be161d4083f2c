"""The SQL functions that the doors' statements call, beside sqlite-vec's own."""

from __future__ import annotations

import math

import numpy as np

from ..driver import sqlite3
from ..vectors import quantise_int8

_RADIUS_DEVIATIONS = 1.5
"""How far beyond the expected Hamming distance candidates are taken."""


def register(conn: sqlite3.Connection) -> None:
    """Register the SQL functions that the statements of the doors call."""
    conn.create_function("vec_negative_inner_product", 2, _negative_inner_product, deterministic=True)
    conn.create_function("vec_int8_code", 3, _int8_code, deterministic=True)
    conn.create_function("vec_hamming_radius", 2, _hamming_radius, deterministic=True)


def _negative_inner_product(left: bytes | None, right: bytes | None) -> float | None:
    """As pgvector's `<#>`: lower for nearer."""
    if left is None or right is None:
        return None
    return -float(np.frombuffer(left, "<f4").astype(np.float64) @ np.frombuffer(right, "<f4").astype(np.float64))


def _int8_code(vector: bytes, scale: float | None, unit: int) -> bytes:
    """The argument of `vec_int8()` for a packed vector, brought to unit length first where the index holds such."""
    array = np.frombuffer(vector, "<f4")
    return quantise_int8(array / np.linalg.norm(array) if unit else array, scale=scale or 1.0)


def _hamming_radius(distance: float | None, dimensions: int) -> int | None:
    """How many bits may differ between vectors at this cosine distance: angle / pi of them, and some more."""
    if distance is None:
        return None
    share = math.acos(max(-1.0, min(1.0, 1.0 - distance))) / math.pi
    return math.ceil(dimensions * share + _RADIUS_DEVIATIONS * math.sqrt(dimensions * share * (1 - share)))
