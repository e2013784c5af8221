"""Add findings: clips of options, and learned bounds."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "finding",
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("content", sa.JSON(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("study_id", sa.Integer(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("kind IN ('clips', 'bounds')", name=op.f("ck_finding_kind_known")),
        sa.ForeignKeyConstraint(
            ["study_id"], ["study.id"], name="fk_finding_study_id", ondelete="SET NULL"
        ),
        sa.PrimaryKeyConstraint("key", name="pk_finding"),
    )
    op.create_index("ix_finding_study_id", "finding", ["study_id"], unique=False)


def downgrade() -> None:
    op.drop_table("finding")
