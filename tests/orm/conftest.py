"""Fixtures of the tests of both ORMs. A module whose framework is not installed skips itself."""

from importlib.util import find_spec

from postgres import database, nodes, postgres  # noqa: F401  # fixtures

if find_spec("sqlalchemy"):
    from documents import begin_anew, library, store  # noqa: F401  # fixtures
