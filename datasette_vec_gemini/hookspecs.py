"""Hooks of our own, for plugins that bring embedders (entry point group `datasette_vec_gemini`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from pluggy import HookimplMarker, HookspecMarker

if TYPE_CHECKING:
    from .access import Access
    from .domain import Embedder

hookspec = HookspecMarker("datasette_vec_gemini")
hookimpl = HookimplMarker("datasette_vec_gemini")

EmbedderFactory = Callable[[str, "Access"], "Embedder"]


@hookspec
def register_embedders() -> Mapping[str, EmbedderFactory]:  # type: ignore[empty-body]  # a specification has no body
    """Name -> a function of the rest of the specification (`":MODEL@DIMS"`, `""` if none) and the access that loads it.

    The function raises UnknownEmbedder for a rest it does not understand and EmbedderUnavailable when this machine
    cannot run the model. It is called at most once for each specification and access in a process. What it makes is an
    `Embedder`; one whose `paid` is true is a `PaidEmbedder`.
    """
