"""The page of the tables, with their columns from the schema itself."""

import re
from collections import defaultdict
from typing import Final

from sqlalchemy import Column, Dialect, Table, UniqueConstraint
from sqlalchemy.dialects import postgresql

from docs.site.markdown import code, table
from storage.tables import Base

_DIAGRAM: Final = re.compile(r"^```mermaid\n(.*?)^```\n", re.MULTILINE | re.DOTALL)
_RELATION: Final = re.compile(r"(\w+) [|}o]+--[|{o]+ (\w+) :")
_DIALECT: Final[Dialect] = postgresql.dialect()  # type: ignore[no-untyped-call]  # theirs


def page(text: str) -> str:
    """The page with all columns, and with its diagram as text: what draws it is on the network."""
    lines = ["", "## The columns", "", "Types are PostgreSQL's.", ""]
    for own in sorted(Base.metadata.tables.values(), key=lambda own: own.name):
        lines += [f"### {own.name}", "", *_columns(own)]
    return _DIAGRAM.sub(lambda diagram: _relations(diagram[1]), text) + "\n".join(lines)


def _relations(diagram: str) -> str:
    below = defaultdict[str, list[str]](list)
    for above, name in _RELATION.findall(diagram):
        below[above].append(code(name))
    rows = [(code(name), ", ".join(names)) for name, names in below.items()]
    return "\n".join(table(["a row of", "has rows of"], rows))


def _columns(own: Table) -> list[str]:
    rows = [
        (
            code(column.name),
            column.type.compile(_DIALECT).lower(),
            "yes" if column.nullable else "no",
            _key(column),
        )
        for column in own.columns
    ]
    unique = [
        "Unique: " + ", ".join(code(column.name) for column in constraint.columns) + "."
        for constraint in own.constraints
        if isinstance(constraint, UniqueConstraint)
    ]
    return [*table(["column", "type", "may be NULL", "key"], rows), *unique, ""]


def _key(column: Column[object]) -> str:
    told = ["primary"] if column.primary_key else []
    return ", ".join([*told, *(code(key.target_fullname) for key in column.foreign_keys)])
