"""Add tunings: experiments over the settings of a recovery."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

GREATEST = "1.7976931348623157e308"
STATES = "state IN ('running', 'complete', 'failed', 'cancelled', 'pruned', 'outdated')"


def upgrade() -> None:
    op.create_table(
        "tuning",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("settings", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["study_id"], ["study.id"], name="fk_tuning_study_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_tuning"),
        sa.UniqueConstraint("study_id", "digest", name="uq_tuning_study_id_digest"),
    )
    op.create_table(
        "tuning_sample",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("tuning_id", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("recovery", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("nbytes", sa.BigInteger(), nullable=False),
        sa.Column("test_error", sa.Double(), nullable=True),
        sa.Column("message", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(STATES, name=op.f("ck_tuning_sample_state_known")),
        sa.CheckConstraint("number >= 0", name=op.f("ck_tuning_sample_number_counts")),
        sa.CheckConstraint("attempt >= 1", name=op.f("ck_tuning_sample_attempt_counts")),
        sa.CheckConstraint("nbytes >= 0", name=op.f("ck_tuning_sample_nbytes_positive")),
        sa.CheckConstraint(
            "(state = 'running') = (finished_at IS NULL)",
            name=op.f("ck_tuning_sample_finished_has_time"),
        ),
        sa.CheckConstraint(
            f"test_error BETWEEN 0 AND {GREATEST}",
            name=op.f("ck_tuning_sample_test_error_finite"),
        ),
        sa.ForeignKeyConstraint(
            ["tuning_id"], ["tuning.id"], name="fk_tuning_sample_tuning_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_tuning_sample"),
        sa.UniqueConstraint("tuning_id", "number", name="uq_tuning_sample_tuning_id_number"),
    )
    op.create_table(
        "tuning_result",
        sa.Column("sample_id", sa.Integer(), nullable=False),
        sa.Column("step", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("error", sa.Double(), nullable=False),
        sa.Column("reported_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            f"error BETWEEN 0 AND {GREATEST}", name=op.f("ck_tuning_result_error_finite")
        ),
        sa.CheckConstraint("step >= 1", name=op.f("ck_tuning_result_step_counts")),
        sa.ForeignKeyConstraint(
            ["sample_id"],
            ["tuning_sample.id"],
            name="fk_tuning_result_sample_id",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("sample_id", "step", name="pk_tuning_result"),
    )


def downgrade() -> None:
    for table in ("tuning_result", "tuning_sample", "tuning"):
        op.drop_table(table)
