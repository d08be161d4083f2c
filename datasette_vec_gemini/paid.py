"""What an embedder that costs money must have beyond `Embedder`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from .access import Access
from .budget import Budget
from .domain import Embedder

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@runtime_checkable
class PaidEmbedder(Embedder, Protocol):
    """An embedder whose calls cost money, through a budget that stops them."""

    @property
    def concurrency(self) -> int:
        """How many batches may be under way at once."""
        ...

    @property
    def budget(self) -> Budget:
        """What its calls are charged to."""
        ...

    @property
    def access(self) -> Access:
        """The limits and the key it works with."""
        ...

    @property
    def busy(self) -> bool:
        """Whether a question is being answered just now."""
        ...

    def charged_to(self, ledger: str, *, max_usd: float | None = None, bulk: bool = False) -> PaidEmbedder:
        """The same embedder with a budget of its own, written down in that file ("" is memory)."""
        ...

    def require_key(self) -> None:
        """Raise EmbedderUnavailable where there is nothing to show to the service; nothing is asked."""
        ...

    def prepare(self) -> None:
        """Load what takes time before a question is waiting for it. Raises EmbedderUnavailable."""
        ...

    def count_tokens(self, texts: Sequence[str]) -> int:
        """About how many tokens these texts are charged as, counted here, rather too many."""
        ...

    def is_asked(self, text: str, *, task: str = ...) -> bool:
        """Whether this very question is being answered just now."""
        ...

    def known_query(self, text: str, *, task: str = ...) -> NDArray[np.float32] | None:
        """The vector of a question that was asked before; nothing is asked now."""
        ...

    def embed_query(self, text: str, *, task: str = ..., timeout_seconds: float | None = None) -> NDArray[np.float32]:
        """Array of shape (dimensions,), after at most so many seconds. Raises EmbedderError."""
        ...
