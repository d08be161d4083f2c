"""The numbered migrations of what all indexes of a file share: the registry, the ledger and the jobs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlite_utils import Migrations

if TYPE_CHECKING:
    from sqlite_utils import Database

migrations = Migrations("datasette_vec_gemini")


@migrations()
def m001_registry(db: Database) -> None:
    """One row for each index and generation."""
    db.execute(
        """
        create table _vec_indexes (
            name text not null collate nocase,
            generation integer not null,
            uid text not null,
            state text not null check (state in ('building', 'active')),
            "table" text not null,
            is_view integer not null,
            columns text not null,
            template text,
            filter_columns text not null,
            key text not null,
            embedder text not null,
            fingerprint text not null,
            dimensions integer not null,
            quantize text not null,
            int8_scale real,
            checked text,
            primary key (name, generation)
        )
        """
    )


@migrations()
def m002_usage(db: Database) -> None:
    """The ledger of paid calls."""
    db.table("_vec_usage").create(
        {"day": str, "model": str, "requests": int, "texts": int, "tokens": int, "usd": float},
        pk=("day", "model"),
        not_null={"requests", "texts", "tokens", "usd"},
        defaults={"requests": 0, "texts": 0, "tokens": 0, "usd": 0.0},
    )


@migrations()
def m003_retired(db: Database) -> None:
    """A generation can be kept after the next one took its place; SQLite cannot alter a check."""
    # Not by renaming a new table, for which SQLite would parse every view of the file, and one may be broken.
    (sql,) = db.execute("select sql from sqlite_master where name = '_vec_indexes'").fetchone()
    rows = db.execute("select * from _vec_indexes").fetchall()
    db.execute("drop table _vec_indexes")
    db.execute(sql.replace("('building', 'active')", "('building', 'active', 'retired')", 1))
    for row in rows:
        db.execute(f"insert into _vec_indexes values ({', '.join('?' * len(row))})", row)


@migrations()
def m004_jobs(db: Database) -> None:
    """What a server does, or was doing, for an index in the background; it goes with the index."""
    db.execute(
        """
        create table _vec__jobs (
            "index" text not null collate nocase,
            kind text not null check (kind in ('sync', 'rebuild', 'verify')),
            state text not null check (
                state in ('queued', 'running', 'paused', 'cancelled', 'finished', 'failed', 'waiting')
            ),
            started text not null,
            ended text,
            stage text not null,
            done integer not null,
            total integer not null,
            message text not null,
            max_usd real,
            spent_usd real not null,
            owner text not null,
            asked text check (asked in ('paused', 'cancelled')),
            primary key ("index", kind)
        )
        """
    )
