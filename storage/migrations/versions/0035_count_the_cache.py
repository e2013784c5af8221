"""Let jobs search and limit the KV cache; trials and options have its bytes, alone and with all."""

import sqlalchemy as sa
from alembic import op

from storage.migrations.specifications import (
    add_limit,
    change_section,
    change_specification,
    remove_limit,
)

revision = "0035"
down_revision = "0034"
branch_labels = None
depends_on = None

GREATEST = "1.7976931348623157e308"
FIGURES = ("kv_nbytes", "memory_nbytes")
COLUMNS = (*FIGURES, *(f"test_{name}" for name in FIGURES))


def upgrade() -> None:
    for column in COLUMNS:
        finite = sa.CheckConstraint(
            f"{column} BETWEEN -{GREATEST} AND {GREATEST}", name=op.f(f"ck_trial_{column}_finite")
        )
        op.add_column("trial", sa.Column(column, sa.Double(), finite, nullable=True))
    positive = sa.CheckConstraint("kv_nbytes >= 0", name=op.f("ck_option_kv_nbytes_positive"))
    op.add_column("option", sa.Column("kv_nbytes", sa.BigInteger(), positive, nullable=True))
    for name in FIGURES:
        add_limit(f"max_{name}")
    change_section("space", lambda space: {**space, "kv_cache": None})
    change_specification(lambda spec: {**spec, "context_tokens": None})


def downgrade() -> None:
    change_specification(lambda spec: without(spec, "context_tokens"))
    change_section("space", lambda space: without(space, "kv_cache"))
    for name in FIGURES:
        remove_limit(f"max_{name}")
    op.drop_column("option", "kv_nbytes")
    for column in reversed(COLUMNS):
        op.drop_column("trial", column)


def without(content: dict[str, object], left: str) -> dict[str, object]:
    return {name: value for name, value in content.items() if name != left}
