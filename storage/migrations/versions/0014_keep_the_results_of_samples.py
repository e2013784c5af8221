"""Add the divergence to trials, and keep what comes out for each sample."""

import sqlalchemy as sa
from alembic import op

from storage.migrations.specifications import add_limit, remove_limit

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

GREATEST = "1.7976931348623157e308"
COLUMNS = ("divergence", "test_divergence")


def upgrade() -> None:
    for column in COLUMNS:
        finite = sa.CheckConstraint(
            f"{column} BETWEEN -{GREATEST} AND {GREATEST}", name=op.f(f"ck_trial_{column}_finite")
        )
        op.add_column("trial", sa.Column(column, sa.Double(), finite, nullable=True))
    op.create_table(
        "trial_samples",
        sa.Column("trial_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("split", sa.Text(), nullable=False),
        sa.Column("results", sa.LargeBinary(), nullable=False),
        sa.CheckConstraint(
            "split IN ('selection', 'test')", name=op.f("ck_trial_samples_split_known")
        ),
        sa.ForeignKeyConstraint(
            ["trial_id"], ["trial.id"], name="fk_trial_samples_trial_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("trial_id", "split", name="pk_trial_samples"),
    )
    op.add_column("evaluation", sa.Column("samples", sa.LargeBinary(), nullable=True))
    add_limit("max_divergence")


def downgrade() -> None:
    remove_limit("max_divergence")
    op.drop_column("evaluation", "samples")
    op.drop_table("trial_samples")
    for column in reversed(COLUMNS):
        op.drop_column("trial", column)
