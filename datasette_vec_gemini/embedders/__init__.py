"""Embedders by specification: a registered name, then whatever it understands (`local`, `hashing@64`, `gemini@256`)."""

from __future__ import annotations

import re
import threading
from functools import lru_cache

from pluggy import PluginManager

from .. import hookspecs
from ..access import Access
from ..domain import Embedder
from ..errors import UnknownEmbedder, shown
from ..paid import PaidEmbedder

_SPECIFICATION = re.compile(r"([A-Za-z0-9_-]+)(.*)", re.DOTALL)


@hookspecs.hookimpl
def register_embedders() -> dict[str, hookspecs.EmbedderFactory]:
    """The embedders of this package; each module is imported when it is asked for."""

    def gemini(rest: str, access: Access) -> Embedder:
        from .gemini import load

        return load(rest, access)

    def google_generativeai(rest: str, access: Access) -> Embedder:
        from .google_generativeai import load

        return load(rest, access)

    def hashing(rest: str, access: Access) -> Embedder:  # noqa: ARG001 - nothing is asked of anyone
        from .hashing import load

        return load(rest)

    def local(rest: str, access: Access) -> Embedder:  # noqa: ARG001 - the same
        from .local import load

        return load(rest)

    return {"gemini": gemini, "google-generativeai": google_generativeai, "hashing": hashing, "local": local}


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


_FREE = {"hashing", "local"}
"""What asks nobody: a mistake in the settings of paid services does not matter to these."""
_loaded: dict[tuple[str, Access], Embedder] = {}
_lock = threading.RLock()  # a factory may load the embedder that it wraps


def load(specification: str, access: Access | None = None) -> Embedder:
    """The embedder, loaded once in a process for each way to reach it, and shared by its threads.

    `access` is for those that are paid; without it the environment says how to reach them. Raises UnknownEmbedder with
    the names there are, EmbedderUnavailable, or InvalidSetting.
    """
    match = _SPECIFICATION.fullmatch(specification)
    if match and match[1] in _FREE:
        access = Access()
    access = access or Access.from_settings({})
    with _lock:
        if (specification, access) not in _loaded:
            factory = factories().get(match[1]) if match else None
            if match is None or factory is None:
                there = ", ".join(sorted(factories()))
                raise UnknownEmbedder(f"there is no embedder {shown(specification)}; there are: {there}")
            made = factory(match[2], access)
            if getattr(made, "paid", False) and not isinstance(made, PaidEmbedder):
                raise UnknownEmbedder(f"{specification!r} costs money and has no budget: it is not a PaidEmbedder")
            _loaded[specification, access] = made
        return _loaded[specification, access]
