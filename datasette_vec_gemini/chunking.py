"""From row to text to chunks, and back: pure functions."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

from .domain import Chunk

if TYPE_CHECKING:
    from semantic_text_splitter import TextSplitter
    from tokenizers import Tokenizer

    from .domain import Embedder

WINDOW = 100_000
"""Characters that are split at once."""

_PLACEHOLDER = re.compile(r"\{([^{}]+)\}")


def placeholders(template: str) -> tuple[str, ...]:
    """The columns a template names in `{braces}`."""
    return tuple(_PLACEHOLDER.findall(template))


def respell(template: str, column: Callable[[str], str]) -> str:
    """The template with each column as the table spells it."""
    return _PLACEHOLDER.sub(lambda match: f"{{{column(match[1])}}}", template)


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

    Cuts fall on the largest boundary that fits (paragraph, sentence, word). None is much shorter than half of the
    others, because a short last chunk would be near to everything. White space at their ends is not part of them.
    """
    start, end = len(text) - len(text.lstrip()), len(text.rstrip())
    if start >= end:
        return []
    if end - start > WINDOW:
        return _split_by_windows(text, start, end, embedder)
    capacity, size = embedder.chunk_capacity, _size(text[start:end], embedder)
    if size <= capacity:
        return [Chunk(position=0, start=start, end=end, text=text[start:end])]
    # A step of a sixteenth keeps the splitters few; a cut seldom falls just where it would be even.
    step = max(1, capacity // 16)
    even = size / math.ceil(size / capacity)
    pieces = _splitter(embedder.tokenizer, min(capacity, math.ceil(even * 1.08 / step) * step)).chunk_indices(text)
    if len(pieces) > 2 and 2 * len(pieces[-1][1]) < len(pieces[-2][1]):
        # What every cut leaves over adds up to a short last chunk: it shares with the one before it.
        shared = pieces[-2][0]
        pieces[-2:] = [(shared + chunk.start, chunk.text) for chunk in split(text[shared:], embedder)]
    return [
        Chunk(position=position, start=offset, end=offset + len(piece), text=piece)
        for position, (offset, piece) in enumerate(pieces)
    ]


def _split_by_windows(text: str, start: int, end: int, embedder: Embedder) -> list[Chunk]:
    """Split what is too long at once, window by window: the time grows with the square where a text has no breaks."""
    chunks: list[Chunk] = []
    while start < end:
        stop = min(end, start + WINDOW)
        if stop < end:
            blank = max(text.rfind(character, start + WINDOW // 2, stop) for character in " \n\t")
            stop = stop if blank < 0 else blank
        chunks += [
            replace(chunk, position=len(chunks) + chunk.position, start=start + chunk.start, end=start + chunk.end)
            for chunk in split(text[start:stop], embedder)
        ]
        start = stop
    return chunks


def _size(text: str, embedder: Embedder) -> int:
    """How long a text is in the embedder's unit, or an upper bound: no ASCII character is two tokens."""
    if embedder.tokenizer is None or (len(text) <= embedder.chunk_capacity and text.isascii()):
        return len(text)
    return len(embedder.tokenizer.encode(text, add_special_tokens=False).ids)


def covers(text: str, chunks: Iterable[Chunk]) -> bool:
    """Whether chunks, in order of position, are a cut of exactly this text: nothing but white space lies outside."""
    reached = 0
    for chunk in chunks:
        if text[chunk.start : chunk.end] != chunk.text or text[reached : chunk.start].strip():
            return False
        reached = chunk.end
    return not text[reached:].strip()


def digest(text: str, fingerprint: str) -> bytes:
    """Sixteen bytes of BLAKE2b over a chunk's text, keyed by the model's fingerprint: which vector it must have."""
    key = hashlib.blake2b(fingerprint.encode(), digest_size=32).digest()
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16, key=key).digest()


@lru_cache(maxsize=64)
def _splitter(tokenizer: Tokenizer | None, capacity: int) -> TextSplitter:
    from semantic_text_splitter import TextSplitter

    if tokenizer is None:
        return TextSplitter(capacity)
    return TextSplitter.from_huggingface_tokenizer(tokenizer, capacity)
