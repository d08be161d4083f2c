"""`hashing[@DIMENSIONS]`: a deterministic embedder for tests and documentation that needs no model.

Each word, lower-cased, stands for a direction of +1 and -1 by the bits of SHAKE-256 of its UTF-8 (0 is -1); a text is
the sum over its words, of unit length. The cosine of two texts is about the share of words that they have in common
(Charikar 2002, "Similarity Estimation Techniques from Rounding Algorithms"); it knows nothing of meaning.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from hashlib import shake_256

import numpy as np
from numpy.typing import NDArray

from ..errors import UnknownEmbedder
from ..vectors import Vector, normalise

_WORD = re.compile(r"\w+")


class HashingEmbedder:
    """See the module's docstring; reads any language, costs nothing, loads at once. 256 dimensions by default."""

    batch_size = 512
    chunk_capacity = 2_000
    tokenizer = None
    paid = False
    matryoshka = False  # for the documents' examples, other dimensions are another model

    def __init__(self, dimensions: int = 256) -> None:
        self.dimensions = dimensions
        self.name = "hashing" if dimensions == 256 else f"hashing@{dimensions}"
        self.fingerprint = f"hashing/shake256-words@{dimensions}"

    def embed_documents(self, texts: Sequence[str]) -> Vector:
        """Sums of the words' directions, of unit length."""
        sums = np.empty((len(texts), self.dimensions), dtype=np.float32)
        for row, text in zip(sums, texts, strict=True):
            # A text without a word (punctuation, emoji) counts as one word, so that no vector is zero.
            words = _WORD.findall(text.lower()) or [text]
            np.sum([_direction(word, self.dimensions) for word in words], axis=0, out=row)
        return normalise(sums, dimensions=self.dimensions)

    def embed_query(self, text: str) -> Vector:
        """The same as for a document."""
        vector: Vector = self.embed_documents([text])[0]
        return vector

    def speaks(self, text: str) -> bool:  # noqa: ARG002 - words of any language hash alike
        """Always true."""
        return True


@lru_cache(maxsize=20_000)
def _direction(word: str, dimensions: int) -> NDArray[np.float32]:
    digest = shake_256(word.encode("utf-8", "surrogatepass")).digest(dimensions // 8)
    return np.unpackbits(np.frombuffer(digest, np.uint8)).astype(np.float32) * 2 - 1


def load(rest: str) -> HashingEmbedder:
    """From `""` or `"@DIMENSIONS"`, a multiple of 8 from 64 to 4096."""
    if not rest:
        return HashingEmbedder()
    match = re.fullmatch(r"@(\d{1,4})", rest)
    if not match or int(match[1]) % 8 or not 64 <= int(match[1]) <= 4096:
        raise UnknownEmbedder(f"'hashing{rest}': write hashing@DIMENSIONS with a multiple of 8 from 64 to 4096")
    return HashingEmbedder(int(match[1]))
