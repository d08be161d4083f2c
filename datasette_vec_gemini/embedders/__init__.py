"""Embedders by specification: a registered name, then whatever that embedder understands (`local`, `hashing@64`)."""

from __future__ import annotations

import re
import threading
from functools import lru_cache

from pluggy import PluginManager

from .. import hookspecs
from ..domain import Embedder
from ..errors import UnknownEmbedder, shown

_SPECIFICATION = re.compile(r"([A-Za-z0-9_-]+)(.*)", re.DOTALL)


@hookspecs.hookimpl
def register_embedders() -> dict[str, hookspecs.EmbedderFactory]:
    """The embedders of this package; each module is imported when it is asked for."""

    def hashing(rest: str) -> Embedder:
        from .hashing import load

        return load(rest)

    def local(rest: str) -> Embedder:
        from .local import load

        return load(rest)

    return {"hashing": hashing, "local": local}


@lru_cache(maxsize=1)
def factories() -> dict[str, hookspecs.EmbedderFactory]:
    """Every registered embedder by name; a plugin's entry replaces a built-in one of the same name."""
    import sys

    manager = PluginManager("datasette_vec_gemini")
    manager.add_hookspecs(hookspecs)
    manager.register(sys.modules[__name__])
    manager.load_setuptools_entrypoints("datasette_vec_gemini")
    found: dict[str, hookspecs.EmbedderFactory] = {}
    for registered in reversed(manager.hook.register_embedders()):
        found.update(registered)
    return found


_loaded: dict[str, Embedder] = {}
_lock = threading.RLock()  # a factory may load the embedder that it wraps


def load(specification: str) -> Embedder:
    """The embedder, loaded once in a process and shared by its threads.

    Raises UnknownEmbedder with the names there are, or EmbedderUnavailable.
    """
    with _lock:
        if specification not in _loaded:
            match = _SPECIFICATION.fullmatch(specification)
            factory = factories().get(match[1]) if match else None
            if match is None or factory is None:
                there = ", ".join(sorted(factories()))
                raise UnknownEmbedder(f"there is no embedder {shown(specification)}; there are: {there}")
            _loaded[specification] = factory(match[2])
        return _loaded[specification]
