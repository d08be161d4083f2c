"""nearest(field, vector, k=): a select of the rows nearest to a vector, to which all that Peewee has can be added."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import TYPE_CHECKING, Any, Self

from peewee import CTE, SCOPE_COLUMN, SQL, Join, ModelAlias, ModelSelect, Node

from ..errors import InvalidQuery, shown
from ..vector_index import ALL_ROWS, whole
from ..vector_index.candidates import DISTANCES
from ..vectors import checked
from .dialects import base, bound_database, dialect_of
from .fields import Distance, VectorField
from .index import VectorIndex, indexes_of

if TYPE_CHECKING:
    from peewee import Context

    from ..vectors import Vector

# Before both stands `_vec_`, so that a filter may name any table.
NEAREST = "_vec_nearest"
FITS = "_vec_fits"


def nearest(field: VectorField, vector: Any, k: int = 10, *, metric: str | None = None) -> Nearest:
    """Select the k rows whose vector is nearest, nearest first, each with its `.distance`.

    The metric is that of the field's index; without an index all rows are scored, by cosine unless said otherwise.
    Rows without a vector are never found. Raises InvalidQuery, InvalidVector.
    """
    if not isinstance(getattr(field, "field", field), VectorField):  # an alias has its field
        raise InvalidQuery(f"{shown(field)} is no VectorField: nearest(Document.embedding, vector)")
    if metric not in {None, *DISTANCES}:
        raise InvalidQuery(f"metric is {shown(metric)}; it can be {', '.join(DISTANCES)}")
    wanted = whole(k)
    indexes = [index for index in indexes_of(field) if metric in {None, index.metric}]
    if len(indexes) > 1:
        metrics = " and ".join(sorted(index.metric for index in indexes))
        raise InvalidQuery(f"{field.name} has {len(indexes)} indexes, of {metrics}: say which metric")
    index = indexes[0] if indexes else None
    own: str = index.metric if index else getattr(base(field.model)._meta, "metric", "cosine")
    return Nearest(field, Score(field, vector, metric or own), k=wanted, index=index)


class Score(Distance):
    """The distance of rows that are found already: adding 0 keeps PostgreSQL from asking its index for them again."""

    def __init__(self, field: VectorField, vector: Any, metric: str) -> None:
        self.vector: Vector = checked(vector, field.dimensions, nonzero=metric == "cosine")
        super().__init__(field, self.vector, metric)

    def __sql__(self, ctx: Context) -> Context:
        return ctx.literal("(").sql(self._plain).literal(" + 0)")


class Nearest(ModelSelect):
    """The k nearest rows as a select, made by `nearest`.

    `where` filters inside the search: k rows come back whenever k rows match; joined tables filter too. `limit` makes
    it fewer, `offset` goes on beyond k, so `paginate` turns pages. With an `order_by` of your own the k nearest are
    sorted by that, and limit and offset are taken of them.
    """

    def __init__(self, field: VectorField, distance: Score, *, k: int, index: VectorIndex | None) -> None:
        model = field.model
        fields = model.get_field_aliases() if isinstance(model, ModelAlias) else model._meta.sorted_fields
        super().__init__(model, [*fields, distance.alias("distance")], is_default=True)
        self.field = field
        self.distance = distance
        self.index = index
        self.k = k
        self.key = getattr(model, base(model)._meta.primary_key.name)
        self._order_by = (distance, self.key)
        self._sorted = False

    def order_by(self, *values: Any) -> Self:
        """Sort the k nearest by something else."""
        query: Self = super().order_by(*values)
        query._sorted = self._sorted or bool(values)
        return query

    @property
    def depth(self) -> int:
        """How many rows the search has to find, so that limit and offset have what they take from."""
        if self._sorted:
            return self.k
        return max(1, min(min(self._limit or self.k, self.k) + (self._offset or 0), ALL_ROWS))

    def matching(self) -> ModelSelect | None:
        """The keys of all rows that the filters let through; None where there is no filter."""
        if self._where is None and not self.is_joined:
            return None
        query = ModelSelect(self.model, (self.key,)).from_(*self._from_list)
        return query if self._where is None else query.where(self._where)

    def ranked(self, *conditions: Node) -> CTE:
        """The keys of the `depth` rows nearest, of those that meet the conditions; scored exactly, row by row."""
        query = ModelSelect(self.model, (self.key,)).where(self.field.is_null(False), *conditions)
        # A vector that has no distance, such as zero written by another program, is NULL here, and shown nowhere.
        ordered = query.order_by(self.distance.asc(nulls="LAST"), self.key)
        return ordered.limit(self.depth).cte(NEAREST, materialized=True)

    @property
    def is_joined(self) -> bool:
        """Whether other tables take part."""
        return isinstance(self._from_list[0], Join) or len(self._from_list) > 1

    @property
    def condition(self) -> Node | None:
        """What `where` was given."""
        return self._where

    def __sql__(self, ctx: Context) -> Context:
        if ctx.scope == SCOPE_COLUMN:
            return self.apply_column(ctx)
        # A shallow copy is for Peewee the same source, under the same alias; a clone would be another one.
        query = copy(self)
        dialect = dialect_of(bound_database(self.model))
        tables = dialect.nearest(self)
        query._cte_list = (*(self._cte_list or ()), *tables)
        found = dialect.among(self.key, tables[-1].select(SQL("*"))) & self.distance.is_null(False)
        # Without joins the filter has done its work in the search, and needs not be asked again.
        query._where = found if self._where is None or not self.is_joined else self._where & found
        return ModelSelect.__sql__(query, ctx)


class Pieces(Node):
    """SQL in pieces of text and nodes, as a subquery."""

    def __init__(self, pieces: Sequence[str | Node]) -> None:
        self.pieces = pieces

    def __sql__(self, ctx: Context) -> Context:
        """Peewee would put parentheses around nodes that stand in some already."""
        with ctx.scope_normal(parentheses=True, subquery=False), ctx.push_alias():
            for piece in self.pieces:
                ctx.literal(piece) if isinstance(piece, str) else ctx.sql(piece)
        return ctx
