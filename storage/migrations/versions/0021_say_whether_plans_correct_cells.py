"""Give stored jobs the cells that they had: as they were measured."""

from storage.migrations.specifications import change_section

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None


def upgrade() -> None:
    change_section("search", lambda search: {**search, "correct_cells": False})


def downgrade() -> None:
    change_section(
        "search", lambda search: {name: search[name] for name in search if name != "correct_cells"}
    )
