"""Add the peak memory of activations to trials."""

import sqlalchemy as sa
from alembic import op

from storage.migrations.specifications import add_limit, remove_limit

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

GREATEST = "1.7976931348623157e308"
COLUMNS = ("activation_nbytes", "test_activation_nbytes")


def upgrade() -> None:
    for column in COLUMNS:
        finite = sa.CheckConstraint(
            f"{column} BETWEEN -{GREATEST} AND {GREATEST}", name=op.f(f"ck_trial_{column}_finite")
        )
        op.add_column("trial", sa.Column(column, sa.Double(), finite, nullable=True))
    add_limit("max_activation_nbytes")


def downgrade() -> None:
    remove_limit("max_activation_nbytes")
    for column in reversed(COLUMNS):
        op.drop_column("trial", column)
