"""Every error this library raises on purpose.

::

    VecError                     exit code 1
      UsageError                 exit code 2: what was asked cannot be done as asked
        InvalidName
        InvalidQuery             text, k, offset, mode or vector of a query
        InvalidFilter
        InvalidSetting           a configuration key or value, located
        TableNotFound
        ColumnNotFound
        InvalidKey               no key, or one that does not identify rows
        IndexExists
        IndexNotFound
        DocumentNotFound
        UnknownEmbedder
        ConfirmationNeeded       this would cost money and nobody said yes
      DatabaseUnavailable        missing, locked, read-only, full, or not a database
      TransactionOpen
      ExtensionUnavailable       sqlite-vec cannot be loaded, or FTS5 is missing
      FingerprintMismatch        vectors of one model asked with another
      EmbedderError
        EmbedderUnavailable      a package, a model file, a key or a model is missing or not the right one
        ServiceUnavailable       a remote model does not answer, or not in time
        EmbeddingFailed          these texts could not be embedded
        InvalidVector            wrong count, order or dimensions, not finite, or zero
        GateClosed               a new text of a SQL function or a visitor is not embedded now
        QuotaReached             exit code 4: the service gives no more today
        BudgetReached            exit code 4: the dollars allowed for a run or a day are spent

A message says what is wrong, with the values, and the remedy; it never holds a key, the text of a document or a path of
the server. Errors of SQLite are mapped where public functions end (`store.transactions.mapped_errors`).
"""

from __future__ import annotations

from collections.abc import Sequence
from reprlib import Repr
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_repr = Repr()
_repr.maxstring = _repr.maxother = 80


def shown(value: object) -> str:
    """A value as a message quotes it: like `repr`, shortened in its middle so that the message stays one line."""
    return _repr.repr(value)


def counted(number: int, noun: str) -> str:
    """So many of something, as a message says it: "1 chunk", "2,000 chunks"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


class VecError(Exception):
    """Base of all errors of this library; `exit_code` is what the command line ends with."""

    exit_code = 1


class UsageError(VecError):
    """The request cannot be carried out as it was put; correct it and ask again. Nothing was changed."""

    exit_code = 2


class InvalidName(UsageError):
    """The name cannot be the name of an index."""


class InvalidQuery(UsageError):
    """A query has an impossible text, k, offset, mode or vector."""


class InvalidFilter(UsageError):
    """A filter names an unknown column or operator, or has a value that does not fit it."""


class InvalidSetting(UsageError):
    """A configuration has an unknown key or an impossible value; the message says where."""


class TableNotFound(UsageError):
    """The database has no such table or view."""


class ColumnNotFound(UsageError):
    """The table has no such column, or no column was named at all."""


class InvalidKey(UsageError):
    """The rows of the table or view are not identified by these columns."""


class IndexExists(UsageError):
    """An index, or an object that the index would need, has that name already."""


class IndexNotFound(UsageError):
    """The database has no such index."""


class DocumentNotFound(UsageError):
    """The table has no row with that key, or the row is not indexed yet."""


class UnknownEmbedder(UsageError):
    """No embedder is registered under that name, or its specification does not parse."""


class ConfirmationNeeded(UsageError):
    """A paid run was asked for without a word on its cost; the message gives the estimate and how to say yes."""


class DatabaseUnavailable(VecError):
    """SQLite could not open, read or write the file: missing, locked, read-only, full or not a database."""


class TransactionOpen(VecError):
    """The connection has an open transaction, in which a model call would hold the write lock; commit first."""


class ExtensionUnavailable(VecError):
    """sqlite-vec cannot be loaded into this connection, or its SQLite has no FTS5."""


class FingerprintMismatch(VecError):
    """The index was built by another model or configuration than the one that asks; rebuild it or use its own."""


class EmbedderError(VecError):
    """Base of the errors that come from a model.

    `outcomes`, where the model can tell its texts apart, has for each of them its vector, the reason why it has none,
    or None where it was not asked: what was paid for is not lost with the rest of its batch.
    """

    outcomes: Sequence[NDArray[np.float32] | str | None] | None = None


class EmbedderUnavailable(EmbedderError):
    """The model cannot be used here: the message says what to install, which key is refused or which model is gone."""


class ServiceUnavailable(EmbedderError):
    """A remote model did not answer, again and again, or not within the time that the caller has; try again later."""


class EmbeddingFailed(EmbedderError):
    """The model refused these texts; without `outcomes` the caller splits the batch to find the one that fails."""


class InvalidVector(EmbedderError, ValueError):
    """A model returned, or a caller passed, something that is not a usable vector; a ValueError, as pgvector raises."""


class GateClosed(EmbedderError):
    """The gate before paid embeddings lets this new text not pass: by whom, how often or when it was asked."""


class QuotaReached(EmbedderError):
    """The service's own quota is used up for today, or is zero; what was embedded is kept, go on when it is renewed."""

    exit_code = 4


class BudgetReached(EmbedderError):
    """The next request could cost more than is left of the dollars allowed; what was embedded is kept.

    `what` is the message without its remedy, for a door where that is another one; `of_run` tells whether the dollars
    are those that somebody allowed for this run, and not those of the day.
    """

    exit_code = 4

    def __init__(self, what: str, *, remedy: str = "", of_run: bool = False) -> None:
        super().__init__(f"{what}: {remedy}" if remedy else what)
        self.what = what
        self.of_run = of_run
