"""Random walks: any sequence of writes, syncs and searches ends in the index that the table deserves."""

import tempfile
from pathlib import Path

from fakes import Recorder
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from datasette_vec_gemini import Query, connect, create_index, rebuild, search, status, sync, verify

KEYS = st.integers(1, 12)
BODIES = st.one_of(
    st.none(), st.sampled_from(["", "  ", "apple pie", "pear tree", "long " * 30 + "apple", "long " * 30 + "plum tail"])
)


class Walk(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.conn = connect(Path(self.directory.name, "walk.db"), create=True)
        self.recorder = Recorder(chunk_capacity=60)

    @initialize(bodies=st.lists(BODIES, min_size=4, max_size=10))
    def fill(self, bodies):
        self.conn.execute("create table t (id integer primary key, body text, slug text unique)")
        self.conn.executemany(
            "insert into t values (?, ?, ?)", [(n, body, f"s{n}") for n, body in enumerate([*bodies, "apple pie"], 1)]
        )
        self.conn.commit()
        self.index = create_index(self.conn, "t", table="t", columns=["body"], embedder=self.recorder)
        self.sync()
        assert status(self.conn, self.index).chunks > 0

    def run(self, sql, *values):
        self.conn.execute(sql, values)
        self.conn.commit()

    @rule(key=KEYS, body=BODIES)
    def upsert(self, key, body):
        self.run(
            "insert into t (id, body) values (?, ?) on conflict (id) do update set body = excluded.body", key, body
        )

    @rule(key=KEYS, slug=KEYS, body=BODIES)
    def replace(self, key, slug, body):
        self.run("insert or replace into t values (?, ?, ?)", key, body, f"s{slug}")

    @rule(key=KEYS, other=KEYS)
    def change_key(self, key, other):
        self.run("update or replace t set id = ? where id = ?", other, key)

    @rule(key=KEYS)
    def delete(self, key):
        self.run("delete from t where id = ?", key)

    @rule(key=KEYS, other=KEYS)
    def swap(self, key, other):
        self.run("create temp table old as select * from t")
        self.run(
            "update t set body = (select body from old where id = case t.id when :a then :b else :a end) "
            "where id in (:a, :b) and (select count(*) from old where id in (:a, :b)) = 2".replace(
                ":a", str(key)
            ).replace(":b", str(other))
        )
        self.run("drop table old")

    @rule()
    def vacuum(self):
        self.run("vacuum")

    @rule()
    def recreate(self):
        self.conn.executescript(
            """
            create table t2 (id integer primary key, body text, slug text unique);
            insert into t2 select * from t; drop table t; alter table t2 rename to t;
            """
        )

    @rule(key=KEYS, body=BODIES)
    def sync_with_an_edit_in_flight(self, key, body):
        def meanwhile():
            self.recorder.meanwhile = None
            self.run("update t set body = ? where id = ?", body, key)

        self.recorder.meanwhile = meanwhile
        self.sync()
        self.recorder.meanwhile = None

    @rule()
    def sync(self):
        sync(self.conn, self.index, embedder=self.recorder)

    @rule()
    def sync_is_idempotent(self):
        self.sync()
        asked = len(self.recorder.texts)
        assert sync(self.conn, self.index, embedder=self.recorder).documents == 0
        assert len(self.recorder.texts) == asked
        assert verify(self.conn, self.index) == []

    @rule(quantize=st.sampled_from(["bit", "float32"]))
    def rebuild(self, quantize):
        self.index, _ = rebuild(self.conn, self.index, embedder=self.recorder, quantize=quantize)

    @invariant()
    def every_hit_is_true_now(self):
        if not hasattr(self, "index"):
            return
        for hit in search(self.conn, self.index, Query("apple plum", k=50), embedder=self.recorder):
            (body,) = self.conn.execute("select body from t where id = ?", hit.key).fetchone()
            assert body[hit.chunk.start : hit.chunk.end] == hit.chunk.text
        now = status(self.conn, self.index)
        assert now.rows == now.indexed + now.pending + now.failed + now.empty
        assert min(now.indexed, now.pending, now.failed, now.empty) >= 0

    def teardown(self):
        if hasattr(self, "index"):
            self.sync_is_idempotent()
            rows = self.conn.execute("select count(*) from t where trim(coalesce(body, '')) <> ''").fetchone()[0]
            assert len(search(self.conn, self.index, Query("apple plum", k=50), embedder=self.recorder)) == rows
        self.conn.close()
        self.directory.cleanup()


TestWalk = Walk.TestCase
TestWalk.settings = settings(
    max_examples=40, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
