"""The sentence of each snippet that is nearest to the question in meaning, told by a model that costs nothing.

It is an extra of the page: a visitor waits for it a few hundredths of a second, and where that is not enough the page
comes without some of the marks. What was embedded is kept, so that the next one finds it.
"""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import chain, islice
from types import MappingProxyType

from .. import embedders
from ..access import Access
from ..browsing import Browsed
from ..domain import Embedder, Index, Query
from ..errors import VecError
from ..paid import PaidEmbedder
from ..vectors import Vector
from .jobs import step_back

WAIT_SECONDS = 0.05
WORK_SECONDS = 1.0
"""A page waits for so long; the work goes on until so long after it was asked for."""
MOST_HITS = 20
AT_ONCE = 8
"""Sentences that the model gets at once: enough to be quick, few enough to stop between them."""
KEPT = 5_000
_SHORTEST = 20
_END = re.compile(r"(?<=[.!?…])\s+|(?<=[\u3002\uff01\uff1f])")

Spans = Mapping[int, tuple[int, int]]
"""Number of a hit -> where its nearest sentence stands in its snippet."""
NONE: Spans = MappingProxyType({})


def sentences(text: str) -> list[tuple[int, int]]:
    """Where the sentences of a text begin and end; what is very short, such as "e.g.", belongs to what follows."""
    found, start = list[tuple[int, int]](), 0
    for match in [*_END.finditer(text), None]:
        end = match.start() if match else len(text)
        if match is None and end - start < _SHORTEST and found:
            found[-1] = (found[-1][0], end)
        elif match is None or end - start >= _SHORTEST:
            found.append((start, end))
            start = match.end() if match else end
    return found


class Sentences:
    """The vectors of so many sentences that a site has shown last; one thread embeds them."""

    def __init__(self, *, load: Callable[..., Embedder] = embedders.load, kept: int = KEPT) -> None:
        self._load = load
        self._kept = kept
        self._vectors: OrderedDict[tuple[str, str], Vector] = OrderedDict()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="vec-sentences", initializer=step_back)
        self._lock = threading.Lock()
        self._is_at_work = False

    async def nearest(
        self, index: Index, query: Query, found: Browsed, access: Access, *, is_busy: bool = False
    ) -> Spans:
        """For as many of the hits by meaning as there is time for, the place of the nearest of several sentences.

        On a busy site that time is nothing: the marks are what pages do without.
        """
        hits = {
            n: hit
            for n, hit in enumerate(found.hits)
            if hit.why.semantic and (found.strengths[n].by_meaning or hit.why.keyword is None)
        }
        cut = ((n, sentences(hit.snippet)) for n, hit in hits.items())
        places = dict(islice(((n, spans) for n, spans in cut if len(spans) > 1), MOST_HITS))
        model = await asyncio.to_thread(self._free, index, access) if places else None
        if model is None or not model.speaks(query.text):
            return NONE
        # A vector that the question has already is one of the same model, unless that is paid.
        vector = query.vector if model.fingerprint == index.fingerprint else None
        texts = {n: [hits[n].snippet[start:end] for start, end in spans] for n, spans in places.items()}
        with self._lock:
            asked = [*([] if vector is not None else [query.text]), *chain.from_iterable(texts.values())]
            wanted = [text for text in dict.fromkeys(asked) if (model.fingerprint, text) not in self._vectors]
            is_mine = bool(wanted) and not is_busy and not self._is_at_work
            self._is_at_work |= is_mine
        if is_mine:
            until = time.monotonic() + WORK_SECONDS
            work = asyncio.get_running_loop().run_in_executor(self._thread, self._embed, model, wanted, until)
            await asyncio.wait([work], timeout=WAIT_SECONDS)
        return self._told(model, query.text, vector, places, texts)

    def _told(
        self,
        model: Embedder,
        question: str,
        vector: Vector | None,
        places: Mapping[int, Sequence[tuple[int, int]]],
        texts: Mapping[int, Sequence[str]],
    ) -> Spans:
        with self._lock:
            asked = self._vectors.get((model.fingerprint, question)) if vector is None else vector
            if asked is None:
                return NONE
            told = {}
            for n, parts in texts.items():
                vectors = [self._vectors.get((model.fingerprint, part)) for part in parts]
                cosines = [float(each @ asked) for each in vectors if each is not None]
                if len(cosines) == len(parts):
                    told[n] = places[n][max(range(len(cosines)), key=cosines.__getitem__)]
            return told

    def _embed(self, model: Embedder, wanted: Sequence[str], until: float) -> None:
        """Embed what the first hits need first."""
        try:
            for start in range(0, len(wanted), AT_ONCE):
                if time.monotonic() > until:
                    return
                texts = wanted[start : start + AT_ONCE]
                vectors = model.embed_documents(texts)
                with self._lock:
                    self._vectors |= {(model.fingerprint, text): vectors[n] for n, text in enumerate(texts)}
                    while len(self._vectors) > self._kept:
                        self._vectors.popitem(last=False)
        except Exception:  # noqa: BLE001 - whatever a plugin's model raises, the page does without
            return
        finally:
            with self._lock:
                self._is_at_work = False

    def _free(self, index: Index, access: Access) -> Embedder | None:
        """The model of the index, or where that is paid the one that comes with this package; None if none is there."""
        with suppress(VecError):
            model = self._load(index.embedder, access)
            return self._load("local") if isinstance(model, PaidEmbedder) else model
        return None
