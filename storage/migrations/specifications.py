"""Changing the stored specification of every study, and its hash with it."""

import hashlib
import json
from collections.abc import Callable
from typing import cast

import sqlalchemy as sa
from alembic import op

_STUDY = sa.table(
    "study",
    sa.column("id", sa.Integer()),
    sa.column("spec", sa.JSON()),
    sa.column("spec_digest", sa.Text()),
)


Change = Callable[[dict[str, object]], dict[str, object]]


def change_section(name: str, change: Change) -> None:
    """Puts what `change` makes of a section of each specification in the section's place."""

    def changed(spec: dict[str, object]) -> dict[str, object]:
        section = cast("dict[str, object]", spec.get(name, {}))
        return {**spec, name: change(dict(section))}

    change_specification(changed)


def change_specification(change: Change) -> None:
    """Puts what `change` makes of each specification in its place."""
    connection = op.get_bind()
    for row in connection.execute(sa.select(_STUDY)).all():
        spec = change(dict(row.spec))
        text = json.dumps(spec, sort_keys=True, separators=(",", ":"), allow_nan=False)
        digest = hashlib.sha256(text.encode()).hexdigest()
        columns = {"spec": json.loads(text), "spec_digest": digest}
        connection.execute(sa.update(_STUDY).where(_STUDY.c.id == row.id).values(columns))


def add_limit(limit: str) -> None:
    """Adds a limit that no study has set yet to the constraints."""
    change_section("constraints", lambda limits: {**limits, limit: None})


def remove_limit(limit: str) -> None:
    """Takes a limit out of the constraints, set or not."""
    change_section(
        "constraints", lambda limits: {name: limits[name] for name in limits if name != limit}
    )
