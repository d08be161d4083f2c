"""`hashing[@DIMENSIONS]`: a deterministic embedder for tests and documentation that needs no model.

Each word, lower-cased, adds 1 to the dimension crc32(word) mod DIMENSIONS (256 by default); the sum gets unit length.
Texts are near when they share words; it knows nothing of meaning.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from zlib import crc32

import numpy as np

from ..errors import UnknownEmbedder
from ..vectors import Vector, normalise

_WORD = re.compile(r"\w+")


class HashingEmbedder:
    """See the module's docstring; reads any language, costs nothing, loads at once."""

    batch_size = 512
    chunk_capacity = 2_000
    chunk_overlap = 0
    tokenizer = None
    paid = False

    def __init__(self, dimensions: int = 256) -> None:
        self.dimensions = dimensions
        self.name = "hashing" if dimensions == 256 else f"hashing@{dimensions}"
        self.fingerprint = f"hashing/crc32-words@{dimensions}"

    def embed_documents(self, texts: Sequence[str]) -> Vector:
        """Counts of hashed words, of unit length."""
        counts = np.zeros((len(texts), self.dimensions), dtype=np.float32)
        for row, text in zip(counts, texts, strict=True):
            # A text without a word (punctuation, emoji) counts as one word, so that no vector is zero.
            for word in _WORD.findall(text.lower()) or [text]:
                row[crc32(word.encode("utf-8", "surrogatepass")) % self.dimensions] += 1
        return normalise(counts, dimensions=self.dimensions)

    def embed_query(self, text: str) -> Vector:
        """The same as for a document."""
        vector: Vector = self.embed_documents([text])[0]
        return vector

    def speaks(self, text: str) -> bool:  # noqa: ARG002 - words of any language hash alike
        """Always true."""
        return True


def load(rest: str) -> HashingEmbedder:
    """From `""` or `"@DIMENSIONS"`, a multiple of 8 up to 4096."""
    if not rest:
        return HashingEmbedder()
    match = re.fullmatch(r"@(\d{1,4})", rest)
    if not match or int(match[1]) % 8 or not 8 <= int(match[1]) <= 4096:
        raise UnknownEmbedder(f"'hashing{rest}': write hashing@DIMENSIONS with a multiple of 8 from 8 to 4096")
    return HashingEmbedder(int(match[1]))
