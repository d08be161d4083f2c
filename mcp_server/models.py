"""Models that are loaded in the background, so that nobody waits for one without being told."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress

from datasette_vec_gemini import Embedder, PaidEmbedder, VecError

from .library import Tell

READY_SECONDS = 8.0
"""How long a call waits for a model that is being loaded; clients give up after 60 seconds or so."""


class StillLoading(VecError):
    """The model is not loaded yet; ask again."""

    def __init__(self, specification: str) -> None:
        self.specification = specification
        super().__init__(
            f"the model {specification} is still being loaded: ask again in some seconds, or with mode keyword"
        )


class Models:
    """Models by specification, each loaded once; `load` is how."""

    def __init__(self, load: Callable[[str], Embedder], *, ready_seconds: float = READY_SECONDS) -> None:
        self._load = load
        self._ready_seconds = ready_seconds
        self._lock = threading.Lock()
        self._models: dict[str, Future[Embedder]] = {}
        self._threads: list[threading.Thread] = []

    def warm(self, specification: str) -> Future[Embedder]:
        """Begin to load a model, unless that was begun before; one that could not be loaded is tried again."""
        with self._lock:
            known = self._models.get(specification)
            if known and not (known.done() and known.exception()):
                return known
            made = self._models[specification] = Future()
            thread = threading.Thread(target=self._fill, args=(made, specification), name="vec-model", daemon=True)
            self._threads.append(thread)
            thread.start()
        return made

    def close(self, seconds: float = 10.0) -> None:
        """Wait until nothing is being loaded: a process that ends in the middle of that would crash."""
        for thread in self._threads:
            thread.join(seconds)

    def loaded(self, specification: str) -> Embedder | VecError:
        """The model, or why it cannot be loaded. One that is not there is loaded from now on. Raises StillLoading."""
        future = self.warm(specification)
        if not future.done():
            raise StillLoading(specification)
        error = future.exception()
        return error if isinstance(error, VecError) else future.result()

    async def ready(self, specification: str, tell: Tell) -> Embedder:
        """The model, if it is there in time. Raises StillLoading, or why it cannot be loaded."""
        future, loop = self.warm(specification), asyncio.get_running_loop()
        started = told = loop.time()
        while not future.done() and (waited := loop.time() - started) < self._ready_seconds:
            if loop.time() - told >= 1:
                told = loop.time()
                tell(waited, self._ready_seconds, f"loading the model {specification}")
            await asyncio.sleep(0.05)
        if not future.done():
            raise StillLoading(specification)
        return future.result()

    def _fill(self, future: Future[Embedder], specification: str) -> None:
        try:
            model = self._load(specification)
            if isinstance(model, PaidEmbedder):
                model.prepare()
            else:
                with suppress(VecError):
                    model.embed_query("warm")
        except BaseException as error:  # noqa: BLE001 - raised again by who waits for it
            future.set_exception(error)
        else:
            future.set_result(model)
