"""Fakes that one can compute in one's head."""

import threading
from collections.abc import Callable, Sequence

import numpy as np

from datasette_vec_gemini import load_embedder
from datasette_vec_gemini.errors import EmbeddingFailed


class Recorder:
    """The hashing embedder, which keeps every text it was asked for and can act while it embeds."""

    batch_size = 4
    tokenizer = None
    paid = False
    matryoshka = False

    def __init__(self, *, chunk_capacity: int = 2_000, name: str = "hashing@64") -> None:
        self.inner = load_embedder(name)
        self.name = name
        self.fingerprint = self.inner.fingerprint
        self.dimensions = self.inner.dimensions
        self.chunk_capacity = chunk_capacity
        self.texts: list[str] = []
        self.batches: list[int] = []
        self.refused: set[str] = set()
        self.meanwhile: Callable[[], None] | None = None

    def embed_documents(self, texts: Sequence[str]) -> np.ndarray:
        if self.refused.intersection(texts):
            raise EmbeddingFailed("the model refuses this text")
        self.texts += texts
        self.batches.append(len(texts))
        if self.meanwhile:
            self.meanwhile()
        return self.inner.embed_documents(texts)

    def embed_query(self, text: str) -> np.ndarray:
        return self.inner.embed_query(text)

    def speaks(self, text: str) -> bool:
        return True


def written_down() -> None:
    """Wait until what was asked stands in the ledger, which is a moment after the answer."""
    for thread in threading.enumerate():
        if thread.name == "vec-question":
            thread.join(10)
