"""Let trials, cells and options have the time of a token, where a job asked for it."""

import sqlalchemy as sa
from alembic import op

from storage.migrations.specifications import add_limit, remove_limit

revision = "0026"
down_revision = "0025"
branch_labels = None
depends_on = None

GREATEST = "1.7976931348623157e308"
COLUMNS = (
    ("cell", "token_s", "0"),
    ("option", "token_s", "0"),
    ("trial", "token_s", f"-{GREATEST}"),
    ("trial", "test_token_s", f"-{GREATEST}"),
)


def upgrade() -> None:
    for table, column, least in COLUMNS:
        finite = sa.CheckConstraint(
            f"{column} BETWEEN {least} AND {GREATEST}", name=op.f(f"ck_{table}_{column}_finite")
        )
        op.add_column(table, sa.Column(column, sa.Double(), finite, nullable=True))
    add_limit("max_token_s")


def downgrade() -> None:
    remove_limit("max_token_s")
    for table, column, _ in reversed(COLUMNS):
        op.drop_column(table, column)
