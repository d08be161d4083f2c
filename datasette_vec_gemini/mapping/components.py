"""Principal components: the two directions in which many vectors differ the most."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..vectors import Vector

_BLOCK, _STEPS, _RESTARTS, _TOLERANCE = 8, 6, 6, 1e-3
_EXACT = 64
_PRODUCT = 2**18
"""OpenBLAS shares greater products among threads, and on a busy machine each then waits for milliseconds."""


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
        turns = np.linalg.eigh(space.T @ _spread(centred, space))[1][:, ::-1]
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
    step, total = max(1, _PRODUCT // block.size), np.zeros(block.shape)
    for first in range(0, len(centred), step):
        part = centred[first : first + step]
        total += part.T @ (part @ block)
    return total.astype(np.float32)


def oriented(axes: Vector, before: Vector | None) -> Vector:
    """The axes turned within their plane so that they come nearest to earlier ones (an orthogonal Procrustes problem).

    Without earlier ones the greatest number of each is positive.
    """
    if before is None:
        greatest = np.take_along_axis(axes, np.abs(axes).argmax(axis=1, keepdims=True), axis=1)
        return axes * np.where(greatest < 0, -1, 1).astype(np.float32)
    left, _, right = np.linalg.svd(before.astype(np.float64) @ axes.T.astype(np.float64))
    turned: Vector = ((left @ right) @ axes).astype(np.float32)
    return turned
