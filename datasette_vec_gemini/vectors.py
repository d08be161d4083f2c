"""Vectors: 1-D float32 arrays of unit length, packed as little-endian BLOBs only where SQLite holds them.

The packed form is sqlite-vec's float32 vector: `dimensions` consecutive IEEE 754 little-endian floats, no header.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from functools import lru_cache
from hashlib import sha256
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import InvalidSetting, InvalidVector, shown

Vector = NDArray[np.float32]

_FLOAT32 = np.dtype(np.float32)
_PACKED = np.dtype("<f4")


def pack(vector: ArrayLike) -> bytes:
    """The vector as 4 x dimensions bytes."""
    return np.asarray(vector, dtype=_PACKED).tobytes()


def as_blob(vector: Vector) -> bytes:
    """What `pack` gives, without a copy of a vector that was bytes already."""
    base: object = vector.base
    if isinstance(base, bytes) and len(base) == vector.nbytes and vector.dtype is _PACKED:
        return base
    return pack(vector)


class VectorParameter(np.ndarray[Any, np.dtype[np.float32]]):
    """A vector as a parameter of a statement: SQLite's module reads it where it lies, and none is copied.

    It has a type of its own because programs give that module adapters of theirs for arrays; to those who look at
    parameters it is as the bytes are that it stands for: equal or not, hashable, and told from others when printed.
    """

    __slots__ = ()

    def __eq__(self, other: object) -> bool:  # and not number by number
        packed = other.tobytes() if isinstance(other, VectorParameter) else other
        return self.tobytes() == packed

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(self.tobytes())

    def __bool__(self) -> bool:
        return bool(self.size)

    def __repr__(self) -> str:
        return f"<{self.size} x float32, SHA-256 {sha256(self.tobytes()).hexdigest()[:16]}>"

    __str__ = __repr__


def unpack(blob: bytes) -> Vector:
    """The inverse of `pack`. Raises InvalidVector when the length is not a multiple of four."""
    if len(blob) % 4:
        raise InvalidVector(f"a packed vector has 4 bytes a dimension; this BLOB has {len(blob)} bytes")
    return np.frombuffer(blob, dtype="<f4").astype(np.float32, copy=False)


def normalise(vectors: ArrayLike, *, dimensions: int) -> Vector:
    """Vectors of shape (dimensions,) or (n, dimensions) as float32 of unit length.

    Raises InvalidVector for another shape, for NaN or infinity, and for zero, which has no direction.
    """
    try:
        with np.errstate(over="ignore"):
            array = np.asarray(vectors, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise InvalidVector(f"expected vectors of {dimensions} numbers, got something else: {error}") from error
    if array.ndim not in {1, 2} or array.shape[-1] != dimensions:
        raise InvalidVector(f"expected vectors of {dimensions} dimensions, got an array of shape {array.shape}")
    lengths = np.linalg.norm(array.astype(np.float64), axis=-1, keepdims=True)
    if not np.isfinite(lengths).all():
        raise InvalidVector("a vector holds NaN or infinity")
    if not lengths.all():
        raise InvalidVector("a vector is all zeros and has no direction")
    unit: Vector = (array / lengths).astype(np.float32)
    return unit


def check_dimensions(dimensions: object) -> None:
    """Raise InvalidSetting unless a column can have vectors of so many numbers."""
    if type(dimensions) is not int or dimensions < 1:
        raise InvalidSetting(f"dimensions={shown(dimensions)}: a vector has a whole number of them, from 1")


def checked(value: Any, dimensions: int, *, nonzero: bool | Callable[[], bool] = False) -> Vector:
    """A list, array or packed BLOB as a float32 array of shape (dimensions,).

    `nonzero` says whether zeros are refused; what is called for that is called for zeros only. Raises InvalidVector, a
    ValueError, for text, another shape, NaN or infinity, and for zeros then.
    """
    vector = _sized(value, dimensions)
    # One number tells all in nearly every case; it may be infinite or 0 for very large and very small vectors too.
    if not 0 < np.vdot(vector, vector) < math.inf:  # which never warns
        if not np.isfinite(vector).all():
            raise InvalidVector("a vector holds NaN or infinity, or a number beyond float32")
        if not vector.any() and (nonzero() if callable(nonzero) else nonzero):
            raise InvalidVector("a vector is all zeros and has no direction, which the cosine distance compares")
    return vector


def parameters(dimensions: int, *, nonzero: bool = False) -> Callable[[Any], bytes | VectorParameter | None]:
    """What makes parameters of a statement as `as_blob(checked(...))` does, but of a float32 array without a copy.

    The array must not change before the statement has run. None stays None. What is made raises InvalidVector.
    """
    # Bulk inserts wait for this: names of a function are found sooner than those of a module, and one look suffices.
    array, shape, product, infinity, parameter = np.ndarray, (dimensions,), np.vdot, math.inf, VectorParameter

    def made(value: Any) -> bytes | VectorParameter | None:
        if (
            type(value) is array
            and value.dtype is _PACKED
            and value.shape == shape
            and value.flags.c_contiguous
            and 0 < product(value, value) < infinity
        ):
            return value.view(parameter)
        return None if value is None else as_blob(checked(value, dimensions, nonzero=nonzero))

    return made


def packing(dimensions: int, *, copy: bool) -> Callable[[Any], bytes | VectorParameter | None]:
    """What makes parameters of many vectors as `parameters` does, but leaves it to `first_refused` to look at numbers.

    Without `copy` a float32 array must not change before the statement has run. None stays None. What is made raises
    InvalidVector for text and other shapes.
    """
    array, shape, parameter = np.ndarray, (dimensions,), VectorParameter

    def packed(value: Any) -> bytes | VectorParameter | None:
        if type(value) is array and value.dtype is _PACKED and value.shape == shape and value.flags.c_contiguous:
            return value.tobytes() if copy else value.view(parameter)
        return None if value is None else as_blob(_sized(value, dimensions))

    return packed


def first_refused(packed: Sequence[Any], dimensions: int, *, nonzero: bool = False) -> tuple[int, InvalidVector] | None:
    """Which of many that `packing` made is the first that `checked` refuses, and its error; None stands for none.

    A hundred together take a fifth of the time of one by one, most of which NumPy needs to be called.
    """
    held = [(place, vector) for place, vector in enumerate(packed) if vector is not None]
    rows = np.frombuffer(b"".join(vector for _, vector in held), dtype=_PACKED).reshape(-1, dimensions)
    lengths = np.einsum("ij,ij->i", rows, rows)  # which never warns
    for number in np.flatnonzero(~((lengths > 0) & (lengths < math.inf))):
        try:
            checked(rows[number], dimensions, nonzero=nonzero)
        except InvalidVector as error:
            return held[number][0], error
    return None


def _sized(value: Any, dimensions: int) -> Vector:
    """A vector of so many numbers, finite or not."""
    is_ready = type(value) is np.ndarray and value.dtype is _FLOAT32 and value.ndim == 1  # a mask would hide NaN
    vector: Vector = value if is_ready else _floats(value, dimensions)
    if len(vector) != dimensions:
        raise InvalidVector(f"expected {dimensions} dimensions, not {len(vector)}")
    return vector


def _floats(value: Any, dimensions: int) -> Vector:
    if isinstance(value, list | tuple):
        try:
            return np.frombuffer(_floats_of(len(value)).pack(*value), dtype=_FLOAT32)
        except (struct.error, OverflowError):
            pass  # what is no list of numbers is told more about below
    if isinstance(value, bytes | bytearray | memoryview):
        packed = bytes(value)
        if len(packed) % 4:
            raise InvalidVector(f"expected a vector of {dimensions} float32, {4 * dimensions} bytes, not {len(packed)}")
        return np.frombuffer(packed, dtype=_PACKED).astype(np.float32, copy=False)
    try:
        numbers = np.asarray(value)
    except ValueError as error:
        raise InvalidVector(f"expected a vector of {dimensions} numbers, got lists of unequal length") from error
    if numbers.dtype.kind not in "fiu":
        raise InvalidVector(f"expected a vector of {dimensions} numbers, got {shown(value)}")
    if numbers.ndim != 1:
        raise InvalidVector(f"expected a vector of {dimensions} numbers, got an array of shape {numbers.shape}")
    with np.errstate(all="ignore"):
        return numbers.astype(np.float32, copy=False)


@lru_cache
def _floats_of(count: int) -> struct.Struct:
    """So many floats; compiled once, and not for each vector."""
    return struct.Struct(f"{count}f")


def int8_scale(vectors: Vector) -> float:
    """The factor that spreads these unit vectors over int8: 127 / the 99.95th percentile of |x|.

    A 384-dimensional unit vector fills only a tenth of sqlite-vec's fixed `'unit'` range, which costs five points of
    recall; a scale of the index's own keeps it.
    """
    magnitudes = np.abs(vectors)
    return float(127.0 / (np.quantile(magnitudes, 0.9995) or magnitudes.max()))


def quantise_int8(vector: Vector, *, scale: float) -> bytes:
    """One byte a dimension, rounded and clipped to -127..127: the argument of sqlite-vec's `vec_int8()`."""
    codes: NDArray[np.int8] = np.clip(np.rint(vector * scale), -127, 127).astype(np.int8)
    return codes.tobytes()
