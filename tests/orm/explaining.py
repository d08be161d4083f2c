"""What PostgreSQL did to answer a statement."""

from sqlalchemy import ClauseElement, Executable
from sqlalchemy.ext.compiler import compiles

EXPLAIN = "explain (analyze, verbose, costs off, timing off, summary off) "


class Explained(Executable, ClauseElement):
    inherit_cache = False

    def __init__(self, statement):
        self.statement = statement


@compiles(Explained)
def _explained(element, compiler, **options):
    return EXPLAIN + compiler.process(element.statement, **options)


def plan(conn, statement):
    return "\n".join(conn.scalars(Explained(statement)))
