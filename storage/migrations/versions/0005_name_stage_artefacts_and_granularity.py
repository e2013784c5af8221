"""Call findings stage artefacts, and grain granularity; drop what no query reads of a cell."""

import hashlib
import json

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

STUDY = sa.table(
    "study",
    sa.column("id", sa.Integer()),
    sa.column("spec", sa.JSON()),
    sa.column("spec_digest", sa.Text()),
)


def upgrade() -> None:
    move_rows("finding", "stage_artefact")
    rename_in_partition("grain", "granularity")
    op.drop_column("cell", "option_digest")


def downgrade() -> None:
    column = sa.Column("option_digest", sa.Text(), nullable=False, server_default="")
    op.add_column("cell", column)
    rename_in_partition("granularity", "grain")
    move_rows("stage_artefact", "finding")


def move_rows(old: str, new: str) -> None:
    """Makes the table anew, for SQLite cannot rename a constraint; nothing refers to it."""
    op.create_table(
        new,
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("content", sa.JSON(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("study_id", sa.Integer(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("kind IN ('clips', 'bounds')", name=op.f(f"ck_{new}_kind_known")),
        sa.ForeignKeyConstraint(
            ["study_id"], ["study.id"], name=f"fk_{new}_study_id", ondelete="SET NULL"
        ),
        sa.PrimaryKeyConstraint("key", name=f"pk_{new}"),
    )
    names = ("key", "kind", "content", "seconds", "study_id", "created_at")
    source, target = (sa.table(table, *map(sa.column, names)) for table in (old, new))
    op.execute(sa.insert(target).from_select(names, sa.select(source)))
    op.drop_table(old)
    op.create_index(f"ix_{new}_study_id", new, ["study_id"], unique=False)


def rename_in_partition(old: str, new: str) -> None:
    """Renames a key of each stored specification, which changes its hash."""
    connection = op.get_bind()
    for row in connection.execute(sa.select(STUDY)).all():
        partition = dict(row.spec.get("partition", {}))
        if old not in partition:
            continue
        partition[new] = partition.pop(old)
        spec = {**row.spec, "partition": partition}
        text = json.dumps(spec, sort_keys=True, separators=(",", ":"), allow_nan=False)
        digest = hashlib.sha256(text.encode()).hexdigest()
        columns = {"spec": json.loads(text), "spec_digest": digest}
        connection.execute(sa.update(STUDY).where(STUDY.c.id == row.id).values(columns))
