"""Whatever kills an indexer: the next sync needs no help, loses nothing, and pays again for one batch at most."""

import subprocess
import sys

import pytest

from datasette_vec_gemini import connect, create_index, find_index, status, sync, verify

INDEXER = """
import os, sys
from datasette_vec_gemini import connect, find_index, load_embedder, sync

path, log, statements, calls = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
inner = load_embedder("hashing@64")

class Embedder:
    name, fingerprint, dimensions, batch_size = inner.name, inner.fingerprint, inner.dimensions, 16
    chunk_capacity, tokenizer, paid, done = inner.chunk_capacity, None, False, 0
    embed_query, speaks = inner.embed_query, inner.speaks

    def embed_documents(self, texts):
        self.done += 1
        with open(log, "a") as file:
            file.writelines(text + "\\n" for text in texts)
        if self.done == calls:
            os._exit(9)
        return inner.embed_documents(texts)

conn = connect(path)
index = find_index(conn, "t")
seen = 0

def count(statement):
    global seen
    seen += 1
    if seen == statements:
        os._exit(9)

conn.set_trace_callback(count)
sync(conn, index, embedder=Embedder())
print(seen)
"""
NEVER = 10**9


@pytest.fixture
def table(conn):
    """120 rows of different texts, 20 of them indexed and then edited, so that a sync adds, replaces and removes."""
    conn.execute("create table t (id integer primary key, body text)")
    conn.executemany("insert into t values (?, ?)", [(n, f"first text{n}") for n in range(20)])
    conn.commit()
    index = create_index(conn, "t", table="t", columns=["body"], embedder="hashing@64")
    sync(conn, index)
    conn.executemany("insert into t values (?, ?)", [(n, f"second text{n}") for n in range(20, 120)])
    conn.execute("update t set body = 'third ' || body where id < 10")
    conn.execute("delete from t where id between 10 and 14")
    conn.commit()
    return index


@pytest.fixture
def indexer(path, tmp_path):
    log = tmp_path / "log"
    log.touch()

    def start(*, statements=NEVER, calls=NEVER):
        command = [sys.executable, "-c", INDEXER, str(path), str(log), str(statements), str(calls)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    start.log = log
    return start


def finish(process):
    output, _ = process.communicate(timeout=60)
    return process.returncode, output


@pytest.mark.slow
@pytest.mark.parametrize("share", [n / 24 for n in range(1, 24)])
def test_killed_at_any_statement_of_a_sync(conn, table, indexer, path, share):
    copy = path.with_name("copy.db")
    conn.execute("vacuum into ?", [str(copy)])
    code, output = finish(indexer())
    assert code == 0
    whole = indexer.log.read_text().splitlines()
    indexer.log.write_text("")
    conn.close()
    for name in (path, path.with_name(path.name + "-wal"), path.with_name(path.name + "-shm")):
        name.unlink(missing_ok=True)
    copy.rename(path)

    assert finish(indexer(statements=max(1, int(int(output) * share))))[0] == 9
    code, _ = finish(indexer())
    again = connect(path)
    index = find_index(again, "t")
    assert code == 0
    assert verify(again, index) == []
    assert status(again, index).pending == 0
    assert len(indexer.log.read_text().splitlines()) <= len(whole) + 16
    again.close()


@pytest.mark.parametrize("calls", [1, 2, 6])
def test_killed_while_the_model_works(conn, table, indexer, calls):
    assert finish(indexer(calls=calls))[0] == 9
    assert status(conn, table).pending > 0
    assert finish(indexer())[0] == 0
    assert verify(conn, table) == []
    assert status(conn, table).pending == 0
    texts = indexer.log.read_text().splitlines()
    assert len(texts) - len(set(texts)) <= 16


def test_two_indexers_at_once_never_pay_for_the_same_chunk(conn, table, indexer):
    assert [finish(process)[0] for process in (indexer(), indexer(), indexer())] == [0, 0, 0]
    texts = indexer.log.read_text().splitlines()
    assert len(texts) == len(set(texts))
    assert verify(conn, table) == []
    assert status(conn, table).pending == 0
