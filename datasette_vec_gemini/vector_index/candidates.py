"""The SQL that finds the keys of the rows nearest to a vector by a derived vec0 index.

One select plans and searches: filters act inside the search, rows that are not folded in yet stand beside vec0's
answer, and whatever makes vec0 unfit turns the same statement into a scan of all rows that the filters leave. `k` never
meets LIMIT, no constraint can be flattened into another level, and no constant condition is left to an inner loop.
The names in it begin with `_vec_`, so that a filter may name any table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..schema import quote_identifier

if TYPE_CHECKING:
    from . import DerivedIndex

QUERY, WANTED, MATCHING = "\0query\0", "\0wanted\0", "\0matching\0"
"""Where the arguments of a search belong in the text; no identifier can hold such a thing."""

REGISTRY = "_vec_derived"
"""The table that tells which derived indexes a database has."""
MAX_CODES = 4_096
"""The greatest k that vec0 takes."""

DISTANCES: dict[str, str] = {
    "cosine": "vec_distance_cosine",
    "l2": "vec_distance_l2",
    "inner_product": "vec_negative_inner_product",
}
"""The SQL function of each metric, lower for nearer; the inner product's, as in pgvector, is negative."""


def select(index: DerivedIndex, *, filtered: bool) -> str:
    """The select of keys, with QUERY, WANTED and, if `filtered`, MATCHING in the place of its arguments."""
    matching = f"_vec_matching(id) as materialized ({MATCHING}),\n" if filtered else ""
    table, key, vec0, dirty = map(quote_identifier, (index.table, index.key, index.name, index.dirty))
    rows = "(select count(*) from _vec_matching)" if filtered else "derived.rows"
    only = "and v.id in (select id from _vec_matching)" if filtered else ""
    all_keys, everything = ("t.id", "_vec_matching as t") if filtered else (f"t.{key}", f"{table} as t")
    code = _code(index)
    found = "_vec_alive union all select id from _vec_around" if index.quantize == "bit" else "_vec_alive"
    # Of the changed rows only those that vec0 has too, with what they were, take a place in its answer.
    coded = quote_identifier(f"{index.name}_rowids"), "rowid" if index.key_type == "integer" else "id"
    return f"""with {matching}_vec_changed as materialized (
    select count(*) as rows, count(coded.{coded[1]}) as coded
    from (select id from {dirty} limit {MAX_CODES + 1}) as dirty
    left join {coded[0]} as coded on coded.{coded[1]} = dirty.id
),
_vec_plan as materialized (
    select asked.wanted, derived.scale, min({MAX_CODES}, asked.wanted * {index.oversample} + changed.coded) as depth,
        asked.wanted + changed.coded > {MAX_CODES} or changed.rows > {MAX_CODES}
        or derived.definition is not {literal(index.definition)}
        or lower(derived."table") is not lower({literal(index.table)}) or {rows} <= {index.exact_rows}
        or {triggers_installed(index)} < 3 as exact
    from (select {WANTED} as wanted) as asked cross join _vec_changed as changed
    left join {REGISTRY} as derived on derived.name = {literal(index.name)}
),
_vec_near as materialized (
    select v.id, v.distance from _vec_plan as a cross join {vec0} as v
    where not a.exact and v.embedding match {code} and v.k = a.depth {only}
),{_around(index, code, only)}
_vec_alive as materialized (
    select near.id from _vec_near as near cross join {table} as t on t.{key} = near.id
)
select id from {found} union all select id from {dirty}
union all select {all_keys} from _vec_plan as a cross join {everything}
where a.exact or (select count(*) from _vec_near) = a.depth and (
    (select count(*) from _vec_alive) < a.wanted{_or_tied(index)}
)"""


def _code(index: DerivedIndex) -> str:
    """The vector asked as vec0 compares it."""
    if index.quantize == "bit":
        return f"vec_quantize_binary({QUERY})"
    if index.quantize == "int8":
        return f"vec_int8(vec_int8_code({QUERY}, a.scale, {int(index.nonzero)}))"
    return f"vec_normalize({QUERY})" if index.nonzero else QUERY


def _or_tied(index: DerivedIndex) -> str:
    """Of equal vectors there may be more than vec0's answer has places: all rows tell which of them come first."""
    if index.quantize == "bit":
        return ""  # the second pass has them all
    return """
    or (select count(*) from _vec_near where distance < (select max(distance) from _vec_near)) < a.wanted"""


def _around(index: DerivedIndex, code: str, only: str) -> str:
    """The second pass over bits: all within the radius that the exact distance of the nearest ones corresponds to."""
    if index.quantize != "bit":
        return ""
    table, key, column, vec0, dirty = map(
        quote_identifier, (index.table, index.key, index.column, index.name, index.dirty)
    )
    return f"""
_vec_radius as materialized (
    select vec_hamming_radius(max(vec_distance_cosine(t.{column}, {QUERY})), {index.dimensions}) as bits
    from _vec_near as near cross join {table} as t on t.{key} = near.id
    where {index.present(f"t.{column}")} and near.id not in (select id from {dirty})
),
_vec_around as materialized (
    select v.id from _vec_radius as radius cross join {vec0} as v
    where radius.bits is not null
        and v.embedding match {code} and v.k = {MAX_CODES} and v.distance <= radius.bits {only}
),"""


def present(column: str, dimensions: int) -> str:
    """Whether a column, in SQL, holds a vector of so many dimensions: not NULL, nor what another program left there."""
    return f"typeof({column}) = 'blob' and length({column}) = {4 * dimensions}"


def triggers_installed(index: DerivedIndex) -> str:
    """How many of the index's three triggers are on its table, in SQL."""
    names = ", ".join(map(literal, index.triggers))
    return (
        f"(select count(*) from sqlite_master where type = 'trigger' and name in ({names}) "
        f"and tbl_name = {literal(index.table)} collate nocase)"
    )


def literal(value: str | int) -> str:
    """A value in SQL text that takes no parameters."""
    return str(value) if isinstance(value, int) else "'" + value.replace("'", "''") + "'"
