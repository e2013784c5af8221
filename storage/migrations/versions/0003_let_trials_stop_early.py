"""Let trials stop early: intermediate values, and the state of a pruned trial."""

import sqlalchemy as sa
from alembic import op

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
    _change_check(OLD, NEW)


def downgrade() -> None:
    # The older schema knows no such end: there, as a cancelled trial, it runs again.
    op.execute("UPDATE trial SET state = 'cancelled', cause = 'cancelled' WHERE state = 'pruned'")
    _change_check(NEW, OLD)
    op.drop_table("intermediate")


def _change_check(old: str, new: str) -> None:
    """Changes the check on a trial's state.

    SQLite cannot alter a check. Copying the table would delete what refers to it, so its
    definition is rewritten in place, which SQLite's manual allows for checks (lang_altertable,
    section 7); the number of the schema is raised, so that other connections read it again.
    """
    connection = op.get_bind()
    if connection.dialect.name != "sqlite":
        op.drop_constraint(op.f(CHECK), "trial", type_="check")
        op.create_check_constraint(op.f(CHECK), "trial", new)
        return
    version = connection.exec_driver_sql("PRAGMA schema_version").scalar_one()
    connection.exec_driver_sql("PRAGMA writable_schema=ON")
    connection.exec_driver_sql(
        "UPDATE sqlite_schema SET sql = replace(sql, ?, ?) WHERE type = 'table' AND name = 'trial'",
        (old, new),
    )
    connection.exec_driver_sql(f"PRAGMA schema_version={version + 1}")
    connection.exec_driver_sql("PRAGMA writable_schema=OFF")
