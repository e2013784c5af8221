"""Let trials stop early: intermediate values, and the state of a pruned trial."""

import sqlalchemy as sa
from alembic import op

from storage.migrations.checks import change_check

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

GREATEST = "1.7976931348623157e308"
CHECK = "ck_trial_state_known"
OLD = "state IN ('running', 'complete', 'failed', 'cancelled')"
NEW = "state IN ('running', 'complete', 'failed', 'cancelled', 'pruned')"


def upgrade() -> None:
    op.create_table(
        "intermediate",
        sa.Column("trial_id", sa.Integer(), nullable=False),
        sa.Column("step", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("error", sa.Double(), nullable=False),
        sa.Column("reported_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            f"error BETWEEN 0 AND {GREATEST}", name=op.f("ck_intermediate_error_finite")
        ),
        sa.CheckConstraint("step >= 0", name=op.f("ck_intermediate_step_counts")),
        sa.ForeignKeyConstraint(
            ["trial_id"], ["trial.id"], name="fk_intermediate_trial_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("trial_id", "step", name="pk_intermediate"),
    )
    change_check("trial", CHECK, OLD, NEW)


def downgrade() -> None:
    # The older schema knows no such end: there, as a cancelled trial, it runs again.
    op.execute("UPDATE trial SET state = 'cancelled', cause = 'cancelled' WHERE state = 'pruned'")
    change_check("trial", CHECK, NEW, OLD)
    op.drop_table("intermediate")
