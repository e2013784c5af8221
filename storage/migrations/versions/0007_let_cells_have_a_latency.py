"""Let cells have a latency: the seconds of their layers' kernels, where a job asked for it."""

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

GREATEST = "1.7976931348623157e308"
TABLES = ("cell", "option")


def upgrade() -> None:
    # SQLite adds a check together with its column only.
    kind = "DOUBLE" if op.get_bind().dialect.name == "sqlite" else "DOUBLE PRECISION"
    for table in TABLES:
        op.execute(
            f"ALTER TABLE {table} ADD COLUMN latency_s {kind} "
            f"CONSTRAINT ck_{table}_latency_s_finite "
            f"CHECK (latency_s BETWEEN 0 AND {GREATEST})"
        )


def downgrade() -> None:
    for table in TABLES:
        op.drop_column(table, "latency_s")
