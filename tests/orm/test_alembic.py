"""Migrations by the real Alembic: nothing of ours is dropped or made twice, up and down, and batches heal."""

import re
import textwrap
from itertools import product

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from datasette_vec_gemini import sqlite3
from datasette_vec_gemini.sqlalchemy import (
    Vec0Table,
    Vector,
    VectorIndex,
    create_engine,
    nearest,
    search_entities,
    semantic,
)

command = pytest.importorskip("alembic.command", reason="needs Alembic: pip install alembic")
Config = pytest.importorskip("alembic.config").Config
CommandError = pytest.importorskip("alembic.util.exc").CommandError

ENV = """
from alembic import context
import sqlalchemy

from datasette_vec_gemini.sqlalchemy import alembic as vec, register_vector

url, options = context.config.get_main_option("sqlalchemy.url"), context.config.attributes["options"]

def include_name(name, type_, parent_names):
    return name != "of_another_application" and vec.include_name(name, type_, parent_names)


engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool, **options)
if not options:
    register_vector(engine)
with engine.connect() as connection:
    context.configure(
        connection=connection,
        target_metadata=context.config.attributes["metadata"],
        include_name=include_name,
        include_object=vec.include_object,
        render_item=vec.render_item,
        render_as_batch=True,
    )
    with context.begin_transaction():
        context.run_migrations()
"""
SCRIPT = """
${imports if imports else ""}
import sqlalchemy as sa
from alembic import op

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}


def upgrade():
    ${upgrades if upgrades else "pass"}


def downgrade():
    ${downgrades if downgrades else "pass"}
"""


def models(*, dimensions=8, metric="cosine", quantize="int8", extra=False, indexed=True):
    """The models of one moment in the life of an application."""

    class Base(DeclarativeBase):
        pass

    class Document(Base):
        __tablename__ = "document"
        id: Mapped[int] = mapped_column(primary_key=True)
        title: Mapped[str]
        embedding: Mapped[list[float] | None] = mapped_column(Vector(dimensions))
        if extra:
            lang: Mapped[str] = mapped_column(server_default="en", index=True)
        if indexed:
            __table_args__ = (VectorIndex("document_embedding_idx", "embedding", metric=metric, quantize=quantize),)

    semantic(Document, ["title"], embedder="hashing@64")
    return Document


class Project:
    """A directory of migrations of one database."""

    def __init__(self, directory, url):
        (directory / "versions").mkdir(parents=True)
        (directory / "env.py").write_text(ENV)
        (directory / "script.py.mako").write_text(SCRIPT)
        self.directory = directory
        self.config = Config()
        self.config.set_main_option("script_location", str(directory))
        self.config.set_main_option("sqlalchemy.url", url)
        self.config.attributes["options"] = {}
        self.engine = create_engine(url)

    def of(self, document):
        self.config.attributes["metadata"] = document.metadata
        return self

    def revise(self, name):
        command.revision(self.config, name, autogenerate=True, rev_id=name)
        (script,) = (self.directory / "versions").glob(f"{name}_*.py")
        return script.read_text()

    def upgrade(self, to="head"):
        command.upgrade(self.config, to)

    def downgrade(self, to):
        command.downgrade(self.config, to)

    def undo(self):
        """Go back to where there were no migrations."""
        self.downgrade("base")
        for script in (self.directory / "versions").glob("*.py"):
            script.unlink()

    def has_nothing_to_do(self):
        try:
            command.check(self.config)
        except CommandError as error:
            return str(error)
        return True


@pytest.fixture
def project(tmp_path):
    made = Project(tmp_path / "migrations", f"sqlite:///{tmp_path / 'app.db'}")
    yield made
    made.engine.dispose()


@pytest.fixture
def postgres_project(tmp_path, postgres, database):
    made = Project(tmp_path / "migrations", postgres.url(database))
    yield made
    made.engine.dispose()


@pytest.fixture(params=["project", "postgres_project"], ids=["sqlite", "postgresql"])
def any_project(request):
    return request.getfixturevalue(request.param)


def body(script, function):
    """The statements of a function of a script, without comments."""
    text = re.search(rf"def {function}\(\):\n((?:    .*\n|\n)+)", script + "\n")[1]
    return textwrap.dedent(re.sub(r" *#.*\n", "", text)).strip()


def fill(project, document, count=8):
    with Session(project.engine) as session:
        session.add_all(document(title=f"title {n}", embedding=[float(n == m) for m in range(8)]) for n in range(count))
        session.commit()


def first(project, document, axis=3):
    with Session(project.engine) as session:
        query = [0.01] * 8
        query[axis] = 1.0
        return session.execute(nearest(document.embedding, query, k=1)).first()[0].title


def test_a_first_migration_makes_everything_and_its_downgrade_leaves_nothing(any_project):
    project, document = any_project, models()
    script = project.of(document).revise("one")
    assert "from datasette_vec_gemini.sqlalchemy import Vector\n" in script
    assert "sa.Column('embedding', Vector(8), nullable=True)" in script
    assert body(script, "upgrade").endswith(
        "op.create_vector_index('document_embedding_idx', 'document', 'embedding', dimensions=8, metric='cosine', "
        "quantize='int8')"
    )
    assert body(script, "downgrade").startswith("op.drop_vector_index('document_embedding_idx', 'document')")
    project.upgrade()
    fill(project, document)
    assert first(project, document) == "title 3"
    project.downgrade("base")
    catalogue = (
        "sqlite_master" if project.engine.dialect.name == "sqlite" else "(select relname as name from pg_class) c"
    )
    with project.engine.connect() as connection:
        left = connection.exec_driver_sql(f"select name from {catalogue} where name like '%%document%%'").all()
    assert left == []
    project.upgrade()
    assert project.has_nothing_to_do() is True


def test_an_index_that_create_all_has_made_is_found_and_one_that_the_models_lost_is_dropped(any_project):
    project, document = any_project, models()
    document.metadata.create_all(project.engine)
    assert project.of(document).has_nothing_to_do() is True
    script = project.of(models(indexed=False)).revise("one")
    assert body(script, "upgrade") == "op.drop_vector_index('document_embedding_idx', 'document')"
    project.upgrade()
    assert project.has_nothing_to_do() is True
    project.downgrade("base")
    fill(project, document)
    assert first(project, document) == "title 3"
    assert [index.name for index in document.__table__.indexes] == ["document_embedding_idx"]


def test_a_table_that_the_models_lost_goes_with_its_index_and_comes_back_with_it(any_project):
    project, document = any_project, models()
    document.metadata.create_all(project.engine)
    project.config.attributes["metadata"] = sa.MetaData()
    assert body(project.revise("one"), "upgrade") == (
        "op.drop_vector_index('document_embedding_idx', 'document')\nop.drop_table('document')"
    )
    project.upgrade()
    project.undo()
    assert project.of(document).has_nothing_to_do() is True


@pytest.mark.parametrize(
    ("metric", "quantize"),
    [("cosine", "bit"), *product(["cosine", "l2", "inner_product"], ["float32", "int8"])],
)
def test_an_index_on_postgresql_is_known_by_its_definition(postgres_project, metric, quantize):
    project = postgres_project

    def metadata(*, indexed):
        made = sa.MetaData()
        columns = {"embedding": 8, 'in "50%" of $1': 16, "Long": 2_008}
        table = sa.Table(
            "Page",
            made,
            sa.Column("id", sa.Text, primary_key=True),
            *(sa.Column(n, Vector(d)) for n, d in columns.items()),
        )
        for number, column in enumerate(columns if indexed else ()):
            VectorIndex(f"index_{number}", table.c[column], metric=metric, quantize=quantize)
        return made

    metadata(indexed=True).create_all(project.engine)
    project.config.attributes["metadata"] = metadata(indexed=True)
    assert project.has_nothing_to_do() is True
    project.config.attributes["metadata"] = metadata(indexed=False)
    script = project.revise("one")
    assert sorted(body(script, "upgrade").splitlines()) == [
        f"op.drop_vector_index('index_{number}', 'Page')" for number in range(3)
    ]
    project.upgrade()
    assert project.has_nothing_to_do() is True
    project.undo()
    project.config.attributes["metadata"] = metadata(indexed=True)
    assert project.has_nothing_to_do() is True


def test_an_hnsw_index_that_is_not_ours_stays(postgres_project):
    project, document = postgres_project, models()
    sa.Index(
        "ordinary_idx",
        document.__table__.c.embedding,
        postgresql_using="hnsw",
        postgresql_ops={"embedding": "vector_l2_ops"},
    )
    document.metadata.create_all(project.engine)
    theirs = [
        "create table of_another_application (id integer primary key, embedding vector(8))",
        "create index of_their_table on of_another_application using hnsw (embedding vector_cosine_ops)",
        "create index tuned on document using hnsw (embedding vector_cosine_ops) with (m = 8)",
        "create index partial on document using hnsw (embedding vector_cosine_ops) where title <> ''",
        "create index by_taxi on document using hnsw (embedding vector_l1_ops)",
        "create index of_units on document using hnsw ((l2_normalize(embedding)::halfvec(8)) halfvec_l2_ops)",
        'create index "no name of ours" on document using hnsw (embedding vector_cosine_ops)',
    ]
    with project.engine.begin() as connection:
        for statement in theirs:
            connection.exec_driver_sql(statement)
    assert project.of(document).has_nothing_to_do() is True


def test_an_index_that_somebody_has_made_by_the_models_name_is_compared(postgres_project):
    project, document = postgres_project, models(quantize="float32")
    models(indexed=False).metadata.create_all(project.engine)
    create = "create index document_embedding_idx on document using hnsw (embedding vector_cosine_ops)"
    with project.engine.begin() as connection:
        connection.exec_driver_sql(f"{create} with (m = 8)")
    assert project.of(document).has_nothing_to_do() is True
    with project.engine.begin() as connection:
        connection.exec_driver_sql("drop index document_embedding_idx")
        connection.exec_driver_sql(f"{create} where title <> ''")
    script = project.revise("one")
    assert body(script, "upgrade").startswith("op.drop_vector_index('document_embedding_idx', 'document')")
    assert "WHERE ((title)::text <> ''::text)" in body(script, "downgrade")
    project.upgrade()
    assert project.has_nothing_to_do() is True
    project.undo()
    assert "remove_vector_index" in project.has_nothing_to_do()


def test_what_create_all_and_use_have_made_is_left_alone(project):
    document = models()
    document.metadata.create_all(project.engine)
    fill(project, document)
    with Session(project.engine) as session:
        search_entities(session, document, "title 3")
        session.connection().exec_driver_sql("create virtual table words using fts5 (text)")
        session.connection().exec_driver_sql(
            "create virtual table codes using vec0 (+note text, kind text, e float[4])"
        )
        session.commit()
    assert project.of(document).has_nothing_to_do() is True
    # And where sqlite-vec cannot be loaded: names are looked at before anything is reflected.
    project.config.attributes["options"] = {"module": sqlite3}
    assert project.has_nothing_to_do() is True


def test_a_vec0_table_of_the_models_is_neither_made_nor_compared(project):
    document = models()
    table = Vec0Table(
        "vec_items", document.metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("embedding", Vector(8))
    )
    assert "vec_items" not in project.of(document).revise("one")
    project.upgrade()
    assert project.has_nothing_to_do() is True
    table.create(project.engine)
    assert project.has_nothing_to_do() is True


def test_the_tables_of_a_virtual_table_are_those_that_its_own_module_makes(project):
    document = models()
    for name in ("items_data", "items_config", "words_chunks", "words_info", "old_words_data"):
        sa.Table(name, document.metadata, sa.Column("id", sa.Integer, primary_key=True))
    document.metadata.create_all(project.engine)
    with project.engine.begin() as connection:
        connection.exec_driver_sql("create virtual table items using vec0 (+note text, kind text, e float[4])")
        connection.exec_driver_sql('CREATE VIRTUAL TABLE "words" USING "FTS5" (text)')
        connection.exec_driver_sql("create virtual table old_words using fts4 (text)")
    assert project.of(document).has_nothing_to_do() is True


@pytest.mark.parametrize(("metric", "quantize"), [("cosine", "bit"), ("cosine", "float32"), ("l2", "int8")])
def test_another_definition_is_dropped_and_made_again(any_project, metric, quantize):
    project = any_project
    project.of(models()).revise("one")
    project.upgrade()
    document = models(metric=metric, quantize=quantize)
    script = project.of(document).revise("two")
    drop = "op.drop_vector_index('document_embedding_idx', 'document')\n"
    create = "op.create_vector_index('document_embedding_idx', 'document', 'embedding', dimensions=8, "
    assert body(script, "upgrade") == f"{drop}{create}metric={metric!r}, quantize={quantize!r})"
    assert body(script, "downgrade") == f"{drop}{create}metric='cosine', quantize='int8')"
    project.upgrade()
    fill(project, document)
    assert first(project, document) == "title 3"
    project.downgrade("one")
    assert first(project, models()) == "title 3"
    project.upgrade()
    assert project.has_nothing_to_do() is True


def test_a_batch_that_copies_the_table_loses_no_row_of_either_index(project):
    document = models()
    project.of(document).revise("one")
    project.upgrade()
    fill(project, document)
    with Session(project.engine) as session:
        assert search_entities(session, document, "title 3", k=1)[0][0].title == "title 3"
    later = models(extra=True)
    script = project.of(later).revise("two")
    assert "batch_alter_table('document'" in body(script, "upgrade")
    (path,) = (project.directory / "versions").glob("two_*.py")
    # A check constraint makes the batch copy the table, and with it goes an edit behind all triggers' backs.
    path.write_text(
        script.replace(
            "def downgrade",
            "    with op.batch_alter_table('document', recreate='always') as batch:\n"
            "        batch.create_check_constraint('titled', \"title <> ''\")\n"
            "    assert not op.get_bind().exec_driver_sql(\n"
            "        \"select name from sqlite_master where type = 'trigger' and tbl_name = 'document'\"\n"
            "    ).all()\n"
            "    op.execute(\"update document set title = 'changed' where id = 4\")\n"
            "    op.execute('delete from document where id = 6')\n\n\ndef downgrade",
            1,
        )
    )
    project.upgrade()
    assert first(project, later, axis=3) == "changed"
    with Session(project.engine) as session:
        found = search_entities(session, later, "changed", k=1)
        assert (found[0][0].id, found[0][1].why.semantic.rank) == (4, 1)
        assert 6 not in {entity.id for entity, _ in search_entities(session, later, "title 5", k=30)}
        session.add(later(title="after", embedding=[0, 0, 0, 0, 0, 1, 0, 0.0]))
        session.commit()
    assert first(project, later, axis=5) == "after"
    with project.engine.connect() as connection:
        triggers = connection.execute(sa.text("select count(*) from sqlite_master where type = 'trigger'")).scalar()
        assert triggers >= 3 + 4
    assert project.has_nothing_to_do() is True
    project.downgrade("one")
    assert first(project, document, axis=2) == "title 2"
