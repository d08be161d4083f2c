"""The ORM doors beside the same work by hand: the nearest rows, bulk inserts; and what quantised indexes find."""

import gc
import json
import re
import statistics
import sys
import time
from itertools import count, islice
from pathlib import Path

import numpy as np
import peewee
import sqlalchemy as sa
import sqlite_vec
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from datasette_vec_gemini import load_embedder, sqlite3, vector_index
from datasette_vec_gemini import peewee as on_peewee
from datasette_vec_gemini import sqlalchemy as on_sqlalchemy
from datasette_vec_gemini.demo.rows import standard_library

from .targets import finish, report

ROWS, DIMENSIONS, QUERIES, K = 100_000, 768, 30, 10
INSERTED, ROUNDS = 20_000, 7
INDEX = "document_embedding_idx"
_numbers = count()


def model(quantize: str | None, dimensions: int, kind=None):
    """The class of a table `document` in SQLAlchemy, whose column is a Vector or of that kind."""

    class Base(DeclarativeBase):
        pass

    class Document(Base):
        __tablename__ = "document"
        id: Mapped[int] = mapped_column(primary_key=True)
        part: Mapped[int]
        embedding: Mapped[list[float]] = mapped_column(kind or on_sqlalchemy.Vector(dimensions))
        if quantize:
            __table_args__ = (on_sqlalchemy.VectorIndex(INDEX, "embedding", quantize=quantize),)

    return Document


def peewee_model(db, quantize: str | None, dimensions: int, field=None):
    """The same in Peewee."""

    class Document(peewee.Model):
        part = peewee.IntegerField()
        embedding = field or on_peewee.VectorField(dimensions=dimensions)

        class Meta:
            database = db
            table_name = "document"

    if quantize:
        Document.add_index(on_peewee.VectorIndex(Document.embedding, name=INDEX, quantize=quantize))
    return Document


def by_hand(path: Path) -> sqlite3.Connection:
    conn = sqlite3.connect(path)
    vector_index.prepare(conn)
    return conn


def clustered(count: int, dimensions: int, seed: int) -> np.ndarray:
    """Vectors around 200 centres, as texts on 200 subjects would have."""
    centres = np.random.default_rng(0).normal(size=(200, dimensions)).astype(np.float32)
    noise = np.random.default_rng(seed)
    vectors = centres[noise.integers(0, 200, count)]
    for start in range(0, count, 10_000):
        vectors[start : start + 10_000] += noise.normal(size=vectors[start : start + 10_000].shape)
    return vectors


def in_turn(pairs: int, hand, orm) -> tuple[list[float], list[float]]:
    """Seconds of both, which are called with the number of the pair and take turns at going first."""
    times: dict = {hand: [], orm: []}
    for number in range(pairs):
        for call in (hand, orm) if number % 2 else (orm, hand):
            times[call].append(call(number))
    return times[hand], times[orm]


def timed(call):
    """The same call, which answers how many seconds it took."""

    def run(number: int) -> float:
        started = time.perf_counter()
        call(number)
        return time.perf_counter() - started

    return run


def compare(what: str, hand: list[float], orm: list[float], *, at_most: float | None = None) -> None:
    ratio = statistics.median(o / h for h, o in zip(hand, orm, strict=True))
    shown = f"{what} ({1000 * statistics.median(hand):.1f} ms by hand)"
    report(shown, ratio, "times", at_most=at_most)


def measure_nearest(directory: Path) -> None:
    path = directory / "nearest.db"
    vectors = clustered(ROWS, DIMENSIONS, seed=1)
    queries = clustered(QUERIES + 1, DIMENSIONS, seed=2)
    engine = on_sqlalchemy.create_engine(f"sqlite:///{path}")
    model(None, DIMENSIONS).metadata.create_all(engine)
    conn = by_hand(path)
    conn.executemany(
        "insert into document (part, embedding) values (?, ?)",
        ((n % 10, vector.tobytes()) for n, vector in enumerate(vectors)),
    )
    conn.commit()
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for quantize in ("float32", "int8", "bit"):
        document = model(quantize, DIMENSIONS)
        started = time.perf_counter()
        document.metadata.create_all(engine)
        with engine.connect() as connection:
            on_sqlalchemy.sync_indexes(connection)
        print(f"{quantize}: {ROWS:,} x {DIMENSIONS} folded in within {time.perf_counter() - started:.1f} s")
        measure_doors(engine, on_peewee.VectorSqliteDatabase(path), conn, queries, quantize)
        found = 0
        with Session(engine) as session:
            for query in queries:
                ids = {d.id - 1 for d, _ in session.execute(on_sqlalchemy.nearest(document.embedding, query, k=K))}
                found += len(ids & set(np.argsort(-(units @ query))[:K].tolist()))
        report(f"{quantize}: recall@{K} on clustered noise", found / (K * len(queries)))
        next(iter(document.__table__.indexes)).drop(engine)
    conn.close()
    engine.dispose()


def measure_doors(engine, db, conn, queries, quantize: str) -> None:
    caught: list = []

    @sa.event.listens_for(engine, "before_cursor_execute")
    def catch(_, __, statement, parameters, *___) -> None:
        caught[:] = statement, parameters

    document, mirror = model(quantize, DIMENSIONS), peewee_model(db, quantize, DIMENSIONS)

    def through_sqlalchemy(number: int, **options):
        with Session(engine) as session:
            return session.execute(on_sqlalchemy.nearest(document.embedding, queries[number], k=K, **options)).all()

    def through_peewee(number: int):
        return list(on_peewee.nearest(mirror.embedding, queries[number], k=K))

    def the_same(number: int):
        return conn.execute(*prepared[number]).fetchall()

    ways = {
        "SQLAlchemy": through_sqlalchemy,
        "SQLAlchemy, 10 % of the rows": lambda number: through_sqlalchemy(number, where=[document.part == 3]),
        "Peewee": through_peewee,
    }
    for name, way in ways.items():
        prepared = []
        for number in range(QUERIES):
            if name == "Peewee":
                prepared.append(on_peewee.nearest(mirror.embedding, queries[number], k=K).sql())
            else:
                way(number)
                prepared.append(tuple(caught))
        the_same(0)
        compare(f"nearest, {quantize}, {name}", *in_turn(QUERIES, timed(the_same), timed(way)), at_most=1.3)
    sa.event.remove(engine, "before_cursor_execute", catch)
    db.close()


def measure_inserts(directory: Path) -> None:
    """Lists go in, as models give them; by hand through sqlite-vec's own `serialize_float32`, as its page shows."""
    vectors = clustered(INSERTED, DIMENSIONS, seed=3)
    kinds = {"lists": (vectors.tolist(), sqlite_vec.serialize_float32), "arrays": (list(vectors), np.ndarray.tobytes)}
    print(
        f"{ROUNDS} rounds of {INSERTED:,} rows of {DIMENSIONS} dimensions, each into a new file; the best of each way, "
        "in seconds of the processor, which no neighbour and no disk changes"
    )
    for quantize, kind in ((None, "lists"), (None, "arrays"), ("int8", "lists")):
        values, serialize = kinds[kind]
        rows = [{"part": n % 10, "embedding": value} for n, value in enumerate(values)]
        gc.collect()
        gc.freeze()  # what goes in was there before, and is not to be walked through while a way is timed
        ways = {
            "SQLAlchemy": insert_through_sqlalchemy,
            "Peewee, bulk_insert": insert_in_bulk_through_peewee,
            "Peewee, insert_many": insert_through_peewee,
        }
        if not quantize:  # how far the ORMs themselves get, with a column of theirs that checks nothing
            ways["SQLAlchemy, its own LargeBinary"] = large_binary_way(serialize)
            ways["Peewee, insert_many, its own BlobField"] = blob_field_way(serialize)
        for name, way in ways.items():
            alone, with_orm = in_turn(
                ROUNDS,
                lambda _, of=(quantize, rows, serialize): insert_by_hand(directory, *of),
                lambda _, way=way, of=(quantize, rows): way(directory, *of),
            )
            what = f"insert {kind}{' and index them by int8' if quantize else ''}, {name}"
            ratio, bound = min(alone) / min(with_orm), None if "its own" in name else 0.6
            report(f"{what} ({min(alone):.2f} s by hand)", ratio, "times", at_least=bound)


def new_file(directory: Path, quantize: str | None) -> Path:
    path = directory / f"insert-{next(_numbers)}.db"
    engine = on_sqlalchemy.create_engine(f"sqlite:///{path}")
    model(quantize, DIMENSIONS).metadata.create_all(engine)
    engine.dispose()
    return path


def insert_by_hand(directory: Path, quantize, rows, serialize) -> float:
    conn = by_hand(path := new_file(directory, quantize))
    started = time.process_time()
    values = ((row["part"], serialize(row["embedding"])) for row in rows)
    conn.executemany("insert into document (part, embedding) values (?, ?)", values)
    if quantize:
        codes = ((n, vector_code(np.asarray(row["embedding"]))) for n, row in enumerate(rows, 1))
        conn.executemany(f"insert into {INDEX} (id, embedding) values (?, vec_int8(?))", codes)
    conn.commit()
    took = time.process_time() - started
    conn.close()
    path.unlink()
    return took


def insert_through_sqlalchemy(directory: Path, quantize, rows, *, kind=None) -> float:
    engine = on_sqlalchemy.create_engine(f"sqlite:///{(path := new_file(directory, quantize))}")
    document = model(quantize, DIMENSIONS, kind)
    with Session(engine) as session:
        session.connection()
        started = time.process_time()
        session.execute(sa.insert(document), rows)
        session.commit()
        took = time.process_time() - started
    engine.dispose()
    path.unlink()
    return took


def large_binary_way(serialize):
    class Packed(sa.TypeDecorator):
        impl = sa.LargeBinary
        cache_ok = True

        def process_bind_param(self, value, dialect):  # noqa: ARG002
            return serialize(value)

    return lambda directory, quantize, rows: insert_through_sqlalchemy(directory, quantize, rows, kind=Packed())


def in_batches(document, rows) -> None:
    for batch in peewee.chunked(rows, 500):
        document.insert_many(batch).execute()


def insert_through_peewee(directory: Path, quantize, rows, *, field=None, insert=in_batches) -> float:
    db = on_peewee.VectorSqliteDatabase(path := new_file(directory, quantize))
    document = peewee_model(db, quantize, DIMENSIONS, field)
    db.connect()
    started = time.process_time()
    with db.atomic():
        insert(document, rows)
    took = time.process_time() - started
    db.close()
    path.unlink()
    return took


def insert_in_bulk_through_peewee(directory: Path, quantize, rows) -> float:
    return insert_through_peewee(directory, quantize, rows, insert=on_peewee.bulk_insert)


def blob_field_way(serialize):
    class Packed(peewee.BlobField):
        def db_value(self, value):
            return serialize(value)

    return lambda directory, quantize, rows: insert_through_peewee(directory, quantize, rows, field=Packed())


def vector_code(vector: np.ndarray) -> bytes:
    """What one would do by hand: unit length, times a number that suits the data."""
    unit = vector / np.linalg.norm(vector)
    return np.clip(np.round(unit * 800), -127, 127).astype(np.int8).tobytes()


def sentences(texts) -> list[str]:
    found = (part for text in texts for part in re.split(r"(?<=[.?!])\s+", text) if len(part) > 30)
    return list(dict.fromkeys(found))


def collections(data: Path | None):
    """Name -> sentences and questions of real texts: the documentation of Python, and the judged sets if given."""
    parts = sentences(row["doc"] for row in islice(standard_library(), 4_000))
    yield "docstrings", [part for n, part in enumerate(parts) if n % 60], parts[::60]
    for names in (("cranfield", "cisi"),) if data else ():
        texts, questions = [], []
        for name in names:
            for kind, into in (("corpus", texts), ("queries", questions)):
                lines = (data / name / f"{kind}.jsonl").read_text(encoding="utf-8").splitlines()
                into += [json.loads(line)["text"] for line in lines]
        yield " and ".join(names), sentences(texts), questions


def measure_recall(directory: Path, data: Path | None) -> None:
    embedder = load_embedder("local")
    for name, texts, questions in collections(data):
        started = time.perf_counter()
        vectors = np.concatenate([embedder.embed_documents(texts[n : n + 500]) for n in range(0, len(texts), 500)])
        asked = [embedder.embed_query(question) for question in questions]
        seconds = time.perf_counter() - started
        print(
            f"{name}: {len(texts):,} sentences and {len(asked)} questions embedded by the local model, {seconds:.0f} s"
        )
        for quantize in ("int8", "bit"):
            document = model(quantize, embedder.dimensions)
            engine = on_sqlalchemy.create_engine(f"sqlite:///{directory / f'{name[:4]}-{quantize}.db'}")
            document.metadata.create_all(engine)
            with Session(engine) as session:
                rows = [{"part": n % 2, "embedding": vector} for n, vector in enumerate(vectors)]
                session.execute(sa.insert(document), rows)
                session.commit()
                on_sqlalchemy.sync_indexes(session)
                for what, where, chosen in (
                    ("", [], np.arange(len(texts))),
                    (", half of the rows", [document.part == 1], np.arange(1, len(texts), 2)),
                ):
                    found = 0
                    for query in asked:
                        statement = on_sqlalchemy.nearest(document.embedding, query, k=K, where=where)
                        ids = {found.id - 1 for found, _ in session.execute(statement)}
                        # Ids of equal texts are no matter of recall: what counts is not to be farther than the tenth.
                        cosines = vectors @ query
                        tenth = np.sort(cosines[chosen])[-K] - 1e-6
                        found += sum(cosines[n] >= tenth for n in ids)
                    report(f"{name}, {quantize}{what}: recall@{K}", found / (K * len(asked)), at_least=0.99)
            engine.dispose()


def main() -> None:
    directory, data = Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None
    print(f"SQLite {sqlite3.sqlite_version}, SQLAlchemy {sa.__version__}, Peewee {peewee.__version__}")
    measure_recall(directory, data)
    measure_inserts(directory)
    measure_nearest(directory)
    finish()


if __name__ == "__main__":
    main()
