"""What both ORMs' classes for vec0 tables of one's own have in common: the names that vec0 takes."""

from __future__ import annotations

import re

from ..errors import InvalidName, shown

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
TAKEN = ("distance", "k")
"""vec0's own hidden columns."""


def check_name(name: str, *, of: str) -> None:
    """Raise InvalidName unless vec0's grammar, which has no quotes, takes a table's or column's name."""
    if not NAME.fullmatch(name) or name.lower() in TAKEN:
        raise InvalidName(
            f"{of}: vec0 takes no name but of ASCII letters, digits and _, and {' and '.join(TAKEN)} are its own: "
            f"choose another than {shown(name)}"
        )
