"""From row to text to chunks, and back: pure functions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from .domain import Chunk

if TYPE_CHECKING:
    from semantic_text_splitter import TextSplitter
    from tokenizers import Tokenizer

    from .domain import Embedder

_PLACEHOLDER = re.compile(r"\{([^{}]+)\}")


def placeholders(template: str) -> tuple[str, ...]:
    """The columns a template names in `{braces}`."""
    return tuple(_PLACEHOLDER.findall(template))


def render(row: Mapping[str, object], *, columns: Sequence[str], template: str | None) -> str:
    """The document of a row: the template with its `{column}`s filled in, or the columns joined by blank lines.

    NULL and BLOB values are left out; numbers are written as Python writes them. A document that has only white space
    is empty.
    """

    def written(column: str) -> str:
        value = row[column]
        return "" if value is None or isinstance(value, bytes) else str(value)

    if template is None:
        text = "\n\n".join(filter(str.strip, map(written, columns)))
    elif any(written(column).strip() for column in columns):
        text = _PLACEHOLDER.sub(lambda match: written(match[1]), template)
    else:
        text = ""
    return text if text.strip() else ""


def split(text: str, embedder: Embedder) -> list[Chunk]:
    """The chunks of a document, each within the embedder's window; none for a blank document.

    Cuts fall on the largest boundary that fits (paragraph, sentence, word); neighbours share up to `chunk_overlap`.
    White space at the ends of a chunk is not part of it.
    """
    start, end = len(text) - len(text.lstrip()), len(text.rstrip())
    if start >= end:
        return []
    stripped = text[start:end]
    if _fits(stripped, embedder):
        return [Chunk(position=0, start=start, end=end, text=stripped)]
    pieces = _splitter(embedder.tokenizer, embedder.chunk_capacity, embedder.chunk_overlap).chunk_indices(text)
    return [
        Chunk(position=position, start=offset, end=offset + len(piece), text=piece)
        for position, (offset, piece) in enumerate(pieces)
    ]


def covers(text: str, chunks: Iterable[Chunk]) -> bool:
    """Whether chunks, in order of position, are a cut of exactly this text: nothing but white space lies outside."""
    reached = 0
    for chunk in chunks:
        if text[chunk.start : chunk.end] != chunk.text or text[reached : chunk.start].strip():
            return False
        reached = chunk.end
    return not text[reached:].strip()


def _fits(text: str, embedder: Embedder) -> bool:
    if len(text) <= embedder.chunk_capacity:
        return True
    if embedder.tokenizer is None or len(text) > 40 * embedder.chunk_capacity:
        return False
    return len(embedder.tokenizer.encode(text, add_special_tokens=False).ids) <= embedder.chunk_capacity


@lru_cache(maxsize=8)
def _splitter(tokenizer: Tokenizer | None, capacity: int, overlap: int) -> TextSplitter:
    from semantic_text_splitter import TextSplitter

    if tokenizer is None:
        return TextSplitter(capacity, overlap=overlap)
    return TextSplitter.from_huggingface_tokenizer(tokenizer, capacity, overlap=overlap)
