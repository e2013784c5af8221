"""Let every trial of stored jobs see all selection samples, as it did."""

from storage.migrations.specifications import change_section

revision = "0028"
down_revision = "0027"
branch_labels = None
depends_on = None


def upgrade() -> None:
    change_section("search", lambda search: {**search, "race": False})


def downgrade() -> None:
    change_section(
        "search", lambda search: {name: search[name] for name in search if name != "race"}
    )
