"""Changing the stored specification of every study, and its hash with it."""

import hashlib
import json
from collections.abc import Callable

import sqlalchemy as sa
from alembic import op

_STUDY = sa.table(
    "study",
    sa.column("id", sa.Integer()),
    sa.column("spec", sa.JSON()),
    sa.column("spec_digest", sa.Text()),
)


def change_section(name: str, change: Callable[[dict[str, object]], dict[str, object]]) -> None:
    """Puts what `change` makes of a section of each specification in the section's place."""
    connection = op.get_bind()
    for row in connection.execute(sa.select(_STUDY)).all():
        spec = {**row.spec, name: change(dict(row.spec.get(name, {})))}
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
