"""Let cells have a latency: the seconds of their layers' kernels, where a job asked for it."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

GREATEST = "1.7976931348623157e308"
TABLES = ("cell", "option")


def upgrade() -> None:
    for table in TABLES:
        finite = sa.CheckConstraint(
            f"latency_s BETWEEN 0 AND {GREATEST}", name=op.f(f"ck_{table}_latency_s_finite")
        )
        op.add_column(table, sa.Column("latency_s", sa.Double(), finite, nullable=True))


def downgrade() -> None:
    for table in TABLES:
        op.drop_column(table, "latency_s")
